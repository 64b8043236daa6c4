package jinja

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

func clock() time.Time { return time.Date(2026, 11, 3, 9, 5, 7, 0, time.UTC) }

// generous limits are those of tests that are not about limits.
var generous = Limits{Steps: 1 << 20, Bytes: 8 << 20}

func variables(t testing.TB) Object {
	t.Helper()
	data, err := os.ReadFile("testdata/variables.json")
	if err != nil {
		t.Fatal(err)
	}
	var names map[string]json.RawMessage
	if err := json.Unmarshal(data, &names); err != nil {
		t.Fatal(err)
	}
	var o Object
	for name, v := range names {
		o = append(o, Member{name, v})
	}
	return o
}

func render(source string, o Object, limits Limits) (Text, error) {
	t, err := Parse(source)
	if err != nil {
		return Text{}, err
	}
	return t.Render(context.Background(), o, Environment{Limits: limits, Now: clock})
}

type languageCase struct {
	Template string
	Want     *string
	Error    string
}

func languageCases(t testing.TB) []languageCase {
	t.Helper()
	data, err := os.ReadFile("testdata/language.json")
	if err != nil {
		t.Fatal(err)
	}
	var cases []languageCase
	if err := json.Unmarshal(data, &cases); err != nil {
		t.Fatal(err)
	}
	if len(cases) < 170 {
		t.Fatalf("only %d cases", len(cases))
	}
	return cases
}

// TestLanguage compares with what the real Jinja2 rendered, or that it refused; see testdata/language.py.
func TestLanguage(t *testing.T) {
	o := variables(t)
	for _, c := range languageCases(t) {
		got, err := render(c.Template, o, generous)
		switch {
		case c.Want == nil && err == nil:
			t.Errorf("%s\n got %q\nwant an error: %s", c.Template, got, c.Error)
		case c.Want != nil && err != nil:
			t.Errorf("%s\n got the error %v\nwant %q", c.Template, err, *c.Want)
		case c.Want != nil && got.s != *c.Want:
			t.Errorf("%s\n got %q\nwant %q", c.Template, got, *c.Want)
		}
	}
}

