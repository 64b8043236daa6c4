package engine

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/kvcache"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// The scenarios of the conformance list, by their ids. Where Quire does otherwise the test says so.

const (
	length = pb.FinishReason_FINISH_REASON_LENGTH
	stop   = pb.FinishReason_FINISH_REASON_STOP
	abort  = pb.FinishReason_FINISH_REASON_ABORT
	failed = pb.FinishReason_FINISH_REASON_ERROR
)

// says makes the device draw fixed tokens: by the prompt's first token, then by position.
func says(prompt int, tokens ...int32) func(*enginetest.Config, *Model) {
	return func(c *enginetest.Config, m *Model) {
		m.EOS = []int32{100}
		c.Token = func(seen []int32, _ device.Sample) int32 {
			return tokens[min(len(seen)-prompt, len(tokens)-1)]
		}
	}
}

func (r *rig) ids(o order) (out []string) {
	for _, s := range o {
		out = append(out, s.id)
	}
	return out
}

func (r *rig) tokens(id string) []int32 { return r.got[key(id, 0)].tokens }

func wantSteps(t *testing.T, r *rig, want ...[]int) {
	t.Helper()
	got := r.runner.Steps()
	if len(got) < len(want) {
		t.Fatalf("%d steps %v, want %v", len(got), got, want)
	}
	for i := range want {
		if !slices.Equal(got[i], want[i]) {
			t.Errorf("step %d has rows %v, want %v", i+1, got[i], want[i])
		}
	}
}

func TestScenarioC3(t *testing.T) {
	// 17 tokens twice: the second finds 16.
	r := newRig(t, Settings{Blocks: 16, PrefixCache: true})
	r.add(ask("a", prompt(1, 17), 3))
	r.finish()
	b := ask("b", prompt(1, 17), 3)
	r.add(b)
	r.finish()
	r.want(b)
	if h := r.got["b/0"]; h.cached != 16 || h.usage.CachedTokens != 16 {
		t.Errorf("%d cached tokens, want 16", h.cached)
	}
	// A prompt of whole blocks, all cached, computes one token; others recompute the last block.
	r.add(ask("c", prompt(2, 48), 1))
	r.finish()
	before := r.runner.Rows()
	d := ask("d", prompt(2, 48), 1)
	r.add(d)
	r.finish()
	r.want(d)
	if n := r.runner.Rows() - before; n != 1 {
		t.Errorf("a fully cached prompt computed %d tokens, want 1", n)
	}
}

func TestScenarioC9(t *testing.T) {
	r := newRig(t, Settings{Blocks: 64, PrefixCache: true})
	a := ask("a", prompt(1, 100), 200)
	r.add(a)
	r.finish()
	before := r.runner.Rows()
	b := ask("b", slices.Concat(a.Prompt, r.tokens("a")), 1)
	r.add(b)
	r.finish()
	r.want(b)
	if n := r.runner.Rows() - before; n != 300%16 {
		t.Errorf("the second turn computed %d tokens, want %d", n, 300%16)
	}
}

func TestScenarioB11(t *testing.T) {
	// Prompt log-probabilities do not read the cache but write it.
	r := newRig(t, Settings{Blocks: 32, PrefixCache: true})
	scored := func(q *pb.Request) { k := int32(0); q.Sampling.PromptLogprobs = &k }
	p := prompt(1, 55)
	for i, want := range []int32{0, 48, 0} {
		q := ask(fmt.Sprint(i), p, 2)
		if i != 1 {
			scored(q)
		}
		r.add(q)
		r.finish()
		r.want(q)
		r.wantScores(q)
		if got := r.got[key(q.Id, 0)].cached; got != want {
			t.Errorf("request %d found %d cached tokens, want %d", i, got, want)
		}
	}
}

