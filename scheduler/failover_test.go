package scheduler

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

const (
	stopped = pb.FinishReason_FINISH_REASON_STOP
	full    = pb.FinishReason_FINISH_REASON_LENGTH
)

// news is what a choice generated, from a position on.
func news(choice, first int32, reason pb.FinishReason, tokens ...int32) *pb.ChoiceProgress {
	return &pb.ChoiceProgress{Choice: choice, First: first, TokenIds: tokens, FinishReason: reason}
}

// logged is the output that the log knows of a request, as text.
func logged(s *Scheduler, id string) string {
	var out []string
	if r := s.store.View().Request(id); r != nil {
		for _, o := range r.Outputs {
			out = append(out, fmt.Sprintf("%v%d", o.GetTokenIds(), o.GetFinishReason()))
		}
	}
	return strings.Join(out, " ")
}

func generated(r *pb.Request) string {
	var out []string
	for _, g := range r.GetGenerated() {
		out = append(out, fmt.Sprint(g.GetIds()))
	}
	return strings.Join(out, " ")
}

// pair is a node with two workers, the first of which has a request.
func pair(t *testing.T, settings Settings, r *pb.Request) (s *Scheduler, one, two *fakeWorker) {
	t.Helper()
	s = start(t, settings)
	one, two = newWorker(t, "one"), newWorker(t, "two")
	one.join(s)
	until(t, "the first worker is in session", func() bool { return s.Stats().Workers == 1 })
	mustSubmit(t, s, r)
	until(t, "it runs", func() bool { return one.has(r.GetId()) })
	two.join(s)
	until(t, "both workers are in session", func() bool { return s.Stats().Workers == 2 })
	return s, one, two
}

// TestStreamsGoOn: what the worker told the log, and what the gateway has beyond that, is what the
// next worker goes on after.
func TestStreamsGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := request("a")
		r.Sampling.N = 2
		s, one, two := pair(t, Settings{}, r)
		defer two.leave()
		heard, stop := watch(t, s)
		defer stop()
		until(t, "the gateway sees both", heard.sees("one", "two"))

		one.progress("a", news(0, 0, 0, 10, 11), news(1, 0, stopped, 20))
		until(t, "the log has it", func() bool { return logged(s, "a") == "[10 11]0 [20]1" })
		one.progress("a", news(0, 1, 0, 11, 12)) // Told again in part.
		one.progress("a", news(0, 5, 0, 15))     // A message between is missing.
		one.mu.Lock()
		one.fences["a"] = [2]uint64{one.fences["a"][0], one.fences["a"][1] - 1}
		one.mu.Unlock()
		one.progress("a", news(0, 3, 0, 66)) // From an older dispatch.
		until(t, "the log has the rest", func() bool { return logged(s, "a") == "[10 11 12]0 [20]1" })

		record := s.store.View().Request("a")
		began := time.Now()
		one.goodbye()
		until(t, "the gateway hears of it", func() bool { return heard.told("a") != nil })
		lost := heard.told("a")
		if lost.GetTerm() != record.Dispatched.Term || lost.GetIndex() != record.Dispatched.Index {
			t.Errorf("told %v, dispatched %+v", lost, record.Dispatched)
		}
		if two.has("a") {
			t.Error("it went on before the gateway could answer")
		}
		answer := func(gateway string, index uint64, choices ...*pb.ChoiceProgress) {
			t.Helper()
			_, err := s.Recall(t.Context(), &pb.RecallRequest{GatewayId: gateway, Requests: []*pb.RequestProgress{
				{RequestId: "a", Term: lost.GetTerm(), Index: index, Choices: choices},
			}})
			if err != nil {
				t.Fatal(err)
			}
		}
		answer("stranger", lost.GetIndex(), news(0, 0, 0, 66, 66, 66, 66))
		answer("g", lost.GetIndex()-1, news(0, 0, 0, 66, 66, 66, 66))
		answer("g", lost.GetIndex(), news(0, 0, 0, 10, 11, 12, 13, 14), news(1, 0, 0, 20))
		until(t, "the next worker has it", func() bool { return two.has("a") })
		if took := time.Since(began); took > 20*time.Millisecond {
			t.Errorf("it took %v though the gateway answered", took)
		}
		if got := generated(two.got("a")); got != "[10 11 12 13 14] [20]" {
			t.Errorf("dispatched after %s", got)
		}
		if r := two.got("a"); r.GetPrompt()[2] != 3 || r.GetSampling().GetSeed() != 1 {
			t.Errorf("dispatched %v", r)
		}
		until(t, "the log knew as much", func() bool { return logged(s, "a") == "[10 11 12 13 14]0 [20]1" })

		two.mu.Lock()
		delete(two.running, "a")
		fence := two.fences["a"]
		two.mu.Unlock()
		two.say(&pb.WorkRequest{Message: &pb.WorkRequest_Finished{Finished: &pb.Finished{Requests: []*pb.FinishedRequest{{
			RequestId: "a", FinishReason: full, Term: fence[0], Index: fence[1], Choices: []*pb.ChoiceProgress{news(0, 5, full, 15)},
		}}}}})
		until(t, "the gateway hears of its end", func() bool { return heard.end("a").GetFinishReason() == full })
		if got := logged(s, "a"); got != "[10 11 12 13 14 15]2 [20]1" {
			t.Errorf("the log ends with %s", got)
		}
	})
}

