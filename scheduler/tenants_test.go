package scheduler

import (
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func retryAfter(err error) time.Duration {
	for _, d := range status.Convert(err).Details() {
		if retry, ok := d.(*errdetails.RetryInfo); ok {
			return retry.GetRetryDelay().AsDuration()
		}
	}
	return 0
}

func setTenant(t *testing.T, s *Scheduler, tenant *pb.Tenant) {
	t.Helper()
	if _, err := s.SetTenant(t.Context(), &pb.SetTenantRequest{Tenant: tenant}); err != nil {
		t.Fatal(err)
	}
}

func TestTenantLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		for _, c := range []struct {
			tenant *pb.Tenant
			want   string
		}{
			{nil, "tenant: is missing"},
			{&pb.Tenant{}, "tenant.name"},
			{&pb.Tenant{Name: "t", RequestsPerMinute: -1}, "tenant.requests_per_minute: -1"},
			{&pb.Tenant{Name: "t", Weight: 1 << 40}, "tenant.weight"},
		} {
			if _, err := s.SetTenant(t.Context(), &pb.SetTenantRequest{Tenant: c.tenant}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v: %v, want %q", c.tenant, err, c.want)
			}
		}
		setTenant(t, s, &pb.Tenant{Name: "t", RequestsPerMinute: 3})

		// A thousand at once: the log decides, and admits three.
		var calls sync.WaitGroup
		var mu sync.Mutex
		admitted := 0
		for _, id := range ids("r", 1000) {
			calls.Go(func() {
				_, err := submit(s, request(id))
				mu.Lock()
				defer mu.Unlock()
				if err == nil {
					admitted++
				} else if status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "3 requests a minute") || retryAfter(err) <= 0 || retryAfter(err) > 20100*time.Millisecond {
					t.Errorf("refused with %v, retry after %v", err, retryAfter(err))
				}
			})
		}
		calls.Wait()
		if admitted != 3 {
			t.Errorf("%d were admitted, the limit is 3", admitted)
		}
		until(t, "they run", func() bool { return w.count() == 3 })
		if got := s.Stats(); got.Queued != 0 || len(s.leader.Load().live) != 3 {
			t.Errorf("left over: %+v, %d live", got, len(s.leader.Load().live))
		}
		list, err := s.ListTenants(t.Context(), &pb.ListTenantsRequest{})
		if err != nil || len(list.GetTenants()) != 1 || list.GetTenants()[0].GetLive() != 3 || list.GetTenants()[0].GetRequestsLeft() != 0 || list.GetTenants()[0].GetTenant().GetRequestsPerMinute() != 3 {
			t.Errorf("listed %v, %v", list, err)
		}
		time.Sleep(20100 * time.Millisecond) // Virtual.
		mustSubmit(t, s, request("later"))
		until(t, "it runs", func() bool { return w.has("later") })
		if _, err := submit(s, request("too soon")); retryAfter(err) < 19*time.Second {
			t.Errorf("a fifth: %v", err)
		}

		setTenant(t, s, &pb.Tenant{Name: "t", TokensPerMinute: 100})
		large := request("large")
		large.Sampling.MaxTokens = 200
		if _, err := submit(s, large); status.Code(err) != codes.ResourceExhausted || retryAfter(err) != 0 || !strings.Contains(err.Error(), "may take 203 tokens") {
			t.Errorf("one that never fits: %v, retry after %v", err, retryAfter(err))
		}
		if r, err := s.RemoveTenant(t.Context(), &pb.RemoveTenantRequest{Name: "t"}); err != nil || !r.GetFound() {
			t.Errorf("remove: %v, %v", r, err)
		}
		if r, err := s.RemoveTenant(t.Context(), &pb.RemoveTenantRequest{Name: "t"}); err != nil || r.GetFound() {
			t.Errorf("remove what is not there: %v, %v", r, err)
		}
		mustSubmit(t, s, large)
	})
}

// TestLimitsThatComeLate: a request that was handed out while its tenant had no limits, and that the
// log refuses, is taken back.
func TestLimitsThatComeLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("first"))
		until(t, "it runs", func() bool { return w.has("first") })
		// Both go into the same entry, the limits before the request.
		var calls sync.WaitGroup
		l := s.leader.Load()
		l.mu.Lock()
		var err error
		calls.Go(func() { setTenant(t, s, &pb.Tenant{Name: "t", MaxRequests: 1}) })
		calls.Go(func() { _, err = submit(s, request("second")) })
		l.mu.Unlock()
		calls.Wait()
		if status.Code(err) != codes.ResourceExhausted {
			t.Errorf("the second was answered with %v", err)
		}
		until(t, "it does not run", func() bool { return !w.has("second") && s.Stats().Running == 1 })
		if w.times("second") == 1 && !w.lost("second") {
			t.Error("the worker was not told")
		}
		w.finish("first", stopped, "")
		until(t, "the first ends", finished(s, "first"))
		mustSubmit(t, s, request("second"))
	})
}

