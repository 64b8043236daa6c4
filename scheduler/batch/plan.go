package batch

import (
	"maps"
	"slices"
)

const (
	// holdsPerPlan bounds how many requests a plan lets wait for a worker that holds their prefix; those
	// behind them take what there is. looksPerPlan bounds how many it looks at that only a prefix would
	// let start.
	holdsPerPlan = 64
	looksPerPlan = 64
	// candidatesPerRequest bounds the workers with a part of the prompt that are compared in full.
	candidatesPerRequest = 16
)

// Plan binds the requests that workers can start now, takes them out of the queue and charges the
// workers under dispatch number index, which must be above all used before.
func (b *Batcher) Plan(nowMS int64, index uint64, limits Limits) []Assignment {
	var out []Assignment
	for _, model := range slices.Sorted(maps.Keys(b.pools)) {
		p := b.pools[model]
		if p.queue.len > 0 && p.open.len()+len(p.reserved) > 0 {
			out = b.planPool(p, nowMS, index, &limits, out)
		}
	}
	return out
}

func (b *Batcher) planPool(p *pool, nowMS int64, index uint64, limits *Limits, out []Assignment) []Assignment {
	p.findLongest()
	f := &b.fitter
	*f = fitter{b: b, p: p, nowMS: nowMS, limits: limits, holds: holdsPerPlan}
	if b.settings.Matcher != nil {
		f.looks = looksPerPlan
	}
	start := func(c *candidate, i *item) {
		limits.Requests--
		limits.Bytes -= i.Bytes
		out = append(out, Assignment{Request: i.Request, WorkerID: c.ID})
		b.bind(p, c, i, nowMS, index)
	}
	b.planReserved(p, f, start)
	head := b.reserve(p, f)
	began := len(out)
	var stepped []*item
	for !f.done() {
		i := p.queue.next(f.might, f.wants)
		if i == nil {
			break
		}
		c, held := b.place(p, i, f, f.holds > 0)
		switch {
		case c != nil:
			start(c, i)
			continue
		case held:
			f.holds--
		case f.looks > 0:
			f.looks--
		}
		p.queue.remove(i)
		stepped = append(stepped, i)
	}
	for _, i := range stepped {
		p.queue.push(i)
	}
	if head != nil && !head.blocked && len(out) > began {
		head.blocked, head.blockedMS = true, nowMS
	}
	for _, m := range b.held {
		m.held = 0
	}
	b.held = b.held[:0]
	b.tidy(p)
	return out
}

// fitter finds what can start, within one plan: room only shrinks in it.
type fitter struct {
	b      *Batcher
	p      *pool
	nowMS  int64
	limits *Limits
	// holds and looks are those that are left.
	holds, looks int
	// closed are needs for which there was no room; with closedPrompt, for want of prompt tokens.
	closed, closedPrompt closed
}

// closed remembers a few needs that nothing had room for.
type closed struct {
	needs [8]need
	next  int
}

func (c *closed) has(n *need) bool {
	for k := range min(c.next, len(c.needs)) {
		if c.needs[k].covers(n) {
			return true
		}
	}
	return false
}

func (c *closed) add(n *need) {
	c.needs[c.next%len(c.needs)] = *n
	c.next++
}

func (f *fitter) done() bool {
	return f.limits.Requests <= 0 || f.limits.Bytes <= 0 || f.p.open.len()+len(f.p.reserved) == 0
}

// might and wants are what queue.next asks. As long as looks are left, a prefix is taken to spare all
// prompt tokens.
func (f *fitter) might(n *need) bool { return f.any(n, "", f.looks == 0) }

func (f *fitter) wants(i *item) bool {
	return f.any(&i.need, i.Tenant, f.looks == 0)
}

// any says whether a worker has room for a need of this tenant, prompt tokens included or not.
func (f *fitter) any(n *need, tenant string, prompt bool) bool {
	if f.closed.has(n) || prompt && f.closedPrompt.has(n) {
		return false
	}
	if f.roomiest(n, tenant, prompt) != nil {
		return true
	}
	for _, r := range f.p.reserved {
		if m := r.member; m.roomFor(tenant) >= int(n[needLength]) && m.starts() && f.room(m, n, prompt) && r.allows(n, 0, f.nowMS) {
			return true
		}
	}
	switch {
	case tenant != "" && f.p.bounded(tenant): // It says nothing of others.
	case prompt:
		f.closedPrompt.add(n)
	default:
		f.closed.add(n)
	}
	return false
}

// bounded says whether the tenant may hold only a part of some worker.
func (p *pool) bounded(tenant string) bool {
	return slices.ContainsFunc(p.members, func(m *member) bool { _, ok := m.TenantBlocks[tenant]; return ok })
}

// roomiest is the least loaded open worker that has room for a need; nil if none has.
func (f *fitter) roomiest(n *need, tenant string, prompt bool) *member {
	m, ok := f.p.open.first(
		func(free *need) bool { return might(free, n, prompt) },
		func(m *member) bool { return m.roomFor(tenant) >= int(n[needLength]) && f.room(m, n, prompt) })
	if !ok {
		return nil
	}
	return m
}

