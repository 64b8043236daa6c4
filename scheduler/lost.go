package scheduler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"syscall"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/check"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

// recall is a request that waits for its gateway to say what it has of the output.
type recall struct {
	request    *live
	dispatched state.Position
	until      time.Time
}

// lose declares a worker gone: its requests go elsewhere.
func (l *leader) lose(id string, now time.Time) {
	requests := slices.Sorted(maps.Keys(l.onWorker[id]))
	l.s.settings.Logger.Info("a worker is gone", "worker", id, "requests", len(requests))
	delete(l.absent, id)
	for _, request := range requests {
		l.recall(l.onWorker[id][request], now)
	}
	if l.workers[id] != nil {
		delete(l.workers, id)
		l.countModels()
		l.workerNews = append(l.workerNews, &registration{command: &pb.WorkerCommand{Worker: &pb.WorkerInfo{Id: id}, Left: true}})
		l.kick()
	}
	if l.roster.Remove(id) {
		l.tellWorkers()
	}
}

// recall takes a request from a worker that lost it. The gateway often has a few tokens that the log
// has not; it is told, and asked for them. The request goes on when the answer is there, and after
// RecallGrace without one.
func (l *leader) recall(r *live, now time.Time) {
	l.takeBack(r)
	if !l.owners[r.request.GetGatewayId()].watches() {
		l.requeue(r)
		return
	}
	r.phase = phaseLost
	l.recalls = append(l.recalls, recall{r, r.dispatched, now.Add(l.s.settings.RecallGrace)})
	l.news(r.request.GetGatewayId(), &pb.WatchResponse{Lost: []*pb.Lost{r.lost()}})
}

func (r *live) lost() *pb.Lost {
	return &pb.Lost{RequestId: r.request.GetId(), Term: r.dispatched.Term, Index: r.dispatched.Index}
}

// takeBack undoes a dispatch.
func (l *leader) takeBack(r *live) {
	l.batcher.Forget(r.worker, r.request.GetId())
	l.displace(r)
}

// requeue brings a request that was taken back from a worker into the queue, or ends it if workers were
// lost with it too often without a new token.
func (l *leader) requeue(r *live) {
	r.phase = phaseReturned
	if r.attempts >= maxAttempts {
		l.giveUp(r, reasonLost, &pb.FinishCommand{
			FinishReason: pb.FinishReason_FINISH_REASON_ERROR,
			Error:        fmt.Sprintf("the request was lost with its worker %d times and is not tried again", r.attempts),
		})
		return
	}
	l.returns = append(l.returns, r)
	l.kick()
}

// Recall takes a gateway's answer to WatchResponse.lost; see the service's definition.
func (s *Scheduler) Recall(ctx context.Context, in *pb.RecallRequest) (*pb.RecallResponse, error) {
	if err := check.Recall(in); err != nil {
		return nil, err
	}
	l, err := s.leading(rpc.Trailer(ctx))
	if err != nil {
		return nil, err
	}
	l.recalled(in)
	return &pb.RecallResponse{}, nil
}

func (l *leader) recalled(in *pb.RecallRequest) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, have := range in.GetRequests() {
		r := l.live[have.GetRequestId()]
		if r == nil || r.phase != phaseLost || r.request.GetGatewayId() != in.GetGatewayId() ||
			r.dispatched != (state.Position{Term: have.GetTerm(), Index: have.GetIndex()}) {
			continue
		}
		l.learn(r, have.GetChoices())
		l.requeue(r)
	}
}

// expireRecalls lets requests go on whose gateways did not answer in time.
func (l *leader) expireRecalls(now time.Time) {
	for len(l.recalls) > 0 && !now.Before(l.recalls[0].until) {
		waits := l.recalls[0]
		l.recalls = l.recalls[1:]
		if waits.request.phase == phaseLost && waits.request.dispatched == waits.dispatched {
			l.requeue(waits.request)
		}
	}
}

const (
	// probeTimeout is how long a probe waits for an answer, probePause the time between two.
	probeTimeout = 250 * time.Millisecond
	probePause   = 50 * time.Millisecond
)

// probe asks the host of an absent worker for its port until the worker is back or lost. A refused
// connection means that the process is gone, which need not wait for the grace to pass; silence means
// nothing. The caller holds the lock.
func (l *leader) probe(worker *pb.WorkerInfo) {
	if l.ctx.Err() != nil {
		return
	}
	l.owned.Go(func() {
		pause := time.NewTicker(probePause)
		defer pause.Stop()
		for l.isAbsent(worker.GetId()) {
			if l.refused(worker.GetAddress()) {
				l.mu.Lock()
				if _, absent := l.absent[worker.GetId()]; absent {
					l.lose(worker.GetId(), l.s.settings.now())
				}
				l.mu.Unlock()
				return
			}
			select {
			case <-l.ctx.Done():
				return
			case <-pause.C:
			}
		}
	})
}

func (l *leader) isAbsent(worker string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	_, absent := l.absent[worker]
	return absent
}

func (l *leader) refused(address string) bool {
	ctx, cancel := context.WithTimeout(l.ctx, probeTimeout)
	defer cancel()
	conn, err := l.s.settings.Dial(ctx, "tcp", address)
	if err == nil {
		_ = conn.Close() // nothing was said on it
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
