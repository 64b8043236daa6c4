package gateway_test

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/quire-serve/quire/gateway"
	"github.com/quire-serve/quire/gateway/gatewaytest"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

const chatPath, textPath = "/v1/chat/completions", "/v1/completions"

// frozen makes a gateway's answers reproducible to the byte.
func frozen(s *gateway.Settings) { s.Now = func() time.Time { return created } }

// stepped posts a streaming request under a fixed id and lets the workers step once more whenever text
// arrives, so that no two steps share a chunk.
func (d *door) stepped(path, body string) string {
	d.t.Helper()
	var all strings.Builder
	d.Step(1)
	s := d.stream(path, body, "Idempotency-Key", "req-1")
	if ct := s.resp.Header.Get("Content-Type"); s.resp.StatusCode != 200 || ct != "text/event-stream; charset=utf-8" {
		d.t.Fatalf("status %d, content type %q", s.resp.StatusCode, ct)
	}
	for data := s.next(); data != ""; data = s.next() {
		all.WriteString("data: " + data + "\n\n")
		if text := decode[chunk](d.t, strings.Replace(data, "[DONE]", "{}", 1)); len(text.Choices) > 0 && text.Choices[0].Delta.Content+text.Choices[0].Text != "" {
			d.Step(1)
		}
	}
	return all.String()
}

// TestStreamGolden holds whole streams against golden files, byte for byte, and each chunk against
// its schema.
func TestStreamGolden(t *testing.T) {
	cases := []struct{ name, path, shape, body string }{
		{"chat", chatPath, "ChatCompletionChunk", `{"model":"test","messages":[{"role":"user","content":"hi"}],"stream":true}`},
		{"chat_usage", chatPath, "ChatCompletionChunk", `{"model":"test","messages":[{"role":"user","content":"hi"}],"stream":true,"stream_options":{"include_usage":true}}`},
		{"chat_logprobs", chatPath, "ChatCompletionChunk", `{"model":"test","messages":[{"role":"user","content":"hi"}],"stream":true,"logprobs":true,"top_logprobs":2,"max_tokens":3}`},
		{"chat_length", chatPath, "ChatCompletionChunk", `{"model":"test","messages":[{"role":"user","content":"hi"}],"stream":true,"max_completion_tokens":2}`},
		{"chat_stop", chatPath, "ChatCompletionChunk", `{"model":"test","messages":[{"role":"user","content":"hi"}],"stream":true,"stop":["é\"","zz"]}`},
		{"completion", textPath, "CompletionChunk", `{"model":"test","prompt":"hi","stream":true,"max_tokens":20}`},
		{"completion_echo", textPath, "CompletionChunk", `{"model":"test","prompt":"hi","stream":true,"echo":true,"max_tokens":2,"logprobs":1,"stream_options":{"include_usage":true}}`},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			d := open(t, gatewaytest.Options{Manual: true, TokensPerStep: 2, Reply: gatewaytest.Say("Hé\"\n\\x")}, frozen)
			got := d.stepped(c.path, c.body)
			list := events(t, got)
			if list[len(list)-1] != "[DONE]" {
				t.Errorf("the stream ends with %s", list[len(list)-1])
			}
			for _, data := range list[:len(list)-1] {
				validate(t, c.shape, data)
			}
			golden(t, "stream_"+c.name+".txt", got)
			d.Await(func(s gatewaytest.State) bool { return s.UsedBlocks == 0 })
		})
	}
}

