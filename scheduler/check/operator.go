package check

import (
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

func Tenant(t *pb.Tenant) error {
	if t == nil {
		return rpc.Invalid("tenant", "is missing")
	}
	if t.GetName() == "" || len(t.GetName()) > rpc.MaxIDBytes {
		return rpc.Invalid("tenant.name", "%d bytes; it must have 1 to %d", len(t.GetName()), rpc.MaxIDBytes)
	}
	for _, field := range []struct {
		name        string
		value, most int64
	}{
		{"weight", t.GetWeight(), state.MaxWeight}, {"max_requests", int64(t.GetMaxRequests()), state.MaxRate},
		{"requests_per_minute", t.GetRequestsPerMinute(), state.MaxRate}, {"tokens_per_minute", t.GetTokensPerMinute(), state.MaxRate},
	} {
		if field.value < 0 || field.value > field.most {
			return rpc.Invalid("tenant."+field.name, "%d; it must be 0 to %d", field.value, field.most)
		}
	}
	return nil
}

func Pool(name string) error {
	if name == "" || len(name) > rpc.MaxIDBytes {
		return rpc.Invalid("pool.name", "%d bytes; it must have 1 to %d", len(name), rpc.MaxIDBytes)
	}
	return nil
}

// Target says whether a command names a worker or a pool, and not both.
func Target(worker, pool string) error {
	switch {
	case (worker == "") == (pool == ""):
		return rpc.Invalid("worker_id", "exactly one of worker_id and pool must be set")
	case len(worker) > rpc.MaxIDBytes:
		return rpc.Invalid("worker_id", "%d bytes; the limit is %d", len(worker), rpc.MaxIDBytes)
	case len(pool) > rpc.MaxIDBytes:
		return rpc.Invalid("pool", "%d bytes; the limit is %d", len(pool), rpc.MaxIDBytes)
	}
	return nil
}

func Filter(f *pb.RequestFilter) error {
	for field, text := range map[string]string{"tenant": f.GetTenant(), "model": f.GetModel(), "gateway_id": f.GetGatewayId(), "worker_id": f.GetWorkerId()} {
		if len(text) > rpc.MaxModelBytes {
			return rpc.Invalid("filter."+field, "%d bytes; the limit is %d", len(text), rpc.MaxModelBytes)
		}
	}
	if f.GetAgeMs() < 0 {
		return rpc.Invalid("filter.age_ms", "%d is negative", f.GetAgeMs())
	}
	return nil
}
