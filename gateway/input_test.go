package gateway_test

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/quire-serve/quire/gateway"
	"github.com/quire-serve/quire/gateway/gatewaytest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares got with a file, or writes the file.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs\ngot:\n%s\nwant:\n%s", name, got, want)
	}
}

// TestBadInput holds the status and body of every refusal against a golden file.
func TestBadInput(t *testing.T) {
	d := open(t, gatewaytest.Options{ContextLength: 100}, func(s *gateway.Settings) { s.MaxBodyBytes = 64 << 10 })
	const chatPath, textPath = "/v1/chat/completions", "/v1/completions"
	chat := func(members string) string {
		return `{"model":"test","messages":[{"role":"user","content":"hi"}]` + members + `}`
	}
	text := func(members string) string { return `{"model":"test","prompt":"hi"` + members + `}` }
	cases := []struct{ name, method, path, body string }{
		{"empty body", "POST", chatPath, ""},
		{"malformed JSON", "POST", chatPath, "{\"model\":\"test\",\n\"messages\":[}"},
		{"truncated JSON", "POST", chatPath, `{"model":"test"`},
		{"text after the object", "POST", chatPath, chat("") + "x"},
		{"not an object", "POST", chatPath, `["model"]`},
		{"null", "POST", chatPath, `null`},
		{"invalid UTF-8", "POST", chatPath, "{\"model\":\"te\xffst\"}"},
		{"body too large", "POST", chatPath, chat(`,"user":"` + strings.Repeat("x", 64<<10) + `"`)},
		{"no model", "POST", chatPath, `{"messages":[{"role":"user","content":"hi"}]}`},
		{"model of the wrong type", "POST", chatPath, `{"model":7,"messages":[]}`},
		{"unknown model", "POST", chatPath, `{"model":"gpt-9","messages":[{"role":"user","content":"hi"}]}`},
		{"no messages", "POST", chatPath, `{"model":"test"}`},
		{"empty messages", "POST", chatPath, `{"model":"test","messages":[]}`},
		{"messages of the wrong type", "POST", chatPath, `{"model":"test","messages":"hi"}`},
		{"a message that is no object", "POST", chatPath, `{"model":"test","messages":["hi"]}`},
		{"a message without role", "POST", chatPath, `{"model":"test","messages":[{"content":"hi"}]}`},
		{"a message without content", "POST", chatPath, `{"model":"test","messages":[{"role":"user"}]}`},
		{"an unknown role", "POST", chatPath, `{"model":"test","messages":[{"role":"wizard","content":"hi"}]}`},
		{"a tool's message", "POST", chatPath, `{"model":"test","messages":[{"role":"tool","content":"hi"}]}`},
		{"content of the wrong type", "POST", chatPath, `{"model":"test","messages":[{"role":"user","content":"a"},{"role":"user","content":5}]}`},
		{"an image", "POST", chatPath, `{"model":"test","messages":[{"role":"user","content":[{"type":"image_url","image_url":{"url":"x"}}]}]}`},
		{"a part without text", "POST", chatPath, `{"model":"test","messages":[{"role":"user","content":[{"type":"text"}]}]}`},
		{"prompt longer than the context", "POST", chatPath, `{"model":"test","messages":[{"role":"user","content":"` + strings.Repeat("a", 200) + `"}]}`},
		{"prompt and max_tokens beyond the context", "POST", textPath, text(`,"max_tokens":99`)},
		{"negative max_tokens", "POST", chatPath, chat(`,"max_tokens":-5`)},
		{"zero max_tokens", "POST", textPath, text(`,"max_tokens":0`)},
		{"huge max_tokens", "POST", chatPath, chat(`,"max_tokens":1000000000000`)},
		{"max_tokens beyond 64 bits", "POST", chatPath, chat(`,"max_completion_tokens":100000000000000000000000`)},
		{"fractional max_tokens", "POST", chatPath, chat(`,"max_tokens":1.5`)},
		{"max_tokens of the wrong type", "POST", chatPath, chat(`,"max_tokens":"5"`)},
		{"min_tokens above max_tokens", "POST", chatPath, chat(`,"max_tokens":5,"min_tokens":6`)},
		{"temperature of the wrong type", "POST", chatPath, chat(`,"temperature":"hot"`)},
		{"temperature too high", "POST", chatPath, chat(`,"temperature":2.5`)},
		{"negative top_p", "POST", chatPath, chat(`,"top_p":-0.1`)},
		{"number beyond 32-bit floats", "POST", chatPath, chat(`,"temperature":1e400`)},
		{"negative top_k", "POST", chatPath, chat(`,"top_k":-2`)},
		{"min_p too high", "POST", chatPath, chat(`,"min_p":1.1`)},
		{"zero repetition_penalty", "POST", chatPath, chat(`,"repetition_penalty":0`)},
		{"presence_penalty too low", "POST", chatPath, chat(`,"presence_penalty":-3`)},
		{"n of 0", "POST", chatPath, chat(`,"n":0`)},
		{"n too large", "POST", chatPath, chat(`,"n":129`)},
		{"seed of the wrong type", "POST", chatPath, chat(`,"seed":"x"`)},
		{"stream of the wrong type", "POST", chatPath, chat(`,"stream":"yes"`)},
		{"stream_options without stream", "POST", chatPath, chat(`,"stream_options":{"include_usage":true}`)},
		{"stream_options of the wrong type", "POST", chatPath, chat(`,"stream":true,"stream_options":{"include_usage":1}`)},
		{"too many stops", "POST", chatPath, chat(`,"stop":["a","b","c","d","e"]`)},
		{"empty stop", "POST", chatPath, chat(`,"stop":""`)},
		{"stop of the wrong type", "POST", chatPath, chat(`,"stop":[1]`)},
		{"stop token id outside", "POST", chatPath, chat(`,"stop_token_ids":[1,259]`)},
		{"stop token id of the wrong type", "POST", chatPath, chat(`,"stop_token_ids":["x"]`)},
		{"logit_bias with a word", "POST", chatPath, chat(`,"logit_bias":{"hello":1}`)},
		{"logit_bias too strong", "POST", chatPath, chat(`,"logit_bias":{"5":101}`)},
		{"logit_bias of an unknown token", "POST", chatPath, chat(`,"logit_bias":{"259":1}`)},
		{"top_logprobs without logprobs", "POST", chatPath, chat(`,"top_logprobs":2`)},
		{"too many top_logprobs", "POST", chatPath, chat(`,"logprobs":true,"top_logprobs":21`)},
		{"logprobs of the wrong type", "POST", chatPath, chat(`,"logprobs":1`)},
		{"completion logprobs too many", "POST", textPath, text(`,"logprobs":21`)},
		{"tools", "POST", chatPath, chat(`,"tools":[{"type":"function","function":{"name":"f"}}]`)},
		{"tool_choice", "POST", chatPath, chat(`,"tool_choice":"required"`)},
		{"response_format unknown", "POST", chatPath, chat(`,"response_format":{"type":"grammar"}`)},
		{"schema of the wrong type", "POST", chatPath, chat(`,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":[]}}`)},
		{"schema outside the subset", "POST", textPath, text(`,"response_format":{"type":"json_schema","json_schema":{"name":"x","schema":{"type":"object","properties":{"a":{"not":{"type":"string"}}}}}}`)},
		{"json_schema without a schema", "POST", chatPath, chat(`,"response_format":{"type":"json_schema","json_schema":{"name":"x"}}`)},
		{"audio", "POST", chatPath, chat(`,"modalities":["text","audio"]`)},
		{"suffix", "POST", textPath, text(`,"suffix":"end"`)},
		{"best_of", "POST", textPath, text(`,"best_of":3`)},
		{"no prompt", "POST", textPath, `{"model":"test"}`},
		{"prompt of the wrong type", "POST", textPath, `{"model":"test","prompt":5}`},
		{"empty prompt", "POST", textPath, `{"model":"test","prompt":""}`},
		{"empty list of prompts", "POST", textPath, `{"model":"test","prompt":[]}`},
		{"mixed prompts", "POST", textPath, `{"model":"test","prompt":["a",[1]]}`},
		{"prompt token outside", "POST", textPath, `{"model":"test","prompt":[1,2,259]}`},
		{"prompt token of the wrong type", "POST", textPath, `{"model":"test","prompt":[1,"a"]}`},
		{"wrong method", "GET", chatPath, ""},
		{"wrong method on a list", "POST", "/v1/models", "{}"},
		{"unknown path", "POST", "/v1/embeddings", "{}"},
		{"unknown model's page", "GET", "/v1/models/meta/llama", ""},
	}
	var all strings.Builder
	for _, c := range cases {
		r := d.do(c.method, c.path, c.body)
		if ct := r.header.Get("Content-Type"); ct != "application/json" {
			t.Errorf("%s: content type %q", c.name, ct)
		}
		validate(t, "Error", r.body)
		fmt.Fprintf(&all, "%s\n%d %s\n", c.name, r.status, r.body)
	}
	golden(t, "bad_input.txt", all.String())
	if s := d.State(); s.Admitted != 0 {
		t.Errorf("%d bad requests were admitted", s.Admitted)
	}
}

