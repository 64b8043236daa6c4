package gateway

import (
	"context"
	"crypto/sha256"
	"net/http"
	"slices"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// reasonGone is why a request without a client was aborted. One that ended so runs again when its
// client comes back.
const reasonGone = "its client has gone"

// workerWait is how long a request waits for a stream to a worker to come (back) up; it looks every
// workerPoll.
const (
	workerWait = 3 * time.Second
	workerPoll = 10 * time.Millisecond
)

// start makes the caller a reader of all prompts of a call, each admitted or, if it is known already,
// taken over; when it returns, every admission is committed. The caller must call close.
func (g *Gateway) start(ctx context.Context, c *call) (*answer, *apiError) {
	if e := g.awaitWorker(ctx, c.model); e != nil {
		return nil, e
	}
	a := g.newAnswer(c)
	ids := make([]string, len(c.prompts))
	for i := range ids {
		ids[i] = c.part(i)
	}
	if e := g.seat(c, ids); e != nil {
		return nil, e
	}
	a.places, c.places = c.places, 0
	for i, id := range ids {
		request := g.request(id, c, &c.prompts[i])
		create := func() *live {
			l := newLive(request, c.model, c.named, g.Now())
			l.digest = c.digest
			return l
		}
		e := g.enter(a, id, c.digest, create)
		for e.undecided != nil {
			// Whether the other body has the id is not known yet: it may be the one that is refused.
			select {
			case <-e.undecided:
				e = g.enter(a, id, c.digest, create)
			case <-ctx.Done():
				a.close(ctx)
				return nil, cancelled(reasonGone)
			}
		}
		switch {
		case e.other:
			a.close(ctx)
			return nil, conflict("request_id_in_use", "request %q has another body; an id belongs to one body", c.id)
		case e.fresh:
			g.submit(e.live)
		default:
			c.model.meters.replayed.Inc()
		}
		if i == 0 && c.named && len(ids) > 1 {
			// Two bodies at once under one key meet here, and one of them is refused as a whole. Otherwise
			// each could have some of the prompts.
			if e := a.await(ctx); e != nil {
				a.close(ctx)
				return nil, e
			}
		}
	}
	if e := a.await(ctx); e != nil {
		a.close(ctx)
		return nil, e
	}
	return a, nil
}

// awaitWorker waits for a stream to some worker of a model. Where there is none at all, or none can be
// reached, it refuses.
func (g *Gateway) awaitWorker(parent context.Context, m *served) *apiError {
	if g.serving(m).ready > 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(parent, workerWait)
	defer cancel()
	tick := time.NewTicker(workerPoll)
	defer tick.Stop()
	for {
		if parent.Err() != nil {
			return gone()
		}
		known := slices.ContainsFunc(g.workers.list(), func(a *attachment) bool { return a.info.Model == m.ID })
		if g.serving(m).ready > 0 {
			return nil
		} else if !known || ctx.Err() != nil {
			return unavailable("no worker for model %q is ready", m.ID)
		}
		select {
		case <-ctx.Done():
		case <-tick.C:
		}
	}
}

// enter puts the answer's reader on a live and settles what that changes.
func (g *Gateway) enter(a *answer, id string, digest []byte, create func() *live) entry {
	e := g.lives.enter(id, &a.reader, a.call.named, digest, create)
	if e.replaced != nil {
		e.replaced.fail(moved())
	}
	g.release(e.freed)
	if e.live != nil {
		a.add(e.live)
	}
	if !e.fresh {
		g.poke() // to claim it
	}
	return e
}

// request builds what the worker gets. The seed is always set: without one of the client's it follows from
// id, so that equal prompts of one call are sampled apart.
func (g *Gateway) request(id string, c *call, p *prompt) *pb.Request {
	params := proto.Clone(c.params).(*pb.SamplingParams)
	params.MaxTokens = p.maxTokens
	if params.Seed == nil {
		seed := seedOf(id)
		params.Seed = &seed
	}
	return &pb.Request{
		Id: id, Model: c.model.ID, Prompt: p.ids, Sampling: params, Tenant: c.tenant, CacheSalt: saltOf(c.tenant),
		GatewayId: g.NodeID, CreatedUnixMs: g.Now().UnixMilli(), Priority: c.priority, PatienceMs: c.patience.Milliseconds(),
	}
}

// saltOf keeps tenants apart in prefix caches. Requests without a tenant share.
func saltOf(tenant string) []byte {
	if tenant == "" {
		return nil
	}
	sum := sha256.Sum256([]byte("quire tenant " + tenant))
	return sum[:16]
}

// submit admits a live in a goroutine of its own, because it may have readers that came later and
// stay longer than the first. Prompts of one call go together, so that they share a log entry.
func (g *Gateway) submit(l *live) {
	g.run(l, func(ctx context.Context) { g.admit(ctx, l) })
}

// overtake is submit for a live that was found by its id.
func (g *Gateway) overtake(l *live) {
	g.run(l, func(ctx context.Context) { g.takeOver(ctx, l) })
}

// run does what admits a live.
func (g *Gateway) run(l *live, admit func(context.Context)) {
	ctx, cancel := context.WithTimeout(context.Background(), g.SubmitTimeout)
	l.mu.Lock()
	l.withdraw = cancel
	l.mu.Unlock()
	ok := g.spawn(func() {
		defer cancel()
		defer close(l.admitted)
		admit(ctx)
	})
	if !ok {
		cancel()
		l.fail(shuttingDown())
		close(l.admitted)
	}
}

// admit sends one request to the leader. One that is known there already is taken over.
func (g *Gateway) admit(ctx context.Context, l *live) {
	resp, err := ask(ctx, g.control, &pb.SubmitRequest{Request: l.request, Digest: l.digest}, pb.ControlClient.Submit)
	switch {
	case err != nil:
		e := fromControl(err)
		l.mu.Lock()
		if l.failure == nil { // even if a worker has run it to its end: that counts from the commit on
			l.end(e)
			l.uncertain = e.status == http.StatusServiceUnavailable || e.status == http.StatusInternalServerError
		}
		l.mu.Unlock()
	case resp.Duplicate:
		l.agree(resp.MaxTokens)
		g.takeOver(ctx, l)
	default:
		l.mu.Lock()
		if l.worker == "" {
			l.worker = resp.WorkerId
		}
		l.hear(g.Now())
		l.counted = true
		l.mu.Unlock()
		l.meters.admitted(l)
	}
}

// agree gives the request the max_tokens that it was admitted with, 0 if that is not known (any more).
func (l *live) agree(most int32) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if most > 0 && most != l.request.Sampling.GetMaxTokens() {
		l.request = proto.CloneOf(l.request)
		l.request.Sampling.MaxTokens = most
	}
}

