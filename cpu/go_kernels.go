package cpu

import (
	"math"
	"sync"
	"unsafe"

	"github.com/quire-serve/quire/device"
)

// goKernels is the path "go": the executable specification, which runs everywhere.
type goKernels struct{ n int }

var _ kernels = (*goKernels)(nil)

func newGoKernels(threads int) *goKernels { return &goKernels{n: threads} }

func (k *goKernels) path() string { return "go" }
func (k *goKernels) threads() int { return k.n }
func (k *goKernels) close()       {}

// alloc takes float32s so that views of the memory are aligned.
func (k *goKernels) alloc(bytes int64) ([]byte, func(), error) {
	const line = 64
	mem := make([]byte, bytes+line)
	at := -int(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) & (line - 1)
	return mem[at : at+int(bytes) : at+int(bytes)], func() {}, nil
}

// parallel runs f over 0..n-1 in runs of at least grain, on up to k.n goroutines.
func (k *goKernels) parallel(n, grain int, f func(from, to int)) {
	parts := min(k.n, (n+grain-1)/grain)
	if parts <= 1 {
		if n > 0 {
			f(0, n)
		}
		return
	}
	var wg sync.WaitGroup
	for i := range parts {
		wg.Go(func() { f(n*i/parts, n*(i+1)/parts) })
	}
	wg.Wait()
}

func (k *goKernels) argmax(x []float32) int32 {
	best, at := float32(math.Inf(-1)), int32(-1)
	for i, v := range x {
		if v > best || at < 0 && v == best {
			best, at = v, int32(i)
		}
	}
	return max(at, 0)
}

func (k *goKernels) expRow(dst, x []float32, shift, scale float32) float64 {
	var lanes [16]float64
	for i, v := range x {
		var e float32
		if v > float32(math.Inf(-1)) {
			e = exp32(float32((v - shift) * scale))
		}
		dst[i] = e
		lanes[i&15] += float64(e)
	}
	for _, n := range [...]int{8, 4, 2, 1} {
		for l := range n {
			lanes[l] += lanes[l+n]
		}
	}
	return lanes[0]
}

// goExecutor runs a plan phase by phase.
type goExecutor struct {
	k     *goKernels
	plan  *plan
	bufs  [][]float32
	cache []*goCache // by group of pages
	step  *step

	// A matmul's prepared input: [rows, cols], and quantised.
	input  []float32
	quant  []int8
	scales []float32
	sums   []int32
}

func (k *goKernels) executor(p *plan, kv []byte) (executor, error) {
	e := &goExecutor{k: k, plan: p}
	for i := range p.kv.Groups() {
		e.cache = append(e.cache, newGoCache(p.kv.Group(i), groupMemory(p.kv, kv, i)))
	}
	for i, w := range p.widths {
		var buf []float32
		if home := p.home[i]; home == int32(i) {
			buf = make([]float32, p.height(home)*int(w))
		} else if home >= 0 {
			buf = e.bufs[home]
		}
		e.bufs = append(e.bufs, buf)
	}
	var in int
	for _, ph := range p.phases {
		if ph.kind == phaseMatMul {
			in = max(in, p.height(ph.dst)*p.weights[ph.w].cols)
		}
	}
	e.input, e.quant, e.scales, e.sums = make([]float32, in), make([]int8, in), make([]float32, in/32+1), make([]int32, in/16+1)
	return e, nil
}

func (e *goExecutor) close() {}

func (e *goExecutor) run(s *step) {
	e.step = s
	e.bufs[e.plan.logits] = s.logits
	for i := range e.plan.phases {
		ph := &e.plan.phases[i]
		switch ph.kind {
		case phaseEmbed:
			e.embed(ph)
		case phaseMatMul:
			e.matMul(ph)
		case phaseAttention:
			e.attention(ph)
		case phaseNorm:
			w := e.plan.weights[ph.norm].vector
			e.rows(ph, func(r int, dst, src []float32) { rmsNorm(dst, src, w, ph.eps) })
		case phaseSwiGLU:
			e.rows(ph, func(r int, dst, src []float32) { swiGLU(dst, src) })
		case phaseGather:
			for r, at := range s.sampleRows {
				copy(e.row(ph.dst, r), e.row(ph.src, int(at)))
			}
		case phaseRoPE:
			e.rows(ph, func(r int, dst, _ []float32) { e.rotate(ph, dst, r, ph.qCol, ph.heads) })
		case phaseStoreKV:
			e.storeKV(ph)
		}
	}
	e.step = nil
}

// height is the number of rows of buffer b in this step.
func (e *goExecutor) height(b int32) int {
	if e.plan.sample[b] {
		return len(e.step.sampleRows)
	}
	return len(e.step.tokens)
}

func (e *goExecutor) row(b int32, r int) []float32 {
	w := int(e.plan.widths[b])
	return e.bufs[b][r*w : (r+1)*w : (r+1)*w]
}

// rows runs f for each row of a phase's buffers.
func (e *goExecutor) rows(ph *phase, f func(r int, dst, src []float32)) {
	e.k.parallel(e.height(ph.dst), 4, func(from, to int) {
		for r := from; r < to; r++ {
			f(r, e.row(ph.dst, r), e.row(ph.src, r))
		}
	})
}

// rotate applies RoPE to heads from column col of a row.
func (e *goExecutor) rotate(ph *phase, row []float32, r int, col, heads int32) {
	hd := int(ph.headDim)
	at := int(e.step.positions[r]) * hd
	table := e.plan.weights[ph.table].vector[at : at+hd]
	for h := range int(heads) {
		c := int(col) + h*hd
		rope(row[c:c+hd], table, ph.halfPairs)
	}
}

// goMatrix is a packed matrix: its parts, stacked.
type goMatrix struct{ parts []goPart }

// goPart holds one tensor, as floats or as quantised groups.
type goPart struct {
	rows, cols int
	floats     []float32 // [rows, cols], or nil and:
	group      int       // columns a group
	q          []int8    // [rows, cols]
	s          []float32 // [rows, cols/group]
	m          []float32 // the same, or nil
}

func (k *goKernels) pack(parts []device.Tensor) (packed, error) {
	mat := &goMatrix{}
	for _, t := range parts {
		p := goPart{rows: t.Rows, cols: t.Cols, group: groupCols(t.Type)}
		if p.group == 0 {
			p.floats = make([]float32, t.Rows*t.Cols)
			dequantize(t.Type, t.Data, p.floats)
			mat.parts = append(mat.parts, p)
			continue
		}
		p.q = make([]int8, t.Rows*t.Cols)
		p.s = make([]float32, len(p.q)/p.group)
		if hasMin(t.Type) {
			p.m = make([]float32, len(p.s))
		}
		n, size := t.Type.BlockLen(), t.Type.BlockBytes()
		k.parallel(len(p.q)/n, 1024, func(from, to int) {
			var g groups
			for b := from; b < to; b++ {
				g.decode(t.Type, t.Data[b*size:(b+1)*size])
				copy(p.q[b*n:(b+1)*n], g.q[:])
				copy(p.s[b*n/p.group:(b+1)*n/p.group], g.s[:])
				if p.m != nil {
					copy(p.m[b*n/p.group:(b+1)*n/p.group], g.m[:])
				}
			}
		})
		mat.parts = append(mat.parts, p)
	}
	return mat, nil
}

func (m *goMatrix) bytes() int64 {
	var n int64
	for _, p := range m.parts {
		n += int64(len(p.floats)+len(p.s)+len(p.m))*4 + int64(len(p.q))
	}
	return n
}

func (m *goMatrix) free() { m.parts = nil }
