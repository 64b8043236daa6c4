package scheduler

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/roster"
	"github.com/quire-serve/quire/scheduler/check"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

// watcher is a gateway that listens to this leader.
type watcher struct {
	gateway string
	// models are its copies: digests by name.
	models map[string]string

	// known is what it was told of the workers, or is being told with news, the parts of which the rest
	// still goes out. Both belong to the call that sends.
	known *pb.RosterPosition
	news  []*pb.RosterNews

	mu sync.Mutex
	// changed: the workers have. greet: something is to be said, be it nothing.
	changed, greet bool
	ended          []*pb.Ended
	lost           []*pb.Lost
	adopted        []string
	owned          []string
	// unserved is nil where it is as it was.
	unserved *pb.Unserved
	// queued comes with the greeting.
	queued *pb.Queued
	ready  chan struct{}
	err    error
}

// owner is a gateway that watches, or that requests stream to.
type owner struct {
	watchers map[*watcher]struct{}
	requests map[string]*live
	// away is when the gateway was last known to watch, while it does not.
	away time.Time
	// told is when it was last told what it owns.
	told time.Time
}

func (o *owner) watches() bool { return o != nil && len(o.watchers) > 0 }

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

// tell adds news to what waits. A gateway that lets too much wait loses its stream.
func (w *watcher) tell(news *pb.WatchResponse) {
	w.update(func() {
		if len(w.ended)+len(w.lost)+len(w.adopted)+len(w.owned) >= newsWaiting {
			w.err = errSlowGateway
			return
		}
		w.ended = append(w.ended, news.GetEnded()...)
		w.lost = append(w.lost, news.GetLost()...)
		w.adopted = append(w.adopted, news.GetAdopted()...)
		w.owned = append(w.owned, news.GetOwned()...)
	})
}

// next is what to send now; nil for nothing. News come in pieces.
func (w *watcher) next(workers *roster.Roster) (*pb.WatchResponse, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err != nil {
		return nil, w.err
	}
	if w.changed && len(w.news) == 0 {
		w.changed = false
		if w.news = workers.Since(w.known); len(w.news) > 0 {
			w.known = w.news[len(w.news)-1].GetAt()
		}
	}
	if !w.greet && w.unserved == nil && len(w.news)+len(w.ended)+len(w.lost)+len(w.adopted)+len(w.owned) == 0 {
		return nil, nil
	}
	out := &pb.WatchResponse{Unserved: w.unserved, Queued: w.queued}
	if len(w.news) > 0 {
		out.Workers, w.news = w.news[0], w.news[1:]
	}
	out.Lost, w.lost = cutOff(w.lost)
	out.Adopted, w.adopted = cutOff(w.adopted)
	out.Ended, w.ended = cutOff(w.ended)
	out.Owned, w.owned = cutOff(w.owned)
	w.greet, w.unserved, w.queued = false, nil, nil
	return out, nil
}

// cutOff takes what fits in a message from the front of a list.
func cutOff[T any](list []T) (front, rest []T) {
	n := min(len(list), newsPerMessage)
	return list[:n:n], list[n:]
}

