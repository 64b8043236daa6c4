package engine

import (
	"testing"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestHitsAreThoseOfTheFirstStart: what requests find in the prefix cache counts once, when they start for
// the first time: neither preemptions, nor being handed back and run again here, nor how many choices start
// by themselves change the figures, of the engine or in their usage.
func TestHitsAreThoseOfTheFirstStart(t *testing.T) {
	// Preempted, handed back, and run again on the blocks that it left.
	for _, resumed := range []bool{false, true} {
		r := newRig(t, Settings{Blocks: 12, BlockTokens: 4, MaxSequences: 4, MaxBatchTokens: 64, PrefixCache: true, ReturnAfter: time.Millisecond})
		first, second := ask("a", prompt(1, 12), 32), ask("b", prompt(2, 16), 20)
		r.add(first, second)
		for r.p.count.returned == 0 {
			r.step()
		}
		generated := r.got["b/0"].tokens
		delete(r.got, "b/0")
		if resumed {
			second.Generated = []*pb.TokenIds{{Ids: generated}}
		}
		r.finish()
		r.add(second)
		r.finish()
		if h := r.got["b/0"]; h.cached != 0 || h.usage.CachedTokens != 0 {
			t.Errorf("resumed %v: it found %d cached tokens, its usage says %d", resumed, h.cached, h.usage.CachedTokens)
		}
		if s := r.p.stats(); s.PrefixQueryTokens != 28 || s.PrefixHitTokens != 0 {
			t.Errorf("resumed %v: %d tokens looked up and %d found, want 28 and 0", resumed, s.PrefixQueryTokens, s.PrefixHitTokens)
		}
	}
	// Six choices, in two places and in eight.
	for _, places := range []int{2, 8} {
		r := newRig(t, Settings{Blocks: 200, MaxSequences: places, PrefixCache: true})
		r.add(ask("before", prompt(1, 40), 2))
		r.finish()
		q := ask("a", prompt(1, 70), 5)
		q.Sampling.N = 6
		r.add(q)
		r.finish()
		if s := r.p.stats(); s.PrefixQueryTokens != 110 || s.PrefixHitTokens != 32 {
			t.Errorf("%d places: %d tokens looked up and %d found, want 110 and 32", places, s.PrefixQueryTokens, s.PrefixHitTokens)
		}
		for c := range 6 {
			if h := r.got[key("a", c)]; h.cached != 32 || h.done && h.usage.CachedTokens != 32 {
				t.Errorf("%d places, choice %d: %d cached tokens, its usage says %d", places, c, h.cached, h.usage.CachedTokens)
			}
		}
	}
	// Too short to be kept.
	r := newRig(t, Settings{Blocks: 20, PrefixCache: true})
	r.add(ask("short", prompt(1, 15), 2), ask("long", prompt(2, 16), 2))
	r.finish()
	if s := r.p.stats(); s.PrefixQueryTokens != 31 || s.PrefixShortTokens != 15 {
		t.Errorf("%d tokens looked up, %d of them too short, want 31 and 15", s.PrefixQueryTokens, s.PrefixShortTokens)
	}
}
