package cpu

import (
	"fmt"
	"math"
	"slices"

	"github.com/quire-serve/quire/device"
)

// A plan is a program as its executors run it: phases with a barrier after each, few enough that a
// decode step does not spend its time waiting. It holds numbers only, so that one call can hand the
// whole of it to C. A Llama layer has five phases:
//
//	matmul     src x, norm               → qkv
//	attention  rope q, rope k, store     → attended
//	matmul     accumulate                → x
//	matmul     src x, norm               → gate_up
//	matmul     swiglu, accumulate        → x
//
// An executor may cut a phase further (a row's norm is cheap to repeat in each thread for one row
// and wants a barrier for hundreds); the results are the same.
type plan struct {
	phases []phase
	widths []int32 // columns of each activation buffer
	sample []bool  // the buffer has a row per sample
	// home is the buffer in whose memory each lies: its own index, or an earlier buffer of the same
	// shape that nothing reads any more. -1: it was fused away, or holds the logits, which the runner
	// keeps.
	home    []int32
	weights []*weight
	logits  int32 // buffer
	vocab   int32 // its width
	// maxPositions bounds positions: the rows of the smallest RoPE table, or 0 without one.
	maxPositions int32
	embedRows    int32 // the tokens are below this; 0 without an embedding
	// windows is how many tokens before its own, itself included, the widest attention over a group of
	// pages sees of a row; 0 is all.
	windows [2]int32
	limits  device.Limits
	kv      device.KVLayout
}

type phaseKind int32

const (
	// phaseEmbed: dst[T] = w[token].
	phaseEmbed phaseKind = iota + 1
	// phaseMatMul: dst = prepare(src)·wᵀ (+ bias), or added to dst if accumulate.
	phaseMatMul
	// phaseAttention: if ropeQ and ropeK, rotate; if store, store K and V of every row; then attend.
	// src is not read by later phases if ropeQ or ropeK is set, so the rotated values need not be
	// written back.
	phaseAttention
	// The rest are operations that did not fit a pattern.
	phaseNorm    // dst = RMSNorm(src)
	phaseSwiGLU  // dst[w] = SwiGLU(src[2w])
	phaseGather  // dst[S] = src[row of sample]
	phaseRoPE    // rotate heads heads of dst from qCol, in place
	phaseStoreKV // store K (kCol) and V (vCol) of src
)

// prepareKind is what a matmul does to a row of its input before it multiplies.
type prepareKind int32

const (
	prepareNone   prepareKind = iota
	prepareNorm               // RMSNorm by norm and eps
	prepareSwiGLU             // the input is twice as wide as w has columns
)

// phase is one step between barriers. Buffers and weights are indices, -1 for none.
type phase struct {
	kind     phaseKind
	dst, src int32

	prepare    prepareKind
	gather     bool // input row i is src's row of sample i (src has a row per token, dst one per sample)
	accumulate bool
	w          int32 // embedding or matrix
	bias       int32 // F32 vector
	norm       int32 // F32 vector
	eps        float32

	table          int32 // F32 [positions, headDim]: cosines, then sines
	halfPairs      bool
	ropeQ, ropeK   bool
	store          bool
	group, layer   int32 // of the pages, and which of its layers
	heads, kvHeads int32
	headDim        int32
	qCol           int32
	kCol, vCol     int32
	scale          float32
	window         int32 // tokens that a row attends to; 0 is all
}

// compile checks that p can run over pages of the layout kv and fuses its operations into phases.
func compile(p *device.Program, kv device.KVLayout, limits device.Limits) (*plan, error) {
	if limits.Rows < 1 || limits.Sequences < 1 || limits.Samples < 0 || limits.Depth < 1 {
		return nil, fmt.Errorf("cpu: limits must be at least 1 row, 1 sequence, 0 samples, depth 1; have %+v", limits)
	}
	c := compiler{prog: p, plan: &plan{logits: int32(p.Logits), limits: limits, kv: kv, sample: p.Sample}, index: map[*weight]int32{}}
	for _, w := range p.Widths {
		c.plan.widths = append(c.plan.widths, int32(w))
	}
	c.plan.vocab = c.plan.widths[p.Logits]
	if err := c.place(); err != nil {
		return nil, err
	}
	for i := range p.Ops {
		if err := c.check(i); err != nil {
			return nil, err
		}
	}
	if rows := c.plan.embedRows; rows > 0 && rows < c.plan.vocab {
		return nil, fmt.Errorf("cpu: %d logits over an embedding of %d tokens: a drawn token could not be an input", c.plan.vocab, rows)
	}
	for i := 0; i < len(p.Ops); {
		i += c.fuse(i)
	}
	c.plan.settle()
	for g := range c.plan.windows {
		c.plan.windows[g] = c.plan.widest(int32(g))
	}
	return c.plan, nil
}

