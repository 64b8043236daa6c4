package engine

import (
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/kvcache/tier"
	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/grammar"
	"github.com/quire-serve/quire/model/store/storetest"
	"github.com/quire-serve/quire/model/tiny"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"google.golang.org/protobuf/proto"
)

// real is a model on the CPU device, for tests of the planner over real bits.
type real struct {
	dev device.Device
	*model.Model
	kv        device.Type // of the cache
	constrain func(context.Context, grammar.Spec) (*grammar.Grammar, error)
}

func load(t *testing.T, spec *model.Spec, err error) *real {
	t.Helper()
	return loadOn(t, "", spec, err)
}

// loadOn is load on a path of the device's.
func loadOn(t *testing.T, path string, spec *model.Spec, err error) *real {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = spec.Close() })
	dev, err := cpu.Open(cpu.Options{Threads: 2, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	m, err := spec.Load(dev, model.LoadOptions{MaxContext: 512})
	if err != nil {
		t.Fatal(err)
	}
	return &real{dev, m, device.F16, Grammars(m.Tokenizer, m.Config.Vocab)}
}

func loadTiny(t *testing.T) *real {
	spec, err := model.OpenBytes(tiny.Name, tiny.GGUF())
	return load(t, spec, err)
}

func loadSmolLM2(t *testing.T) *real {
	spec, err := model.Open(storetest.SmolLM2(t))
	return load(t, spec, err)
}

// rig runs a planner over the real device.
func (m *real) rig(t *testing.T, s Settings, edit ...func(*Model)) *rig {
	t.Helper()
	return m.tieredRig(t, s, nil, edit...)
}

// tieredRig is a rig with tiers below the device's pages, or none.
func (m *real) tieredRig(t *testing.T, s Settings, tiers func(device.Pages) *Tiers, edit ...func(*Model)) *rig {
	t.Helper()
	s.Logger = quiet()
	s = s.WithDefaults()
	layout := m.Config.KVLayout(s.Blocks, s.BlockTokens, m.kv)
	if s.WindowBlocks > 0 {
		layout = m.Config.GroupedKVLayout(s.Blocks, s.WindowBlocks, s.BlockTokens, m.kv)
	}
	pages, err := m.dev.NewPages(layout)
	if err != nil {
		t.Fatal(err)
	}
	runner, err := m.dev.Compile(m.Program, pages, s.Limits())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = runner.Close(), pages.Close() })
	em := Model{Runner: runner, ContextLength: m.Context, Vocab: m.Config.Vocab, EOS: m.Tokenizer.EOGs(), Stops: TextStops(m.Tokenizer), Special: m.Tokenizer.SpecialID, Spell: m.Tokenizer.Spellings, Constrain: m.constrain}
	if tiers != nil {
		em.Tiers = tiers(pages)
	}
	for _, e := range edit {
		e(&em)
	}
	p, err := newPlanner(s, em)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, device: runner, model: em, now: 1, got: map[string]*heard{}}
	r.drive(p)
	return r
}

func (m *real) ask(id, text string, maxTokens int, edit ...func(*pb.Request)) *pb.Request {
	return ask(id, m.Tokenizer.Encode(nil, text, true), maxTokens, edit...)
}

// preemptAll makes every step begin with nobody running.
func (r *rig) preemptAll() {
	r.before = func() {
		for len(r.p.running) > 0 {
			r.p.preempt(r.p.running.last())
		}
	}
}

// preemptEach makes every step begin with the preemption of one running sequence, each in turn. Only the
// first in the order is spared until it has drawn a token since it last was, so that all get on. It
// returns the number of steps before which nobody but that one ran.
func (r *rig) preemptEach() (spared *int) {
	r.p.ReturnAfter = -1 // those who wait long do so because of this
	spared = new(int)
	turn, first, had := 0, (*sequence)(nil), 0
	r.before = func() {
		running := r.p.running
		if len(running) == 0 || r.p.faults.suspects > 0 { // suspects run alone, so that nobody presses them
			return
		}
		if s := running[0]; s != first {
			first, had = s, len(s.tokens)
		}
		candidates := running
		if len(first.tokens) == had {
			candidates = running[1:]
		}
		if len(candidates) == 0 {
			*spared++
			return
		}
		turn++
		s := candidates[turn%len(candidates)]
		if s == first {
			first = nil
		}
		r.p.preempt(s)
	}
	return spared
}