func TestScenarioD1(t *testing.T) {
	r := newRig(t, Settings{Blocks: 64, MaxSequences: 16})
	var want []int
	for i := range 10 {
		r.add(ask(fmt.Sprint(i), prompt(i, 5+i), 4))
		want = append(want, 5+i)
	}
	r.finish()
	wantSteps(t, r, want, []int{1, 1, 1, 1, 1, 1, 1, 1, 1, 1})
	for _, rows := range r.runner.Steps() {
		sum := 0
		for _, n := range rows {
			sum += n
		}
		if sum > r.p.MaxBatchTokens {
			t.Errorf("a step of %d tokens exceeds the budget of %d", sum, r.p.MaxBatchTokens)
		}
	}
}

func TestScenarioD2(t *testing.T) {
	r := newRig(t, Settings{Blocks: 200, MaxBatchTokens: 1024, PrefillChunk: 400})
	for i := range 3 {
		r.add(ask(fmt.Sprint(i), prompt(i, 800), 2))
	}
	r.finish()
	wantSteps(t, r, []int{400, 400, 224}, []int{400, 400, 224}, []int{1, 1, 352})
}

func TestScenarioD3(t *testing.T) {
	r := newRig(t, Settings{Blocks: 200, MaxSequences: 3, MaxBatchTokens: 1024})
	for i, n := range []int{800, 800, 10, 10} {
		r.add(ask(fmt.Sprint(i), prompt(i, n), 3))
	}
	r.finish()
	wantSteps(t, r, []int{800, 224}, []int{1, 576, 10})
}

func TestScenarioD5(t *testing.T) {
	// With a step in flight elsewhere the first request has nothing to do until its output
	// returns. Here its next row refers to the token being drawn, so it goes on at once and the
	// newcomer takes the rest of the budget.
	r := newRig(t, Settings{Blocks: 200, MaxBatchTokens: 512})
	r.add(ask("a", prompt(1, 512), 5))
	r.step()
	r.add(ask("b", prompt(2, 512), 5))
	r.step()
	wantSteps(t, r, []int{512}, []int{1, 511})
	r.finish()
}

func TestScenarioE1(t *testing.T) {
	for _, c := range []struct {
		name   string
		edit   func(*pb.Request)
		want   []int32
		finish pb.FinishReason
		why    string
	}{
		{"end of sequence", func(*pb.Request) {}, []int32{10, 11, 42, 12, 100}, stop, ""},
		{"stop id", func(q *pb.Request) { q.Sampling.StopTokenIds = []int32{42} }, []int32{10, 11, 42}, stop, "42"},
		{"max_tokens", func(q *pb.Request) { q.Sampling.MaxTokens = 2 }, []int32{10, 11}, length, ""},
		{"stop string", func(q *pb.Request) { q.Sampling.Stop = []string{letter(11) + letter(42)} }, []int32{10, 11, 42}, stop, "lq"},
		{"min_tokens", func(q *pb.Request) { q.Sampling.StopTokenIds = []int32{11, 12}; q.Sampling.MinTokens = 3 }, []int32{10, 11, 42, 12}, stop, "12"},
		{"stop string across min_tokens", func(q *pb.Request) {
			q.Sampling.Stop, q.Sampling.MinTokens = []string{letter(11) + letter(42), letter(10)}, 2
		}, []int32{10, 11, 42}, stop, "lq"},
		{"stop string that spells a token", func(q *pb.Request) { q.Sampling.Stop = []string{"<42>"} }, []int32{10, 11, 42}, stop, "<42>"},
		{"the same before min_tokens", func(q *pb.Request) { q.Sampling.Stop, q.Sampling.MinTokens = []string{"<11>"}, 2 }, []int32{10, 11, 42, 12, 100}, stop, ""},
	} {
		r := newRig(t, Settings{Blocks: 8}, says(20, 10, 11, 42, 12, 100), func(_ *enginetest.Config, m *Model) {
			m.Special = func(s string) (int32, bool) {
				var id int32
				_, err := fmt.Sscanf(s, "<%d>", &id)
				return id, err == nil
			}
		})
		r.add(ask("a", prompt(1, 20), 30, c.edit))
		r.finish()
		if h := r.got["a/0"]; !slices.Equal(h.tokens, c.want) || h.finish != c.finish || h.why != c.why {
			t.Errorf("%s: %v, %v %q, want %v, %v %q", c.name, h.tokens, h.finish, h.why, c.want, c.finish, c.why)
		}
	}
	// The context ends what nothing else does.
	r := newRig(t, Settings{Blocks: 8}, func(_ *enginetest.Config, m *Model) { m.ContextLength = 40 })
	r.add(ask("a", prompt(1, 30), 0))
	r.finish()
	if h := r.got["a/0"]; len(h.tokens) != 10 || h.finish != length {
		t.Errorf("%d tokens, %v, want 10, %v", len(h.tokens), h.finish, length)
	}
}

