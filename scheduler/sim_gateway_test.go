package scheduler

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// simGateway is a gateway without a front door: it owns streams, follows the leader's news, attaches
// to workers, and can be killed.
type simGateway struct {
	w    *world
	id   string
	done sync.WaitGroup

	mu     sync.Mutex
	ctx    context.Context
	cancel context.CancelFunc
	lives  map[string]*simLive
	// sessions numbers the sessions with workers; those of an older epoch begin anew.
	sessions, epoch int
}

// simLive is a stream that the gateway owns.
type simLive struct {
	request *pb.Request
	choices []simChoice
	// Output of dispatches before this one counts no more.
	term, index uint64
	repairing   bool
	// heard is when the last tokens came, gap the longest time between two.
	heard time.Time
	gap   time.Duration
	ended bool
	err   error
	over  chan struct{}
}

type simChoice struct {
	tokens []int32
	finish pb.FinishReason
}

var (
	errAdopted = errors.New("another gateway has it")
	errDead    = errors.New("the gateway is dead")
)

func (g *simGateway) start() {
	g.done.Wait()
	g.mu.Lock()
	g.ctx, g.cancel = context.WithCancel(g.w.ctx)
	g.lives = map[string]*simLive{}
	ctx := g.ctx
	g.mu.Unlock()
	g.done.Go(func() { g.watch(ctx) })
	for _, k := range g.w.workers {
		g.done.Go(func() { g.attach(ctx, k) })
	}
}

func (g *simGateway) kill() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.cancel()
	for id, l := range g.lives {
		g.end(id, l, errDead)
	}
}

func (g *simGateway) isAlive() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.ctx.Err() == nil
}

// newsStream takes a leader's news to the gateway.
type newsStream struct {
	grpc.ServerStream
	ctx  context.Context
	send func(*pb.WatchResponse) error
}

func (s *newsStream) Context() context.Context       { return s.ctx }
func (s *newsStream) SetTrailer(metadata.MD)         {}
func (s *newsStream) Send(m *pb.WatchResponse) error { return s.send(m) }

// watch follows whoever leads.
func (g *simGateway) watch(ctx context.Context) {
	for pause(ctx, simStep) {
		n := g.w.leader()
		if n == nil || !g.w.linked(g.id, n.id) {
			continue
		}
		s := n.scheduler()
		if s == nil {
			continue
		}
		// A cut network ends the stream, as keepalives do.
		watching, cancel := context.WithCancel(ctx)
		var guard sync.WaitGroup
		guard.Go(func() {
			for pause(watching, 200*time.Millisecond) {
				if !g.w.linked(g.id, n.id) {
					cancel()
				}
			}
		})
		_ = s.Watch(&pb.WatchRequest{GatewayId: g.id}, &newsStream{ctx: watching, send: func(m *pb.WatchResponse) error {
			if !g.w.travel() || !g.w.linked(g.id, n.id) {
				return errCut
			}
			g.hear(ctx, m)
			return nil
		}}) // Whatever ended it, the gateway watches again.
		cancel()
		guard.Wait()
	}
}

func (g *simGateway) hear(ctx context.Context, m *pb.WatchResponse) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, id := range m.GetAdopted() {
		if l := g.lives[id]; l != nil {
			// The news may be older than a stream that has come back.
			g.repair(ctx, id, l, 0)
		}
	}
	answer := &pb.RecallRequest{GatewayId: g.id}
	for _, lost := range m.GetLost() {
		have := &pb.RequestProgress{RequestId: lost.GetRequestId(), Term: lost.GetTerm(), Index: lost.GetIndex()}
		if l := g.lives[lost.GetRequestId()]; l != nil {
			if lost.GetTerm() > l.term || lost.GetTerm() == l.term && lost.GetIndex() >= l.index {
				l.term, l.index = lost.GetTerm(), lost.GetIndex()+1
			}
			for c := range l.choices {
				have.Choices = append(have.Choices, &pb.ChoiceProgress{
					Choice: int32(c), TokenIds: slices.Clone(l.choices[c].tokens), FinishReason: l.choices[c].finish,
				})
			}
		}
		answer.Requests = append(answer.Requests, have)
	}
	if len(answer.GetRequests()) > 0 {
		g.done.Go(func() {
			_ = g.w.call(ctx, g.id, func(ctx context.Context, s *Scheduler) error {
				_, err := s.Recall(ctx, answer)
				return err
			}) // The leader does not wait for long.
		})
	}
	for _, e := range m.GetEnded() {
		if l := g.lives[e.GetRequestId()]; l != nil && !l.ended {
			g.repair(ctx, e.GetRequestId(), l, 100*time.Millisecond)
		}
	}
}

