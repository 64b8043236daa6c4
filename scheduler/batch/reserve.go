package batch

import (
	"cmp"
	"math"
	"slices"
)

// A request that fits nowhere while it is the first gets a reservation: the worker that lacks the least
// is kept for it. Others may still go there if they do not delay it (EASY backfilling): those that end,
// by the bound of their output, before what runs there has left enough, and those that fit beside it
// then.
//
// What runs is taken to go on to its bound. So the promise, the time at which enough is free at the
// latest, can only come nearer, by outputs that end early; what it allowed before stays allowed.
const (
	// reservationsMost bounds the reservations of a model, workersPerReservation how large a part of its
	// workers are kept.
	reservationsMost      = 16
	workersPerReservation = 32
	// reserveAgainMS is the pause after no worker was found to reserve.
	reserveAgainMS = 100
	// paceUS is assumed for a token of each sequence until outputs were seen to grow.
	paceUS = 20_000
)

// pace is how long a worker takes for a token of each of its sequences, in microseconds: a moving
// average.
type pace struct{ us int64 }

func (p *pace) tokenUS() int64 { return cmp.Or(p.us, paceUS) }

func (p *pace) add(us int64) {
	if p.us == 0 {
		p.us = us
	}
	p.us = max(1, (15*p.us+us)/16)
}

// run is a request on a worker.
type run struct {
	sequences int
	// blocks are those that it holds at its longest.
	blocks int64
	// tokens are the longest choice's so far, as of atMS, which may still grow by left.
	tokens, left, atMS int64
	// startUS is the time from atMS to the first token.
	startUS int64
}

// endMS is when the run ends at the latest.
func (r *run) endMS(m *member, nowMS int64) int64 {
	return max(nowMS+1, r.atMS+(r.startUS+r.left*m.pace.tokenUS())/1000)
}

// most is how many blocks a need takes when all its choices are at their longest.
func (m *member) most(n *need) int64 {
	if n[needOutput] >= unknownOutput {
		return int64(m.TotalBlocks)
	}
	size := int64(m.BlockTokens)
	each := (int64(n[needOutput]) + size - 1) / size
	return min((int64(n[needTokens])+size-1)/size+int64(n[needSequences])*(each+1), int64(m.TotalBlocks))
}

// begin notes what the worker was sent, with the time to its first token.
func (m *member) begin(i *item, us, nowMS int64) {
	if m.runs == nil {
		m.runs = map[string]*run{}
	}
	m.runs[i.ID] = &run{
		sequences: min(i.choices(), m.MaxSequences), blocks: m.most(&i.need), atMS: nowMS, startUS: us,
		// The context ends an output that nothing else bounds.
		tokens: int64(i.Tokens), left: max(0, min(int64(i.need[needOutput]), int64(m.room()-i.Tokens))),
	}
	m.changed()
}

// changed has the worker's reservation looked at again.
func (m *member) changed() {
	if m.reserved != nil {
		m.reserved.stale = true
	}
}

// Running says that a worker runs a request that this batcher did not send it.
func (b *Batcher) Running(workerID string, r Request, nowMS int64) {
	if m := b.members[workerID]; m != nil {
		m.begin(&item{Request: r, need: r.need()}, 0, nowMS)
	}
}

// Grew says how long a request's longest choice is by now, prompt included.
func (b *Batcher) Grew(workerID, requestID string, tokens int, nowMS int64) {
	m := b.members[workerID]
	if m == nil {
		return
	}
	r := m.runs[requestID]
	if r == nil {
		return
	}
	grown := int64(tokens) - r.tokens
	if grown <= 0 {
		return
	}
	if r.startUS == 0 && nowMS > r.atMS {
		m.pace.add((nowMS - r.atMS) * 1000 / grown)
	}
	r.tokens, r.atMS, r.startUS = int64(tokens), nowMS, 0
	r.left = max(0, r.left-grown)
	m.changed()
}

// reservation is a worker that is kept for a request.
type reservation struct {
	item   *item
	member *member
	// promiseMS is when enough is free for the request at the latest; spare is what stays free beside it
	// then.
	promiseMS                   int64
	spareSequences, spareBlocks int64
	// stale says that the worker has changed since.
	stale bool
}

