package grammar

import (
	"context"
	"strings"
	"testing"
)

// TestClientsSchemas: what the libraries that most clients write their schemas with make of usual
// types is taken, and means what it means there.
func TestClientsSchemas(t *testing.T) {
	v := vocabulary(t, common)
	for name, c := range map[string]struct {
		source   string
		yes, not []string
	}{
		"Pydantic: optional, default, nested, union with a discriminator, tuple, bounds": {`{
			"$defs": {
				"Cat": {"properties": {"kind": {"const": "cat", "title": "Kind", "type": "string"}, "lives": {"default": 9, "exclusiveMinimum": 0, "maximum": 9, "title": "Lives", "type": "integer"}}, "required": ["kind"], "title": "Cat", "type": "object"},
				"Dog": {"properties": {"kind": {"const": "dog", "title": "Kind", "type": "string"}, "weight": {"maximum": 99.5, "minimum": 0.5, "title": "Weight", "type": "number"}}, "required": ["kind", "weight"], "title": "Dog", "type": "object"},
				"Color": {"enum": ["red", "blue"], "title": "Color", "type": "string"}
			},
			"description": "A home.", "title": "Home", "type": "object", "additionalProperties": false,
			"properties": {
				"pet": {"discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "kind"}, "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "title": "Pet"},
				"color": {"$ref": "#/$defs/Color", "default": "red", "description": "of the door"},
				"name": {"anyOf": [{"maxLength": 20, "minLength": 1, "pattern": "^[a-z]+$", "type": "string"}, {"type": "null"}], "default": null, "title": "Name"},
				"at": {"maxItems": 2, "minItems": 2, "prefixItems": [{"type": "number"}, {"type": "number"}], "title": "At", "type": "array"},
				"price": {"anyOf": [{"exclusiveMinimum": 0.0, "type": "number"}, {"pattern": "^(?!^[-+.]*$)[+-]?0*\\d*\\.?\\d*$", "type": "string"}], "title": "Price"},
				"built": {"format": "date", "title": "Built", "type": "string"},
				"tags": {"additionalProperties": {"type": "string"}, "propertyNames": {"maxLength": 3}, "title": "Tags", "type": "object"}
			},
			"required": ["pet", "at"]}`, nil, nil}, // Decimal's pattern has a look-ahead, which no automaton has: see below
		"Pydantic without Decimal": {`{
			"$defs": {
				"Cat": {"properties": {"kind": {"const": "cat", "title": "Kind", "type": "string"}, "lives": {"default": 9, "exclusiveMinimum": 0, "maximum": 9, "title": "Lives", "type": "integer"}}, "required": ["kind"], "title": "Cat", "type": "object"},
				"Dog": {"properties": {"kind": {"const": "dog", "title": "Kind", "type": "string"}, "weight": {"maximum": 99.5, "minimum": 0.5, "title": "Weight", "type": "number"}}, "required": ["kind", "weight"], "title": "Dog", "type": "object"},
				"Color": {"enum": ["red", "blue"], "title": "Color", "type": "string"}
			},
			"description": "A home.", "title": "Home", "type": "object", "additionalProperties": false,
			"properties": {
				"pet": {"discriminator": {"mapping": {"cat": "#/$defs/Cat", "dog": "#/$defs/Dog"}, "propertyName": "kind"}, "oneOf": [{"$ref": "#/$defs/Cat"}, {"$ref": "#/$defs/Dog"}], "title": "Pet"},
				"color": {"$ref": "#/$defs/Color", "default": "red", "description": "of the door"},
				"name": {"anyOf": [{"maxLength": 20, "minLength": 1, "pattern": "^[a-z]+$", "type": "string"}, {"type": "null"}], "default": null, "title": "Name"},
				"at": {"maxItems": 2, "minItems": 2, "prefixItems": [{"type": "number"}, {"type": "number"}], "title": "At", "type": "array"},
				"built": {"format": "date", "title": "Built", "type": "string"},
				"tags": {"additionalProperties": {"type": "string"}, "propertyNames": {"maxLength": 3}, "title": "Tags", "type": "object"}
			},
			"required": ["pet", "at"]}`,
			[]string{`{"pet":{"kind":"dog","weight":0.75},"color":"red","name":null,"at":[1,-2.5],"built":"2026-11-27","tags":{"a":"b"}}`, `{"pet":{"kind":"cat","lives":9},"at":[0,0]}`},
			[]string{`{"pet":{"kind":"dog"},"at":[1,2]}`, `{"pet":{"kind":"cat","lives":0},"at":[1,2]}`, `{"pet":{"kind":"cat"},"at":[1]}`, `{"pet":{"kind":"cat"},"name":"A","at":[1,2]}`}},
		"Pydantic: a tree": {`{"$defs":{"Node":{"properties":{"value":{"title":"Value","type":"integer"},"children":{"default":[],"items":{"$ref":"#/$defs/Node"},"title":"Children","type":"array"}},"required":["value"],"title":"Node","type":"object"}},"$ref":"#/$defs/Node"}`,
			[]string{`{"value":1,"children":[{"value":2},{"value":3,"children":[]}]}`}, []string{`{"children":[]}`}},
		"Zod: object, record, tuple, literal union, intersection, numbers": {`{
			"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object",
			"properties": {
				"id": {"type": "string", "format": "uuid", "pattern": "^([0-9a-f]{8}-[0-9a-f]{4})$"},
				"count": {"type": "integer", "exclusiveMinimum": 0, "maximum": 9007199254740991},
				"step": {"type": "number", "multipleOf": 0.1, "minimum": 0, "maximum": 1},
				"map": {"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "number"}},
				"pair": {"type": "array", "prefixItems": [{"type": "string"}, {"type": "boolean"}], "items": false, "minItems": 2},
				"mode": {"type": "string", "enum": ["on", "off"]},
				"or": {"anyOf": [{"type": "string", "const": "x"}, {"type": "number", "const": 2}, {"type": "null"}]},
				"both": {"allOf": [{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}, {"type": "object", "properties": {"b": {"type": "boolean"}}, "required": ["b"]}]}
			},
			"required": ["id", "count"], "additionalProperties": false}`,
			[]string{`{"id":"0123abcd-4567","count":3,"step":0.7,"map":{"x":1.5},"pair":["a",true],"mode":"on","or":2,"both":{"a":"x","b":true}}`},
			[]string{`{"id":"x","count":3}`, `{"id":"0123abcd-4567","count":0}`, `{"id":"0123abcd-4567","count":1,"step":0.75}`, `{"id":"0123abcd-4567","count":1,"pair":["a"]}`, `{"id":"0123abcd-4567","count":1,"both":{"a":"x"}}`}},
		"Zod 3: a tuple in older words": {`{"$schema":"http://json-schema.org/draft-07/schema#","type":"array","minItems":2,"maxItems":2,"items":[{"type":"string"},{"type":"number"}]}`,
			[]string{`["a",1]`}, []string{`["a"]`, `[1,1]`}},
	} {
		g, err := Compile(context.Background(), Spec{Kind: JSONSchema, Source: c.source}, v, Limits{})
		if len(c.yes) == 0 {
			if err == nil || !strings.Contains(err.Error(), `"/properties/price/anyOf/1/pattern"`) {
				t.Errorf("%s: %v, want its place", name, err)
			}
			continue
		}
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		for _, text := range c.yes {
			if !accepts(t, g, text) {
				t.Errorf("%s: refuses %s", name, text)
			}
		}
		for _, text := range c.not {
			if accepts(t, g, text) {
				t.Errorf("%s: takes %s", name, text)
			}
		}
	}
}

