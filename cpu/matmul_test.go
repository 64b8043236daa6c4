package cpu

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/quire-serve/quire/device"
)

// TestMatMulBits: every type of weight, with rows that do not fill a strip and columns of one block
// and of several, gives the reference's bits for 1 to 17 rows of input on 1 to 3 threads.
func TestMatMulBits(t *testing.T) {
	const most = 17
	rng := rand.New(rand.NewPCG(7, 7))
	type matrix struct {
		embed, bias device.Tensor
		parts       []device.Tensor
	}
	var matrices []matrix
	add := func(cols int, types ...device.Type) {
		m := matrix{embed: randomTensor(rng, device.F32, 64, cols)}
		rows := 0
		for _, typ := range types {
			n := 1 + rng.IntN(40/len(types))
			if n%16 == 0 { // a whole strip
				n++
			}
			m.parts = append(m.parts, randomTensor(rng, typ, n, cols))
			rows += n
		}
		m.bias = vectorTensor(rng, rows, 0, 0.3)
		matrices = append(matrices, m)
	}
	for _, cols := range []int{32, 64, 96, 256, 288} {
		for _, typ := range narrowTypes {
			add(cols, typ)
		}
	}
	for _, cols := range []int{1, 31, 33, 65} {
		for _, typ := range floatTypes {
			add(cols, typ)
		}
	}
	for _, cols := range []int{256, 512} {
		for _, typ := range wideTypes {
			add(cols, typ)
		}
	}
	add(96, device.Q4_1, device.F16, device.Q8_0)
	add(256, device.Q2_K, device.BF16, device.Q4_0)

	reference := make([][][]float32, len(matrices)) // by matrix, by rows of input
	run := func(path string, threads int, check func(i, n int, logits []float32)) {
		d := openPathFor(t, Options{Path: path, Threads: threads})
		defer d.Close()
		kv, err := d.NewPages(device.KVLayout{Pages: 1, BlockTokens: 32, Layers: 1, KVHeads: 1, HeadDim: 16, Type: device.F32})
		if err != nil {
			t.Fatal(err)
		}
		defer kv.Close()
		load := func(parts ...device.Tensor) device.Weight {
			w, err := d.Load("w", parts...)
			if err != nil {
				t.Fatal(err)
			}
			return w
		}
		for i, m := range matrices {
			b := device.NewBuilder()
			p := b.Build(b.MatMul(b.Gather(b.Embed(load(m.embed))), load(m.parts...), load(m.bias)))
			r, err := d.Compile(p, kv, device.Limits{Rows: most, Sequences: 1, Samples: most, Depth: 1})
			if err != nil {
				t.Fatal(err)
			}
			var res device.Result
			for n := 1; n <= most; n++ {
				batch := device.Batch{WantLogits: true, Seqs: []device.Seq{{Rows: int32(n), Context: int32(n)}}, Tables: []int32{0}}
				for row := range int32(n) {
					batch.Tokens, batch.Positions = append(batch.Tokens, 3*row+int32(n)%3), append(batch.Positions, row)
					batch.Samples = append(batch.Samples, device.Sample{Row: row, Mask: -1, Logprobs: -1})
				}
				if err := r.Submit(&batch); err != nil {
					t.Fatal(err)
				}
				if err := r.Wait(&res); err != nil {
					t.Fatal(err)
				}
				check(i, n, res.Logits)
			}
			r.Close()
		}
	}
	run("go", 1, func(i, n int, logits []float32) {
		reference[i] = append(reference[i], append([]float32(nil), logits...))
	})
	for _, path := range Paths() {
		for threads := 1; threads <= 3; threads++ {
			run(path, threads, func(i, n int, logits []float32) {
				for at, want := range reference[i][n-1] {
					if got := logits[at]; math.Float32bits(got) != math.Float32bits(want) || want != want {
						m := &matrices[i]
						t.Fatalf("%s, %d threads: %s with %d columns, %d rows of input: element %d is %v (%x), want %v (%x)", path, threads,
							m.parts[0].Type, m.embed.Cols, n, at, got, math.Float32bits(got), want, math.Float32bits(want))
					}
				}
			})
		}
	}
}
