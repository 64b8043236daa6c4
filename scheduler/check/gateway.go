package check

import (
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

// Models bounds what a gateway says of its models.
func Models(models []*pb.GatewayModel) error {
	if len(models) > state.MaxModels {
		return rpc.Invalid("models", "%d; the limit is %d", len(models), state.MaxModels)
	}
	for i, m := range models {
		if m.GetName() == "" || len(m.GetName()) > rpc.MaxModelBytes || len(m.GetDigest()) > rpc.MaxModelBytes {
			return rpc.Invalid("models", "%d: a name has 1 to %d bytes, a digest at most as many", i, rpc.MaxModelBytes)
		}
	}
	return nil
}

// Recall says what is impossible about what a gateway has of lost requests. What depends on the request
// (how many choices and tokens it may have, which ids there are) is looked at where it is taken in.
func Recall(in *pb.RecallRequest) error {
	if in.GetGatewayId() == "" || len(in.GetGatewayId()) > rpc.MaxIDBytes {
		return rpc.Invalid("gateway_id", "%d bytes; it must have 1 to %d", len(in.GetGatewayId()), rpc.MaxIDBytes)
	}
	for _, p := range in.GetRequests() {
		if err := news("requests", p.GetRequestId(), p.GetChoices()); err != nil {
			return err
		}
		for _, c := range p.GetChoices() {
			switch reason := c.GetFinishReason(); {
			case c.GetFirst() != 0:
				return rpc.Invalid("requests", "choice %d of %q begins with token %d; what a gateway has begins with the first", c.GetChoice(), p.GetRequestId(), c.GetFirst())
			case reason != pb.FinishReason_FINISH_REASON_UNSPECIFIED && reason != pb.FinishReason_FINISH_REASON_STOP && reason != pb.FinishReason_FINISH_REASON_LENGTH:
				return rpc.Invalid("requests", "choice %d of %q ended with %v; a gateway gives back what stopped by itself", c.GetChoice(), p.GetRequestId(), reason)
			}
		}
	}
	return nil
}
