package model

import (
	"encoding/binary"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
)

func TestOpen(t *testing.T) {
	f := newFixture("llama")
	f.set("tokenizer.chat_template", "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}")
	path := filepath.Join(t.TempDir(), "my-model.gguf")
	if err := os.WriteFile(path, f.bytes(t), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	want := Config{Arch: "llama", Name: "Fixture", Layers: 2, Hidden: 64, FFN: 96, Heads: 4, KVHeads: 2, HeadDim: 16, Vocab: 256, ContextLength: 128, RMSEps: 1e-5, RopeBase: 1000, RopeScale: 1}
	if !reflect.DeepEqual(s.Config, want) || s.ID != "my-model" || s.Path != path || s.Chat == nil {
		t.Errorf("%+v", s)
	}
	if ids := s.Tokenizer.Encode(nil, "hi", false); len(ids) != 2 || s.Tokenizer.Decode(ids, false) != "hi" {
		t.Errorf("hi is %v", ids)
	}
	layout := device.KVLayout{Pages: 7, BlockTokens: 32, Layers: 2, KVHeads: 2, HeadDim: 16, Type: device.F16}
	if got := s.Config.KVLayout(7, 32, device.F16); got != layout {
		t.Errorf("KV layout %+v", got)
	}
	same, err := OpenBytes("other", f.bytes(t))
	if err != nil || same.Digest != s.Digest || same.ID != "other" || len(s.Digest) != 64 {
		t.Errorf("digest %q of the same bytes, want %q; %v", same.Digest, s.Digest, err)
	}
	// Any key, and any end of a tensor, makes another model.
	f.set("llama.rope.freq_base", float32(1001))
	if other := f.open(t); other.Digest == s.Digest {
		t.Error("another key, the same digest")
	}
	f.set("llama.rope.freq_base", float32(1000))
	last := f.tensors[len(f.tensors)-1].Data
	last[len(last)-1] ^= 1
	if other := f.open(t); other.Digest == s.Digest {
		t.Error("another weight, the same digest")
	}
}

func TestConfigVariants(t *testing.T) {
	f := newFixture("llama")
	f.set("llama.attention.head_count_kv", nil) // as many as heads
	f.set("llama.rope.freq_base", nil)          // 10,000
	f.set("llama.rope.scaling.type", "linear")
	f.set("llama.rope.scaling.factor", float32(4))
	f.set("llama.attention.key_length", uint32(32))
	f.set("llama.attention.value_length", uint32(32))
	f.set("llama.expert_count", uint32(0))
	f.set("llama.vocab_size", uint32(256))
	c := f.open(t).Config
	if c.KVHeads != 4 || c.RopeBase != 10000 || c.RopeScale != 4 || c.ContextLength != 128 || c.HeadDim != 32 || c.HalfPairs {
		t.Errorf("%+v", c)
	}
	if c := newFixture("qwen2").open(t).Config; !c.HalfPairs || c.Arch != "qwen2" {
		t.Errorf("%+v", c)
	}
}

func TestOpenRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*fixture)
		want   string
		is     error
	}{
		{"no architecture", func(f *fixture) { f.set("general.architecture", nil) }, `"general.architecture" is missing`, nil},
		{"other architecture", func(f *fixture) { f.set("general.architecture", "mamba") }, `architecture "mamba"; known are llama, qwen2`, ErrUnsupported},
		{"no layers", func(f *fixture) { f.set("llama.block_count", nil) }, `"llama.block_count" is missing`, nil},
		{"zero layers", func(f *fixture) { f.set("llama.block_count", uint32(0)) }, `"llama.block_count" is 0; 1 to 4096`, nil},
		{"many layers", func(f *fixture) { f.set("llama.block_count", uint64(1)<<40) }, `"llama.block_count" is 1099511627776`, nil},
		{"negative width", func(f *fixture) { f.set("llama.embedding_length", int32(-64)) }, `"llama.embedding_length" is of type int32 or negative`, nil},
		{"no FFN", func(f *fixture) { f.set("llama.feed_forward_length", nil) }, `"llama.feed_forward_length" is missing`, nil},
		{"no heads", func(f *fixture) { f.set("llama.attention.head_count", nil) }, `"llama.attention.head_count" is missing`, nil},
		{"no context", func(f *fixture) { f.set("llama.context_length", nil) }, `"llama.context_length" is missing`, nil},
		{"no epsilon", func(f *fixture) { f.set("llama.attention.layer_norm_rms_epsilon", nil) }, `"llama.attention.layer_norm_rms_epsilon" is missing`, nil},
		{"epsilon no number", func(f *fixture) { f.set("llama.attention.layer_norm_rms_epsilon", "small") }, `layer_norm_rms_epsilon" is of type string`, nil},
		{"base not finite", func(f *fixture) { f.set("llama.rope.freq_base", math.Inf(1)) }, `"llama.rope.freq_base" is +Inf`, nil},
		{"base NaN", func(f *fixture) { f.set("llama.rope.freq_base", math.NaN()) }, `"llama.rope.freq_base" is NaN`, nil},
		{"heads per layer", func(f *fixture) { f.set("llama.attention.head_count_kv", []int32{2, 2}) }, `"llama.attention.head_count_kv" is of type array of int32`, nil},
		{"heads do not divide", func(f *fixture) { f.set("llama.attention.head_count", uint32(5)) }, "embedding_length 64 is no multiple of llama.attention.head_count 5", nil},
		{"KV heads do not divide", func(f *fixture) { f.set("llama.attention.head_count_kv", uint32(3)) }, "head_count 4 is no multiple of llama.attention.head_count_kv 3", nil},
		{"odd head", func(f *fixture) { f.set("llama.attention.key_length", uint32(15)) }, "heads of 15 columns", ErrUnsupported},
		{"values of another width", func(f *fixture) { f.set("llama.attention.value_length", uint32(8)) }, "value_length 8 beside key_length 16", ErrUnsupported},
		{"part of a head rotated", func(f *fixture) { f.set("llama.rope.dimension_count", uint32(8)) }, "rope.dimension_count 8 of heads of 16", ErrUnsupported},
		{"experts", func(f *fixture) { f.set("llama.expert_count", uint32(8)) }, `"llama.expert_count"`, ErrUnsupported},
		{"softcap", func(f *fixture) { f.set("llama.attention.logit_softcapping", float32(50)) }, `"llama.attention.logit_softcapping"`, ErrUnsupported},
		{"yarn", func(f *fixture) { f.set("llama.rope.scaling.type", "yarn") }, `llama.rope.scaling.type "yarn"`, ErrUnsupported},
		{"scaling without factor", func(f *fixture) { f.set("llama.rope.scaling.type", "linear") }, `"llama.rope.scaling.factor" is missing`, nil},
		{"no embedding", func(f *fixture) { f.remove("token_embd.weight") }, `"token_embd.weight" is missing`, nil},
		{"vocabulary of another size", func(f *fixture) { f.set("llama.vocab_size", uint32(300)) }, `llama.vocab_size is 300, but tensor "token_embd.weight" has 256`, nil},
		{"a token too many", func(f *fixture) { f.set("tokenizer.ggml.tokens", append(byteTokens(), "ab")) }, "has 257 tokens", nil},
		{"no tokens", func(f *fixture) { f.set("tokenizer.ggml.tokens", nil) }, `"tokenizer.ggml.tokens" is missing`, nil},
	} {
		f := newFixture("llama")
		c.change(f)
		_, err := OpenBytes("fixture", f.bytes(t))
		if err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
	}
}