// TestWholeGolden holds whole answers against a golden file and their schema.
func TestWholeGolden(t *testing.T) {
	cases := []struct{ name, path, shape, body string }{
		{"chat", chatPath, "ChatCompletion", `{"model":"test","messages":[{"role":"user","content":"hi"}]}`},
		{"chat with logprobs", chatPath, "ChatCompletion", `{"model":"test","messages":[{"role":"user","content":"hi"}],"logprobs":true,"top_logprobs":1}`},
		{"chat with choices", chatPath, "ChatCompletion", `{"model":"test","messages":[{"role":"user","content":"hi"}],"n":2,"max_tokens":3}`},
		{"completion", textPath, "Completion", `{"model":"test","prompt":"hi"}`},
		{"completion with logprobs", textPath, "Completion", `{"model":"test","prompt":"hi","logprobs":2}`},
		{"completion with no logprobs beside the chosen", textPath, "Completion", `{"model":"test","prompt":"hi","logprobs":0,"max_tokens":1}`},
		{"completion with echo", textPath, "Completion", `{"model":"test","prompt":[104,105,257],"echo":true,"logprobs":1,"max_tokens":1}`},
		{"scored prompt", textPath, "Completion", `{"model":"test","prompt":"hi","echo":true,"logprobs":0,"max_tokens":0}`},
		{"several prompts", textPath, "Completion", `{"model":"test","prompt":["a","bc"],"n":2,"max_tokens":2,"echo":true}`},
		{"several token prompts", textPath, "Completion", `{"model":"test","prompt":[[97],[98,99]],"max_tokens":2}`},
		{"stopped by a string", textPath, "Completion", `{"model":"test","prompt":"hi","stop":"\n"}`},
		{"stopped by an id", textPath, "Completion", `{"model":"test","prompt":"hi","stop_token_ids":[34]}`},
		{"past the end", textPath, "Completion", `{"model":"test","prompt":"hi","ignore_eos":true,"max_tokens":10}`},
		{"special tokens shown", textPath, "Completion", `{"model":"test","prompt":"hi","ignore_eos":true,"max_tokens":9,"skip_special_tokens":false}`},
	}
	d := open(t, gatewaytest.Options{Reply: gatewaytest.Say("Hé\"\n\\x")}, frozen)
	var all strings.Builder
	for i, c := range cases {
		r := d.post(c.path, c.body, "Idempotency-Key", fmt.Sprint("req-", i))
		if r.status != 200 || r.header.Get("Content-Type") != "application/json" {
			t.Errorf("%s: status %d, content type %q", c.name, r.status, r.header.Get("Content-Type"))
		}
		validate(t, c.shape, r.body)
		fmt.Fprintf(&all, "%s\n%s\n", c.name, r.body)
	}
	golden(t, "whole.txt", all.String())
	if s := d.State(); s.Live != 0 || len(s.Aborts) != 0 {
		t.Errorf("%d requests are live and %d were aborted", s.Live, len(s.Aborts))
	}
}

type chunk struct {
	ID      string
	Choices []struct {
		Index        int
		Text         string
		Delta        struct{ Role, Content string }
		FinishReason *string `json:"finish_reason"`
	}
	Usage *usage
	Error *struct{ Message, Code string }
}

type usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
	Total      int `json:"total_tokens"`
	Details    struct {
		Cached int `json:"cached_tokens"`
	} `json:"prompt_tokens_details"`
}

// TestStreamEqualsWhole compares what streams add up to with the unstreamed answer, for several
// prompts and choices at once, cut by a stop string.
func TestStreamEqualsWhole(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	body := func(stream bool) string {
		return fmt.Sprintf(`{"model":"test","prompt":["one","two","three"],"n":3,"max_tokens":60,"seed":7,"stop":["ab","e "],"stream":%t}`, stream)
	}
	whole := decode[chunk](t, d.post(textPath, body(false)).body)
	if len(whole.Choices) != 9 {
		t.Fatalf("%d choices", len(whole.Choices))
	}
	texts, reasons := make([]string, 9), make([]string, 9)
	list := events(t, d.post(textPath, body(true)).body)
	for _, data := range list[:len(list)-1] {
		for _, c := range decode[chunk](t, data).Choices {
			if reasons[c.Index] != "" {
				t.Errorf("choice %d goes on after its end", c.Index)
			}
			texts[c.Index] += c.Text
			if c.FinishReason != nil {
				reasons[c.Index] = *c.FinishReason
			}
		}
	}
	stopped := 0
	for i, c := range whole.Choices {
		if c.Index != i || texts[i] != c.Text || reasons[i] != *c.FinishReason {
			t.Errorf("choice %d: %q %s streamed, %q %s whole", i, texts[i], reasons[i], c.Text, *c.FinishReason)
		}
		if strings.Contains(c.Text, "ab") || strings.Contains(c.Text, "e ") {
			t.Errorf("choice %d holds a stop string: %q", i, c.Text)
		}
		if *c.FinishReason == "stop" {
			stopped++
		}
	}
	if stopped == 0 || stopped == 9 {
		t.Errorf("%d of 9 choices were stopped: the test wants some of each", stopped)
	}
}

