package cpu

import (
	"bytes"
	"flag"
	"fmt"
	"hash/fnv"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
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

// TestWindowAgainstNaive: with sliding windows, of some layers or of all, a row sees what it should.
func TestWindowAgainstNaive(t *testing.T) {
	for _, windows := range [][]int{{1, 1}, {7, 7}, {16, 40}, {64, 65}, {100, 0}, {200, 200}} {
		rng := rand.New(rand.NewPCG(8, 8))
		model := newTestModel(8, llama(testModel{hidden: 96, ffn: 96, windows: windows}), func() device.Type { return device.F32 })
		tokens := randomTokens(rng, 150, model.vocab)
		want := model.naive(tokens, false)
		for _, path := range Paths() {
			d := openPathFor(t, Options{Path: path, Threads: 2})
			s := newScenario(t, d, model.program(t, d), model.kv(10, 16, device.F32), device.Limits{Rows: 150, Sequences: 1, Samples: 150, Depth: 1}, [][]int32{tokens}, rng)
			s.whole()
			if e := relativeError(s.logits[0], want); !(e < 3e-6) {
				t.Errorf("windows %v, %s: relative error %.2g", windows, path, e)
			}
			s.close()
			d.Close()
		}
	}
}

// TestPagesBehindWindow: a batch may leave out the pages that no row sees, and no others.
func TestPagesBehindWindow(t *testing.T) {
	d := openPathFor(t, Options{})
	defer d.Close()
	model := newTestModel(8, llama(testModel{hidden: 32, ffn: 32, windows: []int{20, 30}}), func() device.Type { return device.F32 })
	rng := rand.New(rand.NewPCG(9, 9))
	s := newScenario(t, d, model.program(t, d), model.kv(4, 16, device.F32), device.Limits{Rows: 60, Sequences: 1, Samples: 60, Depth: 1}, [][]int32{randomTokens(rng, 60, model.vocab)}, rng)
	defer s.close()
	// The row at 45 sees 16 to 45, the one at 44 sees 15 too.
	for _, c := range []struct {
		pos int
		ok  bool
	}{{45, true}, {44, false}} {
		b := decode([]int32{1}, c.pos, []int32{-1, 1, 2, 3})
		err := s.runner.Submit(b)
		if (err == nil) != c.ok {
			t.Errorf("position %d: %v", c.pos, err)
		}
	}
	var res device.Result
	if err := s.runner.Wait(&res); err != nil {
		t.Fatal(err)
	}
}

// TestGroupsOfPages: with layers of a window in pages of their own, where what lies behind is left out,
// each path gives the bits that one group gives, copies of pages included; and each group's table is
// checked as far as its layers look.
func TestGroupsOfPages(t *testing.T) {
	shape := llama(testModel{hidden: 64, ffn: 64, windows: []int{20, 0, 30}})
	shape.layers = 3
	model := newTestModel(8, shape, func() device.Type { return device.F32 })
	for _, kv := range []device.Type{device.F32, device.F16, device.I8} {
		rng := rand.New(rand.NewPCG(10, 10))
		tokens := [][]int32{randomTokens(rng, 150, model.vocab), randomTokens(rng, 70, model.vocab)}
		ref := openPathFor(t, Options{Path: "go", Threads: 1})
		defer ref.Close()
		one := newScenario(t, ref, model.program(t, ref), model.kv(15, 16, kv), device.Limits{Rows: 150, Sequences: 2, Samples: 150, Depth: 1}, tokens, rng)
		defer one.close()
		one.whole()
		for _, path := range Paths() {
			d := openPathFor(t, Options{Path: path, Threads: 2})
			s := newScenario(t, d, model.program(t, d), model.grouped(15, 16, 16, kv), device.Limits{Rows: 30, Sequences: 2, Samples: 30, Depth: 1}, tokens, rng)
			s.window = 30
			s.shuffled(rng, 30, 2)
			sameBits(t, fmt.Sprintf("%s, %s", path, kv), one.logits, s.logits)

			// A page of the second group, moved, serves as well, and one of the first stays where it is.
			last := len(s.tables[1][0]) - 1
			from := s.tables[1][0][last]
			to := int32(0)
			for slices.Contains(s.tables[1][0], to) || slices.Contains(s.tables[1][1], to) {
				to++
			}
			s.copies, s.tables[1][0][last] = []device.PageCopy{{From: from, To: to, Group: 1}}, to
			s.step(part{0, 149, 150})
			sameBits(t, fmt.Sprintf("%s, %s, moved", path, kv), one.logits, s.logits)

			for want, spoil := range map[string]func(b *device.Batch){
				"page -1 of 16":         func(b *device.Batch) { b.Tables[12] = -1 }, // tokens 32 on: 44 sees 15 on
				"page 16 of 16":         func(b *device.Batch) { b.Tables[12] = 16 },
				"page -1 of 15":         func(b *device.Batch) { b.Tables[0] = -1 },
				"page 15 of 15":         func(b *device.Batch) { b.Tables[0] = 15 },
				"from entry 13 of 13":   func(b *device.Batch) { b.Seqs[0].WindowTable = 13 },
				"copy 0 in group 2":     func(b *device.Batch) { b.Copies = []device.PageCopy{{Group: 2}} },
				"from page 0 to 16 of ": func(b *device.Batch) { b.Copies = []device.PageCopy{{To: 16, Group: 1}} },
				"from page 15 to 0 of ": func(b *device.Batch) { b.Copies = []device.PageCopy{{From: 15}} },
			} {
				b := decode([]int32{1}, 44, slices.Repeat([]int32{3}, 13))
				b.Seqs[0].WindowTable = 10
				spoil(b)
				if err := s.runner.Submit(b); err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("%s: error %v, want one with %q", path, err, want)
				}
			}
			s.close()
			d.Close()
		}
	}
}

