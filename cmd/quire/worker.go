package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/state"
	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/trust"
	"github.com/quire-serve/quire/worker"
	"github.com/quire-serve/quire/worker/engine"
	"github.com/quire-serve/quire/worker/telemetry"
)

// workerFlags are what a worker needs, in `quire worker` and in `quire dev`.
type workerFlags struct {
	id           string
	pool         string
	listen       string
	advertise    string
	control      []string
	tls          tlsFlags
	certificates *trust.Certificates
	threads      int
	path         string
	exact        bool
	context      int
	kvBytes      int64
	kvType       string
	kvHostBytes  int64
	kvDisk       string
	kvDiskBytes  int64
	rebind       bool
	kvFetchBytes int64         // 0 for `quire dev`, which has no other workers
	handOver     time.Duration // the same
	tenantKV     []string
	returnAfter  time.Duration
	maxSequences int
	batchTokens  int
	prefixCache  bool
	speculate    int
	decodeShare  float64
	debug        string
}

func (w *workerFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.IntVar(&w.threads, "threads", 0, "threads of the CPU device; 0: one a core")
	f.StringVar(&w.path, "cpu-path", "", "kernels of the CPU device: avx512, avx2, generic or go (default: the best here)")
	f.BoolVar(&w.exact, "exact-float", false, "compute in 32-bit floats throughout: slow, for comparisons")
	f.IntVar(&w.context, "context", 0, "tokens a sequence may hold, prompt and output; 0: what the model was trained for")
	f.Int64Var(&w.kvBytes, "kv-bytes", 0, "memory for the KV cache, in bytes; 0: a share of what is free")
	f.StringVar(&w.kvType, "kv-type", "", "how the KV cache stores numbers: f32, f16, or int8 at half the memory of f16 and a small error; workers of a model must agree (default: f16; f32 with --exact-float)")
	f.Int64Var(&w.kvHostBytes, "kv-host-bytes", 0, "host memory for blocks evicted from the KV cache, in bytes; 0: none")
	f.StringVar(&w.kvDisk, "kv-disk", "", "folder of this worker's own for blocks evicted from host memory, kept over restarts; needs --kv-host-bytes")
	f.Int64Var(&w.kvDiskBytes, "kv-disk-bytes", 10<<30, "most bytes in the --kv-disk folder")
	f.StringSliceVar(&w.tenantKV, "tenant-kv", nil, "share of the KV cache and of each tier below it that a tenant may hold, as NAME=0.25; the longest sequence of the tenant fits in it")
	f.IntVar(&w.maxSequences, "max-sequences", 64, "sequences that run at once")
	f.DurationVar(&w.returnAfter, "return-after", 30*time.Second, "how long a preempted request may wait here before it goes back to the control plane; 0: for good")
	f.IntVar(&w.batchTokens, "max-batch-tokens", 512, "tokens a step may carry: prefill chunks and decodes together")
	f.Float64Var(&w.decodeShare, "decode-share", 0.8, "share of their rate that streams keep beside a long prompt, 0.05 to 0.95: high keeps them smooth, low shortens the prompt's time to first token; -1: prompts take whole steps")
	f.IntVar(&w.speculate, "speculate", 4, "most tokens a step may guess of a sequence from what it holds already, where that is measured to pay; the output stays the same; 0: none")
	f.StringVar(&w.debug, "debug", "", "address for /debug/steps and pprof, say 127.0.0.1:6060; it names requests and has no access control (default: off)")
	f.BoolVar(&w.prefixCache, "prefix-cache", true, "share the KV of equal prompt beginnings")
}

// open loads the model onto the device. progress gets bytes done and in total.
func (w *workerFlags) open(spec *model.Spec, progress func(done, total int64)) (*cpu.Device, *model.Model, error) {
	dev, err := cpu.Open(cpu.Options{Threads: w.threads, Path: w.path, ExactFloat: w.exact})
	if err != nil {
		return nil, nil, err
	}
	m, err := spec.Load(dev, model.LoadOptions{Progress: progress, MaxContext: w.context})
	if err != nil {
		dev.Close()
		return nil, nil, err
	}
	return dev, m, nil
}

