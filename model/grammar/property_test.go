package grammar

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"pgregory.net/rapid"
)

// A sample is a random schema of the subset with a way to write documents that it allows.
type sample struct {
	source string
	write  func(r *rand.Rand, depth int) string
}

var patterns = []struct {
	source string
	texts  []string
}{
	{`^[a-c]{2,4}$`, []string{"ab", "ccc", "abca"}},
	{`^(ab|\\")+\n?$`, []string{"ab", `\"ab`, "ab\n"}},
	{`b1`, []string{"b1", "日b1\t", "xxb1b1"}},
	{`^\p{L}\d*`, []string{"é", "a12", "日9!"}},
	{`é$`, []string{"é", "12é"}},
}

func drawName(t *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "b", "ab", "name", "é", `q"`, "", "a\nb", "日本"}).Draw(t, "name")
}

// drawSchema draws a schema of at most depth levels. Within a definition, self refers to it.
func drawSchema(t *rapid.T, depth int, self string) sample {
	return idle(t, drawKind(t, depth, self))
}

func drawKind(t *rapid.T, depth int, self string) sample {
	kinds := []string{"string", "length", "pattern", "integer", "number", "boolean", "null", "enum", "const", "bounded", "cents", "multiple", "counted"}
	if depth > 0 {
		kinds = append(kinds, "tuple", "set", "allOf", "beside", "object", "object", "object", "map", "array", "array", "any", "anyOf", "types", "recursion")
	}
	literal := func(r *rand.Rand) string {
		return spell([]any{"x y", json.Number("12.50"), nil, true, &object{names: []string{"k"}, values: map[string]any{"k": []any{json.Number("1")}}}}[r.IntN(5)])
	}
	switch rapid.SampledFrom(kinds).Draw(t, "kind") {
	case "length":
		lo := rapid.IntRange(0, 4).Draw(t, "min")
		hi := lo + rapid.IntRange(0, 5).Draw(t, "more")
		return sample{fmt.Sprintf(`{"type":"string","minLength":%d,"maxLength":%d}`, lo, hi),
			func(r *rand.Rand, _ int) string { return randomText(r, lo+r.IntN(hi-lo+1)) }}
	case "pattern":
		p := rapid.SampledFrom(patterns).Draw(t, "pattern")
		return sample{fmt.Sprintf(`{"type":"string","pattern":%s}`, quote(p.source)),
			func(r *rand.Rand, _ int) string { return quote(p.texts[r.IntN(len(p.texts))]) }}
	case "integer":
		lo := rapid.Int64Range(-2000, 2000).Draw(t, "minimum")
		hi := lo + rapid.Int64Range(0, 3000).Draw(t, "more")
		return sample{fmt.Sprintf(`{"type":"integer","minimum":%d,"exclusiveMaximum":%d}`, lo, hi+1),
			func(r *rand.Rand, _ int) string { return fmt.Sprint(lo + r.Int64N(hi-lo+1)) }}
	case "number":
		return sample{`{"type":"number"}`, func(r *rand.Rand, _ int) string {
			return []string{"0", "-0.5", "12", "1e10", "-9.25E-3", fmt.Sprint(r.IntN(1 << 30))}[r.IntN(6)]
		}}
	case "bounded":
		// In units of 10^-places, so that the test knows which numbers are within the bounds.
		places := rapid.IntRange(0, 4).Draw(t, "places")
		lo := rapid.Int64Range(-20_000, 20_000).Draw(t, "minimum")
		hi := lo + rapid.Int64Range(0, 30_000).Draw(t, "more")
		return sample{fmt.Sprintf(`{"type":"number","minimum":%s,"maximum":%s}`, decimal(lo, places), decimal(hi, places)),
			func(r *rand.Rand, _ int) string {
				return decimal(lo*100+r.Int64N((hi-lo)*100+1), places+2)
			}}
	case "cents":
		hi := rapid.Int64Range(1, 100_000).Draw(t, "maximum")
		return sample{fmt.Sprintf(`{"type":"number","multipleOf":0.01,"exclusiveMinimum":0,"maximum":%s}`, decimal(hi, 2)),
			func(r *rand.Rand, _ int) string { return decimal(1+r.Int64N(hi), 2) }}
	case "multiple":
		of := rapid.Int64Range(1, 120).Draw(t, "of")
		lo := rapid.Int64Range(-300, 300).Draw(t, "minimum")
		return sample{fmt.Sprintf(`{"type":"integer","multipleOf":%d,"minimum":%d,"maximum":%d}`, of, lo*of, (lo+50)*of),
			func(r *rand.Rand, _ int) string { return fmt.Sprint((lo + r.Int64N(51)) * of) }}
	case "counted":
		lo := rapid.IntRange(0, 3).Draw(t, "min")
		return sample{fmt.Sprintf(`{"type":"string","pattern":"^[a-c]+$","minLength":%d,"maxLength":%d}`, lo, lo+2),
			func(r *rand.Rand, _ int) string { return quote("abcab"[:max(lo, 1)+r.IntN(min(lo, 1)+2)]) }}
	case "tuple":
		x, y := drawSchema(t, depth-1, self), drawSchema(t, depth-1, self)
		rest := rapid.SampledFrom([]string{"", `,"items":false`, `,"items":{"type":"null"}`, `,"maxItems":2`}).Draw(t, "rest")
		return sample{`{"type":"array","prefixItems":[` + x.source + `,` + y.source + `]` + rest + `,"minItems":1}`,
			func(r *rand.Rand, depth int) string {
				items := []string{x.write(r, depth-1), y.write(r, depth-1), "null"}
				if n := len(rest); n > 0 && rest[n-1] != '}' {
					items = items[:2]
				}
				return "[" + strings.Join(items[:1+r.IntN(len(items))], ",") + "]"
			}}
	case "allOf":
		x := drawSchema(t, depth-1, self)
		return sample{`{"allOf":[{"type":"object","properties":{"a":` + x.source + `,"b":{}}},{"required":["b"]},{"properties":{"b":{"type":["integer","null"],"maximum":7}}}]}`,
			func(r *rand.Rand, depth int) string {
				if r.IntN(2) == 0 {
					return `{"b":7}`
				}
				return `{"a":` + x.write(r, depth-1) + `, "b":null}`
			}}
	case "beside":
		x := drawSchema(t, depth-1, self)
		return sample{`{"type":["object","string"],"properties":{"k":` + x.source + `},"anyOf":[{"required":["k"]},{"type":"string","maxLength":2}]}`,
			func(r *rand.Rand, depth int) string {
				if r.IntN(2) == 0 {
					return `"ab"`
				}
				return `{"k": ` + x.write(r, depth-1) + `}`
			}}
	case "boolean":
		return sample{`{"type":"boolean"}`, func(r *rand.Rand, _ int) string { return []string{"true", "false"}[r.IntN(2)] }}
	case "null":
		return sample{`{"type":"null"}`, func(*rand.Rand, int) string { return "null" }}
	case "enum":
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0))
		list := []string{literal(r), quote(drawName(t)), `"fixed"`}
		return sample{`{"enum":[` + strings.Join(list, ",") + `]}`, func(r *rand.Rand, _ int) string { return list[r.IntN(len(list))] }}
	case "const":
		text := literal(rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 0)))
		return sample{`{"const":` + text + `}`, func(*rand.Rand, int) string { return text }}
	case "object":
		return drawObject(t, depth, self)
	case "map":
		sub := drawSchema(t, depth-1, self)
		return sample{`{"type":"object","additionalProperties":` + sub.source + `}`, func(r *rand.Rand, depth int) string {
			var members []string
			for range r.IntN(3) {
				members = append(members, randomText(r, 6)+": "+sub.write(r, depth-1))
			}
			return "{" + strings.Join(members, ", ") + "}"
		}}
	case "array":
		sub := drawSchema(t, depth-1, self)
		lo := rapid.IntRange(0, 2).Draw(t, "min")
		more := rapid.IntRange(-1, 3).Draw(t, "more")
		bounds := fmt.Sprintf(`,"minItems":%d`, lo)
		if more >= 0 {
			bounds += fmt.Sprintf(`,"maxItems":%d`, lo+more)
		}
		return sample{`{"type":"array","items":` + sub.source + bounds + `}`, func(r *rand.Rand, depth int) string {
			var items []string
			for range lo + r.IntN(max(more, 2)+1)*boolInt(more != 0) {
				if more >= 0 && len(items) == lo+more {
					break
				}
				items = append(items, sub.write(r, depth-1))
			}
			return "[" + strings.Join(items, ",") + "]"
		}}
	case "set":
		values := []string{`"a"`, `"ab"`, "1", "12", "-0.5", "null", "true"}
		lo := rapid.IntRange(0, 3).Draw(t, "min")
		hi := lo + rapid.IntRange(0, len(values)-lo).Draw(t, "more")
		return sample{fmt.Sprintf(`{"type":"array","items":{"enum":[%s,1.0]},"uniqueItems":true,"minItems":%d,"maxItems":%d}`, strings.Join(values, ","), lo, max(hi, 2)),
			func(r *rand.Rand, _ int) string {
				var items []string
				for _, i := range r.Perm(len(values))[:lo+r.IntN(hi-lo+1)] {
					items = append(items, values[i])
				}
				return "[" + strings.Join(items, ",") + "]"
			}}
	case "any":
		return sample{`{}`, func(r *rand.Rand, _ int) string {
			return []string{`{"a": [1, {"b": []}]}`, `[]`, `"x"`, `-1.5`, `[[[null]]]`}[r.IntN(5)]
		}}
	case "anyOf":
		x, y := drawSchema(t, depth-1, self), drawSchema(t, depth-1, self)
		return sample{`{"anyOf":[` + x.source + `,` + y.source + `]}`, func(r *rand.Rand, depth int) string {
			return []sample{x, y}[r.IntN(2)].write(r, depth-1)
		}}
	case "types":
		return sample{`{"type":["integer","null","array"],"items":{"type":"boolean"},"maximum":5}`, func(r *rand.Rand, _ int) string {
			return []string{"5", "-77", "null", "[]", "[true,false]"}[r.IntN(5)]
		}}
	case "recursion":
		if self == "" {
			break
		}
		source := `{"anyOf":[{"type":"array","items":{"$ref":"` + self + `"}},{"type":"null"}]}`
		return sample{source, func(r *rand.Rand, _ int) string { return []string{"null", "[]"}[r.IntN(2)] }}
	}
	return sample{`{"type":"string"}`, func(r *rand.Rand, _ int) string { return randomText(r, r.IntN(8)) }}
}