// TestBytesAgainstNaive: a cache of I8 rounds K and V of each token and head to multiples of a half,
// and nothing else.
func TestBytesAgainstNaive(t *testing.T) {
	rng := rand.New(rand.NewPCG(10, 10))
	model := newTestModel(10, llama(testModel{hidden: 96, ffn: 160}), func() device.Type { return device.F32 })
	tokens := randomTokens(rng, 140, model.vocab)
	plain := model.naive(tokens, false)
	model.byteKV = true
	want := model.naive(tokens, false)
	if f, i := model.kv(1, 16, device.F16).PageBytes(), model.kv(1, 16, device.I8).PageBytes(); i != f*18/32 {
		t.Errorf("heads of 16: a page of %d bytes, of F16 %d", i, f)
	}
	for _, path := range Paths() {
		d := openPathFor(t, Options{Path: path, Threads: 2})
		s := newScenario(t, d, model.program(t, d), model.kv(10, 16, device.I8), device.Limits{Rows: 140, Sequences: 1, Samples: 140, Depth: 1}, [][]int32{tokens}, rng)
		s.whole()
		rounded, exact := relativeError(s.logits[0], want), relativeError(s.logits[0], plain)
		t.Logf("%s: relative error %.2g beside rounded K and V, %.2g beside exact ones", path, rounded, exact)
		if !(rounded < 1e-3) || !(exact < 2e-2) || exact < 10*rounded {
			t.Errorf("%s: relative error %.2g beside rounded K and V, %.2g beside exact ones", path, rounded, exact)
		}
		s.close()
		d.Close()
	}
}