// TestNoAnswerToARecall: the request waits for RecallGrace and not longer; without a gateway that
// watches it does not wait.
func TestNoAnswerToARecall(t *testing.T) {
	for _, watched := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s, one, two := pair(t, Settings{}, request("a"))
			defer two.leave()
			heard, stop := watch(t, s)
			defer stop()
			until(t, "the gateway sees both", heard.sees("one", "two"))
			if !watched {
				stop()
			}
			one.progress("a", news(0, 0, 0, 10))
			until(t, "the log has it", func() bool { return logged(s, "a") == "[10]0" })
			began := time.Now()
			one.goodbye()
			until(t, "the next worker has it", func() bool { return two.has("a") })
			least, most := time.Duration(0), 10*time.Millisecond
			if watched {
				least, most = 100*time.Millisecond, 160*time.Millisecond
			}
			if took := time.Since(began); took < least || took > most || generated(two.got("a")) != "[10]" {
				t.Errorf("watched %v: it went on after %v with %q", watched, took, generated(two.got("a")))
			}
		})
	}
}

// TestARefusedPortIsADeadWorker: the leader does not wait for the grace when the worker's host says
// that nobody listens.
func TestARefusedPortIsADeadWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
		s, one, two := pair(t, Settings{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if address == "one:1" {
				return nil, refused
			}
			return silent(ctx, network, address)
		}}, request("a"))
		mustSubmit(t, s, request("b"))
		until(t, "the other worker has one", func() bool { return two.has("b") })
		began := time.Now()
		one.leave()
		until(t, "it went on", func() bool { return two.has("a") })
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("a killed worker was missed after %v", took)
		}
		began = time.Now()
		two.leave()
		until(t, "the silent one is gone", func() bool { return s.store.View().Worker("two") == nil })
		if took := time.Since(began); took < time.Second || took > 1200*time.Millisecond {
			t.Errorf("a silent worker was given up after %v, the grace is 1 s", took)
		}
	})
}

// TestLogprobsGoOn: the log does not hold log-probabilities; the next worker computes those of the
// tokens that it gets, and says these again.
func TestLogprobsGoOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := request("a")
		r.Sampling.Logprobs = new(int32)
		s, one, two := pair(t, Settings{}, r)
		defer two.leave()
		one.progress("a", news(0, 0, 0, 10, 11))
		until(t, "the log has it", func() bool { return logged(s, "a") == "[10 11]0" })
		one.goodbye()
		until(t, "the next worker has it", func() bool { return two.has("a") })
		if got := generated(two.got("a")); got != "[10 11]" {
			t.Errorf("dispatched after %s", got)
		}
		two.progress("a", news(0, 0, 0, 10, 11, 12))
		until(t, "the log has more", func() bool { return logged(s, "a") == "[10 11 12]0" })
	})
}

// TestALongStreamSurvivesManyWorkers: attempts count losses without a new token between them.
func TestALongStreamSurvivesManyWorkers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.join(s)
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("a"))
		for n := range 2 * maxAttempts {
			until(t, "it runs", func() bool { return w.times("a") == n+1 })
			w.progress("a", news(0, int32(n), 0, int32(n)))
			until(t, "the log has it", func() bool { return len(strings.Fields(logged(s, "a"))) == n+1 })
			w.crash()
			w.join(s)
		}
		until(t, "it runs again", func() bool { return w.times("a") == 2*maxAttempts+1 })
		w.leave()
	})
}

