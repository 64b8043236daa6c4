package scheduler

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func TestARequestRunsAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })

		r := mustSubmit(t, s, request("a"))
		if r.GetDuplicate() || r.GetWorkerId() != "w" || r.GetIndex() == 0 || r.GetTerm() == 0 {
			t.Errorf("submit answered %v", r)
		}
		until(t, "the worker has it", func() bool { return w.has("a") })
		record := s.store.View().Request("a")
		if fence := w.fences["a"]; fence != [2]uint64{record.Dispatched.Term, record.Dispatched.Index} || fence[0] != r.GetTerm() {
			t.Errorf("the worker was fenced by %v, the log says %+v", fence, record.Dispatched)
		}
		w.finish("a", pb.FinishReason_FINISH_REASON_LENGTH, "")
		until(t, "the end is in the log", finished(s, "a"))
		record = s.store.View().Request("a")
		if record.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH || record.Usage.GetCompletionTokens() != 5 || len(record.Request.GetPrompt()) != 0 {
			t.Errorf("recorded %+v", record)
		}
		again := mustSubmit(t, s, request("a"))
		if !again.GetDuplicate() || again.GetFinishReason() != pb.FinishReason_FINISH_REASON_LENGTH || again.GetIndex() != r.GetIndex() {
			t.Errorf("a retry after the end answered %v", again)
		}
		if got := s.Stats(); got.Running != 0 || got.Queued != 0 || got.QueuedBytes != 0 {
			t.Errorf("left over: %+v", got)
		}
	})
}

func TestTheSameIdRunsOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		var calls sync.WaitGroup
		var mu sync.Mutex
		first := 0
		places := map[uint64]bool{}
		for range 50 {
			calls.Go(func() {
				r, err := submit(s, request("a"))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				places[r.GetIndex()] = true
				if !r.GetDuplicate() {
					first++
				}
			})
		}
		calls.Wait()
		until(t, "the worker has it", func() bool { return w.has("a") })
		if first != 1 || len(places) != 1 || w.times("a") != 1 {
			t.Errorf("%d first answers at %v, dispatched %d times; want one of each", first, places, w.times("a"))
		}
		other := request("a")
		other.Prompt = []int32{9}
		if _, err := submit(s, other); status.Code(err) != codes.AlreadyExists {
			t.Errorf("another body under the same id: %v", err)
		}
		moved := request("a")
		moved.GatewayId, moved.CreatedUnixMs = "h", 5
		if r := mustSubmit(t, s, moved); !r.GetDuplicate() {
			t.Errorf("a retry through another gateway answered %v", r)
		}
		w.finish("a", pb.FinishReason_FINISH_REASON_STOP, "")
		until(t, "the end is in the log", finished(s, "a"))
		if _, err := submit(s, other); status.Code(err) != codes.AlreadyExists {
			t.Errorf("another body under an ended id: %v", err)
		}
	})
}

