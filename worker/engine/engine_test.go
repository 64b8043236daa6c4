package engine

import "testing"

func TestOneRequest(t *testing.T) {
	for _, depth := range []int{1, 2} {
		r := newRig(t, Settings{Blocks: 16, Depth: depth, PrefixCache: true})
		q := ask("a", prompt(1, 40), 20)
		r.add(q)
		r.finish()
		r.want(q)
		if got := r.runner.Rows(); got != 40+19 {
			t.Errorf("depth %d computed %d tokens, want 59", depth, got)
		}
	}
}
