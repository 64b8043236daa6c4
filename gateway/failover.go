package gateway

import (
	"context"
	"strings"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// What keeps streams going when a worker, the leader or another gateway dies. News come from three
// sides, and none is waited for for ever:
//
//   - The leader says that a request is lost with its worker: what is here of it goes back to the
//     leader, which lets it go on elsewhere after that (recall).
//   - Output comes that does not follow what is here: it is dropped, and the leader asked.
//   - A request is silent: the leader is asked, now and then.
//
// The leader's answer has what the log knows of the output; what comes after that the request's worker
// is asked to send again.

const (
	// supervision is how often silent requests are looked for.
	supervision = 100 * time.Millisecond
	// A request is silent after the first of these while its worker's stream is up, the second while it
	// waits for its first worker, the third while its worker is gone or out of reach; the last is for one
	// of which the leader said that it has ended. Each doubles with every question that brings nothing,
	// up to silenceDoublings times.
	silenceAttached  = 3 * time.Second
	silenceQueued    = 5 * time.Second
	silenceDetached  = 500 * time.Millisecond
	silenceEnded     = 250 * time.Millisecond
	silenceDoublings = 4
	// A gap is asked after at once, then after firstGap, doubling, gapQuestions times in a row. Gaps
	// that are gapRest apart are not in a row.
	firstGap     = 20 * time.Millisecond
	gapQuestions = 10
	gapRest      = 10 * time.Second
	// askTimeout bounds a question to the leader, questions how many are asked at once.
	askTimeout = 2 * time.Second
	questions  = 64
	// recallTimeout bounds the answer to a loss; the leader goes on without it before that.
	recallTimeout = time.Second
	// recallBytes is about how large such an answer may be.
	recallBytes = 1 << 20
	// rerunsAllowed bounds how often a live has its request run again.
	rerunsAllowed = 3
	// never is longer than anybody waits.
	never = 24 * time.Hour
	// followEvery is how often the leader is asked for what the log has of a request that streams to
	// another gateway and has readers here too.
	followEvery = 250 * time.Millisecond
)

// inquiry is when the leader must be asked about a request.
type inquiry struct {
	heard  time.Time // the last news of the request
	asked  time.Time
	times  int // asked since it was heard
	asking bool
	ended  bool // the leader says so
	gap    bool // output is missing
	gaps   int  // questions for that in a row
	// claim: a reader has come to what was here. Another gateway may have adopted it since, and who came
	// last has it. moved: another gateway has adopted it, or had before it was claimed.
	claim, moved bool
	// follows: the request streams to another gateway; what the log has of it is good enough here.
	follows bool
}

// hear notes news of the request.
func (l *live) hear(now time.Time) {
	if l.inquiry.times > 0 {
		l.inspectNow() // The next question is not put off any more.
	}
	l.inquiry.heard, l.inquiry.times = now, 0
}

// next is when to ask about a request that may be silent for so long; never while it is being asked about.
func (q *inquiry) next(silence time.Duration) (at time.Time, ever bool) {
	switch {
	case q.asking:
		return time.Time{}, false
	case q.gap:
		return q.asked.Add(firstGap << min(q.gaps, 7)), true
	case q.claim || q.moved:
		return q.asked.Add(firstGap << min(q.times, 7)), true
	case q.follows:
		return q.asked.Add(followEvery), true
	case q.ended:
		silence = silenceEnded
	}
	since := q.heard
	if since.Before(q.asked) {
		since = q.asked
	}
	return since.Add(silence << min(q.times, silenceDoublings)), true
}

// begin notes that the question is being asked; claim says that the request is to be adopted with it.
func (q *inquiry) begin(now time.Time) (claim bool) {
	if q.gap {
		if now.Sub(q.asked) > gapRest {
			q.gaps = 0
		}
		q.gaps++
	}
	claim = q.claim
	q.asking, q.asked, q.gap, q.claim, q.moved, q.follows = true, now, false, false, false, false
	q.times++
	return claim
}

// lost handles the leader's news that requests are lost with their worker: output of their dispatches
// counts no more, and the leader gets what is here.
func (g *Gateway) lost(ctx context.Context, client pb.ControlClient, list []*pb.Lost) {
	answer := &pb.RecallRequest{GatewayId: g.NodeID}
	size := 0
	send := func() {
		try, cancel := context.WithTimeout(ctx, recallTimeout)
		defer cancel()
		if _, err := client.Recall(try, answer); err != nil {
			g.Log.Warn("the leader did not take what was here of lost requests; it goes on from its last checkpoint", "requests", len(answer.Requests), "error", err)
		}
		answer.Requests, size = nil, 0
	}
	for _, lost := range list {
		p := &pb.RequestProgress{RequestId: lost.RequestId, Term: lost.Term, Index: lost.Index}
		if l := g.lives.get(lost.RequestId); l != nil {
			p.Choices = l.recall(dispatch{lost.Term, lost.Index})
		}
		answer.Requests = append(answer.Requests, p)
		size += len(lost.RequestId) + 32
		for _, c := range p.Choices {
			size += 16 + 4*len(c.TokenIds)
		}
		if size >= recallBytes {
			send()
		}
	}
	if len(answer.Requests) > 0 {
		send()
	}
}

// recall fences the dispatch off and returns what is here of the output. Both happen at one moment:
// nothing that the leader does not get is shown.
func (l *live) recall(lost dispatch) []*pb.ChoiceProgress {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := dispatch{lost.term, lost.index + 1}
	if l.fence.before(next) {
		l.fence = next
		l.worker = ""
		l.inspectNow()
		l.moved = l.generated() > 0
	}
	var list []*pb.ChoiceProgress
	for i := range l.choices {
		c := &l.choices[i]
		p := &pb.ChoiceProgress{Choice: int32(i), TokenIds: c.tokens[:len(c.tokens):len(c.tokens)]}
		if ownEnd(c.finish) {
			p.FinishReason, p.StopReason = c.finish, c.stopped
		}
		if len(p.TokenIds) > 0 || p.FinishReason != 0 {
			list = append(list, p)
		}
	}
	return list
}

// ownEnd reports whether a choice or request with this reason stopped by itself.
func ownEnd(r pb.FinishReason) bool {
	return r == pb.FinishReason_FINISH_REASON_STOP || r == pb.FinishReason_FINISH_REASON_LENGTH
}

// unwanted reports whether a request was aborted because nobody was there to read it: its client was
// gone, or its gateway, as the leader says. Such a one runs again when somebody asks for it.
func unwanted(reason string) bool {
	return reason == reasonGone || strings.HasPrefix(reason, "its gateway ")
}

// ended handles a request that has ended. One that stopped by itself has its last tokens on the way
// and ends with them; if they do not come the leader has them.
func (g *Gateway) ended(e *pb.Ended) {
	l := g.lives.get(e.RequestId)
	if l == nil {
		return
	}
	switch {
	case e.FinishReason == pb.FinishReason_FINISH_REASON_ABORT && !unwanted(e.Error):
		l.fail(cancelled(e.Error))
	case e.FinishReason == pb.FinishReason_FINISH_REASON_ERROR || e.FinishReason == pb.FinishReason_FINISH_REASON_INVALID || e.FinishReason == pb.FinishReason_FINISH_REASON_DEADLINE ||
		e.FinishReason == pb.FinishReason_FINISH_REASON_UNSERVED:
		l.fail(failed(e.FinishReason, e.Error))
	default:
		l.mu.Lock()
		l.inquiry.ended = true
		l.hear(g.Now())
		l.inspectNow()
		l.mu.Unlock()
	}
}

// movedAway asks whose a request is that another gateway has adopted: it may be old news to a reader that
// came since.
func (g *Gateway) movedAway(id string) {
	if l := g.lives.get(id); l != nil {
		l.mu.Lock()
		l.inquiry.moved = true
		l.inspectNow()
		l.mu.Unlock()
		g.poke()
	}
}

// owned handles the leader's word of what streams to this gateway: what nobody reads here is aborted. An abort
// may have been lost, or an earlier process of this name may have left it behind; that one's clients have as
// long to come back as any.
func (g *Gateway) owned(ctx context.Context, ids []string) {
	if g.Now().Sub(g.started) < g.ResumeGrace {
		return
	}
	var strays []string
	for _, id := range ids {
		if g.lives.get(id) == nil {
			strays = append(strays, id)
		}
	}
	if len(strays) == 0 || !g.sweeping.CompareAndSwap(false, true) {
		return // The leader says it again.
	}
	swept := g.spawn(func() {
		defer g.sweeping.Store(false)
		for _, id := range strays {
			if g.lives.get(id) != nil {
				continue
			}
			try, cancel := context.WithTimeout(ctx, askTimeout)
			_, err := ask(try, g.control, &pb.AbortRequest{RequestId: id, Reason: reasonGone, GatewayId: g.NodeID}, pb.ControlClient.Abort)
			cancel()
			if err != nil {
				return
			}
		}
	})
	if !swept {
		g.sweeping.Store(false)
	}
}

// poke has the supervisor look at once.
func (g *Gateway) poke() {
	select {
	case g.look <- struct{}{}:
	default:
	}
}

// supervise asks after silent requests and ends those whose client did not come back, until ctx ends.
func (g *Gateway) supervise(ctx context.Context) {
	tick := time.NewTicker(supervision)
	defer tick.Stop()
	busy := make(chan struct{}, questions)
	var due []*live
	for {
		select {
		case <-ctx.Done():
			return
		case <-g.look:
		case <-tick.C:
		}
		now := g.Now()
		for _, m := range g.order {
			m.tell(g.refused(m), now)
		}
		due = g.lives.due(due[:0], now)
		for i, l := range due {
			due[i] = nil
			ask, lingered := l.inspect(now, g.attached)
			if lingered {
				g.expire(ctx, l, now)
			}
			if !ask {
				continue
			}
			select {
			case busy <- struct{}{}:
				claim := l.asking(now)
				g.spawn(func() {
					g.ask(ctx, l, claim)
					<-busy
				})
			default: // all are asking; the next look asks
			}
		}
	}
}

// due appends to dst the lives that must be inspected. Most are not, while their tokens come: none of these
// is locked.
func (t *table) due(dst []*live, now time.Time) []*live {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, l := range t.byID {
		if time.Duration(l.inspection.Load()) <= now.Sub(l.arrived) {
			dst = append(dst, l)
		}
	}
	return dst
}

// inspectNow has the supervisor inspect the live with its next look: something has happened that may bring
// forward what it waits for. The lock is held.
func (l *live) inspectNow() { l.inspection.Store(0) }

// detached has what runs on a worker inspected: its stream has broken, and silence means more.
func (t *table) detached(worker string) {
	for _, l := range t.all() {
		l.mu.Lock()
		if l.worker == worker {
			l.inspectNow()
		}
		l.mu.Unlock()
	}
}

// inspect reports whether the leader is to be asked now, and whether the client's time to come back is over.
// It notes when to inspect the live again: not later than the first of both can be, if nothing happens.
func (l *live) inspect(now time.Time, attached func(worker string) bool) (ask, lingered bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	next := now.Add(never)
	if !l.lingers.IsZero() {
		lingered = !now.Before(l.lingers)
		next = l.lingers
	}
	select {
	case <-l.admitted:
	default:
		l.inspectNow()
		return false, lingered
	}
	if !l.done {
		silence := silenceDetached
		switch {
		case l.worker != "" && attached(l.worker):
			silence = silenceAttached
		case l.worker == "" && l.fence == dispatch{}:
			silence = silenceQueued
		}
		if at, ever := l.inquiry.next(silence); ever {
			if ask = !now.Before(at); at.Before(next) {
				next = at
			}
		}
	}
	l.inspection.Store(int64(next.Sub(l.arrived)))
	return ask, lingered
}

// asking notes that the leader is being asked. It reports whether the request is claimed with that.
func (l *live) asking(now time.Time) (claim bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inquiry.begin(now)
}

// answered notes that the leader is not being asked any more. It reports whether there is a reason to ask
// again at once.
func (l *live) answered() (again bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.inquiry.asking = false
	l.inspectNow()
	return l.inquiry.claim || l.inquiry.moved
}

// ask brings a live up to what the leader knows, and claims it if a reader has come.
func (g *Gateway) ask(ctx context.Context, l *live, claim bool) {
	defer func() {
		if l.answered() {
			g.poke()
		}
	}()
	try, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	r, err := ask(try, g.control, &pb.AdoptRequest{RequestId: l.id, GatewayId: g.NodeID, IfMine: !claim, Tenant: l.tenant()}, pb.ControlClient.Adopt)
	now := g.Now()
	if err != nil {
		l.mu.Lock()
		silent, worker := now.Sub(l.inquiry.heard), l.worker
		l.inquiry.claim = l.inquiry.claim || claim
		l.mu.Unlock()
		if silent > g.RecoverTimeout && !g.attached(worker) {
			l.fail(unavailable("the request has been silent for %v, and the control plane does not answer; ask again under the same id", silent.Round(time.Second)))
		}
		return
	}
	l.mu.Lock()
	hopeless, claimed := l.inquiry.gaps > gapQuestions, l.inquiry.claim
	l.mu.Unlock()
	switch {
	case hopeless:
		l.fail(internal("output was lost: neither worker %s nor the control plane has all of it", r.WorkerId))
	case !r.Found:
		l.fail(internal("the control plane has forgotten the request"))
	case r.Request.GetGatewayId() != g.NodeID && r.FinishReason == pb.FinishReason_FINISH_REASON_UNSPECIFIED:
		if claimed {
			return
		}
		if news, can := l.follow(r, now); !can {
			l.fail(moved())
		} else if news {
			l.notify()
		}
	default:
		g.catchUp(try, l, r)
	}
}

// follow takes in what the log knows of a request that now streams to another gateway, whose client asked
// later: those who read here get its checkpoints and its end. It cannot be followed where the log does
// not have all that is wanted, and need not be where nobody reads it.
func (l *live) follow(r *pb.AdoptResponse, now time.Time) (news, can bool) {
	l.mu.Lock()
	can = len(l.readers) > 0 && !l.probabilities()
	l.mu.Unlock()
	if !can {
		return false, false
	}
	news, _ = l.learn(r, now)
	l.mu.Lock()
	l.inquiry.follows = true
	l.mu.Unlock()
	return news, true
}

// catchUp takes in the leader's answer and has the rest sent, or generated, again.
func (g *Gateway) catchUp(ctx context.Context, l *live, r *pb.AdoptResponse) {
	news, again := l.learn(r, g.Now())
	if again {
		g.rerun(ctx, l)
		return
	}
	if news {
		l.notify()
	}
	if a := g.workers.get(r.WorkerId); a != nil {
		if p := l.received(); p != nil {
			a.send(&pb.AttachRequest{Message: &pb.AttachRequest_Resume{Resume: p}})
		}
	}
}

// learn takes in what the leader knows. It reports whether that is news for readers, and whether the
// request must run again to have its output.
func (l *live) learn(r *pb.AdoptResponse, now time.Time) (news, again bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.done {
		return false, false
	}
	if at := (dispatch{r.Term, r.Index}); l.fence.before(at) {
		l.moved = l.moved || l.worker != "" && l.generated() > 0
		l.fence = at
	}
	if r.WorkerId != "" {
		l.worker = r.WorkerId
	}
	if !l.probabilities() {
		for i, o := range r.Outputs {
			if i < len(l.choices) && l.extend(&l.choices[i], o, now) {
				news = true
			}
		}
	}
	if news {
		l.hear(now)
	}
	switch r.FinishReason {
	case pb.FinishReason_FINISH_REASON_UNSPECIFIED:
		l.inquiry.ended = false
		return news, false
	case pb.FinishReason_FINISH_REASON_ERROR, pb.FinishReason_FINISH_REASON_INVALID, pb.FinishReason_FINISH_REASON_DEADLINE,
		pb.FinishReason_FINISH_REASON_UNSERVED:
		return l.end(failed(r.FinishReason, r.Error)), false
	case pb.FinishReason_FINISH_REASON_ABORT:
		if unwanted(r.Error) {
			return news, true // nobody was there then, and somebody is now
		}
		return l.end(cancelled(r.Error)), false
	}
	if !l.complete() {
		return news, true
	}
	if l.cached == 0 {
		l.cached = r.Usage.GetCachedTokens()
	}
	return l.end(nil), false
}

// extend appends what the log knows of a choice beyond what is here.
func (l *live) extend(c *choice, o *pb.Output, now time.Time) (news bool) {
	if c.finish != pb.FinishReason_FINISH_REASON_UNSPECIFIED || len(o.TokenIds) < len(c.tokens) {
		return false
	}
	if fresh := o.TokenIds[len(c.tokens):]; len(fresh) > 0 {
		c.tokens = append(c.tokens, fresh...)
		l.measure(c, nil, len(fresh), now)
		news = true
	}
	if ownEnd(o.FinishReason) {
		c.finish, c.stopped = o.FinishReason, o.StopReason
		news = true
	}
	return news
}

// rerun has an ended request run again, under the same id: its output is wanted and not kept, or is
// kept without the log-probabilities that are wanted.
func (g *Gateway) rerun(ctx context.Context, l *live) {
	l.mu.Lock()
	l.reruns++
	allowed := l.reruns <= rerunsAllowed && len(l.request.Prompt) > 0
	request, digest := l.request, l.digest
	l.inquiry.ended = false
	l.mu.Unlock()
	if !allowed {
		l.fail(forgotten(l.id))
		return
	}
	resp, err := ask(ctx, g.control, &pb.SubmitRequest{Request: request, Rerun: true, Digest: digest}, pb.ControlClient.Submit)
	if err != nil {
		l.fail(fromControl(err))
		return
	}
	l.meters.rerun.Inc()
	l.mu.Lock()
	l.worker = resp.WorkerId
	l.hear(g.Now())
	l.mu.Unlock()
}
