package cpu

import (
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