// widest returns the widest window of the attentions over a group of pages, 0 if one has none.
func (p *plan) widest(group int32) (window int32) {
	for i := range p.phases {
		switch ph := &p.phases[i]; {
		case ph.kind != phaseAttention || ph.group != group:
		case ph.window == 0:
			return 0
		default:
			window = max(window, ph.window)
		}
	}
	return window
}

// settle gives each buffer its home. Layers follow one another in the same few buffers then, which
// stay in the processor's caches; a buffer a layer would be hundreds of megabytes of cold memory.
func (p *plan) settle() {
	last := make([]int, len(p.widths)) // the phase that mentions the buffer last
	for i, ph := range p.phases {
		for _, b := range []int32{ph.dst, ph.src} {
			if b >= 0 {
				last[b] = i
			}
		}
	}
	type shape struct {
		width  int32
		sample bool
	}
	p.home = make([]int32, len(p.widths))
	for b := range p.home {
		p.home[b] = -1
	}
	free := map[shape][]int32{} // homes that nothing lies in
	for i, ph := range p.phases {
		if b := ph.dst; b >= 0 && b != p.logits && p.home[b] < 0 {
			s := shape{p.widths[b], p.sample[b]}
			p.home[b] = b
			if n := len(free[s]); n > 0 {
				p.home[b], free[s] = free[s][n-1], free[s][:n-1]
			}
		}
		for _, b := range []int32{ph.dst, ph.src} {
			if b >= 0 && last[b] == i && p.home[b] >= 0 {
				s := shape{p.widths[b], p.sample[b]}
				if !slices.Contains(free[s], p.home[b]) { // dst and src may be one
					free[s] = append(free[s], p.home[b])
				}
			}
		}
	}
}

type compiler struct {
	prog   *device.Program
	plan   *plan
	index  map[*weight]int32
	places []place // of the layers
}

// place is where a layer lies in the pages.
type place struct{ group, layer int32 }

// place finds every layer's place: in its group, layers stand in order.
func (c *compiler) place() error {
	kv := c.plan.kv
	c.places = make([]place, kv.Layers+kv.WindowLayers)
	if kv.Groups() == 2 {
		for i := range c.prog.Ops {
			if op := &c.prog.Ops[i]; op.Kind == device.KindAttention && op.Window > 0 && op.Layer >= 0 && op.Layer < len(c.places) {
				c.places[op.Layer].group = 1
			}
		}
	}
	var layers [2]int32
	for i := range c.places {
		at := &c.places[i]
		at.layer = layers[at.group]
		layers[at.group]++
	}
	if int(layers[1]) != kv.WindowLayers {
		return fmt.Errorf("cpu: %d layers of %d have a window, the second group of pages has %d", layers[1], len(c.places), kv.WindowLayers)
	}
	return nil
}

func (c *compiler) weight(w device.Weight) int32 {
	if w == nil {
		return -1
	}
	own := w.(*weight)
	i, ok := c.index[own]
	if !ok {
		i = int32(len(c.plan.weights))
		c.index[own] = i
		c.plan.weights = append(c.plan.weights, own)
	}
	return i
}