// repair asks the log for what the stream lacks, after a while in which it may come by itself; g.mu
// is held.
func (g *simGateway) repair(ctx context.Context, id string, l *simLive, after time.Duration) {
	if l.repairing || l.ended {
		return
	}
	l.repairing = true
	g.done.Go(func() {
		pause(ctx, after)
		var answer *pb.AdoptResponse
		err := g.w.insist(ctx, g.id, func(ctx context.Context, s *Scheduler) (err error) {
			answer, err = s.Adopt(ctx, &pb.AdoptRequest{RequestId: id, GatewayId: g.id, Tenant: l.request.GetTenant(), IfMine: true})
			return err
		})
		g.mu.Lock()
		defer g.mu.Unlock()
		l.repairing = false
		if err == nil && g.lives[id] == l && !l.ended {
			g.merge(ctx, id, l, answer)
		}
	})
}

// merge takes in what the log knows; g.mu is held.
func (g *simGateway) merge(ctx context.Context, id string, l *simLive, a *pb.AdoptResponse) {
	switch {
	case !a.GetFound():
		g.end(id, l, status.Error(codes.NotFound, "the request is unknown"))
		return
	case a.GetRequest().GetGatewayId() != g.id:
		g.end(id, l, errAdopted)
		return
	case a.GetFinishReason() == pb.FinishReason_FINISH_REASON_ERROR, a.GetFinishReason() == pb.FinishReason_FINISH_REASON_ABORT:
		g.end(id, l, status.Error(codes.Internal, a.GetError()))
		return
	}
	if a.GetTerm() > l.term || a.GetTerm() == l.term && a.GetIndex() > l.index {
		l.term, l.index = a.GetTerm(), a.GetIndex()
	}
	probabilities := l.request.GetSampling().Logprobs != nil // Only workers can bring them.
	if !probabilities {
		for c, o := range a.GetOutputs() {
			g.add(l, c, 0, o.GetTokenIds(), o.GetFinishReason())
		}
	}
	g.epoch++ // What a worker sends again begins after what is known now.
	if !g.settle(id, l) && a.GetFinishReason() != 0 && (probabilities || len(a.GetOutputs()) == 0) {
		g.done.Go(func() { // Its end is known, its output is not: it runs again.
			_ = g.w.insist(ctx, g.id, func(ctx context.Context, s *Scheduler) error {
				_, err := s.Submit(ctx, &pb.SubmitRequest{Request: l.request, Rerun: true})
				return err
			})
		})
	}
}

// add appends what follows, and says whether there is a gap before it; g.mu is held.
func (g *simGateway) add(l *simLive, choice, first int, tokens []int32, finish pb.FinishReason) (gap bool) {
	c := &l.choices[choice]
	known := len(c.tokens) - first
	if known < 0 {
		return true
	}
	if known < len(tokens) {
		if now := time.Now(); l.heard.IsZero() {
			l.heard = now
		} else {
			l.gap, l.heard = max(l.gap, now.Sub(l.heard)), now
		}
		c.tokens = append(c.tokens, tokens[known:]...)
	}
	if c.finish == 0 {
		c.finish = finish
	}
	return false
}