// TestTemplateThatDoesNotCompileCostsChatAlone: the model opens, and says why it cannot chat.
func TestTemplateThatDoesNotCompileCostsChatAlone(t *testing.T) {
	for _, c := range []struct {
		name     string
		template any
		want     string
	}{
		{"no string", uint32(1), `"tokenizer.chat_template" is of type uint32`},
		{"broken", "\n{% for %}", `"tokenizer.chat_template": chat: the template does not compile: line 2`},
		{"unknown statement", "{% include 'x' %}", `unknown statement "include"`},
		{"unknown filter", "{{ messages | frobnicate }}", `unknown filter "frobnicate"`},
		{"too long", strings.Repeat("x", 300<<10), "the limit is 262144"},
	} {
		f := newFixture("llama")
		f.set("tokenizer.chat_template", c.template)
		s, err := OpenBytes("fixture", f.bytes(t))
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if s.Chat != nil || s.NoChat == nil || !strings.Contains(s.NoChat.Error(), c.want) {
			t.Errorf("%s: chat %v, reason %v, want %q", c.name, s.Chat, s.NoChat, c.want)
		}
	}
}

func TestLoadRefuses(t *testing.T) {
	ones := func(n int) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = 1
		}
		return x
	}
	for _, c := range []struct {
		name, arch string
		change     func(*fixture)
		o          LoadOptions
		want       string
		is         error
	}{
		{"missing tensor", "llama", func(f *fixture) { f.remove("blk.1.ffn_up.weight") }, LoadOptions{}, `tensor "blk.1.ffn_up.weight" is missing`, nil},
		{"missing norm", "llama", func(f *fixture) { f.remove("output_norm.weight") }, LoadOptions{}, `tensor "output_norm.weight" is missing`, nil},
		{"missing bias", "qwen2", func(f *fixture) { f.remove("blk.0.attn_k.bias") }, LoadOptions{}, `tensor "blk.0.attn_k.bias" is missing`, nil},
		{"wrong matrix", "llama", func(f *fixture) {
			f.remove("blk.0.attn_k.weight")
			f.add("blk.0.attn_k.weight", ones(64*16), 64, 16)
		}, LoadOptions{}, `tensor "blk.0.attn_k.weight" has shape [64 16], want [64 32]`, nil},
		{"wrong vector", "llama", func(f *fixture) {
			f.remove("blk.0.attn_norm.weight")
			f.add("blk.0.attn_norm.weight", ones(32), 32)
		}, LoadOptions{}, `tensor "blk.0.attn_norm.weight" has shape [32], want [64]`, nil},
		{"a tensor too many", "llama", func(f *fixture) { f.add("blk.0.attn_q_norm.weight", ones(16), 16) }, LoadOptions{}, "1 tensors that its architecture does not have: blk.0.attn_q_norm.weight", ErrUnsupported},
		{"a layer too many", "llama", func(f *fixture) { f.set("llama.block_count", uint32(1)) }, LoadOptions{}, "9 tensors that its architecture does not have: blk.1.attn_k.weight, blk.1.attn_norm.weight, blk.1.attn_output.weight, …", ErrUnsupported},
		{"thousands of layers", "llama", func(f *fixture) { f.set("llama.block_count", uint32(4000)) }, LoadOptions{}, `tensor "blk.2.attn_norm.weight" is missing`, nil},
		{"rope factor zero", "llama", func(f *fixture) { f.add("rope_freqs.weight", make([]float32, 8), 8) }, LoadOptions{}, `"rope_freqs.weight": factor 0 is 0`, nil},
		{"rope factors short", "llama", func(f *fixture) { f.add("rope_freqs.weight", ones(4), 4) }, LoadOptions{}, `"rope_freqs.weight" has shape [4], want [8]`, nil},
		{"negative context", "llama", func(*fixture) {}, LoadOptions{MaxContext: -1}, "context of -1 tokens", nil},
		{"huge context", "llama", func(f *fixture) {
			f.set("llama.context_length", uint32(maxContext))
			f.set("llama.attention.key_length", uint32(32))
			f.set("llama.attention.value_length", uint32(32))
		}, LoadOptions{}, "rotary table of 2147483648 bytes", nil},
		{"no memory", "llama", func(*fixture) {}, LoadOptions{}, "weight ", device.ErrMemory},
	} {
		f := newFixture(c.arch)
		c.change(f)
		options := cpu.Options{Threads: 1}
		if errors.Is(c.is, device.ErrMemory) {
			options.MemoryBytes = 100_000
		}
		dev, err := cpu.Open(options)
		if err != nil {
			t.Fatal(err)
		}
		if _, err = f.open(t).Load(dev, c.o); err == nil || !strings.Contains(err.Error(), c.want) || c.is != nil && !errors.Is(err, c.is) {
			t.Errorf("%s: %v; want %q", c.name, err, c.want)
		}
		dev.Close()
	}
}