// conversation is a prompt in ChatML, which both models speak.
func conversation(turns ...string) (text string) {
	for i, turn := range turns {
		text += fmt.Sprintf("<|im_start|>%s\n%s<|im_end|>\n", []string{"user", "assistant"}[i%2], turn)
	}
	return text + "<|im_start|>assistant\n"
}

// TestGreedyIdentity: preemption before every step, pools that hold hardly more than one sequence,
// chunks, prefix hits and neighbours leave the greedy output of a real model as it was, token for
// token.
func TestGreedyIdentity(t *testing.T) {
	for _, c := range []struct {
		name   string
		load   func(*testing.T) *real
		kv     device.Type
		tokens int
		short  bool
	}{{"tiny", loadTiny, device.F16, 24, false}, {"tiny, 8 bits", loadTiny, device.I8, 24, false}, {"SmolLM2", loadSmolLM2, device.F16, 4, true}} {
		t.Run(c.name, func(t *testing.T) {
			m := c.load(t)
			m.kv = c.kv
			long := conversation("Tell me about Paris.", "It is in France.", "And Rome?")
			var reqs []*pb.Request
			for i, text := range []string{
				conversation("Hello!"),
				long,
				long, // a twin
			} {
				reqs = append(reqs, m.ask(fmt.Sprint(i), text, c.tokens, func(q *pb.Request) { q.Sampling.IgnoreEos = true }))
			}
			want := make([][]int32, len(reqs))
			most := 0
			for i, q := range reqs {
				r := m.rig(t, Settings{Blocks: 32, Depth: 1})
				r.add(q)
				r.finish()
				want[i] = r.tokens(q.Id)
				most = max(most, len(q.Prompt)+c.tokens)
			}
			// Blocks for one to its end, or for two to begin.
			small := max((most+15)/16, (len(reqs[0].Prompt)+15)/16+(len(reqs[1].Prompt)+15)/16+1)
			for _, v := range []struct {
				name      string
				s         Settings
				preempt   bool
				again     bool
				pressured bool
				long      bool
			}{
				{name: "preempted before every step", long: true, s: Settings{Blocks: 64}, preempt: true, pressured: true},
				{name: "preempted before every step, cached", s: Settings{Blocks: 64, PrefixCache: true}, preempt: true, pressured: true},
				{name: "small pool", long: true, s: Settings{Blocks: small}, pressured: true},
				{name: "small pool, cached", s: Settings{Blocks: small, PrefixCache: true}},
				{name: "chunks of 5", s: Settings{Blocks: small, PrefixCache: true, PrefillChunk: 5, DecodeShare: 0.5}},
				{name: "prefix hits", long: true, s: Settings{Blocks: 64, PrefixCache: true}, again: true},
			} {
				if c.short && v.long {
					continue
				}
				r := m.rig(t, v.s)
				if v.preempt {
					r.preemptAll()
				}
				r.add(reqs...)
				r.finish()
				if v.again {
					for i := range reqs {
						if got := r.tokens(reqs[i].Id); !slices.Equal(got, want[i]) {
							t.Errorf("%s: %d is %v, undisturbed %v", v.name, i, got, want[i])
						}
					}
					clear(r.got)
					r.add(reqs...)
					r.finish()
					if r.got["1/0"].cached == 0 {
						t.Errorf("%s: nothing was cached", v.name)
					}
				}
				for i := range reqs {
					if got := r.tokens(reqs[i].Id); !slices.Equal(got, want[i]) {
						t.Errorf("%s: %d is %v, undisturbed %v", v.name, i, got, want[i])
					}
				}
				if v.pressured && r.p.count.preemptions == 0 {
					t.Errorf("%s: nobody was preempted", v.name)
				}
			}
		})
	}
}

// smallTiers are host memory of 8 pages over a disk.
func smallTiers(t *testing.T, dir string, pages device.Pages) *tier.Cache {
	t.Helper()
	bytes := int(pages.Layout().PageBytes())
	disk, err := tier.OpenDisk(tier.DiskSettings{Dir: dir, PageBytes: bytes, Layout: tier.Layout{1}, MaxBytes: int64(200 * bytes)})
	if err != nil {
		t.Fatal(err)
	}
	cache, err := tier.New(tier.Settings{PageBytes: bytes, Pages: 8, Disk: disk})
	if err != nil {
		t.Fatal(err)
	}
	return cache
}

