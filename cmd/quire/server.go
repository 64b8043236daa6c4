package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	"github.com/quire-serve/quire/gateway"
	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/scheduler"
	"github.com/quire-serve/quire/scheduler/batch"
	"github.com/quire-serve/quire/scheduler/consensus"
	"github.com/quire-serve/quire/scheduler/prefix"
	"github.com/quire-serve/quire/scheduler/state"
	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/trust"
)

// serverFlags are what a control-plane node needs, in `quire server` and in `quire dev`.
type serverFlags struct {
	id, http, grpc, data string
	// control is the address of the port for the cluster.
	control           string
	placement         string
	keep              state.Retention
	keepFor           time.Duration
	drain, grace      time.Duration
	maxRequests       int
	queueRequests     int
	queueBytes        int64
	prefixBytes       int64
	cluster           clusterFlags
	store, durability string
	// openLimit is how long clients may wait for a node that starts to be ready.
	openLimit time.Duration
}

func (s *serverFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&s.http, "http", "127.0.0.1:8000", "address of the HTTP API, for clients")
	f.StringVar(&s.grpc, "grpc", "127.0.0.1:8001", "address of the gRPC API, for clients")
	f.StringVar(&s.control, "cluster", "127.0.0.1:8004", "address for nodes, gateways, workers and operators; without TLS whoever reaches it can do everything")
	f.StringVar(&s.data, "data", stateDir(), "folder of the Raft log and snapshots")
	f.StringVar(&s.store, "raft-store", string(consensus.WAL), "files of the log: wal or boltdb; a folder keeps the one that it began with")
	f.StringVar(&s.durability, "durability", "disk", "disk: an admission is on the disks of a majority before it is answered; local: the log is in memory only, and a node that stops has lost it")
	f.IntVar(&s.maxRequests, "max-requests", 1024, "sequences (prompts times n) that the gateway serves at once; more are answered with 429")
	f.IntVar(&s.queueRequests, "queue-requests", 16384, "requests that wait for a worker at the leader, each counted once for each of its choices; more are answered with 429")
	f.Int64Var(&s.queueBytes, "queue-bytes", 256<<20, "memory that these may take at the leader, in bytes; docs/scheduling.md says how much one takes")
	f.Int64Var(&s.prefixBytes, "prefix-index-bytes", prefix.DefaultBytes, "memory in which the leader remembers which worker caches which blocks, in bytes; docs/scheduling.md says how many that are")
	f.StringVar(&s.placement, "placement", string(batch.PolicyTTFT), fmt.Sprintf("which worker gets a request, one of %s; docs/scheduling.md tells what they do", placements()))
	most := state.DefaultRetention
	f.DurationVar(&s.keepFor, "keep-for", time.Duration(most.AgeMS)*time.Millisecond, "how long an ended request is known; the leader's --keep flags count for all nodes")
	f.Int64Var(&s.keep.Bytes, "keep-bytes", most.Bytes, "memory for ended requests on every node, a quarter of it for their answers")
	f.Int64Var(&s.keep.TenantBytes, "keep-tenant-bytes", 0, "how much of that one tenant's may take; 0: all")
	f.Int64Var(&s.keep.TenantRequests, "keep-tenant-requests", most.TenantRequests, "how many of a tenant's ended requests are known")
	f.DurationVar(&s.grace, "resume-grace", 10*time.Second, "how long a request with an Idempotency-Key runs on without its client; 0: not at all")
	f.DurationVar(&s.drain, "drain-timeout", 30*time.Second, "how long running streams may take to finish on shutdown")
}

// placements lists the placement policies.
func placements() string {
	var names []string
	for _, p := range batch.Policies() {
		names = append(names, string(p))
	}
	return strings.Join(names, ", ")
}