// TestALongOutputTakesSeveralEntries: a first report of more tokens than an entry takes.
func TestALongOutputTakesSeveralEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := request("a")
		r.Sampling.N, r.Sampling.MaxTokens = 4, 0
		s, one, two := pair(t, Settings{}, r)
		defer two.leave()
		long := make([]int32, 4000)
		for i := range long {
			long[i] = 1<<30 + int32(i)
		}
		var choices []*pb.ChoiceProgress
		for c := range int32(4) {
			choices = append(choices, news(c, 0, 0, long...))
		}
		one.progress("a", choices...)
		one.goodbye()
		until(t, "the next worker has it", func() bool { return two.has("a") })
		for c, g := range two.got("a").GetGenerated() {
			if !slices.Equal(g.GetIds(), long) {
				t.Errorf("choice %d goes on after %d tokens", c, len(g.GetIds()))
			}
		}
		for c, o := range s.store.View().Request("a").Outputs {
			if !slices.Equal(o.GetTokenIds(), long) {
				t.Errorf("the log has %d tokens of choice %d", len(o.GetTokenIds()), c)
			}
		}
	})
}

func TestAdopt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, one, two := pair(t, Settings{}, request("a"))
		defer two.leave()
		heard, stop := watch(t, s)
		defer stop()
		heir, stopHeir := watchAs(t, s, "h")
		defer stopHeir()
		until(t, "both watch", func() bool { return heard.sees("one", "two")() && heir.sees("one", "two")() })
		adopt := func(id string) *pb.AdoptResponse {
			t.Helper()
			r, err := s.Adopt(t.Context(), &pb.AdoptRequest{RequestId: id, GatewayId: "h", Tenant: "t"})
			if err != nil {
				t.Fatal(err)
			}
			return r
		}
		if adopt("unknown").GetFound() {
			t.Error("found what is not there")
		}
		if _, err := s.Adopt(t.Context(), &pb.AdoptRequest{RequestId: "a"}); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "gateway_id") {
			t.Errorf("without a gateway: %v", err)
		}
		one.progress("a", news(0, 0, 0, 10, 11))
		until(t, "the log has it", func() bool { return logged(s, "a") == "[10 11]0" })
		if asked, err := s.Adopt(t.Context(), &pb.AdoptRequest{RequestId: "a", GatewayId: "h", Tenant: "t", IfMine: true}); err != nil || asked.GetRequest().GetGatewayId() != "g" || asked.GetWorkerId() != "one" {
			t.Errorf("asked after another's request: %v, %v", asked, err)
		}
		got := adopt("a")
		record := s.store.View().Request("a")
		switch {
		case !got.GetFound(), got.GetWorkerId() != "one", got.GetTerm() != record.Dispatched.Term, got.GetIndex() != record.Dispatched.Index:
			t.Errorf("adopted %v, the log says %+v", got, record)
		case len(got.GetRequest().GetPrompt()) > 0, got.GetRequest().GetGatewayId() != "h", got.GetRequest().GetSampling().GetMaxTokens() != 16, got.GetPromptTokens() != 3:
			t.Errorf("the request is given as %v, %d prompt tokens", got.GetRequest(), got.GetPromptTokens())
		case len(got.GetOutputs()) != 1, len(got.GetOutputs()[0].GetTokenIds()) != 2:
			t.Errorf("outputs %v", got.GetOutputs())
		}
		until(t, "the worker is told", func() bool { return one.redirectedTo("a") == "h" })
		until(t, "the old gateway is told", func() bool { return heard.gaveUp("a") })
		if r, err := s.Abort(t.Context(), &pb.AbortRequest{RequestId: "a", GatewayId: "g"}); err != nil || r.GetFound() {
			t.Errorf("the old gateway's abort: %v, %v", r, err)
		}

		// A worker that was away hears it when it is back.
		one.leave()
		one.mu.Lock()
		clear(one.redirected)
		one.mu.Unlock()
		one.join(s)
		until(t, "the worker is told again", func() bool { return one.redirectedTo("a") == "h" })

		// From here on the heir is asked and told.
		one.goodbye()
		until(t, "the heir is asked", func() bool { return heir.told("a") != nil })
		until(t, "the next worker has it", func() bool { return two.has("a") })
		if heard.told("a") != nil || two.got("a").GetGatewayId() != "h" {
			t.Errorf("the old gateway was told %v, the worker streams to %q", heard.told("a"), two.got("a").GetGatewayId())
		}
		two.progress("a", news(0, 2, stopped, 12))
		two.finish("a", stopped, "")
		until(t, "the heir hears of the end", func() bool { return heir.end("a") != nil })
		if got := adopt("a"); got.GetFinishReason() != stopped || len(got.GetOutputs()[0].GetTokenIds()) != 3 || got.GetUsage().GetCompletionTokens() != 5 {
			t.Errorf("adopted after its end: %v", got)
		}

		// One that waits in the queue.
		two.mu.Lock()
		two.info.MaxSequences = 1
		two.mu.Unlock()
		two.leave()
		two.join(s)
		until(t, "one worker is there", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("b"))
		mustSubmit(t, s, request("waits"))
		if got := adopt("waits"); !got.GetFound() || got.GetWorkerId() != "" || got.GetIndex() != 0 {
			t.Errorf("adopted from the queue: %v", got)
		}
		two.finish("b", stopped, "")
		until(t, "it runs", func() bool { return two.has("waits") })
		if got := two.got("waits").GetGatewayId(); got != "h" {
			t.Errorf("it streams to %q", got)
		}
	})
}