func TestRefusals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{QueueRequests: 3, QueueBytes: 20_000})
		if _, err := submit(s, request("early")); status.Code(err) != codes.Unavailable {
			t.Errorf("before any worker: %v", err)
		}
		w := newWorker(t, "w")
		w.info.MaxSequences = 1
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		for _, c := range []struct {
			name, field string
			change      func(*pb.Request)
			code        codes.Code
		}{
			{"no id", "request.id", func(r *pb.Request) { r.Id = "" }, codes.InvalidArgument},
			{"long id", "limit|1 to 256", func(r *pb.Request) { r.Id = strings.Repeat("x", 257) }, codes.InvalidArgument},
			{"a source", "request.kv_source", func(r *pb.Request) { r.KvSource = "w:1" }, codes.InvalidArgument},
			{"no prompt", "request.prompt", func(r *pb.Request) { r.Prompt = nil }, codes.InvalidArgument},
			{"negative token", "token 1 is -4", func(r *pb.Request) { r.Prompt = []int32{1, -4} }, codes.InvalidArgument},
			{"unknown model", `no worker serves "z"; served: m`, func(r *pb.Request) { r.Model = "z" }, codes.NotFound},
			{"longer than the context", "takes 4096", func(r *pb.Request) { r.Prompt = make([]int32, 4096) }, codes.InvalidArgument},
			{"larger than an entry", fmt.Sprint("limit is ", maxRequestBytes), func(r *pb.Request) { r.Prompt = make([]int32, maxRequestBytes) }, codes.InvalidArgument},
			{"negative patience", "request.patience_ms", func(r *pb.Request) { r.PatienceMs = -1 }, codes.InvalidArgument},
			{"patience for ever", "request.patience_ms", func(r *pb.Request) { r.PatienceMs = math.MaxInt64 }, codes.InvalidArgument},
		} {
			r := request("r")
			c.change(r)
			_, err := submit(s, r)
			want := strings.Split(c.field, "|")
			if status.Code(err) != c.code || !strings.Contains(err.Error(), want[len(want)-1]) {
				t.Errorf("%s: %v; want %v naming %q", c.name, err, c.code, c.field)
			}
		}
		for _, id := range ids("q", 2) { // One runs, one waits.
			mustSubmit(t, s, request(id))
		}
		// Two places are left, and a request takes one for each of its choices.
		wide := request("wide")
		wide.Sampling.N = 3
		if _, err := submit(s, wide); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "1 sequences wait, this request has 3 more, the limit is 3") {
			t.Errorf("three choices for two places: %v", err)
		}
		wide.Sampling.N = 2
		wide.Id = "q2"
		mustSubmit(t, s, wide)
		_, err := submit(s, request("more"))
		var retry *errdetails.RetryInfo
		for _, d := range status.Convert(err).Details() {
			retry, _ = d.(*errdetails.RetryInfo)
		}
		if status.Code(err) != codes.ResourceExhausted || retry.GetRetryDelay().AsDuration() < 200*time.Millisecond || !strings.Contains(err.Error(), "3 sequences wait, this request has 1 more, the limit is 3") {
			t.Errorf("a full queue: %v, retry after %v", err, retry.GetRetryDelay().AsDuration())
		}
		if _, err := s.Abort(t.Context(), &pb.AbortRequest{RequestId: "q2"}); err != nil {
			t.Fatal(err)
		}
		big := request("big")
		big.Prompt = make([]int32, 3000)
		if _, err := submit(s, big); status.Code(err) != codes.ResourceExhausted || !strings.Contains(err.Error(), "the limit is 20000") {
			t.Errorf("a queue that is full by bytes: %v", err)
		}
		mustSubmit(t, s, request("fits"))
	})
}

func TestAbortInEveryState(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.info.MaxSequences = 1
		w.join(s)
		defer w.leave()
		news, stop := watch(t, s)
		defer stop()
		until(t, "the gateway sees the worker", news.sees("w"))
		mustSubmit(t, s, request("running"))
		mustSubmit(t, s, request("waiting"))
		until(t, "one runs", func() bool { return w.has("running") })
		mine, others := request("running").GetTenant(), "another"
		for _, not := range []*pb.AbortRequest{
			{RequestId: "running", GatewayId: "another"},
			{RequestId: "running", GatewayId: "another", Tenant: &others},
			{RequestId: "running", GatewayId: request("running").GetGatewayId(), Tenant: &others},
		} {
			if r, err := s.Abort(t.Context(), not); err != nil || r.GetFound() {
				t.Errorf("abort as %v: %v, %v", not, r, err)
			}
		}
		for _, id := range []string{"waiting", "running"} {
			r, err := s.Abort(t.Context(), &pb.AbortRequest{RequestId: id, Reason: "because", GatewayId: "another", Tenant: &mine})
			if err != nil || !r.GetFound() {
				t.Errorf("abort %s: %v, %v", id, r, err)
			}
			if record := s.store.View().Request(id); record.FinishReason != pb.FinishReason_FINISH_REASON_ABORT || record.Error != "because" {
				t.Errorf("%s is recorded as %+v", id, record)
			}
			until(t, "the gateway hears of it", func() bool { return news.end(id) != nil })
		}
		until(t, "the worker is told", func() bool { return w.lost("running") })
		if w.times("waiting") != 0 {
			t.Error("the aborted request was dispatched")
		}
		for _, id := range []string{"running", "unknown"} {
			if r, err := s.Abort(t.Context(), &pb.AbortRequest{RequestId: id}); err != nil || r.GetFound() {
				t.Errorf("abort of %s, which does not live: %v, %v", id, r, err)
			}
		}
		// The worker has room again.
		mustSubmit(t, s, request("next"))
		until(t, "the next one runs", func() bool { return w.has("next") })
	})
}

func TestDeadlineInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.info.MaxSequences = 1
		w.join(s)
		defer w.leave()
		news, stop := watch(t, s)
		defer stop()
		until(t, "the gateway sees the worker", news.sees("w"))
		mustSubmit(t, s, request("running"))
		late := request("late")
		began := time.Now()
		late.PatienceMs = 500
		mustSubmit(t, s, late)
		until(t, "the gateway hears of it", func() bool { return news.end("late") != nil })
		if took := time.Since(began); took < 500*time.Millisecond || took > 600*time.Millisecond {
			t.Errorf("ended after %v, want 500 ms", took)
		}
		if e := news.end("late"); e.GetFinishReason() != pb.FinishReason_FINISH_REASON_DEADLINE || !strings.Contains(e.GetError(), "deadline") {
			t.Errorf("told %v", e)
		}
	})
}

// TestDeadlineThatCannotBeMet: a request that would still wait when its deadline comes is refused at
// once; one that is placed before the others is not.
func TestDeadlineThatCannotBeMet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.info.MaxSequences = 1
		w.hold = 500 * time.Millisecond
		w.join(s)
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		due := func(id string, d time.Duration, priority int32) error {
			r := request(id)
			r.PatienceMs, r.Priority = d.Milliseconds(), priority
			_, err := submit(s, r)
			return err
		}
		for n, id := range ids("r", 40) {
			if err := due(id, time.Minute+time.Duration(n), 0); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(7 * time.Second) // Virtual: some two a second are seen to start.
		if err := due("late", 70*time.Second, 0); err != nil {
			t.Errorf("there is time for it: %v", err)
		}
		if err := due("early", 5*time.Second, 0); err != nil {
			t.Errorf("its deadline puts it in front: %v", err)
		}
		if err := due("urgent", 5*time.Second, -1); err != nil {
			t.Errorf("its class puts it in front: %v", err)
		}
		err := due("hopeless", 3*time.Second, 1)
		if status.Code(err) != codes.DeadlineExceeded || !strings.Contains(err.Error(), "3s away") || !strings.Contains(err.Error(), "7 requests that wait before this one take about ") {
			t.Errorf("it could not have been met: %v", err)
		}
		for _, id := range append(ids("r", 40), "late", "early", "urgent") {
			until(t, id+" ends", finished(s, id))
			if r := s.store.View().Request(id); r.FinishReason != stopped {
				t.Errorf("%s ended with %v %q", id, r.FinishReason, r.Error)
			}
		}
		w.leave()
	})
}

// TestReconnect breaks a worker's stream in all its ways: the worker comes back in time with its
// requests, comes back without some, does not come back, and falls silent.
func TestReconnect(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		news, stop := watch(t, s)
		defer stop()
		w := newWorker(t, "w")
		w.join(s)
		until(t, "the gateway sees the worker", news.sees("w"))
		for _, id := range []string{"keeps", "forgets", "ends"} {
			mustSubmit(t, s, request(id))
		}
		until(t, "all run", func() bool { return w.count() == 3 })

		// Back in time: "keeps" goes on, "forgets" is sent again, "ends" had finished meanwhile.
		w.leave()
		w.mu.Lock()
		delete(w.running, "forgets")
		delete(w.running, "ends")
		w.running["stray"] = request("stray")
		w.mu.Unlock()
		time.Sleep(500 * time.Millisecond) // Virtual: within the grace.
		w.join(s)
		w.stream.up <- &pb.WorkRequest{Message: &pb.WorkRequest_Finished{Finished: &pb.Finished{Requests: []*pb.FinishedRequest{
			{RequestId: "ends", FinishReason: pb.FinishReason_FINISH_REASON_STOP},
		}}}}
		until(t, "the lost one is sent again", func() bool { return w.has("forgets") })
		if w.times("keeps") != 1 || w.times("ends") != 1 || w.times("forgets") != 2 {
			t.Errorf("dispatched: keeps %d, ends %d, forgets %d", w.times("keeps"), w.times("ends"), w.times("forgets"))
		}
		if !w.lost("stray") {
			t.Error("a request that the log does not know goes on")
		}
		until(t, "the finished one is recorded", finished(s, "ends"))

		// Not back in time: another worker takes over, and the first is fenced when it returns.
		other := newWorker(t, "other")
		other.join(s)
		defer other.leave()
		until(t, "the gateway sees both", news.sees("other", "w"))
		w.leave()
		until(t, "the other worker has them", func() bool { return other.has("keeps") && other.has("forgets") })
		until(t, "the gateway sees one", news.sees("other"))
		if s.store.View().Worker("w") != nil {
			t.Error("the lost worker is still in the log")
		}
		w.join(s)
		until(t, "the old worker is told to stop", func() bool { return w.lost("keeps") && w.lost("forgets") })

		// Silent: its session ends and its requests go back to the first.
		other.mu.Lock()
		silent := other.stream
		other.mu.Unlock()
		s.leader.Load().mu.Lock()
		s.leader.Load().sessions["other"].heard = time.Now().Add(-4 * time.Second)
		s.leader.Load().mu.Unlock()
		until(t, "the silent session ends", func() bool { return silent.ctx.Err() != nil })
		if status.Code(other.end()) != codes.DeadlineExceeded {
			t.Errorf("the silent worker's session ended with %v", other.end())
		}
		until(t, "the first worker has them again", func() bool { return w.has("keeps") && w.has("forgets") })
		w.leave()
	})
}

func TestARequestThatKillsWorkersEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		news, stop := watch(t, s)
		defer stop()
		w := newWorker(t, "w")
		w.join(s)
		until(t, "the gateway sees the worker", news.sees("w"))
		mustSubmit(t, s, request("poison"))
		for n := 1; n <= maxAttempts; n++ {
			until(t, fmt.Sprint("attempt ", n), func() bool { return w.times("poison") == n })
			w.crash()
			w.join(s)
		}
		until(t, "it ends", func() bool { return news.end("poison") != nil })
		if e := news.end("poison"); !strings.Contains(e.GetError(), fmt.Sprint("lost with its worker ", maxAttempts, " times")) {
			t.Errorf("told %v", e)
		}
		if w.times("poison") != maxAttempts {
			t.Errorf("dispatched %d times, want %d", w.times("poison"), maxAttempts)
		}
		if counts := s.Stats().RefusedByTenant; len(counts) != 1 || counts[0] != (Refused{request("poison").GetTenant(), reasonLost, 1}) {
			t.Errorf("counted as %+v", counts)
		}
		w.leave()
	})
}

// TestWhatWorkersGiveBack: a returned request goes elsewhere however often, an end that belongs to an
// older dispatch ends nothing, and a worker that says that it drains gets nothing.
func TestWhatWorkersGiveBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("a"))
		say := func(f *pb.FinishedRequest) {
			f.RequestId = "a"
			if f.Returned {
				w.mu.Lock()
				delete(w.running, "a")
				w.mu.Unlock()
			}
			w.stream.up <- &pb.WorkRequest{Message: &pb.WorkRequest_Finished{Finished: &pb.Finished{Requests: []*pb.FinishedRequest{f}}}}
		}
		var old uint64
		for n := 1; n <= 2*maxAttempts; n++ {
			until(t, fmt.Sprint("dispatch ", n), func() bool { return w.times("a") == n })
			w.mu.Lock()
			index := w.fences["a"][1]
			w.mu.Unlock()
			if n > 1 {
				say(&pb.FinishedRequest{Index: old, FinishReason: pb.FinishReason_FINISH_REASON_ABORT})
			}
			say(&pb.FinishedRequest{Index: index, Returned: true})
			old = index
		}
		until(t, "it is there again", func() bool { return w.times("a") == 2*maxAttempts+1 })
		if finished(s, "a")() {
			t.Fatal("an end of an older dispatch ended the request")
		}

		other := newWorker(t, "other")
		other.join(s)
		defer other.leave()
		until(t, "the other worker is in session", func() bool { return s.Stats().Workers == 2 })
		w.mu.Lock()
		w.drains = true
		w.mu.Unlock()
		time.Sleep(200 * time.Millisecond) // Virtual: a heartbeat says so.
		say(&pb.FinishedRequest{Returned: true})
		until(t, "the other worker has it", func() bool { return other.has("a") })
		for _, id := range ids("r", 10) {
			mustSubmit(t, s, request(id))
		}
		until(t, "all run there", func() bool { return other.count() == 11 })
		other.finish("a", pb.FinishReason_FINISH_REASON_STOP, "")
		until(t, "it ends", finished(s, "a"))
	})
}

