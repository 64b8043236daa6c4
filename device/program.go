package device

import "fmt"

// Kind names an operation.
type Kind uint8

// Operations. T is the number of rows of the step, S the number of its samples; src and dst are
// activation buffers of float32.
const (
	// KindEmbed: dst[T,w] = W[token], W [vocab, w].
	KindEmbed Kind = iota + 1
	// KindRMSNorm: dst = src / sqrt(mean(src²)+Eps) · W, W [1, w].
	KindRMSNorm
	// KindMatMul: dst[T,n] = src[T,k] · Wᵀ, W [n, k]; plus Bias [1, n] if set; added to what dst
	// holds if Accumulate.
	KindMatMul
	// KindRoPE rotates Heads heads of HeadDim from column Col of dst in place, by the row of Table
	// [positions, HeadDim] (cosines of the HeadDim/2 pairs, then sines) that the position selects.
	// Pairs are (2i, 2i+1), or (i, i+HeadDim/2) if HalfPairs.
	KindRoPE
	// KindStoreKV writes K from column Col and V from column Col2 of src [T, ·] into the sequence's
	// pages of Layer. Where the cache has two groups of pages, those of a layer whose attention has a
	// Window are in the second.
	KindStoreKV
	// KindAttention: dst[T, Heads·HeadDim] = causal softmax(q·K·Scale)·V for q from column Col of
	// src, over the sequence's pages of Layer; query head h reads KV head h·KVHeads/Heads. With a
	// Window, the position p sees positions p-Window+1 to p only.
	KindAttention
	// KindSwiGLU: dst[T,w] = silu(src[T, :w]) · src[T, w:].
	KindSwiGLU
	// KindGather: dst[S,w] = src[row of sample].
	KindGather
)

// Buf names an activation buffer of a program.
type Buf int32

// Op is one operation; which fields count depends on Kind.
type Op struct {
	Kind     Kind
	Dst, Src Buf
	W, Bias  Weight
	Table    Weight // F32

	Eps        float32
	Scale      float32
	Accumulate bool
	HalfPairs  bool

	Layer, Heads, KVHeads, HeadDim int // Layer counts all layers, whatever group they are in
	Col, Col2                      int
	Window                         int // 0: all before it
}

// Program is a forward pass: operations in order. Logits names the buffer [S, vocab] that samples
// are drawn from.
type Program struct {
	Ops    []Op
	Widths []int  // columns of each buffer
	Sample []bool // the buffer has a row per sample, not per token
	Logits Buf
}

// Builder appends operations to a program. Mismatched shapes are a programmer's error and panic.
type Builder struct{ p Program }

// NewBuilder returns an empty program.
func NewBuilder() *Builder { return &Builder{} }

func (b *Builder) buf(width int, sample bool) Buf {
	b.p.Widths = append(b.p.Widths, width)
	b.p.Sample = append(b.p.Sample, sample)
	return Buf(len(b.p.Widths) - 1)
}

func (b *Builder) add(op Op) { b.p.Ops = append(b.p.Ops, op) }

func check(ok bool, format string, args ...any) {
	if !ok {
		panic("device: " + fmt.Sprintf(format, args...))
	}
}

// Embed looks up the step's tokens.
func (b *Builder) Embed(w Weight) Buf {
	dst := b.buf(w.Cols(), false)
	b.add(Op{Kind: KindEmbed, Dst: dst, W: w})
	return dst
}

// RMSNorm normalises src's rows.
func (b *Builder) RMSNorm(src Buf, w Weight, eps float32) Buf {
	check(w.Cols() == b.p.Widths[src], "RMSNorm: weight has %d columns, buffer %d", w.Cols(), b.p.Widths[src])
	dst := b.buf(w.Cols(), b.p.Sample[src])
	b.add(Op{Kind: KindRMSNorm, Dst: dst, Src: src, W: w, Eps: eps})
	return dst
}

// MatMul multiplies src by w transposed. bias may be nil.
func (b *Builder) MatMul(src Buf, w, bias Weight) Buf {
	check(w.Cols() == b.p.Widths[src], "MatMul: weight has %d columns, buffer %d", w.Cols(), b.p.Widths[src])
	dst := b.buf(w.Rows(), b.p.Sample[src])
	b.add(Op{Kind: KindMatMul, Dst: dst, Src: src, W: w, Bias: bias})
	return dst
}

// MatMulAdd adds src times w transposed to dst.
func (b *Builder) MatMulAdd(dst, src Buf, w Weight) {
	check(w.Cols() == b.p.Widths[src] && w.Rows() == b.p.Widths[dst], "MatMulAdd: weight is %d×%d, buffers %d and %d", w.Rows(), w.Cols(), b.p.Widths[dst], b.p.Widths[src])
	b.add(Op{Kind: KindMatMul, Dst: dst, Src: src, W: w, Accumulate: true})
}

// RoPE rotates heads of buf from column col in place.
func (b *Builder) RoPE(buf Buf, table Weight, col, heads, headDim int, halfPairs bool) {
	check(table.Cols() == headDim, "RoPE: table has %d columns, want %d", table.Cols(), headDim)
	check(col+heads*headDim <= b.p.Widths[buf], "RoPE: columns beyond the buffer")
	b.add(Op{Kind: KindRoPE, Dst: buf, Src: buf, Table: table, Col: col, Heads: heads, HeadDim: headDim, HalfPairs: halfPairs})
}

// StoreKV puts src's K (from column kCol) and V (from vCol) into the cache.
func (b *Builder) StoreKV(src Buf, layer, kvHeads, headDim, kCol, vCol int) {
	check(max(kCol, vCol)+kvHeads*headDim <= b.p.Widths[src], "StoreKV: columns beyond the buffer")
	b.add(Op{Kind: KindStoreKV, Src: src, Layer: layer, KVHeads: kvHeads, HeadDim: headDim, Col: kCol, Col2: vCol})
}

// Attention attends with the queries in src from column qCol over the last window tokens in the cache
// of layer, the query's own included; 0 is all.
func (b *Builder) Attention(src Buf, layer, heads, kvHeads, headDim, qCol int, scale float32, window int) Buf {
	check(window >= 0, "Attention: a window of %d tokens", window)
	check(heads%kvHeads == 0, "Attention: %d heads over %d KV heads", heads, kvHeads)
	check(qCol+heads*headDim <= b.p.Widths[src], "Attention: columns beyond the buffer")
	dst := b.buf(heads*headDim, false)
	b.add(Op{Kind: KindAttention, Dst: dst, Src: src, Layer: layer, Heads: heads, KVHeads: kvHeads, HeadDim: headDim, Col: qCol, Scale: scale, Window: window})
	return dst
}

// SwiGLU gates the second half of src's columns by the first.
func (b *Builder) SwiGLU(src Buf) Buf {
	check(b.p.Widths[src]%2 == 0, "SwiGLU: odd width")
	dst := b.buf(b.p.Widths[src]/2, b.p.Sample[src])
	b.add(Op{Kind: KindSwiGLU, Dst: dst, Src: src})
	return dst
}

// Gather keeps the rows that are sampled.
func (b *Builder) Gather(src Buf) Buf {
	dst := b.buf(b.p.Widths[src], true)
	b.add(Op{Kind: KindGather, Dst: dst, Src: src})
	return dst
}

// Build ends the program: samples are drawn from logits.
func (b *Builder) Build(logits Buf) *Program {
	check(b.p.Sample[logits], "Build: logits must have a row per sample")
	b.p.Logits = logits
	p := b.p
	return &p
}
