package check

import (
	"slices"

	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

func Request(r *pb.Request) error {
	switch {
	case r == nil:
		return rpc.Invalid("request", "is missing")
	case r.GetId() == "" || len(r.GetId()) > MaxRequestIDBytes:
		return rpc.Invalid("request.id", "%d bytes; it must have 1 to %d", len(r.GetId()), MaxRequestIDBytes)
	case r.GetModel() == "" || len(r.GetModel()) > rpc.MaxModelBytes:
		return rpc.Invalid("request.model", "%d bytes; it must have 1 to %d", len(r.GetModel()), rpc.MaxModelBytes)
	case len(r.GetTenant()) > rpc.MaxIDBytes:
		return rpc.Invalid("request.tenant", "%d bytes; the limit is %d", len(r.GetTenant()), rpc.MaxIDBytes)
	case len(r.GetGatewayId()) > rpc.MaxIDBytes:
		return rpc.Invalid("request.gateway_id", "%d bytes; the limit is %d", len(r.GetGatewayId()), rpc.MaxIDBytes)
	case len(r.GetPrompt()) == 0:
		return rpc.Invalid("request.prompt", "is empty; it needs at least one token")
	case len(r.GetGenerated()) > 0:
		return rpc.Invalid("request.generated", "is for workers; the control plane keeps what a request has generated")
	case r.GetKvSource() != "":
		return rpc.Invalid("request.kv_source", "is for workers; the control plane knows who handed a request over")
	case r.GetSampling().GetN() > MaxChoices:
		return rpc.Invalid("request.sampling.n", "%d; the limit is %d", r.GetSampling().GetN(), MaxChoices)
	case r.GetPatienceMs() < 0 || r.GetPatienceMs() > MaxPatienceMS:
		return rpc.Invalid("request.patience_ms", "%d; it must be 0 to %d", r.GetPatienceMs(), MaxPatienceMS)
	case proto.Size(r) > MaxRequestBytes:
		return rpc.Invalid("request", "%d bytes encoded, with %d prompt tokens; the limit is %d bytes", proto.Size(r), len(r.GetPrompt()), MaxRequestBytes)
	case proto.Size(r) > OnePieceBytes && proto.Size(state.WithPrompt(r, nil)) > BodyBytes:
		return rpc.Invalid("request", "%d bytes encoded without its prompt; the limit for one above %d bytes is %d", proto.Size(state.WithPrompt(r, nil)), OnePieceBytes, BodyBytes)
	}
	if i := slices.IndexFunc(r.GetPrompt(), func(id int32) bool { return id < 0 }); i >= 0 {
		return rpc.Invalid("request.prompt", "token %d is %d; token ids are not negative", i, r.GetPrompt()[i])
	}
	return nil
}
