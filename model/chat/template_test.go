package chat

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/quire-serve/quire/model/tokenizer"
)

func clock() time.Time { return time.Date(2026, 11, 3, 9, 5, 7, 0, time.UTC) }

func load(t testing.TB, name string) *Template {
	t.Helper()
	source, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	template, err := New(string(source), Settings{BOS: "<s>", EOS: "</s>", Now: clock})
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return template
}

// TestGolden compares with what the real Jinja2 rendered; see testdata/golden.py.
func TestGolden(t *testing.T) {
	data, err := os.ReadFile("testdata/golden.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []struct {
		Template string
		Messages []Message
		Extra    map[string]json.RawMessage
		Generate bool
		Want     *string
		Error    string
	}
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) < 400 {
		t.Fatalf("only %d cases", len(cases))
	}
	templates := map[string]*Template{}
	for i, c := range cases {
		if templates[c.Template] == nil {
			templates[c.Template] = load(t, c.Template)
		}
		extra := map[string]any{}
		for k, v := range c.Extra {
			extra[k] = v
		}
		got, err := templates[c.Template].Render(context.Background(), c.Messages, Options{AddGenerationPrompt: c.Generate, Extra: extra})
		switch {
		case c.Want == nil:
			if !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), c.Error) {
				t.Errorf("case %d, %s: error %v, want %q", i, c.Template, err, c.Error)
			}
		case err != nil:
			t.Errorf("case %d, %s: %v", i, c.Template, err)
		case got.Text != *c.Want:
			t.Errorf("case %d, %s:\n got %q\nwant %q", i, c.Template, got.Text, *c.Want)
		}
	}
}

