package engine

import "testing"

// TestCopiesGoWithWhoLeaves: a choice that has just forked, and loses its blocks in the same plan, takes the
// copy of its parent's page with it: the page is another's now.
func TestCopiesGoWithWhoLeaves(t *testing.T) {
	r := newRig(t, Settings{Blocks: 4, BlockTokens: 4, MaxSequences: 4, MaxBatchTokens: 32})
	first, twice := ask("a", prompt(1, 4), 8), ask("b", prompt(2, 6), 2)
	twice.Sampling.N = 2
	r.add(first, twice)
	r.step()
	r.step() // b/1 forks into the last block, and a needs it
	if r.p.count.preemptions != 1 || len(r.p.running) != 2 {
		t.Fatalf("%d preemptions, %s", r.p.count.preemptions, r.state())
	}
	r.finish()
	r.want(first)
	r.want(twice)
}