// foresee brings the promise up to date.
func (r *reservation) foresee(nowMS int64) {
	if !r.stale {
		return
	}
	r.stale = false
	type end struct {
		atMS int64
		*run
	}
	m := r.member
	needed := m.charge(&r.item.need, 0)
	sequences, blocks := int64(m.MaxSequences), int64(m.TotalBlocks)
	ends := make([]end, 0, len(m.runs))
	for _, run := range m.runs {
		sequences -= int64(run.sequences)
		blocks -= run.blocks
		ends = append(ends, end{run.endMS(m, nowMS), run})
	}
	slices.SortFunc(ends, func(a, b end) int {
		return cmp.Or(cmp.Compare(a.atMS, b.atMS), cmp.Compare(a.blocks, b.blocks), cmp.Compare(a.sequences, b.sequences))
	})
	atMS := nowMS
	for _, e := range ends {
		if sequences >= int64(needed.sequences) && blocks >= int64(needed.blocks) {
			break
		}
		atMS = e.atMS
		sequences += int64(e.sequences)
		blocks += e.blocks
	}
	r.spareSequences, r.spareBlocks = sequences-int64(needed.sequences), blocks-int64(needed.blocks)
	if atMS > r.promiseMS || atMS == nowMS {
		// Later than promised, or there is something that nobody told of: nothing more may go beside it.
		r.spareSequences, r.spareBlocks = 0, 0
	}
	r.promiseMS = min(r.promiseMS, atMS)
}

// allows says whether a need may go to the worker without delay for whom it is reserved.
func (r *reservation) allows(n *need, us, nowMS int64) bool {
	r.foresee(nowMS)
	if n[needOutput] < unknownOutput && nowMS+1+(us+int64(n[needOutput])*r.member.pace.tokenUS())/1000 <= r.promiseMS {
		return true
	}
	return int64(n[needSequences]) <= r.spareSequences && r.member.most(n) <= r.spareBlocks
}

// reserve keeps a worker for the first request if that fits nowhere and others have passed it for PassMS.
// It returns the first request if others are about to pass it, nil otherwise.
func (b *Batcher) reserve(p *pool, f *fitter) *item {
	if len(p.reserved) >= min(reservationsMost, 1+len(p.members)/workersPerReservation) || f.nowMS < p.reserveMS {
		return nil
	}
	longest := bounded(p.longest)
	head := p.queue.next(func(n *need) bool { return n[needLength] <= longest }, func(i *item) bool { return i.need[needLength] <= longest })
	if head == nil || f.any(&head.need, head.Tenant, true) {
		return nil
	}
	if !head.blocked || f.nowMS-head.blockedMS < b.settings.PassMS {
		return head
	}
	c := b.nearest(p, head, f.nowMS)
	if c == nil {
		p.reserveMS = f.nowMS + reserveAgainMS
		return nil
	}
	r := &reservation{item: head, member: c.member, promiseMS: math.MaxInt64, stale: true}
	head.reserved, c.reserved = r, r
	p.queue.remove(head)
	p.queue.take(head)
	p.reserved = append(p.reserved, r)
	b.reopen(p, c.member)
	return nil
}

// release ends a reservation. A request that has not started has its place in the order again.
func (b *Batcher) release(p *pool, r *reservation) {
	p.reserved = slices.DeleteFunc(p.reserved, func(have *reservation) bool { return have == r })
	r.item.reserved, r.member.reserved = nil, nil
	if !r.member.gone {
		b.reopen(p, r.member)
	}
}

// planReserved starts the requests that have a reservation, there or wherever they fit by now, and ends
// the reservations of workers that take nothing new.
func (b *Batcher) planReserved(p *pool, f *fitter, start func(*candidate, *item)) {
	for _, r := range slices.Clone(p.reserved) {
		i := r.item
		b.ask(i, f.nowMS)
		c := b.candidate(p, r.member, i, f.nowMS)
		switch {
		case c.blocked&^PromptTokens == 0 && r.member.open(b.settings.StepsAhead):
			b.release(p, r)
			start(&c, i)
		case c.blocked&^(Sequences|Blocks|PromptTokens) != 0:
			b.release(p, r)
			p.queue.push(i)
		default:
			if c, _ := b.place(p, i, f, false); c != nil {
				b.release(p, r)
				start(c, i)
			}
		}
		if f.done() {
			return
		}
	}
}
