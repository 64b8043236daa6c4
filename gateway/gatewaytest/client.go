package gatewaytest

import (
	"encoding/json"
	"strings"
)

// TB is what of a test the helpers need; rapid's tests have it too.
type TB interface {
	Helper()
	Errorf(format string, args ...any)
	Fatalf(format string, args ...any)
}

// Events splits a stream into its data.
func Events(t TB, body string) []string {
	t.Helper()
	var list []string
	for _, block := range strings.Split(strings.TrimSuffix(body, "\n\n"), "\n\n") {
		if strings.HasPrefix(block, ": ") {
			continue // a comment, while there is nothing to tell
		}
		if id, rest, ok := strings.Cut(block, "\n"); ok && strings.HasPrefix(id, "id: ") {
			block = rest
		}
		data, ok := strings.CutPrefix(block, "data: ")
		if !ok || strings.Contains(data, "\n") {
			t.Fatalf("not an event: %q", block)
		}
		list = append(list, data)
	}
	return list
}

type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
	Details    struct {
		Cached int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

// Gather adds a stream's events, or a whole answer, up as a client would: every choice's text,
// log-probabilities and finish, and the usage. Something after a choice's finish fails the test.
func Gather(t TB, body string) string {
	t.Helper()
	type parts struct {
		Text, Finish     string
		Tokens, Logprobs []string
		Offsets          []int
	}
	choices := map[int]*parts{}
	var last *usage
	ended := false
	list := []string{strings.TrimSpace(body)}
	if !strings.HasPrefix(body, "{") {
		list = Events(t, body)
	}
	for _, data := range list {
		if data == "[DONE]" {
			ended = true
			continue
		}
		var c struct {
			Choices []struct {
				Index        int
				Text         string
				Message      struct{ Content string }
				Delta        struct{ Content string }
				FinishReason *string `json:"finish_reason"`
				Logprobs     *struct {
					Content       []json.RawMessage
					Tokens        []string          `json:"tokens"`
					TokenLogprobs []json.RawMessage `json:"token_logprobs"`
					TextOffset    []int             `json:"text_offset"`
				}
			}
			Usage *usage
			Error json.RawMessage
		}
		if err := json.Unmarshal([]byte(data), &c); err != nil {
			t.Fatalf("%v in %s", err, data)
		}
		if c.Error != nil {
			t.Fatalf("an error: %s", data)
		}
		if c.Usage != nil {
			last = c.Usage
		}
		for _, x := range c.Choices {
			p := choices[x.Index]
			if p == nil {
				p = &parts{}
				choices[x.Index] = p
			}
			if p.Finish != "" {
				t.Errorf("choice %d goes on after its finish: %s", x.Index, data)
			}
			p.Text += x.Text + x.Message.Content + x.Delta.Content
			if x.FinishReason != nil {
				p.Finish = *x.FinishReason
			}
			if x.Logprobs != nil {
				for _, lp := range append(x.Logprobs.Content, x.Logprobs.TokenLogprobs...) {
					p.Logprobs = append(p.Logprobs, string(lp))
				}
				p.Tokens = append(p.Tokens, x.Logprobs.Tokens...)
				p.Offsets = append(p.Offsets, x.Logprobs.TextOffset...)
			}
		}
	}
	if !strings.HasPrefix(body, "{") && !ended {
		t.Errorf("the stream has no end: %s", body)
	}
	out, err := json.Marshal(struct {
		Choices map[int]*parts
		Usage   *usage
	}{choices, last})
	if err != nil {
		t.Fatalf("%v", err)
	}
	return string(out)
}
