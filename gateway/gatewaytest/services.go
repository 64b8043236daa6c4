package gatewaytest

import (
	"context"
	"slices"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func grpcError(code codes.Code, message string) error { return status.Error(code, message) }

// QueueFull is the refusal of a full queue, with the wait that it asks for.
func QueueFull(after time.Duration) error {
	s := status.New(codes.ResourceExhausted, "the queue is full")
	if d, err := s.WithDetails(&errdetails.RetryInfo{RetryDelay: durationpb.New(after)}); err == nil {
		s = d
	}
	return s.Err()
}

// leader is the fake Control service.
type leader struct {
	pb.UnimplementedControlServer
	c *Cluster
}

func (l *leader) Submit(ctx context.Context, req *pb.SubmitRequest) (*pb.SubmitResponse, error) {
	c := l.c
	c.mu.Lock()
	resp, err := c.submit(req.Request)
	gate := c.gate
	c.mu.Unlock()
	if gate != nil && err == nil {
		select {
		case <-gate:
		case <-ctx.Done():
			return nil, status.FromContextError(ctx.Err()).Err()
		}
	}
	return resp, err
}

func (c *Cluster) submit(req *pb.Request) (*pb.SubmitResponse, error) {
	if c.refusal != nil {
		return nil, c.refusal
	}
	if r := c.runs[req.Id]; r != nil {
		return &pb.SubmitResponse{Term: 1, Index: r.index, Duplicate: true, WorkerId: r.worker, FinishReason: r.reason}, nil
	}
	live := 0
	for _, r := range c.runs {
		if !r.done {
			live++
		}
	}
	if live >= c.opts.MaxLive {
		return nil, QueueFull(1500 * time.Millisecond)
	}
	if len(c.workers) == 0 {
		return nil, grpcError(codes.Unavailable, "no worker is in session")
	}
	r := c.newRun(req, c.workers[len(c.order)%len(c.workers)].Id)
	c.runs[req.Id] = r
	c.order = append(c.order, req.Id)
	for s := range c.sessions {
		if s.worker == r.worker && s.gateway == req.GatewayId {
			s.marks[req.Id] = newMark(r, nil)
		}
	}
	c.changed.Broadcast()
	return &pb.SubmitResponse{Term: 1, Index: r.index, WorkerId: r.worker}, nil
}

func (l *leader) Abort(_ context.Context, req *pb.AbortRequest) (*pb.AbortResponse, error) {
	return &pb.AbortResponse{Found: l.c.abort(req)}, nil
}

func (c *Cluster) abort(req *pb.AbortRequest) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	r := c.runs[req.RequestId]
	if r == nil || r.done {
		return r != nil
	}
	r.end(pb.FinishReason_FINISH_REASON_ABORT, req.Reason)
	c.aborts = append(c.aborts, req.RequestId)
	c.changed.Broadcast()
	return true
}

func (l *leader) Watch(_ *pb.WatchRequest, stream grpc.ServerStreamingServer[pb.WatchResponse]) error {
	c := l.c
	stop := context.AfterFunc(stream.Context(), func() { c.mu.Lock(); c.changed.Broadcast(); c.mu.Unlock() })
	defer stop()
	shown, told := -1, 0
	for {
		c.mu.Lock()
		for shown == c.version && !c.closed && stream.Context().Err() == nil {
			c.changed.Wait()
		}
		if c.closed || stream.Context().Err() != nil {
			c.mu.Unlock()
			return grpcError(codes.Unavailable, "the fake leader is closing")
		}
		shown = c.version
		resp := &pb.WatchResponse{Workers: append([]*pb.WorkerInfo(nil), c.workers...), Ended: c.endings[told:]}
		told = len(c.endings)
		c.mu.Unlock()
		if err := stream.Send(resp); err != nil {
			return err
		}
	}
}

func (l *leader) Work(grpc.BidiStreamingServer[pb.WorkRequest, pb.WorkResponse]) error {
	return errNotFake
}

// worker is one fake Worker service.
type worker struct {
	pb.UnimplementedWorkerServer
	c  *Cluster
	id string
}

// session is one gateway's Attach stream.
type session struct {
	c       *Cluster
	worker  string
	gateway string
	marks   map[string]*mark
	broken  bool
}

