package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/quire-serve/quire/kvcache/tier"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/worker/engine"
)

// Worker is one worker node.
type Worker struct {
	pb.UnimplementedWorkerServer

	settings    Settings
	log         *slog.Logger
	info        *pb.WorkerInfo
	engine      *engine.Engine
	outbox      *outbox
	devices     devices
	listener    net.Listener
	server      *grpc.Server
	health      *health.Server
	closers     []func() error // of the device's parts, in order
	disk        *tier.Disk     // below the KV cache, or nil
	costs       engine.Costs
	blockServer *blockServer // nil if it serves no blocks
	peers       *peers       // nil as well

	term      atomic.Uint64 // newest seen
	index     atomic.Uint64 // newest dispatch taken
	connected atomic.Bool
	draining  atomic.Bool
	drainOnce sync.Once
	drained   chan struct{} // closed when drain was asked for
	handOver  func()        // ends the time that draining gives to what runs
	handed    context.Context
	stopping  chan struct{} // closed when all that is left is to say goodbye
}

var _ pb.WorkerServer = (*Worker)(nil)

// Stats is what a worker can say of itself.
type Stats struct {
	engine.Stats
	// InSession is whether the leader is reached.
	InSession bool
	Draining  bool
	// Gateways are attached; Outputs of OutputBytes are kept for them.
	Gateways, Outputs int
	OutputBytes       int64
	// Disk is the lowest tier of the KV cache.
	Disk tier.DiskStats
	// Costs are those by which the tiers are used, zero without any.
	Costs engine.Costs
	// FailedFetches of blocks from other workers left something to be computed.
	FailedFetches int64
}

// assemble makes a worker around a model that a device has compiled. info says what it serves; what
// the worker knows better is filled in.
func assemble(s Settings, m engine.Model, info *pb.WorkerInfo) (*Worker, error) {
	s = s.withDefaults()
	if err := s.validate(); err != nil {
		return nil, err
	}
	w := &Worker{
		settings: s, log: s.Logger.With(slog.String("worker", s.ID)), info: info,
		drained: make(chan struct{}), stopping: make(chan struct{}),
	}
	w.handed, w.handOver = context.WithCancel(context.Background())
	w.outbox = newOutbox(s, func(id string) {
		w.engine.Abort(id, "its output is more than the worker may keep")
	})
	var err error
	w.engine, err = engine.New(s.Engine, m, func(events []engine.Event) {
		w.outbox.add(events, time.Now())
	})
	if err != nil {
		return nil, err
	}
	w.listener, err = net.Listen("tcp", s.Listen)
	if err != nil {
		return nil, fmt.Errorf("worker: listen on %s: %w", s.Listen, err)
	}
	es := w.engine.Settings()
	info.Id = s.ID
	info.Address = s.Advertise
	if info.Address == "" {
		info.Address = w.listener.Addr().String()
	}
	info.ContextLength = int32(w.engine.ContextLength())
	info.Vocabulary = int32(m.Vocab)
	info.BlockTokens = int32(es.BlockTokens)
	info.TotalBlocks = int32(es.Blocks)
	info.MaxSequences = int32(es.MaxSequences)
	info.MaxBatchTokens = int32(es.MaxBatchTokens)

	w.listener = transport.Limit(w.listener, w.log)
	w.server = transport.ForCluster(s.Certificates)
	w.health = health.NewServer()
	w.health.SetServingStatus(pb.Worker_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_NOT_SERVING)
	w.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
	pb.RegisterWorkerServer(w.server, w)
	healthpb.RegisterHealthServer(w.server, w.health)
	return w, nil
}

// Info is what the worker tells the control plane of itself.
func (w *Worker) Info() *pb.WorkerInfo { return w.info }

// Address is where gateways fetch tokens.
func (w *Worker) Address() string { return w.info.Address }