// TestHostileTemplateEnds: what a rendering may cost is in proportion to what it was given, whatever
// the template does; jinja's tests try every operation.
func TestHostileTemplateEnds(t *testing.T) {
	for name, source := range map[string]string{
		"bytes": "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
		"steps": "{% for a in range(3000) %}{% for b in range(3000) %}{% endfor %}{% endfor %}",
		"depth": "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
		"given": "{% for m in messages %}{{ m.content * 20 }}{% endfor %}",
	} {
		template, err := New(source, Settings{Now: clock})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if p, err := template.Render(context.Background(), []Message{{Role: "user", Content: strings.Repeat("x", 4<<20)}}, Options{}); !errors.Is(err, ErrTooLarge) || p.Text != "" {
			t.Errorf("%s: %d bytes, error %v", name, len(p.Text), err)
		}
	}
	if _, err := load(t, "tiny.jinja").Render(context.Background(), make([]Message, maxMessages+1), Options{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too many messages: error %v", err)
	}
}

// TestWhoLeavesFreesTheSlot: a client that goes while it waits for a rendering of others is told why, and
// leaves nothing behind.
func TestWhoLeavesFreesTheSlot(t *testing.T) {
	template := load(t, "tiny.jinja")
	for range cap(template.slots) {
		template.slots <- struct{}{}
	}
	ctx, leave := context.WithCancelCause(t.Context())
	why := errors.New("gone")
	ended := make(chan error)
	go func() {
		_, err := template.Render(ctx, []Message{{Role: "user", Content: "hi"}}, Options{})
		ended <- err
	}()
	leave(why)
	if err := <-ended; !errors.Is(err, why) {
		t.Errorf("error %v", err)
	}
	for range cap(template.slots) {
		<-template.slots
	}
	if _, err := template.Render(t.Context(), []Message{{Role: "user", Content: "hi"}}, Options{}); err != nil {
		t.Error(err)
	}
}

// TestLargeConversationFits: the longest conversations that a gateway takes are far from the limits.
func TestLargeConversationFits(t *testing.T) {
	for _, name := range templateFiles(t) {
		template := load(t, name)
		var messages []Message
		for i := range 4096 {
			messages = append(messages, Message{Role: []string{"user", "assistant"}[i%2], Content: strings.Repeat("word ", 400)})
		}
		if _, err := template.Render(context.Background(), messages[:4095], Options{AddGenerationPrompt: true}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, err := template.Render(context.Background(), []Message{{Role: "user", Content: strings.Repeat("word ", 1600<<10)}}, Options{AddGenerationPrompt: true}); err != nil {
			t.Errorf("%s, one message of 8 MiB: %v", name, err)
		}
	}
}

// templateFiles are the templates of this folder and jinja's, in the formats of a dozen families.
func templateFiles(t testing.TB) []string {
	t.Helper()
	names, err := fs.Glob(os.DirFS("testdata"), "*.jinja")
	if err != nil {
		t.Fatal(err)
	}
	families, err := fs.Glob(os.DirFS("jinja/testdata/families"), "*.jinja")
	if err != nil || len(names) < 7 || len(families) < 12 {
		t.Fatal(names, families, err)
	}
	for _, name := range families {
		names = append(names, "../jinja/testdata/families/"+name)
	}
	return names
}

// markers are the control tokens of a template: whatever looks like one in its source.
func markers(source string) []string {
	list := regexp.MustCompile(`<\|[^|>]+\|>|<｜[^｜]+｜>|\[/?[A-Z_]+\]|<(start|end)_of_turn>`).FindAllString(source, -1)
	list = append(list, "<s>", "</s>")
	slices.Sort(list)
	return slices.Compact(list)
}

// bytewise is a tokenizer of one token a byte, and control tokens.
func bytewise(t testing.TB, control []string) *tokenizer.Tokenizer {
	t.Helper()
	v := tokenizer.Vocab{Model: "gpt2", Pre: "gpt-2", BOS: -1, EOS: -1, EOT: -1, Unknown: -1, Pad: -1}
	next := rune(256)
	for b := range 256 {
		r := rune(b)
		if !(b >= '!' && b <= '~' || b >= 0xA1 && b <= 0xAC || b >= 0xAE) {
			r = next
			next++
		}
		v.Tokens, v.Types = append(v.Tokens, string(r)), append(v.Types, 1)
	}
	for _, s := range control {
		v.Tokens, v.Types = append(v.Tokens, s), append(v.Types, 3)
	}
	tok, err := tokenizer.New(v)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

// TestControlTokensAreTheTemplates: for every template, a conversation that spells no control token
// becomes the tokens that encoding the whole prompt with control tokens gives, as other servers do it;
// and one that does has the same control tokens in the same order, whatever it spells.
func TestControlTokensAreTheTemplates(t *testing.T) {
	for _, name := range templateFiles(t) {
		template := load(t, name)
		control := markers(template.Source())
		tok := bytewise(t, control)
		pieces := append([]string{"x", " ", "\n", "<", "|>", "<|", "<|im_", "[", "INST]", "</", "s>", "user"}, control...)
		special := func(ids []int32) (list []int32) {
			for _, id := range ids {
				if tok.IsSpecial(id) {
					list = append(list, id)
				}
			}
			return list
		}
		rapid.Check(t, func(t *rapid.T) {
			var hostile, harmless []Message
			for i := range rapid.IntRange(0, 2).Draw(t, "answers")*2 + 1 {
				said := "x" + strings.Join(rapid.SliceOfN(rapid.SampledFrom(pieces), 0, 6).Draw(t, "said"), "") + rapid.SampledFrom([]string{"x", "<", "<|", "<|im_", "[/"}).Draw(t, "end")
				m := Message{Role: []string{"user", "assistant"}[i%2], Content: said}
				hostile = append(hostile, m)
				m.Content = "x x"
				harmless = append(harmless, m)
			}
			options := Options{AddGenerationPrompt: rapid.Bool().Draw(t, "generate")}
			bad, err := template.Render(context.Background(), hostile, options)
			if err != nil {
				t.Fatal(name, err)
			}
			good, err := template.Render(context.Background(), harmless, options)
			if err != nil {
				t.Fatal(name, err)
			}
			want := tok.Encode(nil, good.Text, true)
			if got := tok.EncodeMarked(nil, good.Text, good.Own); !slices.Equal(got, want) {
				t.Fatalf("%s: %q became %v, want %v", name, good.Text, got, want)
			}
			ids := tok.EncodeMarked(nil, bad.Text, bad.Own)
			if got, want := special(ids), special(want); !slices.Equal(got, want) {
				t.Fatalf("%s: %q has the control tokens %v, want %v", name, bad.Text, got, want)
			}
			if tok.Decode(ids, false) != bad.Text {
				t.Fatalf("%s: %q came back as %q", name, bad.Text, tok.Decode(ids, false))
			}
		})
	}
}

// TestMessagesAreNeverTheTemplatesOwn: the part of the prompt that may spell control tokens is what the
// template's author wrote, for every template and whatever a message says. The sentinel is
// in no template.
func TestMessagesAreNeverTheTemplatesOwn(t *testing.T) {
	const sentinel = "\u2042"
	for _, name := range templateFiles(t) {
		template := load(t, name)
		rapid.Check(t, func(t *rapid.T) {
			said := func() string {
				parts := rapid.SliceOfN(rapid.SampledFrom([]string{"<|im_end|>", "<|im_start|>system\n", "<|", "|>", "im_start", "</think>", "[/INST]", " ", "\n", "</s>", "<", "x", "'", "\""}), 1, 6).Draw(t, "said")
				return sentinel + strings.Join(parts, sentinel) + sentinel
			}
			var messages []Message
			for i := range rapid.IntRange(1, 2).Draw(t, "turns")*2 - 1 {
				messages = append(messages, Message{Role: []string{"user", "assistant"}[i%2], Content: said(), Name: said()})
			}
			extra := map[string]any{"tools": []any{map[string]any{"type": "function", "function": map[string]any{"name": said(), "description": said(), "parameters": map[string]any{said(): said()}}}}}
			p, err := template.Render(context.Background(), messages, Options{AddGenerationPrompt: true, Extra: extra})
			if err != nil {
				t.Fatal(name, err)
			}
			if !strings.Contains(p.Text, sentinel) {
				t.Fatalf("%s: the messages are not in the prompt %q", name, p.Text)
			}
			for _, own := range p.Own {
				if s := p.Text[own[0]:own[1]]; strings.Contains(s, sentinel) {
					t.Fatalf("%s: %q counts as the template's own", name, s)
				}
			}
		})
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct{ name, source, want string }{
		{"long", strings.Repeat("x", maxSource+1), "the limit is 262144"},
		{"open tag", "{{ x", "a tag without \"}}\""},
		{"open loop", "a\n{% for x in y %}", "does not compile"},
		{"unknown statement", "a\n{% frobnicate %}", "line 2: unknown statement"},
		{"unknown filter", "{{ x | frobnicate }}", "line 1: unknown filter"},
	} {
		if _, err := New(c.source, Settings{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
	}
}

func TestRejection(t *testing.T) {
	_, err := load(t, "alternating.jinja").Render(context.Background(), []Message{{Role: "user"}, {Role: "user"}}, Options{})
	if !errors.Is(err, ErrRejected) {
		t.Fatalf("error %v", err)
	}
	want := "chat: the model's chat template rejects these messages: Conversation roles must alternate user/assistant/user/assistant/..."
	if err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestOrderOfKeys(t *testing.T) {
	template, err := New("{{ x | tojson }}|{% for k in x %}{{ k }}{% endfor %}", Settings{})
	if err != nil {
		t.Fatal(err)
	}
	got, err := template.Render(context.Background(), nil, Options{Extra: map[string]any{"x": json.RawMessage(`{"z":1,"a":{"y":2.5,"b":[null,true]},"m":"<é>"}`)}})
	if want := `{"z": 1, "a": {"y": 2.5, "b": [null, true]}, "m": "<é>"}|zam`; err != nil || got.Text != want {
		t.Errorf("got %s, %v, want %s", got.Text, err, want)
	}
	for _, bad := range []string{`{`, `{"a":1} 2`, strings.Repeat("[", 5000) + strings.Repeat("]", 5000), ``} {
		if _, err := template.Render(context.Background(), nil, Options{Extra: map[string]any{"x": json.RawMessage(bad)}}); err == nil || !strings.Contains(err.Error(), `variable "x"`) {
			t.Errorf("%.20s: error %v", bad, err)
		}
	}
}

func BenchmarkRender(b *testing.B) {
	template := load(b, "smollm2.jinja")
	for _, n := range []int{1, 16} {
		var messages []Message
		for i := range n {
			messages = append(messages, Message{Role: []string{"user", "assistant"}[i%2], Content: strings.Repeat("some words ", 20)})
		}
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if _, err := template.Render(context.Background(), messages, Options{AddGenerationPrompt: true}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
