package engine

import (
	"fmt"
	"slices"
	"testing"

	"github.com/quire-serve/quire/device"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// TestComingBackKeepsTheOrder: when everybody has lost its blocks at once, preempted, swapped out or by a step
// that failed, they go on in the order in which they came, whoever was first to lose them.
func TestComingBackKeepsTheOrder(t *testing.T) {
	for _, c := range []struct {
		name   string
		tiered bool
		fails  bool
	}{{"preempted", false, false}, {"swapped", true, false}, {"a failed step", false, true}} {
		t.Run(c.name, func(t *testing.T) {
			var broken bool
			edit := func(e *enginetest.Config, _ *Model) {
				e.Fail = func(int, *device.Batch) error {
					if broken {
						broken = false
						return fmt.Errorf("fails")
					}
					return nil
				}
			}
			s := Settings{Blocks: 64, BlockTokens: 4, MaxSequences: 16, MaxBatchTokens: 24}
			var r *rig
			if c.tiered {
				r = newTieredRig(t, s, 256, "", 0, Costs{}, edit)
				defer r.model.Tiers.Cache.Close()
			} else {
				r = newRig(t, s, edit)
			}
			var asked []*pb.Request
			var want []string
			for i := range 8 {
				// They are added in another order than they arrived in.
				q := ask(fmt.Sprint("r", 7-i), prompt(i, 14), 30)
				q.ArrivalMs = int64(7 - i)
				asked = append(asked, q)
				want = append(want, fmt.Sprint("r", i))
			}
			r.add(asked...)
			for len(r.p.running) < len(asked) || slices.ContainsFunc(r.p.running, func(s *sequence) bool { return s.generated() == 0 }) {
				r.step()
			}
			if c.fails {
				broken = true
				for len(r.p.waiting) == 0 {
					r.step()
				}
			} else {
				for len(r.p.running) > 0 {
					r.p.preempt(r.p.running[0])
				}
			}
			if c.tiered {
				// Others take the memory, so that what was theirs is copied down.
				q := ask("stranger", prompt(99, 64*4-2), 1)
				q.Priority = -1
				r.add(q)
			}
			from := r.p.traced
			r.finish()
			for _, q := range asked {
				r.want(q)
			}
			var back []string
			for _, step := range r.p.traces(int(r.p.traced - from)) {
				for _, n := range step.Notes {
					if n.Reason == noteAdmitted && n.RequestID != "stranger" && !slices.Contains(back, n.RequestID) {
						back = append(back, n.RequestID)
					}
				}
			}
			if !slices.Equal(back, want) {
				t.Errorf("came back as %v", back)
			}
		})
	}
}