// TestTiersIdentity: with pools that hold hardly one sequence, preemption before every step, and host
// memory of a few blocks over a disk, a real model's greedy output is the undisturbed one, of requests
// that were swapped and, after a restart, of those that find their prompts on disk.
func TestTiersIdentity(t *testing.T) {
	for _, c := range []struct {
		name   string
		load   func(*testing.T) *real
		tokens int
	}{{"tiny", loadTiny, 24}, {"SmolLM2", loadSmolLM2, 4}} {
		t.Run(c.name, func(t *testing.T) {
			m := c.load(t)
			var reqs []*pb.Request
			most := 0
			for i, text := range []string{
				conversation("Tell me about Paris.", "It is in France.", "And Rome?"),
				conversation("Tell me about Paris.", "It is in France.", "And Lisbon, the city on the river?"),
				conversation("Write a short poem about the sea and the wind that moves it over the sand at night."),
				conversation("List the planets of the solar system, from the sun outwards, with a word on each."),
			} {
				reqs = append(reqs, m.ask(fmt.Sprint(i), text, c.tokens, func(q *pb.Request) { q.Sampling.IgnoreEos = true }))
				most = max(most, len(reqs[i].Prompt)+c.tokens)
			}
			want := make([][]int32, len(reqs))
			r := m.rig(t, Settings{Blocks: 64, Depth: 1})
			r.add(reqs...)
			r.finish()
			for i, q := range reqs {
				want[i] = r.tokens(q.Id)
			}
			dir := t.TempDir()
			var stats [2]Stats
			for round := range stats {
				var cache *tier.Cache
				r = m.tieredRig(t, Settings{Blocks: (most+15)/16 + 1, PrefixCache: true}, func(pages device.Pages) *Tiers {
					cache = smallTiers(t, dir, pages)
					return &Tiers{Cache: cache, Pages: pages}
				})
				r.preemptEach()
				for range 2 {
					clear(r.got)
					r.add(reqs...)
					r.finish()
					for i, q := range reqs {
						if got := r.tokens(q.Id); !slices.Equal(got, want[i]) {
							t.Errorf("round %d: %d is %v, undisturbed %v", round, i, got, want[i])
						}
					}
				}
				cache.Close() // what is left in host memory goes to disk
				stats[round] = r.p.stats()
			}
			if s := stats[0]; s.Preemptions == 0 || s.Swaps == 0 || s.Tiers.HostHits == 0 {
				t.Errorf("first round: %d preemptions, %d swaps, tiers %+v", s.Preemptions, s.Swaps, s.Tiers)
			}
			if s := stats[1]; s.Tiers.DiskHits == 0 {
				t.Errorf("second round: tiers %+v", s.Tiers)
			}
		})
	}
}

