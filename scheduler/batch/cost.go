package batch

import "github.com/quire-serve/quire/scheduler/prefix"

// The prediction of the time to first token, in the work of computing one prompt token:
//
//	ahead  = prompt tokens pending on the worker, those charged since, and those held for it
//	work   = the prompt's tokens that the worker must compute, and a share of those it must copy up
//	steps  = (ahead + work) / MaxBatchTokens, rounded up
//	time   = (ahead + work + steps · sequences · decodeTokens) / (speed · derate · trust)
//
// where speed is measured from heartbeats (speed.go), derate is what the device says of itself, and
// trust falls with the age of the newest heartbeat.
const (
	// decodeTokens is what a running sequence adds to a step: reading its KV takes about as long as
	// computing this many prompt tokens.
	decodeTokens = 4
	// hostPermille and diskPermille are the cost of copying a token's KV up, of computing it. A
	// worker copies only where that is cheaper.
	hostPermille = 100
	diskPermille = 400
	// sharePermille weighs work for the others that wait behind it: of two workers that would give
	// the first token at the same time, the one with less to compute leaves more to the rest. A prefix
	// is computed a second time when its holder is busy for three times as long as that takes. The
	// figures of bench/placement hardly change between 1,000 and 4,000.
	sharePermille = 2000
	// alikeUS is the difference in load below which workers count as equally busy: then prompts go to
	// the one that was given the least to compute so far, so that the caches of all fill.
	alikeUS = 10_000
)

// candidate is a worker that a request might go to.
type candidate struct {
	*member
	found prefix.Match
	// tokens is the prompt's length.
	tokens int64
	// work is what the prompt costs there, in tokens computed; us is the predicted time to the first
	// token, in microseconds.
	work, us int64
	blocked  Block
	short    Shortage
	// score is the policy's; the lowest is the best.
	score int64
}

func (c *candidate) fits() bool { return c.blocked == 0 }

// candidate says how the request would do on the worker.
func (b *Batcher) candidate(p *pool, m *member, i *item, nowMS int64) candidate {
	r := &i.Request
	c := candidate{member: m, found: b.found(m), tokens: int64(r.Tokens)}
	c.work = m.work(r, c.found)
	trust := b.trust(m, nowMS)
	c.us = m.predictUS(c.work, nowMS, trust)
	c.score = c.us
	switch {
	case !m.known:
		c.blocked = Unknown
	case trust == 0:
		c.blocked = Stale
	}
	if m.draining {
		c.blocked |= Draining
	}
	if m.cordoned {
		c.blocked |= Cordoned
	}
	if m.load.Unhealthy {
		c.blocked |= Unhealthy
	}
	if room := m.roomFor(r.Tenant); r.Tokens >= room || r.Length > room {
		c.blocked |= TooLong
	}
	if m.known {
		c.short = m.shortage(m.need(i, c.work), trust, b.settings.StepsAhead)
	}
	if c.short.Sequences > 0 {
		c.blocked |= Sequences
	}
	if c.short.Blocks > 0 {
		c.blocked |= Blocks
	}
	if c.short.PromptTokens > 0 {
		c.blocked |= PromptTokens
	}
	if m.reserved != nil && m.reserved.item != i && !m.reserved.allows(&i.need, c.us, nowMS) {
		c.blocked |= Reserved
	}
	return c
}

// work is what a prompt costs on the worker that holds so much of it, in tokens computed. The last
// token is always computed.
func (m *member) work(r *Request, found prefix.Match) int64 {
	size := int64(m.BlockTokens)
	copied := (int64(found.Host)*hostPermille + int64(found.Disk)*diskPermille) * size / 1000
	return max(1, int64(r.Tokens)-int64(found.Blocks())*size) + int64(r.OtherTokens) + copied
}

// predictUS is the time to the first token of a prompt that costs so much work, in microseconds.
func (m *member) predictUS(work, nowMS, trust int64) int64 {
	speed := m.speed.tokensPerS()
	pending := max(0, m.load.PendingPrefill-speed*max(0, nowMS-m.reportMS)/1000)
	tokens := pending + m.charged.tokens + m.held + work
	steps := (tokens + int64(m.MaxBatchTokens) - 1) / int64(m.MaxBatchTokens)
	us := (tokens + steps*int64(m.sequences())*decodeTokens) * 1_000_000 / speed
	return m.derated(us) * 1000 / max(1, trust)
}

// workUS is how long the work takes on the worker when it does nothing else.
func (m *member) workUS(work int64) int64 {
	return m.derated(work * 1_000_000 / m.speed.tokensPerS())
}

// busyUS orders workers by the load that a new request would find, itself among the sequences.
func (m *member) busyUS() int64 {
	return m.workUS(m.tokens() + int64(m.sequences()+1)*decodeTokens)
}

// derated is a time on a worker that is held down.
func (m *member) derated(us int64) int64 {
	if m.load.Derate > 0 {
		us = us * 1000 / int64(m.load.Derate)
	}
	return us
}