// decimal writes n units of 10^-places.
func decimal(n int64, places int) string {
	text := new(big.Rat).SetFrac(big.NewInt(n), new(big.Int).Exp(big.NewInt(10), big.NewInt(int64(places)), nil)).FloatString(places)
	return text
}

// idle is s with keywords beside it that its type has nothing to do with, and annotations.
func idle(t *rapid.T, s sample) sample {
	var o map[string]json.RawMessage
	if json.Unmarshal([]byte(s.source), &o) != nil || o["type"] == nil || o["type"][0] != '"' {
		return s
	}
	for name, v := range map[string]string{
		"minimum": "3", "maximum": "2.5", "multipleOf": "4", "minLength": "2", "pattern": `"^x$"`, "minItems": "2",
		"items": `{"type":"null"}`, "required": `["zz"]`, "properties": `{"zz":{}}`, "title": `"T"`, "default": "1", "format": `"date"`,
	} {
		of := keywords[name]
		if kind := strings.Trim(string(o["type"]), `"`); of == kind || of == "number" && kind == "integer" || o[name] != nil {
			continue
		}
		if rapid.IntRange(0, 3).Draw(t, name) == 0 {
			s.source = strings.TrimSuffix(s.source, "}") + `,"` + name + `":` + v + "}"
		}
	}
	return s
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

func drawObject(t *rapid.T, depth int, self string) sample {
	type property struct {
		name     string
		required bool
		sample
	}
	var list []property
	var members, required []string
	for range rapid.IntRange(1, 4).Draw(t, "properties") {
		name := drawName(t)
		if slices.ContainsFunc(list, func(p property) bool { return p.name == name }) {
			continue
		}
		p := property{name, rapid.Bool().Draw(t, "required"), drawSchema(t, depth-1, self)}
		list = append(list, p)
		members = append(members, quote(name)+":"+p.source)
		if p.required {
			required = append(required, quote(name))
		}
	}
	additional := rapid.SampledFrom([]string{"", `,"additionalProperties":false`, `,"additionalProperties":true`, `,"additionalProperties":{"type":"integer"}`}).Draw(t, "additional")
	source := `{"type":"object","properties":{` + strings.Join(members, ",") + `},"required":[` + strings.Join(required, ",") + `]` + additional + `}`
	return sample{source, func(r *rand.Rand, depth int) string {
		var members []string
		for _, p := range list {
			if p.required || r.IntN(2) == 0 {
				members = append(members, quote(p.name)+":"+p.write(r, depth-1))
			}
		}
		if strings.HasSuffix(additional, "true") || strings.HasSuffix(additional, "}") {
			for i := range r.IntN(3) {
				members = append(members, fmt.Sprintf(`"%s":%d`, []string{"other", "abx", "n"}[i], r.IntN(50)))
			}
		}
		return "{" + strings.Join(members, ",") + "}"
	}}
}

// randomText is a JSON string of n characters, in any spelling.
func randomText(r *rand.Rand, n int) string {
	chars := []string{"a", "b", " ", "é", "日", "😀", `\n`, `\"`, `\\`, `\/`, `\u00e9`, `\uD83d\ude00`, "\x7f", "}", ","}
	out := `"`
	for range n {
		out += chars[r.IntN(len(chars))]
	}
	return out + `"`
}

func drawDocument(t *rapid.T) sample {
	s := drawSchema(t, 3, "#/$defs/self")
	def := drawSchema(t, 2, "#/$defs/self")
	return sample{`{"anyOf":[` + s.source + `,{"$ref":"#/$defs/self"}],"$defs":{"self":` + def.source + `}}`,
		func(r *rand.Rand, depth int) string { return []sample{s, def}[r.IntN(2)].write(r, depth) }}
}

func oracle(t *rapid.T, source string) *jsonschema.Schema {
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(source))
	if err != nil {
		t.Fatal(err)
	}
	c := jsonschema.NewCompiler()
	if err := c.AddResource("schema.json", doc); err != nil {
		t.Fatal(err)
	}
	s, err := c.Compile("schema.json")
	if err != nil {
		t.Fatalf("%s: %v", source, err)
	}
	return s
}

