package scheduler

import (
	"fmt"
	"maps"
	"testing"
	"testing/synctest"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// reasonIn is the word that a refusal carries.
func reasonIn(err error) string {
	for _, d := range status.Convert(err).Details() {
		if info, ok := d.(*errdetails.ErrorInfo); ok {
			return info.GetReason()
		}
	}
	return ""
}

// byReason sums counts of refusals up over names.
func byReason(counts []Refused) map[string]int64 {
	out := map[string]int64{}
	for _, c := range counts {
		out[c.Reason] += c.Requests
	}
	return out
}

// TestRefusalsAreCounted: each reason for which a request is not admitted, or ends in the queue, is told to
// its client in a word and counted once, by model and by tenant.
func TestRefusalsAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{QueueRequests: 3, QueueBytes: 40_000})
		want := map[string]int64{}
		check := func(reason string) {
			t.Helper()
			want[reason]++
			stats := s.Stats()
			if models, tenants := byReason(stats.RefusedByModel), byReason(stats.RefusedByTenant); !maps.Equal(models, want) || !maps.Equal(tenants, want) {
				t.Errorf("after %s: %v by model and %v by tenant, want %v", reason, models, tenants, want)
			}
		}
		refused := func(reason string, code codes.Code, change func(*pb.Request)) {
			t.Helper()
			r := request("refused")
			change(r)
			if _, err := submit(s, r); status.Code(err) != code || reasonIn(err) != reason {
				t.Errorf("%s: %v, reason %q", reason, err, reasonIn(err))
			}
			check(reason)
		}
		refused(reasonNoWorker, codes.Unavailable, func(*pb.Request) {})
		w := newWorker(t, "w")
		w.info.MaxSequences = 1
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		refused(reasonUnknownModel, codes.NotFound, func(r *pb.Request) { r.Model = "made up" })
		refused(reasonTooLong, codes.InvalidArgument, func(r *pb.Request) { r.Prompt = make([]int32, 4096) })
		refused(reasonTooLong, codes.InvalidArgument, func(r *pb.Request) { r.Sampling.MaxTokens = 4096 })
		refused(reasonQueueBytes, codes.ResourceExhausted, func(r *pb.Request) { r.Prompt = make([]int32, 4000) })
		for name, limits := range map[string]*pb.Tenant{
			"max_requests":        {MaxRequests: 1},
			"requests_per_minute": {RequestsPerMinute: 1},
			"tokens_per_minute":   {TokensPerMinute: 30},
		} {
			limits.Name = name
			setTenant(t, s, limits)
			first := request("first of " + name)
			first.Tenant, first.Sampling.MaxTokens = name, 10
			mustSubmit(t, s, first)
			refused(tenantLimit+name, codes.ResourceExhausted, func(r *pb.Request) { r.Tenant, r.Sampling.MaxTokens = name, 20 })
		}
		// One runs, two wait. A third that is to wait at most a second ends so, and a fourth has no place.
		late := request("late")
		late.PatienceMs = 1000
		mustSubmit(t, s, late)
		refused(reasonQueueSequences, codes.ResourceExhausted, func(*pb.Request) {})
		until(t, "it ends", finished(s, "late"))
		check(reasonDeadline)

		for _, c := range s.Stats().RefusedByModel {
			if name := map[bool]string{true: OthersRefused, false: "m"}[c.Reason == reasonUnknownModel]; c.Name != name {
				t.Errorf("%+v, want the name %q", c, name)
			}
		}
		sum, err := s.Summary(t.Context(), &pb.SummaryRequest{})
		if err != nil || len(sum.GetRefusedByModel()) != len(want) || len(sum.GetQueues()) != 1 || sum.GetQueues()[0].GetSequences() != 2 || len(sum.GetQueues()[0].GetClasses()) != 16 {
			t.Errorf("summary %v, %v", sum, err)
		}
	})
}

// TestRefusalsAreCountedForFewNames: however many tenants and models are refused, so many are counted apart,
// and no refusal is left out.
func TestRefusalsAreCountedForFewNames(t *testing.T) {
	var c refusals
	const names = 4 * namesCounted
	for n := range 2 * names {
		c.count(fmt.Sprint("m", n%names), fmt.Sprint("t", n%names), reasonDeadline)
	}
	models, tenants := c.list()
	for what, counts := range map[string][]Refused{"models": models, "tenants": tenants} {
		if len(counts) != namesCounted+1 {
			t.Errorf("%d %s, want %d", len(counts), what, namesCounted+1)
		}
		if got := byReason(counts)[reasonDeadline]; got != 2*names {
			t.Errorf("%d refusals by %s, want %d", got, what, 2*names)
		}
		for _, r := range counts {
			if r.Name != OthersRefused && r.Requests != 2 {
				t.Errorf("%+v, want 2", r)
			}
		}
	}
}