// TestEveryFeatureIdentity: with preemption before every step, and pools, chunks, prefix hits, swapping,
// guesses and overlap in every combination, a real model's output is the undisturbed one, token for token
// and log-probability for log-probability: greedy, sampled, constrained, penalised and of several choices.
func TestEveryFeatureIdentity(t *testing.T) {
	type feature struct {
		small, cached, tiered, chunked, guessing, overlapped bool
	}
	var all []feature
	for i := range 64 {
		f := feature{i&1 > 0, i&2 > 0, i&4 > 0, i&8 > 0, i&16 > 0, i&32 > 0}
		if f.cached || !f.tiered {
			all = append(all, f)
		}
	}
	for _, c := range []struct {
		name     string
		load     func(*testing.T) *real
		tokens   int
		features []feature
	}{
		{"tiny", loadTiny, 16, all},
		// Any two features are together, apart and neither at least once, and all are together.
		{"SmolLM2", loadSmolLM2, 8, []feature{
			{},
			{true, true, true, true, true, true},
			{true, true, true, false, false, true},
			{true, true, false, true, false, true},
			{false, true, true, true, false, false},
			{false, true, false, false, true, false},
			{true, false, false, false, true, false},
			{false, false, false, true, true, true},
			{false, true, true, false, true, true},
			{true, false, false, true, false, false},
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := c.load(t)
			text := conversation("Say it again and again: the cat sat on the mat, the cat sat on the mat, the cat")
			two := int32(2)
			var reqs []*pb.Request
			most := 0
			for i, edit := range []func(*pb.SamplingParams){
				func(*pb.SamplingParams) {},
				func(p *pb.SamplingParams) {
					p.Temperature, p.Seed, p.TopP = ptr(float32(0.9)), ptr(uint64(11)), ptr(float32(0.95))
				},
				func(p *pb.SamplingParams) { p.Temperature, p.N = ptr(float32(0.5)), 2 },
				func(p *pb.SamplingParams) { p.FrequencyPenalty, p.RepetitionPenalty = 0.2, ptr(float32(1.1)) },
				func(p *pb.SamplingParams) { p.PromptLogprobs = &two },
			} {
				reqs = append(reqs, m.ask(fmt.Sprint(i), text, c.tokens, func(q *pb.Request) {
					q.Sampling.IgnoreEos, q.Sampling.Logprobs = true, &two
					edit(q.Sampling)
				}))
			}
			reqs = append(reqs,
				m.ask("other", conversation("Hello! Of all the animals that sit on mats, which one would you like to hear a story about?"), c.tokens),
				m.ask("constrained", text, c.tokens, matching("( the cat sat on the mat,)*")),
				m.ask("constrained and sampled", text, c.tokens, matching("[a-z ]{30}"), func(q *pb.Request) {
					q.Sampling.Temperature = ptr(float32(1))
				}))
			want := map[string]*heard{}
			for _, q := range reqs {
				r := m.rig(t, Settings{Blocks: 64, Depth: 1})
				r.add(q)
				r.finish()
				for k, h := range r.got {
					want[k] = h
				}
				most = max(most, len(q.Prompt)+c.tokens)
			}
			var right, lifted int64
			for _, f := range c.features {
				s := Settings{Blocks: 160, PrefixCache: f.cached, Depth: 1, DecodeShare: -1}
				if f.small {
					s.Blocks = (most+15)/16 + 2
				}
				if f.chunked {
					s.PrefillChunk = 7
				}
				if f.guessing {
					s.Speculate = 4
				}
				if f.overlapped {
					s.Depth = 2
				}
				var cache *tier.Cache
				var tiers func(device.Pages) *Tiers
				if f.tiered {
					tiers = func(pages device.Pages) *Tiers {
						cache = smallTiers(t, t.TempDir(), pages)
						return &Tiers{Cache: cache, Pages: pages}
					}
				}
				r := m.tieredRig(t, s, tiers)
				spared := r.preemptEach()
				if f.guessing {
					r.always()
				}
				r.add(reqs...)
				r.finish()
				if cache != nil {
					cache.Close()
				}
				for k, w := range want {
					got := r.got[k]
					if got == nil || !slices.Equal(got.tokens, w.tokens) || got.finish != w.finish {
						t.Errorf("%+v: %s is %+v, undisturbed %+v", f, k, got, w)
						continue
					}
					if !sameLogprobs(got.logprobs, w.logprobs) || !sameLogprobs(got.prompt, w.prompt) {
						t.Errorf("%+v: %s has log-probabilities %v and %v, undisturbed %v and %v", f, k, got.logprobs, got.prompt, w.logprobs, w.prompt)
					}
				}
				st := r.p.stats()
				t.Logf("%+v: %d steps, %d preemptions, %d swaps, %d steps with one that had to get on, %d drafts, %d right", f, st.Steps, st.Preemptions, st.Swaps, *spared, st.DraftTokens, st.AcceptedTokens[0])
				if st.Preemptions == 0 || f.guessing && st.DraftTokens == 0 || f.tiered && st.Swaps == 0 {
					t.Errorf("%+v: %d preemptions, %d swaps, %d drafts", f, st.Preemptions, st.Swaps, st.DraftTokens)
				}
				right += st.AcceptedTokens[0]
				lifted += st.Tiers.HostHits
			}
			if right == 0 || lifted == 0 {
				t.Errorf("%d drafts were right, %d blocks came back from host memory", right, lifted)
			}
		})
	}
}

// sameLogprobs reports whether log-probabilities are equal bit for bit.
func sameLogprobs(a, b []*pb.Logprobs) bool {
	return slices.EqualFunc(a, b, func(x, y *pb.Logprobs) bool { return proto.Equal(x, y) })
}
