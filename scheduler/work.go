package scheduler

import (
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/batch"
	"github.com/quire-serve/quire/scheduler/check"
	"github.com/quire-serve/quire/scheduler/prefix"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/transport"
)

// session is a worker's stream with this leader.
type session struct {
	info *pb.WorkerInfo
	// cache is the session's name in the prefix index; 0 is none.
	cache prefix.Worker
	// heard is when the worker last said something; missing are requests that it should run and
	// does not, with the time at which they go back into the queue. Both belong to leader.mu.
	heard    time.Time
	missing  map[string]time.Time
	draining bool
	// unhealthy is whether the newest heartbeat says so of a device; newest is that heartbeat, or nil.
	unhealthy bool
	newest    *pb.Heartbeat

	mu      sync.Mutex
	waiting []*pb.WorkResponse
	// limit is how many may wait.
	limit int
	ready chan struct{}
	err   error
}

func newSession(info *pb.WorkerInfo, now time.Time) *session {
	return &session{info: info, heard: now, missing: map[string]time.Time{}, limit: sessionMessages, ready: make(chan struct{}, 1)}
}

var errSlowWorker = errors.New("the worker does not read its messages")

// send queues a message. A worker that lets too many wait loses its session.
func (s *session) send(m *pb.WorkResponse) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	if len(s.waiting) >= s.limit {
		s.err = errSlowWorker
	} else {
		s.waiting = append(s.waiting, m)
	}
	s.wake()
}

// close ends the session once what waits is sent.
func (s *session) close(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
	s.wake()
}

func (s *session) wake() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}

func (s *session) drain() ([]*pb.WorkResponse, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := s.waiting
	s.waiting = nil
	return out, s.err
}

// Work holds a worker's session; see the service's definition.
func (s *Scheduler) Work(stream pb.Control_WorkServer) error {
	l, err := s.leading(stream.SetTrailer)
	if err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if err := check.Hello(hello); err != nil {
		return err
	}
	if err := s.checkReachable(stream.Context(), hello.GetWorker().GetAddress()); err != nil {
		return err
	}
	if err := l.register(stream.Context(), hello); err != nil {
		return err
	}
	session, err := l.attach(hello, s.settings.now())
	if err != nil {
		return err
	}
	// The receiver ends when this call returns, which cancels the stream; Close waits for it.
	go func() {
		defer s.streams.Done()
		session.close(l.receive(stream, session))
	}()
	err = transmit(stream.Context(), session, stream.Send)
	l.detach(session, errors.Is(err, io.EOF), s.settings.now())
	switch {
	case errors.Is(err, errLeadershipLost):
		_, notLeading := s.leading(stream.SetTrailer)
		if notLeading == nil {
			notLeading = rpc.NotLeading("the worker was in session")
		}
		return notLeading
	case errors.Is(err, io.EOF):
		return nil
	}
	return err
}

// transmit sends what the session has until it is closed.
func transmit(ctx context.Context, s *session, send func(*pb.WorkResponse) error) error {
	for {
		select {
		case <-ctx.Done():
			return status.FromContextError(ctx.Err()).Err()
		case <-s.ready:
		}
		messages, closed := s.drain()
		for _, m := range messages {
			if err := send(m); err != nil {
				return err
			}
		}
		if closed != nil {
			return closed
		}
	}
}

// receive takes in what the worker says until its stream ends.
func (l *leader) receive(stream pb.Control_WorkServer, s *session) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		if err := check.Worker(s.info, m); err != nil {
			return err
		}
		switch m := m.GetMessage().(type) {
		case *pb.WorkRequest_Heartbeat:
			l.heartbeat(s, m.Heartbeat, l.s.settings.now())
			s.send(&pb.WorkResponse{Message: &pb.WorkResponse_Heard{Heard: &pb.Heard{Sequence: m.Heartbeat.GetSequence()}}})
		case *pb.WorkRequest_Finished:
			l.finished(s, m.Finished, l.s.settings.now())
		case *pb.WorkRequest_Progress:
			l.progress(s, m.Progress, l.s.settings.now())
		case *pb.WorkRequest_CacheEvents:
			if err := l.cacheEvents(s, m.CacheEvents); err != nil {
				return err
			}
		case *pb.WorkRequest_Hello:
			return status.Error(codes.InvalidArgument, "hello: only the first message of a session is one")
		default:
			return status.Error(codes.InvalidArgument, "message: unknown to this version")
		}
	}
}

