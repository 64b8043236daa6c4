package engine

import (
	"errors"
	"slices"

	"github.com/quire-serve/quire/kvcache"
)

// A waiting sequence starts when a slot is free and there are blocks for all its tokens, and one more for
// everyone who runs before it: else it would be preempted soon and computed again.
//
// Who comes first in the order starts first. While it does not fit, those behind it may use what is free:
// they start on sufferance, and are preempted, the last first, as soon as it could start with what they
// hold. So it starts as soon as if they had never been there. That is rarely needed, for only those start
// who are expected to have ended before it can start, or to fit beside it then. A tenant's bound is shared
// in the same way among the tenant's own.
type admission struct {
	bounded []reservation // of the tenants of which one waits, in this plan, for the tenant's bound
	misfit  int           // blocks that were free when a waiting sequence last did not fit, -1 since one did
	seen    int           // where the last plan stopped looking for some that fit, an index of waiting
	// onSufferance says that some of running may be.
	onSufferance bool
	owed         *sequence // for which others were preempted in the plan before

	yielding []*sequence // scratch of reclaimable, obstacle and reserve
	without  []kvcache.Tables
	ends     []ending
}

// reservation is what is expected of a sequence that does not fit.
type reservation struct {
	tenant int // whose bound it waits for
	steps  int // until it can start
	left   int // blocks that are free besides then
}

// ending is the expected end of a sequence that runs: in how many steps, and how many blocks it gives back.
type ending struct{ steps, blocks int }

// youngOutput is how many tokens a sequence is expected to generate that has just begun.
const youngOutput = 64

// ahead is in how many steps s is expected to end: with its output's bound, or, if the context is the only
// one, when it has generated as much again.
func (p *planner) ahead(s *sequence) int {
	left := s.limit - len(s.tokens) - s.pending
	if s.limit == p.context {
		left = min(left, max(youngOutput, s.generated()))
	}
	return left + (len(s.tokens)-s.computed)/p.MaxBatchTokens
}

// reserve says when s, which lacks blocks of the pool or of its tenant's bound, can start.
func (p *planner) reserve(s *sequence, why obstacle) reservation {
	r := reservation{tenant: s.tenant}
	free, need := p.pool.Free(), p.pool.Pool.Charge(len(s.tokens), p.MaxBatchTokens)
	switch {
	case why == tenantBound:
		free = p.pool.TenantFree(s.tenant)
	case p.model.Window == 0:
		need = s.kv.Need(len(s.tokens))
	}
	p.ends = p.ends[:0]
	for _, o := range p.running {
		if why != tenantBound || o.tenant == s.tenant {
			p.ends = append(p.ends, ending{p.ahead(o), o.kv.Held()})
		}
	}
	slices.SortFunc(p.ends, func(a, b ending) int { return a.steps - b.steps })
	for i, e := range p.ends {
		free += e.blocks
		// Those who still run have grown meanwhile, and want one more each.
		r.left = free - need - (len(p.ends)-1-i)*(1+e.steps/p.BlockTokens)
		r.steps = e.steps
		if r.left >= 0 {
			break
		}
	}
	return r
}

// lets reports whether s may start before the one that r is for, and counts it if so: it ends long before,
// or there is room for both and nobody else waits who would miss it.
func (p *planner) lets(r *reservation, s *sequence, alone bool) bool {
	ahead := p.ahead(s)
	if 2*ahead < r.steps {
		return true
	}
	blocks := p.pool.Pool.Charge(len(s.tokens)+min(ahead, r.steps)+1, p.MaxBatchTokens) + 1
	if !alone || blocks > r.left {
		return false
	}
	r.left -= blocks
	return true
}

// ofTenant is the reservation of the tenant, or nil.
func (a *admission) ofTenant(tenant int) *reservation {
	for i := range a.bounded {
		if a.bounded[i].tenant == tenant {
			return &a.bounded[i]
		}
	}
	return nil
}

// maxMisfits is how many waiting sequences that do not fit a plan looks past from the first on, and again
// from where the plan before stopped: a long queue is looked through in several plans.
const maxMisfits = 32

// obstacle is why a sequence cannot start.
type obstacle uint8

