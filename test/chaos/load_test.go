//go:build linux

package chaos

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// size is what a model's requests ask for.
type size struct {
	tokens  []int // lengths of answers
	clients int
}

// sizes fit streams to the model: several seconds each on two processors.
var sizes = map[string]size{
	"tiny":         {tokens: []int{60, 400, 900, 1500}, clients: 20},
	"smollm2-135m": {tokens: []int{16, 40, 80, 120}, clients: 16},
}

const schema = `{"type":"object","properties":{"name":{"type":"string","maxLength":12},"age":{"type":"integer"},"tags":{"type":"array","items":{"enum":["red","green","blue"]},"minItems":3,"maxItems":6}},"required":["name","age","tags"],"additionalProperties":false}`

// asks are the kinds of requests: every surface, greedy and sampled, choices, log-probabilities and
// structured output, short and long, in every manner of coming back.
func asks(model string) (all []*ask) {
	lengths := sizes[model].tokens
	long := strings.Repeat("The quick brown fox jumps over the lazy dog. ", 12)
	prompts := []string{"Once upon a time", "In the beginning there was", long + "Then", "The capital of France is"}
	web := func(name, path string, m manner, body map[string]any) {
		body["model"] = model
		body["stream"] = m != whole
		if m != whole {
			body["stream_options"] = map[string]any{"include_usage": true}
		}
		n := 1
		if v, ok := body["n"]; ok {
			n = v.(int)
		}
		all = append(all, &ask{name: fmt.Sprintf("%s (%v)", name, m), manner: m, path: path, body: body, choices: n})
	}
	chat := func(prompt string) []map[string]any { return []map[string]any{{"role": "user", "content": prompt}} }
	direct := func(name string, m manner, prompt string, p *pb.SamplingParams) {
		all = append(all, &ask{name: fmt.Sprintf("gRPC %s (%v)", name, m), manner: m, choices: max(1, int(p.GetN())),
			generate: &pb.GenerateRequest{Model: model, Input: &pb.GenerateRequest_Prompt{Prompt: prompt}, Sampling: p}})
	}
	for i, tokens := range lengths {
		seed := 100 + i
		prompt := prompts[i%len(prompts)]
		for _, m := range []manner{resumes, repeats} {
			web("text greedy", "/v1/completions", m, map[string]any{"prompt": prompt, "max_tokens": tokens, "temperature": 0, "ignore_eos": true})
			web("text sampled", "/v1/completions", m, map[string]any{"prompt": prompt, "max_tokens": tokens, "seed": seed, "ignore_eos": true, "presence_penalty": 0.5})
			web("chat sampled", "/v1/chat/completions", m, map[string]any{"messages": chat(prompt), "max_tokens": tokens, "seed": seed, "ignore_eos": true, "top_p": 0.9})
			s, zero := uint64(seed), float32(0)
			direct("greedy", m, prompt, &pb.SamplingParams{Temperature: &zero, MaxTokens: int32(tokens), IgnoreEos: true})
			direct("sampled", m, prompt, &pb.SamplingParams{Seed: &s, MaxTokens: int32(tokens), IgnoreEos: true, FrequencyPenalty: 0.3})
		}
		web("chat sampled", "/v1/chat/completions", whole, map[string]any{"messages": chat(prompt), "max_tokens": tokens, "seed": seed, "ignore_eos": true})
	}
	half := lengths[len(lengths)/2]
	for _, m := range []manner{resumes, repeats} {
		s, two := uint64(7), int32(2)
		web("text n=2", "/v1/completions", m, map[string]any{"prompt": prompts[0], "max_tokens": half, "seed": 7, "n": 2, "ignore_eos": true})
		web("chat n=2 log-probabilities", "/v1/chat/completions", m, map[string]any{"messages": chat(prompts[1]), "max_tokens": half / 2, "seed": 8, "n": 2, "logprobs": true, "top_logprobs": 2})
		web("text log-probabilities", "/v1/completions", m, map[string]any{"prompt": prompts[3], "max_tokens": half, "seed": 9, "logprobs": 2, "ignore_eos": true})
		web("chat JSON schema", "/v1/chat/completions", m, map[string]any{"messages": chat("Describe a person as JSON."), "max_tokens": half, "seed": 10,
			"response_format": map[string]any{"type": "json_schema", "json_schema": map[string]any{"name": "person", "schema": json.RawMessage(schema)}}})
		web("text stop", "/v1/completions", m, map[string]any{"prompt": prompts[1], "max_tokens": half, "seed": 11, "stop": []string{"and the", "zzz"}})
		direct("n=2", m, prompts[2], &pb.SamplingParams{Seed: &s, N: 2, MaxTokens: int32(half), IgnoreEos: true})
		direct("log-probabilities", m, prompts[0], &pb.SamplingParams{Seed: &s, Logprobs: &two, MaxTokens: int32(half), IgnoreEos: true})
		direct("JSON schema", m, "A person as JSON:", &pb.SamplingParams{Seed: &s, MaxTokens: int32(half),
			Constraint: &pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: schema}}})
	}
	return all
}