// walk draws tokens that masks allow until the end; past 60 tokens it mostly takes what leads there.
func walk(t *rapid.T, g *Grammar, tokens table, r *rand.Rand, each func(s State, mask []uint32)) (text string, ended bool) {
	s := g.NewState()
	var written []byte
	for n := 0; ; n++ {
		m, err := s.Mask()
		if err != nil {
			t.Fatal(err)
		}
		each(s, m)
		var may []int32
		for id := range int32(len(tokens.texts)) {
			if allowed(m, id) {
				may = append(may, id)
			}
		}
		if ended := allowed(m, tokens.end()); ended != s.Accepting() {
			t.Fatalf("the end is allowed: %v, accepting: %v after %q", ended, s.Accepting(), written)
		}
		if s.Done() != (s.Accepting() && len(may) == 0) {
			t.Fatalf("Done is %v with %d tokens allowed after %q", s.Done(), len(may), written)
		}
		if s.Accepting() && (len(may) == 0 || n > 60 || r.IntN(2) == 0) {
			if err := s.Accept(tokens.end()); err != nil || !s.Done() || !errors.Is(s.Accept(tokens.end()), ErrRefused) {
				t.Fatalf("after the end: %v, done %v", err, s.Done())
			}
			return string(written), true
		}
		if len(may) == 0 {
			t.Fatalf("nothing may follow %q", written)
		}
		if n > 2000 {
			return string(written), false
		}
		pick := may[r.IntN(len(may))]
		if long := may[len(may)-1]; r.IntN(3) == 0 && long >= 256 {
			pick = long - r.Int32N(long-255)
			if !allowed(m, pick) {
				pick = long
			}
		}
		if n > 60 && r.IntN(4) > 0 {
			pick = closing(m, may, n)
		}
		if err := s.Accept(pick); err != nil {
			t.Fatalf("allowed, but not accepted: %v", err)
		}
		written = append(written, tokens.texts[pick]...)
	}
}