// TestAttentionError: how far attention over rounded keys and values is from attention over exact ones,
// for random normal queries, keys and values: I8 is within 1 %.
func TestAttentionError(t *testing.T) {
	const heads, kvHeads, headDim, tokens = 6, 2, 64, 400
	rng := rand.New(rand.NewPCG(12, 12))
	input := vectorTensor(rng, tokens*(heads+2*kvHeads)*headDim, 0, 1)
	input.Rows, input.Cols = tokens, (heads+2*kvHeads)*headDim
	seq := make([]int32, tokens)
	for i := range seq {
		seq[i] = int32(i)
	}
	run := func(kv device.Type) []float32 {
		d := openPathFor(t, Options{})
		defer d.Close()
		embed, err := d.Load("input", input)
		if err != nil {
			t.Fatal(err)
		}
		b := device.NewBuilder()
		x := b.Embed(embed)
		b.StoreKV(x, 0, kvHeads, headDim, heads*headDim, (heads+kvHeads)*headDim)
		p := b.Build(b.Gather(b.Attention(x, 0, heads, kvHeads, headDim, 0, 1/math.Sqrt2/4, 0)))
		l := device.KVLayout{Pages: 25, BlockTokens: 16, Layers: 1, KVHeads: kvHeads, HeadDim: headDim, Type: kv}
		s := newScenario(t, d, p, l, device.Limits{Rows: tokens, Sequences: 1, Samples: tokens, Depth: 1}, [][]int32{seq}, rng)
		defer s.close()
		s.whole()
		return slices.Concat(s.logits[0]...)
	}
	exact := run(device.F32)
	for kv, limit := range map[device.Type]float64{device.F16: 1e-3, device.I8: 1e-2} {
		var off, size float64
		for i, v := range run(kv) {
			off += math.Pow(float64(v)-float64(exact[i]), 2)
			size += math.Pow(float64(exact[i]), 2)
		}
		e := math.Sqrt(off / size)
		t.Logf("%s: root mean square error %.2g of the output's", kv, e)
		if !(e < limit) || e < limit/100 {
			t.Errorf("%s: error %.2g, want up to %g", kv, e, limit)
		}
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
		behind := 0    // a window that every layer has, or every one in the second group of pages
		mixed := false // whether there is one
		if rng.IntN(2) == 0 {
			for range m.layers {
				m.windows = append(m.windows, 1+rng.IntN(90))
			}
			if m.layers > 1 && rng.IntN(2) == 0 {
				m.windows[rng.IntN(m.layers)], mixed = 0, rng.IntN(3) > 0
			}
			if behind = slices.Max(m.windows); slices.Min(m.windows) == 0 && !mixed {
				behind = 0
			}
		}
		model := newTestModel(seed, m, func() device.Type { return types[rng.IntN(len(types))] })
		kvType := []device.Type{device.F32, device.F16, device.I8}[rng.IntN(3)]
		block := 16 * (1 + rng.IntN(2))
		var tokens [][]int32
		for range 1 + rng.IntN(4) {
			tokens = append(tokens, randomTokens(rng, 1+rng.IntN(40), m.vocab))
		}
		long := 60 + rng.IntN(20)
		if m.windows != nil {
			long += 60
		}
		tokens = append(tokens, randomTokens(rng, long, m.vocab))

		ref := openPathFor(t, Options{Path: "go", Threads: 1})
		defer ref.Close()
		one := newScenario(t, ref, model.program(t, ref), model.kv(24, 16, kvType), device.Limits{Rows: 140, Sequences: 1, Samples: 140, Depth: 1}, tokens, rng)
		defer one.close()
		one.whole()
		for _, path := range Paths() {
			threads := 1 + rng.IntN(5)
			d := openPathFor(t, Options{Path: path, Threads: threads})
			rows := 1 + rng.IntN(50)
			layout := model.kv(24, block, kvType)
			if mixed {
				layout = model.grouped(24, 30, block, kvType)
			}
			many := newScenario(t, d, model.program(t, d), layout, device.Limits{Rows: rows, Sequences: 4, Samples: rows, Depth: 2}, tokens, rng)
			many.window = behind
			many.shuffled(rng, rows, 4)
			sameBits(rt, fmt.Sprintf("seed %d, path %s, %d threads", seed, path, threads), one.logits, many.logits)
			many.close()
			d.Close()
		}
	})
}

// TestPagesAreAlike: every path writes the same bytes into pages, so that they can move between machines.
func TestPagesAreAlike(t *testing.T) {
	m := llama(testModel{hidden: 64, ffn: 64})
	m.headDim = 24 // no multiple of the lanes
	model := newTestModel(13, m, func() device.Type { return device.F32 })
	for _, kv := range []device.Type{device.F32, device.F16, device.I8} {
		var want []byte
		for _, path := range Paths() {
			rng := rand.New(rand.NewPCG(13, 13))
			tokens := [][]int32{randomTokens(rng, 45, model.vocab)}
			d := openPathFor(t, Options{Path: path})
			s := newScenario(t, d, model.program(t, d), model.kv(3, 16, kv), device.Limits{Rows: 45, Sequences: 1, Samples: 45, Depth: 1}, tokens, rng)
			s.whole()
			var got []byte
			for i := range 3 {
				page := make([]byte, s.layout.PageBytes())
				if err := s.runner.(*runner).pages.Read(int32(i), page); err != nil {
					t.Fatal(err)
				}
				got = append(got, page...)
			}
			if want == nil {
				want = got
			}
			if !bytes.Equal(got, want) {
				t.Errorf("%s: the pages of path %s are not those of %s", kv, path, Paths()[0])
			}
			s.close()
			d.Close()
		}
	}
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
	for _, c := range []struct {
		kv      device.Type
		windows []int
		want    uint64
	}{
		{device.F16, nil, 0x43fef41f6bcd75d5},
		{device.I8, nil, 0x2f3d0c16e6ba274d},
		{device.I8, []int{33, 48}, 0xd96ec091fb1af22d},
	} {
		model.windows = c.windows
		for _, path := range Paths() {
			d := openPathFor(t, Options{Path: path})
			s := newScenario(t, d, model.program(t, d), model.kv(5, 16, c.kv), device.Limits{Rows: 70, Sequences: 1, Samples: 70, Depth: 1}, tokens, rng)
			s.whole()
			h := fnv.New64a()
			for _, row := range s.logits[0] {
				h.Write(floatBytes(row))
			}
			if got := h.Sum64(); got != c.want {
				t.Errorf("%s, %s, windows %v: logits hash to %#x, want %#x", path, c.kv, c.windows, got, c.want)
			}
			s.close()
			d.Close()
		}
	}
}
