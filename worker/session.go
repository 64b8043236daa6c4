package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"google.golang.org/grpc"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/worker/engine"
)

// workStream is a session with the leader.
type workStream struct {
	grpc.BidiStreamingClient[pb.WorkRequest, pb.WorkResponse]
	obeyed   chan struct{} // capacity 1: a message of the leader was carried out
	ended    chan struct{} // closed when nothing more comes, because of err
	err      error
	sequence uint64
	// What the KV cache holds is asked for when the last answer was passed on.
	cache  chan engine.CacheNews
	asked  bool
	joined bool // the snapshot was asked for
}

// session runs one Work stream. It reports whether the node welcomed the worker and, if it is a
// follower that knows it, the leader's address.
func (w *Worker) session(ctx context.Context, client pb.ControlClient) (welcomed bool, leader string, err error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A node that does not answer is noticed in any state of the call.
	silence := time.AfterFunc(welcomeTimeout, func() { cancel(errSilent) })
	defer silence.Stop()
	defer func() {
		if errors.Is(context.Cause(ctx), errSilent) {
			err = errSilent
		}
	}()
	stream, err := client.Work(ctx)
	if err != nil {
		return false, "", err
	}
	s := &workStream{BidiStreamingClient: stream, obeyed: make(chan struct{}, 1), ended: make(chan struct{}), cache: make(chan engine.CacheNews, 1)}
	hello := &pb.Hello{Worker: w.info, Running: w.outbox.resync(time.Now()), Rebind: w.settings.Rebind}
	if err := s.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Hello{Hello: hello}}); err != nil {
		_, err = s.Recv() // the status says more than "EOF"
		return false, s.leader(), err
	}
	m, err := s.Recv()
	if err != nil {
		return false, s.leader(), err
	}
	silence.Stop()
	welcome := m.GetWelcome()
	switch {
	case welcome == nil:
		return false, "", fmt.Errorf("the node's first message is %T, not a welcome", m.GetMessage())
	case !w.observe(welcome.Term):
		return false, "", fmt.Errorf("%w: %d", errStale, welcome.Term)
	}
	w.log.Info("in session with the leader", slog.Uint64("term", welcome.Term))
	w.connected.Store(true)
	defer w.connected.Store(false)

	beat := interval(welcome.HeartbeatIntervalMs, defaultHeartbeat)
	go w.obey(s, silence, max(silentHeartbeats*beat, leastSilence))
	// The receiver ends with the stream: whoever leaves this function first cancels it and waits.
	defer func() {
		cancel(nil)
		<-s.ended
	}()
	err = w.report(ctx, s, beat, interval(welcome.CheckpointIntervalMs, defaultCheckpoint))
	select {
	case <-s.ended:
		return true, s.leader(), err
	default:
		return true, "", err
	}
}

func interval(ms int32, unset time.Duration) time.Duration {
	if ms <= 0 {
		return unset
	}
	return time.Duration(ms) * time.Millisecond
}

// leader is who leads, if the node said so when it ended the stream.
func (s *workStream) leader() string {
	return transport.Leader(s.Trailer())
}

// obey carries out what the leader says until the stream ends. Once the leader has answered a
// heartbeat, silence goes off if nothing comes for limit.
func (w *Worker) obey(s *workStream, silence *time.Timer, limit time.Duration) {
	defer close(s.ended)
	answers := false
	for {
		var m *pb.WorkResponse
		if m, s.err = s.Recv(); s.err != nil {
			return
		}
		if m.GetHeard() != nil {
			answers = true
		} else {
			w.handle(m)
			select {
			case s.obeyed <- struct{}{}:
			default:
			}
		}
		if answers {
			silence.Reset(limit)
		}
	}
}

// report tells the leader what it must know, until the stream or the worker ends.
func (w *Worker) report(ctx context.Context, s *workStream, beat, checkpoint time.Duration) error {
	beats, checkpoints := time.NewTicker(beat), time.NewTicker(checkpoint)
	defer beats.Stop()
	defer checkpoints.Stop()
	for {
		if err := w.tellEnds(s); err != nil {
			return err
		}
		if err := w.beat(s); err != nil {
			return err
		}
		for waiting := true; waiting; {
			select {
			case <-checkpoints.C:
				if err := w.tellProgress(s); err != nil {
					return err
				}
				w.askCache(s)
				continue
			case news := <-s.cache:
				if err := w.tellCache(s, news); err != nil {
					return err
				}
				continue
			case <-beats.C:
			case <-s.obeyed:
			case <-w.outbox.leader.wake:
			case <-s.ended:
				return s.err
			case <-w.stopping:
				if w.outbox.settled() {
					return w.farewell(s)
				}
			case <-ctx.Done():
				return ctx.Err()
			}
			waiting = false
		}
	}
}

// tellEnds says what ended.
func (w *Worker) tellEnds(s *workStream) error {
	for {
		f, p := w.outbox.finished(time.Now())
		if f == nil && p == nil {
			return nil
		}
		if f != nil {
			if err := s.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Finished{Finished: f}}); err != nil {
				return err
			}
		}
		if p != nil {
			if err := s.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Progress{Progress: p}}); err != nil {
				return err
			}
		}
	}
}