// closing is an allowed byte that leads to an end soon: the quote that ends a string, brackets that
// close, and between them the characters that the patterns above look for.
func closing(m []uint32, may []int32, n int) int32 {
	if wanted := int32("b1\xc3\xa9"[n%4]); n > 80 && !allowed(m, '"') && allowed(m, wanted) {
		return wanted
	}
	for _, c := range []byte(`"}]:,0123456789/nabcdtfe\ru`) {
		if allowed(m, int32(c)) {
			return int32(c)
		}
	}
	for i := len(may) - 1; ; i-- {
		c := may[i]
		if c != '{' && c != '[' || i == 0 {
			return c
		}
	}
}

// TestWalksAreValid: what masks let through is JSON that the schema allows, by an independent
// validator; there is always a way on; and masks are what the naive machine says, token by token.
func TestWalksAreValid(t *testing.T) {
	v := vocabulary(t, common)
	rapid.Check(t, func(t *rapid.T) {
		doc := drawDocument(t)
		g := compileRapid(t, Spec{Kind: JSONSchema, Source: doc.source}, v, Limits{Nesting: 6})
		validator := oracle(t, doc.source)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 1))
		machine := newNaive(g.a.network, 6)
		steps := 0
		var before State
		text, ended := walk(t, g, common, r, func(s State, m []uint32) {
			steps++
			if steps == 1 {
				before = s
				for id := range int32(len(common.texts)) {
					if want := len(machine.read([]byte(common.texts[id])).now) > 0; allowed(m, id) != want {
						t.Fatalf("%s: at the start %q: mask says %v, naive %v", doc.source, common.texts[id], !want, want)
					}
				}
			}
		})
		if !ended {
			t.Fatalf("%s: no end: %.100q", doc.source, text)
		}
		value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
		if err != nil {
			t.Fatalf("%s: %q is not JSON: %v", doc.source, text, err)
		}
		if err := validator.Validate(value); err != nil {
			t.Fatalf("%s: %s: %v", doc.source, text, err)
		}
		// At one random place, every token against the naive machine.
		at := r.IntN(len(text) + 1)
		machine = machine.read([]byte(text[:at]))
		for i := range at {
			if err := before.Accept(int32(text[i])); err != nil {
				t.Fatalf("%q byte by byte: %v", text, err)
			}
		}
		m, err := before.Mask()
		if err != nil {
			t.Fatal(err)
		}
		for id := range int32(v.Size()) {
			want := id == common.end() && machine.accepting()
			if int(id) < len(common.texts) {
				want = len(machine.read([]byte(common.texts[id])).now) > 0
			}
			if allowed(m, id) != want {
				t.Fatalf("%s: after %q token %d: mask says %v, naive %v", doc.source, text[:at], id, !want, want)
			}
		}
	})
}

