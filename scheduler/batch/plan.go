package batch

import (
	"maps"
	"slices"
)

const (
	// triesPerRequest bounds how many of the least loaded workers are asked for one request; one
	// that keeps failing is then tried on all of them.
	triesPerRequest = 8
	// passesPerPlan bounds how many requests that fit nowhere a plan steps over, and holdsPerPlan how
	// many that wait for a worker which holds their prefix.
	passesPerPlan = 64
	holdsPerPlan  = 64
	// candidatesPerRequest bounds the workers with a part of the prompt that are compared in full.
	candidatesPerRequest = 16
)

// Plan binds the requests that workers can start now, takes them out of the queue and charges the
// workers under dispatch number index, which must be above all used before.
func (b *Batcher) Plan(nowMS int64, index uint64, limits Limits) []Assignment {
	var out []Assignment
	for _, model := range slices.Sorted(maps.Keys(b.pools)) {
		p := b.pools[model]
		if p.queue.len == 0 || p.open.len() == 0 {
			continue
		}
		out = b.planPool(p, nowMS, index, &limits, out)
	}
	return out
}

func (b *Batcher) planPool(p *pool, nowMS int64, index uint64, limits *Limits, out []Assignment) []Assignment {
	p.findLongest()
	var stepped []*item
	var reserved *member
	reservedFor := false
	passes, holds := 0, 0
	for p.open.len() > 0 && limits.Requests > 0 && limits.Bytes > 0 && passes < passesPerPlan && holds < holdsPerPlan {
		i := p.queue.next(nowMS, b.settings.AgeStepMS)
		if i == nil {
			break
		}
		c, held := b.place(p, i, nowMS)
		if c == nil && !held && i.blocked && nowMS-i.blockedMS >= b.settings.PassMS && !reservedFor {
			reservedFor = true
			if c = b.nearest(p, i, nowMS); c != nil && !c.fits() {
				reserved, c = c.member, nil
				if p.open.has(reserved) {
					p.open.remove(reserved)
				}
			}
		}
		if c == nil {
			if held {
				holds++
			} else {
				passes++
				if !i.blocked {
					i.blocked, i.blockedMS = true, nowMS
				}
			}
			p.queue.remove(i)
			stepped = append(stepped, i)
			continue
		}
		limits.Requests--
		limits.Bytes -= i.Bytes
		out = append(out, Assignment{Request: i.Request, WorkerID: c.ID})
		b.bind(p, c, i, nowMS, index)
	}
	for _, i := range stepped {
		p.queue.push(i, b.tenants[i.Tenant])
	}
	if reserved != nil {
		b.reopen(p, reserved)
	}
	for _, m := range b.held {
		m.held = 0
	}
	b.held = b.held[:0]
	b.tidy(p)
	return out
}

// place finds the worker that the policy wants for the request among those that can start it now.
// held says that it had better wait for a busy worker that holds its prefix.
func (b *Batcher) place(p *pool, i *item, nowMS int64) (best *candidate, held bool) {
	b.gather(p, i, nowMS)
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
	if best == nil || busy == nil || busy.score >= best.score || i.Resumed || !b.policy.holds() {
		return best, false
	}
	if !i.held {
		i.held, i.heldMS = true, nowMS
	}
	if nowMS-i.heldMS >= b.settings.HoldMS {
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
// open ones; otherwise those that hold a part of its prompt, and the least loaded that can start it.
func (b *Batcher) gather(p *pool, i *item, nowMS int64) {
	b.candidates = b.candidates[:0]
	matched := b.ask(i, nowMS)
	if b.policy.wide() {
		for _, m := range p.members {
			if p.open.has(m) {
				if c := b.candidate(p, m, &i.Request, nowMS); c.fits() {
					b.candidates = append(b.candidates, c)
				}
			}
		}
		return
	}
	for _, m := range b.best(p, matched, &i.Request) {
		if c := b.candidate(p, m, &i.Request, nowMS); c.fits() || c.blocked == PromptTokens {
			b.candidates = append(b.candidates, c)
		}
	}
	var asked [triesPerRequest]*member
	n := 0
	for n < triesPerRequest && p.open.len() > 0 {
		m := p.open.top()
		c := b.candidate(p, m, &i.Request, nowMS)
		if c.fits() {
			if !slices.ContainsFunc(b.candidates, func(have candidate) bool { return have.member == m }) {
				b.candidates = append(b.candidates, c)
			}
			break
		}
		p.open.pop()
		if c.blocked&Stale == 0 { // Otherwise only a heartbeat opens it again.
			asked[n] = m
			n++
		}
	}
	for _, m := range asked[:n] {
		p.open.push(m)
	}
}

// best are up to candidatesPerRequest of the workers that hold a part of the prompt, those first where
// load and work are the least. To rate all would take long where a thousand hold the same.
func (b *Batcher) best(p *pool, matched []*member, r *Request) []*member {
	var costs [candidatesPerRequest]int64
	kept := matched[:0]
	for _, m := range matched {
		if m.Model != p.model || !m.starts() {
			continue
		}
		cost := m.key + (1000+sharePermille)*m.workUS(m.work(r, m.found))/1000
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

// nearest is the worker that lacks the least for the request, with room or without.
func (b *Batcher) nearest(p *pool, i *item, nowMS int64) *candidate {
	var best candidate
	var least int64
	for _, m := range p.members {
		c := b.candidate(p, m, &i.Request, nowMS)
		if c.blocked&^(Sequences|Blocks|PromptTokens) != 0 {
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
	t := b.tenants[i.Tenant]
	b.floor = max(b.floor, t.served)
	t.charge(int64(i.Tokens))
	b.policy.placed(m)
	if len(i.Hashes) > 0 && b.settings.Matcher != nil {
		b.promises.add(m, i.Hashes, c.found.Blocks(), nowMS+c.us/1000+promiseMS)
	}
	b.dequeue(i)
	need := m.need(&i.Request, c.work)
	need.request, need.index = i.ID, index
	m.take(need)
	m.sent += m.workUS(c.work)
	b.reopen(p, m)
}