// logStore is what --raft-store and --durability ask for.
func (s *serverFlags) logStore() (consensus.Store, error) {
	store := consensus.Store(s.store)
	switch {
	case store != consensus.WAL && store != consensus.BoltDB:
		return "", usagef("--raft-store: %q is not wal or boltdb", s.store)
	case s.durability == "local":
		return consensus.Memory, nil
	case s.durability != "disk":
		return "", usagef("--durability: %q is not disk or local", s.durability)
	}
	return store, nil
}

// fatal ends the process where going on would do harm.
func fatal(err error) {
	fmt.Fprintln(os.Stderr, "quire:", err)
	os.Exit(1)
}

// stateDir is where a user's own Quire keeps its log: $XDG_STATE_HOME/quire.
func stateDir() string {
	if dir := os.Getenv("XDG_STATE_HOME"); dir != "" {
		return filepath.Join(dir, "quire")
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "quire-data"
	}
	return filepath.Join(home, ".local", "state", "quire")
}

// controlNode is a running control-plane node: scheduler, gateway and their listeners.
type controlNode struct {
	scheduler *scheduler.Scheduler
	gateway   *gateway.Gateway
	grpc      *grpc.Server // for clients
	control   *grpc.Server // for the cluster
	// self is where control is reached from here, grpcAddress where grpc is.
	self, grpcAddress string
	http              *http.Server
	stopped           chan error // a server that ended by itself
	stopRun           context.CancelFunc
	ran               chan struct{}
	drain             time.Duration
}

