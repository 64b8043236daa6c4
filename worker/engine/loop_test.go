package engine

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quire-serve/quire/device"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// running is an engine under its own loop, in a synctest bubble: time moves only when everything
// waits. Each step takes a millisecond.
type running struct {
	*Engine
	t      *testing.T
	runner *enginetest.Runner
	cancel context.CancelFunc
	ended  chan error

	mu      sync.Mutex
	tokens  map[string][]int32
	finish  map[string]Event
	at      []time.Time // of each token
	opening map[string]Event
}

func run(t *testing.T, s Settings, edit ...func(*enginetest.Config, *Model)) *running {
	t.Helper()
	if s.Blocks == 0 {
		s.Blocks = 64
	}
	s.Logger = quiet()
	d := s.WithDefaults()
	c := enginetest.Config{Pages: d.Blocks, BlockTokens: d.BlockTokens, Vocab: testVocab, Limits: d.Limits(), Gate: func(int) { time.Sleep(time.Millisecond) }}
	m := Model{ContextLength: 1024, Vocab: testVocab, Stops: letters, Spell: spelled}
	for _, e := range edit {
		e(&c, &m)
	}
	r := &running{t: t, runner: enginetest.NewRunner(c), ended: make(chan error, 1), tokens: map[string][]int32{}, finish: map[string]Event{}, opening: map[string]Event{}}
	m.Runner = r.runner
	var err error
	r.Engine, err = New(s, m, func(events []Event) {
		r.mu.Lock()
		defer r.mu.Unlock()
		for _, e := range events {
			k := key(e.RequestID, int(e.Choice))
			if r.finish[k].Finish != 0 {
				t.Errorf("%s: an event after its end", k)
			}
			r.tokens[k] = append(r.tokens[k], e.Tokens...)
			if len(e.Tokens) > 0 {
				r.at = append(r.at, time.Now())
			}
			if e.Opening {
				r.opening[e.RequestID] = e
			}
			if e.Finish != 0 {
				e.Tokens = nil
				r.finish[k] = e
			}
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	r.cancel = cancel
	go func() { r.ended <- r.Run(ctx) }()
	return r
}

// close ends the loop and checks what must hold then.
func (r *running) close() {
	r.t.Helper()
	r.cancel()
	if err := <-r.ended; err != nil {
		r.t.Error(err)
	}
	if err := r.runner.Err(); err != nil {
		r.t.Error(err)
	}
	if err := r.plan.pool.Audit(); err != nil {
		r.t.Error(err)
	}
}

func (r *running) ok(q *pb.Request) {
	r.t.Helper()
	if err := r.Add(q); err != nil {
		r.t.Fatal(err)
	}
}

func (r *running) end(id string) Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.finish[key(id, 0)]
}

func (r *running) count(id string) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.tokens[key(id, 0)])
}

func TestLoopServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t, Settings{PrefixCache: true})
		var asked []*pb.Request
		for i := range 20 {
			q := ask(fmt.Sprint(i), prompt(i%3, 10+7*i), 20)
			asked = append(asked, q)
			r.ok(q)
			if i%4 == 0 {
				time.Sleep(3 * time.Millisecond)
			}
		}
		if err := r.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, q := range asked {
			want, finish := undisturbed(q, 0, &r.model, r.ContextLength())
			if got := r.tokens[key(q.Id, 0)]; !slices.Equal(got, want) || r.end(q.Id).Finish != finish {
				t.Errorf("%s: %v, want %v", q.Id, got, want)
			}
		}
		if s := r.Stats(); s.Running+s.Waiting != 0 || s.FreeBlocks != 64 || s.GeneratedTokens != 400 || s.PendingPrefill != 0 {
			t.Errorf("stats are %+v", s)
		}
		if err := r.Add(ask("late", prompt(1, 5), 1)); !errors.Is(err, ErrDraining) {
			t.Errorf("Add after Drain: %v", err)
		}
		r.close()
	})
}

func TestAddRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t, Settings{Blocks: 16, QueueRequests: 2, QueueTokens: 100, MaxSequences: 1})
		r.ok(ask("running", prompt(1, 10), 50))
		time.Sleep(5 * time.Millisecond)
		r.ok(ask("queued", prompt(2, 60), 5))
		sampling := func(edit func(*pb.SamplingParams)) *pb.Request {
			return ask("x", prompt(1, 10), 5, func(q *pb.Request) { edit(q.Sampling) })
		}
		nan := float32(0)
		nan /= nan
		big := float32(2.5)
		k := int32(21)
		for _, c := range []struct {
			q    *pb.Request
			err  error
			says string
		}{
			{ask("queued", prompt(2, 5), 5), ErrDuplicate, `"queued" is running`},
			{ask("x", prompt(1, 41), 5), ErrQueueFull, "60 prompt tokens wait, the limit is 100"},
			{ask("x", prompt(1, 256), 5), ErrTooLong, "prompt has 256 tokens, a sequence may hold 256 with at least one generated"},
			{ask("", prompt(1, 5), 5), ErrInvalid, "id has 0 bytes, must have 1 to 256"},
			{ask("x", nil, 5), ErrInvalid, "prompt is empty"},
			{ask("x", []int32{testVocab}, 5), ErrInvalid, "prompt holds token 101, must be 0 to 100"},
			{ask("x", prompt(1, 5), -1), ErrInvalid, "max_tokens is -1, must be at least 0"},
			{sampling(func(s *pb.SamplingParams) { s.N = 129 }), ErrInvalid, "n is 129, must be 1 to 128"},
			{sampling(func(s *pb.SamplingParams) { s.Temperature = &nan }), ErrInvalid, "temperature is NaN, must be 0 to 2"},
			{sampling(func(s *pb.SamplingParams) { s.TopP = &big }), ErrInvalid, "top_p is 2.5, must be above 0 and at most 1"},
			{sampling(func(s *pb.SamplingParams) { s.RepetitionPenalty = &big }), ErrInvalid, "repetition_penalty is 2.5, must be above 0 and at most 2"},
			{sampling(func(s *pb.SamplingParams) { s.MinP = big }), ErrInvalid, "min_p is 2.5, must be 0 to 1"},
			{sampling(func(s *pb.SamplingParams) { s.TopK = -1 }), ErrInvalid, "top_k is -1, must be at least 0"},
			{sampling(func(s *pb.SamplingParams) { s.PresencePenalty = big }), ErrInvalid, "presence_penalty is 2.5, must be -2 to 2"},
			{sampling(func(s *pb.SamplingParams) { s.FrequencyPenalty = -big }), ErrInvalid, "frequency_penalty is -2.5, must be -2 to 2"},
			{sampling(func(s *pb.SamplingParams) { s.MinTokens = 6 }), ErrInvalid, "min_tokens is 6, must be 0 to max_tokens"},
			{sampling(func(s *pb.SamplingParams) { s.Stop = []string{""} }), ErrInvalid, "stop has an entry of 0 bytes, must have 1 to 256"},
			{sampling(func(s *pb.SamplingParams) { s.Stop = make([]string, 17) }), ErrInvalid, "stop has 17 entries, at most 16 are allowed"},
			{sampling(func(s *pb.SamplingParams) { s.StopTokenIds = []int32{-1} }), ErrInvalid, "stop_token_ids holds token -1, must be 0 to 100"},
			{sampling(func(s *pb.SamplingParams) { s.AllowedTokenIds = []int32{-1} }), ErrInvalid, "allowed_token_ids holds token -1"},
			{sampling(func(s *pb.SamplingParams) { s.AllowedTokenIds = make([]int32, 4097) }), ErrInvalid, "at most 4096"},
			{sampling(func(s *pb.SamplingParams) { s.BadWords = []string{""} }), ErrInvalid, "bad_words has an entry of 0 bytes, must have 1 to 256"},
			{sampling(func(s *pb.SamplingParams) { s.BadWords = make([]string, 129) }), ErrInvalid, "bad_words has 129 entries, at most 128 are allowed"},
			{sampling(func(s *pb.SamplingParams) { s.LogitBias = map[int32]float32{5: 101} }), ErrInvalid, "logit_bias for token 5 is 101"},
			{sampling(func(s *pb.SamplingParams) { s.Logprobs = &k }), ErrInvalid, "logprobs is 21, must be 0 to 20"},
			{sampling(func(s *pb.SamplingParams) { s.PromptLogprobs = &k }), ErrInvalid, "prompt_logprobs is 21, must be 0 to 20"},
			{&pb.Request{Id: "x", Prompt: prompt(1, 5), Generated: make([]*pb.TokenIds, 2)}, ErrInvalid, "generated has 2 lists for n = 1"},
			{ask("x", prompt(1, 5), 3, func(q *pb.Request) { q.Generated = []*pb.TokenIds{{Ids: prompt(1, 4)}} }), ErrTooLong, "prompt and generated hold 9 tokens, a choice may hold 8"},
		} {
			if err := r.Add(c.q); !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v, want %v: %s", err, c.err, c.says)
			}
		}
		r.ok(ask("second", prompt(2, 5), 5))
		if err := r.Add(ask("third", prompt(2, 5), 5)); !errors.Is(err, ErrQueueFull) || !strings.Contains(err.Error(), "2 requests wait, the limit is 2") {
			t.Errorf("got %v", err)
		}
		// Room comes back when one starts, and when one is aborted.
		if !r.Abort("second", "") || r.Abort("unknown", "") {
			t.Error("Abort does not know who is live")
		}
		time.Sleep(3 * time.Millisecond)
		r.ok(ask("third", prompt(2, 5), 5))
		if err := r.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		r.close()
	})
}

