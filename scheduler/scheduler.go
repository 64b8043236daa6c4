package scheduler

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/batch"
	"github.com/quire-serve/quire/scheduler/consensus"
	"github.com/quire-serve/quire/scheduler/membership"
	"github.com/quire-serve/quire/scheduler/state"
	"github.com/quire-serve/quire/transport"
)

// Scheduler is one control-plane node. It serves pb.Control and pb.Operator while it leads.
type Scheduler struct {
	pb.UnimplementedControlServer
	pb.UnimplementedOperatorServer
	settings Settings
	store    *state.Store
	node     *consensus.Node
	members  *membership.Members
	refusals refusals
	// taking has a place for each request that is being checked and hashed.
	taking chan struct{}
	// leader is what this node does as the leader; nil while it is not.
	leader atomic.Pointer[leader]
	// clock is the node's idea of the log's time.
	clock atomic.Pointer[clock]
	// dispatches is the newest dispatch number; only the leader's loop touches it.
	dispatches uint64
	// tenures counts how often this process began to lead; as dispatches.
	tenures uint64

	cancel    context.CancelFunc
	owned     sync.WaitGroup
	streams   sync.WaitGroup
	closeOnce sync.Once
	closeErr  error
}

var (
	_ pb.ControlServer  = (*Scheduler)(nil)
	_ pb.OperatorServer = (*Scheduler)(nil)
)

// New opens the node's data folder and joins or starts its cluster. The scheduler serves once
// Ready says so.
func New(settings Settings) (*Scheduler, error) {
	settings.setDefaults()
	if err := settings.Validate(); err != nil {
		return nil, err
	}
	s := &Scheduler{settings: settings, store: state.New(), taking: make(chan struct{}, runtime.GOMAXPROCS(0))}
	s.clock.Store(&clock{began: settings.now()})
	s.members = membership.New(membership.Settings{
		NodeID: settings.NodeID, ControlAdvertise: settings.ControlAdvertise, Version: settings.Version,
		Join: settings.Join, BootstrapExpect: settings.BootstrapExpect, Peers: settings.Peers,
		StableAfter: settings.StableAfter, DeadAfter: settings.DeadAfter, Dial: settings.DialNode,
		Store: s.store, Leadership: leadership{s}, Fatal: settings.Fatal, Logger: settings.Logger,
	})
	peers := consensus.Settings{
		NodeID: settings.NodeID, DataDir: settings.DataDir, Store: settings.Store, Fatal: settings.Fatal, Logger: settings.Logger,
		Prepare: s.members.OpenIdentity, Newcomer: s.members.Newcomer,
	}
	for _, p := range settings.Peers {
		peers.Peers = append(peers.Peers, consensus.Server{ID: p.ID, Address: p.Raft})
	}
	if settings.RaftListen != "" {
		layer, err := s.listenRaft()
		if err != nil {
			return nil, err
		}
		peers.Layer = layer
		peers.Await = len(settings.Join) > 0
	}
	if settings.consensus != nil {
		settings.consensus(&peers)
	}
	node, err := consensus.Open(peers, machine{s})
	if err != nil {
		return nil, fmt.Errorf("scheduler: %w", err)
	}
	s.node = node
	s.members.Attach(node)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel = cancel
	s.owned.Go(func() { s.watchLeadership(ctx) })
	s.owned.Go(func() { s.members.Run(ctx) })
	return s, nil
}

func (s *Scheduler) listenRaft() (raft.StreamLayer, error) {
	listener, err := net.Listen("tcp", s.settings.RaftListen)
	if err != nil {
		return nil, fmt.Errorf("listen for control-plane peers: %w", err)
	}
	listener = transport.Limit(listener, s.settings.Logger)
	if c := s.settings.Certificates; c != nil {
		return consensus.OverTLS(listener, s.settings.RaftAdvertise, c), nil
	}
	return consensus.OverTCP(listener, s.settings.RaftAdvertise), nil
}

// watchLeadership runs one leader at a time. Gaining leadership twice in a row means that it was
// lost between, so the leader starts anew.
func (s *Scheduler) watchLeadership(ctx context.Context) {
	stop := func() {}
	for {
		select {
		case <-ctx.Done():
			stop()
			return
		case gained := <-s.node.Leadership():
			stop()
			stop = func() {}
			if gained {
				stop = s.startLeading(ctx)
			}
		}
	}
}

