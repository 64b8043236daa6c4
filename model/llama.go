package model

import (
	"fmt"
	"math"

	"github.com/quire-serve/quire/device"
)

// llama writes the forward pass of the Llama family: pre-norm blocks of grouped-query attention
// with rotary positions and of a gated feed-forward, around one residual stream x.
func (l *loader) llama(c Config, context int) (*device.Program, error) {
	const embedName, headName = "token_embd.weight", "output.weight"
	embed := l.matrix(embedName, c.Hidden, part{embedName, c.Vocab})
	head := embed
	if l.has(headName) {
		head = l.matrix(headName, c.Hidden, part{headName, c.Vocab})
	}
	rope := l.rope(c, context, l.ropeFactors(c))
	finalNorm := l.vector("output_norm.weight", c.Hidden)
	blocks := make([]llamaBlock, c.Layers)
	for i := range blocks {
		blocks[i] = l.llamaBlock(c, i)
		if l.err != nil {
			break // a file may claim thousands of layers
		}
	}
	if l.err != nil {
		return nil, l.err
	}

	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	scale := float32(1 / math.Sqrt(float64(c.HeadDim)))
	b := device.NewBuilder()
	x := b.Embed(embed)
	for i, w := range blocks {
		qkv := b.MatMul(b.RMSNorm(x, w.attnNorm, c.RMSEps), w.qkv, w.qkvBias)
		b.RoPE(qkv, rope, 0, c.Heads, c.HeadDim, c.HalfPairs)
		b.RoPE(qkv, rope, q, c.KVHeads, c.HeadDim, c.HalfPairs)
		b.StoreKV(qkv, i, c.KVHeads, c.HeadDim, q, q+kv)
		b.MatMulAdd(x, b.Attention(qkv, i, c.Heads, c.KVHeads, c.HeadDim, 0, scale, c.Window(i)), w.out)
		gateUp := b.MatMul(b.RMSNorm(x, w.ffnNorm, c.RMSEps), w.gateUp, nil)
		b.MatMulAdd(x, b.SwiGLU(gateUp), w.down)
	}
	last := b.RMSNorm(b.Gather(x), finalNorm, c.RMSEps)
	return b.Build(b.MatMul(last, head, nil)), nil
}

// llamaBlock holds the weights of one layer. Matrices that read the same input are stacked, so
// that each input is read once.
type llamaBlock struct {
	attnNorm, ffnNorm device.Weight
	qkv, qkvBias, out device.Weight // qkvBias may be nil
	gateUp, down      device.Weight
}

func (l *loader) llamaBlock(c Config, i int) llamaBlock {
	name := func(s string) string { return fmt.Sprintf("blk.%d.%s", i, s) }
	q, kv := c.Heads*c.HeadDim, c.KVHeads*c.HeadDim
	w := llamaBlock{
		attnNorm: l.vector(name("attn_norm.weight"), c.Hidden),
		qkv: l.matrix(name("attn_qkv"), c.Hidden,
			part{name("attn_q.weight"), q}, part{name("attn_k.weight"), kv}, part{name("attn_v.weight"), kv}),
		out:     l.matrix(name("attn_output.weight"), q, part{name("attn_output.weight"), c.Hidden}),
		ffnNorm: l.vector(name("ffn_norm.weight"), c.Hidden),
		gateUp: l.matrix(name("ffn_gate_up"), c.Hidden,
			part{name("ffn_gate.weight"), c.FFN}, part{name("ffn_up.weight"), c.FFN}),
		down: l.matrix(name("ffn_down.weight"), c.FFN, part{name("ffn_down.weight"), c.Hidden}),
	}
	if architectures[c.Arch].qkvBias || l.has(name("attn_q.bias")) {
		w.qkvBias = l.joined(name("attn_qkv.bias"),
			part{name("attn_q.bias"), q}, part{name("attn_k.bias"), kv}, part{name("attn_v.bias"), kv})
	}
	return w
}

// ropeFactors reads the divisors of the rotary frequencies that Llama 3.1 and later files carry.
func (l *loader) ropeFactors(c Config) []float32 {
	const name = "rope_freqs.weight"
	if !l.has(name) {
		return nil
	}
	factors := l.floats(name, c.HeadDim/2)
	for i, f := range factors {
		if !(f > 0) {
			l.fail("tensor %q: factor %d is %v; it must be positive", name, i, f)
		}
	}
	return factors
}