// TestTenMegabytes sends the body that the default limit is there for.
func TestTenMegabytes(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	r := d.post("/v1/completions", `{"model":"test","prompt":"`+strings.Repeat("a", 10_000_000)+`"}`)
	const want = `{"error":{"message":"the body is larger than 8388608 bytes","type":"invalid_request_error","param":null,"code":"request_too_large"}}` + "\n"
	if r.status != 413 || r.body != want {
		t.Errorf("got %d %s", r.status, r.body)
	}
}

// TestHarmlessParameters lets pass what asks for nothing.
func TestHarmlessParameters(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	r := d.post("/v1/chat/completions", `{"model":"test","messages":[{"role":"developer","content":[{"type":"text","text":"a"},{"type":"text","text":"b"}]}],
		"max_tokens":2,"tools":[],"tool_choice":"auto","response_format":{"type":"text"},"modalities":[ "text" ],"user":"me","metadata":{"a":"b"},
		"stop":null,"temperature":null,"unheard_of":null,"top_p":0,"top_k":-1,"store":false}`)
	if r.status != 200 {
		t.Fatalf("got %d %s", r.status, r.body)
	}
	req := d.State().Requests[0]
	if got := gatewaytest.Tokenizer().Decode(req.Prompt, false); got != "<|im_start|>system\nab<|im_end|>\n<|im_start|>assistant\n" {
		t.Errorf("prompt is %q", got)
	}
	if p := req.Sampling; p.TopP != nil || p.TopK != 1 || p.Temperature != nil || p.Seed == nil {
		t.Errorf("sampling is %v", p)
	}
}