// TestHandedOverWithItsKVCache: a dispatch says which worker has the KV cache of a request as long as the
// one that drained and handed it over is in session, and no longer.
func TestHandedOverWithItsKVCache(t *testing.T) {
	for _, saysFirst := range []bool{true, false} {
		t.Run(fmt.Sprint("says first that it drains: ", saysFirst), func(t *testing.T) {
			testHandedOverWithItsKVCache(t, saysFirst)
		})
	}
}

func testHandedOverWithItsKVCache(t *testing.T, saysFirst bool) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		first := newWorker(t, "first")
		first.join(s)
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("early"))
		mustSubmit(t, s, request("late"))
		until(t, "it has both", func() bool { return first.count() == 2 })
		if from := first.got("early").GetKvSource(); from != "" {
			t.Errorf("a new request comes with the KV cache of %s", from)
		}
		first.handOver(saysFirst)
		second := newWorker(t, "second")
		second.info.MaxSequences = 1 // so that the others wait
		second.join(s)
		until(t, "the next worker has one", func() bool { return second.count() == 1 })
		id, other := "early", "late"
		if second.has(other) {
			id, other = other, id
		}
		if from := second.got(id).GetKvSource(); from != "first:1" {
			t.Errorf("%s comes with the KV cache of %q, want that of first:1", id, from)
		}
		first.goodbye()
		until(t, "the first worker is gone", func() bool { return s.store.View().Worker("first") == nil })
		second.finish(id, pb.FinishReason_FINISH_REASON_STOP, "")
		until(t, "the next worker has the other", func() bool { return second.has(other) })
		if from := second.got(other).GetKvSource(); from != "" {
			t.Errorf("%s comes with the KV cache of %s, which is gone", other, from)
		}
		first.leave()
		second.leave()
	})
}

func TestWorkerSessionErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })

		guest := newWorker(t, "guest")
		guest.join(s)
		until(t, "the guest is in session", func() bool { return s.store.View().Worker("guest") != nil })
		began := time.Now()
		guest.goodbye()
		until(t, "the guest that said goodbye is gone", func() bool { return s.store.View().Worker("guest") == nil })
		if took := time.Since(began); took > 100*time.Millisecond {
			t.Errorf("a goodbye took %v", took)
		}
		guest.leave()

		twin := newWorker(t, "w")
		twin.info.Address = "elsewhere:1"
		twin.join(s)
		until(t, "the twin is refused", func() bool { return twin.end() != nil })
		if status.Code(twin.end()) != codes.AlreadyExists || !strings.Contains(twin.end().Error(), "w:1") {
			t.Errorf("a second worker of the same id: %v", twin.end())
		}
		twin.leave()

		bad := newWorker(t, "bad")
		bad.info.BlockTokens = 0
		bad.join(s)
		until(t, "a hello without block size is refused", func() bool { return bad.end() != nil })
		if !strings.Contains(bad.end().Error(), "hello.worker.block_tokens: 0; the least is 1") {
			t.Errorf("%v", bad.end())
		}
		bad.leave()

		if _, err := s.Drain(context.Background(), &pb.DrainRequest{WorkerId: "w", Force: true}); err != nil {
			t.Fatal(err)
		}
		until(t, "the worker hears of the drain", func() bool { w.mu.Lock(); defer w.mu.Unlock(); return w.drained })
		mustSubmit(t, s, request("after"))
		time.Sleep(time.Second) // Virtual.
		if w.times("after") != 0 {
			t.Error("a draining worker was given a request")
		}
	})
}

// TestGroupCommit shows that what arrives together is one entry.
func TestGroupCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.info.MaxSequences, w.info.MaxBatchTokens = 1000, 100_000
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("warm"))
		var calls sync.WaitGroup
		var mu sync.Mutex
		entries := map[uint64]int{}
		for _, id := range ids("r", 200) {
			calls.Go(func() {
				r, err := submit(s, request(id))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				defer mu.Unlock()
				entries[r.GetIndex()]++
			})
		}
		calls.Wait()
		if len(entries) > 2 {
			t.Errorf("200 requests of one instant took %d entries: %v", len(entries), entries)
		}
		until(t, "all run", func() bool { return w.count() == 201 })
	})
}

