package tokenizer

import (
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

// TestStreamEqualsDecode: however ids are cut into pushes, the stream's text is the whole text, and
// each piece is valid UTF-8.
func TestStreamEqualsDecode(t *testing.T) {
	tok := smolLM2()
	rapid.Check(t, func(t *rapid.T) {
		// Ids up to 251 are special tokens and single bytes, so characters come apart.
		ids := rapid.SliceOf(rapid.OneOf(rapid.Int32Range(0, 251), rapid.Int32Range(-2, int32(tok.Size())+2))).Draw(t, "ids")
		skip := rapid.Bool().Draw(t, "skip")
		stream := tok.NewStream(skip)
		var got strings.Builder
		for rest := ids; len(rest) > 0; {
			n := rapid.IntRange(0, len(rest)).Draw(t, "n")
			piece := stream.Push(rest[:n]...)
			if !utf8.ValidString(piece) {
				t.Fatalf("piece %q is not UTF-8", piece)
			}
			got.WriteString(piece)
			if rest = rest[n:]; n == 0 {
				got.WriteString(stream.Push(rest[0]))
				rest = rest[1:]
			}
			if len(stream.held) > 3 {
				t.Fatalf("%d bytes held back", len(stream.held))
			}
		}
		got.WriteString(stream.Flush())
		if want := tok.Decode(ids, skip); got.String() != want {
			t.Fatalf("stream gave %q, want %q", got.String(), want)
		}
		var raw []byte
		for _, id := range ids {
			if !skip || !tok.IsSpecial(id) {
				raw = append(raw, tok.Bytes(id)...)
			}
		}
		if utf8.Valid(raw) && got.String() != string(raw) {
			t.Fatalf("stream gave %q for the bytes %q", got.String(), raw)
		}
	})
}

func TestStreamHoldsBackOnlyBeginnings(t *testing.T) {
	tok := mustNew(t, small())
	stream := tok.NewStream(true)
	for i, step := range []struct {
		push byte
		want string
	}{{'a', "a"}, {0xF0, ""}, {0x9F, ""}, {0x98, ""}, {0x80, "\U0001f600"}, {0xE2, ""}, {0x82, ""}, {'b', "\ufffdb"}, {0xFF, "\ufffd"}, {0xC3, ""}} {
		if got := stream.Push(tok.bytes[step.push]); got != step.want {
			t.Errorf("push %d, byte 0x%02X: %q, want %q", i, step.push, got, step.want)
		}
	}
	if got := stream.Flush(); got != "\ufffd" {
		t.Errorf("Flush = %q", got)
	}
	if got := stream.Flush(); got != "" {
		t.Errorf("second Flush = %q", got)
	}
}

// naiveStop is the definition: cut before the stop string that is complete first, the longest if
// several are complete at the same byte.
func naiveStop(text string, stops []string) (before string, which int) {
	for end := 1; end <= len(text); end++ {
		best := -1
		for i, s := range stops {
			if s != "" && strings.HasSuffix(text[:end], s) && (best < 0 || len(s) > len(stops[best])) {
				best = i
			}
		}
		if best >= 0 {
			return text[:end-len(stops[best])], best
		}
	}
	return text, -1
}

func TestStopMatcherEqualsDefinition(t *testing.T) {
	letters := rapid.SampledFrom([]string{"a", "b", "aa", "ab", "é", "\n", "</s>", "<"})
	word := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(letters, 0, 5).Draw(t, "letters"), "")
	})
	rapid.Check(t, func(t *rapid.T) {
		stops := rapid.SliceOfN(word, 0, 4).Draw(t, "stops")
		pieces := rapid.SliceOfN(word, 0, 12).Draw(t, "pieces")
		text := strings.Join(pieces, "")
		want, wantWhich := naiveStop(text, stops)
		m := NewStopMatcher(stops, false)
		var got, seen strings.Builder
		which, stopped := -1, false
		for _, piece := range pieces {
			seen.WriteString(piece)
			var emit string
			emit, stopped, which = m.Push(piece, true)
			got.WriteString(emit)
			if !strings.HasPrefix(want, got.String()) {
				t.Fatalf("emitted %q of %q, only %q is certain", got.String(), text, want)
			}
			if stopped {
				continue
			}
			// What is held back could still become a stop string, and nothing else is held back.
			held := seen.String()[got.Len():]
			if held != "" && !slices.ContainsFunc(stops, func(s string) bool { return len(s) > len(held) && strings.HasPrefix(s, held) }) {
				t.Fatalf("holds back %q, which begins none of %q", held, stops)
			}
			// Nothing that was emitted could be the beginning of one.
			for n := held; len(n) < seen.Len(); {
				n = seen.String()[seen.Len()-len(n)-1:]
				if slices.ContainsFunc(stops, func(s string) bool { return len(s) > len(n) && strings.HasPrefix(s, n) }) {
					t.Fatalf("emitted the beginning of %q, which may begin one of %q", n, stops)
				}
			}
		}
		if stopped != (wantWhich >= 0) || which != wantWhich && !(wantWhich >= 0 && stops[which] == stops[wantWhich]) {
			t.Fatalf("stopped %t at %d, want %d", stopped, which, wantWhich)
		}
		if got.WriteString(m.Flush()); got.String() != want {
			t.Fatalf("text %q, want %q", got.String(), want)
		}
	})
}

