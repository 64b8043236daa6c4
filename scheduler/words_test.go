package scheduler

import (
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestAHostileWorker: a worker that says what cannot be loses its session with the reason, and what it says of
// requests that are not its own, or that it was given in another dispatch, changes nothing.
func TestAHostileWorker(t *testing.T) {
	finished := func(f *pb.FinishedRequest) *pb.WorkRequest {
		return &pb.WorkRequest{Message: &pb.WorkRequest_Finished{Finished: &pb.Finished{Requests: []*pb.FinishedRequest{f}}}}
	}
	beat := func(h *pb.Heartbeat) *pb.WorkRequest {
		return &pb.WorkRequest{Message: &pb.WorkRequest_Heartbeat{Heartbeat: h}}
	}
	progress := func(p *pb.RequestProgress) *pb.WorkRequest {
		return &pb.WorkRequest{Message: &pb.WorkRequest_Progress{Progress: &pb.Progress{Requests: []*pb.RequestProgress{p}}}}
	}
	for name, c := range map[string]struct {
		says *pb.WorkRequest
		want string
	}{
		"no reason":         {finished(&pb.FinishedRequest{RequestId: "a"}), "finished.requests"},
		"an unknown reason": {finished(&pb.FinishedRequest{RequestId: "a", FinishReason: 99}), "finished.requests"},
		"the leader's word": {finished(&pb.FinishedRequest{RequestId: "a", FinishReason: pb.FinishReason_FINISH_REASON_UNSERVED}), "finished.requests"},
		"both":              {finished(&pb.FinishedRequest{RequestId: "a", FinishReason: stopped, Returned: true}), "finished.requests"},
		"a negative usage":  {finished(&pb.FinishedRequest{RequestId: "a", FinishReason: stopped, Usage: &pb.Usage{CompletionTokens: -1}}), "negative"},
		"a long id":         {progress(&pb.RequestProgress{RequestId: strings.Repeat("x", 1<<20)}), "progress.requests"},
		"a choice's reason": {progress(&pb.RequestProgress{RequestId: "a", Choices: []*pb.ChoiceProgress{{FinishReason: 77}}}), "choice 0"},
		"negative blocks":   {beat(&pb.Heartbeat{FreeBlocks: -1}), "heartbeat.free_blocks"},
		"too many blocks":   {beat(&pb.Heartbeat{FreeBlocks: 1 << 30}), "heartbeat.free_blocks"},
		"a negative load":   {beat(&pb.Heartbeat{PendingPrefillTokens: -1 << 60}), "heartbeat.pending_prefill_tokens"},
		"a huge heartbeat":  {beat(&pb.Heartbeat{Devices: []*pb.DeviceFrame{{Name: strings.Repeat("x", 1<<20)}}}), "heartbeat"},
		"another's request": {finished(&pb.FinishedRequest{RequestId: "theirs", FinishReason: stopped, Index: 1, Term: 1}), ""},
		"an unknown one":    {finished(&pb.FinishedRequest{RequestId: "nobody's", FinishReason: stopped}), ""},
		"another's output":  {progress(&pb.RequestProgress{RequestId: "theirs", Term: 1, Index: 1, Choices: []*pb.ChoiceProgress{{TokenIds: []int32{666}}}}), ""},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, Settings{})
				theirs := newWorker(t, "good")
				theirs.join(s)
				defer theirs.leave()
				until(t, "the good worker is in session", func() bool { return s.Stats().Workers == 1 })
				mustSubmit(t, s, request("theirs"))
				until(t, "it runs", func() bool { return theirs.has("theirs") })
				w := newWorker(t, "bad")
				w.join(s)
				until(t, "both are in session", func() bool { return s.Stats().Workers == 2 })
				w.say(c.says)
				if c.want != "" {
					until(t, "its session ends", func() bool { return w.end() != nil })
					if err := w.end(); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.want) {
						t.Errorf("told %v, want %q", err, c.want)
					}
				}
				synctest.Wait()
				theirs.finish("theirs", stopped, "")
				until(t, "the other's request ends by itself", func() bool {
					r := s.store.View().Request("theirs")
					return r != nil && r.FinishReason == stopped && r.WorkerID == "good"
				})
				if l := logged(s, "theirs"); strings.Contains(l, "666") {
					t.Errorf("forged output is in the log: %s", l)
				}
				w.leave()
			})
		})
	}
}