// TestMinTokens keeps a stop string that comes before min_tokens, and no later one.
func TestMinTokens(t *testing.T) {
	d := open(t, gatewaytest.Options{Reply: gatewaytest.Say("a.b.c.d")})
	r := decode[chunk](t, d.post(textPath, `{"model":"test","prompt":"x","stop":".","min_tokens":3}`).body)
	if got := r.Choices[0].Text; got != "a.b" {
		t.Errorf("got %q", got)
	}
}

// TestStopBeginsBeforeMinTokens: a stop string counts if it ends behind min_tokens.
func TestStopBeginsBeforeMinTokens(t *testing.T) {
	d := open(t, gatewaytest.Options{Reply: gatewaytest.Say("abSTOPcSTOPd")})
	for least, want := range map[int]string{0: "ab", 5: "ab", 6: "abSTOPc", 8: "abSTOPc", 11: "abSTOPcSTOPd"} {
		r := decode[chunk](t, d.post(textPath, fmt.Sprintf(`{"model":"test","prompt":"x","stop":"STOP","min_tokens":%d,"max_tokens":12}`, least)).body)
		if got := r.Choices[0].Text; got != want {
			t.Errorf("min_tokens %d: %q, want %q", least, got, want)
		}
	}
}

// TestStopsAcrossSpecialTokens: where special tokens are shown, stop strings are found in the text with
// them, and nothing behind is generated or billed; where they are not, in the text without them. One
// that spells a special token ends the choice by its id either way.
func TestStopsAcrossSpecialTokens(t *testing.T) {
	ids := append(append(gatewaytest.Text("ab"), gatewaytest.TurnStart), gatewaytest.Text("cdef")...)
	d := open(t, gatewaytest.Options{Reply: func(_ *pb.Request, _, i int) int32 { return ids[min(i, len(ids)-1)] }})
	for _, c := range []struct {
		show   bool
		stop   string
		text   string
		billed int
	}{
		{true, "b<|im_start|>c", "a", 4},
		{true, "|>c", "ab<|im_start", 4},
		{true, "bcd", "ab<|im_start|>cdef", 7},
		{false, "bcd", "a", 5},
		{false, "b<|im_start|>c", "abcdef", 7},
		{false, "<|im_start|>", "ab", 3},
		{true, "<|im_start|>", "ab", 3},
	} {
		r := decode[chunk](t, d.post(textPath, fmt.Sprintf(`{"model":"test","prompt":"x","stop":%q,"skip_special_tokens":%t,"max_tokens":7}`, c.stop, !c.show)).body)
		if got := r.Choices[0].Text; got != c.text || r.Usage.Completion != c.billed {
			t.Errorf("stop %q, special tokens shown %t: %q for %d tokens, want %q for %d", c.stop, c.show, got, r.Usage.Completion, c.text, c.billed)
		}
	}
}

// TestUnfinishedCharacter: an answer that ends within a character leaves it out, whole or streamed.
func TestUnfinishedCharacter(t *testing.T) {
	d := open(t, gatewaytest.Options{Reply: gatewaytest.Say("a\u20acb\u20ac")})
	for most, want := range map[int]string{1: "a", 2: "a", 3: "a", 4: "a\u20ac", 6: "a\u20acb"} {
		r := decode[chunk](t, d.post(textPath, fmt.Sprintf(`{"model":"test","prompt":"x","max_tokens":%d}`, most)).body)
		if got := r.Choices[0].Text; got != want {
			t.Errorf("max_tokens %d: %q, want %q", most, got, want)
		}
		text := ""
		for _, e := range events(t, d.post(textPath, fmt.Sprintf(`{"model":"test","prompt":"x","max_tokens":%d,"stream":true}`, most)).body) {
			if e != "[DONE]" {
				text += decode[chunk](t, e).Choices[0].Text
			}
		}
		if text != want {
			t.Errorf("max_tokens %d, streamed: %q, want %q", most, text, want)
		}
	}
}