// TestNothingRunsOn: a model that writes one byte for as long as it may is stopped soon wherever JSON
// has no use for more: in white space and in numbers. Only strings, lists and free objects go on.
func TestNothingRunsOn(t *testing.T) {
	v := vocabulary(t, common)
	for _, source := range []string{
		`{}`, `{"type":"integer"}`, `{"type":"number"}`, `{"type":"number","minimum":0.5}`, `{"type":"number","maximum":3}`,
		`{"type":"integer","multipleOf":3}`, `{"type":"object","properties":{"a":{"type":"number"}},"required":["a"]}`, `{"type":"array","items":{"type":"number"}}`,
	} {
		g := compile(t, JSONSchema, source, v)
		for _, before := range []string{"", "-", "1", "1.", "1e", "1E-", "[", "[1", "[1,", `{"a":`, `{"a":1`, `{"a":1.`, "{", `{"a"`} {
			s := g.NewState()
			ok := true
			for _, c := range []byte(before) {
				ok = ok && s.Accept(int32(c)) == nil
			}
			if !ok {
				continue
			}
			for _, c := range []byte(" \n\t\r0123456789.eE+-") {
				run := s
				n := 0
				for run.Accept(int32(c)) == nil && n <= 40 {
					n++
				}
				most := 1
				if c >= '0' && c <= '9' {
					most = maxDigits
				}
				if n > most || n > 0 && c != ' ' && strings.ContainsRune("\n\t\r", rune(c)) {
					t.Errorf("%s: after %q %d times %q", source, before, n, c)
				}
			}
		}
	}
}

// TestWhitespace: what may stand between tokens is what the client says.
func TestWhitespace(t *testing.T) {
	v := vocabulary(t, common)
	for _, c := range []struct {
		whitespace string
		yes, not   []string
	}{
		{``, []string{`{"a":1}`, `{ "a": 1 }`}, []string{`{"a":  1}`, "{\n\"a\":1}"}},
		{`(|)`, []string{`{"a":1}`}, []string{`{"a": 1}`}},
		{`[ \n\t]*`, []string{`{"a":1}`, "{\n\t\t\"a\":   1\n}"}, nil},
		{`\n {2}| ?`, []string{"{\n  \"a\": 1}"}, []string{"{\n \"a\":1}"}},
	} {
		g, err := Compile(context.Background(), Spec{Kind: JSONSchema, Source: `{"properties":{"a":{}}}`, Whitespace: c.whitespace}, v, Limits{})
		if err != nil {
			t.Fatalf("%q: %v", c.whitespace, err)
		}
		for _, text := range c.yes {
			if !accepts(t, g, text) {
				t.Errorf("%q refuses %q", c.whitespace, text)
			}
		}
		for _, text := range c.not {
			if accepts(t, g, text) {
				t.Errorf("%q takes %q", c.whitespace, text)
			}
		}
	}
	for whitespace, want := range map[string]string{`x`: "not be JSON", `\s`: "not be JSON", `.`: "not be JSON", `(`: "missing"} {
		if _, err := Compile(context.Background(), Spec{Kind: JSONObject, Whitespace: whitespace}, v, Limits{}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", whitespace, err, want)
		}
	}
	if _, err := Compile(context.Background(), Spec{Kind: Regex, Source: "a", Whitespace: " "}, v, Limits{}); err == nil {
		t.Error("white space of a regex is taken")
	}
}