// TestRerun: an ended request runs again when its submit says so, once, after what is kept of its output.
func TestRerun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("a"))
		until(t, "it runs", func() bool { return w.has("a") })
		w.progress("a", news(0, 0, stopped, 10))
		w.finish("a", stopped, "")
		until(t, "it ends", finished(s, "a"))
		again := func(r *pb.Request) (*pb.SubmitResponse, error) {
			return s.Submit(t.Context(), &pb.SubmitRequest{Request: r, Rerun: true})
		}
		other := request("a")
		other.Prompt = []int32{9}
		if _, err := again(other); status.Code(err) != codes.AlreadyExists {
			t.Errorf("another body: %v", err)
		}
		moved := request("a")
		moved.GatewayId = "h"
		if r, err := again(moved); err != nil || r.GetDuplicate() || r.GetFinishReason() != 0 {
			t.Errorf("rerun: %v, %v", r, err)
		}
		until(t, "it runs again", func() bool { return w.times("a") == 2 })
		if r := w.got("a"); r.GetGatewayId() != "h" || generated(r) != "[10]" {
			t.Errorf("dispatched %v", r)
		}
		if r, err := again(request("a")); err != nil || !r.GetDuplicate() {
			t.Errorf("rerun while it runs: %v, %v", r, err)
		}
		w.progress("a", news(0, 0, stopped, 10)) // For its log-probabilities.
		w.finish("a", stopped, "")
		until(t, "it ends again", finished(s, "a"))
		if got := logged(s, "a"); w.times("a") != 2 || got != "[10]1" {
			t.Errorf("ran %d times, the log has %s", w.times("a"), got)
		}
		// What an aborted run generated is not a whole answer.
		mustSubmit(t, s, request("b"))
		until(t, "it runs", func() bool { return w.has("b") })
		w.progress("b", news(0, 0, 0, 10))
		until(t, "the log has it", func() bool { return logged(s, "b") == "[10]0" })
		if _, err := s.Abort(t.Context(), &pb.AbortRequest{RequestId: "b"}); err != nil {
			t.Fatal(err)
		}
		if _, err := again(request("b")); err != nil {
			t.Fatal(err)
		}
		until(t, "it runs again", func() bool { return w.times("b") == 2 })
		if got := generated(w.got("b")); got != "" {
			t.Errorf("the aborted one goes on after %s", got)
		}
	})
}

// TestOrphansEnd: requests run on while their gateway is away, but not for ever.
func TestOrphansEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		_, stop := watch(t, s)
		mustSubmit(t, s, request("a"))
		time.Sleep(2 * time.Minute) // Virtual.
		stop()
		time.Sleep(50 * time.Second)
		heard, stop := watch(t, s)
		until(t, "the gateway is back", heard.sees("w"))
		stop()
		time.Sleep(59 * time.Second)
		if finished(s, "a")() {
			t.Fatal("it ended though its gateway was there a minute ago")
		}
		time.Sleep(1200 * time.Millisecond)
		if r := s.store.View().Request("a"); r.FinishReason != pb.FinishReason_FINISH_REASON_ABORT || !strings.Contains(r.Error, `gateway "g"`) {
			t.Errorf("recorded %+v", r)
		}
		if !w.lost("a") {
			t.Error("the worker was not told")
		}
	})
}
