package worker

import (
	"context"
	"errors"
	"log/slog"
	"strings"
	"time"

	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
)

const (
	// manyTries is as good as a count of failures for a pause of its greatest length.
	manyTries = 16
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
)

var (
	errStale  = errors.New("the node's term is older than one already seen")
	errSilent = errors.New("the node is silent")
)

// control keeps a session with the leader until ctx ends: it tries the nodes in turn, or the one
// that a follower names.
func (w *Worker) control(ctx context.Context) {
	nodes := newNodes(w.settings.Control, w.settings.Certificates)
	defer nodes.close()
	said := complaints{}
	for n := 0; ctx.Err() == nil; {
		address := nodes.next(time.Now())
		conn, err := nodes.dial(address)
		if err != nil {
			w.log.Error("control-plane address is not usable", slog.String("address", address), slog.Any("error", err))
		} else {
			welcomed, leader, err := w.session(ctx, pb.NewControlClient(conn))
			if ctx.Err() != nil || w.isStopping() {
				return
			}
			if welcomed {
				n = 0
			}
			why := refusal(err)
			if welcomed {
				clear(said)
			}
			switch fault := transport.Explain(address, err); {
			case fault == nil || !said.fresh(fault):
			case why != "":
				w.log.Error("the leader does not let this worker in; it goes on asking", slog.String("address", address), slog.String("reason", why))
			case transport.IsMistake(fault):
				w.log.Error("no session with the leader; it goes on asking", slog.Any("reason", fault))
			default:
				w.log.Warn("no session with the leader; it goes on asking", slog.Any("reason", fault), slog.String("leader", leader))
			}
			now := time.Now()
			nodes.heard(address, !errors.Is(err, errSilent), now)
			switch {
			case leader != "" && leader != address:
				// The first hint is followed at once; hints in a circle wait like failures.
				if nodes.suggest(leader, now) && n == 0 {
					n++
					continue
				}
			case welcomed:
				nodes.suggest(address, now) // most likely it still leads
			case why != "":
				n = max(n, manyTries) // nothing changes soon
				nodes.suggest(address, now)
			}
		}
		t := time.NewTimer(transport.ToLeader.Pause(n))
		n++
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

// complaints are what was said in the log since there was a session: the same is not said again, however
// often it is tried.
type complaints map[string]bool

// mostComplaints bounds them.
const mostComplaints = 32

// fresh reports whether err is to be said.
func (c complaints) fresh(err error) bool {
	if c[err.Error()] || len(c) >= mostComplaints {
		return false
	}
	c[err.Error()] = true
	return true
}

// refusal is what the leader has against the worker's hello; empty if that is not how the session ended.
func refusal(err error) string {
	if why := status.Convert(err).Message(); strings.HasPrefix(why, "hello.") {
		return why
	}
	return ""
}

func (w *Worker) isStopping() bool {
	select {
	case <-w.stopping:
		return w.outbox.settled()
	default:
		return false
	}
}
