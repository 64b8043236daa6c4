package model

import (
	"math"
	"os"
	"slices"
	"testing"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
)

// byteKVError bounds what a KV cache of I8 moves a logit of SmolLM2 by, but for a shift common to all,
// where the inputs are those of the golden prompts.
const byteKVError = 0.6

// TestSmolLM2ByteKV measures what a KV cache of I8 costs beside one of F16, and what one of F32 does, which
// moves activations across the edges of their rounding just as well: greedy tokens, perplexity and logits. docs/models.md states the figures.
func TestSmolLM2ByteKV(t *testing.T) {
	g, _ := readGolden(t)
	s := openSmolLM2(t)
	if slow() {
		t.Log("the pure-Go kernels give the same bits, slowly: measured with the others")
		return
	}
	t.Run("greedy", func(t *testing.T) { greedy(t, s, g.Prompts, 48, cpu.Options{}, device.I8, byteKVError) })

	text, err := os.ReadFile("../LICENSE")
	if err != nil {
		t.Fatal(err)
	}
	licence := s.Tokenizer.Encode(nil, string(text), true)
	licence = licence[:min(len(licence), 1024)]
	text, err = os.ReadFile("../docs/design.md")
	if err != nil {
		t.Fatal(err)
	}
	design := s.Tokenizer.Encode(nil, string(text), true)
	design = design[:min(len(design), 1024)]
	for name, tokens := range map[string][]int32{"licence": licence, "design": design} {
		base, want := score(t, s, device.F16, tokens)
		for _, kv := range []device.Type{device.F32, device.I8} {
			loss, got := score(t, s, kv, tokens)
			change := math.Exp(loss-base) - 1
			agree, relative := compareLogits(want, got, s.Config.Vocab)
			t.Logf("%s, %d tokens: perplexity %.4f with F16, %.4f with %s (%+.3f %%); likeliest token equal at %.1f %% of positions; logits' mean relative error %.3g",
				name, len(tokens), math.Exp(base), math.Exp(loss), kv, 100*change, 100*agree, relative)
			if !(math.Abs(change) < 0.02) || agree < 0.9 {
				t.Errorf("%s, %s: perplexity changes by %.3f %%, likeliest token equal at %.1f %%", name, kv, 100*change, 100*agree)
			}
		}
	}
}

// compareLogits returns at which share of rows the largest logit is the same one, and the mean distance
// over the mean size.
func compareLogits(want, got []float32, vocab int) (agree, relative float64) {
	var off, size float64
	for at := 0; at < len(want); at += vocab {
		a, b := want[at:at+vocab], got[at:at+vocab]
		if slices.Index(a, slices.Max(a)) == slices.Index(b, slices.Max(b)) {
			agree++
		}
		for i := range a {
			off += math.Abs(float64(a[i]) - float64(b[i]))
			size += math.Abs(float64(a[i]))
		}
	}
	return agree * float64(vocab) / float64(len(want)), off / size
}

// score returns the mean loss of tokens, and the logits of every position but the last.
func score(t *testing.T, s *Spec, kv device.Type, tokens []int32) (loss float64, logits []float32) {
	const rows = 64
	r := newRig(t, s, cpu.Options{}, kv, device.Limits{Rows: rows, Sequences: 1, Samples: rows}, len(tokens)+rigBlock)
	var table []int32
	for i := range (len(tokens) + rigBlock - 1) / rigBlock {
		table = append(table, int32(i))
	}
	for from := 0; from < len(tokens)-1; from += rows {
		to := min(from+rows, len(tokens)-1)
		b := device.Batch{Tokens: tokens[from:to], Seqs: []device.Seq{{Rows: int32(to - from), Context: int32(to)}}, Tables: table, WantLogits: true}
		for at := from; at < to; at++ {
			b.Positions = append(b.Positions, int32(at))
			b.Samples = append(b.Samples, device.Sample{Row: int32(at - from), Score: tokens[at+1], TopP: 1, RepetitionPenalty: 1, Mask: -1, Position: int32(at + 1)})
		}
		if err := r.runner.Submit(&b); err != nil {
			t.Fatal(err)
		}
		if err := r.runner.Wait(&r.result); err != nil {
			t.Fatal(err)
		}
		for _, p := range r.result.Logprobs {
			loss -= float64(p) / float64(len(tokens)-1)
		}
		logits = append(logits, r.result.Logits...)
	}
	return loss, logits
}
