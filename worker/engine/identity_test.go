package engine

import (
	"fmt"
	"slices"
	"testing"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/kvcache/tier"
	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/store/storetest"
	"github.com/quire-serve/quire/model/tiny"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// real is a model on the CPU device, for tests of the planner over real bits.
type real struct {
	dev device.Device
	*model.Model
	kv device.Type // of the cache
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
	return &real{dev, m, device.F16}
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
	em := Model{Runner: runner, ContextLength: m.Context, Vocab: m.Config.Vocab, EOS: m.Tokenizer.EOGs(), Stops: TextStops(m.Tokenizer), Constrain: Grammars(m.Tokenizer, m.Config.Vocab)}
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
	return &rig{t: t, p: p, device: runner, model: em, now: 1, got: map[string]*heard{}}
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
				reqs = append(reqs, m.ask(fmt.Sprint(i), text, c.tokens))
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
			small := (most+15)/16 + 2 // blocks
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

// TestTiersIdentity: with pools that hold hardly one sequence, preemption again and again, and host
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
				reqs = append(reqs, m.ask(fmt.Sprint(i), text, c.tokens))
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
					bytes := int(pages.Layout().PageBytes())
					disk, err := tier.OpenDisk(tier.DiskSettings{Dir: dir, PageBytes: bytes, Layout: tier.Layout{1}, MaxBytes: int64(200 * bytes)})
					if err != nil {
						t.Fatal(err)
					}
					if cache, err = tier.New(tier.Settings{PageBytes: bytes, Pages: 8, Disk: disk}); err != nil {
						t.Fatal(err)
					}
					return &Tiers{Cache: cache, Pages: pages}
				})
				// Not before every step: who waits for its blocks to be copied up would wait for ever.
				r.preemptAll()
				all, n := r.before, 0
				r.before = func() {
					if n++; n%3 == 0 {
						all()
					}
				}
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