// TestLimitsHoldAcrossFailover: the next leader goes on counting where the last one stopped, and gives
// tenants their shares as if it had always led.
func TestLimitsHoldAcrossFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		old := c.waitLeader()
		w := newWorker(t, "w")
		w.info.MaxSequences = 1
		c.workers = append(c.workers, w)
		c.attend(w)
		until(t, "the worker is in session", func() bool { return c.nodes[old].Stats().Workers == 1 })
		setTenant(t, c.nodes[old], &pb.Tenant{Name: "t", RequestsPerMinute: 5, Weight: 2})
		began := time.Now()
		for _, id := range ids("r", 3) {
			mustSubmit(t, c.nodes[old], request(id))
		}
		until(t, "one runs", func() bool { return w.has("r0") })
		other := request("other")
		other.Tenant = "u"
		mustSubmit(t, c.nodes[old], other)
		w.progress("r0", news(0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8))
		until(t, "its progress is known", func() bool { return logged(c.nodes[old], "r0") != "" })

		c.isolate(old)
		next := c.waitLeader()
		until(t, "the old leader ended its session", func() bool { return w.end() != nil })
		c.attend(w)
		until(t, "the worker is in session again", func() bool { return c.nodes[next].Stats().Workers == 1 })
		admitted := 3
		for n := range 10 {
			if _, err := submit(c.nodes[next], request(fmt.Sprint("more", n))); err == nil {
				admitted++
			}
		}
		if most := 5 + int(5*time.Since(began)/time.Minute); admitted != most {
			t.Errorf("%d were admitted in %v, the limit is %d", admitted, time.Since(began), most)
		}
		// The tenant that was given less is next.
		w.finish("r0", stopped, "")
		until(t, "the next one runs", func() bool { return w.count() == 1 })
		if !w.has("other") {
			t.Errorf("after the failover %v runs first", w.running)
		}
		c.heal()
		for {
			w.mu.Lock()
			var id string
			for id = range w.running {
			}
			w.mu.Unlock()
			if id == "" && c.nodes[next].Stats().Queued == 0 {
				break
			}
			w.finish(id, stopped, "")
			time.Sleep(100 * time.Millisecond) // Virtual.
		}
		c.agree()
		w.leave()
		c.close()
	})
}

func TestExplain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.info.MaxSequences = 1
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("runs"))
		until(t, "it runs", func() bool { return w.has("runs") })
		w.progress("runs", news(0, 0, 0, 1, 2))
		until(t, "its progress is known", func() bool { return logged(s, "runs") != "" })
		mustSubmit(t, s, request("waits"))
		mustSubmit(t, s, request("behind"))
		explain := func(id string) *pb.ExplainResponse {
			t.Helper()
			r, err := s.Explain(t.Context(), &pb.ExplainRequest{RequestId: id})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		if r := explain("runs"); r.GetPhase() != pb.ExplainResponse_PHASE_RUNNING || r.GetWorkerId() != "w" || r.GetOutputTokens() != 2 || r.GetWaiting() != nil {
			t.Errorf("what runs: %v", r)
		}
		time.Sleep(time.Second) // Virtual.
		r := explain("behind")
		why := r.GetWaiting()
		if r.GetPhase() != pb.ExplainResponse_PHASE_QUEUED || why.GetPosition() != 2 || why.GetWaitMs() < 1000 || len(why.GetWorkers()) != 1 ||
			strings.Join(why.GetBlocked(), ",") != "sequences" || !strings.Contains(why.GetUnblock(), "1 sequences fewer") {
			t.Errorf("what waits: %v", r)
		}
		sum, err := s.Summary(t.Context(), &pb.SummaryRequest{})
		if err != nil || sum.GetAll().GetRequests() != 2 || sum.GetRunning() != 1 || sum.GetTenants()[0].GetName() != "t" || sum.GetBlocked()[0].GetName() != "sequences" {
			t.Errorf("summary %v, %v", sum, err)
		}
		w.finish("runs", stopped, "")
		until(t, "it ends", finished(s, "runs"))
		if r := explain("runs"); r.GetPhase() != pb.ExplainResponse_PHASE_ENDED || r.GetFinishReason() != stopped {
			t.Errorf("what has ended: %v", r)
		}
		if _, err := s.Explain(context.Background(), &pb.ExplainRequest{RequestId: "z"}); status.Code(err) != codes.NotFound {
			t.Errorf("what is unknown: %v", err)
		}
	})
}