func TestScenarioE3(t *testing.T) {
	r := newRig(t, Settings{Blocks: 8}, says(20, 100, 10, 11))
	r.add(ask("a", prompt(1, 20), 3, func(q *pb.Request) { q.Sampling.IgnoreEos = true }))
	r.finish()
	if h := r.got["a/0"]; !slices.Equal(h.tokens, []int32{100, 10, 11}) || h.finish != length {
		t.Errorf("%v, %v", h.tokens, h.finish)
	}
}

func TestScenarioE5(t *testing.T) {
	for _, n := range []int{1, 2, 3, 5} {
		r := newRig(t, Settings{Blocks: 64})
		r.add(ask("a", prompt(1, 30), n), ask("b", prompt(2, 50), n))
		r.finish()
		if got, want := r.runner.Rows(), 30+50+2*(n-1); got != want {
			t.Errorf("max_tokens %d: %d tokens computed, want %d", n, got, want)
		}
	}
}

// pressed is F1's setting: two prompts fill the pool and the first then needs a block.
func pressed(t *testing.T, depth int) *rig {
	r := newRig(t, Settings{Blocks: 11, Depth: depth}, func(*enginetest.Config, *Model) {})
	r.add(ask("a", prompt(1, 80), 30), ask("b", prompt(2, 80), 30))
	return r
}

func TestScenarioF1(t *testing.T) {
	r := pressed(t, 1)
	r.step()
	wantSteps(t, r, []int{80, 80})
	r.step()
	if !slices.Equal(r.ids(r.p.running), []string{"a"}) || !slices.Equal(r.ids(r.p.waiting), []string{"b"}) {
		t.Errorf("running %v, waiting %v", r.ids(r.p.running), r.ids(r.p.waiting))
	}
	wantSteps(t, r, []int{80, 80}, []int{1})
	r.finish()
}

func TestScenarioF2(t *testing.T) {
	// The token in flight for the preempted request lands.
	r := pressed(t, 2)
	r.step()
	r.step() // preempts b, then hears of the first step
	if r.p.count.preemptions != 1 || len(r.tokens("b")) != 1 {
		t.Errorf("%d preemptions, %d tokens of b", r.p.count.preemptions, len(r.tokens("b")))
	}
	r.finish()
}

func TestScenarioF3(t *testing.T) {
	for _, depth := range []int{1, 2} {
		r := pressed(t, depth)
		r.finish()
		for _, q := range []*pb.Request{ask("a", prompt(1, 80), 30), ask("b", prompt(2, 80), 30)} {
			r.want(q)
		}
		if r.p.count.preemptions != 1 {
			t.Errorf("%d preemptions, want 1", r.p.count.preemptions)
		}
		resumed := slices.ContainsFunc(r.runner.Steps(), func(rows []int) bool { return slices.Equal(rows, []int{81}) })
		if !resumed {
			t.Errorf("no step computes b's prompt and first token again: %v", r.runner.Steps())
		}
	}
}