// naiveVisible is the definition of what a client sees of ids: the text of all of them, cut before the
// stop string that is complete first behind the text of the first minTokens, or behind it, without the
// beginning of a character at the end. used is how many tokens that took.
func naiveVisible(tok *Tokenizer, ids []int32, show bool, stops []string, minTokens int, keep bool) (text string, used, stop int) {
	text = func(n int) string {
		s := tok.NewStream(!show)
		return s.Push(ids[:n]...)
	}(len(ids))
	prefix := func(n int) int {
		s := tok.NewStream(!show)
		return len(s.Push(ids[:n]...))
	}
	if minTokens >= len(ids) {
		return text, len(ids), -1
	}
	for end := prefix(minTokens) + 1; end <= len(text); end++ {
		best := -1
		for i, s := range stops {
			if strings.HasSuffix(text[:end], s) && (best < 0 || len(s) > len(stops[best])) {
				best = i
			}
		}
		if best >= 0 {
			for used = 0; prefix(used) < end; used++ {
			}
			if keep {
				return text[:end], used, best
			}
			return text[:end-len(stops[best])], used, best
		}
	}
	return text, len(ids), -1
}

// TestStopOverlapsOneThatDoesNotCount: behind a stop string that came too early begins no new text.
func TestStopOverlapsOneThatDoesNotCount(t *testing.T) {
	v := mustNew(t, small()).NewVisible(false, []string{"aa"}, 2, false)
	for i, want := range []struct {
		text string
		stop int
	}{{"", -1}, {"a", -1}, {"", 0}} {
		if text, stop := v.Push('a'); text != want.text || stop != want.stop {
			t.Errorf("token %d: %q, stop %d, want %q, %d", i, text, stop, want.text, want.stop)
		}
	}
}

// TestVisibleEqualsDefinition: token by token, the text and the stop are those of the whole, special
// tokens shown or not, stops across special tokens and across the end of the minimal length included.
func TestVisibleEqualsDefinition(t *testing.T) {
	v := small()
	v.Tokens, v.Types = append(v.Tokens, "<|m|>"), append(v.Types, typeControl)
	tok := mustNew(t, v)
	ids := rapid.SliceOfN(rapid.OneOf(rapid.SampledFrom([]int32{'a', 'b', 'c', '<', 0xE2, 0x82, 0xAC, 0xF0}), rapid.Int32Range(256, int32(tok.Size())-1)), 0, 12)
	stop := rapid.Custom(func(t *rapid.T) string {
		return strings.Join(rapid.SliceOfN(rapid.SampledFrom([]string{"a", "b", "<e>", "<|m|>", "e>", "<", "ab", "\u20ac", "\ufffd"}), 1, 3).Draw(t, "parts"), "")
	})
	rapid.Check(t, func(t *rapid.T) {
		ids, stops := ids.Draw(t, "ids"), rapid.SliceOfN(stop, 0, 3).Draw(t, "stops")
		show, keep, least := rapid.Bool().Draw(t, "show"), rapid.Bool().Draw(t, "keep"), rapid.IntRange(0, 6).Draw(t, "min")
		want, wantUsed, wantStop := naiveVisible(tok, ids, show, stops, least, keep)
		seen := tok.NewVisible(show, stops, least, keep)
		var got strings.Builder
		used, which := 0, -1
		for _, id := range ids {
			if which >= 0 {
				break
			}
			var text string
			text, which = seen.Push(id)
			got.WriteString(text)
			used++
			if behind := tok.NewStream(!show).Push(ids[:used]...); keep && which < 0 && got.String() != behind {
				t.Fatalf("%q is held back of %q, though it is part of the text either way", got.String(), behind)
			}
			if !strings.HasPrefix(want, got.String()) {
				t.Fatalf("after %d tokens %q, which does not begin %q", used, got.String(), want)
			}
		}
		got.WriteString(seen.Flush())
		if got.String() != want || used != wantUsed || (which >= 0) != (wantStop >= 0) || which >= 0 && stops[which] != stops[wantStop] {
			t.Fatalf("%q after %d tokens, stop %d; want %q after %d, stop %d", got.String(), used, which, want, wantUsed, wantStop)
		}
	})
}

func TestStopMatcher(t *testing.T) {
	m := NewStopMatcher(nil, false)
	if emit, stopped, which := m.Push("abc", true); emit != "abc" || stopped || which != -1 {
		t.Errorf("without stops: %q %t %d", emit, stopped, which)
	}
	m = NewStopMatcher([]string{"", "\n\n", "END"}, false)
	for i, step := range []struct {
		push, emit string
		stopped    bool
		which      int
	}{{"one\n", "one", false, -1}, {"two E", "\ntwo ", false, -1}, {"N", "", false, -1}, {"d EN", "ENd ", false, -1}, {"D rest", "", true, 2}, {"more", "", true, 2}} {
		emit, stopped, which := m.Push(step.push, true)
		if emit != step.emit || stopped != step.stopped || which != step.which {
			t.Errorf("push %d: %q %t %d, want %q %t %d", i, emit, stopped, which, step.emit, step.stopped, step.which)
		}
	}
	if got := m.Flush(); got != "" {
		t.Errorf("Flush after a stop = %q", got)
	}
}

