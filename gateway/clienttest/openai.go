package clienttest

import (
	"context"
	"errors"
	"math"
	"net/http"
	"strings"
	"testing"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/option"
)

// Target is a server under test.
type Target struct {
	// URL of the HTTP API, without /v1.
	URL   string
	Model string
	// ContextLength of the model, in tokens.
	ContextLength int
	// Idle waits until the server holds no request and no block; nil skips the check.
	Idle func(t testing.TB)
}

func (s Target) client(options ...option.RequestOption) openai.Client {
	base := []option.RequestOption{option.WithBaseURL(s.URL + "/v1/"), option.WithAPIKey("unused"), option.WithMaxRetries(0)}
	return openai.NewClient(append(base, options...)...)
}

func (s Target) chat(prompt string) openai.ChatCompletionNewParams {
	return openai.ChatCompletionNewParams{
		Model:               s.Model,
		Messages:            []openai.ChatCompletionMessageParamUnion{openai.SystemMessage("Be brief."), openai.UserMessage(prompt)},
		MaxCompletionTokens: openai.Int(24),
		Seed:                openai.Int(7),
	}
}

// OpenAIGo runs the official Go client through the API.
func OpenAIGo(t *testing.T, s Target) {
	t.Run("models", s.testModels)
	t.Run("chat", s.testChat)
	t.Run("chat choices", s.testChoices)
	t.Run("chat logprobs", s.testChatLogprobs)
	t.Run("chat stream", s.testChatStream)
	t.Run("completions", s.testCompletions)
	t.Run("completion logprobs", s.testCompletionLogprobs)
	t.Run("completion stream", s.testCompletionStream)
	t.Run("abort", s.testAbort)
	t.Run("errors", s.testErrors)
}

func (s Target) testModels(t *testing.T) {
	client := s.client()
	page, err := client.Models.List(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(page.Data) == 0 {
		t.Fatal("no models")
	}
	m, err := client.Models.Get(t.Context(), s.Model)
	if err != nil {
		t.Fatal(err)
	}
	if m.ID != s.Model || m.OwnedBy != "quire" || m.Created == 0 {
		t.Errorf("got %+v", m)
	}
}

func (s Target) testChat(t *testing.T) {
	client := s.client()
	var first string
	for range 2 {
		var raw *http.Response
		r, err := client.Chat.Completions.New(t.Context(), s.chat("Say something."), option.WithResponseInto(&raw))
		if err != nil {
			t.Fatal(err)
		}
		if raw.Header.Get("X-Request-Id") == "" {
			t.Error("no x-request-id")
		}
		c := r.Choices[0]
		if len(r.Choices) != 1 || c.Message.Content == "" || c.Message.Role != "assistant" || c.FinishReason != "length" && c.FinishReason != "stop" {
			t.Errorf("got %s", r.RawJSON())
		}
		if r.Usage.PromptTokens == 0 || r.Usage.CompletionTokens == 0 || r.Usage.TotalTokens != r.Usage.PromptTokens+r.Usage.CompletionTokens {
			t.Errorf("usage %s", r.Usage.RawJSON())
		}
		if first == "" {
			first = c.Message.Content
		} else if first != c.Message.Content {
			t.Errorf("the same seed gave %q, then %q", first, c.Message.Content)
		}
	}
}

func (s Target) testChoices(t *testing.T) {
	client := s.client()
	p := s.chat("Tell me a story.")
	p.N, p.Temperature = openai.Int(3), openai.Float(1.5)
	r, err := client.Chat.Completions.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Choices) != 3 {
		t.Fatalf("%d choices", len(r.Choices))
	}
	same := 0
	for i, c := range r.Choices {
		if c.Index != int64(i) {
			t.Errorf("choice %d has index %d", i, c.Index)
		}
		if c.Message.Content == r.Choices[0].Message.Content {
			same++
		}
	}
	if same == 3 {
		t.Error("three choices of a seed are the same")
	}
}