// TestEveryResponseHasARequestID: also those of pages without requests, and of none.
func TestEveryResponseHasARequestID(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	for _, path := range []string{"/health", "/metrics", "/version", "/v1/models", "/nowhere"} {
		if page := d.do("GET", path, ""); len(page.header.Get("X-Request-Id")) < 16 {
			t.Errorf("%s answers with x-request-id %q", path, page.header.Get("X-Request-Id"))
		}
	}
}

// TestTokenIDsAndUsageSoFar: ids beside the text add up to what was counted, in streams and in whole
// answers; and every chunk says what was used up to it.
func TestTokenIDsAndUsageSoFar(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	type body struct {
		PromptTokenIDs []int `json:"prompt_token_ids"`
		Choices        []struct {
			Index          int
			TokenIDs       []int `json:"token_ids"`
			PromptTokenIDs []int `json:"prompt_token_ids"`
		}
		Usage *struct {
			Prompt     int `json:"prompt_tokens"`
			Completion int `json:"completion_tokens"`
			Total      int `json:"total_tokens"`
		}
	}
	for path, ask := range map[string]string{chatPath: `"messages":[{"role":"user","content":"hi"}]`, textPath: `"prompt":"hi"`} {
		ask = `{"model":"test","max_tokens":5,"seed":3,"n":2,"return_token_ids":true,` + ask
		whole := decode[body](t, d.post(path, ask+`}`).body)
		prompt := whole.PromptTokenIDs
		if path == textPath {
			prompt = whole.Choices[0].PromptTokenIDs
		}
		if len(prompt) == 0 || len(prompt) != whole.Usage.Prompt {
			t.Errorf("%s: %d ids of a prompt of %d tokens", path, len(prompt), whole.Usage.Prompt)
		}
		s := d.stream(path, ask+`,"stream":true,"stream_options":{"include_usage":true,"continuous_usage_stats":true}}`)
		ids := make([][]int, 2)
		var first []int
		last := 0
		for event := s.next(); event != "[DONE]"; event = s.next() {
			if event == "" {
				t.Fatal("the stream breaks off")
			}
			b := decode[body](t, event)
			if b.Usage == nil || b.Usage.Completion < last || b.Usage.Prompt != whole.Usage.Prompt || b.Usage.Total != b.Usage.Prompt+b.Usage.Completion {
				t.Fatalf("%s: usage %+v after %d tokens", path, b.Usage, last)
			}
			last = b.Usage.Completion
			first = append(first, b.PromptTokenIDs...)
			for _, c := range b.Choices {
				ids[c.Index] = append(ids[c.Index], c.TokenIDs...)
				if path == textPath && c.Index == 0 {
					first = append(first, c.PromptTokenIDs...)
				}
			}
		}
		if total := len(ids[0]) + len(ids[1]); total != last || last != whole.Usage.Completion {
			t.Errorf("%s: %d ids, %d tokens counted, %d in the whole answer", path, total, last, whole.Usage.Completion)
		}
		for i, c := range whole.Choices {
			if !slices.Equal(c.TokenIDs, ids[i]) {
				t.Errorf("%s: choice %d streamed %v, whole %v", path, i, ids[i], c.TokenIDs)
			}
		}
		if path == chatPath {
			first = first[:len(first)/2] // once for each choice
		}
		if !slices.Equal(first, prompt) {
			t.Errorf("%s: the prompt streamed is %v, whole %v", path, first, prompt)
		}
	}
	if r := d.post(textPath+"/", `{"model":"test","prompt":"hi","max_tokens":1}`); r.status != 200 {
		t.Errorf("a slash at the path's end: %d %s", r.status, r.body)
	}
}
