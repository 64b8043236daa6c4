package check

import (
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/rpc"
)

func Hello(h *pb.Hello) error {
	w := h.GetWorker()
	switch {
	case w == nil:
		return rpc.Invalid("hello.worker", "is missing; a session begins with a hello")
	case w.GetId() == "" || len(w.GetId()) > rpc.MaxIDBytes:
		return rpc.Invalid("hello.worker.id", "%d bytes; it must have 1 to %d", len(w.GetId()), rpc.MaxIDBytes)
	case w.GetAddress() == "" || len(w.GetAddress()) > rpc.MaxModelBytes:
		return rpc.Invalid("hello.worker.address", "%d bytes; it must have 1 to %d", len(w.GetAddress()), rpc.MaxModelBytes)
	case w.GetModel() == "" || len(w.GetModel()) > rpc.MaxModelBytes:
		return rpc.Invalid("hello.worker.model", "%d bytes; it must have 1 to %d", len(w.GetModel()), rpc.MaxModelBytes)
	case len(w.GetPool()) > rpc.MaxIDBytes:
		return rpc.Invalid("hello.worker.pool", "%d bytes; the limit is %d", len(w.GetPool()), rpc.MaxIDBytes)
	case proto.Size(w) > MaxWorkerBytes:
		return rpc.Invalid("hello.worker", "%d bytes; the limit is %d", proto.Size(w), MaxWorkerBytes)
	}
	for _, t := range w.GetTenants() {
		if t.GetTenant() == "" || len(t.GetTenant()) > rpc.MaxIDBytes || t.GetBlocks() < 1 {
			return rpc.Invalid("hello.worker.tenants", "%q with %d blocks; a name has 1 to %d bytes, and the least is 1 block", t.GetTenant(), t.GetBlocks(), rpc.MaxIDBytes)
		}
	}
	for name, value := range map[string]int32{
		"context_length": w.GetContextLength(), "block_tokens": w.GetBlockTokens(), "total_blocks": w.GetTotalBlocks(),
		"max_sequences": w.GetMaxSequences(), "max_batch_tokens": w.GetMaxBatchTokens(),
	} {
		if value < 1 {
			return rpc.Invalid("hello.worker."+name, "%d; the least is 1", value)
		}
	}
	return nil
}

// What a worker says is checked against what it may say, before anything is made of it: a worker is another
// program on another machine. Requests that are not its own are not an error, for its words and the leader's
// cross; they change nothing. A session in which something impossible is said ends.
//
// Gateways are held to the same. A gateway is believed about the tenants whose requests it brings, for it alone
// sees the clients; not about requests that are another's, nor about output that a request cannot have.

// maxHeartbeatBytes bounds a heartbeat with the state of all devices.
const maxHeartbeatBytes = 64 << 10

// Worker says what is impossible about a message of a worker.
func Worker(w *pb.WorkerInfo, m *pb.WorkRequest) error {
	switch m := m.GetMessage().(type) {
	case *pb.WorkRequest_Heartbeat:
		return heartbeat(w, m.Heartbeat)
	case *pb.WorkRequest_Finished:
		for _, f := range m.Finished.GetRequests() {
			if err := finished(f); err != nil {
				return err
			}
		}
	case *pb.WorkRequest_Progress:
		for _, p := range m.Progress.GetRequests() {
			if err := news("progress.requests", p.GetRequestId(), p.GetChoices()); err != nil {
				return err
			}
		}
	}
	return nil
}

func heartbeat(w *pb.WorkerInfo, h *pb.Heartbeat) error {
	if size := proto.Size(h); size > maxHeartbeatBytes {
		return rpc.Invalid("heartbeat", "%d bytes; the limit is %d", size, maxHeartbeatBytes)
	}
	if h.GetFreeBlocks() > w.GetTotalBlocks() {
		return rpc.Invalid("heartbeat.free_blocks", "%d of %d blocks", h.GetFreeBlocks(), w.GetTotalBlocks())
	}
	for name, value := range map[string]int64{
		"running": int64(h.GetRunning()), "waiting": int64(h.GetWaiting()), "free_blocks": int64(h.GetFreeBlocks()),
		"pending_prefill_tokens": h.GetPendingPrefillTokens(), "host_blocks": int64(h.GetHostBlocks()), "disk_blocks": int64(h.GetDiskBlocks()),
	} {
		if value < 0 {
			return rpc.Invalid("heartbeat."+name, "%d is negative", value)
		}
	}
	return nil
}

// workerEnds are the reasons for which a worker may end a request or a choice.
var workerEnds = map[pb.FinishReason]bool{
	pb.FinishReason_FINISH_REASON_STOP: true, pb.FinishReason_FINISH_REASON_LENGTH: true, pb.FinishReason_FINISH_REASON_ABORT: true,
	pb.FinishReason_FINISH_REASON_ERROR: true, pb.FinishReason_FINISH_REASON_INVALID: true, pb.FinishReason_FINISH_REASON_DEADLINE: true,
}

func finished(f *pb.FinishedRequest) error {
	const field = "finished.requests"
	switch {
	case f.GetReturned() == (f.GetFinishReason() != pb.FinishReason_FINISH_REASON_UNSPECIFIED):
		return rpc.Invalid(field, "%q is either returned or ended with a reason", rpc.Cut(f.GetRequestId(), MaxRequestIDBytes))
	case !f.GetReturned() && !workerEnds[f.GetFinishReason()]:
		return rpc.Invalid(field, "%q ends with %v, which a worker cannot say", rpc.Cut(f.GetRequestId(), MaxRequestIDBytes), f.GetFinishReason())
	case f.GetUsage().GetPromptTokens() < 0 || f.GetUsage().GetCompletionTokens() < 0 || f.GetUsage().GetCachedTokens() < 0:
		return rpc.Invalid(field, "the usage of %q has a negative count", rpc.Cut(f.GetRequestId(), MaxRequestIDBytes))
	}
	return news(field, f.GetRequestId(), f.GetChoices())
}

func news(field, id string, news []*pb.ChoiceProgress) error {
	if id == "" || len(id) > MaxRequestIDBytes {
		return rpc.Invalid(field, "an id of %d bytes; it has 1 to %d", len(id), MaxRequestIDBytes)
	}
	for _, n := range news {
		if reason := n.GetFinishReason(); reason != pb.FinishReason_FINISH_REASON_UNSPECIFIED && !workerEnds[reason] {
			return rpc.Invalid(field, "choice %d of %q ends with %v, which a worker cannot say", n.GetChoice(), id, reason)
		}
	}
	return nil
}
