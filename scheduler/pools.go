package scheduler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/check"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

// applyCordons brings placement up to the cordons that the log has.
func (l *leader) applyCordons() {
	view := l.s.store.View()
	for id, s := range l.sessions {
		l.batcher.Cordon(id, view.Cordoned(s.info))
	}
	l.kick()
}

// change puts an operator's command into the log and says whether that changed anything.
func (s *Scheduler) change(ctx context.Context, command *pb.Command) (changed bool, err error) {
	var refused *state.Refusal
	err = s.order(ctx, command, func(l *leader, result state.Result) {
		changed, refused = result.Changed, result.Refused
		l.applyCordons()
	})
	if err == nil && refused != nil {
		err = status.Error(codes.FailedPrecondition, refused.Reason)
	}
	return changed, err
}

// CreatePool makes a pool; see the service's definition.
func (s *Scheduler) CreatePool(ctx context.Context, in *pb.CreatePoolRequest) (*pb.CreatePoolResponse, error) {
	if err := check.Pool(in.GetPool().GetName()); err != nil {
		return nil, err
	}
	command := &pb.PoolCommand{Pool: &pb.Pool{Name: in.GetPool().GetName(), Cordoned: in.GetPool().GetCordoned()}}
	if _, err := s.change(ctx, &pb.Command{Command: &pb.Command_Pool{Pool: command}}); err != nil {
		return nil, err
	}
	return &pb.CreatePoolResponse{}, nil
}

// RemovePool removes a pool; see the service's definition.
func (s *Scheduler) RemovePool(ctx context.Context, in *pb.RemovePoolRequest) (*pb.RemovePoolResponse, error) {
	if err := check.Pool(in.GetName()); err != nil {
		return nil, err
	}
	command := &pb.PoolCommand{Pool: &pb.Pool{Name: in.GetName()}, Removed: true}
	changed, err := s.change(ctx, &pb.Command{Command: &pb.Command_Pool{Pool: command}})
	if err != nil {
		return nil, err
	}
	if !changed {
		return nil, status.Errorf(codes.NotFound, "name: there is no pool %q", in.GetName())
	}
	return &pb.RemovePoolResponse{}, nil
}

// Cordon keeps new requests from workers; see the service's definition.
func (s *Scheduler) Cordon(ctx context.Context, in *pb.CordonRequest) (*pb.CordonResponse, error) {
	if err := check.Target(in.GetWorkerId(), in.GetPool()); err != nil {
		return nil, err
	}
	command := &pb.CordonCommand{WorkerId: in.GetWorkerId(), Pool: in.GetPool(), Lifted: in.GetLifted()}
	if _, err := s.change(ctx, &pb.Command{Command: &pb.Command_Cordon{Cordon: command}}); err != nil {
		return nil, err
	}
	return &pb.CordonResponse{}, nil
}

// Drain empties workers; see the service's definition. The cordon is in the log; the order to end is
// given to who is in session, and again with every call.
func (s *Scheduler) Drain(ctx context.Context, in *pb.DrainRequest) (*pb.DrainResponse, error) {
	if err := check.Target(in.GetWorkerId(), in.GetPool()); err != nil {
		return nil, err
	}
	l, err := s.leading(rpc.Trailer(ctx))
	if err != nil {
		return nil, err
	}
	targets := func(w *pb.WorkerInfo) bool {
		return w.GetId() == in.GetWorkerId() || in.GetPool() != "" && state.PoolOf(w) == in.GetPool()
	}
	if stranded := l.stranded(targets); len(stranded) > 0 && !in.GetForce() {
		return nil, status.Errorf(codes.FailedPrecondition, "no other worker takes requests for %s, so that those which run would wait; start one, or force it", strings.Join(stranded, ", "))
	}
	if view := s.store.View(); in.GetPool() != "" || view.Worker(in.GetWorkerId()) != nil {
		if _, err := s.Cordon(ctx, &pb.CordonRequest{WorkerId: in.GetWorkerId(), Pool: in.GetPool()}); err != nil {
			return nil, err
		}
	} else if !view.WorkerCordoned(in.GetWorkerId()) {
		return nil, status.Errorf(codes.NotFound, "worker_id: worker %q is unknown", in.GetWorkerId())
	}
	return l.drain(targets), nil
}

// stranded are the models with requests on the targets that no other worker would take.
func (l *leader) stranded(targets func(*pb.WorkerInfo) bool) []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	view := l.s.store.View()
	models, taken := map[string]bool{}, map[string]bool{}
	for id, w := range l.workers {
		s := l.sessions[id]
		switch {
		case targets(w):
			if len(l.onWorker[id]) > 0 {
				models[w.GetModel()] = true
			}
		case s != nil && !s.draining && !s.unhealthy && !view.Cordoned(w):
			taken[w.GetModel()] = true
		}
	}
	maps.DeleteFunc(models, func(name string, _ bool) bool { return taken[name] })
	return slices.Sorted(maps.Keys(models))
}

func (l *leader) drain(targets func(*pb.WorkerInfo) bool) *pb.DrainResponse {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := &pb.DrainResponse{}
	for _, id := range slices.Sorted(maps.Keys(l.workers)) {
		if !targets(l.workers[id]) {
			continue
		}
		out.Workers++
		out.Requests += int32(len(l.onWorker[id]))
		if s := l.sessions[id]; s != nil && !s.draining {
			s.draining = true
			l.batcher.Drain(id)
			s.send(&pb.WorkResponse{Message: &pb.WorkResponse_Drain{Drain: &pb.Drain{HandOver: true}}})
		}
	}
	return out
}

// ListWorkers lists pools and workers, after everything that was committed before it.
func (s *Scheduler) ListWorkers(ctx context.Context, _ *pb.ListWorkersRequest) (*pb.ListWorkersResponse, error) {
	l, err := s.leading(rpc.Trailer(ctx))
	if err != nil {
		return nil, err
	}
	if err := s.barrier(ctx); err != nil {
		return nil, rpc.Unsure(err)
	}
	return l.listWorkers(s.store.View(), s.settings.now()), nil
}

func (l *leader) listWorkers(view *state.View, now time.Time) *pb.ListWorkersResponse {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := &pb.ListWorkersResponse{Pools: slices.Collect(view.Pools())}
	known := maps.Clone(l.workers)
	for id := range view.CordonedWorkers() {
		if known[id] == nil {
			known[id] = &pb.WorkerInfo{Id: id}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(known)) {
		w := &pb.WorkerStatus{Worker: known[id], Cordoned: view.WorkerCordoned(id), Requests: int32(len(l.onWorker[id]))}
		if s := l.sessions[id]; s != nil {
			w.Unusable = l.unusable(known[id])
			w.InSession, w.Draining, w.AgeMs = true, s.draining, now.Sub(s.heard).Milliseconds()
			w.Running, w.Waiting, w.FreeBlocks = s.newest.GetRunning(), s.newest.GetWaiting(), s.newest.GetFreeBlocks()
			w.Devices = int32(len(s.newest.GetDevices()))
			for _, d := range s.newest.GetDevices() {
				for _, why := range d.GetUnhealthy() {
					w.Unhealthy = append(w.Unhealthy, fmt.Sprintf("device %d: %s", d.GetIndex(), why))
				}
			}
		}
		out.Workers = append(out.Workers, w)
	}
	return out
}
