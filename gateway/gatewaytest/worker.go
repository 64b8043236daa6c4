package gatewaytest

import (
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

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
	m := &mark{sent: slices.Clone(r.first), ended: make([]bool, len(r.choices))}
	for i, n := range received {
		if i < len(m.sent) {
			m.sent[i] = max(m.sent[i], int(n))
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
		return status.Error(codes.InvalidArgument, "the first message must be a hello")
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
			if p := m.GetResume(); p != nil {
				w.resume(s, p)
			}
		}
	}()
	if err := stream.Send(&pb.AttachResponse{Stats: w.stats()}); err != nil {
		return err
	}
	for {
		events, ok := s.wait()
		if !ok {
			return status.Error(codes.Unavailable, "the stream was cut")
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
		if r.worker == w.id && r.gateway == s.gateway && (resumed || !r.delivered) {
			s.marks[id] = newMark(r, received[id])
		}
	}
	c.sessions[s] = true
	c.changed.Broadcast()
	return s
}

// resume sends again what comes after a point, if the request is this session's.
func (w *worker) resume(s *session, p *pb.ResumePoint) {
	c := w.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if r := c.runs[p.RequestId]; r != nil && r.worker == w.id && r.gateway == s.gateway {
		s.marks[p.RequestId] = newMark(r, p.Received)
		c.changed.Broadcast()
	}
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
	for !c.closed && !s.broken && (c.mute[s.worker] || !s.behind()) {
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