func FuzzEncode(f *testing.F) {
	var texts []string
	golden(f, "texts", &texts)
	for _, text := range texts[:150] {
		f.Add(text)
	}
	f.Add("a\xff\xc3 \xe2\x82")
	var all []*Tokenizer
	for _, name := range Patterns() {
		v := small()
		v.Pre = name
		all = append(all, mustNew(f, v))
	}
	f.Fuzz(func(t *testing.T, text string) {
		for _, tok := range all {
			for _, special := range []bool{false, true} {
				ids := tok.Encode(nil, text, special)
				var back []byte
				for _, id := range ids {
					back = append(back, tok.Bytes(id)...)
				}
				if string(back) != text && !tok.compose {
					t.Fatalf("%s: %q came back as %q", tok.vocab.Pre, text, back)
				}
				if utf8.Valid(back) && tok.Decode(ids, false) != string(back) {
					t.Fatalf("%s: %q decodes to %q", tok.vocab.Pre, back, tok.Decode(ids, false))
				}
			}
		}
		if got, want := smolLM2().Encode(nil, text, false), naiveEncode(smolLM2(), text); len(text) < 2000 && !slices.Equal(got, want) {
			t.Fatalf("Encode(%q) = %v, want %v", text, got, want)
		}
	})
}

// FuzzVocab builds vocabularies out of arbitrary pieces: New gives an error or a tokenizer that does
// not panic.
func FuzzVocab(f *testing.F) {
	f.Add("a b\nab c", "x\ny", []byte{1, 3, 4, 6}, int32(3), int32(-1), "abc<|x|>")
	f.Add(" \n", "<0x41>\n<0xZZ>", []byte{6, 6}, int32(0), int32(256), "A")
	f.Fuzz(func(t *testing.T, merges, tokens string, types []byte, eos, bos int32, text string) {
		v := small()
		v.Merges = strings.Split(merges, "\n")
		v.Tokens = append(v.Tokens, strings.Split(tokens, "\n")...)
		for i := len(v.Types); i < len(v.Tokens); i++ {
			kind := int32(1)
			if len(types) > 0 {
				kind = int32(types[i%len(types)])
			}
			v.Types = append(v.Types, kind)
		}
		v.EOS, v.BOS, v.IgnoreMerges = eos, bos, eos%2 == 0
		tok, err := New(v)
		if err != nil {
			return
		}
		ids := tok.Encode(nil, text, true)
		for _, id := range ids {
			if id < 0 || int(id) >= tok.Size() {
				t.Fatalf("token %d of %d", id, tok.Size())
			}
		}
		tok.Decode(ids, true)
	})
}

// prompt is English text of about n tokens.
func prompt(n int) string {
	words := strings.Fields("the of and to in is that was for on as with his they be at one have this from or had by hot word but what some we can out other were all there when up use your how said an each she which do their time if will way about many then them write would like so these her long make thing see him two has look more day could go come did number sound no most people my over know water than call first who may down side been now find any new work part take get place made live where after back little only round man year came show every good me give our under name very through just form sentence great think say help low line differ turn cause much mean before move right boy old too same tell does set three want air well also play small end put home read hand port large spell add even land here must big high such follow act why ask men change went light kind off need house picture try us again animal point mother world near build self earth father 2026, paged-attention Übergröße naïve")
	r := rand.New(rand.NewPCG(7, 7))
	var b strings.Builder
	for range n {
		b.WriteString(words[r.IntN(len(words))])
		b.WriteString([]string{" ", " ", " ", " ", ", ", ".\n"}[r.IntN(6)])
	}
	return b.String()
}

func BenchmarkEncode8K(b *testing.B) {
	tok, text := smolLM2(), prompt(6800)
	ids := tok.Encode(nil, text, false)
	b.SetBytes(int64(len(text)))
	b.ReportAllocs()
	for b.Loop() {
		ids = tok.Encode(ids[:0], text, false)
	}
	b.ReportMetric(float64(len(ids)), "tokens")
}

func BenchmarkEncodeOneWord64K(b *testing.B) {
	tok, text := smolLM2(), strings.Repeat("abcdefgh", 8<<10)
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		tok.Encode(nil, text, false)
	}
}

func BenchmarkStream(b *testing.B) {
	tok := smolLM2()
	ids := tok.Encode(nil, prompt(1000), false)
	b.ReportAllocs()
	for b.Loop() {
		s := tok.NewStream(true)
		for _, id := range ids {
			s.Push(id)
		}
	}
	b.ReportMetric(float64(len(ids)), "tokens")
}