// attacks are templates that build or do without end unless something stops them: one for each way in
// which an operation makes more than it is given.
var attacks = map[string]string{
	"doubling by +":          "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
	"doubling by ~":          "{% set ns = namespace(x='ab') %}{% for i in range(100) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
	"doubling a list":        "{% set ns = namespace(x=[1]) %}{% for i in range(100) %}{% set ns.x = ns.x + ns.x %}{% endfor %}",
	"repeating a string":     "{{ ('x' * 1000000000000) | length }}",
	"repeating a list":       "{{ ([1] * 1000000000000) | length }}",
	"repeating past 64 bits": "{{ ([1, 2] * 4611686018427387905) | length }}",
	"repeating nothing":      "{{ ('' * 1000000000000) | length }}{{ ([] * 1000000000000) | length }}{{ [1] * 1000000000000 }}",
	"range":                  "{{ range(1000000000000) | length }}",
	"range downwards":        "{{ range(0, -1000000000000, -1) | length }}",
	"join":                   "{{ range(1000) | join('x' * 1000) | length }}",
	"replace":                "{{ ('a' * 1000) | replace('a', 'b' * 1000) | length }}",
	"replace of nothing":     "{{ ('a' * 1000).replace('', 'b' * 1000) | length }}",
	"center":                 "{{ 'a' | center(1000000000000) | length }}",
	"center method":          "{{ 'a'.center(1000000000000) | length }}",
	"ljust":                  "{{ 'a'.ljust(1000000000000) | length }}",
	"zfill":                  "{{ '7'.zfill(1000000000000) | length }}",
	"width of a format":      "{{ '%1000000000d' | format(1) | length }}",
	"width given":            "{{ '%*d' | format(1000000000, 1) | length }}",
	"width of str.format":    "{{ '{:1000000000}'.format('a') | length }}",
	"indent":                 "{{ ('\\n' * 1000 ~ 'a') | indent(1000000000000, true, true) | length }}",
	"indent by a string":     "{{ ('a\\n' * 1000) | indent('x' * 1000) | length }}",
	"indent of JSON":         "{{ [[[1]]] | tojson(indent=1000000000000) | length }}",
	"indent of deep JSON":    "{% set ns = namespace(x=[]) %}{% for i in range(300) %}{% set ns.x = [ns.x, i] %}{% endfor %}{{ ns.x | tojson(indent='x' * 200) | length }}",
	"separators of JSON":     "{{ range(1000) | list | tojson(separators=('x' * 1000, '')) | length }}",
	"batch":                  "{{ [1] | batch(1000000000000, 'x') | list | length }}",
	"slice":                  "{{ [1] | slice(1000000000000, 'x') | list | length }}",
	"characters":             "{{ ('a' * 200000) | list | length }}",
	"split":                  "{{ ('a ' * 60000).split() | length }}",
	"lines":                  "{{ ('\\n' * 100000).splitlines() | length }}",
	"growing object":         "{% set ns = namespace(d={}) %}{% for i in range(10000) %}{% set ns.d = dict(ns.d, **{'k' ~ i: i}) %}{% endfor %}",
	"shared lists, printed":  "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
	"shared lists, JSON":     "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
	"shared lists, compared": "{% set ns = namespace(x=[1], y=[1]) %}{% for i in range(60) %}{% set ns.x = [ns.x, ns.x] %}{% set ns.y = [ns.y, ns.y] %}{% endfor %}{{ ns.x == ns.y }}",
	"deep lists, printed":    "{% set ns = namespace(x=[1]) %}{% for i in range(3000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x }}",
	"recursion":              "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
	"mutual recursion":       "{% macro f(x) %}{{ g(x) }}{% endmacro %}{% macro g(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}",
	"wide recursion":         "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
	"recursion of callers":   "{% macro f() %}{% if caller %}{% endif %}{% call f() %}{% endcall %}{% endmacro %}{{ f() }}",
	"recursion of defaults":  "{% macro f(x=f()) %}{% endmacro %}{{ f() }}",
	"recursive loop":         "{% for x in [[1]] recursive %}{{ loop([[1]]) }}{% endfor %}",
	"loops in loops":         "{% for a in range(200) %}{% for b in range(200) %}{% for c in range(200) %}{% endfor %}{% endfor %}{% endfor %}",
	"output":                 "{% for a in range(400) %}" + strings.Repeat("x", 1000) + "{% endfor %}",
	"searching":              "{% set s = 'a' * 100000 %}{% for i in range(1000) %}{% if 'b' in s %}{% endif %}{% endfor %}",
	"counting":               "{% set s = 'a' * 100000 %}{% for i in range(1000) %}{{ s | length }}{% endfor %}",
	"indexing":               "{% set s = 'a' * 100000 %}{% for i in range(1000) %}{{ s[-1] }}{% endfor %}",
	"stripping by a set":     "{% set s = 'a' * 10000 %}{% for i in range(10) %}{{ s.strip('bcdefghi' * 1000 ~ 'a') }}{% endfor %}",
	"comparing":              "{% set s = 'a' * 100000 %}{% set u = 'a' * 100000 %}{% for i in range(1000) %}{{ s == u }}{% endfor %}",
	"changing case":          "{% set s = 'a' * 30000 %}{% for i in range(1000) %}{% set u = s | upper %}{% endfor %}",
	"sorting":                "{% for i in range(100) %}{% set u = range(500) | sort(reverse=true) %}{% endfor %}",
	"sorting long strings":   "{% set l = ['a' * 30000] * 50 %}{% for i in range(100) %}{% set u = l | sort %}{% endfor %}",
	"mapping by maps":        "{% for i in range(1000) %}{% set u = [range(100)] | map('map', 'string') | list %}{% endfor %}",
	"scopes":                 strings.Repeat("{% with %}", 150) + "{{ q" + strings.Repeat(" ~ q", 2000) + " }}" + strings.Repeat("{% endwith %}", 150),
	"many provenances":       "{% set ns = namespace(x='') %}{% for i in range(3000) %}{% set ns.x = ns.x ~ 'a' ~ data %}{% endfor %}",
	"power":                  "{% for i in range(100000) %}{% set x = 3 ** 39 %}{% endfor %}",
}