func compileRapid(t *rapid.T, spec Spec, v *Vocabulary, limits Limits) *Grammar {
	g, err := Compile(t.Context(), spec, v, limits)
	if err != nil {
		t.Fatalf("%v: %v", spec, err)
	}
	return g
}

// TestDocumentsAreAccepted: documents written from a schema are accepted, compact and with blanks,
// however they are cut into tokens.
func TestDocumentsAreAccepted(t *testing.T) {
	v := vocabulary(t, common)
	rapid.Check(t, func(t *rapid.T) {
		doc := drawDocument(t)
		g := compileRapid(t, Spec{Kind: JSONSchema, Source: doc.source}, v, Limits{})
		validator := oracle(t, doc.source)
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 2))
		for range 4 {
			text := doc.write(r, 4)
			value, err := jsonschema.UnmarshalJSON(strings.NewReader(text))
			if err != nil || validator.Validate(value) != nil {
				t.Fatalf("the test writes %s for %s", text, doc.source)
			}
			s := g.NewState()
			for rest := text; rest != ""; {
				var may []int32
				for id, token := range common.texts {
					if strings.HasPrefix(rest, token) {
						may = append(may, int32(id))
					}
				}
				id := may[r.IntN(len(may))]
				if m, err := s.Mask(); err != nil || !allowed(m, id) {
					t.Fatalf("%s: %q before %q is masked out (%v)", doc.source, common.texts[id], rest, err)
				}
				if err := s.Accept(id); err != nil {
					t.Fatal(err)
				}
				rest = rest[len(common.texts[id]):]
			}
			if !s.Accepting() {
				t.Fatalf("%s: %s is not complete", doc.source, text)
			}
		}
	})
}

func drawRegex(t *rapid.T, depth int) string {
	if depth == 0 {
		return rapid.SampledFrom([]string{"a", "b", "ab", "é", ".", "[ab]", "[^a]", `\d`, `\w`, `\n`, `[é-日]`, `"`, `\\`, `(?i:A)`, `(?s:.)`, ""}).Draw(t, "atom")
	}
	x := drawRegex(t, depth-1)
	switch rapid.IntRange(0, 6).Draw(t, "form") {
	case 0:
		return x + drawRegex(t, depth-1)
	case 1:
		return "(" + x + "|" + drawRegex(t, depth-1) + ")"
	case 2:
		return "(" + x + ")*"
	case 3:
		return "(?:" + x + ")+?"
	case 4:
		return "(" + x + ")?"
	case 5:
		return fmt.Sprintf("(%s){%d,%d}", x, rapid.IntRange(0, 2).Draw(t, "min"), rapid.IntRange(2, 4).Draw(t, "max"))
	}
	return x + rapid.SampledFrom([]string{"a", "b", "é"}).Draw(t, "atom")
}

