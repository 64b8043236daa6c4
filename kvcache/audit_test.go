package kvcache

import (
	"errors"
	"strings"
	"testing"
)

// brokenPool has two running requests, a cached one and free blocks.
func brokenPool(t *testing.T) (p *Pool, a, b *Sequence) {
	t.Helper()
	p, err := NewPool(Config{Blocks: 12, BlockTokens: 16, PrefixCache: true, Events: true})
	if err != nil {
		t.Fatal(err)
	}
	c, _ := start(t, p, Hash{}, ids(2, 48)) // 0 1 2
	a, _ = start(t, p, Hash{}, ids(0, 40))  // 3 4 5
	b, _ = start(t, p, Hash{}, concat(ids(0, 32), ids(1, 8)))
	c.Release()
	if err := p.Audit(); err != nil {
		t.Fatal(err)
	}
	return p, a, b
}

// TestViolations breaks the books in every way and wants each named, mended, and survived.
func TestViolations(t *testing.T) {
	for name, c := range map[string]struct {
		damage func(p *Pool, a *Sequence)
		says   string
		check  bool // the O(1) check sees it too
	}{
		"count too high": {func(p *Pool, a *Sequence) { p.blocks[a.table[0]].refs++ }, "block 3 counts 3 references, block tables hold 2", false},
		"count and sum too high": {func(p *Pool, a *Sequence) { p.blocks[a.table[0]].refs++; p.refs++ },
			"reference counts add up to 7, block tables hold 6 entries", true},
		"released twice": {func(p *Pool, a *Sequence) { p.drop(a.table[2]); p.drop(a.table[2]) }, "block 5 is given back without a reference", true},
		"lost from the free list": {func(p *Pool, _ *Sequence) { p.free.popFront(p.blocks) },
			"block 7 is on no list, should be on the free list", true},
		"free counter": {func(p *Pool, _ *Sequence) { p.free.n++ }, "the free list counts 6 and ends at 11, holds 5 and ends at 11", true},
		"referenced counter": {func(p *Pool, _ *Sequence) { p.referenced++ },
			"5 free + 3 cached + 5 referenced + 0 quarantined = 13 blocks, the pool has 12", true},
		"cached block lost": {func(p *Pool, _ *Sequence) { p.cached.popFront(p.blocks) },
			"block 2 is on no list, should be on the cached list", true},
		"free list runs in a circle": {func(p *Pool, _ *Sequence) { p.blocks[p.free.tail].next = p.free.head }, "the free list runs into block 7", false},
		"back link":                  {func(p *Pool, _ *Sequence) { p.blocks[p.cached.tail].prev = 9 }, "block 0 is linked back to 9, not 1", false},
		"hash without index": {func(p *Pool, _ *Sequence) {
			h := &p.blocks[0].hash
			for own := p.index.bucket(h); p.index.bucket(h) == own; {
				h[3]++ // some hashes share a bucket
			}
		}, "index bucket of another hash", false},
		"index without hash": {func(p *Pool, _ *Sequence) { p.blocks[0].hash = Hash{} }, "block 0 has a hash: false, is in the index: true", false},
		"state":              {func(p *Pool, _ *Sequence) { p.blocks[7].state = stateReferenced }, "block 7 is referenced, should be free", false},
		"tenant's block taken": {func(p *Pool, a *Sequence) {
			p.drop(a.table[2])
			start(t, p, Hash{}, ids(5, 8))
		}, "block 5 counts 1 references, block tables hold 2", true},
	} {
		t.Run(name, func(t *testing.T) {
			p, a, b := brokenPool(t)
			c.damage(p, a)
			err := p.Audit()
			if !errors.Is(err, ErrAccounting) {
				t.Fatalf("the audit found %v", err)
			}
			if !strings.Contains(err.Error(), c.says) {
				t.Errorf("the audit says\n%v\nwithout %q", err, c.says)
			}
			if got := p.Check(); (got != nil) != c.check {
				t.Errorf("Check says %v, want an error: %t", got, c.check)
			}
			p.Quarantine()
			if err := p.Audit(); err != nil {
				t.Fatalf("after Quarantine: %v", err)
			}
			// Life goes on: requests end, and others run.
			a.Release()
			b.Release()
			for i := range 4 {
				s, _ := start(t, p, Hash{}, ids(10+i, 64))
				s.Release()
			}
			if err := p.Audit(); err != nil {
				t.Fatalf("after going on: %v", err)
			}
		})
	}
}

func TestQuarantineTakesDamagedBlocksOnly(t *testing.T) {
	p, a, b := brokenPool(t)
	p.blocks[9].refs = 1 // free, yet referenced by nobody
	p.blocks[1].refs = 2 // cached, yet referenced by nobody
	p.blocks[a.table[0]].refs = 7
	p.Events(nil)
	if n := p.Quarantine(); n != 2 {
		t.Fatalf("%d blocks quarantined, want 2", n)
	}
	if s := p.Stats(); s.Quarantined != 2 || s.Total != 12 || s.Free+s.Cached+s.Referenced != 10 {
		t.Fatalf("%+v", s)
	}
	// Their names are gone, and consumers know. The one still in use only lost its name.
	removed := 0
	for _, e := range p.Events(nil) {
		if e.Kind == Removed {
			removed += len(e.Hashes)
		}
	}
	if removed != 2 {
		t.Fatalf("%d hashes removed, want 2", removed)
	}
	a.Release()
	b.Release()
	if !p.Fits(160) || p.Fits(161) {
		t.Fatal("a pool of 10 sound blocks fits 160 tokens and no more")
	}
	s, _ := start(t, p, Hash{}, ids(7, 160))
	for _, id := range s.Table() {
		if id == 9 || id == 1 {
			t.Fatalf("quarantined block %d was handed out", id)
		}
	}
	s.Release()
	if p.Quarantine() != 0 {
		t.Fatal("sound books lost a block")
	}
}

func TestLeavingFollowers(t *testing.T) {
	p, err := NewPool(Config{Blocks: 8, BlockTokens: 16, PrefixCache: true})
	if err != nil {
		t.Fatal(err)
	}
	prompt := ids(0, 40)
	a, b := p.NewSequence(Hash{}), p.NewSequence(Hash{})
	for _, s := range []*Sequence{a, b} {
		if _, _, _, err := s.Begin(prompt, 40); err != nil {
			t.Fatal(err)
		}
		s.Publish(prompt)
	}
	a.Preempt()
	if err := p.Check(); !errors.Is(err, ErrAccounting) || !strings.Contains(err.Error(), "others follow it") {
		t.Fatalf("Check says %v", err)
	}
}
