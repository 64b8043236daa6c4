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
	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/trust"
)

// operator is what commands for the cluster share: where its nodes are, and who asks.
type operator struct {
	control []string
	tls     tlsFlags
	timeout time.Duration
}

func (o *operator) flags(cmd *cobra.Command) {
	f := cmd.PersistentFlags()
	f.StringSliceVar(&o.control, "control", []string{"127.0.0.1:8004"}, "addresses of control-plane nodes' ports for the cluster (their --cluster); any one that runs will do")
	f.DurationVar(&o.timeout, "timeout", 30*time.Second, "how long to look for a leader and wait for its answer")
	o.tls.flags(f)
}

// certificates checks the flags and reads what they name.
func (o *operator) certificates() (*trust.Certificates, error) {
	for _, address := range o.control {
		if err := transport.CheckAddress(address); err != nil {
			return nil, usagef("--control: %w", err)
		}
	}
	return o.tls.load()
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
	certificates, err := o.certificates()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	for {
		var errs []error
		mistaken := true
		for _, address := range o.control {
			err := follow(ctx, certificates, address, f)
			if err == nil {
				return nil
			}
			fault := transport.Explain(address, err)
			switch code := status.Code(err); {
			case transport.IsMistake(fault), code == codes.Unavailable, code == codes.FailedPrecondition && elsewhere(err):
			default:
				return fault
			}
			errs = append(errs, fault)
			mistaken = mistaken && transport.IsMistake(fault)
		}
		if mistaken {
			return usageError{errors.Join(errs...)} // Waiting does not mend it.
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
func follow(ctx context.Context, certificates *trust.Certificates, address string, f func(context.Context, grpc.ClientConnInterface, ...grpc.CallOption) error) error {
	for range hops {
		err := at(certificates, address, func(c grpc.ClientConnInterface) error {
			var trailer metadata.MD
			err := f(ctx, c, grpc.Trailer(&trailer))
			if hint := transport.Leader(trailer); err != nil && hint != "" {
				return leaderElsewhere{err, hint}
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
func at(certificates *trust.Certificates, address string, f func(grpc.ClientConnInterface) error) error {
	conn, closeConn, err := dialCluster(certificates, address, transport.Expected{Role: trust.Node})
	if err != nil {
		return usagef("--control: %w", err)
	}
	defer func() { _ = closeConn() }() // What it was for is done.
	return f(conn)
}

// describeAny asks the first node that answers what it knows.
func (o *operator) describeAny(ctx context.Context) (out *pb.DescribeResponse, err error) {
	certificates, err := o.certificates()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, o.timeout)
	defer cancel()
	var errs []error
	for _, address := range o.control {
		err := at(certificates, address, func(c grpc.ClientConnInterface) (err error) {
			out, err = pb.NewClusterClient(c).Describe(ctx, &pb.DescribeRequest{})
			return err
		})
		if err == nil {
			return out, nil
		}
		errs = append(errs, transport.Explain(address, err))
	}
	return nil, errors.Join(errs...)
}
