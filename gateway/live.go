package gateway

import (
	"bytes"
	"context"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// live is one admitted (or about to be admitted) request and all its output so far. Workers' streams
// append to it; its readers, one a client, read from it. The output is kept whole, so that it can be
// read again from any place, and so that the request can go on elsewhere with what it has generated.
//
//	submitting ──commit──▶ running ──last event──▶ done
//	     │                 │  ▲  │
//	     │             lost│  │new dispatch
//	     │                 ▼  │  │
//	     │               waiting │
//	     └──refused──────────┴───┴──error, abort──▶ done with failure
//
// The last reader's leaving ends what is not done: at once, or if the client named the request after
// a grace in which it may come back.
type live struct {
	id     string
	model  *served
	meters *meters
	// named requests have an id from their client, who can come back with it.
	named bool
	// digest names what its client sent; nil if it was found by its id alone.
	digest  []byte
	arrived time.Time
	// admitted is closed once the admission is committed, or has failed.
	admitted chan struct{}
	// withdraw ends a submission that is under way.
	withdraw context.CancelFunc
	// inspection is when the supervisor must inspect the live, as a time.Duration after its arrival.
	inspection atomic.Int64

	mu sync.Mutex
	// request is replaced, never changed. One that was found by its id alone has no prompt.
	request      *pb.Request
	promptTokens int32
	readers      []*reader
	// lingers is when a request without readers is ended; zero while it has some.
	lingers time.Time

	choices []choice
	prompt  []*pb.Logprobs
	cached  int32
	// fence is the oldest dispatch whose output is accepted.
	fence      dispatch
	worker     string
	firstToken time.Time
	// The worker's word on the waits before the first token; zero if it says nothing.
	queued, prefilled time.Duration
	// moved is set while the output is to go on in another dispatch than it came from so far.
	moved   bool
	inquiry inquiry
	reruns  int
	done    bool
	failure *apiError
	// uncertain failures are of submissions without an answer: the request may have been admitted.
	uncertain bool
	// counted requests ran here, and are in the metrics when they end.
	counted bool
}

// tenant is whose request it is.
func (l *live) tenant() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.request.Tenant
}

// dispatch is one handing of a request to a worker.
type dispatch struct{ term, index uint64 }

func (d dispatch) before(e dispatch) bool {
	return d.term < e.term || d.term == e.term && d.index < e.index
}

// choice is the output of one choice. Both slices only ever grow, so that a reader may keep a view of
// a part while more is appended; their length is bounded by max_tokens.
type choice struct {
	tokens   []int32
	logprobs []*pb.Logprobs
	finish   pb.FinishReason
	stopped  string
	last     time.Time
}

// reader is one who waits for a live's output.
type reader struct {
	// wake tells of news. It has room for one signal and is never closed; the requests of one call
	// share it.
	wake chan struct{}
	// whole readers want to be woken at the end only.
	whole bool
}

func newLive(request *pb.Request, m *served, named bool, now time.Time) *live {
	return &live{
		id: request.Id, model: m, meters: m.meters, named: named, arrived: now, admitted: make(chan struct{}), withdraw: func() {},
		request: request, promptTokens: int32(len(request.Prompt)), choices: make([]choice, max(request.Sampling.GetN(), 1)),
		inquiry: inquiry{heard: now},
	}
}

// probabilities reports whether log-probabilities are wanted. The log does not keep them, so that only
// a worker can bring such a request's output; each dispatch brings all of it.
func (l *live) probabilities() bool {
	p := l.request.Sampling
	return p != nil && (p.Logprobs != nil || p.PromptLogprobs != nil)
}