// TestScenarioJ3: the three ways to pause.
func TestScenarioJ3(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t, Settings{})
		// Keep: a 30-token request frozen for 5 s has that gap and then all its tokens.
		r.ok(ask("keep", prompt(1, 10), 30))
		time.Sleep(10 * time.Millisecond)
		for range 2 { // twice is fine
			if err := r.Pause(t.Context(), PauseKeep); err != nil {
				t.Fatal(err)
			}
		}
		before := r.count("keep")
		r.ok(ask("new", prompt(2, 10), 3))
		time.Sleep(5 * time.Second)
		if n := r.count("keep"); n != before || n == 0 || n == 30 || r.count("new") != 0 {
			t.Errorf("%d tokens before the pause, %d after", before, n)
		}
		r.Resume()
		r.Resume()
		time.Sleep(time.Second)
		if r.count("keep") != 30 || r.count("new") != 3 {
			t.Errorf("%d and %d tokens after Resume", r.count("keep"), r.count("new"))
		}
		gap := time.Duration(0)
		for i := 1; i < len(r.at); i++ {
			gap = max(gap, r.at[i].Sub(r.at[i-1]))
		}
		if gap < 4*time.Second {
			t.Errorf("the longest gap is %v", gap)
		}

		// Wait: returns when what runs has completed; what came later waits for Resume.
		r.ok(ask("wait", prompt(3, 10), 30))
		time.Sleep(3 * time.Millisecond)
		paused := make(chan error)
		go func() { paused <- r.Pause(t.Context(), PauseWait) }()
		synctest.Wait()
		r.ok(ask("later", prompt(4, 10), 3))
		if err := <-paused; err != nil {
			t.Fatal(err)
		}
		if r.count("wait") != 30 || r.end("wait").Finish != length || r.count("later") != 0 {
			t.Errorf("%d tokens, %d of the later request", r.count("wait"), r.count("later"))
		}

		// Abort: what runs ends now, what waits completes after Resume.
		r.Resume()
		r.ok(ask("doomed", prompt(5, 10), 500))
		time.Sleep(10 * time.Millisecond)
		if err := r.Pause(t.Context(), PauseAbort); err != nil {
			t.Fatal(err)
		}
		if e := r.end("doomed"); e.Finish != abort {
			t.Errorf("doomed ended with %v", e.Finish)
		}
		r.ok(ask("patient", prompt(6, 10), 3))
		time.Sleep(time.Second)
		if r.count("patient") != 0 {
			t.Error("a request started during the pause")
		}
		r.Resume()
		time.Sleep(time.Second)
		if r.count("patient") != 3 || r.count("later") != 3 {
			t.Errorf("%d and %d tokens after Resume", r.count("patient"), r.count("later"))
		}
		r.close()
	})
}

