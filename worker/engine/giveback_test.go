package engine

import (
	"strings"
	"testing"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestPreemptedIsHandedBack: a request that was preempted and cannot go on within the bound is handed
// back, not before, and runs to the same end when it comes again; without a bound it waits.
func TestPreemptedIsHandedBack(t *testing.T) {
	for name, c := range map[string]struct {
		after    time.Duration
		returned int64
	}{"5 ms": {5 * time.Millisecond, 1}, "a minute": {time.Minute, 0}, "never": {-1, 0}} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t, Settings{Blocks: 8, BlockTokens: 4, MaxSequences: 4, MaxBatchTokens: 32, ReturnAfter: c.after})
			first, second := ask("a", prompt(1, 4), 27), ask("b", prompt(2, 8), 20)
			r.add(first, second)
			for r.p.count.preemptions == 0 {
				r.step()
			}
			if r.p.count.preemptions != 1 || len(r.p.running) != 1 {
				t.Fatalf("%d preemptions, %d running", r.p.count.preemptions, len(r.p.running))
			}
			for range 4 { // of a millisecond each
				r.step()
			}
			if r.p.count.returned != 0 {
				t.Fatal("handed back before its time")
			}
			r.finish()
			r.want(first)
			if n := r.p.stats().Returned; n != c.returned {
				t.Fatalf("%d handed back, want %d", n, c.returned)
			}
			if c.returned == 0 {
				r.want(second)
				return
			}
			if h := r.got["b/0"]; !h.returned || !h.done || !strings.HasPrefix(h.message, "given back") {
				t.Errorf("b ended with %+v", h)
			}
			r.wantPrefix(second)
			// It comes again, to this worker or another, and gives the same.
			delete(r.got, "b/0")
			r.add(second)
			r.finish()
			r.want(second)
			if r.got["b/0"].returned {
				t.Error("handed back twice")
			}
		})
	}
}

// TestHandingBackTakesAllChoices: a request of several choices goes as one, and only once none of
// them runs.
func TestHandingBackTakesAllChoices(t *testing.T) {
	r := newRig(t, Settings{Blocks: 12, BlockTokens: 4, MaxSequences: 8, MaxBatchTokens: 32, ReturnAfter: time.Millisecond, PrefixCache: true})
	first := ask("a", prompt(1, 4), 43)
	many := ask("b", prompt(2, 8), 30, func(q *pb.Request) { q.Sampling.N = 3 })
	r.add(first, many)
	for r.p.count.returned == 0 {
		running := 0
		for _, s := range r.p.running {
			if s.id == "b" {
				running++
			}
		}
		if !r.step() {
			t.Fatal("came to an end")
		}
		if r.p.count.returned > 0 && running > 0 {
			t.Errorf("handed back with %d choices running", running)
		}
	}
	r.finish()
	r.want(first)
	done := 0
	for c := range 3 {
		h := r.got[key("b", c)]
		if h == nil || !h.returned {
			t.Fatalf("choice %d: %+v", c, h)
		}
		if h.done {
			done++
		}
	}
	if done != 1 {
		t.Errorf("%d events marked done", done)
	}
	r.wantPrefix(many)
}
