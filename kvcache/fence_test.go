package kvcache

import (
	"errors"
	"strings"
	"testing"
)

func TestFences(t *testing.T) {
	p := pool(t, Config{Blocks: 12, PrefixCache: true})
	a, _ := start(t, p, Hash{}, ids(0, 48)) // step 1
	b, _ := start(t, p, Hash{}, ids(1, 48)) // step 2
	c, _ := start(t, p, Hash{}, ids(2, 48)) // step 3
	a.ReleaseAfter(2)
	b.PreemptAfter(3)
	c.ReleaseAfter(1) // never before one that was deferred earlier
	wantInt(t, "free while deferred", p.Free(), 3)
	wantInt(t, "deferred", p.Deferred(), 3)
	wantInt(t, "b's table", len(b.Table()), 0)
	wantInt(t, "after step 1", p.Completed(1), 0)
	wantInt(t, "after step 2", p.Completed(2), 1)
	wantInt(t, "free after step 2", p.Free(), 6)
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	wantInt(t, "after step 3", p.Completed(3), 2)
	wantInt(t, "free after step 3", p.Free(), 12)
	// The preempted one goes on, from the cache.
	cached, _, _, err := b.Begin(ids(1, 48), 48)
	if err != nil {
		t.Fatal(err)
	}
	wantInt(t, "cached", cached, 47)
	p.EndStep()
	b.Release()
}

// TestReleasedTwice: a programmer's error.
func TestReleasedTwice(t *testing.T) {
	p := pool(t, Config{Blocks: 2})
	s := p.NewSequence(Hash{})
	s.Release()
	for name, f := range map[string]func(){"Release": s.Release, "Lookup": func() { s.Lookup(nil) }} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s of a released sequence went through", name)
				}
			}()
			f()
		}()
	}
}

func TestForgetSince(t *testing.T) {
	p := pool(t, Config{Blocks: 12, PrefixCache: true, Events: true})
	old, _ := start(t, p, Hash{}, ids(0, 32))
	tokens := ids(1, 40)
	s := p.NewSequence(Hash{})
	if _, _, _, err := s.Begin(tokens, 40); err != nil {
		t.Fatal(err)
	}
	s.Publish(tokens)
	failed := p.EndStep()
	p.Events(nil)
	p.ForgetSince(failed)
	if e := p.Events(nil); len(e) != 1 || e[0].Kind != Removed || len(e[0].Hashes) != 2 {
		t.Fatalf("%+v: want the failed step's two blocks removed", e)
	}
	s.Preempt()
	wantInt(t, "hit of what failed", s.Lookup(tokens), 0)
	s.Release()
	r, cached := start(t, p, Hash{}, ids(0, 33))
	wantInt(t, "hit of what did not", cached, 32)
	r.Release()
	old.Release()
}

func TestTenants(t *testing.T) {
	p := pool(t, Config{Blocks: 12, PrefixCache: true, Tenants: []int{0, 3}})
	admit := func(tenant, series, n int) (*Sequence, error) {
		s := p.NewSequence(Hash{})
		s.SetTenant(tenant)
		_, _, _, err := s.Begin(ids(series, n), n)
		return s, err
	}
	a, err := admit(1, 0, 32)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := admit(1, 1, 32); !errors.Is(err, ErrQuota) {
		t.Fatalf("third and fourth block of three: %v, want ErrQuota", err)
	}
	if err := a.Grow(64); !errors.Is(err, ErrQuota) {
		t.Fatalf("growing to four: %v, want ErrQuota", err)
	}
	if err := a.Grow(48); err != nil {
		t.Fatal(err)
	}
	if _, _, _, err := a.Fork(); !errors.Is(err, ErrQuota) {
		t.Fatalf("fork of three: %v, want ErrQuota", err)
	}
	if _, err := admit(0, 2, 64); err != nil {
		t.Fatalf("a tenant without bound: %v", err)
	}
	if _, err := admit(7, 3, 64); err != nil {
		t.Fatalf("a tenant past the end: %v", err)
	}
	a.Release()
	if _, err := admit(1, 1, 48); err != nil {
		t.Fatalf("after the release: %v", err)
	}
}

func TestConfigErrors(t *testing.T) {
	for field, c := range map[string]Config{
		"Blocks":      {BlockTokens: 16},
		"BlockTokens": {Blocks: 1},
		"Window":      {Blocks: 1, BlockTokens: 16, Window: -1},
		"EventBuffer": {Blocks: 1, BlockTokens: 16, EventBuffer: -1},
		"Tenants[0]":  {Blocks: 1, BlockTokens: 16, Tenants: []int{-1}},
	} {
		if _, err := NewPool(c); err == nil || !strings.Contains(err.Error(), field) {
			t.Errorf("%s: %v does not name it", field, err)
		}
	}
}
