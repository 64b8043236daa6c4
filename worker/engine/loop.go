package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Engine runs requests on one device. Add, Abort and the rest may be called from any goroutine;
// Run owns the planner and the runner.
type Engine struct {
	settings Settings
	model    Model
	sink     Sink
	wake     chan struct{}
	// uncompiled has room for every request that may wait.
	uncompiled chan *request
	studies    studies

	// Owned by Run.
	plan  *planner
	turns turner
	// gone is closed when Run has returned.
	gone chan struct{}

	mu             sync.Mutex
	inbox          []command
	live           map[string]*request
	queuedRequests int // live and not started
	queuedTokens   int
	number         uint64
	closed         bool // refuses everything new
	// Requests whose constraint is being compiled, and their prompt tokens.
	compiling       int
	compilingTokens int64
	waiters         []waiter
	stats           Stats
}

// command is something for the loop to do, in order.
type command struct {
	add *request
	// of a constrained request: where its choices stand, or why they stand nowhere
	bound   []binding
	err     error
	studied *study
	abort   string
	reason  string
	hold    *holdCommand
	trace   chan<- []StepTrace
	traceN  int
	cache   chan<- CacheNews
	reset   bool
	read    *reading
	arrival *arrival
}

type holdCommand struct {
	hold  hold
	abort bool
}

// waiter is told once ready holds. ready runs in the loop, between steps.
type waiter struct {
	ready func() bool
	told  chan struct{}
}

// New returns an engine that gives its events to sink once it runs.
func New(s Settings, m Model, sink Sink) (*Engine, error) {
	s = s.WithDefaults()
	if err := s.Validate(); err != nil {
		return nil, err
	}
	switch {
	case m.Runner == nil:
		return nil, errors.New("engine: model has no runner")
	case m.ContextLength < 2 || m.Vocab < 1:
		return nil, fmt.Errorf("engine: model has a context of %d tokens and a vocabulary of %d", m.ContextLength, m.Vocab)
	}
	if m.Tiers != nil && !s.PrefixCache {
		return nil, errors.New("engine: tiers need the prefix cache")
	}
	p, err := newPlanner(s, m)
	if err != nil {
		return nil, fmt.Errorf("engine: %w", err)
	}
	e := &Engine{settings: s, model: m, sink: sink, wake: make(chan struct{}, 1), uncompiled: make(chan *request, s.QueueRequests), plan: p, live: map[string]*request{}, gone: make(chan struct{})}
	e.turns = turner{plan: p, runner: m.Runner, now: time.Now}
	e.stats = e.plan.stats()
	e.studies.some.L = &e.studies.mu
	e.plan.study = e.studies.put
	e.plan.arrived = func(a arrival) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.send(command{arrival: &a})
	}
	return e, nil
}

// ContextLength is how many tokens a sequence may hold here.
func (e *Engine) ContextLength() int {
	return e.settings.Context(e.model.ContextLength, e.model.Window)
}

// Settings returns the settings with their defaults.
func (e *Engine) Settings() Settings { return e.settings }

// Add checks r and queues it; its tokens go to the sink. The engine keeps r's slices and does not
// change them. Errors: ErrInvalid, ErrTooLong, ErrDuplicate, ErrQueueFull, ErrDraining; a request
// refused so has no events.
func (e *Engine) Add(r *pb.Request) error {
	tenant, context := e.settings.tenant(r.Tenant, e.ContextLength())
	q, err := newRequest(r, &e.model, context)
	if err != nil {
		return err
	}
	q.tenant = tenant
	q.added = time.Now().UnixMicro()
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.closed:
		return ErrDraining
	case e.live[q.id] != nil:
		return fmt.Errorf("%w: %q is running", ErrDuplicate, q.id)
	case e.queuedRequests >= e.settings.QueueRequests:
		return fmt.Errorf("%w: %d requests wait, the limit is %d", ErrQueueFull, e.queuedRequests, e.settings.QueueRequests)
	case e.queuedTokens > 0 && e.queuedTokens+q.prompt > e.settings.QueueTokens:
		return fmt.Errorf("%w: %d prompt tokens wait, the limit is %d", ErrQueueFull, e.queuedTokens, e.settings.QueueTokens)
	}
	if q.spec != nil {
		q.await()
		select {
		case e.uncompiled <- q:
		default: // aborted ones still stand there
			return fmt.Errorf("%w: %d constraints wait to be compiled", ErrQueueFull, cap(e.uncompiled))
		}
		e.compiling++
		e.compilingTokens += int64(q.prompt)
	}
	e.number++
	q.number = e.number
	e.live[q.id] = q
	e.queuedRequests++
	e.queuedTokens += q.prompt
	if q.spec == nil {
		e.send(command{add: q})
	}
	return nil
}

