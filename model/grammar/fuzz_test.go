package grammar

import (
	"context"
	"errors"
	"testing"
)

func fuzzCompile(t *testing.T, v *Vocabulary, spec Spec) {
	g, err := Compile(context.Background(), spec, v, Limits{Nodes: 1 << 14, Steps: 1 << 17, Work: 1 << 17, Ways: 500})
	if err != nil {
		if !errors.Is(err, ErrLimit) && !errors.Is(err, ErrUnsupported) {
			t.Fatalf("neither of the errors that a client is told: %v", err)
		}
		return
	}
	explore(t, g, 25)
}

// FuzzRegex: whatever the expression, it is refused or it leads somewhere.
func FuzzRegex(f *testing.F) {
	for _, s := range []string{`a|b*`, `((a{9}){9}){9}`, `^\p{L}+$`, `[^\n]`, `(?i)ß`, `\u00e9`, `(^a$|b)`, `a**`, `(((((`, `[z-a]`, `\x{110000}`} {
		f.Add(s)
	}
	v := vocabulary(f, common)
	f.Fuzz(func(t *testing.T, source string) { fuzzCompile(t, v, Spec{Kind: Regex, Source: source}) })
}

// FuzzSchema: the same for schemas.
func FuzzSchema(f *testing.F) {
	for _, s := range []string{
		orderSchema, `{"$ref":"#"}`, `{"type":["string","null"],"pattern":"^a"}`, `{"anyOf":[{"$ref":"#/$defs/a"}],"$defs":{"a":{"items":{"$ref":"#"}}}}`,
		`{"enum":[1,"a",{"b":[]}]}`, `{"type":"integer","minimum":-1e2,"exclusiveMaximum":2.5}`, `{"properties":{"a":{}},"additionalProperties":{}}`,
		`[[[[`, `{"type":"string","minLength":10,"maxLength":1e3}`, `{"allOf":[true]}`,
	} {
		f.Add(s)
	}
	v := vocabulary(f, common)
	f.Fuzz(func(t *testing.T, source string) { fuzzCompile(t, v, Spec{Kind: JSONSchema, Source: source}) })
}