// TestDrainIsBounded: Drain gives up with its context and names no one ended who has not.
func TestDrainIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t, Settings{})
		r.ok(ask("endless", prompt(1, 10), 900))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if err := r.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("Drain: %v", err)
		}
		if live := r.Live(); !slices.Equal(live, []string{"endless"}) {
			t.Errorf("live are %v", live)
		}
		r.close()
		if e := r.end("endless"); e.Finish != 0 {
			t.Errorf("a request that was left ended with %v", e.Finish)
		}
	})
}

// TestDeadlineWakesTheLoop: a request that waits in a paused engine is dropped at its deadline.
func TestDeadlineWakesTheLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t, Settings{})
		if err := r.Pause(t.Context(), PauseKeep); err != nil {
			t.Fatal(err)
		}
		q := ask("a", prompt(1, 10), 5)
		q.PatienceMs = 3000
		r.ok(q)
		time.Sleep(3*time.Second - time.Millisecond)
		if e := r.end("a"); e.Finish != 0 {
			t.Error("dropped before its deadline")
		}
		time.Sleep(2 * time.Millisecond)
		if e := r.end("a"); e.Finish != pb.FinishReason_FINISH_REASON_DEADLINE || !e.Done {
			t.Errorf("ended with %v", e.Finish)
		}
		r.close()
	})
}

// TestWaits: the first event says how long the request waited and computed.
func TestWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t, Settings{MaxSequences: 1})
		r.ok(ask("first", prompt(1, 10), 10))
		time.Sleep(2 * time.Millisecond)
		r.ok(ask("second", prompt(2, 10), 2))
		if err := r.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		opening := r.opening["second"]
		if opening.QueueUS < 7000 || opening.QueueUS > 10000 || opening.PrefillUS < 1000 || opening.PrefillUS > 2000 {
			t.Errorf("waited %d µs, first token after %d µs more", opening.QueueUS, opening.PrefillUS)
		}
		r.close()
	})
}

// TestDeviceGone: when the device is closed Run ends with its error and leaves the requests, which can
// go on elsewhere.
func TestDeviceGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := run(t, Settings{MaxSequences: 1})
		r.ok(ask("a", prompt(1, 10), 100))
		r.ok(ask("b", prompt(2, 10), 100))
		time.Sleep(5 * time.Millisecond)
		_ = r.runner.Close()
		if err := <-r.ended; err == nil || !strings.Contains(err.Error(), "device is gone") {
			t.Errorf("Run: %v", err)
		}
		for _, id := range []string{"a", "b"} {
			if e := r.end(id); e.Finish != 0 || !slices.Contains(r.Live(), id) {
				t.Errorf("%s ended with %v %q", id, e.Finish, e.Error)
			}
		}
		if err := r.Add(ask("c", prompt(1, 5), 1)); !errors.Is(err, ErrDraining) {
			t.Errorf("Add: %v", err)
		}
	})
}

// TestStepFailsInTheLoop: a failing step costs no request its tokens.
func TestStepFailsInTheLoop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fails := map[int]bool{3: true, 9: true, 10: true}
		r := run(t, Settings{PrefixCache: true}, func(c *enginetest.Config, _ *Model) {
			c.Fail = func(step int, _ *device.Batch) error {
				if fails[step] {
					return errors.New("flaky")
				}
				return nil
			}
		})
		var asked []*pb.Request
		for i := range 4 {
			q := ask(fmt.Sprint(i), prompt(i, 20), 30)
			asked = append(asked, q)
			r.ok(q)
		}
		if err := r.Drain(t.Context()); err != nil {
			t.Fatal(err)
		}
		for _, q := range asked {
			want, _ := undisturbed(q, 0, &r.model, r.ContextLength())
			if got := r.tokens[key(q.Id, 0)]; !slices.Equal(got, want) {
				t.Errorf("%s: %v %v, want %v", q.Id, got, r.end(q.Id), want)
			}
		}
		if n := r.Stats().DeviceFailures; n < 2 {
			t.Errorf("%d failures", n)
		}
		r.close()
	})
}