// settle ends a stream that has everything; g.mu is held.
func (g *simGateway) settle(id string, l *simLive) bool {
	if slices.ContainsFunc(l.choices, func(c simChoice) bool { return c.finish == 0 }) {
		return false
	}
	g.end(id, l, nil)
	return true
}

func (g *simGateway) end(id string, l *simLive, err error) {
	if l.ended {
		return
	}
	l.ended, l.err = true, err
	if g.lives[id] == l {
		delete(g.lives, id)
	}
	close(l.over)
}

// attach takes in what a worker sends.
func (g *simGateway) attach(ctx context.Context, k *simWorker) {
	session, epoch := 0, 0
	for pause(ctx, simStep) {
		g.mu.Lock()
		if session == 0 || epoch != g.epoch {
			g.sessions++
			session, epoch = g.sessions, g.epoch
		}
		g.mu.Unlock()
		if !g.w.linked(g.id, k.info.GetId()) {
			session = 0
			continue
		}
		events := k.collect(g.id, session, func(id string) (out []int) {
			g.mu.Lock()
			defer g.mu.Unlock()
			if l := g.lives[id]; l != nil {
				for c := range l.choices {
					out = append(out, len(l.choices[c].tokens))
				}
			}
			return out
		})
		if len(events) == 0 {
			continue
		}
		if !g.w.travel() || !g.w.linked(g.id, k.info.GetId()) {
			session = 0 // They are lost with the session.
			continue
		}
		g.mu.Lock()
		for _, e := range events {
			l := g.lives[e.GetRequestId()]
			if l == nil || l.ended || e.GetTerm() < l.term || e.GetTerm() == l.term && e.GetIndex() < l.index {
				continue
			}
			l.term, l.index = e.GetTerm(), e.GetIndex()
			if g.add(l, int(e.GetChoice()), int(e.GetFirst()), e.GetTokenIds(), e.GetFinishReason()) {
				g.repair(ctx, e.GetRequestId(), l, 0)
			} else {
				g.settle(e.GetRequestId(), l)
			}
		}
		g.mu.Unlock()
	}
}

// open makes the gateway own a request, new or known, and returns its stream.
func (g *simGateway) open(r *pb.Request) (*simLive, error) {
	g.mu.Lock()
	ctx := g.ctx
	if ctx.Err() != nil {
		g.mu.Unlock()
		return nil, errDead
	}
	l := &simLive{request: r, choices: make([]simChoice, max(1, r.GetSampling().GetN())), over: make(chan struct{})}
	if old := g.lives[r.GetId()]; old != nil {
		g.end(r.GetId(), old, errAdopted)
	}
	g.lives[r.GetId()] = l
	g.mu.Unlock()
	err := g.take(ctx, l)
	if err != nil {
		g.mu.Lock()
		g.end(r.GetId(), l, err)
		g.mu.Unlock()
		return nil, err
	}
	return l, nil
}

func (g *simGateway) take(ctx context.Context, l *simLive) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	var admitted *pb.SubmitResponse
	err := g.w.insist(ctx, g.id, func(ctx context.Context, s *Scheduler) (err error) {
		admitted, err = s.Submit(ctx, &pb.SubmitRequest{Request: l.request})
		return err
	})
	if err != nil || !admitted.GetDuplicate() {
		return err
	}
	var answer *pb.AdoptResponse
	err = g.w.insist(ctx, g.id, func(ctx context.Context, s *Scheduler) (err error) {
		answer, err = s.Adopt(ctx, &pb.AdoptRequest{RequestId: l.request.GetId(), GatewayId: g.id, Tenant: l.request.GetTenant()})
		return err
	})
	if err != nil {
		return err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	if !l.ended {
		g.merge(g.ctx, l.request.GetId(), l, answer)
	}
	return nil
}

// read is what a client has of a stream by now.
func (g *simGateway) read(l *simLive) [][]int32 {
	g.mu.Lock()
	defer g.mu.Unlock()
	var out [][]int32
	for _, c := range l.choices {
		out = append(out, slices.Clone(c.tokens))
	}
	return out
}
