package grammar

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"pgregory.net/rapid"
)

func TestAmbiguityEndsWithItsLimit(t *testing.T) {
	v := vocabulary(t, common)
	// The states of this one are sets of where the a's were: 2^1000 of them, of up to 1,000 ways.
	g, err := Compile(context.Background(), Spec{Kind: Regex, Source: `[ab]*a[ab]{1000}`}, v, Limits{Ways: 300})
	if err != nil {
		t.Fatal(err)
	}
	s := g.NewState()
	for n := 0; ; n++ {
		before := s
		err := s.Accept('a')
		if errors.Is(err, ErrLimit) {
			if n < 50 || !strings.Contains(err.Error(), "300 ways") {
				t.Errorf("after %d tokens: %v", n, err)
			}
			if _, err := before.Mask(); !errors.Is(err, ErrLimit) {
				t.Errorf("a mask over the limit: %v", err)
			}
			break
		}
		if err != nil || n > 400 {
			t.Fatalf("after %d tokens: %v", n, err)
		}
	}
	// Another request of the same grammar goes on.
	s = g.NewState()
	if m, err := s.Mask(); err != nil || !allowed(m, 'a') || allowed(m, 'c') {
		t.Errorf("after the limit: %v", err)
	}
	// The work of one operation is bounded too.
	if _, err := Compile(context.Background(), Spec{Kind: Regex, Source: `a*b*c*d*`}, v, Limits{Work: 3}); !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), "3 operations") {
		t.Errorf("work: %v", err)
	}
}

func TestCompileLimits(t *testing.T) {
	v := vocabulary(t, common)
	for _, c := range []struct {
		spec   Spec
		limits Limits
		want   string
	}{
		{Spec{Kind: Regex, Source: `aaaa`}, Limits{SourceBytes: 3}, "4 bytes, more than 3"},
		{Spec{Kind: Regex, Source: `aaaaaaaaaaaa`}, Limits{Nodes: 8}, "more than 8 automaton nodes"},
		{Spec{Kind: JSONSchema, Source: `{"type":"array","items":{"type":"string","maxLength":5000}}`}, Limits{Steps: 3000}, "takes more than 3000 operations"},
		{Spec{Kind: JSONSchema, Source: `{"$ref":"#/$defs/a","$defs":{"a":{"type":"array","minItems":1,"items":{"$ref":"#/$defs/b"}},"b":{"const":1}}}`}, Limits{Nesting: 1}, "nests 2 deep, more than 1"},
	} {
		_, err := Compile(context.Background(), c.spec, v, c.limits)
		if !errors.Is(err, ErrLimit) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.spec, err, c.want)
		}
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	gone := errors.New("client gone")
	cancel(gone)
	if _, err := Compile(ctx, Spec{Kind: JSONSchema, Source: `{"type":"string","maxLength":5000}`}, v, Limits{}); !errors.Is(err, gone) || errors.Is(err, ErrLimit) {
		t.Errorf("cancelled: %v", err)
	}
}

// TestHostileSources: sources made to be slow are refused, or compiled, within their time.
func TestHostileSources(t *testing.T) {
	v := vocabulary(t, common)
	var defs, props []string
	for i := range 40 {
		defs = append(defs, fmt.Sprintf(`"d%d":{"anyOf":[{"$ref":"#/$defs/d%d"},{"type":"array","items":{"$ref":"#/$defs/d%d"}}]}`, i, i+1, i+1))
	}
	for i := range 5000 {
		props = append(props, fmt.Sprintf(`"p%d":{"type":"null"}`, i))
	}
	for name, spec := range map[string]Spec{
		"nested stars":   {Kind: Regex, Source: strings.Repeat("(", 500) + "a" + strings.Repeat("*)", 500) + "*"},
		"nested counts":  {Kind: Regex, Source: `((((a{10}){10}){10}){10}){10}`},
		"many classes":   {Kind: Regex, Source: strings.Repeat(`\pL`, 5000)},
		"empty loops":    {Kind: Regex, Source: strings.Repeat(`(|a*)*`, 2000)},
		"doubling refs":  {Kind: JSONSchema, Source: `{"$ref":"#/$defs/d0","$defs":{` + strings.Join(defs, ",") + `,"d40":{"const":1}}}`},
		"many optional":  {Kind: JSONSchema, Source: `{"properties":{` + strings.Join(props, ",") + `},"additionalProperties":{"type":"null"}}`},
		"wide enum":      {Kind: JSONSchema, Source: `{"enum":[` + strings.Repeat(`"aaaaaaaa",`, 10000) + `1]}`},
		"deep names":     {Kind: JSONSchema, Source: `{"properties":{"` + strings.Repeat("x", 50000) + `":{}},"additionalProperties":true}`},
		"large counts":   {Kind: JSONSchema, Source: `{"type":"array","minItems":40000,"maxItems":40000,"items":{"type":"array","minItems":40000}}`},
		"many surfaces":  {Kind: JSONSchema, Source: `{"anyOf":[` + strings.Repeat(`{"type":"array","items":{"$ref":"#"}},`, 2000) + `{"$ref":"#/anyOf/0"}]}`},
		"pattern counts": {Kind: JSONSchema, Source: `{"type":"string","pattern":"(.{1,30}x){1,30}"}`},
	} {
		start := time.Now()
		g, err := Compile(context.Background(), spec, v, Limits{})
		if err != nil && !errors.Is(err, ErrLimit) && !errors.Is(err, ErrUnsupported) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			explore(t, g, 40)
		}
		// Far above the 2 s limit: this machine may be busy. A hang it is not.
		if took := time.Since(start); took > 20*time.Second {
			t.Errorf("%s: took %v (%v)", name, took, err)
		}
		t.Logf("%s: %v, %v", name, time.Since(start).Round(time.Millisecond), err)
	}
}

