package model

import (
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"encoding/json"
	"io"
	"math"
	"os"
	"reflect"
	"slices"
	"testing"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model/store/storetest"
)

// kernelError and exactError are how far the default and the exact kernels' logits may lie from those
// of float32 arithmetic, but for a shift common to all of them, which changes no probability. The
// default kernels round each matrix's inputs to 8 bits and the KV cache to half precision.
// TestSmolLM2Logits holds the kernels to these bounds; where the two likeliest tokens are closer than
// that, TestSmolLM2Greedy takes either.
const (
	kernelError = 0.7
	exactError  = 1e-4
)

// golden is testdata/smollm2_greedy.json: what transformers computes in float32.
type golden struct {
	LogitsPrompt []int32 `json:"logits_prompt"`
	Prompts      []prompt
}

type prompt struct {
	Name   string
	Text   string // of the whole prompt; empty if the prompt is a part
	Prompt []int32
	Tokens []int32   // the greedy continuation
	Gaps   []float64 // between the two largest logits of each step
}

func readGolden(t testing.TB) (g golden, logits []float32) {
	t.Helper()
	raw, err := os.ReadFile("testdata/smollm2_greedy.json")
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &g); err != nil {
		t.Fatal(err)
	}
	if raw, err = os.ReadFile("testdata/smollm2_logits.f32.gz"); err != nil {
		t.Fatal(err)
	}
	z, err := gzip.NewReader(bytes.NewReader(raw))
	if err != nil {
		t.Fatal(err)
	}
	if raw, err = io.ReadAll(z); err != nil {
		t.Fatal(err)
	}
	logits = make([]float32, len(raw)/4)
	for i := range logits {
		logits[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[i*4:]))
	}
	return g, logits
}

func openSmolLM2(t testing.TB) *Spec {
	t.Helper()
	s, err := Open(storetest.SmolLM2(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

func TestSmolLM2Spec(t *testing.T) {
	s := openSmolLM2(t)
	want := Config{Arch: "llama", Name: "Smollm2 135M 8k Lc100K Mix1 Ep2", Layers: 30, Hidden: 576, FFN: 1536, Heads: 9, KVHeads: 3, HeadDim: 64, Vocab: 49152, ContextLength: 8192, RMSEps: 1e-5, RopeBase: 100000, RopeScale: 1}
	if !reflect.DeepEqual(s.Config, want) {
		t.Errorf("%+v", s.Config)
	}
	g, _ := readGolden(t)
	for _, p := range g.Prompts {
		if ids := s.Tokenizer.Encode(nil, p.Text, true); p.Text != "" && !slices.Equal(ids, p.Prompt) {
			t.Errorf("%s: tokens %v, want %v", p.Name, ids, p.Prompt)
		}
	}
}

// TestSmolLM2Logits compares the logits after a prompt of 64 tokens with float32's.
func TestSmolLM2Logits(t *testing.T) {
	g, want := readGolden(t)
	s := openSmolLM2(t)
	for _, c := range []struct {
		name     string
		exact    bool
		kv       device.Type
		max      float64 // error of a logit, but for the common shift
		relative float64 // mean error over mean logit, of absolute values
	}{
		{"default", false, device.F16, kernelError, 0.1},
		{"exact float", true, device.F32, exactError, 1e-5},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, s, cpu.Options{ExactFloat: c.exact}, c.kv, device.Limits{Rows: 64, Sequences: 1, Samples: 1}, 64)
			r.logits = true
			seq := &sequence{tokens: g.LogitsPrompt}
			r.step([]chunk{{seq, len(seq.tokens)}})
			if len(seq.last) != len(want) {
				t.Fatalf("%d logits, want %d", len(seq.last), len(want))
			}
			var shift, largest, mean, size, centred, worst float64
			n := float64(len(want))
			for i, x := range seq.last {
				e := float64(x) - float64(want[i])
				shift += e / n
				mean += math.Abs(e) / n
				size += math.Abs(float64(want[i])) / n
				largest = max(largest, math.Abs(e))
			}
			for i, x := range seq.last {
				e := math.Abs(float64(x) - float64(want[i]) - shift)
				centred += e / n
				worst = max(worst, e)
			}
			t.Logf("%s kernels, path %s: error max %.3g, mean %.3g of a mean logit of %.3g (relative %.3g); without a common shift of %.3g: max %.3g, mean %.3g",
				c.name, r.dev.Info().Path, largest, mean, size, mean/size, shift, worst, centred)
			if !(worst <= c.max) || !(mean/size < c.relative) {
				t.Errorf("max error %.3g, want at most %.3g; relative %.3g, want below %.3g", worst, c.max, mean/size, c.relative)
			}
		})
	}
}