// room says whether a worker lacks nothing for a need.
func (f *fitter) room(m *member, n *need, prompt bool) bool {
	trust := f.b.trust(m, f.nowMS)
	if trust == 0 {
		return false
	}
	short := m.shortage(m.charge(n, int64(n[needTokens])), trust, f.b.settings.StepsAhead)
	return short.Sequences == 0 && short.Blocks == 0 && (!prompt || short.PromptTokens == 0)
}

// place finds the worker that the policy wants for the request among those that can start it now.
// held says that it had better wait for a busy worker that holds its prefix, if it may.
func (b *Batcher) place(p *pool, i *item, f *fitter, hold bool) (best *candidate, held bool) {
	b.gather(p, i, f)
	if len(b.candidates) == 0 {
		return nil, false
	}
	if len(b.candidates) > 1 {
		b.policy.score(b.candidates)
	}
	var busy *candidate
	for n := range b.candidates {
		c := &b.candidates[n]
		switch {
		case c.fits():
			if best == nil || c.score < best.score {
				best = c
			}
		case c.blocked == PromptTokens && (busy == nil || c.score < busy.score):
			busy = c
		}
	}
	if best == nil || busy == nil || busy.score >= best.score || i.Resumed || !hold || !b.policy.holds() {
		return best, false
	}
	if !i.held {
		i.held, i.heldMS = true, f.nowMS
	}
	if f.nowMS-i.heldMS >= b.settings.HoldMS {
		return best, false
	}
	// What waits for the worker is work ahead of the next request that would: when there is more of
	// it than going elsewhere costs, the prefix is computed a second time, elsewhere.
	if busy.held == 0 {
		b.held = append(b.held, busy.member)
	}
	busy.held += busy.work
	return nil, true
}

// gather collects the workers that a request is placed among: for a policy that compares all, the
// open ones; otherwise those that hold a part of its prompt, the least loaded that can start it, and
// those kept for others that it does not delay.
func (b *Batcher) gather(p *pool, i *item, f *fitter) {
	b.candidates = b.candidates[:0]
	matched := b.ask(i, f.nowMS)
	add := func(m *member) {
		if slices.ContainsFunc(b.candidates, func(have candidate) bool { return have.member == m }) {
			return
		}
		if c := b.candidate(p, m, i, f.nowMS); c.fits() {
			b.candidates = append(b.candidates, c)
		}
	}
	if b.policy.wide() {
		for _, m := range p.members {
			if p.open.has(m) || m.reserved != nil {
				add(m)
			}
		}
		return
	}
	for _, m := range b.best(p, matched, i) {
		if c := b.candidate(p, m, i, f.nowMS); c.fits() || c.blocked == PromptTokens {
			b.candidates = append(b.candidates, c)
		}
	}
	if m := f.roomiest(&i.need, i.Tenant, true); m != nil {
		add(m)
	}
	for _, r := range p.reserved {
		if r.member.starts() {
			add(r.member)
		}
	}
}

// best are up to candidatesPerRequest of the workers that hold a part of the prompt, those first where
// load and work are the least. To rate all would take long where a thousand hold the same.
func (b *Batcher) best(p *pool, matched []*member, i *item) []*member {
	var costs [candidatesPerRequest]int64
	kept := matched[:0]
	for _, m := range matched {
		if m.Model != p.model || !m.starts() {
			continue
		}
		cost := m.key + (1000+sharePermille)*m.workUS(m.work(&i.Request, m.found))/1000
		at := len(kept)
		for at > 0 && costs[at-1] > cost {
			at--
		}
		if at == candidatesPerRequest {
			continue
		}
		if len(kept) < candidatesPerRequest {
			kept = kept[:len(kept)+1]
		}
		copy(kept[at+1:], kept[at:])
		copy(costs[at+1:], costs[at:])
		kept[at], costs[at] = m, cost
	}
	return kept
}

// nearest is the worker that lacks the least for the request, with room or without, of those that are
// not kept for another.
func (b *Batcher) nearest(p *pool, i *item, nowMS int64) *candidate {
	b.ask(i, nowMS)
	var best candidate
	var least int64
	for _, m := range p.members {
		c := b.candidate(p, m, i, nowMS)
		if c.blocked&^(Sequences|Blocks|PromptTokens) != 0 || m.reserved != nil {
			continue
		}
		if size := m.size(c.short, b.settings.StepsAhead); best.member == nil || size < least {
			best, least = c, size
		}
	}
	if best.member == nil {
		return nil
	}
	return &best
}

func (b *Batcher) bind(p *pool, c *candidate, i *item, nowMS int64, index uint64) {
	m := c.member
	p.queue.take(i)
	b.policy.placed(m)
	if len(i.Hashes) > 0 && b.settings.Matcher != nil {
		b.promises.add(m, i.Hashes, c.found.Blocks(), nowMS+c.us/1000+promiseMS)
	}
	b.dequeue(i)
	need := m.need(i, c.work)
	need.request, need.index = i.ID, index
	m.take(need)
	m.begin(i, c.us, nowMS)
	m.sent += m.workUS(c.work)
	b.reopen(p, m)
}