func (s Target) testChatLogprobs(t *testing.T) {
	client := s.client()
	p := s.chat("Say something.")
	p.Logprobs, p.TopLogprobs = openai.Bool(true), openai.Int(3)
	r, err := client.Chat.Completions.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	var text []byte
	for _, tok := range r.Choices[0].Logprobs.Content {
		for _, b := range tok.Bytes {
			text = append(text, byte(b))
		}
		if len(tok.TopLogprobs) != 3 || tok.Logprob > 0 {
			t.Errorf("token %q: %d top_logprobs, logprob %g", tok.Token, len(tok.TopLogprobs), tok.Logprob)
		}
		if !(tok.TopLogprobs[0].Logprob >= tok.TopLogprobs[1].Logprob) || math.IsNaN(tok.Logprob) {
			t.Errorf("token %q: top_logprobs are not sorted", tok.Token)
		}
	}
	if got := r.Choices[0].Message.Content; !strings.HasPrefix(string(text), got) {
		t.Errorf("the tokens' bytes are %q, the text %q", text, got)
	}
}

func (s Target) testChatStream(t *testing.T) {
	client := s.client()
	p := s.chat("Say something.")
	whole, err := client.Chat.Completions.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	p.StreamOptions.IncludeUsage = openai.Bool(true)
	stream := client.Chat.Completions.NewStreaming(t.Context(), p)
	defer stream.Close()
	acc := openai.ChatCompletionAccumulator{}
	chunks := 0
	for stream.Next() {
		if !acc.AddChunk(stream.Current()) {
			t.Fatalf("the accumulator refuses %s", stream.Current().RawJSON())
		}
		chunks++
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if chunks < 4 {
		t.Errorf("only %d chunks", chunks)
	}
	got, want := acc.Choices[0], whole.Choices[0]
	if got.Message.Content != want.Message.Content || got.FinishReason != want.FinishReason || got.Message.Role != "assistant" {
		t.Errorf("streamed %q %s, whole %q %s", got.Message.Content, got.FinishReason, want.Message.Content, want.FinishReason)
	}
	if acc.Usage.TotalTokens != whole.Usage.TotalTokens || acc.Usage.CompletionTokens == 0 {
		t.Errorf("usage %s, whole %s", acc.Usage.RawJSON(), whole.Usage.RawJSON())
	}
}

func (s Target) completion(prompt string) openai.CompletionNewParams {
	return openai.CompletionNewParams{Model: openai.CompletionNewParamsModel(s.Model), Seed: openai.Int(7), MaxTokens: openai.Int(12),
		Prompt: openai.CompletionNewParamsPromptUnion{OfString: openai.String(prompt)}}
}

func (s Target) testCompletions(t *testing.T) {
	client := s.client()
	p := s.completion("")
	p.Prompt = openai.CompletionNewParamsPromptUnion{OfArrayOfStrings: []string{"One two", "Three four"}}
	p.N, p.Echo = openai.Int(2), openai.Bool(true)
	r, err := client.Completions.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Choices) != 4 {
		t.Fatalf("%d choices", len(r.Choices))
	}
	for i, c := range r.Choices {
		if want := []string{"One two", "Three four"}[i/2]; c.Index != int64(i) || !strings.HasPrefix(c.Text, want) {
			t.Errorf("choice %d: index %d, text %q", i, c.Index, c.Text)
		}
	}
}

func (s Target) testCompletionLogprobs(t *testing.T) {
	client := s.client()
	p := s.completion("One two")
	p.Logprobs = openai.Int(2)
	r, err := client.Completions.New(t.Context(), p)
	if err != nil {
		t.Fatal(err)
	}
	lp := r.Choices[0].Logprobs
	n := len(lp.Tokens)
	if n < 3 || len(lp.TokenLogprobs) != n || len(lp.TopLogprobs) != n || len(lp.TextOffset) != n {
		t.Fatalf("lists of %d, %d, %d and %d", n, len(lp.TokenLogprobs), len(lp.TopLogprobs), len(lp.TextOffset))
	}
	for i := range n {
		if len(lp.TopLogprobs[i]) < 2 || len(lp.TopLogprobs[i]) > 3 || lp.TextOffset[i] < lp.TextOffset[max(i-1, 0)] {
			t.Errorf("token %d: %d top_logprobs, offset %d", i, len(lp.TopLogprobs[i]), lp.TextOffset[i])
		}
		if lp.TopLogprobs[i][lp.Tokens[i]] != lp.TokenLogprobs[i] {
			t.Errorf("token %d: %q has %g and %g", i, lp.Tokens[i], lp.TopLogprobs[i][lp.Tokens[i]], lp.TokenLogprobs[i])
		}
	}
}