// check refuses what no worker of spec could run with.
func (w *workerFlags) check(spec *model.Spec) error {
	if w.threads < 0 || w.threads > cpu.MaxThreads {
		return usagef("--threads is %d, must be 0 to %d", w.threads, cpu.MaxThreads)
	}
	if paths := cpu.Paths(); w.path != "" && !slices.Contains(paths, w.path) {
		return usagef("--cpu-path is %q; this machine and build have %s", w.path, strings.Join(paths, ", "))
	}
	if most := spec.Config.ContextLength; w.context < 0 || w.context > most {
		return usagef("--context is %d, must be 0 to %d, what %s was trained for", w.context, most, spec.ID)
	}
	for name, v := range map[string]int{"max-sequences": w.maxSequences, "max-batch-tokens": w.batchTokens} {
		if v < 1 { // to the engine, 0 is the default
			return usagef("--%s is %d, must be at least 1", name, v)
		}
	}
	s, err := w.settings(0)
	if err != nil {
		return err
	}
	if err := s.Validate(); err != nil {
		return usageError{asFlag(err)}
	}
	return nil
}

// kv is the type of the KV cache's numbers.
func (w *workerFlags) kv() (device.Type, error) {
	switch w.kvType {
	case "":
		if w.exact {
			return device.F32, nil
		}
		return device.F16, nil
	case "f32":
		return device.F32, nil
	case "f16":
		return device.F16, nil
	case "int8":
		return device.I8, nil
	}
	return 0, usagef("--kv-type is %q, must be f32, f16 or int8", w.kvType)
}

// asFlag gives a setting that an error begins with the name of its flag.
func asFlag(err error) error {
	text := settingName.ReplaceAllStringFunc(err.Error(), func(found string) string {
		_, name, _ := strings.Cut(found, ": ")
		return "--" + strings.ReplaceAll(name, "_", "-")
	})
	return errors.New(text)
}

var settingName = regexp.MustCompile(`^(worker|engine): [a-z_]+`)

// newNode makes the worker, not yet running.
func (w *workerFlags) newNode(dev *cpu.Device, m *model.Model, drain time.Duration) (*worker.Worker, error) {
	s, err := w.settings(drain)
	if err != nil {
		return nil, err
	}
	s.Telemetry = telemetry.OpenHost()
	return worker.New(s, dev, m)
}

// settings are what the flags say.
func (w *workerFlags) settings(drain time.Duration) (worker.Settings, error) {
	kv, err := w.kv()
	if err != nil {
		return worker.Settings{}, err
	}
	if drain == 0 {
		drain = -1
	}
	tenants := map[string]float64{}
	for _, t := range w.tenantKV {
		name, value, found := strings.Cut(t, "=")
		share, err := strconv.ParseFloat(value, 64)
		if !found || name == "" || err != nil || !(share > 0 && share <= 1) {
			return worker.Settings{}, usagef("--tenant-kv: %q is not NAME=SHARE with a share above 0 and at most 1", t)
		}
		tenants[name] = share
	}
	return worker.Settings{
		TenantKV:        tenants,
		ID:              w.id,
		Rebind:          w.rebind,
		Pool:            w.pool,
		Listen:          w.listen,
		Advertise:       w.advertise,
		Control:         w.control,
		Certificates:    w.certificates,
		KVBytes:         w.kvBytes,
		KVType:          kv,
		HostKVBytes:     w.kvHostBytes,
		DiskKVDir:       w.kvDisk,
		DiskKVBytes:     w.kvDiskBytes,
		FetchKVBytes:    cmp.Or(w.kvFetchBytes, -1),
		DrainTimeout:    drain,
		HandOverTimeout: cmp.Or(w.handOver, -1),
		Engine: engine.Settings{
			MaxSequences:   w.maxSequences,
			MaxBatchTokens: w.batchTokens,
			PrefixCache:    w.prefixCache,
			Speculate:      w.speculate,
			DecodeShare:    w.decodeShare,
			ReturnAfter:    cmp.Or(w.returnAfter, -1),
		},
	}, nil
}

// reach checks how the worker is to reach its cluster and be reached, before the model is loaded for
// nothing: an address where something else answers is told from a node that is not there yet.
func (w *workerFlags) reach(ctx context.Context) (err error) {
	if len(w.control) == 0 {
		return usagef("--control names no control-plane node")
	}
	for _, address := range w.control {
		if err := transport.CheckAddress(address); err != nil {
			return usagef("--control: %w", err)
		}
	}
	if err := w.tls.guard("listen", w.listen); err != nil {
		return err
	}
	if err := w.tls.guard("control", w.control...); err != nil {
		return err
	}
	if err := w.checkAdvertised(); err != nil {
		return err
	}
	if w.certificates, err = w.tls.loadAs(trust.Identity{Role: trust.Worker, Name: w.id}); err != nil {
		return err
	}
	faults := make([]error, len(w.control))
	var asked sync.WaitGroup
	for i, address := range w.control {
		asked.Go(func() { faults[i] = w.ask(ctx, address) })
	}
	asked.Wait()
	if slices.ContainsFunc(faults, func(err error) bool { return !transport.IsMistake(err) }) {
		return nil
	}
	return usagef("--control: %w", errors.Join(faults...))
}

