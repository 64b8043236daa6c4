package gateway

import (
	"sync"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// live is one admitted (or about to be admitted) request and all its output so far. Workers' streams
// append to it; one client's goroutine reads from it. The output is kept whole, so that the request
// can be submitted again with what it has generated.
//
//	submitting ──commit──▶ running ──last event──▶ done
//	     │                    │
//	     └────refused─────────┴──error, abort──▶ done with failure
type live struct {
	request *pb.Request
	meters  *meters
	arrived time.Time
	// wake tells the reader that there is news. It has room for one signal and is never closed; the
	// requests of one call share it.
	wake chan struct{}
	// whole requests have a reader that wants to be woken at the end only.
	whole bool

	mu      sync.Mutex
	choices []choice
	prompt  []*pb.Logprobs
	cached  int32
	// The dispatch whose output is accepted; older ones are dropped.
	term, index uint64
	worker      string
	firstToken  time.Time
	// The worker's word on the waits before the first token; zero if it says nothing.
	queued, prefilled time.Duration
	done              bool
	failure           *apiError
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

func newLive(request *pb.Request, m *meters, wake chan struct{}, whole bool, now time.Time) *live {
	return &live{request: request, meters: m, wake: wake, whole: whole, arrived: now,
		choices: make([]choice, max(request.Sampling.GetN(), 1))}
}

// apply takes one event of worker in and reports whether the reader has something new to see.
func (l *live) apply(worker string, ev *pb.TokenEvent, now time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done || ev.Term < l.term || ev.Term == l.term && ev.Index < l.index {
		return false
	}
	l.term, l.index, l.worker = ev.Term, ev.Index, worker
	if ev.Choice < 0 || int(ev.Choice) >= len(l.choices) {
		return l.end(internal("worker %s sent choice %d of a request with %d", worker, ev.Choice, len(l.choices)))
	}
	c := &l.choices[ev.Choice]
	known := len(c.tokens) - int(ev.First)
	switch {
	case known < 0:
		return l.end(internal("output was lost: worker %s sent token %d of choice %d where %d was next", worker, ev.First, ev.Choice, len(c.tokens)))
	case known < len(ev.TokenIds) && c.finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED:
		fresh := ev.TokenIds[known:]
		if len(c.tokens)+len(fresh) > int(l.request.Sampling.MaxTokens) {
			return l.end(internal("worker %s sent more than max_tokens %d", worker, l.request.Sampling.MaxTokens))
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
	l.cached = max(l.cached, ev.CachedTokens)
	if c.finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED && ev.FinishReason != c.finish {
		c.finish, c.stopped = ev.FinishReason, ev.StopReason
	}
	switch ev.FinishReason {
	case pb.FinishReason_FINISH_REASON_ERROR:
		return l.end(internal("generation failed: %s", ev.Error))
	case pb.FinishReason_FINISH_REASON_ABORT:
		return l.end(cancelled(ev.Error))
	}
	if ev.RequestDone {
		for i := range l.choices {
			if l.choices[i].finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED {
				return l.end(internal("worker %s ended the request with choice %d open", worker, i))
			}
		}
		return l.end(nil)
	}
	return !l.whole
}

// measure records the latencies of a choice's new tokens.
func (l *live) measure(c *choice, ev *pb.TokenEvent, fresh int, now time.Time) {
	if l.firstToken.IsZero() {
		l.firstToken = now
		l.meters.timeToFirst.Observe(now.Sub(l.arrived).Seconds())
		if ev.QueueUs != nil && ev.PrefillUs != nil {
			l.queued = time.Duration(*ev.QueueUs) * time.Microsecond
			l.prefilled = time.Duration(*ev.PrefillUs) * time.Microsecond
			l.meters.queue.Observe(l.queued.Seconds())
			l.meters.prefill.Observe(l.prefilled.Seconds())
		}
	} else if !c.last.IsZero() {
		l.meters.interToken.Observe(now.Sub(c.last).Seconds())
	}
	c.last = now
	l.meters.generated.Add(float64(fresh))
}

// end closes the request; the caller holds the lock. It returns true, the news.
func (l *live) end(failure *apiError) bool {
	l.done, l.failure = true, failure
	return true
}

// fail ends the request from outside a worker's stream and wakes its reader.
func (l *live) fail(e *apiError) {
	l.mu.Lock()
	if !l.done {
		l.end(e)
	}
	l.mu.Unlock()
	l.notify()
}

// notify wakes the reader; a signal that is already there is enough.
func (l *live) notify() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// resumePoint says what the gateway has of the request, or nil if worker has no part in it.
func (l *live) resumePoint(worker string) *pb.ResumePoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done || l.worker != "" && l.worker != worker {
		return nil
	}
	p := &pb.ResumePoint{RequestId: l.request.Id, Received: make([]int32, len(l.choices))}
	for i := range l.choices {
		p.Received[i] = int32(len(l.choices[i].tokens))
	}
	return p
}

// table holds the live requests by id. One lock is enough: a lookup is tens of nanoseconds and there
// is one a request a step.
type table struct {
	mu   sync.RWMutex
	byID map[string]*live
}

// add reports false if the id is in use.
func (t *table) add(l *live) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, taken := t.byID[l.request.Id]; taken {
		return false
	}
	t.byID[l.request.Id] = l
	return true
}

func (t *table) remove(l *live) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[l.request.Id] == l {
		delete(t.byID, l.request.Id)
	}
}

func (t *table) get(id string) *live {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.byID[id]
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
// choices is written to once a step.
func (r *router) route(events []*pb.TokenEvent, now time.Time) {
	r.touched = r.touched[:0]
	for _, ev := range events {
		if l := r.table.get(ev.RequestId); l != nil && l.apply(r.worker, ev, now) {
			r.touched = append(r.touched, l)
		}
	}
	for i, l := range r.touched {
		l.notify()
		r.touched[i] = nil
	}
}
