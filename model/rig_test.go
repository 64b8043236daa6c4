package model

import (
	"hash/fnv"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
)

const rigBlock = 16 // tokens a page

// rig runs sequences straight on a runner, with page tables made by hand.
type rig struct {
	t      testing.TB
	dev    *cpu.Device
	model  *Model
	pages  device.Pages
	runner device.Runner
	free   []int32
	logits bool // bring back the logits of every sample
	batch  device.Batch
	result device.Result
}

// newRig loads s on a CPU device. Pages for tokens tokens are handed out in random order.
func newRig(t testing.TB, s *Spec, o cpu.Options, kv device.Type, limits device.Limits, tokens int) *rig {
	t.Helper()
	dev, err := cpu.Open(o)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, dev: dev}
	t.Cleanup(func() { r.dev.Close() })
	if r.model, err = s.Load(dev, LoadOptions{MaxContext: 1024}); err != nil {
		t.Fatal(err)
	}
	n := (tokens + rigBlock - 1) / rigBlock
	if r.pages, err = dev.NewPages(s.Config.KVLayout(n, rigBlock, kv)); err != nil {
		t.Fatal(err)
	}
	limits.Depth = 1
	if r.runner, err = dev.Compile(r.model.Program, r.pages, limits); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.runner.Close(); r.pages.Close() })
	for _, p := range rand.New(rand.NewPCG(3, 3)).Perm(n) {
		r.free = append(r.free, int32(p))
	}
	return r
}

// sequence is one sequence of tokens: a prompt, and what was drawn or forced after it.
type sequence struct {
	tokens []int32
	done   int // tokens in the cache
	table  []int32
	drawn  []int32  // what was drawn, in order
	sums   []uint64 // a sum over the bits of the logits of each draw
	last   []float32
}

// chunk says that a step is to run n more tokens of seq.
type chunk struct {
	seq *sequence
	n   int
}

// step runs chunks together. A chunk that reaches its sequence's end draws greedily.
func (r *rig) step(chunks []chunk) {
	r.t.Helper()
	b := &r.batch
	*b = device.Batch{Tokens: b.Tokens[:0], Positions: b.Positions[:0], Seqs: b.Seqs[:0], Tables: b.Tables[:0], Samples: b.Samples[:0], WantLogits: r.logits}
	var drawing []*sequence
	for _, c := range chunks {
		s, end := c.seq, c.seq.done+c.n
		for len(s.table)*rigBlock < end {
			if len(r.free) == 0 {
				r.t.Fatal("the test has too few pages")
			}
			s.table = append(s.table, r.free[len(r.free)-1])
			r.free = r.free[:len(r.free)-1]
		}
		b.Seqs = append(b.Seqs, device.Seq{Row: int32(len(b.Tokens)), Rows: int32(c.n), Table: int32(len(b.Tables)), Context: int32(end)})
		b.Tables = append(b.Tables, s.table...)
		for p := s.done; p < end; p++ {
			b.Tokens = append(b.Tokens, s.tokens[p])
			b.Positions = append(b.Positions, int32(p))
		}
		if end == len(s.tokens) {
			b.Samples = append(b.Samples, device.Sample{Row: int32(len(b.Tokens) - 1), Score: -1, TopP: 1, RepetitionPenalty: 1, Mask: -1, Position: int32(end), Logprobs: -1})
			drawing = append(drawing, s)
		}
		s.done = end
	}
	if err := r.runner.Submit(b); err != nil {
		r.t.Fatal(err)
	}
	if err := r.runner.Wait(&r.result); err != nil {
		r.t.Fatal(err)
	}
	vocab := r.model.Config.Vocab
	for i, s := range drawing {
		s.drawn = append(s.drawn, r.result.Tokens[i])
		if r.logits {
			s.last = append(s.last[:0], r.result.Logits[i*vocab:(i+1)*vocab]...)
			s.sums = append(s.sums, bitSum(s.last))
		}
	}
}

// end gives a sequence's pages back.
func (r *rig) end(s *sequence) {
	r.free = append(r.free, s.table...)
	s.table = nil
}

func bitSum(x []float32) uint64 {
	h := fnv.New64a()
	var b [4]byte
	for _, v := range x {
		u := math.Float32bits(v)
		b[0], b[1], b[2], b[3] = byte(u), byte(u>>8), byte(u>>16), byte(u>>24)
		h.Write(b[:])
	}
	return h.Sum64()
}
