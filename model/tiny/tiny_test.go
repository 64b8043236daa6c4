package tiny_test

import (
	"context"
	"encoding/json"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/quire-serve/quire/model/chat"
	"github.com/quire-serve/quire/model/gguf"
	"github.com/quire-serve/quire/model/tiny"
	"github.com/quire-serve/quire/model/tokenizer"
)

// golden is one greedy generation by PyTorch; see train/export.py.
type golden struct {
	Prompt string
	IDs    []int32
	Output []int32
	Text   string
	Margin float64   // the smallest distance between the best two logits
	Logits []float64 // after the prompt, for some
}

func load(t *testing.T) (*gguf.File, *tokenizer.Tokenizer, []golden) {
	t.Helper()
	f, err := gguf.Parse(tiny.GGUF())
	if err != nil {
		t.Fatal(err)
	}
	tok, err := tokenizer.FromGGUF(f)
	if err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []golden
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) < 10 {
		t.Fatalf("%d golden cases", len(cases))
	}
	return f, tok, cases
}

func TestSize(t *testing.T) {
	if n := len(tiny.GGUF()); n > 2_000_000 {
		t.Errorf("the file has %d bytes, more than 2 MB", n)
	}
}

func TestPrompts(t *testing.T) {
	f, tok, cases := load(t)
	source, _ := f.String("tokenizer.chat_template")
	template, err := chat.New(source, chat.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range cases {
		if got := tok.Encode(nil, c.Prompt, true); !slices.Equal(got, c.IDs) {
			t.Errorf("Encode(%q) = %v, want %v", c.Prompt, got, c.IDs)
		}
		if got := tok.Decode(c.Output, true); got != c.Text {
			t.Errorf("Decode(%v) = %q, want %q", c.Output, got, c.Text)
		}
		question, ok := strings.CutPrefix(c.Prompt, "<|im_start|>user\n")
		if !ok {
			continue
		}
		question, _, _ = strings.Cut(question, "<|im_end|>")
		got, err := template.Render(context.Background(), []chat.Message{{Role: "user", Content: question}}, chat.Options{AddGenerationPrompt: true})
		if err != nil || got.Text != c.Prompt {
			t.Errorf("the template gives %q, %v, want %q", got.Text, err, c.Prompt)
		}
	}
	if tok.EOS() != 2 || !slices.Equal(tok.EOGs(), []int32{0, 2}) || tok.AddBOS() {
		t.Errorf("EOS %d, ends %v, BOS added %t", tok.EOS(), tok.EOGs(), tok.AddBOS())
	}
}

// TestGolden runs the file through a plain forward pass in float64, written from the definition of
// the Llama architecture: the file holds the model that was trained.
func TestGolden(t *testing.T) {
	f, tok, cases := load(t)
	m := open(t, f)
	for _, c := range cases {
		s := sequence{model: m}
		var logits []float64
		for _, id := range c.IDs {
			logits = s.step(id)
		}
		for i, want := range c.Logits {
			if math.Abs(logits[i]-want) > 1e-4 {
				t.Fatalf("%q: logit %d is %.5f, want %.5f", c.Prompt, i, logits[i], want)
			}
		}
		for n, want := range c.Output {
			best := int32(0)
			for id, x := range logits {
				if x > logits[best] {
					best = int32(id)
				}
			}
			if best != want {
				t.Errorf("%q: token %d is %q, want %q", c.Prompt, n, tok.Text(best), tok.Text(want))
				break
			}
			logits = s.step(best)
		}
	}
}

type matrix struct {
	cols int
	data []float32
}

func (m matrix) mul(x []float64) []float64 {
	out := make([]float64, len(m.data)/m.cols)
	for i := range out {
		row := m.data[i*m.cols : (i+1)*m.cols]
		for j, w := range row {
			out[i] += float64(w) * x[j]
		}
	}
	return out
}

type layer struct {
	attnNorm, ffnNorm, q, k, v, o, gate, up, down matrix
}

type reference struct {
	embed, norm          matrix
	layers               []layer
	heads, kvHeads, size int
	eps, base            float64
}

func open(t *testing.T, f *gguf.File) *reference {
	t.Helper()
	number := func(key string) int {
		n, ok := f.Uint(key)
		if !ok {
			t.Fatalf("no %s", key)
		}
		return int(n)
	}
	read := func(name string) matrix {
		tensor, ok := f.Tensor(name + ".weight")
		if !ok {
			t.Fatalf("no tensor %s", name)
		}
		n := 1
		for _, d := range tensor.Dims {
			n *= int(d)
		}
		m := matrix{int(tensor.Dims[0]), make([]float32, n)}
		if err := gguf.Dequantize(tensor.Type, tensor.Data, m.data); err != nil {
			t.Fatal(err)
		}
		return m
	}
	m := &reference{embed: read("token_embd"), norm: read("output_norm"), heads: number("llama.attention.head_count"),
		kvHeads: number("llama.attention.head_count_kv"), size: number("llama.rope.dimension_count")}
	m.eps, _ = f.Float("llama.attention.layer_norm_rms_epsilon")
	m.base, _ = f.Float("llama.rope.freq_base")
	for i := range number("llama.block_count") {
		b := "blk." + string(rune('0'+i)) + "."
		m.layers = append(m.layers, layer{read(b + "attn_norm"), read(b + "ffn_norm"), read(b + "attn_q"), read(b + "attn_k"), read(b + "attn_v"),
			read(b + "attn_output"), read(b + "ffn_gate"), read(b + "ffn_up"), read(b + "ffn_down")})
	}
	return m
}

// sequence is one text with the keys and values of its tokens.
type sequence struct {
	model  *reference
	length int
	keys   [][][]float64 // layer, token
	values [][][]float64
}

// step takes one more token and returns the logits of the next.
func (s *sequence) step(id int32) []float64 {
	m := s.model
	if s.keys == nil {
		s.keys, s.values = make([][][]float64, len(m.layers)), make([][][]float64, len(m.layers))
	}
	x := make([]float64, m.embed.cols)
	for i := range x {
		x[i] = float64(m.embed.data[int(id)*len(x)+i])
	}
	for i, l := range m.layers {
		h := m.normalise(x, l.attnNorm)
		q, k := m.rotate(l.q.mul(h), s.length), m.rotate(l.k.mul(h), s.length)
		s.keys[i], s.values[i] = append(s.keys[i], k), append(s.values[i], l.v.mul(h))
		add(x, l.o.mul(m.attend(q, s.keys[i], s.values[i])))
		h = m.normalise(x, l.ffnNorm)
		gate, up := l.gate.mul(h), l.up.mul(h)
		for j, g := range gate {
			up[j] *= g / (1 + math.Exp(-g))
		}
		add(x, l.down.mul(up))
	}
	s.length++
	return m.embed.mul(m.normalise(x, m.norm))
}

func add(x, y []float64) {
	for i := range x {
		x[i] += y[i]
	}
}

func (m *reference) normalise(x []float64, w matrix) []float64 {
	sum := 0.0
	for _, v := range x {
		sum += v * v
	}
	scale := 1 / math.Sqrt(sum/float64(len(x))+m.eps)
	out := make([]float64, len(x))
	for i, v := range x {
		out[i] = v * scale * float64(w.data[i])
	}
	return out
}

// rotate turns neighbouring pairs of every head by the angles of position p.
func (m *reference) rotate(x []float64, p int) []float64 {
	for i := 0; i < len(x); i += 2 {
		angle := float64(p) * math.Pow(m.base, -float64(i%m.size)/float64(m.size))
		sin, cos := math.Sincos(angle)
		x[i], x[i+1] = x[i]*cos-x[i+1]*sin, x[i]*sin+x[i+1]*cos
	}
	return x
}

func (m *reference) attend(q []float64, keys, values [][]float64) []float64 {
	out := make([]float64, len(q))
	for h := range m.heads {
		kv := h / (m.heads / m.kvHeads) * m.size
		scores, sum := make([]float64, len(keys)), 0.0
		for t, k := range keys {
			for j := range m.size {
				scores[t] += q[h*m.size+j] * k[kv+j]
			}
			scores[t] = math.Exp(scores[t] / math.Sqrt(float64(m.size)))
			sum += scores[t]
		}
		for t, v := range values {
			for j := range m.size {
				out[h*m.size+j] += scores[t] / sum * v[kv+j]
			}
		}
	}
	return out
}