// startControl brings a node up. Tokenizers and chat templates come from specs.
func startControl(s serverFlags, specs []*model.Spec) (_ *controlNode, err error) {
	if err := s.cluster.check(s.control); err != nil {
		return nil, err
	}
	certificates, err := s.cluster.tls.loadAs(trust.Identity{Role: trust.Node, Name: s.id})
	if err != nil {
		return nil, err
	}
	var listeners [3]net.Listener
	defer func() {
		for _, l := range listeners {
			if err != nil && l != nil {
				l.Close()
			}
		}
	}()
	for i, port := range []struct{ flag, address string }{{"http", s.http}, {"grpc", s.grpc}, {"cluster", s.control}} {
		if listeners[i], err = listen(port.flag, port.address); err != nil {
			return nil, err
		}
	}
	httpListener, grpcListener, controlListener := listeners[0], listeners[1], listeners[2]
	// The gateway talks to the scheduler as it would to one on another machine.
	n := &controlNode{stopped: make(chan error, 4), ran: make(chan struct{}), drain: s.drain, self: dialable(controlListener.Addr()), grpcAddress: dialable(grpcListener.Addr())}
	dial := func(address string) (grpc.ClientConnInterface, func() error, error) {
		expect := transport.Expected{Role: trust.Node}
		if address == n.self {
			expect.Name = s.id
		}
		return dialCluster(certificates, address, expect)
	}
	opened := make(chan struct{}) // once clients are served
	settings := scheduler.Settings{NodeID: s.id, DataDir: s.data, Version: version, DialNode: dial, Certificates: certificates, Fatal: fatal}
	settings.Keep = s.keep
	settings.Keep.AgeMS = s.keepFor.Milliseconds()
	if settings.Keep.TenantBytes == 0 {
		settings.Keep.TenantBytes = settings.Keep.Bytes
	}
	if err := settings.Keep.Validate(); err != nil {
		return nil, usagef("--keep-for, --keep-bytes, --keep-tenant-bytes, --keep-tenant-requests: %v", err)
	}
	settings.QueueRequests, settings.QueueBytes = s.queueRequests, s.queueBytes
	settings.Prefix.Bytes = s.prefixBytes
	switch {
	case s.queueRequests < 1 || s.queueRequests > scheduler.MaxQueueRequests:
		return nil, usagef("--queue-requests: %d is not 1 to %d", s.queueRequests, scheduler.MaxQueueRequests)
	case s.prefixBytes < prefix.LeastBytes:
		return nil, usagef("--prefix-index-bytes: %d; the least is %d", s.prefixBytes, int64(prefix.LeastBytes))
	case s.queueBytes < 1:
		return nil, usagef("--queue-bytes: %d; the least is 1", s.queueBytes)
	}
	settings.Batch.Policy = batch.Policy(s.placement)
	if !slices.Contains(batch.Policies(), settings.Batch.Policy) {
		return nil, usagef("--placement: %q is not one of %s", s.placement, placements())
	}
	if settings.Store, err = s.logStore(); err != nil {
		return nil, err
	}
	if err := s.cluster.apply(&settings, s.control, controlListener.Addr()); err != nil {
		return nil, err
	}
	n.scheduler, err = scheduler.New(settings)
	if err != nil {
		return nil, fmt.Errorf("--data %s: %w", s.data, err)
	}
	n.gateway, err = gateway.New(gateway.Settings{
		NodeID:  s.id,
		Version: version,
		Nodes:   func() []string { return append([]string{n.self}, n.scheduler.OtherNodes()...) },
		Dial:    dial,
		DialWorker: func(id, address string) (grpc.ClientConnInterface, func() error, error) {
			return dialCluster(certificates, address, transport.Expected{Role: trust.Worker, Name: id})
		},
		Models:      gatewayModels(specs),
		MaxRequests: s.maxRequests,
		Collectors:  []prometheus.Collector{n.scheduler.Metrics()},
		ResumeGrace: cmp.Or(s.grace, -1),
	})
	if err != nil {
		return nil, errors.Join(err, n.scheduler.Close())
	}

	n.grpc = transport.ForClients(grpc.ChainStreamInterceptor(untilOpened(opened)))
	n.gateway.Register(n.grpc)
	n.control = transport.ForCluster(certificates)
	n.scheduler.Register(n.control)
	n.http = n.gateway.Server()

	var ctx context.Context
	ctx, n.stopRun = context.WithCancel(context.Background())
	go n.scheduler.WatchLeader(ctx, n.gateway.LeaderAt)
	go func() {
		defer close(n.ran)
		n.awaitLeader(ctx)
		if err := n.gateway.Run(ctx); err != nil {
			n.stopped <- err
		}
	}()
	go func() { n.stopped <- n.grpc.Serve(transport.Limit(grpcListener, slog.Default())) }()
	go func() { n.stopped <- n.control.Serve(transport.Limit(controlListener, slog.Default())) }()
	go func() {
		n.awaitWorkers(ctx, s.openLimit)
		close(opened)
		n.stopped <- n.http.Serve(transport.Limit(httpListener, slog.Default()))
	}()
	return n, nil
}

// awaitWorkers lets clients wait a little for a node that has just started to find the leader and the
// workers, instead of telling them that there are none.
func (n *controlNode) awaitWorkers(ctx context.Context, limit time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for !n.gateway.Ready() {
		select {
		case <-ctx.Done():
			return
		case <-poll.C:
		}
	}
}

// awaitLeader gives an election at start the time it needs, so that it does not look like trouble.
func (n *controlNode) awaitLeader(ctx context.Context) {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(3 * time.Second)
	for !n.scheduler.Ready() {
		select {
		case <-ctx.Done():
			return
		case <-limit:
			return
		case <-tick.C:
		}
	}
}

// waitReady waits until requests would be served, or ctx ends, or a server fails.
func (n *controlNode) waitReady(ctx context.Context) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for !n.gateway.Ready() {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case err := <-n.stopped:
			return err
		case <-tick.C:
		}
	}
	return nil
}

// wait blocks until ctx ends or a server fails.
func (n *controlNode) wait(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-n.stopped:
		return err
	}
}

// stepDown lets another node lead before this one stops, so that nobody waits for an election.
func (n *controlNode) stepDown() {
	ctx, cancel := context.WithTimeout(context.Background(), stepDownTimeout)
	defer cancel()
	if err := n.scheduler.StepDown(ctx); err != nil {
		slog.Warn("leadership could not be handed over before the shutdown", "error", err)
	}
}

