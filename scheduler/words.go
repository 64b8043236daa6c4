package scheduler

import (
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// What a worker says is checked against what it may say, before anything is made of it: a worker is another
// program on another machine. Requests that are not its own are not an error, for its words and the leader's
// cross; they change nothing. A session in which something impossible is said ends.
//
// Gateways are held to the same. A gateway is believed about the tenants whose requests it brings, for it alone
// sees the clients; not about requests that are another's, nor about output that a request cannot have.

// maxHeartbeatBytes bounds a heartbeat with the state of all devices.
const maxHeartbeatBytes = 64 << 10

// checkWords says what is impossible about a message of a worker.
func checkWords(w *pb.WorkerInfo, m *pb.WorkRequest) error {
	switch m := m.GetMessage().(type) {
	case *pb.WorkRequest_Heartbeat:
		return checkHeartbeat(w, m.Heartbeat)
	case *pb.WorkRequest_Finished:
		for _, f := range m.Finished.GetRequests() {
			if err := checkFinished(f); err != nil {
				return err
			}
		}
	case *pb.WorkRequest_Progress:
		for _, p := range m.Progress.GetRequests() {
			if err := checkNews("progress.requests", p.GetRequestId(), p.GetChoices()); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkHeartbeat(w *pb.WorkerInfo, h *pb.Heartbeat) error {
	if size := proto.Size(h); size > maxHeartbeatBytes {
		return invalid("heartbeat", "%d bytes; the limit is %d", size, maxHeartbeatBytes)
	}
	if h.GetFreeBlocks() > w.GetTotalBlocks() {
		return invalid("heartbeat.free_blocks", "%d of %d blocks", h.GetFreeBlocks(), w.GetTotalBlocks())
	}
	for name, value := range map[string]int64{
		"running": int64(h.GetRunning()), "waiting": int64(h.GetWaiting()), "free_blocks": int64(h.GetFreeBlocks()),
		"pending_prefill_tokens": h.GetPendingPrefillTokens(), "host_blocks": int64(h.GetHostBlocks()), "disk_blocks": int64(h.GetDiskBlocks()),
	} {
		if value < 0 {
			return invalid("heartbeat."+name, "%d is negative", value)
		}
	}
	return nil
}

// workerEnds are the reasons for which a worker may end a request or a choice.
var workerEnds = map[pb.FinishReason]bool{
	pb.FinishReason_FINISH_REASON_STOP: true, pb.FinishReason_FINISH_REASON_LENGTH: true, pb.FinishReason_FINISH_REASON_ABORT: true,
	pb.FinishReason_FINISH_REASON_ERROR: true, pb.FinishReason_FINISH_REASON_INVALID: true, pb.FinishReason_FINISH_REASON_DEADLINE: true,
}

func checkFinished(f *pb.FinishedRequest) error {
	const field = "finished.requests"
	switch {
	case f.GetReturned() == (f.GetFinishReason() != pb.FinishReason_FINISH_REASON_UNSPECIFIED):
		return invalid(field, "%q is either returned or ended with a reason", cut(f.GetRequestId(), maxRequestIDBytes))
	case !f.GetReturned() && !workerEnds[f.GetFinishReason()]:
		return invalid(field, "%q ends with %v, which a worker cannot say", cut(f.GetRequestId(), maxRequestIDBytes), f.GetFinishReason())
	case f.GetUsage().GetPromptTokens() < 0 || f.GetUsage().GetCompletionTokens() < 0 || f.GetUsage().GetCachedTokens() < 0:
		return invalid(field, "the usage of %q has a negative count", cut(f.GetRequestId(), maxRequestIDBytes))
	}
	return checkNews(field, f.GetRequestId(), f.GetChoices())
}

func checkNews(field, id string, news []*pb.ChoiceProgress) error {
	if id == "" || len(id) > maxRequestIDBytes {
		return invalid(field, "an id of %d bytes; it has 1 to %d", len(id), maxRequestIDBytes)
	}
	for _, n := range news {
		if reason := n.GetFinishReason(); reason != pb.FinishReason_FINISH_REASON_UNSPECIFIED && !workerEnds[reason] {
			return invalid(field, "choice %d of %q ends with %v, which a worker cannot say", n.GetChoice(), id, reason)
		}
	}
	return nil
}

// checkRecall says what is impossible about what a gateway has of lost requests. What depends on the request
// (how many choices and tokens it may have, which ids there are) is looked at where it is taken in.
func checkRecall(in *pb.RecallRequest) error {
	if in.GetGatewayId() == "" || len(in.GetGatewayId()) > maxIDBytes {
		return invalid("gateway_id", "%d bytes; it must have 1 to %d", len(in.GetGatewayId()), maxIDBytes)
	}
	for _, p := range in.GetRequests() {
		if err := checkNews("requests", p.GetRequestId(), p.GetChoices()); err != nil {
			return err
		}
		for _, c := range p.GetChoices() {
			switch reason := c.GetFinishReason(); {
			case c.GetFirst() != 0:
				return invalid("requests", "choice %d of %q begins with token %d; what a gateway has begins with the first", c.GetChoice(), p.GetRequestId(), c.GetFirst())
			case reason != pb.FinishReason_FINISH_REASON_UNSPECIFIED && reason != pb.FinishReason_FINISH_REASON_STOP && reason != pb.FinishReason_FINISH_REASON_LENGTH:
				return invalid("requests", "choice %d of %q ended with %v; a gateway gives back what stopped by itself", c.GetChoice(), p.GetRequestId(), reason)
			}
		}
	}
	return nil
}