func TestScenarioF5F6(t *testing.T) {
	r := newRig(t, Settings{Blocks: 11, Depth: 1})
	r.add(ask("a", prompt(1, 80), 30), ask("b", prompt(2, 80), 30))
	r.step()
	r.add(ask("c", prompt(3, 32), 5))
	for r.p.count.preemptions == 0 {
		r.step()
	}
	// The step that preempts b has room for c but starts nobody, and b stands before c.
	if !slices.Equal(r.ids(r.p.running), []string{"a"}) || !slices.Equal(r.ids(r.p.waiting), []string{"b", "c"}) {
		t.Errorf("running %v, waiting %v", r.ids(r.p.running), r.ids(r.p.waiting))
	}
	r.finish()
}

func TestScenarioF9(t *testing.T) {
	r := newRig(t, Settings{Blocks: 12, MaxSequences: 8})
	var asked []*pb.Request
	for i := range 8 {
		asked = append(asked, ask(fmt.Sprint(i), prompt(i, 20), 60))
	}
	r.add(asked...)
	r.finish()
	for _, q := range asked {
		r.want(q)
	}
	if r.p.count.preemptions == 0 {
		t.Error("nothing was preempted: the pool is not small enough to test anything")
	}
}

func TestScenarioF10F11(t *testing.T) {
	// A needs 8 of 9 blocks, B 5: B's first chunk would fit beside A, but not its whole prompt.
	r := newRig(t, Settings{Blocks: 9, MaxBatchTokens: 64, MaxSequences: 4})
	a, b := ask("a", prompt(1, 8*16-8), 8), ask("b", prompt(2, 5*16-8), 8)
	r.add(a, b)
	for len(r.got) == 0 || r.got["a/0"] == nil || r.got["a/0"].finish == 0 {
		r.step()
		if s := r.find("b"); s.choices[0].state == stateRunning && r.got["a/0"] != nil && r.got["a/0"].finish == 0 {
			t.Fatal("b was admitted though its prompt does not fit beside a")
		}
	}
	r.finish()
	r.want(a)
	r.want(b)
	if r.p.count.preemptions != 0 {
		t.Errorf("%d preemptions, want none", r.p.count.preemptions)
	}
}

func TestScenarioG1G2G3(t *testing.T) {
	for _, c := range []struct {
		name       string
		priorities []int32
		arrivals   []int64
		want       []string
	}{
		{"G1", []int32{2, 0, 1}, []int64{0, 0, 0}, []string{"1", "2", "0"}},
		{"G2", []int32{0, 0, 0}, []int64{3, 1, 2}, []string{"1", "2", "0"}},
		{"G3", []int32{2, 1, 1, 0}, []int64{1, 3, 2, 4}, []string{"3", "2", "1", "0"}},
	} {
		r := newRig(t, Settings{Blocks: 32, MaxSequences: 1})
		for i := range c.priorities {
			q := ask(fmt.Sprint(i), prompt(i, 10), 3)
			q.Priority, q.ArrivalMs = c.priorities[i], c.arrivals[i]
			r.add(q)
		}
		r.finish()
		if !slices.Equal(r.log, c.want) {
			t.Errorf("%s: order %v, want %v", c.name, r.log, c.want)
		}
	}
}

func TestScenarioG4(t *testing.T) {
	for _, c := range []struct {
		slots      int
		priorities []int32
		running    []string
		waiting    []string
	}{
		{1, []int32{3, 2, 0}, []string{"2"}, []string{"1", "0"}},
		{2, []int32{3, 1, 2, 0}, []string{"3", "1"}, []string{"2", "0"}},
	} {
		r := newRig(t, Settings{Blocks: 32, MaxSequences: c.slots})
		for i, p := range c.priorities {
			q := ask(fmt.Sprint(i), prompt(i, 10), 3)
			q.Priority = p
			r.add(q)
		}
		r.step()
		if !slices.Equal(r.ids(r.p.running), c.running) || !slices.Equal(r.ids(r.p.waiting), c.waiting) {
			t.Errorf("running %v, waiting %v, want %v, %v", r.ids(r.p.running), r.ids(r.p.waiting), c.running, c.waiting)
		}
		r.finish()
	}
}

