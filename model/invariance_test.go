package model

import (
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
)

// schedule says how sequences share the steps of a runner.
type schedule struct {
	name   string
	alone  bool // one sequence after the other
	chunk  int  // tokens of a prompt a step
	budget int  // tokens a step
	random bool // sequences arrive one by one, and run in another order every step
}

var schedules = []schedule{
	{name: "alone", alone: true, chunk: 1024, budget: 1024},
	{name: "together", chunk: 1024, budget: 1024},
	{name: "random arrival", chunk: 100, budget: 130, random: true},
	{name: "chunks of 16", chunk: 16, budget: 1024},
	{name: "chunks of 64", chunk: 64, budget: 200},
	{name: "chunks of 512", chunk: 512, budget: 600},
}

// drive runs prompts by c until each has drawn draws tokens.
func (r *rig) drive(c schedule, prompts [][]int32, draws int, rng *rand.Rand) []*sequence {
	r.t.Helper()
	var all []*sequence
	for _, p := range prompts {
		s := &sequence{tokens: slices.Clone(p)}
		all = append(all, s)
		if c.alone {
			r.run(c, []*sequence{s}, draws, rng)
		}
	}
	if !c.alone {
		r.run(c, all, draws, rng)
	}
	return all
}

func (r *rig) run(c schedule, seqs []*sequence, draws int, rng *rand.Rand) {
	r.t.Helper()
	waiting, running := slices.Clone(seqs), []*sequence(nil)
	for len(waiting)+len(running) > 0 {
		arrive := len(waiting)
		if c.random {
			arrive = min(arrive, rng.IntN(3))
		}
		running = append(running, waiting[:arrive]...)
		waiting = waiting[arrive:]
		if c.random {
			rng.Shuffle(len(running), func(i, j int) { running[i], running[j] = running[j], running[i] })
		}
		var step []chunk
		left := c.budget
		for _, s := range running {
			if n := min(len(s.tokens)-s.done, c.chunk, left); n > 0 {
				step = append(step, chunk{s, n})
				left -= n
			}
		}
		if len(step) == 0 {
			continue
		}
		r.step(step)
		var going []*sequence
		for _, s := range running {
			if s.done == len(s.tokens) {
				if len(s.drawn) == draws {
					r.end(s)
					continue
				}
				s.tokens = append(s.tokens, s.drawn[len(s.drawn)-1])
			}
			going = append(going, s)
		}
		running = going
	}
}

// checkInvariance runs prompts by every schedule and compares tokens and the bits of all logits. It
// returns what came of them alone.
func checkInvariance(t *testing.T, s *Spec, o cpu.Options, prompts [][]int32, draws int) []*sequence {
	t.Helper()
	tokens := 0
	for _, p := range prompts {
		tokens += (len(p)+draws)/rigBlock*rigBlock + rigBlock
	}
	r := newRig(t, s, o, device.F16, device.Limits{Rows: 1024, Sequences: len(prompts), Samples: len(prompts)}, tokens)
	r.logits = true
	rng := rand.New(rand.NewPCG(11, 11))
	var want []*sequence
	for _, c := range schedules {
		got := r.drive(c, prompts, draws, rng)
		if want == nil {
			want = got
			continue
		}
		for i := range got {
			if !slices.Equal(got[i].drawn, want[i].drawn) {
				t.Errorf("%s, prompt %d: tokens %v, alone %v", c.name, i, got[i].drawn, want[i].drawn)
			}
			if !slices.Equal(got[i].sums, want[i].sums) || len(got[i].sums) != draws {
				t.Errorf("%s, prompt %d: logits' bits are not those that it has alone", c.name, i)
			}
		}
	}
	// All prompts' logits differ, or equal sums would say nothing.
	seen := map[uint64]bool{}
	for _, s := range want {
		if seen[s.sums[0]] {
			t.Error("two prompts have the same logits")
		}
		seen[s.sums[0]] = true
	}
	return want
}

// TestBatchInvariance runs a small model on every path of the CPU device, with threads that divide
// the work differently. All paths give the same bits too.
func TestBatchInvariance(t *testing.T) {
	f := newFixture("llama")
	f.set("llama.context_length", uint32(1024))
	s := f.open(t)
	rng := rand.New(rand.NewPCG(5, 5))
	var prompts [][]int32
	for _, n := range []int{1, 17, 2, 64, 5, 15, 33, 16, 31, 40, 47, 65, 80, 100, 120, 300} {
		p := make([]int32, n)
		for i := range p {
			p[i] = rng.Int32N(fixtureVocab)
		}
		prompts = append(prompts, p)
	}
	var first []*sequence
	for _, path := range cpu.Paths() {
		t.Run(path, func(t *testing.T) {
			some := prompts
			if path == "go" || path == "generic" {
				some = prompts[:6] // these are slow
			}
			for _, threads := range []int{1, 3} {
				got := checkInvariance(t, s, cpu.Options{Path: path, Threads: threads}, some, 5)
				if first == nil {
					first = got
				}
				for i := range got {
					if !slices.Equal(got[i].sums, first[i].sums) {
						t.Errorf("%d threads, prompt %d: logits' bits are not those of path %s and 1 thread", threads, i, cpu.Paths()[0])
					}
				}
			}
		})
	}
}

// TestSmolLM2BatchInvariance does the same with the real model on the best path.
func TestSmolLM2BatchInvariance(t *testing.T) {
	g, _ := readGolden(t)
	s := openSmolLM2(t)
	var prompts [][]int32
	for _, p := range shortest(g.Prompts, 17)[1:] {
		prompts = append(prompts, p.Prompt)
	}
	if slow() {
		prompts = prompts[:2]
	}
	checkInvariance(t, s, cpu.Options{}, prompts, 6)
}