// Stats returns the worker's figures.
func (w *Worker) Stats() Stats {
	s := Stats{Stats: w.engine.Stats(), InSession: w.connected.Load(), Draining: w.draining.Load()}
	s.Gateways, s.Outputs, s.OutputBytes = w.outbox.counts()
	s.Costs = w.costs
	if w.peers != nil {
		s.FailedFetches = w.peers.failed.Load()
	}
	if w.disk != nil {
		s.Disk = w.disk.Stats()
	}
	return s
}

// Traces lists what the newest n steps did, oldest first.
func (w *Worker) Traces(ctx context.Context, n int) ([]engine.StepTrace, error) {
	return w.engine.Traces(ctx, n)
}

// Ready reports whether work can come: the leader knows the worker and it is not draining.
func (w *Worker) Ready() bool { return w.connected.Load() && !w.draining.Load() }

// drain makes the worker take nothing new and Run end once everything has ended.
func (w *Worker) drain() {
	w.drainOnce.Do(func() {
		w.draining.Store(true)
		w.health.SetServingStatus(pb.Worker_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_NOT_SERVING)
		w.health.SetServingStatus("", healthpb.HealthCheckResponse_NOT_SERVING)
		close(w.drained)
		w.outbox.leader.poke() // the leader should know at once
	})
}

// giveBack returns all that runs to the leader, with what it generated, for other workers to go on
// with; gateways hear nothing of it.
func (w *Worker) giveBack() {
	for _, id := range w.engine.Live() {
		w.outbox.giveBack(id)
	}
}

// Run serves until ctx ends or the leader asks to drain. Then what runs goes on for at most
// Settings.DrainTimeout while nothing new is taken; what is not done by then, or when the leader asks
// for it, is left to other workers, with all that it generated, and its KV cache for at most
// Settings.HandOverTimeout. Run returns once everything it started has ended. It is called once.
func (w *Worker) Run(ctx context.Context) (err error) {
	run, cancel := context.WithCancel(context.Background())
	defer cancel()
	compute, halt := context.WithCancel(run)
	defer halt()
	computing, stopped := context.WithCancel(run)
	var wg, control sync.WaitGroup
	computed := make(chan error, 1)
	served := make(chan error, 1)
	wg.Go(func() {
		defer stopped()
		computed <- w.engine.Run(compute)
	})
	wg.Go(func() { served <- w.server.Serve(w.listener) })
	if w.settings.Telemetry != nil {
		wg.Go(func() { w.devices.watch(run, w.settings.Telemetry, w.log) })
	}
	control.Go(func() { w.control(run) })
	w.health.SetServingStatus(pb.Worker_ServiceDesc.ServiceName, healthpb.HealthCheckResponse_SERVING)
	w.health.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)

	select {
	case <-ctx.Done():
		w.drain()
	case <-w.drained:
	case err = <-computed:
		computed <- nil
	case err = <-served:
	}
	if err == nil && w.settings.DrainTimeout > 0 {
		drain, stop := context.WithTimeout(w.handed, w.settings.DrainTimeout)
		switch err := w.engine.Drain(drain); {
		case errors.Is(err, engine.ErrGone):
			w.log.Warn("the engine ended before what runs did", slog.Int("left", len(w.engine.Live())))
		case err != nil:
			w.log.Warn("not everything ended in time", slog.Int("left", len(w.engine.Live())))
		}
		stop()
	}
	w.drain()
	if err == nil && w.blockServer != nil && w.settings.HandOverTimeout > 0 {
		w.serveBlocks(computing)
	}
	halt()
	err = errors.Join(err, <-computed) // its last step is in the outbox now
	w.giveBack()
	close(w.stopping)
	// Streams say what is left to say and end; who does not read is cut off.
	cut := time.AfterFunc(farewellTimeout, func() {
		cancel()
		w.server.Stop()
	})
	w.server.GracefulStop()
	control.Wait()
	cut.Stop()
	cancel()
	if w.peers != nil {
		w.peers.close()
	}
	wg.Wait()
	for _, c := range w.closers {
		err = errors.Join(err, c())
	}
	return err
}