// explore takes the first tokens that masks allow, and fails where nothing is.
func explore(t testing.TB, g *Grammar, steps int) {
	t.Helper()
	s := g.NewState()
	for n := range steps {
		m, err := s.Mask()
		if errors.Is(err, ErrLimit) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		pick := int32(-1)
		for id := range int32(g.vocabulary.size) {
			if allowed(m, id) && (pick < 0 || (id+int32(n))%7 == 0) {
				pick = id
			}
		}
		if pick < 0 {
			t.Fatalf("nothing may follow after %d tokens", n)
		}
		if err := s.Accept(pick); errors.Is(err, ErrLimit) {
			return
		} else if err != nil {
			t.Fatalf("allowed, but: %v", err)
		}
		if s.ended {
			return
		}
	}
}

// TestNestingWithEmptiedTables: the nesting limit counts the levels of states entered again.
func TestNestingWithEmptiedTables(t *testing.T) {
	g, err := Compile(context.Background(), Spec{Kind: JSONSchema, Source: `{}`}, vocabulary(t, common), Limits{Nesting: 5, StateBytes: 1})
	if err != nil {
		t.Fatal(err)
	}
	if !accepts(t, g, `[[[[1]]]]`) || accepts(t, g, `[[[[[1]]]]]`) {
		t.Error("of values nested to 5, four lists and a number are allowed and five are not")
	}
}

