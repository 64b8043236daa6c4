package scheduler

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
	"google.golang.org/protobuf/types/known/durationpb"

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
	address := s.members.controlAddress(leader.ID)
	if address == "" {
		return nil, status.Errorf(codes.Unavailable, "%q leads, but this node does not know its address yet; try again", leader.ID)
	}
	trailer(metadata.Pairs(transport.LeaderTrailer, address))
	return nil, status.Errorf(codes.FailedPrecondition, "node %q is not the leader; %q is", s.settings.NodeID, leader.ID)
}

// unaryTrailer sets the trailer of a unary call; in a call without gRPC there is none to set.
func unaryTrailer(ctx context.Context) func(metadata.MD) {
	return func(md metadata.MD) { _ = grpc.SetTrailer(ctx, md) }
}

// errNotLeading ends what was begun under a leader that is gone.
func errNotLeading(what string) error {
	return status.Errorf(codes.Unavailable, "leadership was lost while %s; try again with the same id", what)
}

func invalid(field, format string, args ...any) error {
	return status.Errorf(codes.InvalidArgument, "%s: %s", field, fmt.Sprintf(format, args...))
}

// exhausted says what is used up, and when trying again makes sense.
func exhausted(message string, retry time.Duration) error {
	return detailed(codes.ResourceExhausted, message, &errdetails.RetryInfo{RetryDelay: durationpb.New(retry)})
}

// late refuses a request for its own deadline. The reason tells it from a call whose time is up.
func late(format string, args ...any) error {
	return detailed(codes.DeadlineExceeded, "request.patience_ms: "+fmt.Sprintf(format, args...), &errdetails.ErrorInfo{Reason: "deadline", Domain: "quire"})
}

func detailed(code codes.Code, message string, details ...protoadapt.MessageV1) error {
	st := status.New(code, message)
	if with, err := st.WithDetails(details...); err == nil {
		st = with
	}
	return st.Err()
}