// takeOver makes this gateway the one that a known request streams to, and brings the live up to what
// is known of it.
func (g *Gateway) takeOver(ctx context.Context, l *live) {
	r, err := ask(ctx, g.control, &pb.AdoptRequest{RequestId: l.id, GatewayId: g.NodeID, Tenant: l.tenant()}, pb.ControlClient.Adopt)
	switch {
	case err != nil:
		l.fail(fromControl(err))
		return
	case !r.Found:
		l.fail(forgotten(l.id))
		return
	}
	if r.FinishReason == pb.FinishReason_FINISH_REASON_UNSPECIFIED {
		l.meters.adopted.Inc()
	} else {
		l.meters.replayed.Inc()
	}
	l.mu.Lock()
	l.request = proto.CloneOf(l.request)
	l.request.CreatedUnixMs = r.Request.GetCreatedUnixMs()
	l.promptTokens = r.PromptTokens
	l.counted = r.FinishReason == pb.FinishReason_FINISH_REASON_UNSPECIFIED
	l.hear(g.Now())
	l.mu.Unlock()
	g.catchUp(ctx, l, r)
}

// await waits until all of an answer is admitted.
func (a *answer) await(ctx context.Context) *apiError {
	for _, l := range a.lives {
		select {
		case <-l.admitted:
		case <-ctx.Done():
			return gone()
		}
	}
	for _, l := range a.lives {
		l.mu.Lock()
		failure := l.failure
		l.mu.Unlock()
		if failure != nil {
			return a.told(failure)
		}
	}
	return nil
}

// close ends the answer's reading. What nobody reads any more is aborted, or kept for a while if its
// client may come back to it.
func (a *answer) close(ctx context.Context) {
	g := a.g
	var until time.Time
	if g.ResumeGrace > 0 && !g.stopping() {
		until = g.Now().Add(g.ResumeGrace)
	}
	var aborts sync.WaitGroup
	for _, l := range a.lives {
		d := g.lives.leave(l, &a.reader, until)
		if d.lingers {
			a.places -= len(l.choices) // the live keeps them
		}
		if d.retired {
			l.observe(g.Now())
		}
		if d.abandoned {
			aborts.Go(func() { g.abort(ctx, l, reasonGone) })
		}
	}
	aborts.Wait()
	g.release(a.places)
	a.places = 0
}

// expire ends a live whose client did not come back in time.
func (g *Gateway) expire(ctx context.Context, l *live, now time.Time) {
	d := g.lives.expire(l, now)
	if d.retired {
		g.release(len(l.choices))
		l.observe(now)
	}
	if d.abandoned {
		g.spawn(func() { g.abort(ctx, l, reasonGone) })
	}
}
