package chat

import (
	"strings"
	"testing"
)

// TestPrepare shows what a template is rewritten to.
func TestPrepare(t *testing.T) {
	for _, c := range []struct{ name, source, want string }{
		{"text", "it's \\n\n", `{{ 'it\'s \\n' }}`},
		{"expression", "a {{- x -}} b", "{{ 'a' }}{{  x  }}{{ 'b' }}"},
		{"newline after a statement", "{% if a %}\nb\n{% endif %}\nc", "{%  if a  %}{{ 'b\n' }}{%  endif  %}{{ 'c' }}"},
		{"indented statement", "  {% if a %}b\n\t{% endif %}", "{%  if a  %}{{ 'b\n' }}{%  endif  %}"},
		{"kept indentation", "  {%+ if a +%}\nb{% endif %}", "{{ '  ' }}{%  if a  %}{{ '\nb' }}{%  endif  %}"},
		{"newline after an expression", "{% if a %}{{ x }}\n{% endif %}", "{%  if a  %}{{  x  }}{{ '\n' }}{%  endif  %}"},
		{"comment", "a\n  {# {{ b #}\nc", "{{ 'a\n' }}{{ 'c' }}"},
		{"raw", "{% raw %}{{ x }}{% endraw %}", "{{ '{{ x }}' }}"},
		{"brackets", `{{ {"a": {"b": 1}}|tojson }}`, `{{  {"a": {"b": 1} } |quire_json  }}`},
		{"quoted", `{{ "}}|tojson" | tojson_ }}`, `{{  "}}|tojson" | tojson_  }}`},
		{"carriage returns", "a\r\n\rb", "{{ 'a\n\nb' }}"},
	} {
		got, err := prepare(c.source)
		if err != nil || got != c.want {
			t.Errorf("%s: %q, %v, want %q", c.name, got, err, c.want)
		}
	}
	got, err := prepare("{% for x in y %}{% set z = x %}{% endfor %}")
	if err != nil {
		t.Fatal(err)
	}
	for _, part := range []string{"{% set quire_1_0_ = z %}{%  for x in y  %}", "quire_round()", "{% set z = quire_1_0_ %}"} {
		if !strings.Contains(got, part) {
			t.Errorf("a loop became %q, without %q", got, part)
		}
	}
}