// TestRegexesAgree: expressions, and patterns that are searched for, match what package regexp
// says they match.
func TestRegexesAgree(t *testing.T) {
	v := vocabulary(t, common)
	rapid.Check(t, func(t *rapid.T) {
		source := drawRegex(t, rapid.IntRange(0, 4).Draw(t, "depth"))
		whole := regexp.MustCompile(`^(?:` + source + `)$`)
		anchored := rapid.SampledFrom([]string{"%s", "^(%s)", "(%s)$", "^%s$", "^(%s)|a$"}).Draw(t, "anchors")
		search := fmt.Sprintf(anchored, source)
		found := regexp.MustCompile(search)
		g := compileRapid(t, Spec{Kind: Regex, Source: source}, v, Limits{})
		p := compileRapid(t, Spec{Kind: JSONSchema, Source: `{"type":"string","pattern":` + quote(search) + `}`}, v, Limits{})
		for _, text := range rapid.SliceOfN(rapid.StringOfN(rapid.RuneFrom([]rune("ab1é日\n\"\\A")), 0, 6, -1), 12, 12).Draw(t, "texts") {
			if want, got := whole.MatchString(text), acceptsRapid(t, g, text); got != want {
				t.Fatalf("%q matches %q: %v, want %v", source, text, got, want)
			}
			if want, got := found.MatchString(text), acceptsRapid(t, p, quote(text)); got != want {
				t.Fatalf("%q is found in %q: %v, want %v", search, text, got, want)
			}
		}
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 3))
		// An expression such as .*aaaa can be walked for long without meeting its end.
		if text, ended := walk(t, g, common, r, func(State, []uint32) {}); ended && !whole.MatchString(text) {
			t.Fatalf("%q does not match %q, which a walk wrote", source, text)
		}
	})
}

func acceptsRapid(t *rapid.T, g *Grammar, text string) bool {
	s := g.NewState()
	for i := range len(text) {
		if err := s.Accept(int32(text[i])); err != nil {
			if !errors.Is(err, ErrRefused) {
				t.Fatal(err)
			}
			return false
		}
	}
	return s.Accepting()
}

// TestTablesEmptied: a grammar that has no room and forgets its states and masks all the time gives
// the same masks, to states held across, to copies, and to a replay of the tokens.
func TestTablesEmptied(t *testing.T) {
	v := vocabulary(t, common)
	rapid.Check(t, func(t *rapid.T) {
		doc := drawDocument(t)
		spec := Spec{Kind: JSONSchema, Source: doc.source}
		wide := compileRapid(t, spec, v, Limits{})
		tight := compileRapid(t, spec, v, Limits{StateBytes: 1, MaskBytes: 1})
		r := rand.New(rand.NewPCG(rapid.Uint64().Draw(t, "seed"), 4))
		x := tight.NewState()
		var held []State
		var masks [][]uint32
		var log []int32
		for text := doc.write(r, 4); text != ""; text = text[1:] {
			held = append(held, x)
			m, err := x.Mask()
			if err != nil {
				t.Fatal(err)
			}
			masks = append(masks, m)
			log = append(log, int32(text[0]))
			if err := x.Accept(int32(text[0])); err != nil {
				t.Fatal(err)
			}
		}
		replay := wide.NewState()
		for i, id := range log {
			m, err := replay.Mask()
			if err != nil || !slices.Equal(m, masks[i]) {
				t.Fatalf("%s: after %d tokens the masks differ (%v)", doc.source, i, err)
			}
			if again, err := held[i].Mask(); err != nil || !slices.Equal(again, m) {
				t.Fatalf("%s: a state held since token %d changed its mask (%v)", doc.source, i, err)
			}
			if err := replay.Accept(id); err != nil {
				t.Fatal(err)
			}
		}
		if !replay.Accepting() || !x.Accepting() || replay.Done() != x.Done() {
			t.Fatal("the ends differ")
		}
	})
}
