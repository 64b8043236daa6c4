package cpu

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/quire-serve/quire/device"
)

// A testModel is a small Llama with random weights of given types, as tensors, to be loaded on any
// device and to be computed naively in binary64.
type testModel struct {
	layers, hidden, ffn, heads, kvHeads, headDim, vocab, positions int
	halfPairs, bias, tied                                          bool
	eps                                                            float32
	windows                                                        []int // by layer; nil for none
	byteKV                                                         bool  // naive rounds K and V to bytes

	embed, head, rope, finalNorm device.Tensor
	layer                        []testLayer
	decoded                      map[*byte][][]float64 // by first byte of a tensor
}

type testLayer struct {
	attnNorm, ffnNorm, biases device.Tensor
	q, k, v, o, gate, up, dn  device.Tensor
}

// floatTypes and quantTypes are what a matrix may be; wide ones need columns in multiples of 256.
var (
	floatTypes  = []device.Type{device.F32, device.F16, device.BF16}
	quantTypes  = []device.Type{device.Q4_0, device.Q4_1, device.Q5_0, device.Q5_1, device.Q8_0}
	wideTypes   = []device.Type{device.Q2_K, device.Q3_K, device.Q4_K, device.Q5_K, device.Q6_K}
	narrowTypes = append(append([]device.Type(nil), floatTypes...), quantTypes...)
)

// newTestModel fills the weights of m; pick chooses the type of the next matrix.
func newTestModel(seed uint64, m testModel, pick func() device.Type) *testModel {
	rng := rand.New(rand.NewPCG(seed, 1))
	matrix := func(rows, cols int) device.Tensor { return randomTensor(rng, pick(), rows, cols) }
	norm := func() device.Tensor { return vectorTensor(rng, m.hidden, 1, 0.2) }
	m.decoded = map[*byte][][]float64{}
	m.embed = matrix(m.vocab, m.hidden)
	m.head = m.embed
	if !m.tied {
		m.head = matrix(m.vocab, m.hidden)
	}
	m.finalNorm = norm()
	table := make([]float32, m.positions*m.headDim)
	half := m.headDim / 2
	for p := range m.positions {
		for i := range half {
			angle := float64(p) * math.Pow(10000, -float64(i)/float64(half))
			table[p*m.headDim+i], table[p*m.headDim+half+i] = float32(math.Cos(angle)), float32(math.Sin(angle))
		}
	}
	m.rope = device.Tensor{Type: device.F32, Rows: m.positions, Cols: m.headDim, Data: floatBytes(table)}
	q, kv := m.heads*m.headDim, m.kvHeads*m.headDim
	for range m.layers {
		m.layer = append(m.layer, testLayer{
			attnNorm: norm(), ffnNorm: norm(), biases: vectorTensor(rng, q+2*kv, 0, 0.3),
			q: matrix(q, m.hidden), k: matrix(kv, m.hidden), v: matrix(kv, m.hidden), o: matrix(m.hidden, q),
			gate: matrix(m.ffn, m.hidden), up: matrix(m.ffn, m.hidden), dn: matrix(m.hidden, m.ffn),
		})
	}
	return &m
}

func vectorTensor(rng *rand.Rand, n int, mean, spread float64) device.Tensor {
	f := make([]float32, n)
	for i := range f {
		f[i] = float32(mean + spread*rng.NormFloat64())
	}
	return device.Tensor{Type: device.F32, Rows: 1, Cols: n, Data: floatBytes(f)}
}

// randomTensor makes weights of variance about 1/cols: floats, or blocks of random bytes whose
// scales are small halves.
func randomTensor(rng *rand.Rand, t device.Type, rows, cols int) device.Tensor {
	blocks := rows * cols / t.BlockLen()
	data := make([]byte, blocks*t.BlockBytes())
	sigma := 1 / math.Sqrt(float64(cols))
	// Where the binary16 scales of a block lie and how large its integers get.
	at, scale := map[device.Type][]int{
		device.Q4_0: {0}, device.Q4_1: {0, 2}, device.Q5_0: {0}, device.Q5_1: {0, 2}, device.Q8_0: {0},
		device.Q2_K: {80, 82}, device.Q3_K: {108}, device.Q4_K: {0, 2}, device.Q5_K: {0, 2}, device.Q6_K: {208},
	}[t], map[device.Type]float64{
		device.Q4_0: 5, device.Q4_1: 9, device.Q5_0: 9, device.Q5_1: 18, device.Q8_0: 74,
		device.Q2_K: 15, device.Q3_K: 40, device.Q4_K: 270, device.Q5_K: 540, device.Q6_K: 1400,
	}[t]
	for b := range blocks {
		block := data[b*t.BlockBytes() : (b+1)*t.BlockBytes()]
		switch t {
		case device.F32:
			copy(block, floatBytes([]float32{float32(sigma * rng.NormFloat64())}))
		case device.F16:
			putHalf(block, sigma*rng.NormFloat64())
		case device.BF16:
			bits := math.Float32bits(float32(sigma * rng.NormFloat64()))
			block[0], block[1] = byte(bits>>16), byte(bits>>24)
		default:
			for i := range block {
				block[i] = byte(rng.Uint32())
			}
			d := sigma / scale * (0.5 + rng.Float64())
			putHalf(block[at[0]:], d)
			if len(at) > 1 { // the minimum: negative where it is added, positive where it is subtracted
				if t >= device.Q2_K {
					putHalf(block[at[1]:], d*scale/30)
				} else {
					putHalf(block[at[1]:], -d*scale)
				}
			}
		}
	}
	return device.Tensor{Type: t, Rows: rows, Cols: cols, Data: data}
}

