package state

import (
	"fmt"
	"runtime"
	"strings"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// ended are the commands of a request of a tenant that gave n tokens.
func ended(tenant, id string, n int) []*pb.Command {
	s, f := submit(id, 1), finish(id, pb.FinishReason_FINISH_REASON_STOP)
	s.GetSubmit().Request.Tenant = tenant
	s.GetSubmit().Request.Sampling = &pb.SamplingParams{MaxTokens: 40}
	f.GetFinish().Choices = []*pb.ChoiceProgress{news(0, 0, pb.FinishReason_FINISH_REASON_STOP, make([]int32, n)...)}
	return []*pb.Command{s, f}
}

func keep(r Retention) *pb.Command {
	return &pb.Command{Command: &pb.Command_Retention{Retention: &pb.RetentionCommand{Retention: r.ToProto()}}}
}

// TestIdsOutliveAnswers: where answers take more than a quarter of what a tenant may keep, the oldest are
// dropped, and the requests are known all the same.
func TestIdsOutliveAnswers(t *testing.T) {
	l := &log{t: t, store: newStore(Retention{AgeMS: 1000, TenantRequests: 10, TenantBytes: 80_000, Bytes: 80_000})}
	for i := range 5 {
		l.apply(int64(100+i), ended("t", fmt.Sprint("r", i), 1600)...)
	}
	var kept []string
	for r := range l.store.View().Ended() {
		if len(r.Outputs) > 0 && r.Request.GetSampling().GetMaxTokens() == 40 {
			kept = append(kept, r.Request.GetId())
		} else if len(r.Outputs) > 0 || r.Request.GetSampling() != nil || r.PromptTokens != 1 || r.FinishReason != pb.FinishReason_FINISH_REASON_STOP {
			t.Errorf("half dropped: %+v", r)
		}
	}
	if got := strings.Join(kept, " "); got != "r3 r4" && got != "r4" || l.store.View().Kept().Requests != 5 {
		t.Errorf("answers of %q are kept of %+v; want the newest", got, l.store.View().Kept())
	}
}

// TestTenantsForgetTheirOwn: a tenant that ends many requests pushes out its own and nobody else's, by its
// own bounds and by those of all together.
func TestTenantsForgetTheirOwn(t *testing.T) {
	for name, bounds := range map[string]Retention{
		"by count":            {AgeMS: 1e6, TenantRequests: 50, TenantBytes: 1 << 30, Bytes: 1 << 30},
		"by a tenant's bytes": {AgeMS: 1e6, TenantRequests: 1e6, TenantBytes: 200_000, Bytes: 1 << 30},
		"by all bytes":        {AgeMS: 1e6, TenantRequests: 1e6, TenantBytes: 200_000, Bytes: 200_000},
	} {
		l := &log{t: t, store: newStore(bounds)}
		l.apply(1, ended("quiet", "mine", 100)...)
		for i := range 500 {
			l.apply(int64(2+i), ended("loud", fmt.Sprint("r", i), 100)...)
		}
		v := l.store.View()
		if r := v.Request("mine"); r == nil || len(r.Outputs) == 0 {
			t.Errorf("%s: another tenant's request or answer was forgotten: %+v", name, r)
		}
		if loud := v.KeptOf("loud").Requests; loud == 0 || loud > 100 || v.Request("r499") == nil || v.Request("r0") != nil {
			t.Errorf("%s: %d of the loud tenant's are kept; want the newest of 500", name, loud)
		}
	}
}

// TestRetentionIsInTheLog: how much is kept is changed by a command, which counts for every tenant at once,
// and a wrong one changes nothing.
func TestRetentionIsInTheLog(t *testing.T) {
	l := &log{t: t, store: New()}
	for i := range 20 {
		l.apply(int64(i), ended(fmt.Sprint("t", i%2), fmt.Sprint("r", i), 10)...)
	}
	small := Retention{AgeMS: 1000, TenantRequests: 4, TenantBytes: 1 << 20, Bytes: 1 << 20}
	if !l.apply(30, keep(small))[0].Changed || l.store.View().Retention() != small || l.store.View().Kept().Requests != 8 {
		t.Errorf("with new bounds %+v are kept under %+v", l.store.View().Kept(), l.store.View().Retention())
	}
	wrong := small
	wrong.TenantBytes = 2 << 20
	if l.apply(31, keep(small), keep(wrong), keep(Retention{}))[2].Changed || l.store.View().Retention() != small {
		t.Errorf("wrong bounds were taken: %+v", l.store.View().Retention())
	}
	if got := ids(l.store.View().EndedSince(18)); got != "r18 r19" {
		t.Errorf("since 18 there are %q", got)
	}
	l.apply(1016)
	if got := ids(l.store.View().Ended()); got != "r16 r18 r17 r19" {
		t.Errorf("by age at 1016 there are %q", got)
	}
}

// TestKeptMemoryIsBounded: what is counted of ended requests is at least what they take of the heap, for
// requests of all shapes, so that the bound is one in memory.
func TestKeptMemoryIsBounded(t *testing.T) {
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	id := strings.Repeat("x", 30)
	for name, shape := range map[string]struct {
		n     int
		make  func(i int) []*pb.Command
		loose int64 // how many times the heap the count may be
	}{
		"bare": {10_000, func(i int) []*pb.Command {
			return []*pb.Command{submit(fmt.Sprint(id, i), 1), finish(fmt.Sprint(id, i), pb.FinishReason_FINISH_REASON_ABORT)}
		}, 2},
		"long ids": {4_000, func(i int) []*pb.Command {
			id := fmt.Sprint(i, strings.Repeat("y", 240))
			return []*pb.Command{submit(id, 1), finish(id, pb.FinishReason_FINISH_REASON_ABORT)}
		}, 2},
		"short output": {8_000, func(i int) []*pb.Command { return ended("t", fmt.Sprint(id, i), 16) }, 2},
		"long output":  {4_000, func(i int) []*pb.Command { return ended("t", fmt.Sprint(id, i), 4000) }, 2},
		"in pieces": {500, func(i int) []*pb.Command {
			c := ended("t", fmt.Sprint(id, i), 0)
			c[1].GetFinish().Choices[0].First = 1000
			all := []*pb.Command{c[0]}
			for p := range int32(100) {
				all = append(all, progress(fmt.Sprint(id, i), news(0, 10*p, 0, make([]int32, 10)...)))
			}
			return append(all, c[1])
		}, 2},
		"many choices": {500, func(i int) []*pb.Command {
			c := ended("t", fmt.Sprint(id, i), 0)
			c[0].GetSubmit().Request.Sampling.N = 64
			c[1].GetFinish().Choices = nil
			for k := range int32(64) {
				c[1].GetFinish().Choices = append(c[1].GetFinish().Choices, news(k, 0, pb.FinishReason_FINISH_REASON_STOP, 1, 2, 3))
			}
			return c
		}, 3},
		"many tenants": {4_000, func(i int) []*pb.Command { return ended(fmt.Sprint("tenant", i), fmt.Sprint(id, i), 16) }, 2},
		"long errors": {2_000, func(i int) []*pb.Command {
			c := ended("t", fmt.Sprint(id, i), 0)
			c[1].GetFinish().FinishReason, c[1].GetFinish().Error, c[1].GetFinish().Choices = pb.FinishReason_FINISH_REASON_ERROR, strings.Repeat("e", 1024), nil
			return c
		}, 2},
	} {
		l := &log{t: t, store: newStore(Retention{AgeMS: 1e9, TenantRequests: 1e9, TenantBytes: 1 << 40, Bytes: 1 << 40})}
		before := heap()
		for i := range shape.n {
			l.apply(int64(i), shape.make(i)...)
		}
		took, counted := heap()-before, l.store.View().Kept().Bytes
		t.Logf("%s: %d B a request are counted, %d taken", name, counted/int64(shape.n), took/int64(shape.n))
		if took > counted || counted > shape.loose*took {
			t.Errorf("%s: %d requests take %d bytes of the heap and count as %d; the count must be above, and at most %d times", name, shape.n, took, counted, shape.loose)
		}
		runtime.KeepAlive(l)
	}
}
