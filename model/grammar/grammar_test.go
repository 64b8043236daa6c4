package grammar

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// table is a vocabulary for tests: the 256 bytes, some longer tokens, and at the end a token that
// ends texts and another special one.
type table struct{ texts []string }

func (t table) Size() int               { return len(t.texts) + 2 }
func (t table) IsSpecial(id int32) bool { return int(id) >= len(t.texts) }
func (t table) EOGs() []int32           { return []int32{int32(len(t.texts))} }
func (t table) Bytes(id int32) []byte {
	if t.IsSpecial(id) {
		return []byte("<|special|>")
	}
	return []byte(t.texts[id])
}
func (t table) end() int32 { return int32(len(t.texts)) }

func newTable(more ...string) table {
	var t table
	for c := range 256 {
		t.texts = append(t.texts, string([]byte{byte(c)}))
	}
	t.texts = append(t.texts, more...)
	return t
}

var common = newTable(`{"`, `":`, `": `, `, "`, `",`, `"}`, `}}`, `]}`, `[]`, `{}`, `["`, "\n", "\n  ", "true", "false",
	"null", "10", "12", "99", "ab", "abc", "name", ` "`, "tr", "é", "日本", "\xe6\x97", "\xa5x", "a", "\\u", "\\ud8", "00")

func vocabulary(tb testing.TB, t Tokens) *Vocabulary {
	tb.Helper()
	v, err := NewVocabulary(t, t.Size()+3)
	if err != nil {
		tb.Fatal(err)
	}
	return v
}

func compile(tb testing.TB, kind Kind, source string, v *Vocabulary) *Grammar {
	tb.Helper()
	g, err := Compile(context.Background(), Spec{Kind: kind, Source: source}, v, Limits{})
	if err != nil {
		tb.Fatalf("%s %s: %v", kind, source, err)
	}
	return g
}

// accepts says whether the text, byte by byte, is complete in the grammar. The first 256 ids of v
// are the bytes.
func accepts(tb testing.TB, g *Grammar, text string) bool {
	tb.Helper()
	s := g.NewState()
	for i := range len(text) {
		if err := s.Accept(int32(text[i])); err != nil {
			if !errors.Is(err, ErrRefused) {
				tb.Fatal(err)
			}
			return false
		}
	}
	return s.Accepting()
}

