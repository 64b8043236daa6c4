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
