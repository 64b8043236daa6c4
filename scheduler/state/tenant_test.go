package state

import (
	"bytes"
	"fmt"
	"math"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func limit(t *pb.Tenant) *pb.Command {
	return &pb.Command{Command: &pb.Command_Tenant{Tenant: &pb.TenantCommand{Tenant: t}}}
}

func drawLimits(t *rapid.T) *pb.Command {
	return &pb.Command{Command: &pb.Command_Tenant{Tenant: &pb.TenantCommand{
		Tenant: &pb.Tenant{
			Name: rapid.SampledFrom([]string{"t", "u", "v"}).Draw(t, "tenant"), Weight: rapid.Int64Range(0, 9).Draw(t, "weight"),
			MaxRequests: rapid.Int32Range(0, 3).Draw(t, "most"), RequestsPerMinute: rapid.Int64Range(0, 200).Draw(t, "rate"),
			TokensPerMinute: rapid.Int64Range(0, 500).Draw(t, "tokens"),
		},
		Removed: rapid.IntRange(0, 3).Draw(t, "removed") == 0,
	}}}
}

// of makes a submit of a tenant with a cost of tokens.
func of(tenant, id string, tokens int32) *pb.Command {
	c := submit(id, 1)
	c.GetSubmit().Request.Tenant = tenant
	c.GetSubmit().Request.Sampling = &pb.SamplingParams{MaxTokens: tokens - 1}
	return c
}

func TestLimits(t *testing.T) {
	l := &log{t: t, store: New()}
	n := 0
	try := func(ms int64, tenant string, tokens int32) *Refusal {
		t.Helper()
		n++
		r := l.apply(ms, of(tenant, fmt.Sprint("r", n), tokens))[0]
		if (r.Refused == nil) != (r.Record != nil) || r.Changed != (r.Refused == nil) {
			t.Fatalf("answered %+v", r)
		}
		return r.Refused
	}
	want := func(r *Refusal, text string, retryMS int64) {
		t.Helper()
		if r == nil || !strings.Contains(r.Reason, text) || r.RetryMS != retryMS {
			t.Errorf("answered %+v, want %q and %d ms", r, text, retryMS)
		}
	}
	fine := func(r *Refusal) {
		t.Helper()
		if r != nil {
			t.Errorf("refused: %+v", r)
		}
	}
	const at = 1_700_000_000_000
	l.apply(at, limit(&pb.Tenant{Name: "rate", RequestsPerMinute: 2}), limit(&pb.Tenant{Name: "tokens", TokensPerMinute: 600}), limit(&pb.Tenant{Name: "most", MaxRequests: 1}))
	fine(try(at, "free", 1000))
	fine(try(at, "rate", 10))
	fine(try(at+10, "rate", 10))
	want(try(at+20, "rate", 10), `tenant "rate": the limit is 2 requests a minute`, 30_000)
	want(try(at+29_000, "rate", 10), "2 requests a minute", 1020)
	fine(try(at+31_000, "rate", 10))
	want(try(at+31_000, "rate", 10), "2 requests a minute", 29_040)
	want(try(at-1000, "rate", 10), "2 requests a minute", 29_040) // The next leader's clock is behind.

	// The log's time is at+31_000 from here on: it does not go back.
	const later = at + 31_000
	fine(try(at, "tokens", 400))
	want(try(at, "tokens", 601), "may take 601 tokens, the limit is 600 a minute", 0)
	want(try(at, "tokens", 300), "600 tokens a minute, and the request may take 300", 10_020)
	fine(try(later+10_020, "tokens", 300))

	fine(try(at, "most", 1))
	want(try(at, "most", 1), "1 sequences run or wait, this request has 1 more, the limit is 1", 1000)
	l.apply(at, finish(fmt.Sprint("r", n-1), pb.FinishReason_FINISH_REASON_STOP))
	fine(try(at, "most", 1))

	// A lower limit leaves no more than it allows, a removed one everything.
	l.apply(at+70_000, limit(&pb.Tenant{Name: "rate", RequestsPerMinute: 1}))
	fine(try(at+70_000, "rate", 1))
	want(try(at+70_000, "rate", 1), "1 requests a minute", 60_000)
	l.apply(at+70_000, &pb.Command{Command: &pb.Command_Tenant{Tenant: &pb.TenantCommand{Tenant: &pb.Tenant{Name: "rate"}, Removed: true}}})
	for range 5 {
		fine(try(at+70_000, "rate", 1))
	}
}

// TestNobodyIsOverAdmitted: however a tenant's requests come, in no span of time are more admitted
// than a full bucket and what the span brings.
func TestNobodyIsOverAdmitted(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		l := &log{t: t, store: New()}
		rate, tokens, most := rapid.Int64Range(1, 300).Draw(t, "rate"), rapid.Int64Range(1, 3000).Draw(t, "tokens"), rapid.Int32Range(1, 8).Draw(t, "most")
		now := int64(1_700_000_000_000)
		l.apply(now, limit(&pb.Tenant{Name: "t", RequestsPerMinute: rate, TokensPerMinute: tokens, MaxRequests: most}))
		type admission struct{ ms, tokens int64 }
		var admitted []admission
		var running []*pb.Request
		sequences := func(more ...*pb.Request) (n int32) {
			for _, r := range append(more, running...) {
				n += max(1, r.GetSampling().GetN())
			}
			return n
		}
		for i := range rapid.IntRange(1, 60).Draw(t, "steps") {
			now += rapid.SampledFrom([]int64{0, 0, 1, 7, 59, 60, 61, 500, 5000, 70_000}).Draw(t, "wait")
			if len(running) > 0 && rapid.Bool().Draw(t, "ends") {
				l.apply(now, finish(running[0].GetId(), pb.FinishReason_FINISH_REASON_STOP))
				running = running[1:]
			}
			cost, id := rapid.Int32Range(1, 400).Draw(t, "cost"), fmt.Sprint("r", i)
			command := of("t", id, cost)
			request := command.GetSubmit().GetRequest()
			request.Sampling.N = rapid.Int32Range(0, 5).Draw(t, "n")
			account := l.store.View().Account("t")
			promised := account.Check(now, request)
			result := l.apply(now, command)[0]
			if (promised == nil) != (result.Refused == nil) {
				t.Fatalf("promised %+v, did %+v", promised, result.Refused)
			}
			if result.Refused == nil {
				admitted = append(admitted, admission{now, Cost(request)})
				running = append(running, request)
			} else if retry := result.Refused.RetryMS; retry > 0 && sequences(request) <= most {
				if again := account.Check(now+retry, request); again != nil {
					t.Fatalf("refused %+v after it was told to wait %d ms", again, retry)
				}
			}
			if account := l.store.View().Account("t"); sequences() > most || account.Live != int64(sequences()) {
				t.Fatalf("%d sequences run and %d are counted, the limit is %d", sequences(), account.Live, most)
			}
		}
		for i := range admitted {
			sum := int64(0)
			for j := i; j < len(admitted); j++ {
				sum += admitted[j].tokens
				span := admitted[j].ms - admitted[i].ms + refillStepMS
				if n := int64(j - i + 1); n*60_000 > rate*(60_000+span) || sum*60_000 > tokens*(60_000+span) {
					t.Fatalf("%d requests with %d tokens in %d ms, the limits are %d and %d a minute", n, sum, span, rate, tokens)
				}
			}
		}
	})
}

