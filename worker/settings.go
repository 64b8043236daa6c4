package worker

import (
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/trust"
	"github.com/quire-serve/quire/worker/engine"
	"github.com/quire-serve/quire/worker/telemetry"
)

// Settings is what a worker is made with. Zero values mean the defaults stated per field.
type Settings struct {
	// ID names the worker; it must be unique in the cluster. Required.
	ID string
	// Pool is the set of workers that it is looked after with. Default "default".
	Pool string
	// Rebind lets the model's name stand for this worker's weights, if no other worker has it.
	Rebind bool
	// Listen is the address of the Worker service. Default "127.0.0.1:0".
	Listen string
	// Advertise is the address that gateways dial. Default: where the service listens.
	Advertise string
	// Control lists the addresses of the control-plane nodes' ports for the cluster. Required.
	Control []string
	// Certificates prove to nodes, gateways and other workers who this worker is, and who they are.
	// Default: none, plain TCP. The one of the worker must be of its ID.
	Certificates *trust.Certificates

	// Engine bounds the engine. Blocks may be 0: then KVBytes says how many.
	Engine engine.Settings
	// KVBytes is the memory for the KV cache. Default: an eighth of the memory that is free, at
	// least enough for one sequence of the full context and at most for MaxSequences of them.
	KVBytes int64
	// KVType is how the cache's elements are stored: F16 (default), F32 or I8.
	KVType device.Type
	// HostKVBytes is the host memory that takes blocks evicted from the KV cache; 0 is none.
	HostKVBytes int64
	// DiskKVDir is a folder of this worker's own, at most DiskKVBytes large, that takes blocks evicted
	// from host memory and keeps them over a restart; empty is none. It needs HostKVBytes.
	DiskKVDir   string
	DiskKVBytes int64
	// TenantKV bounds what single tenants may hold of the KV cache and of each tier below it, as a share
	// of it above 0 and up to 1. A sequence of theirs may be no longer than that. Who is not named has no
	// bound.
	TenantKV map[string]float64
	// FetchKVBytes is the most host memory for blocks of requests that another worker handed over, on their
	// way to the KV cache; with HostKVBytes they go there instead. Default 1 GiB; negative moves no blocks
	// between workers.
	FetchKVBytes int64
	// costs, if set, are taken instead of measured.
	costs *engine.Costs

	// DrainTimeout bounds how long Run goes on after its context ended, to finish what runs.
	// Default 30 s; negative is none at all.
	DrainTimeout time.Duration
	// HandOverTimeout bounds how long Run goes on after it handed requests over, for other workers to fetch
	// their KV cache. It ends as soon as they have. Default 5 s; negative is none at all.
	HandOverTimeout time.Duration
	// KeepEnded is how long the output of an ended request is kept for its gateway. Default 1 min.
	KeepEnded time.Duration
	// OutboxRequests and OutboxBytes bound what the outbox keeps. Defaults 16,384 and 256 MiB.
	OutboxRequests int
	OutboxBytes    int64

	// Telemetry reads the devices that the worker computes on, once a second; heartbeats carry what
	// it read. Default none. Run closes it.
	Telemetry telemetry.Reader

	// Logger gets the worker's log. Default slog.Default().
	Logger *slog.Logger
}

func (s Settings) withDefaults() Settings {
	if s.Listen == "" {
		s.Listen = "127.0.0.1:0"
	}
	if s.KVType == 0 {
		s.KVType = device.F16
	}
	if s.DrainTimeout == 0 {
		s.DrainTimeout = 30 * time.Second
	}
	if s.HandOverTimeout == 0 {
		s.HandOverTimeout = 5 * time.Second
	}
	if s.FetchKVBytes == 0 {
		s.FetchKVBytes = 1 << 30
	}
	if s.KeepEnded == 0 {
		s.KeepEnded = time.Minute
	}
	if s.OutboxRequests == 0 {
		s.OutboxRequests = 16384
	}
	if s.OutboxBytes == 0 {
		s.OutboxBytes = 256 << 20
	}
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	if s.Engine.Logger == nil {
		s.Engine.Logger = s.Logger
	}
	return s
}

// Validate checks all that does not depend on the model, so that it can be known before one is loaded.
func (s Settings) Validate() error {
	s = s.withDefaults()
	if err := s.validate(); err != nil {
		return err
	}
	e := s.Engine.WithDefaults()
	e.Blocks = max(e.Blocks, 1)
	return e.Validate()
}

func (s Settings) validate() error {
	switch {
	case s.ID == "" || len(s.ID) > 128:
		return fmt.Errorf("worker: id has %d bytes, must have 1 to 128", len(s.ID))
	case len(s.Control) == 0:
		return errors.New("worker: control names no control-plane node")
	case s.Certificates != nil && s.Certificates.Self() != trust.Identity{Role: trust.Worker, Name: s.ID}:
		return fmt.Errorf("worker: the certificate is of %s, not of %s", s.Certificates.Self(), trust.Identity{Role: trust.Worker, Name: s.ID})
	case s.KVBytes < 0:
		return fmt.Errorf("worker: kv_bytes is %d, must not be negative", s.KVBytes)
	case s.KVType != device.F16 && s.KVType != device.F32 && s.KVType != device.I8:
		return fmt.Errorf("worker: kv_type is %v, must be F32, F16 or I8", s.KVType)
	case s.HostKVBytes < 0:
		return fmt.Errorf("worker: kv_host_bytes is %d, must not be negative", s.HostKVBytes)
	case s.HostKVBytes > 0 && !s.Engine.PrefixCache:
		return errors.New("worker: kv_host_bytes needs prefix_cache")
	case s.DiskKVDir != "" && s.HostKVBytes == 0:
		return errors.New("worker: kv_disk needs kv_host_bytes: blocks reach the disk through host memory")
	case s.DiskKVDir != "" && s.DiskKVBytes < 1:
		return fmt.Errorf("worker: kv_disk_bytes is %d, must be positive", s.DiskKVBytes)
	case slices.ContainsFunc(slices.Collect(maps.Values(s.TenantKV)), func(v float64) bool { return !(v > 0 && v <= 1) }):
		return fmt.Errorf("worker: tenant_kv is %v, shares must be above 0 and at most 1", s.TenantKV)
	case s.KeepEnded < 0:
		return fmt.Errorf("worker: keep_ended is %v, must not be negative", s.KeepEnded)
	case s.OutboxRequests < 1:
		return fmt.Errorf("worker: outbox_requests is %d, must be at least 1", s.OutboxRequests)
	case s.OutboxBytes < 1<<20:
		return fmt.Errorf("worker: outbox_bytes is %d, must be at least %d", s.OutboxBytes, 1<<20)
	}
	for _, address := range s.Control {
		if err := transport.CheckAddress(address); err != nil {
			return fmt.Errorf("worker: control: %w", err)
		}
	}
	return nil
}