func TestLoad(t *testing.T) {
	dev, err := cpu.Open(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer dev.Close()
	s := newFixture("llama").open(t)
	var total int64
	for _, x := range s.File.Tensors {
		total += int64(len(x.Data))
	}
	var last int64
	m, err := s.Load(dev, LoadOptions{MaxContext: 50, Progress: func(done, of int64) {
		if done < last || of != total {
			t.Errorf("progress %d of %d after %d of %d", done, of, last, total)
		}
		last = done
	}})
	if err != nil {
		t.Fatal(err)
	}
	if last != total || m.Context != 50 || m.Spec != s {
		t.Errorf("progress ended at %d of %d, context %d", last, total, m.Context)
	}
	if m, err = s.Load(dev, LoadOptions{MaxContext: 500}); err != nil || m.Context != 128 {
		t.Errorf("context %d, %v; the model's is 128", m.Context, err)
	}
}

// TestForward compares logits with a computation in float64 straight from the definitions.
func TestForward(t *testing.T) {
	rng := rand.New(rand.NewPCG(9, 9))
	for _, c := range []struct {
		name, arch string
		change     func(*fixture)
	}{
		{"tied", "llama", func(*fixture) {}},
		{"own head", "llama", func(f *fixture) { f.random(rng, "output.weight", fixtureHidden, fixtureVocab) }},
		{"biases", "llama", func(f *fixture) {
			for _, layer := range []string{"blk.0.", "blk.1."} {
				f.random(rng, layer+"attn_q.bias", fixtureHidden)
				f.random(rng, layer+"attn_k.bias", fixtureHidden/2)
				f.random(rng, layer+"attn_v.bias", fixtureHidden/2)
			}
		}},
		{"linear scaling", "llama", func(f *fixture) {
			f.set("llama.rope.scaling.type", "linear")
			f.set("llama.rope.scaling.factor", float32(2.5))
		}},
		{"frequency factors", "llama", func(f *fixture) {
			f.add("rope_freqs.weight", []float32{1, 1, 1.5, 2, 4, 8, 8, 8}, 8)
		}},
		{"qwen2", "qwen2", func(*fixture) {}},
		{"wide heads", "llama", func(f *fixture) {
			f.set("llama.attention.key_length", uint32(32))
			f.set("llama.attention.value_length", uint32(32))
			for _, layer := range []string{"blk.0.", "blk.1."} {
				for name, dims := range map[string][]uint64{"attn_q": {64, 128}, "attn_k": {64, 64}, "attn_v": {64, 64}, "attn_output": {128, 64}} {
					f.remove(layer + name + ".weight")
					f.random(rng, layer+name+".weight", dims...)
				}
			}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFixture(c.arch)
			c.change(f)
			s := f.open(t)
			r := newRig(t, s, cpu.Options{Threads: 1, ExactFloat: true}, device.F32, device.Limits{Rows: 64, Sequences: 1, Samples: 1}, 64)
			r.logits = true
			tokens := make([]int32, 40)
			for i := range tokens {
				tokens[i] = rng.Int32N(fixtureVocab)
			}
			seq := &sequence{tokens: tokens}
			r.step([]chunk{{seq, len(tokens)}})
			want := referenceLogits(s, tokens)
			for i, x := range seq.last {
				if math.Abs(float64(x)-want[i]) > 2e-5 {
					t.Fatalf("logit %d is %v, want %v", i, x, want[i])
				}
			}
		})
	}
}

// referenceLogits computes the logits after the last of tokens in float64, one token at a time.
func referenceLogits(s *Spec, tokens []int32) []float64 {
	c := s.Config
	tensor := func(name string) []float64 {
		t, ok := s.File.Tensor(name)
		if !ok {
			return nil
		}
		out := make([]float64, len(t.Data)/4)
		for i := range out {
			out[i] = float64(math.Float32frombits(binary.LittleEndian.Uint32(t.Data[i*4:])))
		}
		return out
	}
	mul := func(name string, x []float64) []float64 {
		w := tensor(name + ".weight")
		out := make([]float64, len(w)/len(x))
		copy(out, tensor(name+".bias"))
		for i := range out {
			for j, v := range x {
				out[i] += v * w[i*len(x)+j]
			}
		}
		return out
	}
	norm := func(name string, x []float64) []float64 {
		sum := 0.0
		for _, v := range x {
			sum += v * v
		}
		w, out := tensor(name+".weight"), make([]float64, len(x))
		for i, v := range x {
			out[i] = v / math.Sqrt(sum/float64(len(x))+float64(c.RMSEps)) * w[i]
		}
		return out
	}
	factors := tensor("rope_freqs.weight")
	rotate := func(x []float64, position int) {
		half := c.HeadDim / 2
		for head := 0; head < len(x); head += c.HeadDim {
			for i := range half {
				a, b := head+2*i, head+2*i+1
				if c.Arch == "qwen2" {
					a, b = head+i, head+i+half
				}
				angle := float64(position) / float64(c.RopeScale) * math.Pow(float64(c.RopeBase), -2*float64(i)/float64(c.HeadDim))
				if factors != nil {
					angle /= factors[i]
				}
				x[a], x[b] = x[a]*math.Cos(angle)-x[b]*math.Sin(angle), x[a]*math.Sin(angle)+x[b]*math.Cos(angle)
			}
		}
	}
	keys, values := make([][][]float64, c.Layers), make([][][]float64, c.Layers)
	embed := tensor("token_embd.weight")
	var x []float64
	for position, token := range tokens {
		x = append([]float64(nil), embed[int(token)*c.Hidden:(int(token)+1)*c.Hidden]...)
		add := func(y []float64) {
			for i := range x {
				x[i] += y[i]
			}
		}
		for layer := range c.Layers {
			blk := "blk." + string(rune('0'+layer)) + "."
			in := norm(blk+"attn_norm", x)
			q, k, v := mul(blk+"attn_q", in), mul(blk+"attn_k", in), mul(blk+"attn_v", in)
			rotate(q, position)
			rotate(k, position)
			keys[layer], values[layer] = append(keys[layer], k), append(values[layer], v)
			out := make([]float64, len(q))
			for h := range c.Heads {
				kv := h * c.KVHeads / c.Heads * c.HeadDim
				weights, total := make([]float64, position+1), 0.0
				for p := range weights {
					dot := 0.0
					for i := range c.HeadDim {
						dot += q[h*c.HeadDim+i] * keys[layer][p][kv+i]
					}
					weights[p] = math.Exp(dot / math.Sqrt(float64(c.HeadDim)))
					total += weights[p]
				}
				for p, w := range weights {
					for i := range c.HeadDim {
						out[h*c.HeadDim+i] += w / total * values[layer][p][kv+i]
					}
				}
			}
			add(mul(blk+"attn_output", out))
			in = norm(blk+"ffn_norm", x)
			gate, up := mul(blk+"ffn_gate", in), mul(blk+"ffn_up", in)
			for i, g := range gate {
				up[i] *= g / (1 + math.Exp(-g))
			}
			add(mul(blk+"ffn_down", up))
		}
	}
	x = norm("output_norm", x)
	if tensor("output.weight") != nil {
		return mul("output", x)
	}
	return mul("token_embd", x)
}