// Watch tells a gateway what changes among the workers, and what happens to its requests: they ended, lost
// their worker, or were adopted by another gateway. The first messages say what it does not know of the
// workers, and repeat what ended lately and what is lost now, so that a gateway which comes back misses
// nothing. One comes every second at least.
func (s *Scheduler) Watch(in *pb.WatchRequest, stream pb.Control_WatchServer) error {
	if len(in.GetGatewayId()) > maxIDBytes {
		return rpc.Invalid("gateway_id", "%d bytes; the limit is %d", len(in.GetGatewayId()), maxIDBytes)
	}
	l, err := s.leading(stream.SetTrailer)
	if err != nil {
		return err
	}
	if err := check.Models(in.GetModels()); err != nil {
		return err
	}
	w, err := l.watch(in)
	if err != nil {
		return err
	}
	defer l.unwatch(w)
	// A gateway that hears nothing for long looks for another leader.
	alive := time.NewTicker(watchInterval)
	defer alive.Stop()
	for {
		select {
		case <-stream.Context().Done():
			return status.FromContextError(stream.Context().Err()).Err()
		case <-alive.C:
			queued := l.queueNews()
			w.update(func() { w.greet, w.queued = true, queued })
		case <-w.ready:
		}
		for {
			news, err := w.next(l.roster)
			if errors.Is(err, errLeadershipLost) {
				if _, err = s.leading(stream.SetTrailer); err == nil {
					err = rpc.NotLeading("the gateway was watching")
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

// queueNews is what waits, by model.
func (l *leader) queueNews() *pb.Queued {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := &pb.Queued{}
	for model, requests := range l.batcher.Waiting() {
		out.Models = append(out.Models, &pb.QueuedModel{Name: model, Requests: int64(requests)})
	}
	return out
}

func (l *leader) watch(in *pb.WatchRequest) (*watcher, error) {
	gateway := in.GetGatewayId()
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-l.done:
		return nil, rpc.NotLeading("the gateway began to watch")
	default:
	}
	w := &watcher{gateway: gateway, models: map[string]string{}, known: in.GetKnown(), changed: true, greet: true, unserved: l.refusals(), ready: make(chan struct{}, 1)}
	for r := range l.s.store.View().EndedSince(l.s.timeMS() - endsRepeated.Milliseconds()) {
		if r.Request.GetGatewayId() == gateway {
			w.ended = append(w.ended, ended(r))
		}
	}
	o := l.owner(gateway, l.s.settings.now())
	for _, id := range slices.Sorted(maps.Keys(o.requests)) {
		if r := o.requests[id]; r.phase == phaseLost {
			w.lost = append(w.lost, r.lost())
		}
	}
	for _, m := range in.GetModels() {
		w.models[m.GetName()] = m.GetDigest()
	}
	o.watchers[w] = struct{}{}
	w.ready <- struct{}{}
	return w, nil
}

func ended(r *state.Record) *pb.Ended {
	return &pb.Ended{RequestId: r.Request.GetId(), FinishReason: r.FinishReason, Error: r.Error}
}

func (l *leader) unwatch(w *watcher) {
	l.mu.Lock()
	defer l.mu.Unlock()
	o := l.owners[w.gateway]
	delete(o.watchers, w)
	o.away = l.s.settings.now()
	l.tidyOwner(w.gateway)
}

// owner finds or enters a gateway. One that watches nothing and owns nothing is forgotten.
func (l *leader) owner(gateway string, now time.Time) *owner {
	o := l.owners[gateway]
	if o == nil {
		o = &owner{watchers: map[*watcher]struct{}{}, requests: map[string]*live{}, away: now}
		l.owners[gateway] = o
	}
	return o
}

func (l *leader) tidyOwner(gateway string) {
	if o := l.owners[gateway]; len(o.watchers)+len(o.requests) == 0 {
		delete(l.owners, gateway)
	}
}

// own and disown keep the list of what streams to a gateway.
func (l *leader) own(r *live, now time.Time) {
	l.owner(r.request.GetGatewayId(), now).requests[r.request.GetId()] = r
}

func (l *leader) disown(r *live) {
	gateway := r.request.GetGatewayId()
	delete(l.owners[gateway].requests, r.request.GetId())
	l.tidyOwner(gateway)
}

// tellOwned tells gateways now and then what they own, so that they abort what nobody reads there. The first
// time comes after a while: a client may come back to a gateway that has just started.
func (l *leader) tellOwned(now time.Time) {
	for gateway, o := range l.owners {
		if !o.watches() || len(o.requests) == 0 || now.Sub(o.told) < ownedInterval {
			continue
		}
		if o.told = now; len(o.requests) <= newsWaiting/2 {
			l.news(gateway, &pb.WatchResponse{Owned: slices.Sorted(maps.Keys(o.requests))})
		}
	}
}

// abortOrphans ends the requests of gateways that have not watched for OrphanGrace: nobody reads
// what they generate.
func (l *leader) abortOrphans(now time.Time) {
	for _, gateway := range slices.Sorted(maps.Keys(l.owners)) {
		o := l.owners[gateway]
		if o.watches() || now.Sub(o.away) < l.s.settings.OrphanGrace {
			continue
		}
		l.s.settings.Logger.Warn("a gateway is gone; its requests are aborted", "gateway", gateway, "requests", len(o.requests))
		// Gateways know by the first two words that the request may run again for whoever asks.
		reason := fmt.Sprintf("its gateway %q has not been heard from for %v", gateway, l.s.settings.OrphanGrace)
		o.away = now
		for _, id := range slices.Sorted(maps.Keys(o.requests)) {
			l.stop(o.requests[id], reason)
		}
	}
}

// tellWorkers has gateways hear what has changed in the roster.
func (l *leader) tellWorkers() {
	for _, o := range l.owners {
		for w := range o.watchers {
			w.update(func() { w.changed = true })
		}
	}
}

// news tells a gateway, if it watches. If not, it hears of ends and losses when it does; of an
// adoption it does not need to hear then, because its client is with the other gateway.
func (l *leader) news(gateway string, news *pb.WatchResponse) {
	if o := l.owners[gateway]; o != nil {
		for w := range o.watchers {
			w.tell(news)
		}
	}
}