// Abort ends a request in any state; an unknown or ended one is left alone. It reports whether the
// request was live.
func (e *Engine) Abort(id, reason string) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.live[id]
	if r == nil {
		return false
	}
	if r.left != nil {
		r.left() // its constraint need not be compiled
	}
	e.send(command{abort: id, reason: reason})
	return true
}

// Live lists the ids of requests that have not ended.
func (e *Engine) Live() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	ids := make([]string, 0, len(e.live))
	for id := range e.live {
		ids = append(ids, id)
	}
	return ids
}

// Stats returns the state after the newest step.
func (e *Engine) Stats() Stats {
	e.mu.Lock()
	defer e.mu.Unlock()
	s := e.stats
	s.Waiting += e.compiling
	s.PendingPrefill += e.compilingTokens
	// Requests that the loop has not seen yet wait too.
	for _, c := range e.inbox {
		if c.add != nil {
			s.Waiting++
			s.PendingPrefill += int64(c.add.prompt)
		}
	}
	return s
}

// Traces returns what the newest n steps did, oldest first. It needs the loop to run.
func (e *Engine) Traces(ctx context.Context, n int) ([]StepTrace, error) {
	out := make(chan []StepTrace, 1)
	e.mu.Lock()
	e.send(command{trace: out, traceN: n})
	e.mu.Unlock()
	select {
	case t := <-out:
		return t, nil
	case <-e.gone:
		return nil, ErrGone
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Drain refuses everything new and waits until all requests have ended, or for ctx. If Run ends before they
// have, it returns ErrGone.
func (e *Engine) Drain(ctx context.Context) error {
	return e.await(ctx, func() { e.closed = true }, func() bool { return len(e.live) == 0 })
}

// PauseMode says what becomes of requests in progress.
type PauseMode uint8

const (
	// PauseKeep freezes them where they are.
	PauseKeep PauseMode = iota + 1
	// PauseWait lets them finish.
	PauseWait
	// PauseAbort aborts them.
	PauseAbort
)

// Pause stops the engine until Resume and returns when it stands still: requests that have not
// started wait, what becomes of the others is up to mode. Pausing twice is fine; the last mode
// counts.
func (e *Engine) Pause(ctx context.Context, mode PauseMode) error {
	h := &holdCommand{hold: holdNew, abort: mode == PauseAbort}
	if mode == PauseKeep {
		h.hold = holdAll
	}
	return e.await(ctx, func() { e.send(command{hold: h}) }, func() bool {
		if len(e.inbox) > 0 || e.plan.inFlight() > 0 {
			return false
		}
		if mode == PauseKeep {
			return true
		}
		for _, r := range e.live {
			if r.started > 0 {
				return false
			}
		}
		return true
	})
}

// Resume ends a pause.
func (e *Engine) Resume() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.send(command{hold: &holdCommand{}})
}

// await does first and waits until ready holds, both under the lock.
func (e *Engine) await(ctx context.Context, first func(), ready func() bool) error {
	w := waiter{ready: ready, told: make(chan struct{})}
	e.mu.Lock()
	first()
	e.waiters = append(e.waiters, w)
	e.signal()
	e.mu.Unlock()
	err := ErrGone
	select {
	case <-w.told:
		return nil
	case <-e.gone:
		if ready() { // the loop is over, so that nothing it owns moves
			return nil
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.waiters = slices.DeleteFunc(e.waiters, func(o waiter) bool { return o.told == w.told })
	return err
}

// send queues c for the loop. The lock is held. The inbox is bounded: adds by the queue's limits,
// aborts by the live requests' callers, studies by the live choices, reads by theirs, arrivals by maxFetches.
func (e *Engine) send(c command) {
	e.inbox = append(e.inbox, c)
	e.signal()
}

func (e *Engine) signal() {
	select {
	case e.wake <- struct{}{}:
	default:
	}
}

// Run computes until ctx ends, then waits for the steps in flight and returns nil; requests that
// live then get no further events: [Engine.Live] names them, for others to go on with. It returns an
// error if the device is gone for good, and leaves the requests in the same way. Run is called once.
func (e *Engine) Run(ctx context.Context) error {
	defer close(e.gone)
	defer e.startCompilers(ctx)()
	var commands []command
	var timer *time.Timer
	p := e.plan
	for {
		commands = e.obey(commands)
		if ctx.Err() != nil {
			return e.stop()
		}
		did, err := e.turns.turn()
		if err != nil {
			e.close()
			e.publish()
			return err
		}
		e.publish()
		if did || p.lower.busy() {
			continue
		}
		// Nothing to compute: sleep until a command, the next deadline or the end.
		var line <-chan time.Time
		if at := p.nextLine; at > 0 {
			d := max(0, time.Until(time.UnixMicro(at)))
			if timer == nil {
				timer = time.NewTimer(d)
				defer timer.Stop()
			} else {
				timer.Reset(d)
			}
			line = timer.C
		}
		select {
		case <-ctx.Done():
		case <-e.wake:
		case <-p.lower.ready():
		case <-line:
		}
	}
}

// obey carries out what came in since the last step. It returns a buffer for the next call.
func (e *Engine) obey(buffer []command) []command {
	e.mu.Lock()
	commands := e.inbox
	e.inbox = buffer[:0]
	e.mu.Unlock()
	for _, c := range commands {
		switch {
		case c.add != nil:
			e.plan.join(c.add, c.bound, c.err)
		case c.studied != nil:
			e.plan.learn(c.studied)
		case c.abort != "":
			e.mu.Lock()
			r := e.live[c.abort]
			e.mu.Unlock()
			if r != nil {
				e.plan.endRequest(r, pb.FinishReason_FINISH_REASON_ABORT, c.reason)
			}
		case c.hold != nil:
			e.plan.hold = c.hold.hold
			if c.hold.abort {
				e.abortStarted()
			}
		case c.trace != nil:
			c.trace <- e.plan.traces(c.traceN)
		case c.cache != nil:
			c.cache <- e.plan.tellCache(c.reset)
		case c.read != nil:
			c.read.found <- e.plan.readBlock(c.read.hash, c.read.dst)
		case c.arrival != nil:
			e.plan.arrive(*c.arrival)
		}
	}
	if len(commands) > 0 {
		e.publish()
	}
	clear(commands)
	return commands
}

func (e *Engine) abortStarted() {
	e.mu.Lock()
	var started []*request
	for _, r := range e.live {
		if r.started > 0 {
			started = append(started, r)
		}
	}
	e.mu.Unlock()
	for _, r := range started {
		e.plan.endRequest(r, pb.FinishReason_FINISH_REASON_ABORT, "paused")
	}
}

// publish hands the step's events out and refreshes what other goroutines see.
func (e *Engine) publish() {
	p := e.plan
	e.mu.Lock()
	for _, r := range p.begun {
		e.unqueue(r)
	}
	for _, r := range p.done {
		if r.started == 0 {
			e.unqueue(r)
		}
		if e.live[r.id] == r {
			delete(e.live, r.id)
		}
	}
	e.stats = p.stats()
	kept := e.waiters[:0]
	var told []waiter
	for _, w := range e.waiters {
		if w.ready() {
			told = append(told, w)
		} else {
			kept = append(kept, w)
		}
	}
	e.waiters = kept
	e.mu.Unlock()
	clear(p.begun)
	clear(p.done)
	p.begun, p.done = p.begun[:0], p.done[:0]
	if len(p.events) > 0 {
		e.sink(p.events)
		clear(p.events)
		p.events = p.events[:0]
	}
	for _, w := range told {
		close(w.told)
	}
}

// unqueue takes r out of the queue's bounds. The lock is held.
func (e *Engine) unqueue(r *request) {
	e.queuedRequests--
	e.queuedTokens -= r.prompt
}

// stop turns everything new away and waits for what is in flight.
func (e *Engine) stop() error {
	e.close()
	err := e.turns.settle()
	e.publish()
	if err != nil {
		return fmt.Errorf("engine: stopping: %w", err)
	}
	return nil
}

// close turns everything new away.
func (e *Engine) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
}
