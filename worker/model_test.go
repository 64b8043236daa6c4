package worker

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/gguf"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine"
)

// randomModel is a small Llama with random weights and a vocabulary of single bytes.
func randomModel(t *testing.T) []byte {
	t.Helper()
	const layers, hidden, ffn, heads, kvHeads, vocab = 2, 64, 96, 4, 2, 256
	rng := rand.New(rand.NewPCG(3, 9))
	var tokens []string
	for b, other := rune(0), rune(256); b < 256; b++ {
		if b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE {
			tokens = append(tokens, string(b))
		} else {
			tokens = append(tokens, string(other))
			other++
		}
	}
	metadata := []gguf.KeyValue{
		{Key: "general.architecture", Value: "llama"},
		{Key: "llama.block_count", Value: uint32(layers)},
		{Key: "llama.embedding_length", Value: uint32(hidden)},
		{Key: "llama.feed_forward_length", Value: uint32(ffn)},
		{Key: "llama.attention.head_count", Value: uint32(heads)},
		{Key: "llama.attention.head_count_kv", Value: uint32(kvHeads)},
		{Key: "llama.attention.layer_norm_rms_epsilon", Value: float32(1e-5)},
		{Key: "llama.rope.freq_base", Value: float32(1000)},
		{Key: "llama.context_length", Value: uint32(256)},
		{Key: "tokenizer.ggml.model", Value: "gpt2"},
		{Key: "tokenizer.ggml.pre", Value: "gpt-2"},
		{Key: "tokenizer.ggml.tokens", Value: tokens},
		{Key: "tokenizer.ggml.merges", Value: []string{}},
		{Key: "tokenizer.ggml.eos_token_id", Value: uint32(0)},
	}
	var tensors []gguf.Tensor
	add := func(name string, dims ...uint64) {
		n := uint64(1)
		for _, d := range dims {
			n *= d
		}
		data := make([]byte, 0, 4*n)
		for range n {
			v := 1 + 0.2*rng.NormFloat64()
			if len(dims) > 1 {
				v = rng.NormFloat64() / math.Sqrt(float64(dims[0]))
			}
			data = binary.LittleEndian.AppendUint32(data, math.Float32bits(float32(v)))
		}
		tensors = append(tensors, gguf.Tensor{Name: name, Type: device.F32, Dims: dims, Data: data})
	}
	const kv = hidden / heads * kvHeads
	add("token_embd.weight", hidden, vocab)
	add("output_norm.weight", hidden)
	for i := range layers {
		for _, x := range []struct {
			name string
			dims []uint64
		}{
			{"attn_norm", []uint64{hidden}}, {"attn_q", []uint64{hidden, hidden}}, {"attn_k", []uint64{hidden, kv}},
			{"attn_v", []uint64{hidden, kv}}, {"attn_output", []uint64{hidden, hidden}}, {"ffn_norm", []uint64{hidden}},
			{"ffn_gate", []uint64{hidden, ffn}}, {"ffn_up", []uint64{hidden, ffn}}, {"ffn_down", []uint64{ffn, hidden}},
		} {
			add(fmt.Sprintf("blk.%d.%s.weight", i, x.name), x.dims...)
		}
	}
	var b bytes.Buffer
	if err := gguf.Write(&b, metadata, tensors); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// serve runs a worker over the CPU device and returns the tokens that it gives to reqs' choices.
func serve(t *testing.T, s Settings, reqs ...*pb.Request) map[string]map[int32][]int32 {
	t.Helper()
	got := map[string]map[int32][]int32{}
	for _, e := range serveEvents(t, s, reqs...) {
		if got[e.RequestId] == nil {
			got[e.RequestId] = map[int32][]int32{}
		}
		c := got[e.RequestId]
		if int(e.First) != len(c[e.Choice]) {
			t.Fatalf("%s/%d: event at %d, expected %d", e.RequestId, e.Choice, e.First, len(c[e.Choice]))
		}
		c[e.Choice] = append(c[e.Choice], e.TokenIds...)
	}
	return got
}

func serveEvents(t *testing.T, s Settings, reqs ...*pb.Request) (got []*pb.TokenEvent) {
	t.Helper()
	dev, err := cpu.Open(cpu.Options{Threads: 2})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	spec, err := model.OpenBytes("random", randomModel(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = spec.Close() }()
	m, err := spec.Load(dev, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	l := newLeader(t, 1)
	s.ID, s.Control, s.Logger = "w1", []string{l.address}, slog.New(slog.DiscardHandler)
	w, err := New(s, dev, m)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	session := next(t, l.sessions, "session")
	g := attach(t, &node{Worker: w})
	session.dispatch(t, 1, 1, reqs...)
	for left := len(reqs); left > 0; {
		e := next(t, g.events, "event")
		got = append(got, e)
		if e.FinishReason == pb.FinishReason_FINISH_REASON_ERROR {
			t.Errorf("%s/%d: %s", e.RequestId, e.Choice, e.Error)
		}
		if e.RequestDone {
			left--
		}
	}
	cancel()
	if err := next(t, ended, "end of Run"); err != nil {
		t.Error(err)
	}
	stats := w.Stats()
	if stats.FreeBlocks != stats.Blocks || stats.Violations != 0 {
		t.Errorf("%d of %d blocks free, %d violations", stats.FreeBlocks, stats.Blocks, stats.Violations)
	}
	if s.Engine.Blocks != 0 && s.Engine.Blocks < 20 && stats.Preemptions == 0 {
		t.Errorf("a pool of %d blocks preempted nobody", s.Engine.Blocks)
	}
	return got
}

// TestTokensDependOnTheRequestAlone: on a real device, neither neighbours, chunks, pressure,
// overlap nor prefix hits change a token.
func TestTokensDependOnTheRequestAlone(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	shared := make([]int32, 48)
	for i := range shared {
		shared[i] = 1 + rng.Int32N(255)
	}
	var reqs []*pb.Request
	for i := range 8 {
		p := slices.Clone(shared[:16*(i%4)])
		for range 5 + 9*i {
			p = append(p, 1+rng.Int32N(255))
		}
		seed, temperature := uint64(i), float32(i%2)
		q := &pb.Request{Id: fmt.Sprint(i), GatewayId: "g1", Prompt: p, Sampling: &pb.SamplingParams{
			MaxTokens: 24, IgnoreEos: true, Seed: &seed, Temperature: &temperature,
		}}
		switch i {
		case 3:
			q.Sampling.N = 3
		case 5:
			q.Sampling.PresencePenalty, q.Sampling.FrequencyPenalty = 1, 0.5
		case 6:
			q.Sampling.MinTokens, q.Sampling.StopTokenIds = 5, []int32{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
		}
		reqs = append(reqs, q)
	}
	want := map[string]map[int32][]int32{}
	for _, q := range reqs {
		want[q.Id] = serve(t, Settings{Engine: engine.Settings{Depth: 1}, KVBytes: 1 << 22}, q)[q.Id]
	}
	for name, es := range map[string]engine.Settings{
		"together":     {},
		"prefix cache": {PrefixCache: true},
		"chunks of 16": {PrefillChunk: 16, PrefixCache: true},
		"chunks of 7":  {PrefillChunk: 7, MaxBatchTokens: 20, MaxSequences: 4},
		"tiny pool":    {Blocks: 14, PrefixCache: true},
		"no overlap":   {Blocks: 14, Depth: 1},
	} {
		got := serve(t, Settings{Engine: es, KVBytes: 1 << 22}, reqs...)
		for _, q := range reqs {
			for c := range want[q.Id] {
				if !slices.Equal(got[q.Id][c], want[q.Id][c]) {
					t.Errorf("%s: %s/%d is %v, alone %v", name, q.Id, c, got[q.Id][c], want[q.Id][c])
				}
			}
		}
	}
}

// TestScenarioK2: a stop string that spans tokens ends a choice with its last one.
func TestScenarioK2(t *testing.T) {
	q := &pb.Request{Id: "a", GatewayId: "g1", Prompt: []int32{40, 41, 42}, Sampling: &pb.SamplingParams{MaxTokens: 30, IgnoreEos: true}}
	zero := float32(0)
	q.Sampling.Temperature = &zero
	free := serve(t, Settings{KVBytes: 1 << 22}, q)["a"][0]
	spec, err := model.OpenBytes("random", randomModel(t))
	if err != nil {
		t.Fatal(err)
	}
	text := spec.Tokenizer.Decode(free, true)
	// The first two neighbouring printable bytes.
	at := strings.IndexFunc(text, func(r rune) bool { return r > ' ' && r < 127 })
	for at >= 0 && at+1 < len(text) && (text[at] <= ' ' || text[at] >= 127 || text[at+1] <= ' ' || text[at+1] >= 127) {
		at++
	}
	if at < 0 || at+1 >= len(text) {
		t.Fatalf("no two printable bytes in %q", text)
	}
	pair := text[at : at+2]
	q.Sampling.Stop = []string{pair}
	got := serve(t, Settings{KVBytes: 1 << 22}, q)["a"][0]
	var want []int32
	for i := range free {
		want = free[:i+1]
		if strings.Contains(spec.Tokenizer.Decode(want, true), pair) {
			break
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("stop %q: %v, want %v", pair, got, want)
	}
}

// TestLogprobsOnARealDevice: each token's are its own, also beside requests that want none.
func TestLogprobsOnARealDevice(t *testing.T) {
	two, one, zero := int32(2), int32(1), float32(0)
	var reqs []*pb.Request
	for i := range 4 {
		q := &pb.Request{Id: fmt.Sprint(i), GatewayId: "g1", Prompt: []int32{40, 41, 42, 43, 44, int32(45 + i)},
			Sampling: &pb.SamplingParams{MaxTokens: 6, IgnoreEos: true, Temperature: &zero}}
		if i%2 == 1 {
			q.Sampling.Logprobs, q.Sampling.PromptLogprobs = &two, &one
		}
		reqs = append(reqs, q)
	}
	got := serveEvents(t, Settings{KVBytes: 1 << 22}, reqs...)
	for i := range 4 {
		var tokens []int32
		var logprobs, prompt []*pb.Logprobs
		for _, e := range got {
			if e.RequestId == fmt.Sprint(i) {
				tokens = append(tokens, e.TokenIds...)
				logprobs = append(logprobs, e.Logprobs...)
				prompt = append(prompt, e.PromptLogprobs...)
			}
		}
		if i%2 == 0 {
			if len(logprobs)+len(prompt) > 0 {
				t.Errorf("%d did not ask for log-probabilities", i)
			}
			continue
		}
		if len(tokens) != 6 || len(logprobs) != 6 || len(prompt) != 5 {
			t.Fatalf("%d: %d tokens, %d log-probabilities, %d of the prompt", i, len(tokens), len(logprobs), len(prompt))
		}
		for k, l := range logprobs {
			if l.Chosen.TokenId != tokens[k] || len(l.Top) != 2 || l.Top[0].TokenId != tokens[k] || l.Top[0].Logprob != l.Chosen.Logprob || l.Top[1].Logprob > l.Chosen.Logprob {
				t.Errorf("%d: token %d has %v", i, k, l)
			}
		}
		for k, l := range prompt {
			if want := reqs[i].Prompt[k+1]; l.Chosen.TokenId != want || len(l.Top) != 1 || l.Chosen.Logprob > l.Top[0].Logprob || l.Chosen.Logprob >= 0 {
				t.Errorf("%d: prompt token %d has %v", i, k+1, l)
			}
		}
	}
}

func TestSizing(t *testing.T) {
	l := device.KVLayout{BlockTokens: 16, Layers: 2, KVHeads: 2, HeadDim: 16, Type: device.F16} // 4 KiB a page
	for _, c := range []struct {
		budget int64
		asked  bool
		want   int
	}{
		{1 << 20, true, 128}, // 256 fit, 8 sequences of 16 blocks are enough
		{1 << 17, true, 32},  // what was asked for
		{1 << 14, true, 4},   // even if no sequence of full length fits
		{1 << 14, false, 16}, // by default one does
		{100, true, 0},       // not one block
		{1 << 40, false, 128},
	} {
		if got := blocks(c.budget, c.asked, l.PageBytes(), 256/16, 8); got != c.want {
			t.Errorf("%d bytes (asked: %v) buy %d blocks, want %d", c.budget, c.asked, got, c.want)
		}
	}
	s := Settings{ID: "w", Control: []string{"x:1"}, KVBytes: 100}
	dev, err := cpu.Open(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	spec, err := model.OpenBytes("random", randomModel(t))
	if err != nil {
		t.Fatal(err)
	}
	m, err := spec.Load(dev, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := New(s, dev, m); err == nil || err.Error() != "worker: kv_bytes is 100, must be at least 4096: one block of 16 tokens" {
		t.Errorf("got %v", err)
	}
}
