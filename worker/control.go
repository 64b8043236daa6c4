package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine"
)

const (
	// Reconnecting waits between the first and the last of these, doubling, half of it random.
	firstBackoff = 20 * time.Millisecond
	lastBackoff  = 2 * time.Second
	// welcomeTimeout is how long a control-plane node may take to answer a hello.
	welcomeTimeout = 5 * time.Second
	// farewellTimeout is how long the last reports may take when the worker stops.
	farewellTimeout = time.Second
	// defaultHeartbeat is used if the leader names no interval.
	defaultHeartbeat = 250 * time.Millisecond
	// leaderTrailer names the leader's address in a follower's refusal.
	leaderTrailer = "quire-leader"
	// messageLimit bounds a message of dispatches: a full batch of long prompts.
	messageLimit = 64 << 20
)

var errStale = errors.New("the node's term is older than one already seen")

// control keeps a session with the leader until ctx ends: it tries the nodes in turn, or the one
// that a follower names.
func (w *Worker) control(ctx context.Context) {
	conns := map[string]*grpc.ClientConn{}
	defer func() {
		for _, c := range conns {
			_ = c.Close() // nothing is left to be said on it
		}
	}()
	next, at := "", 0
	for n := 0; ctx.Err() == nil; {
		address := next
		if address == "" {
			address = w.settings.Control[at%len(w.settings.Control)]
			at++
		}
		next = ""
		conn := conns[address]
		if conn == nil {
			var err error
			conn, err = grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()),
				grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(messageLimit)),
				grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.Config{BaseDelay: firstBackoff, Multiplier: 2, Jitter: 0.5, MaxDelay: lastBackoff}}))
			if err != nil {
				w.log.Error("control-plane address is not usable", slog.String("address", address), slog.Any("error", err))
			} else {
				conns[address] = conn
			}
		}
		if conn != nil {
			welcomed, leader, err := w.session(ctx, pb.NewControlClient(conn))
			if ctx.Err() != nil || w.isStopping() {
				return
			}
			if welcomed {
				n = 0
			}
			w.log.Warn("no session with the leader", slog.String("address", address), slog.String("leader", leader), slog.Any("error", err))
			if leader != "" && leader != address {
				next = leader
				// The first hint is followed at once; hints in a circle wait like failures.
				if n == 0 {
					n++
					continue
				}
			} else if welcomed {
				next = address // most likely it still leads
			}
		}
		d := min(firstBackoff<<min(n, 10), lastBackoff)
		n++
		t := time.NewTimer(d/2 + rand.N(d/2))
		select {
		case <-ctx.Done():
		case <-w.stopping:
			if w.reports.empty() {
				return
			}
			// One more try, within Run's patience, to say what ended.
			<-t.C
		case <-t.C:
		}
		t.Stop()
	}
}

func (w *Worker) isStopping() bool {
	select {
	case <-w.stopping:
		return w.reports.empty()
	default:
		return false
	}
}

// session runs one Work stream. It reports whether the node welcomed the worker and, if it is a
// follower that knows it, the leader's address.
func (w *Worker) session(ctx context.Context, client pb.ControlClient) (welcomed bool, leader string, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.Work(ctx)
	if err != nil {
		return false, "", err
	}
	hint := func() string {
		if v := stream.Trailer().Get(leaderTrailer); len(v) > 0 {
			return v[0]
		}
		return ""
	}
	ids := append(w.engine.Live(), w.reports.rewind(time.Now())...)
	hello := &pb.Hello{Worker: w.info, Running: ids}
	if err := stream.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Hello{Hello: hello}}); err != nil {
		_, err = stream.Recv() // the status says more than "EOF"
		return false, hint(), err
	}
	timer := time.AfterFunc(welcomeTimeout, cancel)
	m, err := stream.Recv()
	timer.Stop()
	if err != nil {
		return false, hint(), err
	}
	welcome := m.GetWelcome()
	switch {
	case welcome == nil:
		return false, "", fmt.Errorf("the node's first message is %T, not a welcome", m.GetMessage())
	case !w.observe(welcome.Term):
		return false, "", fmt.Errorf("%w: %d", errStale, welcome.Term)
	}
	interval := time.Duration(welcome.HeartbeatIntervalMs) * time.Millisecond
	if interval <= 0 {
		interval = defaultHeartbeat
	}
	w.log.Info("in session with the leader", slog.Uint64("term", welcome.Term))
	w.connected.Store(true)
	defer w.connected.Store(false)

	var broke error // why receiving ended; read after received is closed
	received := make(chan struct{})
	dispatched := make(chan struct{}, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				broke = err
				close(received)
				return
			}
			w.handle(m)
			select {
			case dispatched <- struct{}{}:
			default:
			}
		}
	}()
	// The receiver ends with the stream: whoever leaves this function first cancels it and waits.
	defer func() {
		cancel()
		<-received
	}()

	tick := time.NewTicker(interval)
	defer tick.Stop()
	sequence := uint64(0)
	for {
		for {
			batch := w.reports.take(time.Now())
			if len(batch) == 0 {
				break
			}
			if err := stream.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Finished{Finished: &pb.Finished{Requests: batch}}}); err != nil {
				return true, "", err
			}
		}
		sequence++
		if err := stream.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Heartbeat{Heartbeat: w.heartbeat(sequence)}}); err != nil {
			return true, "", err
		}
		select {
		case <-tick.C:
		case <-dispatched:
		case <-w.reports.wake:
		case <-received:
			return true, hint(), broke
		case <-w.stopping:
			if !w.reports.empty() {
				continue
			}
			// Let the leader read what was sent before the stream goes.
			_ = stream.CloseSend()
			select {
			case <-received:
			case <-time.After(farewellTimeout):
			}
			return true, "", context.Canceled
		case <-ctx.Done():
			return true, "", ctx.Err()
		}
	}
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
	case *pb.WorkResponse_Drain:
		w.drain()
	}
}

// dispatch starts one request, unless it is here already.
func (w *Worker) dispatch(r *pb.Request, term, index uint64) {
	returned := &pb.FinishedRequest{RequestId: r.Id, Returned: true, Term: term, Index: index}
	switch w.outbox.open(r, term, index) {
	case admitRunning:
		return
	case admitEnded:
		w.reports.add(w.outbox.report(r.Id))
		return
	}
	err := w.engine.Add(r)
	switch {
	case err == nil:
	case errors.Is(err, engine.ErrDraining), errors.Is(err, engine.ErrQueueFull), errors.Is(err, engine.ErrDuplicate):
		// A duplicate here is a revoked run that has not ended yet. Someone else, or this worker a
		// little later, can run it.
		w.outbox.forget(r.Id)
		w.reports.add(returned)
	default:
		w.outbox.refuse(r.Id, err.Error(), time.Now())
		w.reports.add(w.outbox.report(r.Id))
	}
}
