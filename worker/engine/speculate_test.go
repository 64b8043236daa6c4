package engine

import (
	"fmt"
	"slices"
	"testing"

	"github.com/quire-serve/quire/device"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// guessed is a prompt after whose first drawn token, 8, the drafts are drafts.
func guessed(drafts ...int32) []int32 { return slices.Concat([]int32{7, 8}, drafts, []int32{99, 7}) }

// speaks makes the device draw says after a prompt that begins with 7 and has n tokens, then EOS.
func speaks(n int, says ...int32) func(*enginetest.Config, *Model) {
	return func(c *enginetest.Config, m *Model) {
		m.EOS = []int32{100}
		c.Token = func(seen []int32, _ device.Sample) int32 {
			if i := len(seen) - n; i < len(says) {
				return says[i]
			}
			return 100
		}
	}
}

// always makes every guess worth its row, as far as the planner knows.
func (r *rig) always() {
	before := r.before
	r.before = func() {
		if before != nil {
			before()
		}
		r.p.drafts.Suppose(1000)
		for _, s := range r.p.running {
			s.lookup.Learn(s.tokens, s.prompt)
			s.lookup.Suppose()
		}
	}
}

func TestScenarioI1I2(t *testing.T) {
	for _, c := range []struct {
		drafts, says []int32
		rounds       int64
		tokens       int64
		accepted     []int64
	}{
		{[]int32{1, 2, 3}, []int32{8, 1, 2, 3, 4}, 1, 3, []int64{1, 1, 1}},
		{[]int32{1, 2, 3}, []int32{8, 1, 5}, 1, 3, []int64{1, 0, 0}},
		{[]int32{1, 2, 3}, []int32{8, 5}, 1, 3, []int64{0, 0, 0}},
		{[]int32{1, 2, 3}, []int32{6, 5}, 0, 0, []int64{0, 0, 0}},
	} {
		for _, depth := range []int{1, 2} {
			p := guessed(c.drafts...)
			r := newRig(t, Settings{Blocks: 8, Speculate: 3, Depth: depth}, speaks(len(p), c.says...))
			r.always()
			r.add(ask("a", p, 0))
			r.finish()
			if got, want := r.tokens("a"), append(slices.Clone(c.says), 100); !slices.Equal(got, want) {
				t.Errorf("depth %d: %v, want %v", depth, got, want)
			}
			s := r.p.stats()
			if depth == 1 && (s.Drafts != c.rounds || s.DraftTokens != c.tokens || !slices.Equal(s.AcceptedTokens[:3], c.accepted)) {
				t.Errorf("%v drafted, %v said: %d rounds, %d drafts, %v accepted", c.drafts, c.says, s.Drafts, s.DraftTokens, s.AcceptedTokens[:3])
			}
		}
	}
	// Aborted with drafts in flight: nothing was verified, nothing counts.
	p := guessed(1, 2, 3)
	r := newRig(t, Settings{Blocks: 8, Speculate: 3}, speaks(len(p), 8, 1, 2, 3))
	r.always()
	r.add(ask("a", p, 0))
	for s := r.p.running; len(s) == 0 || len(s[0].drafts) == 0; s = r.p.running {
		r.step()
	}
	r.abort("a")
	r.finish()
	if s := r.p.stats(); s.Drafts != 0 || s.DraftTokens != 0 {
		t.Errorf("%d rounds, %d drafts of an aborted request", s.Drafts, s.DraftTokens)
	}
}

func TestScenarioE2(t *testing.T) {
	p := guessed(10, 42, 12)
	for name, edit := range map[string]func(*pb.Request){
		"stop id":    func(q *pb.Request) { q.Sampling.StopTokenIds = []int32{42} },
		"max tokens": func(q *pb.Request) { q.Sampling.MaxTokens = 3 },
	} {
		r := newRig(t, Settings{Blocks: 8, Speculate: 3, Depth: 1}, speaks(len(p), 8, 10, 42, 12))
		r.always()
		r.add(ask("a", p, 0, edit))
		r.finish()
		if got := r.tokens("a"); !slices.Equal(got, []int32{8, 10, 42}) {
			t.Errorf("%s: %v", name, got)
		}
		// What max_tokens would cut off is not guessed.
		if name == "max tokens" && r.runner.Rows() != len(p)+2 {
			t.Errorf("%d rows for a prompt of %d and 2 more tokens", r.runner.Rows(), len(p))
		}
	}
}

// TestScenarioI3: wrong drafts leave no trace in the books: neither computed, nor hashed, nor in blocks.
func TestScenarioI3(t *testing.T) {
	p := guessed(1, 2, 3)
	r := newRig(t, Settings{Blocks: 32, BlockTokens: 1, PrefixCache: true, Speculate: 3, Depth: 1}, speaks(len(p), 8, 1, 5, 6))
	r.always()
	r.add(ask("a", p, 0))
	drafted := false
	for r.step() {
		for _, s := range r.p.running {
			drafted = drafted || r.p.stats().Drafts > 0
			if s.computed > len(s.tokens) || len(s.kv.Table()) > s.computed || len(s.kv.Hashes()) > s.computed {
				t.Fatalf("%d tokens, %d computed, %d hashes, %d blocks", len(s.tokens), s.computed, len(s.kv.Hashes()), len(s.kv.Table()))
			}
		}
	}
	if !drafted {
		t.Fatal("nothing was drafted")
	}
	// The wrong guess would have been this prompt.
	wrong := slices.Concat(p, []int32{8, 1, 2, 3, 9})
	right := slices.Concat(p, []int32{8, 1, 5, 6, 9})
	for i, want := range [][]int32{wrong, right} {
		r.add(ask(fmt.Sprint(i), want, 1))
		r.finish()
	}
	if got := []int32{r.got["0/0"].cached, r.got["1/0"].cached}; !slices.Equal(got, []int32{int32(len(p)) + 2, int32(len(p)) + 4}) {
		t.Errorf("cached %v", got)
	}
}

// TestScenarioD11: drafts count against the budget of a step, and decodes come before them.
func TestScenarioD11(t *testing.T) {
	p := guessed(1, 2, 3, 4)
	r := newRig(t, Settings{Blocks: 16, Speculate: 4, MaxBatchTokens: 8, MaxSequences: 2, Depth: 1}, speaks(len(p), 8, 1, 2, 3, 4, 5))
	r.always()
	r.add(ask("a", p, 0))
	r.step()
	r.add(ask("b", prompt(3, 20), 1))
	r.finish()
	wantSteps(t, r, []int{8}, []int{1 + 4, 3})
	for _, rows := range r.runner.Steps() {
		if n := sum(rows); n > 8 {
			t.Errorf("a step of %d rows", n)
		}
	}
}

func sum(v []int) (n int) {
	for _, x := range v {
		n += x
	}
	return n
}

// TestDraftsSplitNoBatch: who drafts and who does not are in every step together.
func TestDraftsSplitNoBatch(t *testing.T) {
	p := guessed(1, 2, 3)
	r := newRig(t, Settings{Blocks: 16, Speculate: 3}, func(c *enginetest.Config, m *Model) {
		c.Token = func(seen []int32, _ device.Sample) int32 {
			if seen[0] == 7 {
				return []int32{8, 1, 2, 3}[(len(seen)-len(p))%4]
			}
			return int32(len(seen)) // never the same twice
		}
	})
	r.always()
	r.add(ask("a", p, 40), ask("b", []int32{50}, 40))
	r.finish()
	if s := r.p.stats(); s.Drafts < 5 {
		t.Errorf("%d rounds of drafts", s.Drafts)
	}
	steps := r.runner.Steps()
	if len(steps) != 40 {
		t.Errorf("%d steps for 40 tokens of a request that drafts nothing", len(steps))
	}
	alone := slices.IndexFunc(steps, func(rows []int) bool { return len(rows) == 1 })
	if alone < 0 || alone > 20 {
		t.Fatalf("the one that drafts is there to step %d", alone)
	}
	for i, rows := range steps[alone:] {
		if len(rows) != 1 {
			t.Errorf("step %d has rows %v, after one without who drafts", alone+i, rows)
		}
	}
}

// TestSpeculationGivesUp: text that is never guessed right is soon not guessed any more.
func TestSpeculationGivesUp(t *testing.T) {
	r := newRig(t, Settings{Blocks: 32, Speculate: 4, Depth: 1}, func(c *enginetest.Config, m *Model) {
		// Pairs come again, what follows them differs.
		c.Token = func(seen []int32, _ device.Sample) int32 {
			n := int32(len(seen))
			return []int32{1, 2, 3 + n/3%90}[n%3]
		}
	})
	r.add(ask("a", []int32{1, 2, 3}, 300))
	r.finish()
	s := r.p.stats()
	if s.Drafts == 0 || s.Drafts > 24 {
		t.Errorf("%d rounds of drafts", s.Drafts)
	}
	if len(r.tokens("a")) != 300 {
		t.Errorf("%d tokens", len(r.tokens("a")))
	}
}

// TestSpeculationIdentity: drafts change no token of a real model, at any temperature, under pressure.
func TestSpeculationIdentity(t *testing.T) {
	m := loadTiny(t)
	var reqs []*pb.Request
	for i := range 6 {
		q := m.ask(fmt.Sprint(i), conversation("The cat sat on the mat. The cat sat on the mat. The cat"), 48)
		temperature := []float32{0, 0.7, 1}[i%3]
		seed := uint64(i)
		q.Sampling.Temperature, q.Sampling.Seed, q.Sampling.IgnoreEos = &temperature, &seed, true
		switch i {
		case 4:
			q.Sampling.FrequencyPenalty, q.Sampling.RepetitionPenalty = 0.1, ptr(float32(1.05))
		case 5:
			q.Sampling.N = 2
		}
		reqs = append(reqs, q)
	}
	plain := m.rig(t, Settings{Blocks: 128})
	plain.add(reqs...)
	plain.finish()
	for name, s := range map[string]Settings{
		"alone":      {Blocks: 128, MaxSequences: 1},
		"together":   {Blocks: 128},
		"no overlap": {Blocks: 128, Depth: 1, PrefixCache: true},
		"small pool": {Blocks: 14, PrefixCache: true},
	} {
		s.Speculate = 4
		r := m.rig(t, s)
		r.always()
		r.add(reqs...)
		r.finish()
		for k, h := range plain.got {
			if got := r.got[k].tokens; !slices.Equal(got, h.tokens) {
				t.Errorf("%s: %s is %v, without drafts %v", name, k, got, h.tokens)
			}
		}
		if st := r.p.stats(); st.AcceptedTokens[0] == 0 {
			t.Errorf("%s: no draft was right", name)
		}
		if name == "small pool" && r.p.count.preemptions == 0 {
			t.Errorf("%s: nobody was preempted", name)
		}
	}
}

func ptr[T any](v T) *T { return &v }