const (
	fits obstacle = iota
	noSlot
	noBlocks
	tenantBound
	wouldDelay // one that waits before it
	noRows     // for the log-probabilities that it wants, in this step
)

// obstacle says what s lacks, if those of without were preempted.
func (p *planner) obstacle(s *sequence, without []*sequence) obstacle {
	if p.slots()+len(without) <= 0 {
		return noSlot
	}
	if p.tenantIsBound(s, without) {
		return tenantBound
	}
	tables := p.without[:0]
	for _, o := range without {
		tables = append(tables, o.kv)
	}
	p.without = tables
	if !s.kv.HasRoom(s.tokens, p.MaxBatchTokens, p.spare(s), tables) {
		return noBlocks
	}
	return fits
}

// spare is how many blocks s leaves to those who run before it.
func (p *planner) spare(s *sequence) int {
	if s == p.owed {
		return 0 // they were there in the plan before, and may be taken by now
	}
	before, _ := slices.BinarySearchFunc(p.running, s, compare)
	return before + len(p.forking)
}

// reclaim preempts sequences that run on sufferance, if one that waits before them can start with what
// they hold. That one starts in the next plan, and nobody does in this one. It reports whether it did.
func (p *planner) reclaim() bool {
	if !p.onSufferance || p.hold != holdNothing {
		return false
	}
	p.bounded = p.bounded[:0]
	for _, s := range p.waiting {
		if s.fetching || s.behind || s.pending > 0 || p.ofTenant(s.tenant) != nil {
			continue
		}
		p.lookup(s)
		why := p.obstacle(s, nil)
		if why == fits {
			return false
		}
		if n := p.reclaimable(s, why); n > 0 {
			p.cause = s.id
			for i := len(p.running) - 1; n > 0; i-- {
				if o := p.running[i]; p.yields(o, s, why) {
					p.preempt(o)
					n--
				}
			}
			p.cause, p.owed = "", s
			return true
		}
		if why != tenantBound {
			return false
		}
		p.bounded = append(p.bounded, reservation{tenant: s.tenant})
	}
	return false
}

// yields reports whether o, which runs, would stop for s, which waits for the lack of what why says.
func (p *planner) yields(o, s *sequence, why obstacle) bool {
	return o.onSufferance && s.before(o) && (why != tenantBound || o.tenant == s.tenant)
}

// reclaimable is how many of those who would stop for s, from the last on, have to, that s can start; 0
// if all of them do not suffice.
func (p *planner) reclaimable(s *sequence, why obstacle) int {
	all := p.yielding[:0]
	for i := len(p.running) - 1; i >= 0; i-- {
		if o := p.running[i]; p.yields(o, s, why) {
			all = append(all, o)
		}
	}
	p.yielding = all
	if len(all) == 0 || p.obstacle(s, all) != fits {
		return 0
	}
	n := 1
	for p.obstacle(s, all[:n]) != fits {
		n++
	}
	return n
}

// admit starts waiting sequences while budget, slots and blocks last.
func (p *planner) admit(st *step, budget int, now int64) {
	var first *sequence   // that does not fit
	var pool *reservation // of the first that lacks blocks
	misfits := 0
	p.bounded = p.bounded[:0]
	for i := 0; i < len(p.waiting) && budget > 0; {
		s := p.waiting[i]
		switch {
		case p.hold == holdNew && s.started == 0:
			i++
			continue
		case s.behind:
			i++ // what it may write next is being worked out: nobody waits for that
			continue
		case s.fetching:
			p.note(noteFetching, s, len(s.tokens))
			i++
			continue
		case s.pending > 0:
			// Preempted with a token in flight: it is whole again once that has come back, in a step.
			return
		case p.slots() <= 0:
			return
		}
		tenant := p.ofTenant(s.tenant)
		n, why := 0, wouldDelay
		if (pool == nil || p.lets(pool, s, misfits == 1)) && (tenant == nil || p.lets(tenant, s, misfits == 1)) {
			n, why = p.start(st, s, budget, now)
		}
		if s.state == stateRunning {
			s.onSufferance = pool != nil || tenant != nil
			p.onSufferance = p.onSufferance || s.onSufferance
			budget -= n
			p.misfit = -1
			continue
		}
		i++
		switch {
		case why == fits:
			continue // its blocks are on their way
		case why == tenantBound && tenant == nil:
			p.bounded = append(p.bounded, p.reserve(s, why))
		case why == noBlocks:
			p.misfit = p.pool.Free()
			if pool == nil {
				r := p.reserve(s, why)
				pool = &r
			}
		}
		if first == nil {
			first = s
		}
		misfits++
		switch {
		case p.pool.Free() <= p.spare(s):
			i = len(p.waiting) // nor do those behind it
		case misfits == maxMisfits:
			i = max(i, min(p.seen, len(p.waiting)))
		case misfits == 2*maxMisfits:
			p.seen = i
		}
		if misfits == 2*maxMisfits {
			break
		}
	}
	if misfits < 2*maxMisfits {
		p.seen = 0
	}
	p.owed = nil
	p.settled(first)
}

