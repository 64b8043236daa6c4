package cpu

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/quire-serve/quire/device"
)

// BenchmarkSample draws from 49,152 logits with each kind of options, on the best path here.
func BenchmarkSample(b *testing.B) {
	rng := rand.New(rand.NewPCG(1, 1))
	x := make([]float32, 49152)
	for i := range x {
		x[i] = float32(3 * rng.NormFloat64())
	}
	for name, change := range map[string]func(*device.Sample){
		"greedy":   func(s *device.Sample) { s.Temperature = 0 },
		"all":      func(s *device.Sample) {},
		"top-k":    func(s *device.Sample) { s.TopK = 40 },
		"top-p":    func(s *device.Sample) { s.TopP = 0.95 },
		"min-p":    func(s *device.Sample) { s.MinP = 0.05 },
		"logprobs": func(s *device.Sample) { s.Temperature, s.Logprobs = 0, 5 },
	} {
		b.Run(name, func(b *testing.B) {
			d := openPathFor(b, Options{Threads: 1})
			defer d.Close()
			m, sp := &sampler{kern: d.kern}, plain(0.8)
			change(&sp)
			s := &slot{batch: device.Batch{Tokens: []int32{0}, Samples: []device.Sample{sp}}}
			top := make([]device.TokenLogprob, max(0, sp.Logprobs))
			for b.Loop() {
				s.batch.Samples[0].Position++
				m.logprobs(m.token(s, 0, x), &s.batch.Samples[0], x, top)
			}
		})
	}
}

// benchModel is of SmolLM2-135M's shape and types, with random weights.
func benchModel() *testModel {
	types := []device.Type{device.Q8_0} // the embedding; then
	return newTestModel(1, testModel{layers: 30, hidden: 576, ffn: 1536, heads: 9, kvHeads: 3, headDim: 64, vocab: 49152, positions: 2048, tied: true, eps: 1e-5},
		func() device.Type {
			t := types[0]
			types[0] = device.Q4_1
			return t
		})
}

// BenchmarkDecodeKV is one new token for each of 16 sequences of 192 and 1,024 tokens, over a cache of
// each type, on the best path.
func BenchmarkDecodeKV(b *testing.B) {
	m := benchModel()
	d := openPathFor(b, Options{})
	defer d.Close()
	p := m.program(b, d)
	for _, context := range []int{192, 1024} {
		for _, kv := range []device.Type{device.F16, device.I8} {
			b.Run(fmt.Sprintf("context=%d/kv=%s", context, kv), func(b *testing.B) {
				pages, err := d.NewPages(m.kv(context, 16, kv))
				if err != nil {
					b.Fatal(err)
				}
				defer pages.Close()
				r, err := d.Compile(p, pages, device.Limits{Rows: 16, Sequences: 16, Samples: 16, Depth: 1})
				if err != nil {
					b.Fatal(err)
				}
				defer r.Close()
				tokens, tables := make([]int32, 16), make([][]int32, 16)
				for i := range tables {
					for page := range context / 16 {
						tables[i] = append(tables[i], int32(i*context/16+page))
					}
				}
				batch := decode(tokens, context-1, tables...)
				var res device.Result
				for b.Loop() {
					if err := r.Submit(batch); err != nil {
						b.Fatal(err)
					}
					if err := r.Wait(&res); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(16*float64(b.N)/b.Elapsed().Seconds(), "tok/s")
			})
		}
	}
}

// BenchmarkStep runs steps of a model of SmolLM2-135M's shape with random weights, on every path:
// one new token for each of 1, 4 and 16 sequences of 192 tokens, and prompts of 128 and 512 tokens.
func BenchmarkStep(b *testing.B) {
	m := benchModel()
	for _, path := range Paths() {
		d := openPathFor(b, Options{Path: path})
		p := m.program(b, d)
		kv, err := d.NewPages(m.kv(16*16, 16, device.F16))
		if err != nil {
			b.Fatal(err)
		}
		r, err := d.Compile(p, kv, device.Limits{Rows: 512, Sequences: 16, Samples: 16, Depth: 1})
		if err != nil {
			b.Fatal(err)
		}
		var res device.Result
		step := func(b *testing.B, batch *device.Batch) {
			if err := r.Submit(batch); err != nil {
				b.Fatal(err)
			}
			if err := r.Wait(&res); err != nil {
				b.Fatal(err)
			}
		}
		for _, n := range []int{1, 4, 16} {
			b.Run(fmt.Sprintf("%s/decode-%d", path, n), func(b *testing.B) {
				tokens, tables := make([]int32, n), make([][]int32, n)
				for i := range tables {
					tokens[i] = int32(i * 1000)
					for page := range int32(16) {
						tables[i] = append(tables[i], int32(i)*16+page)
					}
				}
				batch := decode(tokens, 191, tables...)
				for b.Loop() {
					step(b, batch)
				}
				b.ReportMetric(float64(n*b.N)/b.Elapsed().Seconds(), "tok/s")
			})
		}
		for _, n := range []int32{128, 512} {
			b.Run(fmt.Sprintf("%s/prefill-%d", path, n), func(b *testing.B) {
				batch := &device.Batch{Tokens: make([]int32, n), Seqs: []device.Seq{{Rows: n, Context: n}}}
				for i := range n {
					batch.Tokens[i] = i * 90
					batch.Positions = append(batch.Positions, i)
				}
				for page := range n / 16 {
					batch.Tables = append(batch.Tables, page)
				}
				last := plain(0)
				last.Row = n - 1
				batch.Samples = []device.Sample{last}
				for b.Loop() {
					step(b, batch)
				}
				b.ReportMetric(float64(int(n)*b.N)/b.Elapsed().Seconds(), "tok/s")
			})
		}
		r.Close()
		kv.Close()
		d.Close()
	}
}