// mark is what a session has sent of one request.
type mark struct {
	sent  []int
	ended []bool
}

func newMark(r *run, received []int32) *mark {
	m := &mark{sent: make([]int, len(r.choices)), ended: make([]bool, len(r.choices))}
	for i, n := range received {
		if i < len(m.sent) {
			m.sent[i] = int(n)
		}
	}
	return m
}

// behind reports whether there is output to pass on.
func (s *session) behind() bool {
	for id, m := range s.marks {
		for i, ch := range s.c.runs[id].choices {
			if m.sent[i] < len(ch.tokens) || ch.finish != pb.FinishReason_FINISH_REASON_UNSPECIFIED && !m.ended[i] {
				return true
			}
		}
	}
	return false
}

func (w *worker) Attach(stream grpc.BidiStreamingServer[pb.AttachRequest, pb.AttachResponse]) error {
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil {
		return grpcError(codes.InvalidArgument, "the first message must be a hello")
	}
	s := w.open(hello)
	defer w.shut(s)
	// The receiver ends with the stream, which ends when this method returns or the client goes.
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				w.c.mu.Lock()
				s.broken = true
				w.c.changed.Broadcast()
				w.c.mu.Unlock()
				return
			}
			if a := m.GetAbort(); a != nil {
				w.c.abort(a)
			}
		}
	}()
	if err := stream.Send(&pb.AttachResponse{Stats: w.stats()}); err != nil {
		return err
	}
	for {
		events, ok := s.wait()
		if !ok {
			return grpcError(codes.Unavailable, "the stream was cut")
		}
		if err := stream.Send(&pb.AttachResponse{Events: events, Stats: w.stats()}); err != nil {
			return err
		}
		w.c.mu.Lock()
		w.c.changed.Broadcast() // the step is passed on
		w.c.mu.Unlock()
	}
}

func (w *worker) open(hello *pb.AttachHello) *session {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	s := &session{c: c, worker: w.id, gateway: hello.GatewayId, marks: map[string]*mark{}}
	received := map[string][]int32{}
	for _, p := range hello.Resume {
		received[p.RequestId] = p.Received
	}
	for id, r := range c.runs {
		_, resumed := received[id]
		if r.worker == w.id && r.req.GatewayId == s.gateway && (resumed || !r.delivered) {
			s.marks[id] = newMark(r, received[id])
		}
	}
	c.sessions[s] = true
	c.changed.Broadcast()
	return s
}

func (w *worker) shut(s *session) {
	w.c.mu.Lock()
	delete(w.c.sessions, s)
	w.c.changed.Broadcast()
	w.c.mu.Unlock()
}

// wait blocks until there is output to pass on, and takes it, in order of admission.
func (s *session) wait() ([]*pb.TokenEvent, bool) {
	c := s.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed && !s.broken && !s.behind() {
		c.changed.Wait()
	}
	if c.closed || s.broken {
		return nil, false
	}
	var events []*pb.TokenEvent
	for _, id := range c.order {
		if m := s.marks[id]; m != nil {
			events = append(events, c.runs[id].events(m)...)
			if !slices.Contains(m.ended, false) {
				delete(s.marks, id)
			}
		}
	}
	return events, true
}

func (w *worker) stats() *pb.WorkerStats {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	st := &pb.WorkerStats{TotalBlocks: int32(c.opts.TotalBlocks), BlockTokens: blockTokens, Steps: int64(c.steps),
		Drafts: 3, DraftTokens: 7, AcceptedDraftTokens: []int64{2, 1}}
	used := 0
	for _, r := range c.runs {
		if r.worker != w.id {
			continue
		}
		st.PrefixQueryTokens += int64(len(r.req.Prompt))
		st.PrefixHitTokens += int64(len(r.req.Prompt) / blockTokens * blockTokens / 2)
		st.StepTokens += int64(len(r.req.Prompt))
		for _, ch := range r.choices {
			st.StepTokens += int64(len(ch.tokens))
		}
		if !r.done {
			st.Running++
			used += r.blocks()
		}
	}
	st.FreeBlocks = st.TotalBlocks - int32(used)
	return st
}