// TestSmolLM2Greedy continues the golden prompts together, one token of each a step, and compares
// every token. Where the two likeliest are too close to tell and the other one was drawn, the
// sequence goes on with the golden token, so that the rest is compared too. Exact kernels are slow
// and run the shorter prompts.
func TestSmolLM2Greedy(t *testing.T) {
	g, _ := readGolden(t)
	s := openSmolLM2(t)
	if slow() {
		greedy(t, s, shortest(g.Prompts, 3), 5, cpu.Options{}, device.F16, kernelError)
		return
	}
	t.Run("default", func(t *testing.T) { greedy(t, s, g.Prompts, 48, cpu.Options{}, device.F16, kernelError) })
	t.Run("exact float", func(t *testing.T) {
		greedy(t, s, shortest(g.Prompts, 12), 48, cpu.Options{ExactFloat: true}, device.F32, exactError)
	})
}

// slow reports whether this build has the pure-Go kernels alone. Their bits are those of the others,
// so fewer tokens show as much.
func slow() bool { return cpu.Paths()[0] == "go" }

// shortest returns the n shortest prompts, by length.
func shortest(prompts []prompt, n int) []prompt {
	sorted := slices.Clone(prompts)
	slices.SortStableFunc(sorted, func(a, b prompt) int { return len(a.Prompt) - len(b.Prompt) })
	return sorted[:n]
}

func greedy(t *testing.T, s *Spec, prompts []prompt, draws int, o cpu.Options, kv device.Type, tolerance float64) {
	const rows = 512
	pages := 0
	for _, p := range prompts {
		pages += (len(p.Prompt) + draws + rigBlock - 1) / rigBlock
	}
	r := newRig(t, s, o, kv, device.Limits{Rows: rows, Sequences: len(prompts), Samples: len(prompts)}, pages*rigBlock)
	seqs := make([]*sequence, len(prompts))
	var step []chunk
	full := 0
	for i, p := range prompts {
		if full+len(p.Prompt) > rows {
			r.step(step)
			step, full = nil, 0
		}
		seqs[i] = &sequence{tokens: slices.Clone(p.Prompt)}
		step = append(step, chunk{seqs[i], len(p.Prompt)})
		full += len(p.Prompt)
	}
	compared, near := 0, 0
	for k := range draws {
		r.step(step)
		step = step[:0]
		for i, p := range prompts {
			compared++
			if drawn := seqs[i].drawn[k]; drawn != p.Tokens[k] {
				near++
				t.Logf("%s, token %d: %d for %d at a gap of %.3g", p.Name, k, drawn, p.Tokens[k], p.Gaps[k])
				if p.Gaps[k] >= tolerance {
					t.Errorf("%s, token %d: %q, want %q", p.Name, k, s.Tokenizer.Bytes(drawn), s.Tokenizer.Bytes(p.Tokens[k]))
				}
			}
			seqs[i].tokens = append(seqs[i].tokens, p.Tokens[k])
			step = append(step, chunk{seqs[i], 1})
		}
	}
	t.Logf("path %s: %d of %d tokens equal; gaps below %.3g may be decided either way", r.dev.Info().Path, compared-near, compared, tolerance)
}
