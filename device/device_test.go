package device

import (
	"strings"
	"testing"
)

// shape is a weight without numbers.
type shape struct{ rows, cols int }

func (s shape) Rows() int    { return s.rows }
func (s shape) Cols() int    { return s.cols }
func (s shape) Bytes() int64 { return int64(s.rows*s.cols) * 4 }

func TestTypesAreGGUFs(t *testing.T) {
	// Bytes a weight of each type in bits, as the format's documents give them.
	bits := map[Type]float64{F32: 32, F16: 16, BF16: 16, Q4_0: 4.5, Q4_1: 5, Q5_0: 5.5, Q5_1: 6, Q8_0: 8.5,
		Q2_K: 2.625, Q3_K: 3.4375, Q4_K: 4.5, Q5_K: 5.5, Q6_K: 6.5625}
	for typ := F32; typ <= Q6_K; typ++ {
		if got := 8 * float64(typ.BlockBytes()) / float64(typ.BlockLen()); !typ.Valid() || got != bits[typ] {
			t.Errorf("%v has %v bits a weight, want %v", typ, got, bits[typ])
		}
	}
	if Type(0).Valid() || I8.Valid() || (I8+1).String() != "unknown" {
		t.Error("types beyond the list are valid")
	}
}

func TestPageBytes(t *testing.T) {
	l := KVLayout{Pages: 3, BlockTokens: 16, Layers: 30, KVHeads: 3, HeadDim: 64, Type: F16}
	if got := l.PageBytes(); got != 16*30*2*3*64*2 {
		t.Errorf("a page has %d bytes", got)
	}
	l.Type = I8
	if got := l.PageBytes(); got != 16*30*2*3*(64+2) {
		t.Errorf("a page of I8 has %d bytes", got)
	}
}

// TestBuilder writes one layer and looks at what stands there.
func TestBuilder(t *testing.T) {
	b := NewBuilder()
	x := b.Embed(shape{100, 32})
	qkv := b.MatMul(b.RMSNorm(x, shape{1, 32}, 1e-5), shape{64, 32}, nil)
	b.RoPE(qkv, shape{128, 16}, 0, 2, 16, false)
	b.StoreKV(qkv, 0, 1, 16, 32, 48)
	a := b.Attention(qkv, 0, 2, 1, 16, 0, 0.25, 0)
	b.MatMulAdd(x, a, shape{32, 32})
	b.MatMulAdd(x, b.SwiGLU(b.MatMul(x, shape{96, 32}, nil)), shape{32, 48})
	logits := b.MatMul(b.Gather(x), shape{100, 32}, nil)
	p := b.Build(logits)

	var kinds []Kind
	for _, op := range p.Ops {
		kinds = append(kinds, op.Kind)
	}
	want := []Kind{KindEmbed, KindRMSNorm, KindMatMul, KindRoPE, KindStoreKV, KindAttention, KindMatMul, KindMatMul, KindSwiGLU, KindMatMul, KindGather, KindMatMul}
	if len(kinds) != len(want) {
		t.Fatalf("operations %v, want %v", kinds, want)
	}
	for i := range want {
		if kinds[i] != want[i] {
			t.Errorf("operation %d is %v, want %v", i, kinds[i], want[i])
		}
	}
	if p.Logits != logits || p.Widths[logits] != 100 || !p.Sample[logits] || p.Sample[x] || p.Widths[a] != 32 {
		t.Errorf("buffers %v, a row per sample %v, logits %d", p.Widths, p.Sample, p.Logits)
	}
	if !p.Ops[6].Accumulate || p.Ops[6].Dst != x || p.Ops[2].Accumulate {
		t.Error("only MatMulAdd adds to its destination")
	}
}

func TestBuilderRefusesWrongShapes(t *testing.T) {
	for name, write := range map[string]func(b *Builder, x Buf){
		"RMSNorm: weight has 31 columns":    func(b *Builder, x Buf) { b.RMSNorm(x, shape{1, 31}, 0) },
		"MatMul: weight has 31 columns":     func(b *Builder, x Buf) { b.MatMul(x, shape{8, 31}, nil) },
		"MatMulAdd: weight is 8×32":         func(b *Builder, x Buf) { b.MatMulAdd(x, x, shape{8, 32}) },
		"RoPE: columns beyond":              func(b *Builder, x Buf) { b.RoPE(x, shape{8, 16}, 8, 2, 16, false) },
		"RoPE: table has 8 columns":         func(b *Builder, x Buf) { b.RoPE(x, shape{8, 8}, 0, 2, 16, false) },
		"StoreKV: columns beyond":           func(b *Builder, x Buf) { b.StoreKV(x, 0, 1, 16, 0, 24) },
		"Attention: 3 heads over 2":         func(b *Builder, x Buf) { b.Attention(x, 0, 3, 2, 8, 0, 1, 0) },
		"Attention: columns beyond":         func(b *Builder, x Buf) { b.Attention(x, 0, 4, 2, 16, 0, 1, 0) },
		"Attention: a window of -1":         func(b *Builder, x Buf) { b.Attention(x, 0, 1, 1, 16, 0, 1, -1) },
		"SwiGLU: odd width":                 func(b *Builder, x Buf) { b.SwiGLU(b.MatMul(x, shape{3, 32}, nil)) },
		"Build: logits must have a row per": func(b *Builder, x Buf) { b.Build(x) },
	} {
		t.Run(name, func(t *testing.T) {
			defer func() {
				if text, _ := recover().(string); !strings.HasPrefix(text, "device: "+name) {
					t.Errorf("panics with %q", text)
				}
			}()
			b := NewBuilder()
			write(b, b.Embed(shape{100, 32}))
		})
	}
}