func TestTexts(t *testing.T) {
	v := vocabulary(t, common)
	deep := strings.Repeat(`{"a":`, 64) + "1" + strings.Repeat("}", 64)
	tooDeep := strings.Repeat(`{"a":`, 65) + "1" + strings.Repeat("}", 65)
	for _, c := range []struct {
		kind     Kind
		source   string
		yes, not []string
	}{
		{JSONObject, "", []string{
			`{}`, `{"a":1}`, `{"a": [1, 2.5, -0e+10, true, false, null, "x\n\u00e9\ud83d\ude00日"]}`, `{ }`,
			`{"a": {"b": []}}`, `{"":{"":{}}}`, deep,
		}, []string{
			``, `[]`, `1`, `{`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{'a':1}`, `{"a":01}`, `{"a":1.}`, `{"a":+1}`, `{"a":.5}`, `{"a":tru}`,
			"{\"a\":\"\n\"}", `{"a":"\x"}`, `{"a":"\ud800"}`, `{"a":"\udc00"}`, "{\"a\":\"\xff\"}", "{\"a\":\"\xed\xa0\x80\"}",
			"{\"a\":\"\xc0\xaf\"}", `{}{}`, ` {}`, `{} `, tooDeep, `{"a":1  }`, `{"a":1000000000000000000}`,
		}},
		{Regex, `a|bc*`, []string{`a`, `b`, `bccc`}, []string{``, `ab`, `c`, `bca`}},
		{Regex, `^[^a-y]{2,3}$`, []string{`zz`, `é日z`, "😀\n"}, []string{`z`, `zzzz`, `za`, "\xe9\xe9"}},
		{Regex, `(?i)straße.`, []string{`STRAßE!`, `straẞe1`}, []string{`strasse!`, "straße\n"}},
		{Regex, `\p{Greek}+\d?`, []string{`αβγ1`, `Ω`}, []string{`a`, `α12`, ``}},
		{Regex, `((ab){2}){3}`, []string{`abababababab`}, []string{`ababababab`, `ababababababab`}},
		{Regex, `\u00e9\\u`, []string{`é\u`}, []string{`é`}},
		{Regex, `(a?){20}b`, []string{`b`, `aab`}, []string{strings.Repeat("a", 21) + "b"}},
		{JSONSchema, `true`, []string{`1`, `"x"`, `[{}]`, `null`}, []string{`nul`, ``}},
		{JSONSchema, `{}`, []string{`1`, `{}`}, nil},
		{JSONSchema, `{"title":"x","description":"y","$schema":"z","default":1,"examples":[1],"format":"email","type":"string"}`, []string{`"a"`}, []string{`1`}},
		{JSONSchema, `{"type":"object","properties":{"b":{"type":"integer"},"a":{"type":"string"}},"required":["b"],"additionalProperties":false}`,
			[]string{`{"b":1}`, `{"b": 12, "a": "x"}`, `{ "b":1, "a":"" }`},
			[]string{`{}`, `{"a":"x","b":1}`, `{"a":"x"}`, `{"b":1,"c":1}`, `{"b":1,"b":1}`, `{"b":1.5}`, `{"b":1,}`}},
		{JSONSchema, `{"properties":{"a":{"type":"null"},"b":{"type":"null"},"c":{"type":"null"}}}`,
			[]string{`{}`, `{ }`, `{"a":null}`, `{"b":null}`, `{"c":null}`, `{"a":null,"c":null}`, `{"a":null,"b":null,"c":null}`},
			[]string{`{"c":null,"a":null}`, `{,}`, `{"a":null,}`, `{"d":1}`}},
		{JSONSchema, `{"type":"object","properties":{"a":{"type":"null"},"ab":{"type":"null"},"":{"type":"null"}},"required":["ab"],"additionalProperties":{"type":"boolean"}}`,
			[]string{`{"ab":null}`, `{"a":null,"ab":null,"abc":true,"x":false}`, `{"ab":null,"b\n":true,"\"":true,"é":true}`},
			[]string{`{"ab":null,"a":true}`, `{"ab":true}`, `{"ab":null,"":true}`, `{"ab":null,"\u0061":true}`, `{"ab":null,"x":null}`, `{"x":true,"ab":null}`}},
		{JSONSchema, `{"type":"object","additionalProperties":{"type":"integer"}}`, []string{`{}`, `{"x":1}`, `{"x":1,"\u0061":2}`}, []string{`{"x":"y"}`, `{"x":1,}`}},
		{JSONSchema, `{"type":"array","items":{"type":"integer","minimum":-12,"maximum":103},"minItems":1,"maxItems":3}`,
			[]string{`[1]`, `[-12, 103]`, `[0,9,10]`, `[ 1, 2 ]`}, []string{`[]`, `[1,2,3,4]`, `[-13]`, `[104]`, `[-0]`, `[007]`, `[1.0]`, `[1`}},
		{JSONSchema, `{"type":"array","items":{"type":"boolean"},"maxItems":0}`, []string{`[]`, `[ ]`}, []string{`[true]`}},
		{JSONSchema, `{"type":"array","items":{"type":"boolean"},"minItems":2}`, []string{`[true,false]`, `[true,true,true]`}, []string{`[]`, `[true]`}},
		{JSONSchema, `{"type":"array"}`, []string{`[]`, `[1,"a",{}]`}, []string{`{}`}},
		{JSONSchema, `{"enum":["a\"b",1.50,null,true,{"x":[1,2]},"a"]}`, []string{`"a\"b"`, `1.50`, `null`, `true`, `{"x":[1,2]}`, `"a"`}, []string{`1.5`, `"b"`, `{}`}},
		{JSONSchema, `{"type":["string","null"],"enum":["x",1,null]}`, []string{`"x"`, `null`}, []string{`1`}},
		{JSONSchema, `{"const":{"k":"\u0001é"}}`, []string{`{"k":"\u0001é"}`}, []string{`{"k":""}`}},
		{JSONSchema, `{"type":"string","minLength":1,"maxLength":3}`, []string{`"a"`, `"日本語"`, `"\n\u00e9\ud83d\ude00"`}, []string{`""`, `"abcd"`}},
		{JSONSchema, `{"type":"string","pattern":"^[a-c]+$"}`, []string{`"abc"`}, []string{`""`, `"abcd"`, `"\u0061"`}},
		{JSONSchema, `{"type":"string","pattern":"b\"\\n"}`, []string{`"b\"\n"`, `"xxb\"\n\\yy"`}, []string{`"b\""`, `"xb"`}},
		{JSONSchema, `{"pattern":"^a$|^b|c$"}`, []string{`"a"`, `"bxx"`, `"xxc"`, `"c"`}, []string{`"ab"`, `"xb"`, `"cx"`, `"xa"`}},
		{JSONSchema, `{"type":"string","minimum":1,"properties":{"a":{}},"items":{},"x-order":1}`, []string{`"a"`}, []string{`1`, `{}`}},
		{JSONSchema, `{"type":"number","minimum":-1.25,"maximum":12.5}`, []string{`-1.25`, `-1.250`, `-1`, `-0.5`, `0`, `0.0`, `7.999`, `12.5`, `12.50`, `12.4999`},
			[]string{`-1.26`, `-1.251`, `-2`, `12.51`, `12.501`, `13`, `1e1`, `01`, `1.`, `.5`, `0.000000000000000001`}},
		{JSONSchema, `{"type":"number","exclusiveMinimum":0,"exclusiveMaximum":1}`, []string{`0.5`, `0.00000000000000001`, `0.99999999999999999`}, []string{`0`, `0.0`, `1`, `1.0`, `-0.5`}},
		{JSONSchema, `{"type":"number","minimum":0.01,"multipleOf":0.01}`, []string{`0.01`, `19.99`, `5`, `5.1`}, []string{`0`, `0.001`, `1.999`}},
		{JSONSchema, `{"type":"integer","minimum":-20,"maximum":100,"multipleOf":7}`, []string{`-14`, `0`, `7`, `98`}, []string{`-21`, `1`, `99`, `105`, `007`}},
		{JSONSchema, `{"type":"string","pattern":"^[a-z]+$","minLength":2,"maxLength":3}`, []string{`"ab"`, `"abc"`}, []string{`"a"`, `"abcd"`, `"A1"`}},
		{JSONSchema, `{"type":"string","pattern":"^[0-9]{4}-[0-9]{2}$","minLength":1,"maxLength":10}`, []string{`"2026-11"`}, []string{`"2026"`}},
		{JSONSchema, `{"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":{"type":"null"},"minItems":1}`,
			[]string{`[1]`, `[1,"a"]`, `[1, "a", null,null]`}, []string{`[]`, `["a"]`, `[1,1]`, `[1,"a",1]`}},
		{JSONSchema, `{"type":"array","items":[{"type":"integer"},{"type":"string"}],"additionalItems":false}`, []string{`[]`, `[1]`, `[1,"a"]`}, []string{`[1,"a",1]`, `["a"]`}},
		{JSONSchema, `{"type":"object","required":["x"]}`, []string{`{"x":1}`, `{"x":[{}]}`}, []string{`{}`, `{"y":1}`}},
		{JSONSchema, `{"type":"object","propertyNames":{"pattern":"^[a-c]$"},"additionalProperties":{"type":"integer"}}`, []string{`{}`, `{"a":1, "b":2}`}, []string{`{"d":1}`, `{"a":"x"}`}},
		{JSONSchema, `{"type":"object","patternProperties":{"^[a-c]$":{"type":"null"}}}`, []string{`{}`, `{"a":null}`}, []string{`{"d":null}`, `{"a":1}`}},
		{JSONSchema, `{"allOf":[{"properties":{"a":{"type":"integer"}},"required":["a"]},{"properties":{"a":{"minimum":3},"b":{"type":"null"}}}]}`,
			[]string{`{"a":3}`, `{"a":4,"b":null}`}, []string{`{"a":2}`, `{}`, `{"b":null}`}},
		{JSONSchema, `{"type":"object","properties":{"k":{"type":"integer"}},"anyOf":[{"required":["k"]},{"properties":{"z":{"type":"null"}},"required":["z"]}]}`,
			[]string{`{"k":1}`, `{"k":1,"z":null}`, `{"z":null}`}, []string{`{}`}},
		{JSONSchema, `{"$ref":"#/$defs/n","maximum":3,"$defs":{"n":{"type":"integer","minimum":1}}}`, []string{`1`, `3`}, []string{`0`, `4`}},
		{JSONSchema, `{"const":5.0,"type":"integer"}`, []string{`5.0`}, []string{`5`}},
		{JSONSchema, `{"enum":["a","abc",4],"type":["string","integer"],"minLength":2,"minimum":4}`, []string{`"abc"`, `4`}, []string{`"a"`}},
		{JSONSchema, `{"type":"number","minimum":0}`, []string{`1.5`, `0`, `1e10`}, []string{`-1`, `1e100`}},
		{JSONSchema, `{"type":["integer","null"],"exclusiveMinimum":1.5,"exclusiveMaximum":1e1}`, []string{`2`, `9`, `null`}, []string{`1`, `10`}},
		{JSONSchema, `{"type":"integer","maximum":-5}`, []string{`-5`, `-99`, `-999999999999999999`}, []string{`-4`, `0`, `5`, `-1000000000000000000`}},
		{JSONSchema, `{"anyOf":[{"type":"integer"},{"type":"array","items":{"$ref":"#"}}]}`, []string{`1`, `[1,[2,[]]]`}, []string{`"x"`, `[[[`}},
		{JSONSchema, `{"$ref":"#/$defs/node","$defs":{"node":{"type":"object","properties":{"next":{"anyOf":[{"$ref":"#/$defs/node"},{"type":"null"}]}},"required":["next"]}}}`,
			[]string{`{"next":null}`, `{"next":{"next":{"next":null}}}`}, []string{`{}`, `{"next":1}`}},
		{JSONSchema, `{"allOf":[{"$ref":"#/definitions/a~1b"}],"definitions":{"a/b":{"type":"boolean"}}}`, []string{`true`}, []string{`1`}},
	} {
		g := compile(t, c.kind, c.source, v)
		for _, text := range c.yes {
			if !accepts(t, g, text) {
				t.Errorf("%s %s refuses %q", c.kind, c.source, text)
			}
		}
		for _, text := range c.not {
			if accepts(t, g, text) {
				t.Errorf("%s %s takes %q", c.kind, c.source, text)
			}
		}
	}
}

func TestRefusals(t *testing.T) {
	v := vocabulary(t, common)
	for _, c := range []struct {
		kind   Kind
		source string
		err    error
		want   string
	}{
		{Regex, `(`, ErrUnsupported, "missing closing )"},
		{Regex, `ab(?=c)`, ErrUnsupported, "offset 2: look-around is not supported"},
		{Regex, `(a)\1`, ErrUnsupported, "back-references"},
		{JSONSchema, `{"type":"string","pattern":"^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$"}`, ErrUnsupported, "Decimal"},
		{Regex, `a\b`, ErrUnsupported, `\b`},
		{Regex, `a^b`, ErrUnsupported, "^ is not at the beginning"},
		{Regex, `(a$)*`, ErrUnsupported, "$ is not at the end"},
		{Regex, `(?m)^a`, ErrUnsupported, "(?m)"},
		{Regex, `a{1001}`, ErrUnsupported, "invalid repeat count"},
		{Regex, `[^\x{0}-\x{10ffff}]`, ErrUnsupported, "no text"},
		{Regex, strings.Repeat("a", 16<<10+1), ErrLimit, "16384"},
		{Regex, `[ab]*a[ab]{1000}[ab]{1000}[ab]{1000}`, nil, ""},
		{JSONObject, `{}`, ErrUnsupported, "no source"},
		{Kind(9), ``, ErrUnsupported, "Kind(9)"},
		{JSONSchema, ``, ErrUnsupported, "offset 0"},
		{JSONSchema, `{"type":"string"} x`, ErrUnsupported, "after the document"},
		{JSONSchema, `{"type":"string","type":"null"}`, ErrUnsupported, "twice"},
		{JSONSchema, strings.Repeat(`{"items":`, 101) + "{}" + strings.Repeat("}", 101), ErrUnsupported, "deeper than 100"},
		{JSONSchema, `[]`, ErrUnsupported, "a schema is an object"},
		{JSONSchema, `false`, ErrUnsupported, "allows nothing"},
		{JSONSchema, `{"properties":{"a/b":{"not":{}}}}`, ErrUnsupported, `"/properties/a~1b/not"`},
		{JSONSchema, `{"items":{"type":"array","uniqueItems":true}}`, ErrUnsupported, `"/items/uniqueItems"`},
		{JSONSchema, `{"type":"array","uniqueItems":true}`, ErrUnsupported, `"/uniqueItems": true is supported where items is an enum`},
		{JSONSchema, `{"type":"array","uniqueItems":true,"items":{"enum":[1,2,3,4,5,6,7,8,9]}}`, ErrUnsupported, "enum of up to 8"},
		{JSONSchema, `{"type":"array","uniqueItems":true,"minItems":3,"items":{"enum":[1,1.0,2]}}`, ErrUnsupported, "at least 3 different items, and there are 2"},
		{JSONSchema, `{"type":"number","minimum":1,"maximum":0.5}`, ErrUnsupported, "no number"},
		{JSONSchema, `{"type":"number","multipleOf":0.3}`, ErrUnsupported, `"/multipleOf"`},
		{JSONSchema, `{"type":"integer","multipleOf":1001}`, ErrUnsupported, `"/multipleOf"`},
		{JSONSchema, `{"type":"integer","multipleOf":0}`, ErrUnsupported, `"/multipleOf"`},
		{JSONSchema, `{"type":"integer","multipleOf":7,"minimum":8,"maximum":13}`, ErrUnsupported, "no text"},
		{JSONSchema, `{"type":"integer","minimum":5,"maximum":4}`, ErrUnsupported, "no integer"},
		{JSONSchema, `{"type":"integer","minimum":1e999999999}`, ErrUnsupported, `"/minimum"`},
		{JSONSchema, `{"type":"integer","minimum":1e30}`, ErrUnsupported, "no integer"},
		{JSONSchema, `{"type":"string","minLength":-1}`, ErrUnsupported, `"/minLength"`},
		{JSONSchema, `{"type":"string","maxLength":"3"}`, ErrUnsupported, `"/maxLength"`},
		{JSONSchema, `{"type":"string","minLength":4,"maxLength":3}`, ErrUnsupported, `"/maxLength"`},
		{JSONSchema, `{"type":"string","maxLength":100000000}`, ErrLimit, `"/maxLength"`},
		{JSONSchema, `{"type":"string","maxLength":131072}`, ErrLimit, "131072 automaton nodes"},
		{JSONSchema, `{"type":"string","pattern":"a","maxLength":3}`, ErrUnsupported, `"/pattern"`},
		{JSONSchema, `{"type":"string","pattern":"("}`, ErrUnsupported, `"/pattern"`},
		{JSONSchema, `{"type":"object","required":["x"],"additionalProperties":false}`, ErrUnsupported, `"/required/0"`},
		{JSONSchema, `{"properties":{"x":false},"required":["x"]}`, ErrUnsupported, `"/properties/x"`},
		{JSONSchema, `{"type":"object","minProperties":1}`, ErrUnsupported, `"/minProperties"`},
		{JSONSchema, `{"properties":{"a":{}},"propertyNames":{"maxLength":3}}`, ErrUnsupported, `"/propertyNames"`},
		{JSONSchema, `{"type":"array","prefixItems":[{},{}],"items":false,"minItems":3}`, ErrUnsupported, "at least 3"},
		{JSONSchema, `{"type":"texts"}`, ErrUnsupported, `"/type"`},
		{JSONSchema, `{"type":null}`, ErrUnsupported, `"/type"`},
		{JSONSchema, `{"type":[]}`, ErrUnsupported, `"/type"`},
		{JSONSchema, `{"enum":[]}`, ErrUnsupported, `"/enum"`},
		{JSONSchema, `{"type":"string","enum":[1]}`, ErrUnsupported, "of the type"},
		{JSONSchema, `{"enum":[1],"minimum":2}`, ErrUnsupported, "within the bounds"},
		{JSONSchema, `{"enum":[[1]],"items":{}}`, ErrUnsupported, `"/items"`},
		{JSONSchema, `{"anyOf":[{"pattern":"a"}],"type":"string","pattern":"b"}`, ErrUnsupported, "pattern"},
		{JSONSchema, `{"allOf":[{"type":"string"},{"type":"null"}]}`, ErrUnsupported, `type`},
		{JSONSchema, `{"allOf":[{"anyOf":[{}]},{"anyOf":[{"type":"null"}]}]}`, ErrUnsupported, `anyOf`},
		{JSONSchema, `{"$ref":"other.json"}`, ErrUnsupported, `"/$ref"`},
		{JSONSchema, `{"$ref":"#/$defs/x"}`, ErrUnsupported, "not in the schema"},
		{JSONSchema, `{"$ref":"#"}`, ErrUnsupported, "refers to itself"},
		{JSONSchema, `{"$ref":"#/$defs/a","$defs":{"a":{"anyOf":[{"$ref":"#/$defs/b"}]},"b":{"$ref":"#/$defs/a"}}}`, ErrUnsupported, "refers to itself"},
		{JSONSchema, `{"type":"object","properties":{"a":{"$ref":"#"}},"required":["a"]}`, ErrUnsupported, "no text"},
		{JSONSchema, `{"type":"object","patternProperties":{"a":{},"b":{}}}`, ErrUnsupported, `"/patternProperties"`},
		{JSONSchema, `{"type":"string","thing":1}`, ErrUnsupported, `"/thing"`},
	} {
		_, err := Compile(context.Background(), Spec{Kind: c.kind, Source: c.source}, v, Limits{})
		if early := Check(context.Background(), Spec{Kind: c.kind, Source: c.source}, Limits{}); fmt.Sprint(early) != fmt.Sprint(err) {
			t.Errorf("%s %.60s: checked: %v, compiled: %v", c.kind, c.source, early, err)
		}
		if c.err == nil {
			if err != nil {
				t.Errorf("%s %.60s: %v", c.kind, c.source, err)
			}
			continue
		}
		if !errors.Is(err, c.err) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %.60s: %v, want %v with %q", c.kind, c.source, err, c.err, c.want)
		}
	}
}
