package grammar

import (
	"sync"
	"testing"

	"github.com/quire-serve/quire/model/gguf"
	"github.com/quire-serve/quire/model/store/storetest"
	"github.com/quire-serve/quire/model/tokenizer"
)

var smol = sync.OnceValues(func() (*tokenizer.Tokenizer, error) {
	f, err := gguf.Open(smolPath)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return tokenizer.FromGGUF(f)
})

var smolPath string

func smolLM2(tb testing.TB) (*tokenizer.Tokenizer, *Vocabulary) {
	smolPath = storetest.SmolLM2(tb)
	t, err := smol()
	if err != nil {
		tb.Fatal(err)
	}
	v, err := NewVocabulary(t, t.Size())
	if err != nil {
		tb.Fatal(err)
	}
	return t, v
}

const orderSchema = `{"type":"object","properties":{
	"name":{"type":"string","maxLength":100},
	"kind":{"enum":["order","quote","invoice"]},
	"email":{"type":"string","pattern":"^[a-z0-9._-]+@[a-z0-9-]+(\\.[a-z]{2,8})+$"},
	"lines":{"type":"array","minItems":1,"maxItems":50,"items":{"type":"object","properties":{
		"sku":{"type":"string","pattern":"^[A-Z]{2}-[0-9]{4,8}$"},"count":{"type":"integer","minimum":1,"maximum":1000},
		"price":{"type":"number","minimum":0},"note":{"type":["string","null"]}},"required":["sku","count","price"]}}},
	"required":["name","kind","lines"]}`

const orderText = `{"name": "Ada Lovelace", "kind": "order", "email": "ada@example.org", "lines": [{"sku": "AB-12345", "count": 12, "price": 9.75, "note": null}, {"sku": "CD-0001", "count": 1, "price": 100}]}`

// TestSmolLM2 walks real text in its real tokens through real masks, and each mask agrees with a
// check of every token by itself.
func TestSmolLM2(t *testing.T) {
	tok, v := smolLM2(t)
	ids := append(tok.Encode(nil, orderText, false), tok.EOS())
	for _, spec := range []Spec{{Kind: JSONSchema, Source: orderSchema}, {Kind: JSONObject}} {
		g := compile(t, spec.Kind, spec.Source, v)
		s := g.NewState()
		for i, id := range ids {
			m, err := s.Mask()
			if err != nil {
				t.Fatal(err)
			}
			if !allowed(m, id) {
				t.Fatalf("%v: token %d %q is not allowed", spec.Kind, i, tok.Bytes(id))
			}
			if i%8 == 0 {
				for id := range int32(tok.Size()) {
					next := s
					if want := next.Accept(id) == nil; allowed(m, id) != want {
						t.Fatalf("%v: after %d tokens the mask says %v of %q", spec.Kind, i, !want, tok.Bytes(id))
					}
				}
			}
			if err := s.Accept(id); err != nil {
				t.Fatal(err)
			}
		}
		if !s.Done() {
			t.Errorf("%v: not done at the end", spec.Kind)
		}
	}
}

func allowed(mask []uint32, id int32) bool { return mask[id>>5]&(1<<(id&31)) != 0 }

func BenchmarkVocabulary(b *testing.B) {
	tok, _ := smolLM2(b)
	for b.Loop() {
		if _, err := NewVocabulary(tok, tok.Size()); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkCompile(b *testing.B) {
	_, v := smolLM2(b)
	for b.Loop() {
		compile(b, JSONSchema, orderSchema, v)
	}
}

// BenchmarkColdMask is a mask's first time in a state: "new" with an empty table of steps too.
func BenchmarkColdMask(b *testing.B) {
	tok, v := smolLM2(b)
	for _, c := range []struct {
		name, before string
		spec         Spec
	}{
		{"object/start", ``, Spec{Kind: JSONObject, Source: ""}},
		{"object/string", `{"a": "b`, Spec{Kind: JSONObject, Source: ""}},
		{"object/deep", `{"a": [{"b": [{"c": [{"d": "b`, Spec{Kind: JSONObject, Source: ""}},
		{"object/value", `{"a": `, Spec{Kind: JSONObject, Source: ""}},
		{"schema/string", `{"name": "Ada`, Spec{Kind: JSONSchema, Source: orderSchema}},
		{"schema/pattern", `{"name": "Ada", "kind": "order", "email": "ada`, Spec{Kind: JSONSchema, Source: orderSchema}},
		{"schema/number", `{"name": "Ada", "kind": "order", "lines": [{"sku": "AB-12345", "count": 1`, Spec{Kind: JSONSchema, Source: orderSchema}},
		{"regex/words", `two words`, Spec{Kind: Regex, Source: `(\w+[ ,.]*)+`}},
		{"regex/letters", `é`, Spec{Kind: Regex, Source: `\p{L}+`}},
	} {
		ids := tok.Encode(nil, c.before, false)
		g := compile(b, c.spec.Kind, c.spec.Source, v)
		for _, table := range []string{"new", "warm"} {
			b.Run(c.name+"/"+table, func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					if table == "new" {
						g.mu.Lock()
						g.a.reset()
						g.masks.reset()
						g.mu.Unlock()
					}
					s := g.NewState()
					for _, id := range ids {
						if err := s.Accept(id); err != nil {
							b.Fatal(err)
						}
					}
					g.mu.Lock()
					if err := s.enter(); err != nil {
						b.Fatal(err)
					}
					for g.masks.count > 0 {
						g.a.states[g.masks.oldest().of].mask = nil
					}
					g.mu.Unlock()
					b.StartTimer()
					if _, err := s.Mask(); err != nil {
						b.Fatal(err)
					}
				}
			})
		}
	}
}

// BenchmarkToken is what a constrained request costs for each token once its states are known.
func BenchmarkToken(b *testing.B) {
	tok, v := smolLM2(b)
	ids := tok.Encode(nil, orderText, false)
	g := compile(b, JSONSchema, orderSchema, v)
	walk := func() {
		s := g.NewState()
		for _, id := range ids {
			if _, err := s.Mask(); err != nil {
				b.Fatal(err)
			}
			if err := s.Accept(id); err != nil {
				b.Fatal(err)
			}
		}
	}
	walk()
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		walk()
		n += len(ids)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/token")
}