// check validates operation i: weights of this device, vectors in F32, layers and heads that the
// pages have.
func (c *compiler) check(i int) error {
	op := &c.prog.Ops[i]
	for _, w := range []device.Weight{op.W, op.Bias, op.Table} {
		if w == nil {
			continue
		}
		if own, ok := w.(*weight); !ok || own == nil {
			return fmt.Errorf("cpu: operation %d: weight of another device", i)
		}
	}
	vector := func(what string, w device.Weight, cols int) error {
		if w.(*weight).vector == nil {
			return fmt.Errorf("cpu: operation %d: %s must be one tensor, of F32, or of F16 or BF16 with one row: %w", i, what, device.ErrUnsupported)
		}
		if w.Cols() != cols || w.Rows() != 1 && op.Kind != device.KindRoPE {
			return fmt.Errorf("cpu: operation %d: %s is %d×%d, want %d columns", i, what, w.Rows(), w.Cols(), cols)
		}
		return nil
	}
	switch op.Kind {
	case device.KindEmbed:
		if op.W.Rows() < 1 {
			return fmt.Errorf("cpu: operation %d: empty embedding", i)
		}
		rows := int32(op.W.Rows())
		if c.plan.embedRows == 0 || rows < c.plan.embedRows {
			c.plan.embedRows = rows
		}
	case device.KindRMSNorm:
		return vector("the norm's weight", op.W, c.prog.Widths[op.Src])
	case device.KindMatMul:
		if op.Bias != nil {
			return vector("the bias", op.Bias, op.W.Rows())
		}
	case device.KindRoPE:
		if op.HeadDim%2 != 0 {
			return fmt.Errorf("cpu: operation %d: odd head dimension %d: %w", i, op.HeadDim, device.ErrUnsupported)
		}
		if n := int32(op.Table.Rows()); c.plan.maxPositions == 0 || n < c.plan.maxPositions {
			c.plan.maxPositions = n
		}
		return vector("the RoPE table", op.Table, op.HeadDim)
	case device.KindStoreKV, device.KindAttention:
		kv := c.plan.kv
		if op.Layer < 0 || op.Layer >= len(c.places) || op.KVHeads != kv.KVHeads || op.HeadDim != kv.HeadDim {
			return fmt.Errorf("cpu: operation %d: layer %d with %d KV heads of %d does not fit pages of %d layers, %d KV heads of %d",
				i, op.Layer, op.KVHeads, op.HeadDim, len(c.places), kv.KVHeads, kv.HeadDim)
		}
		if op.Window < 0 || op.Window > math.MaxInt32 {
			return fmt.Errorf("cpu: operation %d: window %d, want 0 to %d", i, op.Window, math.MaxInt32)
		}
	case device.KindSwiGLU, device.KindGather:
	default:
		return fmt.Errorf("cpu: operation %d: kind %d: %w", i, op.Kind, device.ErrUnsupported)
	}
	return nil
}

// fuse appends the phase that starts at operation i and returns how many operations it covers.
func (c *compiler) fuse(i int) int {
	if n := c.fuseMatMul(i); n > 0 {
		return n
	}
	if n := c.fuseAttention(i); n > 0 {
		return n
	}
	op := &c.prog.Ops[i]
	ph := phase{dst: int32(op.Dst), src: int32(op.Src), w: -1, bias: -1, norm: -1, table: -1, eps: op.Eps, scale: op.Scale, accumulate: op.Accumulate,
		halfPairs: op.HalfPairs, heads: int32(op.Heads), kvHeads: int32(op.KVHeads), headDim: int32(op.HeadDim)}
	switch op.Kind {
	case device.KindEmbed:
		ph.kind, ph.src, ph.w = phaseEmbed, -1, c.weight(op.W)
	case device.KindRMSNorm:
		ph.kind, ph.norm = phaseNorm, c.weight(op.W)
	case device.KindMatMul:
		ph.kind, ph.w, ph.bias = phaseMatMul, c.weight(op.W), c.weight(op.Bias)
	case device.KindRoPE:
		ph.kind, ph.table, ph.qCol = phaseRoPE, c.weight(op.Table), int32(op.Col)
	case device.KindStoreKV:
		ph.kind, ph.dst, ph.kCol, ph.vCol = phaseStoreKV, -1, int32(op.Col), int32(op.Col2)
		ph.group, ph.layer = c.places[op.Layer].group, c.places[op.Layer].layer
	case device.KindAttention:
		ph.kind, ph.qCol, ph.window = phaseAttention, int32(op.Col), int32(op.Window)
		ph.group, ph.layer = c.places[op.Layer].group, c.places[op.Layer].layer
	case device.KindSwiGLU:
		ph.kind = phaseSwiGLU
	case device.KindGather:
		ph.kind = phaseGather
	}
	c.plan.phases = append(c.plan.phases, ph)
	return 1
}

