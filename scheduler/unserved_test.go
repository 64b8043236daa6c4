package scheduler

import (
	"context"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/state"
)

// TestNoWorkerTakesRequests: with all workers of a model cordoned a request waits 10 s and ends with the reason,
// later ones are refused at once with when to try again, gateways are told, what runs goes on, and all is well once one takes
// requests again.
func TestNoWorkerTakesRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		gateway, stop := watch(t, s)
		defer stop()
		mustSubmit(t, s, request("runs"))
		until(t, "it runs", func() bool { return w.has("runs") })
		cordon := func(lifted bool) {
			t.Helper()
			if _, err := s.Cordon(context.Background(), &pb.CordonRequest{WorkerId: "w", Lifted: lifted}); err != nil {
				t.Fatal(err)
			}
		}
		cordon(false)
		asked := time.Now()
		mustSubmit(t, s, request("waits"))
		until(t, "it ends", finished(s, "waits"))
		if took := time.Since(asked); took < unservedGrace-time.Second || took > unservedGrace+time.Second {
			t.Errorf("it waited %v, want %v", took, unservedGrace)
		}
		if r := s.store.View().Request("waits"); r.FinishReason != pb.FinishReason_FINISH_REASON_UNSERVED {
			t.Errorf("ended with %v %q", r.FinishReason, r.Error)
		}
		if _, err := submit(s, request("late")); status.Code(err) != codes.Unavailable || retryAfter(err) <= 0 {
			t.Errorf("a later one: %v, again after %v", err, retryAfter(err))
		}
		if why, refused := gateway.refuses("m"); !refused || !strings.Contains(why, "1 are cordoned") {
			t.Errorf("the gateway hears %t %q", refused, why)
		}
		late, stopLate := watchAs(t, s, "late")
		until(t, "a gateway that begins to watch hears it too", func() bool { _, refused := late.refuses("m"); return refused })
		stopLate()
		if counts := s.Stats().RefusedByModel; len(counts) != 1 || counts[0] != (Refused{"m", reasonNoWorker, 2}) {
			t.Errorf("counted as %+v, want what waited and what came later", counts)
		}
		if !w.has("runs") {
			t.Error("what ran was ended")
		}
		cordon(true)
		until(t, "the gateway hears that they are taken again", func() bool { _, refused := gateway.refuses("m"); return !refused })
		mustSubmit(t, s, request("again"))
		until(t, "it runs", func() bool { return w.has("again") })
	})
}

// TestNobodyIsCutShort: a request that only a large worker holds to its end is not given to a small one while
// the large one is away, also after the leader changed, and goes on there when it is back. If the large one is
// gone for good, what has not been started ends with the reason.
func TestNobodyIsCutShort(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		large, small := newWorker(t, "large"), newWorker(t, "small")
		small.info.ContextLength = 64
		large.join(s)
		small.join(s)
		defer small.leave()
		until(t, "both are in session", func() bool { return s.Stats().Workers == 2 })
		long := func(id string) *pb.Request {
			r := request(id)
			r.Sampling = &pb.SamplingParams{MaxTokens: 1000}
			return r
		}
		mustSubmit(t, s, long("begun"))
		until(t, "it runs on the large one", func() bool { return large.has("begun") })
		large.progress("begun", &pb.ChoiceProgress{TokenIds: []int32{7, 8, 9}})
		until(t, "the log has a part of it", func() bool { return len(s.store.View().Request("begun").Outputs) == 1 })
		large.crash()
		mustSubmit(t, s, request("short"))
		until(t, "the small one serves", func() bool { return small.has("short") })
		again := newWorker(t, "large")
		again.join(s)
		until(t, "it goes on where it fits", func() bool { return again.has("begun") })
		if small.has("begun") {
			t.Error("the small worker was given what it cannot hold")
		}
		if _, err := s.Cordon(context.Background(), &pb.CordonRequest{WorkerId: "large"}); err != nil {
			t.Fatal(err)
		}
		mustSubmit(t, s, long("waits"))
		again.crash()
		gone := time.Now()
		until(t, "what has not been started ends", finished(s, "waits"))
		if took := time.Since(gone); took < unservedGrace || took > unservedGrace+10*time.Second {
			t.Errorf("it waited %v after the worker had gone", took)
		}
		if r := s.store.View().Request("waits"); r.FinishReason != pb.FinishReason_FINISH_REASON_UNSERVED || !strings.Contains(r.Error, "1003 tokens") {
			t.Errorf("ended with %v %q", r.FinishReason, r.Error)
		}
		if r := s.store.View().Request("begun"); r.Phase == state.Finished || small.has("begun") || small.has("waits") {
			t.Error("what had begun did not wait for a worker that holds it")
		}
	})
}
