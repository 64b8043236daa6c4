package scheduler

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/check"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

// ordersWaiting bounds the operators' commands that wait for the log.
const ordersWaiting = 256

// order is an operator's command on its way to the log.
type order struct {
	command *pb.Command
	// outcome runs under leader.mu once the log has it; done is closed after it.
	outcome func(state.Result)
	done    chan struct{}
}

func newOrder(command *pb.Command, outcome func(state.Result)) *order {
	return &order{command: command, outcome: outcome, done: make(chan struct{})}
}

// order puts an operator's command into the log and waits for it.
func (s *Scheduler) order(ctx context.Context, command *pb.Command, outcome func(*leader, state.Result)) error {
	l, err := s.leading(rpc.Trailer(ctx))
	if err != nil {
		return err
	}
	o := newOrder(command, func(r state.Result) { outcome(l, r) })
	l.mu.Lock()
	if len(l.orders) >= ordersWaiting {
		l.mu.Unlock()
		return rpc.Exhausted("too many commands wait for the log", instant)
	}
	l.orders = append(l.orders, o)
	l.kick()
	l.mu.Unlock()
	select {
	case <-o.done:
		return nil
	case <-l.done:
		return rpc.NotLeading("the command was being committed")
	case <-ctx.Done():
		return status.FromContextError(ctx.Err()).Err()
	}
}

func (l *leader) composeOrders(e *entry) {
	l.orders = take(l.orders, func(o *order) bool {
		size := proto.Size(o.command) + commandBytes
		if e.bytes+size > settleBytes {
			return false
		}
		e.add(o.command, size, func(result state.Result) {
			o.outcome(result)
			close(o.done)
		})
		return true
	})
}

// restoreShares takes over how much the tenants were given.
func (l *leader) restoreShares(view *state.View) {
	shares := map[string]int64{}
	for account := range view.Accounts() {
		if account.Limits != nil {
			l.batcher.SetWeight(account.Name, account.Weight())
		}
		if account.Live > 0 {
			shares[account.Name] = account.Served / account.Weight()
		}
	}
	l.batcher.Restore(shares)
}

// SetTenant sets a tenant's limits; see the service's definition.
func (s *Scheduler) SetTenant(ctx context.Context, in *pb.SetTenantRequest) (*pb.SetTenantResponse, error) {
	if err := check.Tenant(in.GetTenant()); err != nil {
		return nil, err
	}
	command := &pb.Command{Command: &pb.Command_Tenant{Tenant: &pb.TenantCommand{Tenant: in.GetTenant()}}}
	var refused *state.Refusal
	err := s.order(ctx, command, func(l *leader, result state.Result) {
		if refused = result.Refused; refused == nil {
			l.batcher.SetWeight(in.GetTenant().GetName(), in.GetTenant().GetWeight())
		}
	})
	if err != nil {
		return nil, err
	}
	if refused != nil {
		return nil, status.Error(codes.FailedPrecondition, refused.Reason)
	}
	return &pb.SetTenantResponse{}, nil
}

// RemoveTenant removes a tenant's limits; see the service's definition.
func (s *Scheduler) RemoveTenant(ctx context.Context, in *pb.RemoveTenantRequest) (*pb.RemoveTenantResponse, error) {
	if err := check.Tenant(&pb.Tenant{Name: in.GetName()}); err != nil {
		return nil, err
	}
	command := &pb.Command{Command: &pb.Command_Tenant{Tenant: &pb.TenantCommand{Tenant: &pb.Tenant{Name: in.GetName()}, Removed: true}}}
	out := &pb.RemoveTenantResponse{}
	err := s.order(ctx, command, func(l *leader, result state.Result) {
		l.batcher.SetWeight(in.GetName(), 1)
		out.Found = result.Changed
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// ListTenants lists tenants. Without stale it is linearizable: it waits until everything that was
// committed before it is applied, on the leader.
func (s *Scheduler) ListTenants(ctx context.Context, in *pb.ListTenantsRequest) (*pb.ListTenantsResponse, error) {
	if !in.GetStale() {
		if _, err := s.leading(rpc.Trailer(ctx)); err != nil {
			return nil, err
		}
		if err := s.barrier(ctx); err != nil {
			return nil, rpc.Unsure(err)
		}
	}
	out := &pb.ListTenantsResponse{}
	now := s.timeMS()
	for account := range s.store.View().Accounts() {
		requests, tokens := account.Left(now)
		limits := account.Limits
		if limits == nil {
			limits = &pb.Tenant{Name: account.Name}
		}
		out.Tenants = append(out.Tenants, &pb.TenantStatus{
			Tenant: limits, Live: account.Live, RequestsLeft: requests, TokensLeft: tokens, Served: account.Served,
		})
	}
	return out, nil
}