// fuseMatMul covers [Gather] [RMSNorm | SwiGLU] MatMul, where nothing else reads what is between.
func (c *compiler) fuseMatMul(i int) int {
	ops := c.prog.Ops
	ph := phase{kind: phaseMatMul, src: int32(ops[i].Src), bias: -1, norm: -1, table: -1}
	j := i
	if ops[j].Kind == device.KindGather {
		if !c.onlyNext(j) {
			return 0
		}
		ph.gather = true
		j++
	}
	switch ops[j].Kind {
	case device.KindRMSNorm, device.KindSwiGLU:
		if !c.onlyNext(j) {
			return 0
		}
		ph.prepare = prepareSwiGLU
		if ops[j].Kind == device.KindRMSNorm {
			ph.prepare, ph.norm, ph.eps = prepareNorm, c.weight(ops[j].W), ops[j].Eps
		}
		j++
	}
	if ops[j].Kind != device.KindMatMul || j == i {
		return 0
	}
	ph.dst, ph.w, ph.bias, ph.accumulate = int32(ops[j].Dst), c.weight(ops[j].W), c.weight(ops[j].Bias), ops[j].Accumulate
	c.plan.phases = append(c.plan.phases, ph)
	return j - i + 1
}

// fuseAttention covers RoPE q, RoPE k, StoreKV, Attention over one buffer that nothing reads later.
func (c *compiler) fuseAttention(i int) int {
	ops := c.prog.Ops
	if i+3 >= len(ops) {
		return 0
	}
	q, k, st, at := &ops[i], &ops[i+1], &ops[i+2], &ops[i+3]
	if q.Kind != device.KindRoPE || k.Kind != device.KindRoPE || st.Kind != device.KindStoreKV || at.Kind != device.KindAttention {
		return 0
	}
	if q.Col == at.Col && q.Heads == at.Heads && k.Col == st.Col && k.Heads == st.KVHeads {
		// In the usual order already.
	} else if k.Col == at.Col && k.Heads == at.Heads && q.Col == st.Col && q.Heads == st.KVHeads {
		q, k = k, q
	} else {
		return 0
	}
	buf := at.Src
	if q.Dst != buf || k.Dst != buf || st.Src != buf || q.Table != k.Table || q.HalfPairs != k.HalfPairs || st.Layer != at.Layer ||
		q.HeadDim != at.HeadDim || k.HeadDim != at.HeadDim || c.readAfter(i+4, buf) {
		return 0
	}
	in := c.places[at.Layer]
	c.plan.phases = append(c.plan.phases, phase{kind: phaseAttention, dst: int32(at.Dst), src: int32(buf), w: -1, bias: -1, norm: -1,
		table: c.weight(q.Table), halfPairs: q.HalfPairs, ropeQ: true, ropeK: true, store: true, group: in.group, layer: in.layer,
		heads: int32(at.Heads), kvHeads: int32(at.KVHeads), headDim: int32(at.HeadDim),
		qCol: int32(at.Col), kCol: int32(st.Col), vCol: int32(st.Col2), scale: at.Scale, window: int32(at.Window)})
	return 4
}

// onlyNext reports whether what operation j writes is read by operation j+1 alone, as its input.
func (c *compiler) onlyNext(j int) bool {
	ops := c.prog.Ops
	if j+1 >= len(ops) || ops[j+1].Src != ops[j].Dst || ops[j+1].Dst == ops[j].Dst || ops[j+1].Kind == device.KindEmbed {
		return false
	}
	return !c.readAfter(j+2, ops[j].Dst)
}

// readAfter reports whether buffer b is read by operation i or a later one before it is written
// anew, or holds the logits. Buffers are written whole only by the operation that made them, so any
// mention counts.
func (c *compiler) readAfter(i int, b device.Buf) bool {
	if c.prog.Logits == b {
		return true
	}
	for _, op := range c.prog.Ops[i:] {
		if op.Kind != device.KindEmbed && op.Src == b || op.Kind != device.KindStoreKV && op.Dst == b {
			return true
		}
	}
	return false
}

// height is the number of rows that buffer b has at most.
func (p *plan) height(b int32) int {
	if p.sample[b] {
		return p.limits.Samples
	}
	return p.limits.Rows
}

// bufferBytes estimates what an executor allocates.
func (p *plan) bufferBytes() int64 {
	var n int64
	for i, w := range p.widths {
		if p.home[i] == int32(i) || int32(i) == p.logits {
			n += int64(p.height(int32(i))) * int64(w) * 4
		}
	}
	return n
}