// settled ends the sufferance of those before whom nobody waits any more; first is the first that does,
// nil if none was found.
func (p *planner) settled(first *sequence) {
	if !p.onSufferance || first == nil && len(p.waiting) > 0 {
		return
	}
	p.onSufferance = false
	for _, s := range p.running {
		s.onSufferance = s.onSufferance && first != nil && first.before(s)
		p.onSufferance = p.onSufferance || s.onSufferance
	}
}

// slots is how many more sequences may run.
func (p *planner) slots() int { return p.MaxSequences - len(p.running) - len(p.forking) }

// start moves s from waiting to running if there is room, and returns how many rows it got, or what it
// lacks: fits if it has to wait for blocks from below.
func (p *planner) start(st *step, s *sequence, budget int, now int64) (rows int, why obstacle) {
	cached, below, ok, why := p.begin(s)
	if !ok {
		return 0, why
	}
	s.computed = cached
	n := p.cover(s, p.chunk(s, len(s.tokens)-cached, budget))
	if n <= 0 && below == 0 {
		s.computed = 0
		p.release(s) // only a scoring request, which has no copy to undo
		return 0, noRows
	}
	p.dequeue(s)
	p.lower.keep(s)
	s.preempted = 0
	s.state, s.published = stateRunning, cached-cached%p.BlockTokens
	if below > 0 {
		cached = min(cached+below*p.BlockTokens, len(s.tokens)-1)
	}
	p.running.insert(s)
	if s.started == 0 {
		s.started = now
		p.begun = append(p.begun, s.request)
		p.countHits(s.request, min(cached, s.prompt))
	}
	p.note(noteAdmitted, s, cached)
	if below > 0 {
		return 0, fits // no row before its blocks are there
	}
	p.schedule(st, s, n)
	return n, fits
}

// lookup returns how many leading tokens of s are cached and may be read.
func (p *planner) lookup(s *sequence) (cached int) {
	if s.kv.None() {
		p.newSequence(s)
	}
	s.kv.SetReadable(s.readable())
	return s.kv.Lookup(s.tokens)
}

// begin takes blocks for all tokens of s, or nothing. below is how many after the cached ones are
// being copied up from a lower tier.
func (p *planner) begin(s *sequence) (cached, below int, ok bool, why obstacle) {
	below, wait := p.below(s, p.lookup(s))
	if wait {
		p.note(noteFetching, s, len(s.tokens))
		return 0, 0, false, fits
	}
	why = p.obstacle(s, nil)
	if why == fits {
		var err error
		cached, p.copies, err = s.kv.Begin(s.tokens, p.copies)
		switch {
		case errors.Is(err, kvcache.ErrQuota):
			why = tenantBound
		case err != nil:
			why = noBlocks
		}
	}
	if why != fits {
		note := noteNoBlocks
		if why == tenantBound {
			note = noteBounded
		}
		p.note(note, s, len(s.tokens))
		return 0, 0, false, why
	}
	p.copy(s, p.copies)
	s.room = s.kv.Room()
	if below > 0 {
		below = p.swapIn(s, cached/p.BlockTokens, below)
	}
	return cached, below, true, fits
}
