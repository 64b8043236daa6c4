package main

import (
	"context"
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

func (p *process) openai() openai.Client {
	return openai.NewClient(option.WithBaseURL("http://"+p.http+"/v1"), option.WithAPIKey("none"), option.WithMaxRetries(0))
}

// metric reads one of the server's series; several with the name are summed.
func (p *process) metric(name string) (sum float64) {
	_, text := p.get("/metrics")
	for line := range strings.Lines(text) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if bare, _, _ := strings.Cut(series, "{"); ok && bare == name {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				p.t.Fatalf("metric %q: %v", line, err)
			}
			sum += v
		}
	}
	return sum
}

// TestOpenAIGoSDK runs the official Go client, unchanged, against `quire dev`.
func TestOpenAIGoSDK(t *testing.T) {
	p := startDev(t, t.TempDir(), "--prompt", "", "--max-requests", "2")
	client := p.openai()
	ctx := t.Context()
	hello := []openai.ChatCompletionMessageParamUnion{openai.UserMessage("Hello!")}

	t.Run("models", func(t *testing.T) {
		page, err := client.Models.List(ctx)
		if err != nil || len(page.Data) != 1 || page.Data[0].ID != "tiny" {
			t.Errorf("models %+v, %v", page, err)
		}
		if m, err := client.Models.Get(ctx, "tiny"); err != nil || m.ID != "tiny" {
			t.Errorf("model %+v, %v", m, err)
		}
	})

	var whole string
	t.Run("chat", func(t *testing.T) {
		got, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
			Model: "tiny", Messages: hello, Temperature: openai.Float(0), MaxCompletionTokens: openai.Int(24),
			Logprobs: openai.Bool(true), TopLogprobs: openai.Int(3),
		})
		if err != nil {
			t.Fatal(err)
		}
		choice := got.Choices[0]
		whole = choice.Message.Content
		if whole == "" || choice.Message.Role != "assistant" || got.Usage.TotalTokens != got.Usage.PromptTokens+got.Usage.CompletionTokens {
			t.Errorf("answer %+v, usage %+v", choice, got.Usage)
		}
		var said strings.Builder
		for _, l := range choice.Logprobs.Content {
			if len(l.TopLogprobs) != 3 || l.TopLogprobs[0].Logprob < l.TopLogprobs[1].Logprob || math.Abs(l.TopLogprobs[0].Logprob-l.Logprob) > 1e-6 {
				t.Errorf("greedy token %+v is not the likeliest of its top 3", l)
			}
			said.WriteString(l.Token)
		}
		if !strings.HasPrefix(said.String(), whole) {
			t.Errorf("tokens spell %q, text is %q", said.String(), whole)
		}
	})

	t.Run("streaming says the same", func(t *testing.T) {
		stream := client.Chat.Completions.NewStreaming(ctx, openai.ChatCompletionNewParams{
			Model: "tiny", Messages: hello, Temperature: openai.Float(0), MaxCompletionTokens: openai.Int(24),
			StreamOptions: openai.ChatCompletionStreamOptionsParam{IncludeUsage: openai.Bool(true)},
		})
		var acc openai.ChatCompletionAccumulator
		for stream.Next() {
			if !acc.AddChunk(stream.Current()) {
				t.Fatalf("chunk does not fit: %s", stream.Current().RawJSON())
			}
		}
		if err := stream.Err(); err != nil {
			t.Fatal(err)
		}
		if got := acc.Choices[0].Message.Content; got != whole || acc.Choices[0].FinishReason == "" || acc.Usage.CompletionTokens == 0 {
			t.Errorf("streamed %q, finish %q, usage %+v; want %q", got, acc.Choices[0].FinishReason, acc.Usage, whole)
		}
	})

	t.Run("n choices with a seed", func(t *testing.T) {
		ask := func(seed int64) (texts []string) {
			got, err := client.Chat.Completions.New(ctx, openai.ChatCompletionNewParams{
				Model: "tiny", Messages: hello, N: openai.Int(3), Seed: openai.Int(seed), Temperature: openai.Float(1.5), MaxCompletionTokens: openai.Int(16),
			})
			if err != nil {
				t.Fatal(err)
			}
			for i, c := range got.Choices {
				if c.Index != int64(i) {
					t.Errorf("choice %d has index %d", i, c.Index)
				}
				texts = append(texts, c.Message.Content)
			}
			return texts
		}
		a, b, other := ask(5), ask(5), ask(500)
		if len(a) != 3 || strings.Join(a, "|") != strings.Join(b, "|") {
			t.Errorf("the same seed gave %q and %q", a, b)
		}
		if strings.Join(a, "|") == strings.Join(other, "|") {
			t.Errorf("seeds 5 and 500 gave the same: %q", a)
		}
	})

	t.Run("completions", func(t *testing.T) {
		got, err := client.Completions.New(ctx, openai.CompletionNewParams{
			Model: "tiny", Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String("Hello! How")},
			MaxTokens: openai.Int(4), Temperature: openai.Float(0), Logprobs: openai.Int(2), Echo: openai.Bool(true),
		})
		if err != nil {
			t.Fatal(err)
		}
		text, l := got.Choices[0].Text, got.Choices[0].Logprobs
		if n := int(got.Usage.TotalTokens); got.Usage.CompletionTokens != 4 || len(l.Tokens) != n || len(l.TextOffset) != n || l.TextOffset[0] != 0 {
			t.Errorf("usage %+v, %d tokens at %v", got.Usage, len(l.Tokens), l.TextOffset)
		}
		if !strings.HasPrefix(text, "Hello! How") || strings.Join(l.Tokens, "") != text {
			t.Errorf("tokens %q do not spell the echoed text %q", l.Tokens, text)
		}
		ids, err := client.Completions.New(ctx, openai.CompletionNewParams{
			Model: "tiny", Prompt: openai.CompletionNewParamsPromptUnion{OfArrayOfTokenArrays: [][]int64{{3, 4, 5}, {6}}}, MaxTokens: openai.Int(2),
		})
		if err != nil || len(ids.Choices) != 2 || ids.Usage.PromptTokens != 4 {
			t.Errorf("two prompts of ids: %+v, %v", ids, err)
		}
	})

	t.Run("errors", func(t *testing.T) {
		for _, c := range []struct {
			name   string
			params openai.ChatCompletionNewParams
			status int
			param  string
			code   string
		}{
			{"temperature", openai.ChatCompletionNewParams{Model: "tiny", Messages: hello, Temperature: openai.Float(9)}, 400, "temperature", ""},
			{"no messages", openai.ChatCompletionNewParams{Model: "tiny", Messages: []openai.ChatCompletionMessageParamUnion{}}, 400, "messages", ""},
			{"too long", openai.ChatCompletionNewParams{Model: "tiny", Messages: []openai.ChatCompletionMessageParamUnion{openai.UserMessage(strings.Repeat("hello ", 9000))}}, 400, "messages", "context_length_exceeded"},
			{"model", openai.ChatCompletionNewParams{Model: "gpt-9", Messages: hello}, 404, "model", "model_not_found"},
		} {
			_, err := client.Chat.Completions.New(ctx, c.params)
			var e *openai.Error
			if !errors.As(err, &e) || e.StatusCode != c.status || e.Param != c.param || c.code != "" && e.Code != c.code || e.Message == "" {
				t.Errorf("%s: %v; want %d for %s", c.name, err, c.status, c.param)
			}
		}
	})

	t.Run("overload and abort", func(t *testing.T) {
		long := openai.ChatCompletionNewParams{Model: "tiny", Messages: hello, MaxCompletionTokens: openai.Int(900)}
		long.SetExtraFields(map[string]any{"ignore_eos": true})
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		for range 2 {
			stream := client.Chat.Completions.NewStreaming(ctx, long)
			defer stream.Close()
			if !stream.Next() {
				t.Fatal(stream.Err())
			}
		}
		_, err := client.Chat.Completions.New(ctx, long)
		var e *openai.Error
		if !errors.As(err, &e) || e.StatusCode != 429 || e.Response.Header.Get("Retry-After") == "" {
			t.Fatalf("a third request beside two: %v; want 429 with Retry-After", err)
		}
		cancel()
		p.waitFor("free of requests and blocks", func() bool {
			return p.metric("quire_requests_running") == 0 && p.metric("quire_kv_cache_usage_ratio") == 0 && p.metric("quire_gateway_requests") == 0
		})
		if _, err := client.Chat.Completions.New(t.Context(), openai.ChatCompletionNewParams{Model: "tiny", Messages: hello, MaxCompletionTokens: openai.Int(2)}); err != nil {
			t.Errorf("after the aborts: %v", err)
		}
	})
}