// TestShares: what a tenant is given is counted, and coming back after a rest saves nothing up.
func TestShares(t *testing.T) {
	l := &log{t: t, store: New()}
	l.apply(1, limit(&pb.Tenant{Name: "heavy", Weight: 4}), join("w"))
	served := func(tenant string) int64 { return l.store.View().Account(tenant).Served }
	l.apply(2, of("heavy", "a", 9), assign("a", "w", 3, 1), progress("a", news(0, 0, 0, 1, 2)))
	if got := served("heavy"); got != 1+2*2 {
		t.Errorf("served %d, want 5", got)
	}
	done := finish("a", pb.FinishReason_FINISH_REASON_STOP)
	done.GetFinish().Choices = []*pb.ChoiceProgress{news(0, 1, pb.FinishReason_FINISH_REASON_STOP, 2, 3, 4)}
	l.apply(3, of("heavy", "b", 9), done)
	if got := served("heavy"); got != 1+2*4 {
		t.Errorf("served %d, want 9", got)
	}
	l.apply(4, of("light", "c", 9))
	if got := served("light"); got != 9/4 {
		t.Errorf("a tenant that comes stands at %d, the lowest share is 2", got)
	}
	l.apply(5, finish("c", pb.FinishReason_FINISH_REASON_STOP))
	if l.store.View().Account("light") != nil {
		t.Error("an account outlived its last request")
	}
}

// TestTimeNeverGoesBack: an entry that is behind the log changes no time, and a snapshot keeps the time.
func TestTimeNeverGoesBack(t *testing.T) {
	s := New()
	for i, ms := range []int64{500, 200, math.MinInt64, 700} {
		data, err := proto.Marshal(&pb.Entry{TimeMs: ms})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Apply(uint64(i+1), 1, data); err != nil {
			t.Fatal(err)
		}
		if want := []int64{500, 500, 500, 700}[i]; s.View().TimeMS() != want {
			t.Errorf("after an entry of %d the log's time is %d, want %d", ms, s.View().TimeMS(), want)
		}
	}
	var file bytes.Buffer
	if _, err := s.View().WriteTo(&file); err != nil {
		t.Fatal(err)
	}
	again := New()
	if err := again.Restore(&file); err != nil || again.View().TimeMS() != 700 {
		t.Errorf("restored with the time %d, %v; want 700", again.View().TimeMS(), err)
	}
}

// TestEveryChoiceCosts: a request takes its prompt once and max_tokens for each choice from its tenant's tokens.
func TestEveryChoiceCosts(t *testing.T) {
	for n, want := range map[int32]int64{0: 14, 1: 14, 3: 34, 128: 4 + 1280} {
		if got := Cost(&pb.Request{Prompt: make([]int32, 4), Sampling: &pb.SamplingParams{N: n, MaxTokens: 10}}); got != want {
			t.Errorf("n = %d costs %d, want %d", n, got, want)
		}
	}
}