func (s Target) testCompletionStream(t *testing.T) {
	client := s.client()
	whole, err := client.Completions.New(t.Context(), s.completion("One two"))
	if err != nil {
		t.Fatal(err)
	}
	stream := client.Completions.NewStreaming(t.Context(), s.completion("One two"))
	defer stream.Close()
	var text strings.Builder
	reason := ""
	for stream.Next() {
		for _, c := range stream.Current().Choices {
			text.WriteString(c.Text)
			reason = string(c.FinishReason)
		}
	}
	if err := stream.Err(); err != nil {
		t.Fatal(err)
	}
	if text.String() != whole.Choices[0].Text || reason != string(whole.Choices[0].FinishReason) {
		t.Errorf("streamed %q %s, whole %q %s", text.String(), reason, whole.Choices[0].Text, whole.Choices[0].FinishReason)
	}
}

func (s Target) testAbort(t *testing.T) {
	client := s.client()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	p := s.chat("Talk for as long as you can.")
	p.MaxCompletionTokens = openai.Int(int64(s.ContextLength / 2))
	stream := client.Chat.Completions.NewStreaming(ctx, p, option.WithJSONSet("ignore_eos", true))
	if !stream.Next() {
		t.Fatal(stream.Err())
	}
	cancel()
	_ = stream.Close()
	if s.Idle != nil {
		s.Idle(t)
	}
}

func (s Target) testErrors(t *testing.T) {
	client := s.client()
	check := func(name string, err error, status int, code, param string) {
		t.Helper()
		var e *openai.Error
		if !errors.As(err, &e) {
			t.Errorf("%s: %v", name, err)
			return
		}
		if e.StatusCode != status || e.Code != code || e.Param != param || e.Type == "" || e.Message == "" {
			t.Errorf("%s: %d code %q param %q type %q: %s", name, e.StatusCode, e.Code, e.Param, e.Type, e.Message)
		}
	}
	p := s.chat("hi")
	p.Temperature = openai.Float(3)
	_, err := client.Chat.Completions.New(t.Context(), p)
	check("temperature", err, 400, "invalid_value", "temperature")
	p = s.chat("hi")
	p.Model = "no-such-model"
	_, err = client.Chat.Completions.New(t.Context(), p)
	check("unknown model", err, 404, "model_not_found", "model")
	p = s.chat(strings.Repeat("word and ", s.ContextLength))
	_, err = client.Chat.Completions.New(t.Context(), p)
	check("long prompt", err, 400, "context_length_exceeded", "messages")
	p = s.chat("hi")
	p.Messages = nil
	stream := client.Chat.Completions.NewStreaming(t.Context(), p)
	for stream.Next() {
		t.Error("a chunk of a refused request")
	}
	check("no messages", stream.Err(), 400, "missing_required_parameter", "messages")
	_, err = client.Models.Get(t.Context(), "no-such-model")
	check("unknown model's page", err, 404, "model_not_found", "model")
}

// OpenAIGoFull checks that a full server answers the official client with a 429 that it waits out:
// full must make the server refuse, and free must end that, once the client has been refused.
func OpenAIGoFull(t *testing.T, s Target, full, free func()) {
	full()
	client := s.client()
	_, err := client.Chat.Completions.New(t.Context(), s.chat("hi"))
	var e *openai.Error
	if !errors.As(err, &e) || e.StatusCode != 429 || e.Code != "rate_limit_exceeded" || e.Response.Header.Get("Retry-After") == "" {
		t.Fatalf("a full server answers %v", err)
	}
	refused := 0
	patient := s.client(option.WithMaxRetries(2), option.WithMiddleware(func(r *http.Request, next option.MiddlewareNext) (*http.Response, error) {
		resp, err := next(r)
		if err == nil && resp.StatusCode == 429 {
			refused++
			free()
		}
		return resp, err
	}))
	if _, err := patient.Chat.Completions.New(t.Context(), s.chat("hi")); err != nil || refused != 1 {
		t.Errorf("after %d refusals: %v", refused, err)
	}
}
