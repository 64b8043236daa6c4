package kvcache

import (
	"errors"
	"slices"
	"testing"
)

func kinds(events []Event) []EventKind {
	var k []EventKind
	for _, e := range events {
		k = append(k, e.Kind)
	}
	return k
}

func TestScenarioL1(t *testing.T) {
	for _, k := range []int{2, 3, 10} {
		p := pool(t, Config{Blocks: k, PrefixCache: true, Events: true})
		s, _ := start(t, p, Hash{}, ids(0, k*16))
		want := slices.Clone(s.Hashes())
		e := p.Events(nil)
		if len(e) != 1 || e[0].Kind != Stored || !slices.Equal(e[0].Hashes, want) || e[0].Tokens() != k*16 {
			t.Fatalf("k=%d: %+v, want one stored event of %v", k, e, want)
		}
		if e := p.Events(nil); len(e) != 0 {
			t.Fatalf("events were not emptied: %+v", e)
		}
		s.Release()
		s, _ = start(t, p, Hash{}, ids(1, k*16))
		e = p.Events(nil)
		// One event lists the removals: the tail goes first.
		slices.Reverse(want)
		if !slices.Equal(kinds(e), []EventKind{Removed, Stored}) || !slices.Equal(e[0].Hashes, want) || !slices.Equal(e[1].Hashes, s.Hashes()) {
			t.Fatalf("k=%d: %+v, want %v removed, then %v stored", k, e, want, s.Hashes())
		}
		if e[1].Seq != e[0].Seq+uint64(k) || e[0].Seq != uint64(k)+1 {
			t.Fatalf("numbers %d, %d do not count blocks", e[0].Seq, e[1].Seq)
		}
		s.Release()
		if !p.ResetCache() {
			t.Fatal("reset refused")
		}
		if e = p.Events(e[:0]); len(e) != 1 || e[0].Kind != Cleared {
			t.Fatalf("after the reset: %+v, want one cleared event", e)
		}
	}
}

func TestScenarioL2(t *testing.T) {
	p := pool(t, Config{Blocks: 2, PrefixCache: true})
	s, _ := start(t, p, Hash{}, ids(0, 32))
	s.Release()
	p.ResetCache()
	since, err := p.EventsSince(nil, 1)
	if e := p.Events(nil); len(e) != 0 || len(since) != 0 || err != nil {
		t.Fatalf("events with events off: %v, %v, %v", e, since, err)
	}
}

func TestScenarioL3(t *testing.T) {
	p := pool(t, Config{Blocks: 8, PrefixCache: true, Events: true, Group: 3})
	root := Root([]byte("tenant"), []byte("adapter"))
	tokens := ids(0, 48)
	s, _ := start(t, p, root, tokens[:32])
	e := p.Events(nil)
	if len(e) != 1 || e[0].Parent != root || e[0].BlockTokens != 16 || e[0].Group != 3 || e[0].Medium != Device {
		t.Fatalf("%+v: want parent %v, 16 tokens a block, group 3, on the device", e, root)
	}
	if err := s.Grow(48); err != nil {
		t.Fatal(err)
	}
	s.Publish(tokens)
	if e = p.Events(nil); len(e) != 1 || e[0].Parent != s.Hashes()[1] || len(e[0].Hashes) != 1 {
		t.Fatalf("%+v: want one block behind %v", e, s.Hashes()[1])
	}
	p.RecordTier(Stored, Host, s.Hashes()[0], root)
	if e = p.Events(nil); len(e) != 1 || e[0].Medium != Host || e[0].Medium.String() != "host" {
		t.Fatalf("%+v: want it on the host", e)
	}
	p.EndStep()
}

