package cpu

import (
	"flag"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"testing"

	"github.com/quire-serve/quire/device"
	"pgregory.net/rapid"
)

func init() { // a check is a model; the flag still overrides this
	if err := flag.Set("rapid.checks", "15"); err != nil {
		panic(err)
	}
}

func llama(m testModel) testModel {
	m.layers, m.heads, m.kvHeads, m.headDim, m.vocab, m.positions, m.eps = 2, 6, 2, 16, 70, 160, 1e-5
	return m
}

// TestAgainstNaive computes each weight type's model in binary64 and compares: closely with
// ExactFloat, and with 8-bit activations as far as a rounding that falls the other way allows.
func TestAgainstNaive(t *testing.T) {
	for typ := device.F32; typ.Valid(); typ++ {
		t.Run(typ.String(), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(uint64(typ), 3))
			m := llama(testModel{hidden: 96, ffn: 160, halfPairs: typ%2 == 0, bias: typ%3 == 0, tied: typ%2 == 1})
			if typ.BlockLen() == 256 {
				m.hidden, m.ffn, m.heads, m.headDim, m.layers = 256, 256, 8, 32, 1
			}
			model := newTestModel(uint64(typ), m, func() device.Type { return typ })
			tokens := randomTokens(rng, 70, m.vocab) // more than one span
			for _, exact := range []bool{true, false} {
				want := model.naive(tokens, !exact)
				for _, path := range Paths() {
					d := openPathFor(t, Options{Path: path, Threads: 2, ExactFloat: exact})
					s := newScenario(t, d, model.program(t, d), model.kv(6, 16, device.F32), device.Limits{Rows: 80, Sequences: 1, Samples: 80, Depth: 1}, [][]int32{tokens}, rng)
					s.whole()
					limit := 3e-6
					if !exact && groupCols(typ) > 0 {
						limit = 1e-2
					}
					e := relativeError(s.logits[0], want)
					if !(e < limit) {
						t.Errorf("%s, exact %v: relative error %.2g, want below %g", path, exact, e, limit)
					}
					t.Logf("%s, exact %v: %.2g", path, exact, e)
					s.close()
					d.Close()
				}
			}
		})
	}
}

// TestInvariance: the bits of a row's logits depend on its sequence alone, and not on its batch, the
// cut of its prompt, its pages, what they held, the number of threads, or the path.
func TestInvariance(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		rng := rand.New(rand.NewPCG(seed, 2))
		m := llama(testModel{hidden: 32 * (1 + rng.IntN(3)), ffn: 32 * (1 + rng.IntN(4)), halfPairs: rng.IntN(2) == 0, bias: rng.IntN(2) == 0, tied: rng.IntN(2) == 0})
		m.kvHeads = []int{1, 2, 3, 6}[rng.IntN(4)]
		types := narrowTypes
		if rng.IntN(4) == 0 {
			m.hidden, m.ffn, m.heads, m.kvHeads, m.headDim, m.layers, types = 256, 256, 4, 2, 64, 1, wideTypes
		}
		model := newTestModel(seed, m, func() device.Type { return types[rng.IntN(len(types))] })
		kvType := []device.Type{device.F32, device.F16}[rng.IntN(2)]
		block := 16 * (1 + rng.IntN(2))
		var tokens [][]int32
		for range 1 + rng.IntN(4) {
			tokens = append(tokens, randomTokens(rng, 1+rng.IntN(40), m.vocab))
		}
		tokens = append(tokens, randomTokens(rng, 60+rng.IntN(20), m.vocab))

		ref := openPathFor(t, Options{Path: "go", Threads: 1})
		defer ref.Close()
		one := newScenario(t, ref, model.program(t, ref), model.kv(20, 16, kvType), device.Limits{Rows: 80, Sequences: 1, Samples: 80, Depth: 1}, tokens, rng)
		defer one.close()
		one.whole()
		for _, path := range Paths() {
			threads := 1 + rng.IntN(5)
			d := openPathFor(t, Options{Path: path, Threads: threads})
			rows := 1 + rng.IntN(50)
			many := newScenario(t, d, model.program(t, d), model.kv(24, block, kvType), device.Limits{Rows: rows, Sequences: 4, Samples: rows, Depth: 2}, tokens, rng)
			many.shuffled(rng, rows, 4)
			sameBits(rt, fmt.Sprintf("seed %d, path %s, %d threads", seed, path, threads), one.logits, many.logits)
			many.close()
			d.Close()
		}
	})
}

// TestGoldenBits pins the numerics: a model with every type of weight, and what it gave when the
// package comment was written. A change here changes streams that resume on another version.
func TestGoldenBits(t *testing.T) {
	all := append(append([]device.Type(nil), narrowTypes...), wideTypes...)
	next := 0
	m := llama(testModel{hidden: 256, ffn: 256, bias: true, halfPairs: true})
	model := newTestModel(1, m, func() device.Type { next++; return all[next%len(all)] })
	rng := rand.New(rand.NewPCG(1, 1))
	tokens := [][]int32{randomTokens(rng, 70, m.vocab)}
	for _, path := range Paths() {
		d := openPathFor(t, Options{Path: path})
		s := newScenario(t, d, model.program(t, d), model.kv(5, 16, device.F16), device.Limits{Rows: 70, Sequences: 1, Samples: 70, Depth: 1}, tokens, rng)
		s.whole()
		h := fnv.New64a()
		for _, row := range s.logits[0] {
			h.Write(floatBytes(row))
		}
		if got := h.Sum64(); got != goldenBits {
			t.Errorf("%s: logits hash to %#x, want %#x", path, got, uint64(goldenBits))
		}
		s.close()
		d.Close()
	}
}

const goldenBits = 0x43fef41f6bcd75d5