// tellProgress says what runs got since the last time.
func (w *Worker) tellProgress(s *workStream) error {
	for more := true; more; {
		var p *pb.Progress
		if p, more = w.outbox.checkpoint(); p != nil {
			if err := s.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Progress{Progress: p}}); err != nil {
				return err
			}
		}
	}
	return nil
}

// askCache asks the engine what its KV cache took up and lost, from the beginning the first time.
func (w *Worker) askCache(s *workStream) {
	if !s.asked {
		w.engine.AskCache(!s.joined, s.cache)
		s.asked, s.joined = true, true
	}
}

// tellCache passes an answer of the engine on.
func (w *Worker) tellCache(s *workStream, news engine.CacheNews) error {
	s.asked = false
	for events := news.Events; len(events) > 0; {
		size, n := 0, 0
		for n < len(events) && (n == 0 || size < newsBytes) {
			size += len(events[n].Hashes) + 32
			n++
		}
		if err := s.Send(&pb.WorkRequest{Message: &pb.WorkRequest_CacheEvents{CacheEvents: &pb.CacheEvents{Events: events[:n]}}}); err != nil {
			return err
		}
		events = events[n:]
	}
	if news.More {
		w.askCache(s)
	}
	return nil
}

func (w *Worker) beat(s *workStream) error {
	s.sequence++
	return s.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Heartbeat{Heartbeat: w.heartbeat(s.sequence)}})
}

// farewell ends the stream once the leader has read what was sent.
func (w *Worker) farewell(s *workStream) error {
	_ = s.CloseSend()
	select {
	case <-s.ended:
	case <-time.After(farewellTimeout):
	}
	return context.Canceled
}

func (w *Worker) heartbeat(sequence uint64) *pb.Heartbeat {
	// The index is read first: the load that is read after it includes that dispatch.
	index := w.index.Load()
	s := w.Stats()
	return &pb.Heartbeat{
		Sequence: sequence, DispatchIndex: index, Draining: w.draining.Load(),
		Running: int32(s.Running), Waiting: int32(s.Waiting), FreeBlocks: int32(s.FreeBlocks),
		PendingPrefillTokens: s.PendingPrefill, Devices: w.devices.latest(),
		HostBlocks: int32(s.Tiers.Pages), DiskBlocks: int32(s.Disk.Pages),
	}
}

// observe takes note of a leader's term; false means that a newer one has been seen.
func (w *Worker) observe(term uint64) bool {
	for {
		seen := w.term.Load()
		if term < seen {
			return false
		}
		if w.term.CompareAndSwap(seen, term) {
			return true
		}
	}
}

// handle does what the leader says.
func (w *Worker) handle(m *pb.WorkResponse) {
	switch m := m.GetMessage().(type) {
	case *pb.WorkResponse_Dispatch:
		d := m.Dispatch
		if !w.observe(d.Term) {
			w.log.Warn("refused a dispatch of an old leader", slog.Uint64("term", d.Term), slog.Uint64("newest", w.term.Load()))
			return
		}
		for _, r := range d.Requests {
			w.dispatch(r, d.Term, d.Index)
		}
		w.index.Store(max(w.index.Load(), d.Index))
	case *pb.WorkResponse_Revoke:
		if !w.observe(m.Revoke.Term) {
			w.log.Warn("refused a revocation of an old leader", slog.Uint64("term", m.Revoke.Term), slog.Uint64("newest", w.term.Load()))
			return
		}
		for _, id := range m.Revoke.RequestIds {
			w.outbox.revoke(id)
			w.engine.Abort(id, "revoked")
		}
	case *pb.WorkResponse_Redirect:
		if !w.observe(m.Redirect.Term) {
			w.log.Warn("refused a redirection of an old leader", slog.Uint64("term", m.Redirect.Term), slog.Uint64("newest", w.term.Load()))
			return
		}
		w.outbox.redirect(m.Redirect.RequestId, m.Redirect.GatewayId)
	case *pb.WorkResponse_Drain:
		if m.Drain.HandOver {
			w.handOver()
		}
		w.drain()
	}
}

// dispatch starts one request, unless it is here already.
func (w *Worker) dispatch(r *pb.Request, term, index uint64) {
	switch w.outbox.open(r, term, index) {
	case admitRunning, admitEnded:
		return
	case admitBusy:
		w.outbox.revoke(r.Id)
		w.engine.Abort(r.Id, "another run of it was dispatched")
		w.outbox.turnAway(r.Id, term, index)
		return
	}
	err := w.engine.Add(r)
	switch {
	case err == nil:
	case errors.Is(err, engine.ErrDraining), errors.Is(err, engine.ErrQueueFull), errors.Is(err, engine.ErrDuplicate):
		// Someone else, or this worker a little later, can run it.
		w.outbox.forget(r.Id)
		w.outbox.turnAway(r.Id, term, index)
	default:
		w.outbox.refuse(r.Id, err.Error(), time.Now())
	}
}
