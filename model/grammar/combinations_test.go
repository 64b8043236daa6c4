package grammar

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// combinations writes random schemas: any keywords of the specification together, with values that are fit
// for each alone, whatever the type says.
type combinations struct{ *rand.Rand }

func (r combinations) one(of ...string) string { return of[r.IntN(len(of))] }

func (r combinations) schema(depth int) string {
	var members []string
	add := func(name, value string) { members = append(members, quote(name)+":"+value) }
	maybe := func(odds int, name string, value func() string) {
		if r.IntN(odds) == 0 {
			add(name, value())
		}
	}
	words := func(of ...string) func() string { return func() string { return r.one(of...) } }
	sub := func() string { return r.schema(depth - 1) }
	if r.IntN(8) > 0 {
		add("type", r.one(`"string"`, `"integer"`, `"number"`, `"boolean"`, `"null"`, `"array"`, `"object"`, `["string","null"]`, `["number","array"]`))
	}
	maybe(6, "title", words(`"T"`))
	maybe(6, "description", words(`"d"`))
	maybe(8, "default", words("null", "1", `"a"`))
	maybe(8, "minLength", words("0", "1", "3"))
	maybe(8, "maxLength", words("3", "20"))
	maybe(12, "pattern", words(`"^[a-z]+$"`, `"b"`, `"^\\\\d{2}-\\\\d{2}$"`))
	maybe(8, "format", words(`"date-time"`, `"email"`))
	maybe(8, "minimum", words("0", "-2.5", "10"))
	maybe(8, "maximum", words("10", "99.5"))
	maybe(12, "exclusiveMinimum", words("0", "-1"))
	maybe(12, "multipleOf", words("1", "5", "0.01"))
	maybe(12, "minItems", words("0", "1", "2"))
	maybe(12, "maxItems", words("2", "5"))
	maybe(16, "uniqueItems", words("true", "false"))
	maybe(20, "enum", words(`["a","b",null]`, `[1,2,3]`))
	maybe(24, "const", words(`"a"`, "1"))
	maybe(24, "minProperties", words("0", "1"))
	maybe(24, "maxProperties", words("3"))
	if depth > 0 {
		maybe(3, "properties", func() string { return fmt.Sprintf(`{"a":%s,"b":%s}`, sub(), sub()) })
		maybe(4, "required", words(`["a"]`, `["a","b"]`, `["c"]`))
		maybe(4, "additionalProperties", func() string { return r.one("false", "true", sub()) })
		maybe(3, "items", sub)
		maybe(16, "prefixItems", func() string { return "[" + sub() + "," + sub() + "]" })
		maybe(12, "anyOf", func() string { return "[" + sub() + "," + sub() + "]" })
		maybe(20, "oneOf", func() string { return "[" + sub() + "," + sub() + "]" })
		maybe(20, "allOf", func() string { return "[" + sub() + "]" })
		maybe(40, "patternProperties", func() string { return `{"^x":` + sub() + `}` })
		maybe(40, "not", sub)
		maybe(60, "contains", sub)
	}
	return "{" + strings.Join(members, ",") + "}"
}

// TestCombinationsOfKeywords: of random schemas nothing but what docs/structured-output.md states is refused,
// each refusal names its place, and the shares are those that the document states.
func TestCombinationsOfKeywords(t *testing.T) {
	const n = 2000
	reasons := []struct {
		of   string
		text *regexp.Regexp
	}{
		{"by keywords that are outside the subset, or only partly within", regexp.MustCompile(`the keyword|/(patternProperties|uniqueItems|minProperties|maxProperties)"`)},
		{"because nothing can be valid in some place", regexp.MustCompile(`no value is of|is not one of the properties`)},
		{"by what stands beside another keyword", regexp.MustCompile(`together with|can't be merged`)},
	}
	r := combinations{rand.New(rand.NewPCG(1, 2))}
	v := vocabulary(t, common)
	refused := map[string]int{}
	other := map[string]int{}
	total := 0
	for range n {
		source := r.schema(3)
		_, err := Compile(context.Background(), Spec{Kind: JSONSchema, Source: source}, v, DefaultLimits())
		if err == nil {
			continue
		}
		total++
		if !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), `json_schema at "`) {
			t.Fatalf("%s: %v", source, err)
		}
		i := slices.IndexFunc(reasons, func(x struct {
			of   string
			text *regexp.Regexp
		}) bool {
			return x.text.MatchString(err.Error())
		})
		if i < 0 {
			other[regexp.MustCompile(`at ".*"`).ReplaceAllString(err.Error(), "at")]++
			continue
		}
		refused[reasons[i].of]++
	}
	for text, times := range other {
		t.Errorf("refused %d times: %s", times, text)
	}
	doc, err := os.ReadFile("../../docs/structured-output.md")
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("Of %d random schemas %d are refused", n, total)
	for _, x := range reasons {
		want += fmt.Sprintf(", %d %s", refused[x.of], x.of)
	}
	if !strings.Contains(strings.ReplaceAll(string(doc), "\n", " "), want+".") {
		t.Errorf("docs/structured-output.md must say: %s.", want)
	}
}
