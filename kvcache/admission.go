package kvcache

// decision is what Begin would do now.
type decision struct {
	cached   int     // tokens that need no computing
	hits     int     // leading table entries that come from the cache, skipped ones included
	skip     int     // leading table entries that the window does not need
	revive   int     // hits that leave the cached list
	room     int     // tokens that fit afterwards
	total    int     // table entries afterwards
	copyFrom BlockID // the last block is a copy of this one
}

// need is the number of blocks that leave Free.
func (d decision) need() int { return d.revive + d.total - d.hits }

// look finds the cached prefix of tokens, unless it is known.
func (s *Sequence) look(tokens []int32) {
	s.hash(tokens)
	if n := len(tokens); !s.knows(n) {
		s.find(n, n/s.pool.cfg.BlockTokens)
	}
}

// hash computes the hashes by which tokens are looked up.
func (s *Sequence) hash(tokens []int32) {
	if s.pool.cfg.PrefixCache {
		s.extend(tokens, len(tokens)/s.pool.cfg.BlockTokens)
	}
}

// knows reports whether what find found for a prompt of n tokens still holds.
func (s *Sequence) knows(n int) bool { return s.matchVersion == s.pool.version && s.matchTokens == n }

// find looks the sequence's first hashes up, at most limit of them, for a prompt of n tokens, and
// remembers the answer until the pool changes: admission asks for it up to three times.
func (s *Sequence) find(n, limit int) {
	p := s.pool
	s.match, s.matchFrom = s.match[:0], 0
	s.matchVersion, s.matchTokens = p.version, n
	full := min(limit, s.readable/p.cfg.BlockTokens, len(s.hashes))
	if !p.cfg.PrefixCache {
		return
	}
	if p.cfg.Window > 0 {
		s.findWindow(full)
		return
	}
	for i := range full {
		id := p.index.find(p.blocks, &s.hashes[i])
		if id == NoBlock {
			return
		}
		s.match = append(s.match, id)
	}
}

// findWindow finds the longest prefix of at most full blocks whose end is cached as far back as the
// window of the next token reaches. What lies before is never read again. The next token may be the
// prefix's own last one, so that the window counts from there.
func (s *Sequence) findWindow(full int) {
	p := s.pool
	reach := p.ceil(p.cfg.Window)
	end, run := full, 0 // blocks [end-run, end) are cached
	for i := full - 1; i >= 0 && run < reach; i-- {
		if p.index.find(p.blocks, &s.hashes[i]) == NoBlock {
			end, run = i, 0
		} else {
			run++
		}
	}
	s.matchFrom = end - run
	for i := range end {
		id := NoBlock
		if i >= s.matchFrom {
			id = p.index.find(p.blocks, &s.hashes[i])
		}
		s.match = append(s.match, id)
	}
}

// matchEnded reports whether the last block found is more than a promise of the step being planned: it
// can be taken as it is or copied.
func (s *Sequence) matchEnded() bool {
	b := &s.pool.blocks[s.match[len(s.match)-1]]
	return b.refs == 0 || b.step < s.pool.step
}

// planned turns the blocks found into a decision.
func (s *Sequence) planned(n, upTo int) decision {
	p := s.pool
	bt := p.cfg.BlockTokens
	d := decision{hits: len(s.match), skip: s.matchFrom, copyFrom: NoBlock}
	d.cached = d.hits * bt
	if d.hits > 0 && d.cached == n {
		last := s.match[d.hits-1]
		switch b := &p.blocks[last]; {
		case b.refs == 0: // taken as it is
			d.cached--
		case b.step < p.step: // copied
			d.hits--
			d.copyFrom = last
			d.cached--
		case d.skip > 0: // not computed yet, and the window would reach before what was found
			d.hits, d.skip, d.cached = 0, 0, 0
		default: // not computed yet
			d.hits--
			d.cached -= bt
		}
	}
	d.room = upTo
	if n > 0 {
		d.room = max(upTo, d.cached+1)
	}
	for _, id := range s.match[d.skip:d.hits] {
		if p.blocks[id].refs == 0 {
			d.revive++
		}
	}
	d.total = max(p.ceil(d.room), d.hits)
	return d
}

// count adds an admission to the statistics. One that was refused before counts once, now.
func (p *Pool) count(s *Sequence, query, hit int) {
	switch {
	case !p.cfg.PrefixCache || s.readable == 0:
	case s.preempted:
		p.stats.PreemptedQueryTokens += int64(query)
		p.stats.PreemptedHit += int64(hit)
	default:
		p.stats.QueryTokens += int64(query)
		p.stats.HitTokens += int64(hit)
	}
}

// mayHold reports whether tenant may hold n blocks more.
func (p *Pool) mayHold(tenant, n int) bool {
	if tenant >= len(p.held) || p.cfg.Tenants[tenant] == 0 {
		return true
	}
	return p.held[tenant]+n <= p.cfg.Tenants[tenant]
}

// TenantFree is how many more blocks a tenant's sequences may hold, Config.Blocks at most.
func (p *Pool) TenantFree(tenant int) int {
	if tenant >= len(p.held) || p.cfg.Tenants[tenant] == 0 {
		return p.cfg.Blocks
	}
	return max(0, p.cfg.Tenants[tenant]-p.held[tenant])
}

// account books n more block table entries, for the pool and for the tenant.
func (p *Pool) account(tenant, n int) {
	p.entries += int64(n)
	if tenant < len(p.held) {
		p.held[tenant] += n
	}
}
