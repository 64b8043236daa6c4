package worker

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials/insecure"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

const (
	// Reconnecting tries at the first of these intervals for about as long as an election takes, then
	// at intervals that double up to the last; half of each is random.
	firstBackoff = 50 * time.Millisecond
	lastBackoff  = time.Second
	quickTries   = 60
	// welcomeTimeout is how long a control-plane node may take to answer a hello.
	welcomeTimeout = 2 * time.Second
	// A leader that answers heartbeats and is silent for so many of their intervals, at least
	// leastSilence, is gone.
	silentHeartbeats = 8
	leastSilence     = 2 * time.Second
	// farewellTimeout is how long the last reports may take when the worker stops.
	farewellTimeout = time.Second
	// defaultHeartbeat and defaultCheckpoint are used if the leader names no interval.
	defaultHeartbeat  = 250 * time.Millisecond
	defaultCheckpoint = 100 * time.Millisecond
	// leaderTrailer names the leader's address in a follower's refusal.
	leaderTrailer = "quire-leader"
	// messageLimit bounds a message of dispatches: a full batch of long prompts.
	messageLimit = 64 << 20
)

var (
	errStale  = errors.New("the node's term is older than one already seen")
	errSilent = errors.New("the node is silent")
)

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
			conn.ResetConnectBackoff() // the pace is set here
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
		d := min(firstBackoff<<min(max(0, n-quickTries), 10), lastBackoff)
		n++
		t := time.NewTimer(d/2 + rand.N(d/2))
		select {
		case <-ctx.Done():
		case <-w.stopping:
			if w.outbox.settled() {
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
		return w.outbox.settled()
	default:
		return false
	}
}