// TestBudgetHolds: no operation builds more than the budget allows, nor works longer.
func TestBudgetHolds(t *testing.T) {
	limits := Limits{Steps: 200_000, Bytes: 256 << 10}
	for name, source := range attacks {
		template, err := Parse(source)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		_, err = template.Render(context.Background(), Object{{"data", "d"}}, Environment{Limits: limits, Now: clock})
		runtime.ReadMemStats(&after)
		if e := (*Error)(nil); !errors.As(err, &e) || !e.Limit {
			t.Errorf("%s: error %v, want one of a limit", name, err)
		}
		// Buffers that grow are copied, and steps allocate a little too: a fixed multiple, not more.
		if took := after.TotalAlloc - before.TotalAlloc; took > 48<<20 {
			t.Errorf("%s: %d bytes allocated under a limit of %d", name, took, limits.Bytes)
		}
	}
}

// TestDepthHolds: a template that nests without end is refused, not the end of the process.
func TestDepthHolds(t *testing.T) {
	for name, source := range map[string]string{
		"brackets":  "{{ " + strings.Repeat("(", 100_000) + "1" + strings.Repeat(")", 100_000) + " }}",
		"lists":     "{{ " + strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000) + " }}",
		"nots":      "{{ " + strings.Repeat("not ", 100_000) + "1 }}",
		"signs":     "{{ " + strings.Repeat("- ", 100_000) + "1 }}",
		"ifs":       strings.Repeat("{% if 1 %}", 100_000) + strings.Repeat("{% endif %}", 100_000),
		"elses":     "{{ " + strings.Repeat("1 if 0 else ", 100_000) + "1 }}",
		"sums":      "{{ 1" + strings.Repeat(" + 1", 100_000) + " }}",
		"members":   "{{ a" + strings.Repeat(".a", 100_000) + " }}",
		"filters":   "{{ a" + strings.Repeat("|trim", 100_000) + " }}",
		"calls":     "{{ a" + strings.Repeat("()", 100_000) + " }}",
		"variables": "{{ deep }}",
	} {
		deep := json.RawMessage(strings.Repeat("[", 100_000) + strings.Repeat("]", 100_000))
		if name != "variables" {
			deep = json.RawMessage("1")
		}
		if _, err := render(source, Object{{"deep", deep}}, generous); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestProvenance says of each operation which bytes are the author's: those between « and ».
func TestProvenance(t *testing.T) {
	o := Object{{"d", "data"}, {"e", ""}, {"o", Object{{"k", json.RawMessage(`{"x y": ["v"]}`)}}}, {"n", 5}, {"lines", "a\nb"}, {"bos", Own("<s>")}}
	for _, c := range []struct{ source, want string }{
		{"<{{ d }}>", "«<»data«>»"},
		{"{{ '<' + d + '>' }}", "«<»data«>»"},
		{"{{ '<' ~ d ~ '>' }}", "«<»data«>»"},
		{"{{ '<' + '>' }}|{{ e }}|", "«<>||»"},
		{"{{ bos + d }}", "«<s>»data"},
		{"{{ d + d }}", "datadata"},
		{"{{ d * 2 }}{{ 'x' * 2 }}", "datadata«xx»"},
		{"{{ d[1:3] }}{{ d[0] }}{{ d[::-1] }}{{ 'abc'[1:] }}", "atdatad«bc»"},
		{"{% set x = '<' + d + '>' %}{{ x[:2] }}|{{ x[-2:] }}|{{ x[::2] }}", "«<»d«|»a«>|<»aa"},
		{"{{ d | upper }}{{ 'x' | upper }}{{ ('x' + d) | title }}{{ d | capitalize }}", "DATA«XX»DataData"},
		{"{{ d | replace('a', '<') }}{{ '<x>' | replace('x', d) }}", "d«<»t«<<»data«>»"},
		{"{{ [d, 'x'] | join('-') }}", "data«-x»"},
		{"{{ ['<', d] | first }}{{ ['<', d] | last }}", "«<»data"},
		{"{{ (' ' + d + ' ') | trim }}{{ d.strip('d') }}{{ ' x '.strip() }}", "dataata«x»"},
		{"{{ d.split('a') | join('<') }}", "d«<»t«<»"},
		{"{{ lines | indent(2) }}", "a«\n  »b"},
		{"{{ d | center(6) }}", "« »data« »"},
		{"{{ '%s|%5s' | format(d, 'x') }}{{ '{}|{:>3}'.format(d, 'x') }}", "data«|    x»data«|  x»"},
		{"{{ '%s'|format(d) }}{{ d | format }}", "datadata"},
		{"{{ o | tojson }}", "«{\"k\": {\"»x y«\": [\"»v«\"]}}»"},
		{"{{ o.k }}", "«{»'x y'«: [»'v'«]}»"},
		{"{% for k, v in o.k.items() %}{{ k }}{{ v[0] }}{% endfor %}", "x yv"},
		{"{% for k in o %}{{ k }}{% endfor %}", "«k»"},
		{"{{ {'user': '<u>'}['us' ~ 'er'] }}", "«<u>»"},
		{"{{ n }}{{ 7 }}{{ true }}{{ none }}", "57TrueNone"},
		{"{% set x %}<{{ d }}>{% endset %}{{ x }}", "«<»data«>»"},
		{"{% macro m(x) %}<{{ x }}{{ caller() if caller else '' }}>{% endmacro %}{{ m(d) }}{% call m('y') %}{{ d }}!{% endcall %}", "«<»data«><y»data«!>»"},
		{"{% filter upper %}<{{ d }}x{% endfilter %}", "«<»DATA«X»"},
		{"{% generation %}<{{ d }}{% endgeneration %}", "«<»data"},
		{"{{ d if d == 'data' else 'x' }}{{ d or 'x' }}{{ e or 'x' }}{{ nope | default(d) }}", "datadata«x»data"},
		{"{{ d | truncate(3, true, '', 0) }}{{ d | list | join }}{{ d | reverse }}", "datdataatad"},
		{"{{ [d, 'b'] | map('upper') | join }}{{ [d] | sort | join }}", "DATA«B»data"},
		{"{{ d.removeprefix('da') }}{{ ('<' + d).partition('a') | join('|') }}{{ '<s>'.join(['x', d]) }}", "ta«<»d«|»a«|»ta«x<s>»data"},
		{"{{ strftime_now('%Y') }}", "2026"},
		{"{% set ns = namespace(x='<') %}{% set ns.x = ns.x + d %}{{ ns.x }}", "«<»data"},
		{"{{ d | string }}{{ d | safe }}{{ d | default('x') }}{{ 'data' if 'data' == d }}", "datadatadata«data»"},
	} {
		got, err := render(c.source, o, generous)
		if err != nil {
			t.Errorf("%s: %v", c.source, err)
			continue
		}
		var marked strings.Builder
		got.segments(func(s string, own bool) {
			if own {
				s = "«" + s + "»"
			}
			marked.WriteString(s)
		})
		if marked.String() != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.source, marked.String(), c.want)
		}
	}
}