func TestScenarioG5(t *testing.T) {
	r := newRig(t, Settings{Blocks: 5, Depth: 1})
	low, high := ask("low", prompt(1, 32), 10), ask("high", prompt(2, 32), 10)
	low.Priority = 5
	r.add(low)
	r.step()
	r.step() // low takes its third block
	r.add(high)
	r.step()
	if len(r.p.running) != 2 {
		t.Fatalf("running %v", r.ids(r.p.running))
	}
	r.step()
	if !slices.Equal(r.ids(r.p.running), []string{"high"}) {
		t.Errorf("running %v, want high alone", r.ids(r.p.running))
	}
	r.finish()
	r.want(low)
	r.want(high)
}

func TestScenarioG7G8(t *testing.T) {
	r := newRig(t, Settings{Blocks: 18, Depth: 1})
	a, b, c := ask("a", prompt(1, 200), 20), ask("b", prompt(2, 32), 20), ask("c", prompt(3, 32), 20)
	a.Priority, c.Priority = 9, 1
	r.add(a)
	r.step()
	r.add(b, c)
	r.step()
	if len(r.p.running) != 3 {
		t.Fatalf("running %v", r.ids(r.p.running))
	}
	r.step()
	if r.p.count.preemptions != 1 || !slices.Equal(r.ids(r.p.running), []string{"b", "c"}) {
		t.Fatalf("%d preemptions, running %v", r.p.count.preemptions, r.ids(r.p.running))
	}
	// C is not skipped, and nothing of A is left in the step.
	wantSteps(t, r, []int{200}, []int{1, 32, 32}, []int{1, 1})
	r.finish()
	for _, q := range []*pb.Request{a, b, c} {
		r.want(q)
	}
}

func TestScenarioG9(t *testing.T) {
	seed := uint64(20)
	rng := rand.New(rand.NewPCG(seed, 0))
	r := newRig(t, Settings{Blocks: 300, MaxSequences: 32, MaxBatchTokens: 512, PrefixCache: true})
	var asked []*pb.Request
	for step := range 4000 {
		if rng.IntN(3) == 0 && len(r.p.waiting) < 50 && step < 2500 {
			q := ask(fmt.Sprint(step), prompt(step, 1+rng.IntN(500)), 1+rng.IntN(120))
			q.Priority = int32(rng.IntN(8)) - 3
			asked = append(asked, q)
			r.add(q)
		}
		r.step()
	}
	r.finish()
	for _, q := range asked {
		r.want(q)
	}
	if len(asked) < 100 || r.p.count.preemptions < 30 {
		t.Errorf("seed %d: only %d requests and %d preemptions", seed, len(asked), r.p.count.preemptions)
	}
}

func TestScenarioH1(t *testing.T) {
	r := newRig(t, Settings{Blocks: 64, MaxSequences: 16})
	for i := range 10 {
		r.add(ask(fmt.Sprint(i), prompt(i, 10), 50))
	}
	r.step()
	for k, i := range []int{0, 8, 3, 1, 6, 4, 2, 5, 7, 9} {
		r.step()
		r.abort(fmt.Sprint(i))
		if n := len(r.tokens(fmt.Sprint(i))); n != k+1 {
			t.Errorf("request %d was aborted with %d tokens, want %d", i, n, k+1)
		}
	}
	r.finish()
	for i := range 10 {
		if h := r.got[key(fmt.Sprint(i), 0)]; h.finish != abort || !h.done {
			t.Errorf("request %d ended with %v", i, h.finish)
		}
	}
}