// checkReachable refuses an address by which a worker can't be reached where the gateways are: it would
// look ready, and every request would wait for it.
func (s *Scheduler) checkReachable(ctx context.Context, address string) error {
	if err := transport.CheckAddress(address); err != nil {
		return rpc.Invalid("hello.worker.address", "%v", err)
	}
	from := ""
	if p, ok := peer.FromContext(ctx); ok && p.Addr.Network() == "tcp" {
		from = p.Addr.String()
	}
	self := s.settings.ControlAdvertise
	switch {
	case transport.Unspecified(address):
		return rpc.Invalid("hello.worker.address", "%q is an address to listen on, not one to reach a worker by; start it with --advertise", address)
	case !transport.Loopback(address):
	case from != "" && !transport.Loopback(from):
		return rpc.Invalid("hello.worker.address", "%q means another machine here than at the worker, which connects from %s; start it with --listen or --advertise of an address that gateways reach", address, from)
	case self != "" && !transport.Loopback(self):
		return rpc.Invalid("hello.worker.address", "%q is reached from this machine alone, and the cluster has others; start the worker with --listen or --advertise of an address that all gateways reach", address)
	}
	return nil
}

// attach begins a session and reconciles: what the worker runs and the log gave it, goes on; what it
// runs and should not, is revoked; what it should run and does not, goes back into the queue unless
// the worker says at once that it had finished.
func (l *leader) attach(h *pb.Hello, now time.Time) (*session, error) {
	info := h.GetWorker()
	id := info.GetId()
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.done:
		return nil, rpc.NotLeading("the worker joined")
	default:
	}
	if err := l.taken(info, now); err != nil {
		return nil, err
	}
	if old := l.sessions[id]; old != nil {
		old.close(status.Error(codes.Aborted, "a newer session of this worker took over"))
		l.prefixes.Remove(old.cache)
	}
	s := newSession(info, now)
	l.index(s)
	l.s.streams.Add(1)
	l.sessions[id] = s
	delete(l.absent, id)
	s.send(&pb.WorkResponse{Message: &pb.WorkResponse_Welcome{Welcome: &pb.Welcome{
		Term: l.term, HeartbeatIntervalMs: int32(l.s.settings.HeartbeatInterval.Milliseconds()),
		CheckpointIntervalMs: int32(l.s.settings.CheckpointInterval.Milliseconds()),
	}}})

	should := l.onWorker[id]
	var revoke []string
	running := map[string]bool{}
	for _, request := range h.GetRunning() {
		running[request] = true
		if should[request] == nil {
			revoke = append(revoke, request)
		}
	}
	if len(revoke) > 0 {
		s.send(&pb.WorkResponse{Message: &pb.WorkResponse_Revoke{Revoke: &pb.Revoke{Term: l.term, RequestIds: revoke}}})
	}
	s.limit += len(should) // What follows is as many at most.
	for _, request := range slices.Sorted(maps.Keys(should)) {
		if !running[request] {
			s.missing[request] = now.Add(l.s.settings.ReconcileGrace)
		} else if should[request].redirected {
			l.redirect(should[request])
		}
	}
	l.batcher.Join(batch.Worker{
		ID: id, Model: info.GetModel(), Cache: s.cache, ContextTokens: int(info.GetContextLength()), BlockTokens: int(info.GetBlockTokens()),
		TotalBlocks: int(info.GetTotalBlocks()), MaxSequences: int(info.GetMaxSequences()), MaxBatchTokens: int(info.GetMaxBatchTokens()),
		TenantBlocks: tenantBlocks(info),
	}, len(running) == 0, l.clock.ms(now))
	for request := range should {
		if running[request] {
			l.batcher.Running(id, l.queued(should[request]), l.clock.ms(now))
		}
	}
	l.batcher.Cordon(id, l.s.store.View().Cordoned(info))
	l.workers[id] = info
	l.countModels()
	if l.roster.Put(info) {
		l.tellWorkers()
	}
	l.kick()
	return s, nil
}

func tenantBlocks(info *pb.WorkerInfo) map[string]int {
	var out map[string]int
	for _, t := range info.GetTenants() {
		if out == nil {
			out = map[string]int{}
		}
		out[t.GetTenant()] = int(t.GetBlocks())
	}
	return out
}

// taken refuses a worker whose id another one uses.
func (l *leader) taken(info *pb.WorkerInfo, now time.Time) error {
	old := l.sessions[info.GetId()]
	if old == nil || old.info.GetAddress() == info.GetAddress() || now.Sub(old.heard) >= 2*l.s.settings.HeartbeatInterval {
		return nil
	}
	return status.Errorf(codes.AlreadyExists, "hello.worker.id: %q is in session from %s", info.GetId(), old.info.GetAddress())
}

