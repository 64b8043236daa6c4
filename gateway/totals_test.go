package gateway

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestCountersNeverGoBack: whatever workers do (count, leave, come back as they were, begin anew), the sums
// grow by what was counted, and never shrink.
func TestCountersNeverGoBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var sums totals
		models := []string{"a", "b"}
		workers := map[string]*pb.WorkerStats{}
		want := map[string]*pb.WorkerStats{"a": {}, "b": {}}
		said := func(m string) []int64 {
			s := sums.of(m)
			list := slices.Clone(s.AcceptedDraftTokens)
			for _, c := range workerCounters {
				list = append(list, *c.of(s))
			}
			return list
		}
		for range rapid.IntRange(1, 40).Draw(t, "events") {
			name := rapid.SampledFrom([]string{"a1", "a2", "b1"}).Draw(t, "worker")
			model := name[:1]
			s := workers[name]
			if s == nil || s.Steps > 0 && rapid.IntRange(0, 5).Draw(t, "restart") == 0 {
				s = &pb.WorkerStats{AcceptedDraftTokens: []int64{0, 0}}
			}
			next := &pb.WorkerStats{AcceptedDraftTokens: slices.Clone(s.AcceptedDraftTokens)}
			for i, c := range workerCounters {
				grown := rapid.Int64Range(0, 5).Draw(t, "grown")
				if s.Steps == 0 {
					grown = 0 // a process that has just begun is heard of before it has done anything
				}
				if i == len(workerCounters)-2 {
					grown = 1 // a step
				}
				*c.of(next) = *c.of(s) + grown
				*c.of(want[model]) += grown
			}
			next.AcceptedDraftTokens[1]++
			before := said(model)
			sums.take(source{name, model}, next, func(string) bool { return true })
			workers[name] = next
			if after := said(model); len(after) == len(before) {
				for i := range after {
					if after[i] < before[i] {
						t.Fatalf("a counter of %s went from %d to %d", name, before[i], after[i])
					}
				}
			}
		}
		for _, m := range models {
			for i, c := range workerCounters {
				if got, want := *c.of(sums.of(m)), *c.of(want[m]); got != want && i != len(workerCounters)-2 {
					t.Errorf("counter %d of %s is %d, want %d", i, m, got, want)
				}
			}
		}
	})
}
