package scheduler

import (
	"errors"
	"maps"
	"slices"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// watcher is a gateway that listens to this leader.
type watcher struct {
	gateway string

	mu      sync.Mutex
	workers []*pb.WorkerInfo
	changed bool
	ended   []*pb.Ended
	ready   chan struct{}
	err     error
}

var errSlowGateway = status.Error(codes.ResourceExhausted, "the gateway does not read its news; watch again")

func (w *watcher) update(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
	select {
	case w.ready <- struct{}{}:
	default:
	}
}

func (w *watcher) close(err error) {
	w.update(func() {
		if w.err == nil {
			w.err = err
		}
	})
}

func (w *watcher) tell(e *pb.Ended) {
	w.update(func() {
		if len(w.ended) >= endedWaiting {
			w.err = errSlowGateway
			return
		}
		w.ended = append(w.ended, e)
	})
}

// next is what to send now; nil for nothing. News come in pieces, each with the whole set of
// workers, because an absent set would mean that there are none.
func (w *watcher) next() (*pb.WatchResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return nil, w.err
	}
	if !w.changed && len(w.ended) == 0 {
		return nil, nil
	}
	n := min(len(w.ended), endedPerMessage)
	out := &pb.WatchResponse{Workers: w.workers, Ended: w.ended[:n:n]}
	w.ended = w.ended[n:]
	w.changed = false
	return out, nil
}

// Watch tells a gateway of workers and of requests that ended without a worker saying so. The first
// messages repeat what ended lately, so that a gateway which comes back misses nothing.
func (s *Scheduler) Watch(in *pb.WatchRequest, stream pb.Control_WatchServer) error {
	if len(in.GetGatewayId()) > maxIDBytes {
		return invalid("gateway_id", "%d bytes; the limit is %d", len(in.GetGatewayId()), maxIDBytes)
	}
	l, err := s.leading(stream.SetTrailer)
	if err != nil {
		return err
	}
	w, err := l.watch(in.GetGatewayId())
	if err != nil {
		return err
	}
	defer l.unwatch(w)
	for {
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-w.ready:
		}
		for {
			news, err := w.next()
			if errors.Is(err, errLeadershipLost) {
				if _, err = s.leading(stream.SetTrailer); err == nil {
					err = errNotLeading("the gateway was watching")
				}
			}
			if err != nil {
				return err
			}
			if news == nil {
				break
			}
			if err := stream.Send(news); err != nil {
				return err
			}
		}
	}
}

func (l *leader) watch(gateway string) (*watcher, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.done:
		return nil, errNotLeading("the gateway began to watch")
	default:
	}
	w := &watcher{gateway: gateway, workers: l.inSession(), changed: true, ready: make(chan struct{}, 1)}
	l.watchers[w] = struct{}{}
	for r := range l.s.store.View().Ended() {
		if r.Request.GetGatewayId() != gateway {
			continue
		}
		switch r.FinishReason {
		case pb.FinishReason_FINISH_REASON_ABORT, pb.FinishReason_FINISH_REASON_ERROR:
			w.ended = append(w.ended, &pb.Ended{RequestId: r.Request.GetId(), FinishReason: r.FinishReason, Error: r.Error})
		}
	}
	w.ready <- struct{}{}
	return w, nil
}

func (l *leader) unwatch(w *watcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.watchers, w)
}

// inSession lists the workers that gateways should be attached to: those in session, and those that
// still may come back to the session they had.
func (l *leader) inSession() []*pb.WorkerInfo {
	out := make([]*pb.WorkerInfo, 0, len(l.attached))
	for _, id := range slices.Sorted(maps.Keys(l.attached)) {
		out = append(out, l.workers[id])
	}
	return out
}

func (l *leader) workersChanged() {
	workers := l.inSession()
	for w := range l.watchers {
		w.update(func() { w.workers, w.changed = workers, true })
	}
}

// tell brings the news of an end to a gateway, if it watches. If not, it hears when it does.
func (l *leader) tell(gateway string, e *pb.Ended) {
	for w := range l.watchers {
		if w.gateway == gateway {
			w.tell(e)
		}
	}
}
