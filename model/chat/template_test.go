package chat

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"
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
		got, err := templates[c.Template].Render(c.Messages, Options{AddGenerationPrompt: c.Generate, Extra: extra})
		switch {
		case c.Want == nil:
			if !errors.Is(err, ErrRejected) || !strings.Contains(err.Error(), c.Error) {
				t.Errorf("case %d, %s: error %v, want %q", i, c.Template, err, c.Error)
			}
		case err != nil:
			t.Errorf("case %d, %s: %v", i, c.Template, err)
		case got != *c.Want:
			t.Errorf("case %d, %s:\n got %q\nwant %q", i, c.Template, got, *c.Want)
		}
	}
}

func TestLimits(t *testing.T) {
	hello := []Message{{Role: "user", Content: "hello"}}
	for _, c := range []struct{ name, source, want string }{
		{"loops", "{% for a in range(2000) %}{% for b in range(2000) %}{% endfor %}{% endfor %}", "rounds of loops"},
		{"recursion", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "calls of macros"},
		{"mutual recursion", "{%- macro f(x) -%}{{ g(x) }}{%- endmacro -%}{%- macro g(x) -%}{{ f(x) }}{%- endmacro -%}{{ f(1) }}", "calls of macros"},
		{"range", "{{ range(100000000) | length }}", "a range of more than"},
		{"negative range", "{{ range(0, -100000000, -1) | length }}", "a range of more than"},
		{"range of zero steps", "{{ range(1, 2, 0) }}", "must not be zero"},
		{"range of text", "{{ range('x') }}", "takes integers"},
		{"date", "{{ strftime_now('%Q') }}", "unknown directive %Q"},
		{"date cut off", "{{ strftime_now('%') }}", "ends in %"},
	} {
		template, err := New(c.source, Settings{Now: clock})
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if _, err := template.Render(hello, Options{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
	}
	if _, err := load(t, "tiny.jinja").Render(make([]Message, maxMessages+1), Options{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("too many messages: error %v", err)
	}
}

func TestTimeLimit(t *testing.T) {
	now := clock()
	template, err := New("{% for a in range(1000) %}x{% endfor %}", Settings{Now: func() time.Time {
		now = now.Add(time.Second)
		return now
	}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := template.Render(nil, Options{}); err != nil || len(got) != 1000 {
		t.Errorf("three looks at the clock: %d bytes, %v", len(got), err)
	}
	template.settings.Now = func() time.Time {
		now = now.Add(4 * time.Second)
		return now
	}
	if _, err := template.Render(nil, Options{}); !errors.Is(err, ErrTooLarge) {
		t.Errorf("past the time limit: error %v", err)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct{ name, source, want string }{
		{"long", strings.Repeat("x", maxSource+1), "the limit is 262144"},
		{"open tag", "{{ x", "a tag without \"}}\""},
		{"open comment", "{# x", "a comment without its end"},
		{"open raw", "{% raw %} x", "a raw block without its end"},
		{"open loop", "{% for x in y %}", "does not compile"},
		{"unknown statement", "{% frobnicate %}", "does not compile"},
		{"nesting", "{{ " + strings.Repeat("(", 1000) + "1" + strings.Repeat(")", 1000) + " }}", "nests more than 64 brackets"},
	} {
		if _, err := New(c.source, Settings{}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
	}
}

func TestRejection(t *testing.T) {
	_, err := load(t, "alternating.jinja").Render([]Message{{Role: "user"}, {Role: "user"}}, Options{})
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
	got, err := template.Render(nil, Options{Extra: map[string]any{"x": json.RawMessage(`{"z":1,"a":{"y":2.5,"b":[null,true]},"m":"<é>"}`)}})
	if want := `{"z": 1, "a": {"y": 2.5, "b": [null, true]}, "m": "<é>"}|zam`; err != nil || got != want {
		t.Errorf("got %s, %v, want %s", got, err, want)
	}
	for _, bad := range []string{`{`, `{"a":1} 2`, strings.Repeat("[", 200) + strings.Repeat("]", 200), ``} {
		if _, err := template.Render(nil, Options{Extra: map[string]any{"x": json.RawMessage(bad)}}); err == nil || !strings.Contains(err.Error(), `variable "x"`) {
			t.Errorf("%.20s: error %v", bad, err)
		}
	}
}

func TestStrftime(t *testing.T) {
	got, err := strftime(clock(), "%A %a %d %-d %B %b %Y %y %H:%M:%S %I %-I %p %j 100%%")
	if want := "Tuesday Tue 03 3 November Nov 2026 26 09:05:07 09 9 AM 307 100%"; err != nil || got != want {
		t.Errorf("got %q, %v, want %q", got, err, want)
	}
}

func FuzzTemplate(f *testing.F) {
	for _, name := range []string{"smollm2", "tiny", "headers", "thinking", "alternating", "plain"} {
		source, err := os.ReadFile("testdata/" + name + ".jinja")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(string(source))
	}
	f.Add("{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}")
	f.Fuzz(func(t *testing.T, source string) {
		template, err := New(source, Settings{Now: clock})
		if err != nil {
			return
		}
		prompt, err := template.Render([]Message{{Role: "user", Content: "hi"}, {Role: "assistant", Content: "hello", Name: "n"}}, Options{AddGenerationPrompt: true})
		if err != nil && prompt != "" {
			t.Errorf("a prompt beside the error %v", err)
		}
	})
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
				if _, err := template.Render(messages, Options{AddGenerationPrompt: true}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
