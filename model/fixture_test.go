package model

import (
	"bytes"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model/gguf"
)

// fixture is a small model file that tests put together, and change to see what comes of it.
type fixture struct {
	metadata []gguf.KeyValue
	tensors  []gguf.Tensor
}

const (
	fixtureLayers, fixtureHidden, fixtureFFN = 2, 64, 96
	fixtureHeads, fixtureKVHeads             = 4, 2
	fixtureHeadDim                           = fixtureHidden / fixtureHeads
	fixtureVocab                             = 256
)

// newFixture makes a model of arch with random F32 weights and a vocabulary of single bytes.
func newFixture(arch string) *fixture {
	f := &fixture{}
	f.set("general.architecture", arch)
	f.set("general.name", "Fixture")
	f.set(arch+".block_count", uint32(fixtureLayers))
	f.set(arch+".embedding_length", uint32(fixtureHidden))
	f.set(arch+".feed_forward_length", uint32(fixtureFFN))
	f.set(arch+".attention.head_count", uint32(fixtureHeads))
	f.set(arch+".attention.head_count_kv", uint32(fixtureKVHeads))
	f.set(arch+".attention.layer_norm_rms_epsilon", float32(1e-5))
	f.set(arch+".rope.freq_base", float32(1000))
	f.set(arch+".context_length", uint32(128))
	f.set("tokenizer.ggml.model", "gpt2")
	f.set("tokenizer.ggml.pre", "gpt-2")
	f.set("tokenizer.ggml.tokens", byteTokens())
	f.set("tokenizer.ggml.merges", []string{})
	f.set("tokenizer.ggml.eos_token_id", uint32(0))

	rng := rand.New(rand.NewPCG(7, 7))
	kv := uint64(fixtureKVHeads * fixtureHeadDim)
	f.random(rng, "token_embd.weight", fixtureHidden, fixtureVocab)
	f.random(rng, "output_norm.weight", fixtureHidden)
	for i := range fixtureLayers {
		name := func(s string) string { return fmt.Sprintf("blk.%d.%s", i, s) }
		f.random(rng, name("attn_norm.weight"), fixtureHidden)
		f.random(rng, name("attn_q.weight"), fixtureHidden, fixtureHidden)
		f.random(rng, name("attn_k.weight"), fixtureHidden, kv)
		f.random(rng, name("attn_v.weight"), fixtureHidden, kv)
		f.random(rng, name("attn_output.weight"), fixtureHidden, fixtureHidden)
		f.random(rng, name("ffn_norm.weight"), fixtureHidden)
		f.random(rng, name("ffn_gate.weight"), fixtureHidden, fixtureFFN)
		f.random(rng, name("ffn_up.weight"), fixtureHidden, fixtureFFN)
		f.random(rng, name("ffn_down.weight"), fixtureFFN, fixtureHidden)
		if arch == "qwen2" {
			f.random(rng, name("attn_q.bias"), fixtureHidden)
			f.random(rng, name("attn_k.bias"), kv)
			f.random(rng, name("attn_v.bias"), kv)
		}
	}
	return f
}

// byteTokens is the byte-level alphabet: a letter for each byte.
func byteTokens() []string {
	var tokens []string
	other := rune(256)
	for b := range rune(256) {
		if b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE {
			tokens = append(tokens, string(b))
		} else {
			tokens = append(tokens, string(other))
			other++
		}
	}
	return tokens
}

// set changes or adds a key; nil removes it.
func (f *fixture) set(key string, value any) {
	i := slices.IndexFunc(f.metadata, func(kv gguf.KeyValue) bool { return kv.Key == key })
	switch {
	case value == nil:
		f.metadata = slices.Delete(f.metadata, max(i, 0), i+1)
	case i >= 0:
		f.metadata[i].Value = value
	default:
		f.metadata = append(f.metadata, gguf.KeyValue{Key: key, Value: value})
	}
}

// random adds a tensor: a matrix of variance 1/columns, or a vector around 1.
func (f *fixture) random(rng *rand.Rand, name string, dims ...uint64) {
	n := uint64(1)
	for _, d := range dims {
		n *= d
	}
	values := make([]float32, n)
	for i := range values {
		if len(dims) == 1 {
			values[i] = float32(1 + 0.2*rng.NormFloat64())
		} else {
			values[i] = float32(rng.NormFloat64() / math.Sqrt(float64(dims[0])))
		}
	}
	f.add(name, values, dims...)
}

func (f *fixture) add(name string, values []float32, dims ...uint64) {
	f.tensors = append(f.tensors, gguf.Tensor{Name: name, Type: device.F32, Dims: dims, Data: floatBytes(values)})
}

func (f *fixture) remove(name string) {
	f.tensors = slices.DeleteFunc(f.tensors, func(t gguf.Tensor) bool { return t.Name == name })
}

func (f *fixture) bytes(t testing.TB) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := gguf.Write(&b, f.metadata, f.tensors); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (f *fixture) open(t testing.TB) *Spec {
	t.Helper()
	s, err := OpenBytes("fixture", f.bytes(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}