func TestScenarioH2H3(t *testing.T) {
	free := func(r *rig) int { return r.p.pool.Free() }
	// A stops while the step behind is in flight: its blocks come back with that step.
	r := newRig(t, Settings{Blocks: 20}, func(c *enginetest.Config, m *Model) {
		m.EOS = []int32{100}
		c.Token = func(seen []int32, _ device.Sample) int32 {
			if seen[0] == 1 {
				return 100
			}
			return 5
		}
	})
	r.add(ask("a", append([]int32{1}, prompt(1, 60)...), 9), ask("b", append([]int32{2}, prompt(2, 60)...), 9))
	r.step()
	r.step()
	if r.got["a/0"].finish != stop || free(r) != 12 {
		t.Errorf("a ended with %v, %d blocks free, want 12", r.got["a/0"].finish, free(r))
	}
	r.step()
	if free(r) != 16 {
		t.Errorf("%d blocks free once the step behind is done, want 16", free(r))
	}
	// The same for an abort.
	r.abort("b")
	if free(r) != 16 {
		t.Errorf("%d blocks free after an abort under a step in flight, want 16", free(r))
	}
	r.finish()

	// With nothing in flight they come back at once.
	r = newRig(t, Settings{Blocks: 20, Depth: 1})
	r.add(ask("a", prompt(1, 60), 9))
	r.step()
	r.abort("a")
	if free(r) != 20 {
		t.Errorf("%d blocks free, want 20", free(r))
	}

	// A preemption under a step in flight makes one victim, not a cascade: who needs the block waits
	// for the victim's.
	r = newRig(t, Settings{Blocks: 17, PrefixCache: false})
	for i := range 3 {
		r.add(ask(fmt.Sprint(i), prompt(i, 80), 9))
	}
	r.step()
	// What was left to grow into is taken.
	taken := r.p.pool.NewSequence(kvcache.Root(nil, nil))
	if err := taken.Grow(2 * 16); err != nil {
		t.Fatal(err)
	}
	r.step()
	taken.Release()
	free = func(r *rig) int { return r.p.pool.Free() - 2 }
	if r.p.count.preemptions != 1 || len(r.p.running) != 2 || free(r) != 5 {
		t.Errorf("%d preemptions, %d running, %d free", r.p.count.preemptions, len(r.p.running), free(r))
	}
	r.finish()
	for i := range 3 {
		r.want(ask(fmt.Sprint(i), prompt(i, 80), 9))
	}
	if r.p.count.preemptions != 1 {
		t.Errorf("%d preemptions, want 1", r.p.count.preemptions)
	}
}

func TestScenarioJ1J2(t *testing.T) {
	r := newRig(t, Settings{Blocks: 10, MaxSequences: 2})
	b := ask("b", prompt(2, 70), 5)
	r.add(ask("a", prompt(1, 80), 30), b, ask("queued", prompt(3, 30), 5))
	r.step()
	r.abort("queued")
	r.step()
	r.step()
	r.abort("a") // running
	r.add(ask("a", prompt(1, 20), 2))
	if h := r.got["a/0"]; h.finish != abort || !h.done {
		t.Errorf("a ended with %v", h.finish)
	}
	delete(r.got, "a/0") // the same id again
	r.finish()
	r.want(b)
	r.want(ask("a", prompt(1, 20), 2))
	if h := r.got["queued/0"]; h.finish != abort || len(h.tokens) != 0 {
		t.Errorf("queued ended with %v", h.finish)
	}
	r.abort("b") // finished: nothing

	// Preempted.
	r = pressed(t, 2)
	r.step()
	r.step()
	r.abort("b")
	r.finish()
	if h := r.got["b/0"]; h.finish != abort || len(h.tokens) != 1 {
		t.Errorf("b ended with %v after %d tokens", h.finish, len(h.tokens))
	}
	r.want(ask("a", prompt(1, 80), 30))
}

