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

// TestAHostileGateway: a gateway that gives back what cannot be is refused with the field's name, what it gives
// back of its own request beyond what that can have is left out, and it neither reads, takes, ends nor feeds a
// request that is another gateway's or another tenant's.
func TestAHostileGateway(t *testing.T) {
	tokens := func(ids ...int32) []*pb.ChoiceProgress { return []*pb.ChoiceProgress{{TokenIds: ids}} }
	for name, c := range map[string]struct {
		gateway string
		id      string
		choices []*pb.ChoiceProgress
		refused string // the field
		want    string // what the log has of the request then
	}{
		"the truth":            {"g", "a", tokens(10, 11, 12), "", "[10 11 12]0"},
		"nothing":              {"g", "a", nil, "", "[10]0"},
		"another's name":       {"h", "a", tokens(10, 66), "", "[10]0"},
		"no name":              {"", "a", tokens(10, 66), "gateway_id", "[10]0"},
		"an unknown request":   {"g", "b", tokens(10, 66), "", "[10]0"},
		"a huge id":            {"g", strings.Repeat("x", 1<<20), nil, "requests", "[10]0"},
		"not a token":          {"g", "a", tokens(10, -1), "", "[10]0"},
		"beyond the ids":       {"g", "a", tokens(10, 100), "", "[10]0"},
		"beyond max_tokens":    {"g", "a", tokens(10, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17), "", "[10]0"},
		"from the middle":      {"g", "a", []*pb.ChoiceProgress{{First: 1, TokenIds: []int32{66}}}, "requests", "[10]0"},
		"a choice too many":    {"g", "a", []*pb.ChoiceProgress{{Choice: 1, TokenIds: []int32{66}}}, "", "[10]0"},
		"a negative choice":    {"g", "a", []*pb.ChoiceProgress{{Choice: -1, TokenIds: []int32{66}}}, "", "[10]0"},
		"a worker's reason":    {"g", "a", []*pb.ChoiceProgress{{TokenIds: []int32{10}, FinishReason: pb.FinishReason_FINISH_REASON_ERROR}}, "requests", "[10]0"},
		"an unknown reason":    {"g", "a", []*pb.ChoiceProgress{{TokenIds: []int32{10}, FinishReason: 99}}, "requests", "[10]0"},
		"a stop that can have": {"g", "a", []*pb.ChoiceProgress{{TokenIds: []int32{10, 11}, FinishReason: stopped}}, "", "[10 11]1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := start(t, Settings{})
				w := newWorker(t, "one")
				w.info.Vocabulary = 100
				w.join(s)
				until(t, "it is in session", func() bool { return s.Stats().Workers == 1 })
				owner, stop := watch(t, s)
				defer stop()
				_, stopOther := watchAs(t, s, "h")
				defer stopOther()
				mustSubmit(t, s, request("a"))
				until(t, "it runs", func() bool { return w.has("a") })
				w.progress("a", news(0, 0, 0, 10))
				until(t, "the log has a token", func() bool { return logged(s, "a") == "[10]0" })

				for what, in := range map[string]*pb.AdoptRequest{
					"another tenant's":  {RequestId: "a", GatewayId: "h", Tenant: "u"},
					"no tenant's":       {RequestId: "a", GatewayId: "h"},
					"a look at another": {RequestId: "a", GatewayId: "h", Tenant: "u", IfMine: true},
				} {
					if r, err := s.Adopt(t.Context(), in); err != nil || r.GetFound() || r.GetRequest() != nil || len(r.GetOutputs()) > 0 {
						t.Errorf("adopts %s: %v, %v", what, r, err)
					}
				}
				if _, err := s.Adopt(t.Context(), &pb.AdoptRequest{RequestId: "a", GatewayId: "h", Tenant: strings.Repeat("u", 1000)}); status.Code(err) != codes.InvalidArgument {
					t.Errorf("a huge tenant: %v", err)
				}
				if r, err := s.Abort(t.Context(), &pb.AbortRequest{RequestId: "a", GatewayId: "h"}); err != nil || r.GetFound() {
					t.Errorf("aborts another's: %v, %v", r, err)
				}
				if got := s.store.View().Request("a").Request.GetGatewayId(); got != "g" {
					t.Errorf("it streams to %q now", got)
				}

				w.crash()
				until(t, "the gateway is asked", func() bool { return owner.told("a") != nil })
				lost := owner.told("a")
				_, err := s.Recall(t.Context(), &pb.RecallRequest{GatewayId: c.gateway, Requests: []*pb.RequestProgress{
					{RequestId: c.id, Term: lost.GetTerm(), Index: lost.GetIndex(), Choices: c.choices},
				}})
				if c.refused == "" && err != nil || c.refused != "" && (status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.refused)) {
					t.Errorf("told %v, want a refusal of %q", err, c.refused)
				}
				two := newWorker(t, "two")
				two.join(s)
				defer two.leave()
				if strings.HasSuffix(c.want, "0") {
					until(t, "it goes on", func() bool { return two.has("a") })
				}
				until(t, "the log has what is true, "+c.want+", not "+logged(s, "a"), func() bool { return logged(s, "a") == c.want })
			})
		})
	}
}
