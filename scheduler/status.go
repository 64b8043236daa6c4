package scheduler

import (
	"context"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/quire-serve/quire/scheduler/membership"
	"github.com/quire-serve/quire/transport"
)

// leading is this node's leader, or the error that a client gets elsewhere. trailer receives the
// leader's address.
func (s *Scheduler) leading(trailer func(metadata.MD)) (*leader, error) {
	if l := s.leader.Load(); l != nil {
		return l, nil
	}
	if problem := s.Problem(); problem != "" {
		return nil, status.Error(codes.Unavailable, "this node takes no part in the control plane any more; try another: "+problem)
	}
	leader := s.node.Leader()
	if leader.ID == "" || leader.ID == s.settings.NodeID {
		return nil, status.Error(codes.Unavailable, "the control plane has no leader yet; try again")
	}
	address := s.members.ControlAddress(leader.ID)
	if address == "" {
		return nil, status.Errorf(codes.Unavailable, "%q leads, but this node does not know its address yet; try again", leader.ID)
	}
	trailer(metadata.Pairs(transport.LeaderTrailer, address))
	return nil, status.Errorf(codes.FailedPrecondition, "node %q is not the leader; %q is", s.settings.NodeID, leader.ID)
}

// leadership tells the members who leads.
type leadership struct{ s *Scheduler }

var _ membership.Leadership = leadership{}

func (l leadership) Leading(trailer func(metadata.MD)) error {
	_, err := l.s.leading(trailer)
	return err
}

func (l leadership) Barrier(ctx context.Context) error { return l.s.barrier(ctx) }

func (l leadership) Restart(reason error) {
	if l := l.s.leader.Load(); l != nil {
		l.fail(reason)
	}
}