// TestNumbersDoNotWrap: what does not fit 64 bits is an error.
func TestNumbersDoNotWrap(t *testing.T) {
	for _, e := range []string{"9223372036854775807 + 1", "-9223372036854775807 - 2", "9223372036854775807 * 2", "2 ** 63", "3 ** 100", "-(-9223372036854775807 - 1)",
		"(-9223372036854775807 - 1) // -1", "9223372036854775808"} {
		if got, err := render("{{ "+e+" }}", nil, generous); err == nil {
			t.Errorf("%s = %s", e, got)
		}
	}
	for e, want := range map[string]string{"9223372036854775806 + 1": "9223372036854775807", "-9223372036854775807 - 1": "-9223372036854775808", "3 ** 39": "4052555153018976267",
		"-3037000499 * 3037000499": "-9223372030926249001", "(-1) ** 1001": "-1", "0 ** 0": "1", "1 ** 1000000": "1", "0 - 5": "-5", "5 + 0": "5"} {
		if got, err := render("{{ "+e+" }}", nil, generous); err != nil || got.s != want {
			t.Errorf("%s = %q, %v, want %s", e, got.s, err, want)
		}
	}
}

// FuzzTemplate: whatever a template does, it ends within its limits, and no byte of the data comes out
// as the author's.
func FuzzTemplate(f *testing.F) {
	for _, c := range languageCases(f) {
		f.Add(c.Template)
	}
	for _, source := range attacks {
		f.Add(source)
	}
	// No template can write these characters unless it has them, and they have no case.
	const mark = "※⁂"
	o := Object{{"s", mark}, {"d", Object{{"a", mark}, {"items", []any{mark, 1}}}}, {"l", []any{mark, "x", 2}}, {"n", 3}, {"words", []any{mark}}, {"lines", mark + "\n" + mark},
		{"data", mark}, {"messages", []any{Object{{"role", mark}, {"content", mark}}}}}
	f.Fuzz(func(t *testing.T, source string) {
		if strings.ContainsAny(source, mark) || strings.Contains(source, "\\") {
			return
		}
		got, err := render(source, o, Limits{Steps: 20_000, Bytes: 64 << 10})
		if err != nil {
			if got.s != "" || strings.Contains(err.Error(), faulty) {
				t.Fatalf("text %q beside the error %v", got, err)
			}
			return
		}
		at := 0
		for _, own := range got.Own() {
			if own.From < at || own.From >= own.To || own.To > len(got.s) {
				t.Fatalf("spans %v of %d bytes", got.Own(), len(got.s))
			}
			at = own.To
			if s := got.s[own.From:own.To]; strings.ContainsAny(s, mark) {
				t.Fatalf("%q came from the data and counts as the author's", s)
			}
		}
	})
}