// TestMaxTokensDefaults checks what is generated when the client does not say.
func TestMaxTokensDefaults(t *testing.T) {
	d := open(t, gatewaytest.Options{ContextLength: 40})
	d.post(textPath, `{"model":"test","prompt":"0123456789"}`)
	d.post(textPath, `{"model":"test","prompt":"012345678901234567890123456789"}`)
	d.post(chatPath, `{"model":"test","messages":[{"role":"user","content":"0"}]}`)
	want := []int32{16, 10, 40 - 20}
	for i, req := range d.State().Requests {
		if req.Sampling.MaxTokens != want[i] {
			t.Errorf("request %d: max_tokens %d with a prompt of %d, want %d", i, req.Sampling.MaxTokens, len(req.Prompt), want[i])
		}
	}
}

// TestSeeds checks that a request always has a seed: the client's, or one that its id fixes.
func TestSeeds(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	d.post(textPath, `{"model":"test","prompt":"x","max_tokens":1,"seed":-1}`)
	d.post(textPath, `{"model":"test","prompt":"x","max_tokens":1}`, "Idempotency-Key", "k")
	d.post(textPath, `{"model":"test","prompt":"x","max_tokens":1}`)
	reqs := d.State().Requests
	if *reqs[0].Sampling.Seed != 1<<64-1 {
		t.Errorf("seed -1 became %d", *reqs[0].Sampling.Seed)
	}
	if *reqs[1].Sampling.Seed != 17748730838482375810 {
		t.Errorf("the seed of id k is %d", *reqs[1].Sampling.Seed)
	}
	if *reqs[2].Sampling.Seed == *reqs[1].Sampling.Seed {
		t.Error("two ids have one seed")
	}
	// Equal prompts of one call are sampled apart, unless the client has said how.
	d.post(textPath, `{"model":"test","prompt":["x","x"],"max_tokens":1}`)
	d.post(textPath, `{"model":"test","prompt":["x","x"],"max_tokens":1,"seed":5}`)
	reqs = d.State().Requests[3:]
	if len(reqs) != 4 || *reqs[0].Sampling.Seed == *reqs[1].Sampling.Seed {
		t.Errorf("equal prompts have one seed: %v", reqs)
	}
	if *reqs[2].Sampling.Seed != 5 || *reqs[3].Sampling.Seed != 5 {
		t.Errorf("the client's seed 5 became %d and %d", *reqs[2].Sampling.Seed, *reqs[3].Sampling.Seed)
	}
}

// TestSamplingReachesWorker sends every parameter and looks at what the worker gets.
func TestSamplingReachesWorker(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	r := d.post(chatPath, `{"model":"test","messages":[{"role":"user","content":"hi"}],"temperature":0.5,"top_p":0.9,"top_k":7,"min_p":0.05,
		"repetition_penalty":1.1,"presence_penalty":-0.5,"frequency_penalty":0.25,"seed":42,"max_tokens":9,"min_tokens":2,"stop":["x","y"],
		"stop_token_ids":[3,4],"ignore_eos":true,"logit_bias":{"5":-100,"6":1.5},"logprobs":true,"top_logprobs":3,"n":2}`)
	if r.status != 200 {
		t.Fatalf("%d %s", r.status, r.body)
	}
	got, err := json.Marshal(d.State().Requests[0].Sampling)
	if err != nil {
		t.Fatal(err)
	}
	const want = `{"temperature":0.5,"top_k":7,"top_p":0.9,"min_p":0.05,"repetition_penalty":1.1,"presence_penalty":-0.5,"frequency_penalty":0.25,"seed":42,"max_tokens":9,"min_tokens":2,"stop":["x","y"],"stop_token_ids":[3,4],"ignore_eos":true,"logit_bias":{"5":-100,"6":1.5},"logprobs":3,"n":2}`
	if string(got) != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if req := d.State().Requests[0]; req.GatewayId != "node-1" || req.Model != "test" || req.CreatedUnixMs == 0 || req.Id == "" {
		t.Errorf("request is %v", &pb.Request{Id: req.Id, Model: req.Model, GatewayId: req.GatewayId})
	}
}