// TestEventReplay: a consumer that lost events gets them again, or is told to start afresh.
func TestEventReplay(t *testing.T) {
	p := pool(t, Config{Blocks: 4, PrefixCache: true, Events: true, EventBuffer: 6})
	s, _ := start(t, p, Hash{}, ids(0, 48))
	first := p.Events(nil)
	firstHashes := slices.Clone(first[0].Hashes)
	again, err := p.EventsSince(nil, 1)
	if err != nil || len(again) != 1 || !slices.Equal(again[0].Hashes, firstHashes) {
		t.Fatalf("%v, %v: want %v again", again, err, firstHashes)
	}
	if part, err := p.EventsSince(nil, 3); err != nil || len(part) != 1 || part[0].Seq != 3 || part[0].Hashes[0] != firstHashes[2] {
		t.Fatalf("%v, %v: want the third block", part, err)
	}
	s.Release()
	s, _ = start(t, p, Hash{}, ids(1, 64)) // three removals, four stores
	if _, err := p.EventsSince(nil, 1); !errors.Is(err, ErrEventsGone) {
		t.Fatalf("%v, want ErrEventsGone", err)
	}
	if _, err := p.EventsSince(nil, 12); !errors.Is(err, ErrEventsGone) {
		t.Fatalf("a number from the future: %v, want ErrEventsGone", err)
	}
	e := p.Events(nil)
	if !slices.Equal(kinds(e), []EventKind{Missed, Removed, Stored}) || len(e[1].Hashes) != 2 || len(e[2].Hashes) != 4 {
		t.Fatalf("%+v: want missed, two removed, four stored", e)
	}
	snap, next := p.Snapshot(nil)
	have := map[Hash]bool{}
	for _, e := range snap {
		have[e.Hashes[0]] = true
	}
	for _, h := range s.Hashes() {
		if !have[h] {
			t.Fatalf("snapshot misses %v", h)
		}
	}
	if len(snap) != 4 {
		t.Fatalf("snapshot of %d blocks, want 4", len(snap))
	}
	if e, err := p.EventsSince(nil, next); err != nil || len(e) != 0 {
		t.Fatalf("after the snapshot: %v, %v", e, err)
	}
}

func TestScenarioL5(t *testing.T) {
	p := pool(t, Config{Blocks: 8, PrefixCache: true})
	a, _ := start(t, p, Hash{}, ids(0, 64))
	hog, _ := start(t, p, Hash{}, ids(1, 64))
	stats := p.Stats()
	wantInt(t, "queried", int(stats.QueryTokens), 128)
	wantInt(t, "hit", int(stats.HitTokens), 0)
	r := p.NewSequence(Hash{})
	prompt := concat(ids(0, 64), ids(2, 16))
	for range 5 {
		r.Lookup(prompt)
		if _, _, _, err := r.Begin(prompt, 80); !errors.Is(err, ErrNoBlocks) {
			t.Fatal(err)
		}
	}
	if p.Stats() != stats {
		t.Fatal("a refused admission was counted")
	}
	hog.Release()
	if _, _, _, err := r.Begin(prompt, 80); err != nil {
		t.Fatal(err)
	}
	r.Publish(prompt)
	p.EndStep()
	stats = p.Stats()
	wantInt(t, "queried", int(stats.QueryTokens), 208)
	wantInt(t, "hit", int(stats.HitTokens), 64)
	r.Preempt()
	if _, _, _, err := r.Begin(prompt, 80); err != nil {
		t.Fatal(err)
	}
	after := p.Stats()
	wantInt(t, "queried by requests", int(after.QueryTokens), 208)
	wantInt(t, "queried by preempted ones", int(after.PreemptedQueryTokens), 80)
	wantInt(t, "hit by preempted ones", int(after.PreemptedHit), 79)
	a.Release()
	r.Release()
}

func TestScenarioM1(t *testing.T) {
	p := pool(t, Config{Blocks: 8, BlockTokens: 1, PrefixCache: true})
	s, cached := start(t, p, Hash{}, []int32{1, 2, 3})
	wantInt(t, "prefix", cached, 0)
	wantInt(t, "size", p.index.n, 3)
	s.Release()
	wantInt(t, "evictable", p.Stats().Cached, 3)
	// A token more, so that every block matched stays whole.
	r, cached := start(t, p, Hash{}, []int32{1, 2, 3, 9})
	wantInt(t, "match", cached, 3)
	wantIDs(t, "match", r.Table()[:3], 0, 1, 2)
	r2, cached := start(t, p, Hash{}, []int32{1, 2, 8})
	wantInt(t, "match", cached, 2)
	wantIDs(t, "match", r2.Table()[:2], 0, 1)
}

