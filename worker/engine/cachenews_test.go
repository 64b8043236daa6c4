package engine

import (
	"fmt"
	"maps"
	"testing"

	"pgregory.net/rapid"

	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/kvcache/tier"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// holder is a block on a medium.
type holder struct {
	medium pb.CacheEvent_Medium
	hash   kvcache.Hash
}

// view is what a consumer makes of the cache's news: each block with its parent.
type view map[holder]kvcache.Hash

func (v view) apply(t tb, events []*pb.CacheEvent) {
	t.Helper()
	for _, e := range events {
		switch e.Kind {
		case pb.CacheEvent_KIND_RESET:
			clear(v)
			continue
		case pb.CacheEvent_KIND_CLEARED:
			maps.DeleteFunc(v, func(h holder, _ kvcache.Hash) bool { return h.medium == e.Medium })
			continue
		}
		if len(e.Hashes)%16 != 0 || len(e.Hashes) == 0 || len(e.Hashes) > 16*eventHashes || e.Medium == 0 || e.Kind == pb.CacheEvent_KIND_STORED && len(e.Parent) != 16 {
			t.Fatalf("event is %v", e)
		}
		var parent kvcache.Hash
		if e.Kind == pb.CacheEvent_KIND_STORED {
			parent = kvcache.Hash(e.Parent)
		}
		for h := e.Hashes; len(h) > 0; h = h[16:] {
			hash := kvcache.Hash(h[:16])
			if e.Kind == pb.CacheEvent_KIND_STORED {
				v[holder{e.Medium, hash}] = parent
			} else {
				delete(v, holder{e.Medium, hash})
			}
			parent = hash
		}
	}
}

// truth is what the cache holds.
func (r *rig) truth() view {
	v := view{}
	r.p.pool.EachName(0, r.p.Blocks, func(h, parent kvcache.Hash) {
		v[holder{pb.CacheEvent_MEDIUM_DEVICE, h}] = parent
	})
	if l := r.p.lower; l != nil {
		for _, c := range l.Cache.Contents(nil) {
			v[holder{medium(c.Medium), c.Hash}] = c.Parent
		}
	}
	return v
}

// TestCacheNews: a consumer that applies the cache's news, whenever it asks and whenever it starts
// over, knows what every tier holds.
func TestCacheNews(t *testing.T) {
	dir := t.TempDir()
	runs := 0
	rapid.Check(t, func(rt *rapid.T) {
		runs++
		r := newTieredRig(rt, Settings{Blocks: 20, BlockTokens: 4, MaxSequences: 4, MaxBatchTokens: 32}, 24, fmt.Sprint(dir, "/", runs), 60, Costs{})
		v := view{}
		reset, n := true, 0
		rt.Repeat(map[string]func(*rapid.T){
			"ask": func(rt *rapid.T) {
				news := r.p.tellCache(reset)
				if reset && (len(news.Events) == 0 || news.Events[0].Kind != pb.CacheEvent_KIND_RESET) {
					rt.Fatalf("a first answer begins with %v", news.Events)
				}
				reset = false
				v.apply(rt, news.Events)
			},
			"new consumer": func(*rapid.T) { clear(v); reset = true },
			"run": func(rt *rapid.T) {
				n++
				r.add(ask(fmt.Sprint(n), prompt(rapid.IntRange(0, 5).Draw(rt, "prompt"), rapid.IntRange(1, 40).Draw(rt, "tokens")), 4))
				for range rapid.IntRange(1, 12).Draw(rt, "steps") {
					r.step()
				}
			},
		})
		r.finish()
		r.model.Tiers.Cache.Close()
		r.p.plan(r.now) // takes what the disk's writer did last
		if reset {
			clear(v)
		}
		for more := true; more; reset = false {
			news := r.p.tellCache(reset)
			v.apply(rt, news.Events)
			more = news.More
		}
		truth := r.truth()
		for h, parent := range truth {
			if got, ok := v[h]; !ok {
				rt.Errorf("the consumer does not know %v", h)
			} else if got != parent && parent != (kvcache.Hash{}) {
				rt.Errorf("%v: parent %v, want %v", h, got, parent)
			}
		}
		for h := range v {
			if _, ok := truth[h]; !ok {
				rt.Errorf("the consumer believes in %v", h)
			}
		}
	})
}

// TestCacheNewsMissed: whoever asks so late that the journal has gone round starts over.
func TestCacheNewsMissed(t *testing.T) {
	r := newRig(t, Settings{Blocks: 16, BlockTokens: 4, PrefixCache: true})
	v := view{}
	v.apply(t, r.p.tellCache(true).Events)
	for i := range 100 {
		r.add(ask(fmt.Sprint(i), prompt(i, 60), 2))
		r.finish()
	}
	news := r.p.tellCache(false)
	if news.Events[0].Kind != pb.CacheEvent_KIND_RESET || news.More {
		t.Errorf("%d events, the first %v", len(news.Events), news.Events[0])
	}
	v.apply(t, news.Events)
	if truth := r.truth(); len(truth) == 0 || !maps.Equal(v, truth) {
		t.Errorf("the consumer knows %d blocks of %d", len(v), len(truth))
	}
	if again := r.p.tellCache(false); len(again.Events) != 0 {
		t.Errorf("told again: %v", again.Events)
	}
}

// TestCacheNewsIsShort: a long prompt's blocks are one event, and a large cache comes in parts.
func TestCacheNewsIsShort(t *testing.T) {
	const blocks = 2*snapshotBlocks + 100
	r := newRig(t, Settings{Blocks: blocks, BlockTokens: 1, PrefixCache: true, MaxBatchTokens: 4096})
	r.p.tellCache(true)
	r.add(ask("a", prompt(1, 500), 1))
	r.finish()
	if news := r.p.tellCache(false); len(news.Events) != 1 || len(news.Events[0].Hashes) != 16*500 {
		t.Errorf("%d events, the first of %d bytes", len(news.Events), len(news.Events[0].Hashes))
	}
	v := view{}
	parts := 0
	for more := true; more; parts++ {
		news := r.p.tellCache(parts == 0)
		v.apply(t, news.Events)
		more = news.More
	}
	if truth := r.truth(); parts != 3 || !maps.Equal(v, truth) {
		t.Errorf("%d parts tell %d blocks of %d", parts, len(v), len(truth))
	}
	// Of the lower tiers too.
	r.p.news.pages = make([]tier.Change, 2*snapshotPages+1)
	for i := range r.p.news.pages {
		r.p.news.pages[i] = tier.Change{Kind: kvcache.Stored, Medium: kvcache.Host, Hash: kvcache.Hash{byte(i), byte(i >> 8), byte(i >> 16), 1}}
	}
	for parts = 1; r.p.tellCache(false).More; parts++ {
	}
	if parts != 3 {
		t.Errorf("%d parts", parts)
	}
}