func TestScenarioJ9(t *testing.T) {
	r := newRig(t, Settings{Blocks: 40, MaxSequences: 32, PrefixCache: true})
	for i := range 32 {
		r.add(ask(fmt.Sprint(i), prompt(i, 16), 100))
	}
	for r.p.count.preemptions < 5 {
		r.step()
	}
	for i := range 32 {
		r.abort(fmt.Sprint(i))
	}
	r.finish()
	for i := range 32 {
		if h := r.got[key(fmt.Sprint(i), 0)]; h.finish == 0 || !h.done {
			t.Errorf("request %d ended with %v", i, h.finish)
		}
	}
}

func TestScenarioJ5(t *testing.T) {
	// A step fails: no one is lost. The one that makes the device fail each time ends with the
	// error, the others give what they would have given.
	r := newRig(t, Settings{Blocks: 64, PrefixCache: true}, func(c *enginetest.Config, _ *Model) {
		c.Fail = func(_ int, b *device.Batch) error {
			for i, s := range b.Seqs {
				if b.Tokens[s.Row] == 77 && b.Positions[s.Row] == 0 && i >= 0 {
					return fmt.Errorf("poisoned")
				}
			}
			return nil
		}
	})
	var asked []*pb.Request
	for i := range 6 {
		asked = append(asked, ask(fmt.Sprint(i), append([]int32{int32(i)}, prompt(i, 30)...), 20))
	}
	r.add(asked...)
	r.step()
	r.step()
	r.add(ask("poison", append([]int32{77}, prompt(9, 30)...), 20))
	r.finish()
	for _, q := range asked {
		r.want(q)
	}
	if h := r.got["poison/0"]; h.finish != failed || h.message != "engine: step failed: wait: poisoned" {
		t.Errorf("the poisoned request ended with %v %q", h.finish, h.message)
	}
}

func TestScenarioK1(t *testing.T) {
	for _, s := range []Settings{
		{Blocks: 64, PrefixCache: true},
		{Blocks: 12, PrefixCache: true},  // not all choices at once
		{Blocks: 64, MaxSequences: 2},    // more choices than slots
		{Blocks: 64, Depth: 1},           // no overlap
		{Blocks: 64, MaxBatchTokens: 64}, // a prompt in two chunks
	} {
		r := newRig(t, s)
		q := ask("a", prompt(1, 70), 20)
		q.Sampling.N = 5
		one := float32(1)
		q.Sampling.Temperature = &one
		r.add(q)
		r.finish()
		r.want(q)
		if u := r.got["a/4"]; r.got["a/0"].tokens[0] == u.tokens[0] && slices.Equal(r.got["a/0"].tokens, u.tokens) {
			t.Error("choices 0 and 4 are the same though their seeds differ")
		}
		for c := range 5 {
			if h := r.got[key("a", c)]; h.done && h.usage != (Usage{70, 100, 0}) {
				t.Errorf("usage is %+v", h.usage)
			}
		}
	}
	// The prompt is computed once, and the choices share its full blocks: 4 of them and one of
	// their own each.
	r := newRig(t, Settings{Blocks: 64})
	q := ask("a", prompt(1, 70), 5)
	q.Sampling.N = 5
	r.add(q)
	r.step()
	r.step()
	if got, want := r.runner.Rows(), 70+5; got != want {
		t.Errorf("%d tokens computed, want %d", got, want)
	}
	if used := 64 - r.p.pool.Free(); used != 4+5 {
		t.Errorf("%d blocks used, want 9", used)
	}
	r.finish()
}

func TestScenarioL5(t *testing.T) {
	r := newRig(t, Settings{Blocks: 12, PrefixCache: true, MaxSequences: 4})
	r.add(ask("a", prompt(1, 150), 20))
	r.step()
	r.add(ask("b", prompt(2, 60), 2)) // is refused again and again until a ends
	r.finish()
	if s := r.p.stats(); s.PrefixQueryTokens != 150+60 || s.PrefixHitTokens != 0 {
		t.Errorf("%d tokens looked up, want 210", s.PrefixQueryTokens)
	}
	r = newRig(t, Settings{Blocks: 12})
	r.add(ask("a", prompt(1, 20), 2))
	r.finish()
	if s := r.p.stats(); s.PrefixQueryTokens != 0 {
		t.Errorf("%d tokens looked up with caching off", s.PrefixQueryTokens)
	}
}