// closeFront refuses new requests, lets running answers finish, for the drain timeout at most, and
// leaves the workers. The ports answer meanwhile, health with 503. The error says that answers were cut off.
func (n *controlNode) closeFront() error {
	n.http.SetKeepAlivesEnabled(false)
	ctx, cancel := context.WithTimeout(context.Background(), n.drain)
	defer cancel()
	interrupted := n.gateway.Drain(ctx)
	last, cancel := context.WithTimeout(context.Background(), lastWritesTimeout)
	defer cancel()
	if n.http.Shutdown(last) != nil {
		n.http.Close() // whoever does not read
	}
	n.stopRun()
	<-n.ran
	if interrupted > 0 {
		return interruptedError{interrupted, n.drain}
	}
	return nil
}

// interruptedError is a shutdown that did not wait for all answers.
type interruptedError struct {
	answers int
	timeout time.Duration
}

func (e interruptedError) Error() string {
	return fmt.Sprintf("%d answers were not over after --drain-timeout %v; their clients were told to ask again at another node", e.answers, e.timeout)
}

// close ends the rest, after closeFront and after the workers of this process have left.
func (n *controlNode) close() error {
	n.stopRun()
	<-n.ran
	n.http.Close()
	done := make(chan struct{})
	go func() { defer close(done); n.grpc.GracefulStop(); n.control.GracefulStop() }()
	select {
	case <-done:
	case <-time.After(2 * time.Second):
		n.grpc.Stop()
		n.control.Stop()
		<-done
	}
	return n.scheduler.Close()
}

func gatewayModels(specs []*model.Spec) []gateway.Model {
	var models []gateway.Model
	for _, s := range specs {
		models = append(models, gateway.Model{ID: s.ID, Tokenizer: s.Tokenizer, Chat: s.Chat, NoChat: s.NoChat, ContextLength: s.Config.ContextLength, Digest: s.Digest})
	}
	return models
}

const (
	// stepDownTimeout bounds handing over leadership at the end.
	stepDownTimeout = 5 * time.Second
	// lastWritesTimeout bounds the end of HTTP answers that are being written.
	lastWritesTimeout = time.Second
)

// dialCluster connects to a node or worker.
func dialCluster(certificates *trust.Certificates, address string, expect transport.Expected) (grpc.ClientConnInterface, func() error, error) {
	conn, err := transport.Dial(certificates, address, expect)
	if err != nil {
		return nil, nil, err
	}
	return conn, conn.Close, nil
}

// dialable turns a listener's address into one to connect to: an unspecified host means this one.
func dialable(addr net.Addr) string {
	tcp := addr.(*net.TCPAddr)
	if tcp.IP.IsUnspecified() {
		return net.JoinHostPort("127.0.0.1", fmt.Sprint(tcp.Port))
	}
	return tcp.String()
}

func newServer() *cobra.Command {
	s := serverFlags{openLimit: 3 * time.Second}
	var models []string
	cmd := &cobra.Command{
		Use:   "server",
		Short: "Run a control-plane node: scheduler and gateway",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			specs, err := openSpecs(models)
			if err != nil {
				return err
			}
			defer closeSpecs(specs)
			n, err := startControl(s, specs)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "control-plane node %s: HTTP on %s, gRPC on %s, the cluster's port %s, log in %s\n", s.id, s.http, s.grpc, s.control, s.data)
			err = n.wait(cmd.Context())
			n.stepDown()
			return errors.Join(err, n.closeFront(), n.close())
		},
	}
	s.flags(cmd)
	s.cluster.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&s.id, "id", "node-1", "name of this node, stable across restarts")
	f.StringArrayVar(&models, "model", []string{"auto"}, "name or path of a model whose tokenizer this node needs (repeatable)")
	return cmd
}
