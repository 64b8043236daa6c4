package scheduler

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestOtherWeightsAreRefused: a worker whose weights or arithmetic are not those of the model's others gets
// no session.
func TestOtherWeightsAreRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.info.ModelDigest, w.info.Arithmetic = "one", "cpu, KV f16"
		w.join(s)
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		for digest, arithmetic := range map[string]string{"two": "cpu, KV f16", "one": "cpu, KV int8"} {
			x := newWorker(t, "x")
			x.info.ModelDigest, x.info.Arithmetic = digest, arithmetic
			x.join(s)
			until(t, "the worker is refused", func() bool { return x.end() != nil })
			if err := x.end(); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), `hello.worker: model "m"`) {
				t.Errorf("%s, %s: %v", digest, arithmetic, err)
			}
			x.leave()
		}
		if n := s.Stats().Workers; n != 1 {
			t.Errorf("%d workers in session", n)
		}
		w.leave()
	})
}

// eastern is the only worker, in the pool east, which runs a request.
func eastern(t *testing.T, s *Scheduler, runs string) *fakeWorker {
	w := newWorker(t, "w")
	w.info.Pool = "east"
	w.join(s)
	until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
	mustSubmit(t, s, request(runs))
	until(t, "it runs", func() bool { return w.times(runs) == 1 })
	return w
}

// TestCordon: a cordoned pool gets nothing new and keeps what it has; explain says so; the cordon is in the
// log, and lifting it lets requests come.
func TestCordon(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := eastern(t, s, "before")
		defer w.leave()
		if _, err := s.Cordon(t.Context(), &pb.CordonRequest{Pool: "east"}); err != nil {
			t.Fatal(err)
		}
		mustSubmit(t, s, request("after"))
		time.Sleep(time.Second) // Virtual.
		if w.times("after") != 0 {
			t.Error("a cordoned worker was given a request")
		}
		r, err := s.Explain(t.Context(), &pb.ExplainRequest{RequestId: "after"})
		if err != nil || !strings.Contains(r.String(), "cordoned") {
			t.Errorf("explain says %v, %v", r, err)
		}
		// The next leader knows it too.
		old := s.leader.Load()
		old.fail(errLeadershipLost)
		until(t, "there is another leader", func() bool { l := s.leader.Load(); return l != nil && l != old && w.end() != nil })
		w.join(s)
		until(t, "the worker is in session again", func() bool { return s.Stats().Workers == 1 })
		time.Sleep(time.Second) // Virtual.
		if w.times("after") != 0 {
			t.Error("a cordon did not survive its leader")
		}
		l, err := s.ListWorkers(t.Context(), &pb.ListWorkersRequest{})
		if err != nil || len(l.GetWorkers()) != 1 || !l.GetWorkers()[0].GetInSession() || !slices.ContainsFunc(l.GetPools(), func(p *pb.Pool) bool { return p.GetName() == "east" && p.GetCordoned() }) {
			t.Errorf("the list is %v, %v", l, err)
		}
		if _, err := s.Cordon(t.Context(), &pb.CordonRequest{Pool: "east", Lifted: true}); err != nil {
			t.Fatal(err)
		}
		until(t, "it gets what waited", func() bool { return w.times("after") == 1 })
	})
}

// TestDrainPool: draining leaves nobody without a worker unless it is forced to.
func TestDrainPool(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := eastern(t, s, "a")
		defer w.leave()
		for want, in := range map[string]*pb.DrainRequest{
			`no other worker takes requests for m`: {Pool: "east"},
			"exactly one of worker_id and pool":    {Pool: "east", WorkerId: "w"},
			`pool "west" is unknown`:               {Pool: "west"},
			`worker "nobody" is unknown`:           {WorkerId: "nobody"},
		} {
			if _, err := s.Drain(t.Context(), in); err == nil || !strings.Contains(err.Error(), want) {
				t.Errorf("%v: %v, want %q", in, err, want)
			}
		}
		x := newWorker(t, "x")
		x.join(s)
		defer x.leave()
		until(t, "another worker is there", func() bool { return s.Stats().Workers == 2 })
		r, err := s.Drain(t.Context(), &pb.DrainRequest{Pool: "east"})
		if err != nil || r.GetWorkers() != 1 {
			t.Fatalf("%v, %v", r, err)
		}
		until(t, "the worker hears of the drain", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.drained })
		mustSubmit(t, s, request("b"))
		until(t, "the other one gets what comes", func() bool { return x.times("b") == 1 })
		if w.times("b") != 0 {
			t.Error("a draining pool was given a request")
		}
	})
}