// TestResumedElsewhere: tokens that were generated before are prefill; what follows is what would
// have followed.
func TestResumedElsewhere(t *testing.T) {
	whole := ask("a", prompt(1, 40), 30, func(q *pb.Request) {
		one := float32(1)
		q.Sampling.Temperature = &one
		q.Sampling.FrequencyPenalty = 0.5
		q.Sampling.N = 2
	})
	var outs [][]int32
	for c := range 2 {
		out, _ := undisturbed(whole, c, &Model{}, 4096)
		outs = append(outs, out)
	}
	for _, n := range []int{0, 1, 13, 29, 30} {
		r := newRig(t, Settings{Blocks: 64, PrefixCache: true})
		whole.Generated = []*pb.TokenIds{{Ids: outs[0][:n]}, {Ids: outs[1][:n/2]}}
		r.add(whole)
		r.finish()
		for c, given := range []int{n, n / 2} {
			h := r.got[key("a", c)]
			if !slices.Equal(h.tokens, outs[c][given:]) || int(h.first) != given || h.finish != length {
				t.Errorf("choice %d after %d tokens: from %d on %v, want %v", c, given, h.first, h.tokens, outs[c][given:])
			}
		}
	}
}

// TestDeadline: a request that could not start in time is dropped before its prefill, one that runs
// is not.
func TestDeadline(t *testing.T) {
	r := newRig(t, Settings{Blocks: 16, MaxSequences: 1})
	a, b, c := ask("a", prompt(1, 10), 50), ask("b", prompt(2, 10), 5), ask("c", prompt(3, 10), 5)
	a.PatienceMs, b.PatienceMs, c.PatienceMs = 20, 20, math.MaxInt64
	b.Sampling.N = 2
	r.add(a, b, c)
	r.finish()
	r.want(a)
	r.want(c)
	for choice := range 2 {
		if h := r.got[key("b", choice)]; h.finish != pb.FinishReason_FINISH_REASON_DEADLINE || h.message != "deadline passed before the request could start" || len(h.tokens) != 0 {
			t.Errorf("b/%d ended with %v %q", choice, h.finish, h.message)
		}
	}
	if r.p.stats().Expired != 1 {
		t.Errorf("%d expired", r.p.stats().Expired)
	}
}

// TestTraces say what steps did and why.
func TestTraces(t *testing.T) {
	r := pressed(t, 2)
	r.finish()
	traces := r.p.traces(1000)
	if first := traces[0]; first.Step != 1 || first.Prefills != 2 || first.Rows != 160 || first.Running != 2 ||
		!slices.Equal(first.Notes, []Note{
			{RequestID: "a", Reason: noteAdmitted}, {RequestID: "b", Reason: noteAdmitted},
			{RequestID: "a", Reason: notePrefill, N: 80}, {RequestID: "b", Reason: notePrefill, N: 80},
		}) {
		t.Errorf("the first step's trace is %+v", first)
	}
	var notes []string
	for _, s := range traces {
		for _, n := range s.Notes {
			if n.Reason == notePreempted || n.Reason == noteAdmitted {
				notes = append(notes, n.RequestID+" "+n.Reason.String())
			}
		}
	}
	// The plan that preempts b computes nothing, since a waits for its blocks: the note belongs to
	// the next step.
	if want := []string{"a admitted", "b admitted", "b preempted", "b admitted"}; !slices.Equal(notes, want) {
		t.Errorf("traces say %v, want %v", notes, want)
	}
}
