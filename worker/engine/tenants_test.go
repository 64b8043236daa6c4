package engine

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/kvcache/tier"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func of(tenant string) func(*pb.Request) { return func(q *pb.Request) { q.Tenant = tenant } }

// TestTenantsHoldTheirShare: a tenant never holds more blocks than its bound, whatever it asks for; its
// own requests make room for each other, and nobody else waits or is preempted for them.
func TestTenantsHoldTheirShare(t *testing.T) {
	s := Settings{Blocks: 40, BlockTokens: 4, MaxSequences: 16, MaxBatchTokens: 64, PrefixCache: true, Tenants: []Tenant{{"greedy", 10}}}
	r := newRig(t, s)
	var reqs []*pb.Request
	for i := range 6 {
		reqs = append(reqs, ask(fmt.Sprint("greedy", i), prompt(i, 12), 24, of("greedy"))) // 9 blocks in the end
	}
	for i := range 3 {
		reqs = append(reqs, ask(fmt.Sprint("other", i), prompt(10+i, 12), 24))
	}
	r.add(reqs...)
	fewest := s.Blocks
	for r.step() {
		fewest = min(fewest, r.p.pool.TenantFree(1))
		if held := 10 - r.p.pool.TenantFree(1); held < 0 {
			t.Fatalf("the tenant holds %d blocks", held)
		}
	}
	r.finish()
	for i, q := range reqs {
		r.want(q)
		if i >= 6 && r.got[key(q.Id, 0)].usage.CompletionTokens != 24 {
			t.Errorf("%s: %+v", q.Id, r.got[key(q.Id, 0)].usage)
		}
	}
	if fewest != 0 || r.p.count.preemptions == 0 {
		t.Errorf("the tenant had %d blocks to spare and %d preemptions: the test presses nobody", fewest, r.p.count.preemptions)
	}
	// The others never waited.
	for i := range 3 {
		if at := slices.Index(r.log, fmt.Sprint("other", i)); at > 3 {
			t.Errorf("ended in the order %v", r.log)
		}
	}
}

// TestTenantsInTiers: lower tiers keep as much of a tenant as its bound there allows.
func TestTenantsInTiers(t *testing.T) {
	r := newTieredRig(t, Settings{Blocks: 8, BlockTokens: 4, MaxSequences: 4, MaxBatchTokens: 64, Tenants: []Tenant{{"a", 8}}}, 64, "", 0, Costs{})
	r.model.Tiers.Cache.Close()
	cache, err := tier.New(tier.Settings{PageBytes: 16, Pages: 64, TenantPages: []int{0, 2}})
	if err != nil {
		t.Fatal(err)
	}
	defer cache.Close()
	r.p.lower.Cache = cache
	r.add(ask("a", prompt(1, 20), 1, of("a")))
	r.finish()
	r.flood(2)
	r.flood(3)
	kept, own := cache.Contents(nil), kvcache.Hashes(nil, kvcache.Root(nil, nil), prompt(1, 20), 4)
	n := 0
	for _, c := range kept {
		if slices.Contains(own, c.Hash) {
			n++
		}
	}
	if n != 2 || len(kept) < 6 {
		t.Errorf("%d of the tenant's blocks are kept, %d in all", n, len(kept))
	}
}

func TestTenantsAreChecked(t *testing.T) {
	for want, tenants := range map[string][]Tenant{
		"engine: tenants[0] has no name":                 {{"", 1}},
		"engine: tenants[1]: \"a\" is named twice":       {{"a", 1}, {"a", 2}},
		"engine: tenants[0].blocks is 9, must be 1 to 8": {{"a", 9}},
		"engine: tenants[1].blocks is 0, must be 1 to 8": {{"a", 8}, {"b", 0}},
	} {
		s := Settings{Blocks: 8, Tenants: tenants}.WithDefaults()
		if err := s.Validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	r := run(t, Settings{Blocks: 64, Tenants: []Tenant{{"a", 2}}})
	defer r.close()
	if err := r.Add(ask("x", prompt(1, 40), 1, of("a"))); !errors.Is(err, ErrTooLong) {
		t.Errorf("a prompt that the tenant's bound never fits: %v", err)
	}
	if err := r.Add(ask("x", prompt(1, 40), 1)); err != nil {
		t.Error(err)
	}
}