// TestUnspelledBytes: a vocabulary that cannot write a byte by itself never leads where only that
// byte could follow.
func TestUnspelledBytes(t *testing.T) {
	lacking := newTable("\xf0\x9f", "né")
	lacking.texts[0xA9] = "xx"
	lacking.texts['z'] = "zz"
	lacking.texts[0x9F] = ""
	v := vocabulary(t, lacking)
	if _, err := Compile(context.Background(), Spec{Kind: JSONSchema, Source: `{"const":"z"}`}, v, Limits{}); !errors.Is(err, ErrUnsupported) {
		t.Errorf("a constant that cannot be written: %v", err)
	}
	g := compile(t, JSONSchema, `{"enum":["az","ab",1]}`, v)
	s := g.NewState()
	for _, c := range []byte(`"a`) {
		if err := s.Accept(int32(c)); err != nil {
			t.Fatal(err)
		}
	}
	if m, err := s.Mask(); err != nil || !allowed(m, 'b') || allowed(m, 'z') {
		t.Errorf("after \"a: %v", err)
	}
	g = compile(t, JSONSchema, `{"type":"string"}`, v)
	for first := range int32(lacking.Size()) {
		s := g.NewState()
		if err := s.Accept('"'); err != nil {
			t.Fatal(err)
		}
		if s.Accept(first) != nil {
			continue
		}
		if s.Done() {
			continue
		}
		for n := 0; s.Accept('"') != nil; n++ { // an unfinished character goes on until the quote can follow
			m, err := s.Mask()
			if err != nil || n > 20 {
				t.Fatalf("no end after %q (%v)", lacking.texts[first], err)
			}
			pick := int32(255)
			for ; !allowed(m, pick); pick-- {
				if pick == 0 {
					t.Fatalf("stuck after %q", lacking.texts[first])
				}
			}
			if err := s.Accept(pick); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestVocabulary(t *testing.T) {
	if _, err := NewVocabulary(common, common.Size()-1); err == nil {
		t.Error("masks smaller than the vocabulary were taken")
	}
	if _, err := NewVocabulary(endless{common}, common.Size()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("no end token: %v", err)
	}
	same := newTable(strings.Split(strings.Repeat("x ", 300), " ")...)
	if _, err := NewVocabulary(same, same.Size()); !errors.Is(err, ErrUnsupported) {
		t.Errorf("300 equal tokens: %v", err)
	}
	twice := newTable("ab", "ab")
	v := vocabulary(t, twice)
	if v.Words() != (twice.Size()+3+31)/32 {
		t.Errorf("%d words", v.Words())
	}
	g := compile(t, Regex, `ab|\x{7f}`, v)
	s := g.NewState()
	m, err := s.Mask()
	if err != nil {
		t.Fatal(err)
	}
	for id := range int32(v.Size()) {
		want := id == 'a' || id == 0x7f || id == 256 || id == 257
		if allowed(m, id) != want {
			t.Errorf("token %d: %v", id, !want)
		}
	}
	for _, id := range []int32{-1, twice.end(), twice.end() + 1, twice.end() + 2, 1 << 30} {
		if err := s.Accept(id); !errors.Is(err, ErrRefused) {
			t.Errorf("token %d: %v", id, err)
		}
	}
}

type endless struct{ table }

func (endless) EOGs() []int32 { return nil }

func TestCache(t *testing.T) {
	v := vocabulary(t, common)
	c := NewCache(v, Limits{}, 2, 1<<30, nil)
	get := func(source string) *Grammar {
		t.Helper()
		g, err := c.Compile(context.Background(), Spec{Kind: Regex, Source: source})
		if err != nil {
			t.Fatal(err)
		}
		return g
	}
	var wg sync.WaitGroup
	got := make([]*Grammar, 16)
	for i := range got {
		wg.Go(func() {
			g, err := c.Compile(context.Background(), Spec{Kind: Regex, Source: `a[bc]{100}`})
			if err != nil {
				t.Error(err)
				return
			}
			got[i] = g
			s := g.NewState()
			for _, id := range []int32{'a', 'b', 'c', 'b'} {
				if m, err := s.Mask(); err != nil || !allowed(m, id) {
					t.Error(err)
				}
				if err := s.Accept(id); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	for _, g := range got {
		if g != got[0] {
			t.Fatal("the same spec was compiled twice")
		}
	}
	b := get("b")
	get(`a[bc]{100}`)
	get("c") // b is the one that was not used for longest
	if get(`a[bc]{100}`) != got[0] {
		t.Error("the grammar used last was dropped")
	}
	if get("b") == b || len(c.order) != 2 || len(c.entries) != 2 {
		t.Errorf("the oldest was kept, of %d", len(c.order))
	}
	small := NewCache(v, Limits{}, 100, 1, nil)
	for _, source := range []string{"a", "b", "c"} {
		if _, err := small.Compile(context.Background(), Spec{Kind: Regex, Source: source}); err != nil || len(small.order) != 1 {
			t.Errorf("%d grammars within a byte (%v)", len(small.order), err)
		}
	}
	for range 2 {
		if _, err := c.Compile(context.Background(), Spec{Kind: Regex, Source: "("}); !errors.Is(err, ErrUnsupported) {
			t.Errorf("a failure: %v", err)
		}
	}
	if len(c.order) != 2 || len(c.entries) != 2 {
		t.Errorf("%d kept, failures included", len(c.order))
	}
}

// TestGate: as many compiles run as may, a bounded number waits, who leaves makes room, and what is
// compiled already is there for all of that.
func TestGate(t *testing.T) {
	gate := NewGate(1, 2)
	c := NewCache(vocabulary(t, common), Limits{}, 10, 1<<30, gate)
	compile := func(ctx context.Context, source string) error {
		_, err := c.Compile(ctx, Spec{Kind: Regex, Source: source})
		return err
	}
	if err := compile(t.Context(), "known"); err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		release := make(chan struct{})
		gate.places, gate.waiting = make(chan struct{}, 1), make(chan struct{}, 3) // of this bubble
		go gate.Do(t.Context(), func() error { <-release; return nil })
		synctest.Wait()
		gone := errors.New("its client has gone")
		ctx, leave := context.WithCancelCause(t.Context())
		ends := make(chan error, 3)
		go func() { ends <- compile(ctx, "left") }()
		go func() { ends <- compile(t.Context(), "stays") }()
		synctest.Wait()
		if err := compile(t.Context(), "more"); !errors.Is(err, ErrBusy) {
			t.Errorf("one more than may wait: %v", err)
		}
		if err := compile(t.Context(), "known"); err != nil {
			t.Errorf("what is compiled already: %v", err)
		}
		leave(gone)
		if err := <-ends; !errors.Is(err, gone) {
			t.Errorf("who has left: %v", err)
		}
		go func() { ends <- compile(t.Context(), "more") }()
		synctest.Wait()
		close(release)
		for range 2 {
			if err := <-ends; err != nil {
				t.Errorf("after a wait: %v", err)
			}
		}
	})
}

// TestLimitsAreOfTheTextAlone: whether a text runs into a limit, and where, does not depend on what
// the grammar was used for before, nor on what its tables have kept; what a look-up finds costs what
// working it out costs.
func TestLimitsAreOfTheTextAlone(t *testing.T) {
	v := vocabulary(t, common)
	rapid.Check(t, func(t *rapid.T) {
		source := rapid.SampledFrom([]string{
			`[ab]*a[ab]{60}`, `.*([aeiou].{40}|[st].{60})`, `(a?b?){30}c`, `([ab]{1,9}x){1,9}`, `\p{L}*\d{1,9}`,
		}).Draw(t, "source")
		spec := Spec{Kind: Regex, Source: source}
		limits := Limits{Work: rapid.IntRange(2_000, 60_000).Draw(t, "work"), Ways: rapid.IntRange(20, 400).Draw(t, "ways")}
		emptied := limits
		emptied.StateBytes, emptied.MaskBytes = 1, 1
		cold, err := Compile(t.Context(), spec, v, limits)
		warm, err2 := Compile(t.Context(), spec, v, limits)
		never, err3 := Compile(t.Context(), spec, v, emptied)
		if fmt.Sprint(err) != fmt.Sprint(err2) || fmt.Sprint(err) != fmt.Sprint(err3) {
			t.Fatalf("compiled three times: %v, %v, %v", err, err2, err3)
		}
		if err != nil {
			return
		}
		text := rapid.SliceOfN(rapid.RuneFrom([]rune("abestx1")), 0, 90).Draw(t, "text")
		others := rapid.SliceOfN(rapid.SliceOfN(rapid.RuneFrom([]rune("abestx1")), 0, 90), 0, 4).Draw(t, "others")
		run := func(g *Grammar, text []rune) string {
			s := g.NewState()
			for i, c := range text {
				if _, err := s.Mask(); err != nil {
					return fmt.Sprintf("mask %d: %v", i, err)
				}
				if err := s.Accept(c); err != nil {
					return fmt.Sprintf("token %d: %v", i, err)
				}
			}
			return "end"
		}
		for _, other := range append(others, text) {
			run(warm, other)
		}
		want := run(cold, text)
		if got := run(warm, text); got != want {
			t.Fatalf("%q: cold %q, warm %q", source, want, got)
		}
		if got := run(never, text); got != want {
			t.Fatalf("%q: cold %q, with emptied tables %q", source, want, got)
		}
	})
}

// TestTriesCostNothing: TryAccept and TryMask never work anything out, and where they answer they
// answer as Accept and Mask do.
func TestTriesCostNothing(t *testing.T) {
	v := vocabulary(t, common)
	rapid.Check(t, func(t *rapid.T) {
		room := rapid.SampledFrom([]int{1, 1 << 20}).Draw(t, "bytes")
		g := compileRapid(t, Spec{Kind: JSONObject}, v, Limits{StateBytes: room})
		plain := compileRapid(t, Spec{Kind: JSONObject}, v, Limits{})
		s, want := g.NewState(), plain.NewState()
		for range 40 {
			before := g.Worked()
			mask, hit := s.TryMask()
			if g.Worked() != before {
				t.Fatal("TryMask works")
			}
			m, err := want.Mask()
			if err != nil {
				t.Fatal(err)
			}
			if hit && !slices.Equal(mask, m) {
				t.Fatal("TryMask gives another mask")
			}
			if !hit && rapid.Bool().Draw(t, "work") {
				if _, err := s.Mask(); err != nil {
					t.Fatal(err)
				}
				if _, hit := s.TryMask(); !hit && room > 1 {
					t.Fatal("TryMask does not find what Mask has just worked out")
				}
			}
			token := rapid.Int32Range(0, int32(v.Size()-1)).Draw(t, "token")
			for !allowed(m, token) {
				token = (token + 1) % int32(v.Size())
			}
			before = g.Worked()
			ok, err := s.TryAccept(token)
			if g.Worked() != before {
				t.Fatal("TryAccept works")
			}
			if !ok {
				err = s.Accept(token)
			}
			if want := want.Accept(token); fmt.Sprint(err) != fmt.Sprint(want) {
				t.Fatalf("accepts %d with %v, want %v", token, err, want)
			}
			if s.Accepting() != want.Accepting() || s.Done() != want.Done() {
				t.Fatal("the states differ")
			}
			if s.Done() {
				return
			}
		}
	})
}