func TestScenarioM2(t *testing.T) {
	for _, page := range []int{1, 2} {
		p := pool(t, Config{Blocks: 32, BlockTokens: page, PrefixCache: true})
		long, fork := []int32{1, 2, 3, 4, 5, 6, 7, 8}, []int32{1, 2, 9, 10}
		start(t, p, Hash{}, long)
		start(t, p, Hash{}, fork)
		wantInt(t, "total tokens", p.index.n*page, 10)
		lookup := func(tokens ...int32) int {
			s := p.NewSequence(Hash{})
			defer s.Release()
			return s.Lookup(tokens)
		}
		wantInt(t, "splits at 4", lookup(1, 2, 3, 4, 999), 4)
		wantInt(t, "splits at 6", lookup(1, 2, 3, 4, 5, 6, 999), 6)
		wantInt(t, "total tokens afterwards", p.index.n*page, 10)
		wantInt(t, "first", lookup(append(long, 0)...), 8)
		wantInt(t, "second", lookup(append(fork, 0)...), 4)
	}
}

func TestScenarioM3(t *testing.T) {
	for _, c := range []struct{ page, tokens, want int }{{2, 5, 4}, {4, 6, 4}, {4, 3, 0}} {
		p := pool(t, Config{Blocks: 8, BlockTokens: c.page, PrefixCache: true})
		start(t, p, Hash{}, ids(0, c.tokens))
		_, cached := start(t, p, Hash{}, ids(0, c.tokens))
		wantInt(t, "match", cached, c.want)
	}
}

func TestScenarioM5(t *testing.T) {
	p := pool(t, Config{Blocks: 4, BlockTokens: 1, PrefixCache: true})
	s, _ := start(t, p, Hash{}, []int32{1, 2, 3})
	s.Release()
	r, _ := start(t, p, Hash{}, []int32{1, 2, 3, 4})
	wantInt(t, "protected", p.Stats().Referenced, 4)
	wantInt(t, "evictable", p.Stats().Cached, 0)
	x := p.NewSequence(Hash{})
	if _, _, _, err := x.Begin([]int32{7}, 1); !errors.Is(err, ErrNoBlocks) {
		t.Fatalf("a locked path was evicted: %v", err)
	}
	r.Release()
	wantInt(t, "evictable again", p.Stats().Cached, 4)
}

func TestScenarioM6(t *testing.T) {
	p := pool(t, Config{Blocks: 4, BlockTokens: 1, PrefixCache: true})
	old, _ := start(t, p, Hash{}, []int32{1, 2})
	young, _ := start(t, p, Hash{}, []int32{3, 4})
	old.Release()
	young.Release()
	s, _ := start(t, p, Hash{}, []int32{5, 6})
	wantIDs(t, "the older pair goes, its leaf first", s.Table(), 1, 0)
	wantInt(t, "evictions", int(p.Stats().Evictions), 2)
	r := p.NewSequence(Hash{})
	wantInt(t, "the younger stays", r.Lookup([]int32{3, 4, 0}), 2)
}

// TestScenarioM7: Quire evicts the least recently used; use is a request's end, not its begin.
func TestScenarioM7(t *testing.T) {
	p := pool(t, Config{Blocks: 3, BlockTokens: 1, PrefixCache: true})
	for _, tokens := range [][]int32{{1}, {2}, {3}, {1}} { // 1 is used again
		s, _ := start(t, p, Hash{}, tokens)
		s.Release()
	}
	start(t, p, Hash{}, []int32{4})
	s := p.NewSequence(Hash{})
	for token, want := range map[int32]int{1: 1, 2: 0, 3: 1} {
		wantInt(t, "cached", s.Lookup([]int32{token, 0}), want)
		s.Release()
		s = p.NewSequence(Hash{})
	}
}

func TestScenarioM9(t *testing.T) {
	p := pool(t, Config{Blocks: 2, BlockTokens: 2, PrefixCache: true, Events: true})
	s, _ := start(t, p, Hash{}, []int32{1, 2, 3, 4})
	e := p.Events(nil)
	if len(e) != 1 || len(e[0].Hashes) != 2 {
		t.Fatalf("%+v, want two blocks stored", e)
	}
	want := slices.Clone(s.Hashes())
	s.Release()
	start(t, p, Hash{}, []int32{5, 6, 7}) // takes both
	e = p.Events(nil)
	slices.Reverse(want)
	if e[0].Kind != Removed || !slices.Equal(e[0].Hashes, want) {
		t.Fatalf("%+v, want %v removed in one event", e, want)
	}
}