// TestRenderingEndsWithItsContext: a rendering that has much left to do ends when nobody wants it any more,
// whatever it is doing.
func TestRenderingEndsWithItsContext(t *testing.T) {
	for _, source := range []string{
		"{% for a in range(30000) %}{% for b in range(30000) %}{% endfor %}{% endfor %}",
		"{% for a in range(30000) %}{% set x = data | upper | lower | replace('a', 'b') %}{% endfor %}",
	} {
		template, err := Parse(source)
		if err != nil {
			t.Fatal(err)
		}
		ctx, leave := context.WithCancelCause(t.Context())
		why := errors.New("gone")
		leave(why)
		limits := Limits{Steps: 1 << 40, Bytes: 1 << 40}
		if got, err := template.Render(ctx, Object{{"data", strings.Repeat("a", 1<<16)}}, Environment{Limits: limits, Now: clock}); !errors.Is(err, why) || got.s != "" {
			t.Errorf("%s: %d bytes, error %v", source, len(got.s), err)
		}
	}
}

// TestFamilies compares templates in the formats of a dozen families, rendered over conversations with
// tools, thoughts, parts and documents, with what transformers renders; see testdata/families.py.
func TestFamilies(t *testing.T) {
	data, err := os.ReadFile("testdata/families.json")
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Shared []json.RawMessage
		Cases  []struct {
			Template  string
			Variables map[string]json.RawMessage
			Want      *string
			Error     string
		}
	}
	if err := json.Unmarshal(data, &file); err != nil {
		t.Fatal(err)
	}
	templates := map[string]*Template{}
	wanted := map[string]int{}
	for i, c := range file.Cases {
		if templates[c.Template] == nil {
			source, err := os.ReadFile("testdata/families/" + c.Template)
			if err != nil {
				t.Fatal(err)
			}
			if templates[c.Template], err = Parse(string(source)); err != nil {
				t.Fatalf("%s: %v", c.Template, err)
			}
		}
		var o Object
		for name, v := range c.Variables {
			var place int
			switch name {
			case "messages", "tools", "documents":
				if err := json.Unmarshal(v, &place); err != nil {
					t.Fatal(err)
				}
				v = file.Shared[place]
			case "bos_token", "eos_token":
				var s string
				if err := json.Unmarshal(v, &s); err != nil {
					t.Fatal(err)
				}
				o = append(o, Member{name, Own(s)})
				continue
			}
			o = append(o, Member{name, v})
		}
		got, err := templates[c.Template].Render(context.Background(), o, Environment{Limits: generous, Now: clock})
		var e *Error
		switch {
		case c.Want != nil && err != nil:
			t.Errorf("case %d, %s: %v, want %q", i, c.Template, err, *c.Want)
		case c.Want != nil && got.s != *c.Want:
			t.Errorf("case %d, %s:\n got %q\nwant %q", i, c.Template, got, *c.Want)
		case c.Want != nil:
			wanted[c.Template]++
		case c.Error != "" && (!errors.As(err, &e) || !e.Raised || e.Text != c.Error):
			t.Errorf("case %d, %s: error %v, want %q", i, c.Template, err, c.Error)
		case err == nil || got.s != "":
			t.Errorf("case %d, %s: %q, %v, want an error", i, c.Template, got, err)
		}
	}
	for name := range templates {
		if wanted[name] < 20 {
			t.Errorf("%s: only %d cases with a prompt", name, wanted[name])
		}
	}
	if len(templates) < 12 {
		t.Errorf("only %d templates", len(templates))
	}
}