// detach ends a session. The worker keeps its requests for SessionGrace, unless it said goodbye by
// closing the stream.
func (l *leader) detach(s *session, goodbye bool, now time.Time) {
	id := s.info.GetId()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions[id] != s {
		return
	}
	delete(l.sessions, id)
	l.batcher.Leave(id)
	l.prefixes.Remove(s.cache)
	if goodbye {
		l.lose(id, now)
		return
	}
	l.absent[id] = now.Add(l.s.settings.SessionGrace)
	l.probe(s.info)
}

func (l *leader) heartbeat(s *session, h *pb.Heartbeat, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions[s.info.GetId()] != s {
		return
	}
	s.heard, s.newest = now, h
	load := batch.Load{
		Sequence: h.GetSequence(), Running: int(h.GetRunning()), Waiting: int(h.GetWaiting()), FreeBlocks: int(h.GetFreeBlocks()),
		PendingPrefill: h.GetPendingPrefillTokens(), DispatchIndex: h.GetDispatchIndex(), Derate: 1000,
	}
	// A worker steps at the pace of its slowest device, and needs all of them.
	for _, d := range h.GetDevices() {
		load.Unhealthy = load.Unhealthy || len(d.GetUnhealthy()) > 0
		load.Derate = max(1, min(load.Derate, int(d.GetDeratePermille())))
	}
	if load.Unhealthy && !s.unhealthy {
		l.s.settings.Logger.Warn("a worker's device is unhealthy; it gets nothing new", "worker", s.info.GetId(), "devices", h.GetDevices())
	}
	s.unhealthy = load.Unhealthy
	l.batcher.Report(s.info.GetId(), load, l.clock.ms(now))
	if h.GetDraining() && !s.draining {
		s.draining = true
		l.batcher.Drain(s.info.GetId())
		// What it has returned already, before it said so, need not wait for a moment in which it has room.
		for _, request := range slices.Sorted(maps.Keys(s.missing)) {
			if r := l.onWorker[s.info.GetId()][request]; r != nil && r.source == s {
				delete(s.missing, request)
				l.takeBack(r)
				l.requeue(r)
			}
		}
	}
	if l.batcher.Len() > 0 {
		l.kick()
	}
}

// finished takes in what a worker says of requests that it does not run any more. What is not about
// the newest dispatch of a request is ignored: that one runs somewhere.
func (l *leader) finished(s *session, f *pb.Finished, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions[s.info.GetId()] != s {
		return
	}
	s.heard = now
	for _, done := range f.GetRequests() {
		r := l.live[done.GetRequestId()]
		if r == nil || r.phase != phaseAssigned || r.worker != s.info.GetId() || done.GetIndex() != 0 && done.GetIndex() != r.dispatched.Index {
			continue
		}
		delete(s.missing, done.GetRequestId())
		l.learn(r, done.GetChoices())
		if done.GetReturned() {
			// The request is not to blame. A worker that is full for a moment gets a moment. The gateway
			// need not be asked: it has nothing that its worker has not.
			r.attempts = max(r.attempts, 1) - 1
			r.source = s
			if s.draining {
				l.takeBack(r)
				l.requeue(r)
			} else {
				s.missing[done.GetRequestId()] = now.Add(returnPause)
			}
			continue
		}
		l.finish(r, &pb.FinishCommand{
			FinishReason: done.GetFinishReason(), Error: done.GetError(), Usage: done.GetUsage(),
		})
	}
}

// housekeep looks for workers that fell silent or did not come back, and for deadlines.
func (l *leader) housekeep(now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range slices.Sorted(maps.Keys(l.sessions)) {
		s := l.sessions[id]
		if silent := now.Sub(s.heard); silent > l.s.settings.HeartbeatTimeout {
			s.close(status.Errorf(codes.DeadlineExceeded, "no heartbeat for %v; the limit is %v", silent, l.s.settings.HeartbeatTimeout))
			delete(l.sessions, id)
			l.batcher.Leave(id)
			l.prefixes.Remove(s.cache)
			l.absent[id] = now
			continue
		}
		for _, request := range slices.Sorted(maps.Keys(s.missing)) {
			if now.Before(s.missing[request]) {
				continue
			}
			delete(s.missing, request)
			if r := l.onWorker[id][request]; r != nil {
				l.recall(r, now)
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(l.absent)) {
		if !now.Before(l.absent[id]) {
			l.lose(id, now)
		}
	}
	l.expireRecalls(now)
	l.abortOrphans(now)
	l.tellOwned(now)
	l.endUnserved(now)
	if deadline, ok := l.batcher.NextDeadlineMS(); ok && deadline <= l.clock.ms(now) {
		l.kick()
	}
}
