package membership

import (
	"context"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"github.com/quire-serve/quire/scheduler/state"
)

// Settings is what New takes. All of it is required but for what is said to be optional.
type Settings struct {
	// NodeID names this node.
	NodeID string
	// ControlAdvertise is where this node's services for the cluster are reached; empty for a node that is a
	// cluster by itself.
	ControlAdvertise string
	// Version is what this node says it runs. Optional.
	Version string
	// Join lists where to look for a cluster; empty for a node that is one by itself. BootstrapExpect is how
	// many nodes without a cluster form a new one.
	Join            []string
	BootstrapExpect int
	// Peers are the members of a cluster in memory. Optional.
	Peers []Peer
	// StableAfter is how long a new member must have been healthy to get a vote, DeadAfter the silence after
	// which a member is removed.
	StableAfter, DeadAfter time.Duration
	// Dial connects to another node's services for the cluster.
	Dial func(address string) (grpc.ClientConnInterface, func() error, error)
	// Store is the state that the log drives.
	Store *state.Store
	// Leadership is who leads, as the scheduler has it.
	Leadership Leadership
	// Fatal hears why this node must stop at once; it must not return.
	Fatal  func(error)
	Logger *slog.Logger
}

// Peer is a member of a cluster in memory.
type Peer struct {
	ID string
	// Raft is the address of its transport, Control where its gRPC services are.
	Raft, Control string
}

// Leadership is who leads. A node that raft elected leads only once its scheduler has caught up.
type Leadership interface {
	// Leading is nil while this node leads, and otherwise what a client is told, with the leader's address
	// in the trailer.
	Leading(trailer func(metadata.MD)) error
	// Barrier waits until everything that earlier leaders committed is applied here.
	Barrier(ctx context.Context) error
	// Restart makes the leader begin anew, if this node leads: the state is another one.
	Restart(reason error)
}
