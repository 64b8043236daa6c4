package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler"
)

// operator is what commands for the cluster share: where its nodes are.
type operator struct {
	servers []string
	timeout time.Duration
}

func (o *operator) flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringSliceVar(&o.servers, "server", []string{"127.0.0.1:8001"}, "gRPC addresses of control-plane nodes; any one that runs will do")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to look for a leader and wait for its answer")
}

const (
	// hops bounds how often a hint to the leader is followed before the next address is tried.
	hops       = 3
	searchWait = 100 * time.Millisecond
)

// onLeader calls f with the leader's service for the nodes; see onLeaderConn.
func (o *operator) onLeader(ctx context.Context, f func(context.Context, pb.ClusterClient, ...grpc.CallOption) error) error {
	return o.onLeaderConn(ctx, func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		return f(ctx, pb.NewClusterClient(conn), opts...)
	})
}

// onLeaderConn calls f with a connection to the leader. Where there is none yet it tries again until
// the timeout; f is called again only after a node said that it had not done anything.
func (o *operator) onLeaderConn(ctx context.Context, f func(context.Context, grpc.ClientConnInterface, ...grpc.CallOption) error) error {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	for {
		var errs []error
		for _, address := range o.servers {
			err := o.follow(ctx, address, f)
			if err == nil {
				return nil
			}
			if code := status.Code(err); code != codes.Unavailable && (code != codes.FailedPrecondition || !elsewhere(err)) {
				return fmt.Errorf("%s: %s", address, status.Convert(err).Message())
			}
			errs = append(errs, fmt.Errorf("%s: %s", address, status.Convert(err).Message()))
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no leader within %v: %w", o.timeout, errors.Join(errs...))
		case <-time.After(searchWait):
		}
	}
}

// leaderElsewhere is a follower's refusal with its hint.
type leaderElsewhere struct {
	error
	address string
}

func (e leaderElsewhere) GRPCStatus() *status.Status { return status.Convert(e.error) }

func elsewhere(err error) bool {
	var hint leaderElsewhere
	return errors.As(err, &hint)
}

// follow calls f at an address and at those that it and the next ones name as the leader's.
func (o *operator) follow(ctx context.Context, address string, f func(context.Context, grpc.ClientConnInterface, ...grpc.CallOption) error) error {
	for range hops {
		err := at(address, func(c grpc.ClientConnInterface) error {
			var trailer metadata.MD
			err := f(ctx, c, grpc.Trailer(&trailer))
			if hint := trailer.Get(scheduler.LeaderTrailer); err != nil && len(hint) > 0 {
				return leaderElsewhere{err, hint[0]}
			}
			return err
		})
		var hint leaderElsewhere
		if !errors.As(err, &hint) || hint.address == address {
			return err
		}
		address = hint.address
	}
	return leaderElsewhere{status.Error(codes.FailedPrecondition, "the nodes name each other as the leader"), address}
}

// at calls f with a connection to an address.
func at(address string, f func(grpc.ClientConnInterface) error) error {
	conn, closeConn, err := dial(address)
	if err != nil {
		return usagef("--server %q: %w", address, err)
	}
	defer func() { _ = closeConn() }() // What it was for is done.
	return f(conn)
}

// describeAny asks the first node that answers what it knows.
func (o *operator) describeAny(ctx context.Context) (out *pb.DescribeResponse, err error) {
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	var errs []error
	for _, address := range o.servers {
		err := at(address, func(c grpc.ClientConnInterface) (err error) {
			out, err = pb.NewClusterClient(c).Describe(ctx, &pb.DescribeRequest{})
			return err
		})
		if err == nil {
			return out, nil
		}
		errs = append(errs, fmt.Errorf("%s: %s", address, status.Convert(err).Message()))
	}
	return nil, errors.Join(errs...)
}
