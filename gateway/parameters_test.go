package gateway

import (
	"context"
	"flag"
	"log/slog"
	"os"
	"strings"
	"testing"

	"github.com/quire-serve/quire/gateway/gatewaytest"
	"github.com/quire-serve/quire/model/chat"
)

func parametersGateway(t *testing.T) *Gateway {
	t.Helper()
	template, err := chat.New(gatewaytest.ChatTemplate, chat.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	g, err := New(Settings{NodeID: "n", Nodes: func() []string { return nil }, Dial: dialAdmitAll, Log: slog.New(slog.DiscardHandler),
		Models: []Model{{ID: "test", Tokenizer: gatewaytest.Tokenizer(), Chat: template, ContextLength: 2048}}})
	if err != nil {
		t.Fatal(err)
	}
	return g
}

// read reads a body as an endpoint does, members being added to the least that it needs.
func (g *Gateway) readBody(on where, members string) (*call, *apiError) {
	body := `{"model":"test","prompt":"hi"` + members + `}`
	path := g.completionCall
	if on == onChat {
		body, path = `{"model":"test","messages":[{"role":"user","content":"hi"},{"role":"assistant","content":"so"}]`+members+`}`, g.chatCall
	}
	f, e := parseBody([]byte(body))
	if e != nil {
		return nil, e
	}
	c, _, e := path(context.Background(), f, caller{id: "r"})
	return c, e
}

// TestParametersAreDocumented: docs/api.md shows the table that the code goes by.
func TestParametersAreDocumented(t *testing.T) {
	const file, begin, end = "../docs/api.md", "<!-- parameters: written by go test ./gateway -run Documented -update -->\n", "<!-- end of parameters -->\n"
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(text), begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatal("docs/api.md has no place for the parameters")
	}
	want := before + begin + "\n" + parametersTable() + "\n" + end + after
	if flag.Lookup("update").Value.String() == "true" {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if want != string(text) {
		t.Error("docs/api.md is not what the table says: go test ./gateway -run Documented -update")
	}
}

// examples are, of each obeyed parameter, a value that is taken and one that is not.
var examples = map[string][2]string{
	"temperature": {"0.5", "3"}, "top_p": {"0.5", "2"}, "top_k": {"5.0", "5.5"}, "min_p": {"0.1", "2"},
	"repetition_penalty": {"1.1", "0"}, "presence_penalty": {"1", "1e400"}, "frequency_penalty": {"1", "-3"},
	"logit_bias": {`{"5":1}`, `{"x":1}`}, "allowed_token_ids": {"[3,4.0]", "[]"}, "bad_words": {`["a b"," c"]`, `["a",""]`}, "include_stop_str_in_output": {"true", "1"}, "no_stop_trim": {"true", `"x"`}, "seed": {"7", `"x"`}, "n": {"2", "0"}, "best_of": {"1", "2"},
	"stop": {`["a"]`, `["a","b","c","d","e"]`}, "stop_token_ids": {"[3,4.0]", "[99999]"}, "min_tokens": {"0", "-1"},
	"ignore_eos": {"true", "1"}, "max_completion_tokens": {"5", "0"}, "max_tokens": {"5", "-1"},
	"top_logprobs": {"0", "3"}, "echo": {"true", "1"}, "stream": {"true", `"yes"`}, "stream_options": {`null`, `{"include_usage":true}`},
	"response_format":    {`{"type":"json_object","schema":{"type":"object"}}`, `{"type":"json_object","strict":true}`},
	"structured_outputs": {`{"regex":"a+"}`, `{"regexp":"a+"}`}, "guided_json": {`{}`, `{"type":"x"}`},
	"guided_regex": {`"a+"`, `"a("`}, "guided_choice": {`["a"]`, `[]`}, "guided_whitespace_pattern": {`null`, `"x"`},
	"json_schema": {`{"type":"string"}`, `{"not":{}}`}, "regex": {`"a+"`, `7`}, "skip_special_tokens": {"false", "0"},
	"parse_special": {"true", "1"}, "add_generation_prompt": {"false", "1"}, "continue_final_message": {"true", "1"},
	"chat_template_kwargs": {`{"x":[1]}`, `{"messages":[]}`}, "return_token_ids": {"true", "1"}, "priority": {"-8", "9"},
	"model": {"", `"other"`}, "messages": {"", ""}, "prompt": {"", ""},
	"logprobs": {"", `"x"`},
}

// TestParametersDoWhatTheTableSays: every parameter of the peers is obeyed, with its errors under its name,
// is taken though it changes nothing, or is refused by its name; nothing else is let in, and nothing is
// dropped.
func TestParametersDoWhatTheTableSays(t *testing.T) {
	g := parametersGateway(t)
	seen := map[string]bool{}
	for _, p := range parameters {
		for _, on := range []where{onChat, onText} {
			if p.on&on == 0 {
				continue
			}
			if key := on.String() + " " + p.name; seen[key] {
				t.Errorf("%s is in the table twice", key)
			} else {
				seen[key] = true
			}
			taken := func(value string) {
				t.Helper()
				if _, e := g.readBody(on, `,"`+p.name+`":`+value); e != nil {
					t.Errorf("%s: %s = %s: %s", on, p.name, value, e.message)
				}
			}
			refuses := func(value, code string) {
				t.Helper()
				_, e := g.readBody(on, `,"`+p.name+`":`+value)
				if e == nil || e.status >= 500 || !strings.HasPrefix(e.param, p.name) || code != "" && e.name != code {
					t.Errorf("%s: %s = %s: %+v", on, p.name, value, e)
				}
			}
			switch p.what {
			case obeyed:
				x, ok := examples[p.name]
				if !ok {
					t.Errorf("%s has no example", p.name)
				}
				if x[0] != "" {
					taken(x[0])
				}
				if x[1] != "" && p.name != "model" {
					refuses(x[1], "")
				}
				if p.values == "" || p.absent == "" || p.does == "" {
					t.Errorf("%s is not described", p.name)
				}
			case idle:
				for _, v := range []string{"true", `"x"`, "{}", "7"} {
					taken(v)
				}
				if p.does == "" {
					t.Errorf("%s: nothing says why it may be ignored", p.name)
				}
			case refused:
				refuses(`{"some":"thing"}`, "unsupported_parameter")
				for _, v := range append(p.harmless, "null") {
					taken(v)
				}
			}
		}
	}
	for _, c := range []struct {
		on            where
		members, want string
	}{
		{onChat, `,"temprature":1`, "is temperature meant?"},
		{onText, `,"messages":[]`, "it is one of chat"},
		{onText, `,"wholly_unknown":1`, `"wholly_unknown"`},
		{onChat, `,"stream":true,"stream_options":{"includeusage":true}`, "stream_options.includeusage"},
		{onChat, `,"temperature":1,"temperature":0`, "twice"},
		{onChat, `,"logit_bias":{"1":1,"1":2}`, "twice"},
	} {
		if _, e := g.readBody(c.on, c.members); e == nil || e.status != 400 || !strings.Contains(e.message, c.want) {
			t.Errorf("%s: %+v, want %q", c.members, e, c.want)
		}
	}
	if _, e := g.readBody(onChat, `,"unknown":null`); e != nil {
		t.Errorf("null asks for nothing: %s", e.message)
	}
	if _, e := parseBody([]byte(strings.Repeat("[", 1_000_000))); e == nil || e.status != 400 {
		t.Errorf("a body that nests a million deep: %+v", e)
	}
	if _, e := parseBody([]byte(`{"a":` + strings.Repeat("[", 20_000) + strings.Repeat("]", 20_000) + `}`)); e == nil || e.status != 400 {
		t.Errorf("a body that nests 20,000 deep: %+v", e)
	}
}

// TestHistoryOfOtherServers: messages as clients send answers of other servers back are taken.
func TestHistoryOfOtherServers(t *testing.T) {
	g := parametersGateway(t)
	for message, ok := range map[string]bool{
		`{"role":"assistant","content":"so","tool_calls":[],"function_call":null,"refusal":null,"audio":null,"annotations":[]}`:    true,
		`{"role":"assistant","content":"so","tool_calls":[{"id":"1","type":"function","function":{"name":"f","arguments":"{}"}}]}`: false,
	} {
		f, e := parseBody([]byte(`{"model":"test","messages":[` + message + `,{"role":"user","content":"hi"}]}`))
		if e != nil {
			t.Fatal(e)
		}
		if _, _, e := g.chatCall(context.Background(), f, caller{id: "r"}); (e == nil) != ok {
			t.Errorf("%s: %+v", message, e)
		}
	}
}

// TestFinalMessageIsContinued: the prompt ends with the text of the last message, and nothing of it is a
// control token that the client spelled.
func TestFinalMessageIsContinued(t *testing.T) {
	g := parametersGateway(t)
	text := func(members string) string {
		t.Helper()
		c, e := g.readBody(onChat, members)
		if e != nil {
			t.Fatal(e.message)
		}
		return gatewaytest.Tokenizer().Decode(c.prompts[0].ids, false)
	}
	whole, open, continued := text(`,"add_generation_prompt":false`), text(``), text(`,"continue_final_message":true`)
	if !strings.HasPrefix(open, whole) || len(open) <= len(whole) {
		t.Errorf("without a generation prompt %q, with it %q", whole, open)
	}
	if !strings.HasSuffix(continued, "so") || !strings.HasPrefix(whole, continued) || len(continued) >= len(whole) {
		t.Errorf("continued is %q of %q", continued, whole)
	}
	if _, e := g.readBody(onChat, `,"continue_final_message":true,"add_generation_prompt":true`); e == nil || e.param != "continue_final_message" {
		t.Errorf("both: %+v", e)
	}
}