// apply takes one event of worker in. It reports whether readers have something new to see, and
// whether something before it is missing: then it is dropped, and the leader must be asked.
func (l *live) apply(worker string, ev *pb.TokenEvent, now time.Time) (news, gap bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	at := dispatch{ev.Term, ev.Index}
	if l.done || at.before(l.fence) {
		return false, false
	}
	if ev.Choice < 0 || int(ev.Choice) >= len(l.choices) {
		return l.end(internal("worker %s sent choice %d of a request with %d", worker, ev.Choice, len(l.choices))), false
	}
	if l.fence.before(at) {
		l.moved = l.moved || l.worker != "" && l.generated() > 0
		l.fence = at
	}
	if l.worker != worker {
		l.worker = worker
		l.inspectNow() // Silence means something else now.
	}
	c := &l.choices[ev.Choice]
	known := len(c.tokens) - int(ev.First)
	if known < 0 {
		l.miss()
		return false, true
	}
	l.hear(now)
	if ev.FinishReason == pb.FinishReason_FINISH_REASON_ABORT && unwanted(ev.Error) {
		// Ended for want of a client where it was before: it must run again.
		l.miss()
		return false, true
	}
	if known < len(ev.TokenIds) && c.finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED {
		fresh := ev.TokenIds[known:]
		if len(c.tokens)+len(fresh) > int(l.request.Sampling.MaxTokens) {
			return l.end(internal("worker %s sent more than max_tokens %d", worker, l.request.Sampling.MaxTokens)), false
		}
		c.tokens = append(c.tokens, fresh...)
		if len(ev.Logprobs) == len(ev.TokenIds) {
			c.logprobs = append(c.logprobs, ev.Logprobs[known:]...)
		}
		l.measure(c, ev, len(fresh), now)
	}
	if l.prompt == nil {
		l.prompt = ev.PromptLogprobs
	}
	if l.cached == 0 && !l.moved {
		l.cached = ev.CachedTokens
	}
	if c.finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED && ev.FinishReason != c.finish {
		c.finish, c.stopped = ev.FinishReason, ev.StopReason
	}
	switch ev.FinishReason {
	case pb.FinishReason_FINISH_REASON_ERROR, pb.FinishReason_FINISH_REASON_INVALID, pb.FinishReason_FINISH_REASON_DEADLINE:
		return l.end(failed(ev.FinishReason, ev.Error)), false
	case pb.FinishReason_FINISH_REASON_ABORT:
		return l.end(cancelled(ev.Error)), false
	}
	if ev.RequestDone {
		if !l.complete() {
			// What was dropped for a gap held another choice's end.
			l.miss()
			return true, true
		}
		return l.end(nil), false
	}
	return true, false
}

// miss notes that output is missing.
func (l *live) miss() {
	l.inquiry.gap = true
	l.inspectNow()
}

// generated counts all choices' tokens. The lock is held, as in all that follow without taking it.
func (l *live) generated() int {
	n := 0
	for i := range l.choices {
		n += len(l.choices[i].tokens)
	}
	return n
}

// complete reports whether every choice has ended.
func (l *live) complete() bool {
	for i := range l.choices {
		if l.choices[i].finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED {
			return false
		}
	}
	return true
}

// measure records the latencies of a choice's new tokens; ev is nil if no worker brought them.
func (l *live) measure(c *choice, ev *pb.TokenEvent, fresh int, now time.Time) {
	switch {
	case l.firstToken.IsZero():
		l.firstToken = now
		l.meters.timeToFirst.Observe(now.Sub(l.arrived).Seconds())
		if ev != nil && ev.QueueUs != nil && ev.PrefillUs != nil {
			l.queued = time.Duration(*ev.QueueUs) * time.Microsecond
			l.prefilled = time.Duration(*ev.PrefillUs) * time.Microsecond
			l.meters.queue.Observe(l.queued.Seconds())
			l.meters.prefill.Observe(l.prefilled.Seconds())
		}
	case c.last.IsZero():
	case l.moved:
		l.meters.gap.Observe(now.Sub(c.last).Seconds())
	default:
		l.meters.interToken.Observe(now.Sub(c.last).Seconds())
	}
	if l.moved {
		l.moved = false
		l.meters.recovered.Inc()
		l.model.log.Info("a stream goes on after a failover", "request", l.id, "worker", l.worker, "tokens", l.generated()-fresh, "gap", now.Sub(c.last))
	}
	c.last = now
	l.meters.generated.Add(float64(fresh))
}

// end closes the request. It returns true, the news.
func (l *live) end(failure *apiError) bool {
	l.done, l.failure = true, failure
	return true
}

// fail ends the request from outside a worker's stream and wakes its readers.
func (l *live) fail(e *apiError) {
	l.mu.Lock()
	if !l.done {
		l.end(e)
	}
	l.mu.Unlock()
	l.notify()
}

// abandon ends a submission that is still under way.
func (l *live) abandon() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.withdraw()
}

// notify wakes the readers who care; a signal that is already there is enough.
func (l *live) notify() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, r := range l.readers {
		if r.whole && !l.done {
			continue
		}
		select {
		case r.wake <- struct{}{}:
		default:
		}
	}
}

// received says what the gateway has of the request, nil if it wants nothing more.
func (l *live) received() *pb.ResumePoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return nil
	}
	p := &pb.ResumePoint{RequestId: l.id, Received: make([]int32, len(l.choices))}
	for i := range l.choices {
		p.Received[i] = int32(len(l.choices[i].tokens))
	}
	return p
}

// resumePoint is received, or nil if worker has no part in the request.
func (l *live) resumePoint(worker string) *pb.ResumePoint {
	l.mu.Lock()
	elsewhere := l.worker != "" && l.worker != worker
	l.mu.Unlock()
	if elsewhere {
		return nil
	}
	return l.received()
}