func putHalf(b []byte, f float64) {
	h := floatToHalf(float32(f))
	b[0], b[1] = byte(h), byte(h>>8)
}

// program loads the weights on d and writes the forward pass as package model does.
func (m *testModel) program(t testing.TB, d *Device) *device.Program {
	load := func(name string, parts ...device.Tensor) device.Weight {
		w, err := d.Load(name, parts...)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	q, kv := m.heads*m.headDim, m.kvHeads*m.headDim
	b := device.NewBuilder()
	embed := load("embed", m.embed)
	head := embed
	if !m.tied {
		head = load("head", m.head)
	}
	rope := load("rope", m.rope)
	x := b.Embed(embed)
	for i := range m.layer {
		l := &m.layer[i]
		var bias device.Weight
		if m.bias {
			bias = load("bias", l.biases)
		}
		qkv := b.MatMul(b.RMSNorm(x, load("norm", l.attnNorm), m.eps), load("qkv", l.q, l.k, l.v), bias)
		b.RoPE(qkv, rope, 0, m.heads, m.headDim, m.halfPairs)
		b.RoPE(qkv, rope, q, m.kvHeads, m.headDim, m.halfPairs)
		b.StoreKV(qkv, i, m.kvHeads, m.headDim, q, q+kv)
		at := b.Attention(qkv, i, m.heads, m.kvHeads, m.headDim, 0, m.scale(), m.window(i))
		b.MatMulAdd(x, at, load("o", l.o))
		gateUp := b.MatMul(b.RMSNorm(x, load("norm", l.ffnNorm), m.eps), load("gate_up", l.gate, l.up), nil)
		b.MatMulAdd(x, b.SwiGLU(gateUp), load("down", l.dn))
	}
	return b.Build(b.MatMul(b.RMSNorm(b.Gather(x), load("norm", m.finalNorm), m.eps), head, nil))
}

// grouped is kv with the layers that have a window in a second group of windowPages pages.
func (m *testModel) grouped(pages, windowPages, blockTokens int, t device.Type) device.KVLayout {
	l := m.kv(pages, blockTokens, t)
	for _, w := range m.windows {
		if w > 0 {
			l.Layers, l.WindowLayers = l.Layers-1, l.WindowLayers+1
		}
	}
	l.WindowPages = windowPages
	return l
}

func (m *testModel) window(layer int) int {
	if m.windows == nil {
		return 0
	}
	return m.windows[layer]
}

func (m *testModel) scale() float32 { return float32(1 / math.Sqrt(float64(m.headDim))) }

func (m *testModel) kv(pages, blockTokens int, t device.Type) device.KVLayout {
	return device.KVLayout{Pages: pages, BlockTokens: blockTokens, Layers: m.layers, KVHeads: m.kvHeads, HeadDim: m.headDim, Type: t}
}

// naive computes the logits of every position of one sequence in binary64, straight from the
// definitions. If quantised is set, the inputs of quantised matrices are rounded to 8 bits a block.
func (m *testModel) naive(tokens []int32, quantised bool) [][]float64 {
	x := make([][]float64, len(tokens))
	embed := m.matrix(m.embed)
	for i, t := range tokens {
		x[i] = append([]float64(nil), embed[t]...)
	}
	mul := func(t device.Tensor, v []float64) []float64 {
		if quantised && groupCols(t.Type) > 0 {
			v = roundBlocks(v)
		}
		out := make([]float64, t.Rows)
		for r, row := range m.matrix(t) {
			for c, w := range row {
				out[r] += w * v[c]
			}
		}
		return out
	}
	norm := func(t device.Tensor, v []float64) []float64 {
		sum := 0.0
		for _, a := range v {
			sum += a * a
		}
		out, w := make([]float64, len(v)), m.matrix(t)[0]
		for i := range v {
			out[i] = v[i] / math.Sqrt(sum/float64(len(v))+float64(m.eps)) * w[i]
		}
		return out
	}
	add := func(dst, v []float64) {
		for i := range dst {
			dst[i] += v[i]
		}
	}
	for i := range m.layer {
		l := &m.layer[i]
		qs, ks, vs := make([][]float64, len(x)), make([][]float64, len(x)), make([][]float64, len(x))
		for p := range x {
			h := norm(l.attnNorm, x[p])
			qs[p], ks[p], vs[p] = mul(l.q, h), mul(l.k, h), mul(l.v, h)
			if m.bias {
				b := m.matrix(l.biases)[0]
				add(qs[p], b)
				add(ks[p], b[len(qs[p]):])
				add(vs[p], b[len(qs[p])+len(ks[p]):])
			}
			m.rotate(qs[p], p)
			m.rotate(ks[p], p)
			if m.byteKV {
				m.roundHeads(ks[p])
				m.roundHeads(vs[p])
			}
		}
		for p := range x {
			from := 0
			if w := m.window(i); w > 0 {
				from = max(0, p+1-w)
			}
			add(x[p], mul(l.o, m.attend(qs[p], ks[from:p+1], vs[from:p+1])))
			h := norm(l.ffnNorm, x[p])
			g, u := mul(l.gate, h), mul(l.up, h)
			for c := range g {
				g[c] = g[c] / (1 + math.Exp(-g[c])) * u[c]
			}
			add(x[p], mul(l.dn, g))
		}
	}
	for p := range x {
		x[p] = mul(m.head, norm(m.finalNorm, x[p]))
	}
	return x
}

func (m *testModel) rotate(v []float64, pos int) {
	half := m.headDim / 2
	table := m.matrix(m.rope)[pos]
	for h := 0; h < len(v); h += m.headDim {
		for i := range half {
			a, b := h+2*i, h+2*i+1
			if m.halfPairs {
				a, b = h+i, h+i+half
			}
			c, s := table[i], table[half+i]
			v[a], v[b] = v[a]*c-v[b]*s, v[a]*s+v[b]*c
		}
	}
}

// roundHeads rounds each head to multiples of 1/127 of its largest, that being a half.
func (m *testModel) roundHeads(v []float64) {
	for at := 0; at < len(v); at += m.headDim {
		head := v[at : at+m.headDim]
		top := 0.0
		for _, a := range head {
			top = max(top, math.Abs(a))
		}
		s := float64(halfToFloat(floatToHalf(float32(top / 127))))
		for i, a := range head {
			head[i] = math.RoundToEven(a/s) * s
		}
	}
}

func (m *testModel) attend(q []float64, ks, vs [][]float64) []float64 {
	out := make([]float64, len(q))
	for h := range m.heads {
		kv := h * m.kvHeads / m.heads * m.headDim
		weights, sum := make([]float64, len(ks)), 0.0
		for t := range ks {
			for d := range m.headDim {
				weights[t] += q[h*m.headDim+d] * ks[t][kv+d]
			}
			weights[t] = math.Exp(weights[t] * float64(m.scale()))
			sum += weights[t]
		}
		for t := range ks {
			for d := range m.headDim {
				out[h*m.headDim+d] += weights[t] / sum * vs[t][kv+d]
			}
		}
	}
	return out
}

// matrix reads a tensor.
func (m *testModel) matrix(t device.Tensor) [][]float64 {
	if rows, ok := m.decoded[&t.Data[0]]; ok {
		return rows
	}
	f := make([]float32, t.Rows*t.Cols)
	dequantize(t.Type, t.Data, f)
	rows := make([][]float64, t.Rows)
	for r := range rows {
		rows[r] = make([]float64, t.Cols)
		for c := range rows[r] {
			rows[r][c] = float64(f[r*t.Cols+c])
		}
	}
	m.decoded[&t.Data[0]] = rows
	return rows
}

// roundBlocks rounds runs of 32 to multiples of 1/127 of their largest.
func roundBlocks(v []float64) []float64 {
	out := make([]float64, len(v))
	for at := 0; at < len(v); at += 32 {
		top := 0.0
		for _, a := range v[at : at+32] {
			top = max(top, math.Abs(a))
		}
		for i, a := range v[at : at+32] {
			if top > 0 {
				out[at+i] = math.RoundToEven(a*127/top) * top / 127
			}
		}
	}
	return out
}
