package engine

import (
	"errors"
	"fmt"
	"slices"

	"github.com/quire-serve/quire/kvcache"
)

// Tenant bounds what the sequences of one tenant may hold.
type Tenant struct {
	Name string
	// Blocks of the pool, at least one sequence's. Where there are two, of that of Settings.Blocks: in
	// the other a sequence holds no more.
	Blocks int
}

// validateTenants checks the list by which tenants are told apart.
func (s Settings) validateTenants() error {
	for i, t := range s.Tenants {
		switch {
		case t.Name == "":
			return fmt.Errorf("engine: tenants[%d] has no name", i)
		case slices.ContainsFunc(s.Tenants[:i], func(o Tenant) bool { return o.Name == t.Name }):
			return fmt.Errorf("engine: tenants[%d]: %q is named twice", i, t.Name)
		case t.Blocks < 1 || t.Blocks > s.Blocks:
			return fmt.Errorf("engine: tenants[%d].blocks is %d, must be 1 to %d", i, t.Blocks, s.Blocks)
		}
	}
	return nil
}

// tenantBlocks are the bounds as the pool takes them: tenant 0 is everybody without one.
func (s Settings) tenantBlocks() []int {
	if len(s.Tenants) == 0 {
		return nil
	}
	blocks := []int{0}
	for _, t := range s.Tenants {
		blocks = append(blocks, t.Blocks)
	}
	return blocks
}

// tenant is the number of a tenant, and how many tokens one of its sequences may hold of context.
func (s Settings) tenant(name string, context int) (number, tokens int) {
	for i, t := range s.Tenants {
		if t.Name == name {
			return i + 1, min(context, t.Blocks*s.BlockTokens)
		}
	}
	return 0, context
}

// victim is who is preempted for s: the last in the order, of its tenant if the tenant's bound is why s
// has no room.
func (p *planner) victim(s *sequence, why error) *sequence {
	if errors.Is(why, kvcache.ErrQuota) {
		for i := len(p.running) - 1; i >= 0; i-- {
			if o := p.running[i]; o.tenant == s.tenant {
				return o
			}
		}
	}
	return p.running.last()
}

// tenantIsBound reports whether the tenant of s may not hold the blocks with which s begins, and one more
// for everyone of the tenant who runs before it, if those of without were preempted.
func (p *planner) tenantIsBound(s *sequence, without []*sequence) bool {
	if s.tenant == 0 {
		return false
	}
	blocks := 1
	if p.pool.Config().Window == 0 {
		blocks = p.pool.Pool.Charge(len(s.tokens), p.MaxBatchTokens)
	}
	for _, o := range p.running {
		if o.tenant == s.tenant && s != p.owed && o.before(s) {
			blocks++
		}
	}
	for _, o := range without {
		if o.tenant == s.tenant {
			blocks -= o.kv.Held()
		}
	}
	return blocks > p.pool.TenantFree(s.tenant)
}

// newSequence gives s its place in the pool's books.
func (p *planner) newSequence(s *sequence) {
	s.kv = p.pool.NewSequence(s.root)
	s.kv.SetTenant(s.tenant)
	s.kv.Reserve(cap(s.tokens))
}