func (s *Scheduler) startLeading(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		for {
			err := s.lead(ctx)
			if ctx.Err() != nil || !s.node.Leads() {
				return
			}
			s.settings.Logger.Warn("leading failed; starting again", "error", err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(retryLeading):
			}
		}
	})
	return func() {
		cancel()
		done.Wait()
	}
}

// barrier waits until everything that earlier leaders committed is applied here.
func (s *Scheduler) barrier(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, barrierTimeout)
	defer cancel()
	return s.node.Barrier(ctx)
}

// Ready says whether requests can be admitted: here, or at a leader that this node knows.
func (s *Scheduler) Ready() bool {
	if s.leader.Load() != nil {
		return true
	}
	leader := s.node.Leader()
	return leader.ID != "" && leader.ID != s.settings.NodeID
}

// Stats is a picture of the leader's work. On other nodes all is zero but what they refused when they led.
type Stats struct {
	// Queued requests wait for a worker, QueuedBytes in size; Running ones are with a worker.
	Queued, Running int
	QueuedBytes     int64
	// Queues are the figures of each model's queue.
	Queues []batch.Figures
	// Workers are in session.
	Workers int
	// RefusedByModel and RefusedByTenant count what this node did not admit, or ended before a worker began it,
	// since it started; each request is in both.
	RefusedByModel, RefusedByTenant []Refused
}

// Stats returns the current numbers.
func (s *Scheduler) Stats() Stats {
	var out Stats
	if l := s.leader.Load(); l != nil {
		out = l.stats()
	}
	out.RefusedByModel, out.RefusedByTenant = s.refusals.list()
	return out
}

// OtherNodes lists where the Control services of the cluster's other nodes are, as far as this node
// was told or knows.
func (s *Scheduler) OtherNodes() []string { return s.members.Addresses() }

// WatchLeader calls found with the address of each new leader's Control service, as soon as this node
// learns of it, until ctx ends. One caller only.
func (s *Scheduler) WatchLeader(ctx context.Context, found func(address string)) {
	for {
		leader, ok := s.node.NextLeader(ctx)
		if !ok {
			return
		}
		if address := s.members.ControlAddress(leader.ID); address != "" {
			found(address)
		}
	}
}

// ChainHash covers every log entry applied on this node, up to index. Nodes must agree on it.
func (s *Scheduler) ChainHash() (index, hash uint64) {
	v := s.store.View()
	return v.Index(), v.ChainHash()
}

// Problem says why this node takes no part in its cluster any more; empty while it does.
func (s *Scheduler) Problem() string { return s.members.Problem() }

// Register adds the services that nodes, gateways, workers and operators use to a server for the cluster,
// and grpc.health.v1, which says that they are served here, whoever leads.
func (s *Scheduler) Register(r grpc.ServiceRegistrar) {
	pb.RegisterControlServer(r, s)
	pb.RegisterOperatorServer(r, s)
	pb.RegisterClusterServer(r, s.members)
	alive := health.NewServer()
	for _, service := range []string{pb.Control_ServiceDesc.ServiceName, pb.Operator_ServiceDesc.ServiceName, pb.Cluster_ServiceDesc.ServiceName} {
		alive.SetServingStatus(service, healthpb.HealthCheckResponse_SERVING)
	}
	healthpb.RegisterHealthServer(r, alive)
}

// StepDown hands leadership over, if this node leads and another one can. It returns once the next
// leader is known.
func (s *Scheduler) StepDown(ctx context.Context) error {
	if !s.node.Leads() || !slices.ContainsFunc(s.node.Members(), func(m consensus.Member) bool {
		return m.Voter && m.ID != s.settings.NodeID
	}) {
		return nil
	}
	_, err := s.node.Transfer(ctx, "")
	return err
}

// Close stops the node: streams end, entries on their way are committed if they can be, and the data
// folder is released. Admitted requests stay in the log. A stream whose peer does not read ends with
// its server.
func (s *Scheduler) Close() error {
	s.closeOnce.Do(func() {
		s.cancel()
		s.owned.Wait()
		s.members.HangUp()
		s.closeErr = s.node.Close()
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			s.streams.Wait()
		}()
		select {
		case <-ended:
		case <-time.After(streamsTimeout):
		}
	})
	return s.closeErr
}

var errLeadershipLost = errors.New("leadership was lost")