// table holds the live requests by id. One lock is enough: a lookup is tens of nanoseconds and there
// is one a request a step.
type table struct {
	mu   sync.RWMutex
	byID map[string]*live
}

// enter makes r a reader of the live that has this id and digest (none for whoever knows the id alone), or
// of create's; fresh says which. create is not called for nil: then there must be one. A live that failed gives way, and so
// does one that is known by its id alone, whose body nobody can compare.
func (t *table) enter(id string, r *reader, named bool, digest []byte, create func() *live) (e entry) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if l := t.byID[id]; l != nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		bodiless := l.digest == nil
		if l.failure == nil && digest != nil && !bodiless && !bytes.Equal(l.digest, digest) {
			select {
			case <-l.admitted:
				return entry{other: true}
			default:
				return entry{undecided: l.admitted}
			}
		}
		if !l.lingers.IsZero() {
			e.freed = len(l.choices)
		}
		l.lingers = time.Time{}
		switch {
		case l.failure != nil:
		case digest != nil && bodiless:
			e.replaced = l
		default:
			l.readers = append(l.readers, r)
			l.named = l.named || named
			l.inquiry.claim = true
			l.inspectNow()
			e.live = l
			return e
		}
	}
	if create == nil {
		return e
	}
	e.live, e.fresh = create(), true
	e.live.readers = append(e.live.readers, r)
	t.byID[id] = e.live
	return e
}

// entry is what enter found.
type entry struct {
	live  *live // nil if there is none and none was to be made
	fresh bool  // live was made
	// freed are the places that one without a reader held, and gives up.
	freed int
	// other: the id belongs to another body.
	other bool
	// undecided: another body asks for the id, and this is closed once it has it or is refused.
	undecided <-chan struct{}
	// replaced gave way and has readers that must be told.
	replaced *live
}

// departure is what a reader's leaving means for a live.
type departure struct {
	// lingers: it waits for its client to come back. retired: it has left the table.
	lingers, retired bool
	// abandoned: it is to be aborted.
	abandoned bool
}

// leave takes a reader away. With the last one a live that is done leaves the table; what is not
// done lingers until then if it may, or is ended.
func (t *table) leave(l *live, r *reader, until time.Time) departure {
	t.mu.Lock()
	defer t.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.readers = slices.DeleteFunc(l.readers, func(x *reader) bool { return x == r })
	switch {
	case len(l.readers) > 0:
		return departure{}
	case l.named && !until.IsZero() && (!l.done || l.uncertain) && t.byID[l.id] == l:
		l.lingers = until
		l.inspectNow()
		return departure{lingers: true}
	}
	return t.retire(l)
}

// expire retires a live whose grace is over.
func (t *table) expire(l *live, now time.Time) departure {
	t.mu.Lock()
	defer t.mu.Unlock()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lingers.IsZero() || now.Before(l.lingers) {
		return departure{}
	}
	l.lingers = time.Time{}
	return t.retire(l)
}

// retire takes l out of the table and ends it; both locks are held. It is not aborted if its id has
// gone on to another live.
func (t *table) retire(l *live) departure {
	d := departure{retired: true}
	if t.byID[l.id] == l {
		d.abandoned = !l.done || l.uncertain
		delete(t.byID, l.id)
	}
	if !l.done {
		l.end(cancelled(reasonGone))
	}
	l.withdraw()
	return d
}

func (t *table) get(id string) *live {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
}

// lingers reports whether a request waits for its client to come back.
func (t *table) lingers(id string) bool {
	l := t.get(id)
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return !l.lingers.IsZero()
}

func (t *table) all() []*live {
	t.mu.RLock()
	defer t.mu.RUnlock()
	list := make([]*live, 0, len(t.byID))
	for _, l := range t.byID {
		list = append(list, l)
	}
	return list
}

// router applies a worker's steps. It belongs to one goroutine.
type router struct {
	table   *table
	worker  string
	touched []*live
}

// route applies all events of a step before it wakes any reader, so that a client with several
// choices is written to once a step. It reports whether output is missing somewhere.
func (r *router) route(events []*pb.TokenEvent, now time.Time) (gap bool) {
	r.touched = r.touched[:0]
	for _, ev := range events {
		l := r.table.get(ev.RequestId)
		if l == nil {
			continue
		}
		news, missing := l.apply(r.worker, ev, now)
		gap = gap || missing
		if news {
			r.touched = append(r.touched, l)
		}
	}
	for i, l := range r.touched {
		l.notify()
		r.touched[i] = nil
	}
	return gap
}