// TestLargePromptsShareTheLog keeps every entry under its limit with prompts as large as allowed.
func TestLargePromptsShareTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.hold = 10 * time.Millisecond
		w.info.ContextLength, w.info.TotalBlocks = 1<<20, 1<<17
		w.join(s)
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		var calls sync.WaitGroup
		for _, id := range ids("large", 8) {
			calls.Go(func() {
				r := request(id)
				r.Prompt = make([]int32, 128<<10)
				for i := range r.Prompt {
					r.Prompt[i] = 1<<21 - 1
				}
				if _, err := submit(s, r); err != nil {
					t.Errorf("%s: %v", id, err)
				}
			})
		}
		calls.Wait()
		for _, id := range ids("large", 8) {
			until(t, id+" ends", finished(s, id))
		}
		w.leave()
	})
}

// TestPromptsAboveAnEntry: prompts up to the size of a message go in parts, whole or not at all, and
// leave nothing behind.
func TestPromptsAboveAnEntry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.info.ContextLength, w.info.TotalBlocks = 1<<21, 1<<18
		w.join(s)
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		large := func(id string, tokens int) *pb.Request {
			r := request(id)
			r.Prompt = make([]int32, tokens)
			for i := range r.Prompt {
				r.Prompt[i] = int32(1<<20 + i%(1<<20))
			}
			return r
		}
		// What is aborted on its way leaves parts behind, which the next attempt replaces.
		var calls sync.WaitGroup
		calls.Go(func() { _, _ = submit(s, large("a", 1_300_000)) })
		until(t, "a part of it is in the log", func() bool { return s.store.View().Uploads() == 1 })
		if _, err := s.Abort(t.Context(), &pb.AbortRequest{RequestId: "a"}); err != nil {
			t.Fatal(err)
		}
		calls.Wait()
		calls.Go(func() { mustSubmit(t, s, request("small")) })
		if r := mustSubmit(t, s, large("a", 1_300_000)); r.GetDuplicate() {
			t.Errorf("the second attempt answered %v", r)
		}
		calls.Wait()
		if r := mustSubmit(t, s, large("a", 1_300_000)); !r.GetDuplicate() {
			t.Errorf("a retry answered %v", r)
		}
		until(t, "both run", func() bool { return w.has("a") && w.has("small") })
		want := large("a", 1_300_000).GetPrompt()
		if got := s.store.View().Request("a"); !slices.Equal(got.Request.GetPrompt(), want) || !slices.Equal(w.got("a").GetPrompt(), want) || s.store.View().Uploads() != 0 {
			t.Errorf("the log has %d tokens and %d uploads, the worker %d tokens, want %d", len(got.Request.GetPrompt()), s.store.View().Uploads(), len(w.got("a").GetPrompt()), len(want))
		}
		most := large("most", 1_370_000)
		if proto.Size(most) > maxRequestBytes || proto.Size(most) < maxRequestBytes*9/10 {
			t.Fatalf("%d bytes", proto.Size(most))
		}
		mustSubmit(t, s, most)
		wordy := large("wordy", 200_000)
		wordy.Sampling.Stop = []string{strings.Repeat("x", bodyBytes)}
		if _, err := submit(s, wordy); status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "without its prompt") {
			t.Errorf("a large body beside the prompt: %v", err)
		}
		w.leave()
	})
}

func TestCloseEndsEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.info.MaxSequences = 1
		w.join(s)
		news, stop := watch(t, s)
		until(t, "the gateway sees the worker", news.sees("w"))
		mustSubmit(t, s, request("a"))
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		stop()
		w.stopped.Wait()
		if status.Code(w.end()) != codes.Unavailable {
			t.Errorf("the worker's session ended with %v", w.end())
		}
		if s.Ready() {
			t.Error("ready after Close")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := s.Submit(ctx, &pb.SubmitRequest{Request: request("b")}); status.Code(err) != codes.Unavailable {
			t.Errorf("submit after Close: %v", err)
		}
		if err := s.Close(); err != nil {
			t.Errorf("closing twice: %v", err)
		}
	})
}
