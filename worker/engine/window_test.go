package engine

import (
	"slices"
	"testing"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/tiny"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// windowed gives the fake model a window.
func windowed(window, context int) func(*enginetest.Config, *Model) {
	return func(_ *enginetest.Config, m *Model) { m.Window, m.ContextLength = window, context }
}

// TestWindowKeepsMemoryConstant: however long a prompt and an output, a sequence holds the blocks of
// the window and of a step's rows, and the output is that of the window.
func TestWindowKeepsMemoryConstant(t *testing.T) {
	const window, budget = 50, 40
	s := Settings{Blocks: 8, MaxSequences: 4, MaxBatchTokens: budget, PrefixCache: true}
	r := newRig(t, s, windowed(window, 4000))
	if r.p.context != 4000 {
		t.Fatalf("a sequence may hold %d tokens", r.p.context)
	}
	q := ask("long", prompt(1, 700), 900)
	r.add(q)
	bound := r.p.Charge(1600, window) // ⌈(50-1+40)/16⌉+1
	if bound != 7 {
		t.Fatalf("a charge of %d blocks", bound)
	}
	most, decoding := 0, 0
	for r.step() {
		held := r.p.pool.Stats().Referenced
		most = max(most, held)
		if h := r.got["long/0"]; h != nil && len(h.tokens) > 1 {
			decoding = max(decoding, held)
		}
	}
	r.clean()
	r.want(q)
	if most > bound || most < window/16 {
		t.Errorf("held %d blocks, charged %d", most, bound)
	}
	if want := (window-1+2)/16 + 2; decoding > want {
		t.Errorf("held %d blocks while decoding, want at most %d", decoding, want)
	}
}

// TestMixedModelHoldsWindows: beside layers that keep all, those with a window hold the blocks of the window
// and of a step's rows alone, and the output is that of both.
func TestMixedModelHoldsWindows(t *testing.T) {
	const window, budget = 50, 40
	s := Settings{Blocks: 101, WindowBlocks: 8, MaxSequences: 4, MaxBatchTokens: budget, PrefixCache: true}
	r := newRig(t, s, windowed(window, 1600))
	if r.p.context != 1600 {
		t.Fatalf("a sequence may hold %d tokens", r.p.context)
	}
	q := ask("long", prompt(1, 700), 900)
	r.add(q)
	bound := r.p.Charge(1600, window) // ⌈(50-1+40)/16⌉+1
	if bound != 7 {
		t.Fatalf("a charge of %d blocks", bound)
	}
	most, decoding, all := 0, 0, 0
	for r.step() {
		held := r.p.pool.Windowed().Stats().Referenced
		most, all = max(most, held), max(all, r.p.pool.Stats().Referenced)
		if h := r.got["long/0"]; h != nil && len(h.tokens) > 1 {
			decoding = max(decoding, held)
		}
	}
	r.clean()
	r.want(q)
	if most > bound || most < window/16 {
		t.Errorf("held %d windowed blocks, charged %d", most, bound)
	}
	if want := (window-1+2)/16 + 2; decoding > want {
		t.Errorf("held %d windowed blocks while decoding, want at most %d", decoding, want)
	}
	if all != 100 {
		t.Errorf("held %d blocks of the others, want all 100", all)
	}
}

// TestMixedModelWaitsForBoth: a request starts once both groups have room for it, and finds only the prefix
// that both have.
func TestMixedModelWaitsForBoth(t *testing.T) {
	for _, v := range []struct {
		name            string
		blocks, windows int
		running         int // of two at once
	}{{"room for both", 20, 20, 2}, {"one group is full", 11, 20, 1}, {"the other is", 20, 7, 1}} {
		r := newRig(t, Settings{Blocks: v.blocks, WindowBlocks: v.windows, MaxBatchTokens: 320, PrefixCache: true}, windowed(16, 160))
		a, b := ask("a", prompt(1, 100), 4), ask("b", prompt(2, 100), 4)
		r.add(a, b)
		r.step()
		if got := len(r.p.running); got != v.running {
			t.Errorf("%s: %d run, want %d", v.name, got, v.running)
		}
		r.finish()
		r.want(a)
		r.want(b)
	}
	r := newRig(t, Settings{Blocks: 30, WindowBlocks: 7, MaxBatchTokens: 320, PrefixCache: true}, windowed(16, 160))
	first := ask("first", prompt(1, 96), 2)
	for i, q := range []*pb.Request{first, ask("again", append(slices.Clone(first.Prompt), 1), 2), ask("other", prompt(2, 96), 2), ask("late", append(slices.Clone(first.Prompt), 2), 2)} {
		r.add(q)
		r.finish()
		r.want(q)
		// The third took the windowed blocks of the first; the others' are all still there.
		if want := []int32{0, 96, 0, 0}[i]; r.got[key(q.Id, 0)].cached != want {
			t.Errorf("%s: %d tokens cached, want %d", q.Id, r.got[key(q.Id, 0)].cached, want)
		}
	}
}

// TestWindowedPromptsDoNotDeadlock: prompts that each fit, and together do not, all come to an end, none
// of them undone again and again.
func TestWindowedPromptsDoNotDeadlock(t *testing.T) {
	r := newRig(t, Settings{Blocks: 8, MaxSequences: 8, MaxBatchTokens: 40, PrefillChunk: 20}, windowed(50, 4000))
	var asked []*pb.Request
	for i := range 6 {
		asked = append(asked, ask(string(rune('a'+i)), prompt(i, 300+i), 40))
	}
	r.add(asked...)
	r.finish()
	for _, q := range asked {
		r.want(q)
	}
	if n := r.p.count.preemptions; n > 30 {
		t.Errorf("%d preemptions", n)
	}
}

// TestWindowedPrefixHit: a prompt whose beginning is cached as far back as the window reaches starts
// behind it, though what lies before is gone.
func TestWindowedPrefixHit(t *testing.T) {
	r := newRig(t, Settings{Blocks: 12, MaxBatchTokens: 64, PrefixCache: true}, windowed(40, 4000))
	first := ask("first", prompt(1, 320), 4)
	r.add(first)
	r.finish()
	again := ask("again", append(slices.Clone(first.Prompt), prompt(2, 20)...), 4)
	r.add(again)
	r.finish()
	r.want(first)
	r.want(again)
	if got := r.got["again/0"].cached; got != 320 {
		t.Errorf("%d tokens cached, want 320", got)
	}
}

// TestWindowOnTheDevice: the tiny model with windows in all its layers says the same with its blocks
// given back as with all of them kept, cached, preempted and in a pool that could not hold them.
func TestWindowOnTheDevice(t *testing.T) {
	const window, tokens = 24, 120
	for _, kv := range []device.Type{device.F16, device.I8} {
		spec, err := model.OpenBytes(tiny.Name, tiny.GGUF())
		if err != nil {
			t.Fatal(err)
		}
		spec.Config.Windows = slices.Repeat([]int{window}, spec.Config.Layers)
		m := load(t, spec, nil)
		m.kv = kv
		q := m.ask("q", conversation("Tell me about Paris.", "It is in France.", "And Rome?"), tokens)
		q.Sampling.IgnoreEos = true
		all := m.rig(t, Settings{Blocks: 32})
		all.add(q)
		all.finish()
		want := all.tokens("q")
		if len(want) != tokens {
			t.Fatalf("%d tokens", len(want))
		}
		for name, v := range map[string]struct {
			s       Settings
			preempt bool
		}{
			"small pool":           {s: Settings{Blocks: 7, MaxBatchTokens: 64}},
			"cached":               {s: Settings{Blocks: 7, MaxBatchTokens: 64, PrefixCache: true}},
			"chunks of 5":          {s: Settings{Blocks: 7, MaxBatchTokens: 64, PrefillChunk: 5, PrefixCache: true}},
			"preempted":            {s: Settings{Blocks: 7, MaxBatchTokens: 64, PrefixCache: true}, preempt: true},
			"guessing":             {s: Settings{Blocks: 9, MaxBatchTokens: 64, Speculate: 4}},
			"preempted, no cache ": {s: Settings{Blocks: 7, MaxBatchTokens: 64}, preempt: true},
		} {
			r := m.rig(t, v.s, func(m *Model) { m.Window = window })
			if v.preempt {
				steps := 0
				r.before = func() {
					if steps++; steps%9 == 0 && len(r.p.running) > 0 {
						r.p.preempt(r.p.running.last())
					}
				}
			}
			r.add(q)
			r.finish()
			if got := r.tokens("q"); !slices.Equal(got, want) {
				t.Errorf("%s, %s: %v, with all blocks %v", kv, name, got, want)
			}
			if v.preempt && r.p.count.preemptions < 5 {
				t.Errorf("%s, %s: %d preemptions", kv, name, r.p.count.preemptions)
			}
		}
	}
}

// TestMixedModelOnTheDevice: on every path the tiny model, with a window in some of its layers, says the same
// with what lies behind given back as with all blocks kept: cached, in chunks, preempted, forked and in a
// group that could not hold what lies behind.
func TestMixedModelOnTheDevice(t *testing.T) {
	const window, tokens = 24, 40
	var first map[string][]int32 // of the first path
	for _, path := range cpu.Paths() {
		spec, err := model.OpenBytes(tiny.Name, tiny.GGUF())
		if err != nil {
			t.Fatal(err)
		}
		spec.Config.Windows = make([]int, spec.Config.Layers)
		for i := range spec.Config.Windows {
			spec.Config.Windows[i] = i % 2 * window
		}
		m := loadOn(t, path, spec, nil)
		warm := float32(1)
		text := conversation("Tell me about Paris.", "It is in France.", "And Rome?")
		reqs := []*pb.Request{
			m.ask("q", text, tokens),
			m.ask("two", text, tokens, func(q *pb.Request) { q.Sampling.N, q.Sampling.Temperature = 2, &warm }),
		}
		for _, q := range reqs {
			q.Sampling.IgnoreEos = true
		}
		all := m.rig(t, Settings{Blocks: 64})
		all.add(reqs...)
		all.finish()
		want := map[string][]int32{}
		for k, h := range all.got {
			want[k] = h.tokens
		}
		if len(want) != 3 || len(want["q/0"]) != tokens || slices.Equal(want["two/0"], want["two/1"]) {
			t.Fatalf("%v", want)
		}
		if first == nil {
			first = want
		}
		for name, v := range map[string]struct {
			s       Settings
			preempt bool
		}{
			"cached":      {s: Settings{WindowBlocks: 24, PrefixCache: true}},
			"chunks of 5": {s: Settings{WindowBlocks: 24, PrefillChunk: 5, PrefixCache: true}},
			"preempted":   {s: Settings{WindowBlocks: 12, PrefixCache: true}, preempt: true},
			"guessing":    {s: Settings{WindowBlocks: 12, Speculate: 4}},
		} {
			v.s.Blocks, v.s.MaxBatchTokens = 40, 64
			r := m.rig(t, v.s, func(m *Model) { m.Window = window })
			if v.preempt {
				steps := 0
				r.before = func() {
					if steps++; steps%9 == 0 && len(r.p.running) > 0 {
						r.p.preempt(r.p.running.last())
					}
				}
			}
			copies := 0
			for round := range 2 { // the second finds prompts in the cache
				clear(r.got)
				r.add(reqs...)
				r.finish()
				for k := range want {
					if got := r.got[k].tokens; !slices.Equal(got, want[k]) || !slices.Equal(got, first[k]) {
						t.Errorf("%s, %s, round %d: %s is %v, with all blocks %v", path, name, round, k, got, want[k])
					}
				}
				copies += int(r.p.pool.Windowed().Stats().Copies)
			}
			if v.s.PrefixCache && r.p.count.hitTokens == 0 || copies == 0 || v.preempt && r.p.count.preemptions < 5 {
				t.Errorf("%s, %s: %d tokens hit, %d copies, %d preemptions", path, name, r.p.count.hitTokens, copies, r.p.count.preemptions)
			}
		}
	}
}
