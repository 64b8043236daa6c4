package scheduler

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/state"
)

// TestOneWorkerHasAnID: a second worker under an id, at another address, is refused as long as the first is in
// session, which keeps what it runs.
func TestOneWorkerHasAnID(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		first, second := newWorker(t, "w"), newWorker(t, "w")
		second.info.Address = "elsewhere:1"
		first.join(s)
		defer first.leave()
		until(t, "the first is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("r"))
		until(t, "it runs", func() bool { return first.has("r") })
		second.join(s)
		until(t, "the second is refused", func() bool { return second.end() != nil })
		if err := second.end(); status.Code(err) != codes.AlreadyExists {
			t.Errorf("the second ended with %v", err)
		}
		time.Sleep(time.Second) // virtual
		if !first.has("r") || first.end() != nil || second.has("r") {
			t.Error("the first did not keep its session and what it runs")
		}
	})
}

// TestWorkersEndOnlyWhatIsTheirs: what a worker says of a request that another one runs is ignored.
func TestWorkersEndOnlyWhatIsTheirs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		a, b := newWorker(t, "a"), newWorker(t, "b")
		a.join(s)
		defer a.leave()
		until(t, "a is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("r"))
		until(t, "a runs it", func() bool { return a.has("r") })
		b.join(s)
		defer b.leave()
		until(t, "b is in session", func() bool { return s.Stats().Workers == 2 })
		b.say(&pb.WorkRequest{Message: &pb.WorkRequest_Finished{Finished: &pb.Finished{Requests: []*pb.FinishedRequest{
			{RequestId: "r", FinishReason: pb.FinishReason_FINISH_REASON_STOP},
		}}}})
		time.Sleep(time.Second) // virtual
		if r := s.store.View().Request("r"); r.Phase != state.Assigned || r.WorkerID != "a" {
			t.Errorf("it is %v on %q", r.Phase, r.WorkerID)
		}
		a.finish("r", pb.FinishReason_FINISH_REASON_STOP, "")
		until(t, "a ends it", finished(s, "r"))
	})
}