// load runs clients without a pause.
type load struct {
	model  string
	fronts []*front
	asks   []*ask
	wanted map[*ask]*answer
	run    int64

	mu      sync.Mutex
	records []*record
	number  atomic.Int64
	running atomic.Int64
}

// undisturbed computes every answer before anything breaks.
func (l *load) undisturbed(ctx context.Context) error {
	l.wanted = map[*ask]*answer{}
	var mu sync.Mutex
	var failed error
	var done sync.WaitGroup
	next := make(chan *ask)
	for range 4 {
		done.Go(func() {
			for a := range next {
				s := l.session(a)
				s.run(ctx, l.fronts, 0)
				mu.Lock()
				if s.record.failure != "" {
					failed = fmt.Errorf("%s: %s", a.name, s.record.failure)
				}
				l.wanted[a] = &s.got
				mu.Unlock()
			}
		})
	}
	for _, a := range l.asks {
		next <- a
	}
	close(next)
	done.Wait()
	return failed
}

// name is an id that no other request has.
func (l *load) name() string { return fmt.Sprintf("chaos-%d-%d", l.run, l.number.Add(1)) }

func (l *load) session(a *ask) *session {
	id := l.name()
	return &session{ask: a, id: id, record: &record{ask: a.name, id: id, begin: time.Now()}}
}

// client sends one request after the other until stop is closed; what runs then is finished.
func (l *load) client(ctx context.Context, stop <-chan struct{}, random *rand.Rand) {
	l.running.Add(1)
	defer l.running.Add(-1)
	for {
		select {
		case <-stop:
			return
		case <-ctx.Done():
			return
		default:
		}
		s := l.session(l.asks[random.IntN(len(l.asks))])
		s.run(ctx, l.fronts, random.IntN(len(l.fronts)))
		s.record.end = time.Now()
		if s.record.failure == "" {
			s.record.diff = compare(l.wanted[s.ask], &s.got)
		}
		for _, p := range s.partial {
			p.prompt, p.completion = l.wanted[s.ask].prompt, l.wanted[s.ask].completion
			s.record.diff.add(begins(l.wanted[s.ask], &p))
		}
		if !s.record.diff.none() {
			s.record.notes = append(s.record.notes, fmt.Sprintf("want %v", l.wanted[s.ask]), fmt.Sprintf("got %v", &s.got))
		}
		l.mu.Lock()
		l.records = append(l.records, s.record)
		l.mu.Unlock()
	}
}

// start runs so many clients; finish waits until they have ended.
func (l *load) start(ctx context.Context, clients int, seed uint64) (finish func()) {
	stop := make(chan struct{})
	var done sync.WaitGroup
	for i := range clients {
		random := rand.New(rand.NewPCG(seed, uint64(i)))
		done.Go(func() { l.client(ctx, stop, random) })
	}
	return func() {
		close(stop)
		done.Wait()
	}
}
