package engine

import (
	"fmt"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestSwapOrRecompute: under pressure long sequences are swapped and short ones computed again, as
// the costs say, and all say what they say undisturbed.
func TestSwapOrRecompute(t *testing.T) {
	// A round trip of n blocks takes 500 + 20n, computing them 160n: from four blocks on it pays.
	mixed := Costs{Page: 10, Token: 40, Step: 500}
	for name, c := range map[string]struct {
		costs           Costs
		swaps, computes bool
	}{
		"copies cost nothing":    {Costs{Page: 1, Token: 1000, Step: 1}, true, false},
		"copies cost everything": {Costs{Page: 1000, Token: 1, Step: 1}, false, true},
		"mixed":                  {mixed, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := newTieredRig(t, Settings{Blocks: 24, BlockTokens: 4, MaxSequences: 8, MaxBatchTokens: 64}, 256, "", 0, c.costs)
			defer r.model.Tiers.Cache.Close()
			var asked []*pb.Request
			for i := range 12 {
				// At least a block each, so that there is something to swap.
				q := ask(fmt.Sprintf("r%d", i), prompt(i, []int{5, 30, 6, 18}[i%4]), 30)
				asked = append(asked, q)
				r.add(q)
				r.step()
			}
			r.finish()
			for _, q := range asked {
				r.want(q)
			}
			s := r.p.stats()
			swaps, computes := s.Swaps > 0, s.Preemptions > s.Swaps
			if swaps != c.swaps || computes != c.computes {
				t.Errorf("%d of %d preemptions were swaps", s.Swaps, s.Preemptions)
			}
			if (s.Tiers.HostHits > 0) != c.swaps {
				t.Errorf("%d blocks came back from host memory", s.Tiers.HostHits)
			}
			seen := map[Reason]bool{}
			for _, step := range r.p.traces(1 << 16) {
				for _, n := range step.Notes {
					seen[n.Reason] = true
				}
			}
			if seen[noteSwapped] != c.swaps || seen[notePreempted] != c.computes {
				t.Errorf("the traces tell of %v", seen)
			}
		})
	}
}

// TestCosts: the formulas of both decisions at their edges.
func TestCosts(t *testing.T) {
	c := Costs{Page: 10, Token: 40, Step: 500}
	for _, x := range []struct {
		blocks     int
		load, swap bool
	}{{0, false, false}, {3, false, false}, {4, true, true}} {
		if l, s := c.load(x.blocks, 4), c.swap(x.blocks, 4); l != x.load || s != x.swap {
			t.Errorf("%d blocks: load %v, swap %v; want %v, %v", x.blocks, l, s, x.load, x.swap)
		}
	}
	// Copying both ways costs what computing does not, one way less.
	c = Costs{Page: 10, Token: 4, Step: 10}
	if !c.load(2, 4) || c.swap(2, 4) {
		t.Errorf("load %v, swap %v; want true, false", c.load(2, 4), c.swap(2, 4))
	}
}