// checkAdvertised refuses an address that gateways could not use.
func (w *workerFlags) checkAdvertised() error {
	flag, address := "advertise", w.advertise
	if address == "" {
		flag, address = "listen", w.listen
	} else if err := transport.CheckAddress(address); err != nil {
		return usagef("--advertise: %w", err)
	}
	if transport.Unspecified(address) {
		return usagef("--%s: others cannot use %q; say with --advertise what they can", flag, address)
	}
	if transport.Loopback(address) && slices.ContainsFunc(w.control, func(node string) bool { return !transport.Loopback(node) }) {
		return usagef("--%s: %s is reached from this machine alone, and --control names others, whose gateways are to use it", flag, address)
	}
	return nil
}

// askTimeout is how long a node may take to say that it is one.
const askTimeout = 2 * time.Second

// ask calls a node, to see whether it is one.
func (w *workerFlags) ask(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	conn, err := transport.Dial(w.certificates, address, transport.Expected{Role: trust.Node})
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: pb.Control_ServiceDesc.ServiceName})
	if status.Code(err) == codes.NotFound {
		return transport.NotServed(address, pb.Control_ServiceDesc.ServiceName)
	}
	return transport.Explain(address, err)
}

func newWorker() *cobra.Command {
	var w workerFlags
	var name string
	var drain time.Duration
	cmd := &cobra.Command{
		Use:   "worker",
		Short: "Run a worker node: engine, paged KV cache, device",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := w.reach(cmd.Context()); err != nil {
				return err
			}
			specs, err := openSpecs([]string{name})
			if err != nil {
				return err
			}
			defer closeSpecs(specs)
			if err := w.check(specs[0]); err != nil {
				return err
			}
			debug, err := listenDebug(w.debug)
			if err != nil {
				return err
			}
			bar := newProgress(cmd.ErrOrStderr(), "loading "+specs[0].ID)
			dev, m, err := w.open(specs[0], bar.bytes)
			bar.end(err == nil)
			if err != nil {
				return err
			}
			defer dev.Close()
			node, err := w.newNode(dev, m, drain)
			if err != nil {
				return err
			}
			stopDebug := serveDebug(cmd, debug, node)
			fmt.Fprintf(cmd.ErrOrStderr(), "worker %s: %s on %s, kernels %s, %d threads; tokens on %s\n", w.id, m.ID, dev.Info().Name, dev.Info().Path, dev.Info().Threads, node.Info().GetAddress())
			return errors.Join(node.Run(cmd.Context()), stopDebug())
		},
	}
	w.flags(cmd)
	host, err := os.Hostname()
	if err != nil {
		host = "worker-1"
	}
	f := cmd.Flags()
	f.StringVar(&w.id, "id", host, "name of this worker, unique in the cluster")
	f.StringVar(&w.pool, "pool", state.DefaultPool, "pool of workers that it belongs to; see quire pool")
	f.StringVar(&w.listen, "listen", "127.0.0.1:8002", "address where gateways fetch tokens, and other workers the KV cache of what is handed over")
	f.StringVar(&w.advertise, "advertise", "", "address that gateways are told to use (default: --listen)")
	f.StringSliceVar(&w.control, "control", []string{"127.0.0.1:8004"}, "addresses of control-plane nodes' ports for the cluster (their --cluster)")
	w.tls.listenFlags(f)
	f.StringVar(&name, "model", "auto", "name or path of the model; auto: smollm2-135m if pulled, else tiny")
	f.DurationVar(&drain, "drain-timeout", 30*time.Second, "how long running requests may take to finish on shutdown; 0 hands them over to other workers at once")
	f.DurationVar(&w.handOver, "hand-over-timeout", 5*time.Second, "how long a worker that handed requests over stays for others to fetch their KV cache; 0 ends at once")
	f.BoolVar(&w.rebind, "rebind", false, "the model's name may stand for this worker's weights from now on, if no other worker and no unfinished request has it")
	f.Int64Var(&w.kvFetchBytes, "kv-fetch-bytes", 1<<30, "most host memory for KV cache on its way from a worker that handed requests over; --kv-host-bytes takes its place; 0: compute it again, and serve none")
	return cmd
}
