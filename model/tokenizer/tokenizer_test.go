package tokenizer

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"
)

// smolLM2 builds the vocabulary of SmolLM2 from its compact copy.
var smolLM2 = sync.OnceValue(func() *Tokenizer {
	var t testing.T
	var file struct {
		Tokens []string
		Types  []int32
		Merges []string
	}
	golden(&t, "smollm2-vocab", &file)
	v := Vocab{Model: "gpt2", Pre: "smollm", Tokens: file.Tokens, Types: file.Types, Merges: file.Merges, BOS: 1, EOS: 2, EOT: -1, Unknown: 0, Pad: 2}
	for _, m := range file.Merges {
		v.Tokens = append(v.Tokens, strings.Replace(m, " ", "", 1))
		v.Types = append(v.Types, typeNormal)
	}
	tok, err := New(v)
	if err != nil {
		panic(err)
	}
	return tok
})

// parity is what Hugging Face tokenizers made of the texts with one vocabulary.
type parity struct {
	Special      [][]int32          // with special tokens recognised
	Plain        map[string][]int32 // without, where the text could hold any
	Decoded      map[string]string  // where decoding does not give the text back
	Noise        [][]int32          // random ids
	NoiseText    []string           `json:"noise_text"`
	NoiseSkipped []string           `json:"noise_skipped"`
}

func checkParity(t *testing.T, tok *Tokenizer, name string) {
	var texts []string
	var want parity
	golden(t, "texts", &texts)
	golden(t, name, &want)
	if len(want.Special) != len(texts) || len(want.Plain) < 100 || len(want.Noise) < 300 {
		t.Fatalf("golden file %s holds %d, %d and %d cases for %d texts", name, len(want.Special), len(want.Plain), len(want.Noise), len(texts))
	}
	failed := 0
	for i, text := range texts {
		if failed > 20 {
			t.Fatal("too many differences")
		}
		ids := tok.Encode(nil, text, true)
		if !slices.Equal(ids, want.Special[i]) {
			t.Errorf("Encode(%q, special) = %v, want %v", text, ids, want.Special[i])
			failed++
		}
		plain, differs := want.Plain[fmt.Sprint(i)]
		if !differs {
			plain = want.Special[i]
		}
		if got := tok.Encode(nil, text, false); !slices.Equal(got, plain) {
			t.Errorf("Encode(%q, plain) = %v, want %v", text, got, plain)
			failed++
		}
		back, differs := want.Decoded[fmt.Sprint(i)]
		if !differs {
			back = text
		}
		if got := tok.Decode(want.Special[i], false); got != back {
			t.Errorf("Decode(%v) = %q, want %q", want.Special[i], got, back)
			failed++
		}
	}
	for i, ids := range want.Noise {
		if got := tok.Decode(ids, false); got != want.NoiseText[i] {
			t.Errorf("Decode(%v) = %q, want %q", ids, got, want.NoiseText[i])
		}
		if got := tok.Decode(ids, true); got != want.NoiseSkipped[i] {
			t.Errorf("Decode(%v, skip) = %q, want %q", ids, got, want.NoiseSkipped[i])
		}
	}
}

func TestParitySmolLM2(t *testing.T) { checkParity(t, smolLM2(), "smollm2") }

// small is a vocabulary of all bytes, a few merges and special tokens.
func small() Vocab {
	v := Vocab{Model: "gpt2", Pre: "gpt-2", BOS: -1, EOS: 256, EOT: -1, Unknown: -1, Pad: -1}
	for b := range 256 {
		v.Tokens = append(v.Tokens, string(letterOf[b]))
		v.Types = append(v.Types, typeNormal)
	}
	for _, s := range []struct {
		text string
		kind int32
	}{{"<e>", typeControl}, {"<e>x", typeControl}, {"<tool>", typeUserDefined}, {"ab", 1}, {"bc", 1}, {"abc", 1}, {"abcd", 1}} {
		v.Tokens = append(v.Tokens, s.text)
		v.Types = append(v.Types, s.kind)
	}
	v.Merges = []string{"b c", "a b", "a bc"}
	return v
}

func mustNew(t testing.TB, v Vocab) *Tokenizer {
	t.Helper()
	tok, err := New(v)
	if err != nil {
		t.Fatal(err)
	}
	return tok
}

func TestSpecialTokens(t *testing.T) {
	tok := mustNew(t, small())
	for _, c := range []struct {
		text    string
		special bool
		want    []int32
	}{
		{"<e>", true, []int32{256}},
		{"<e>", false, []int32{'<', 'e', '>'}},
		{"<e>x<e>", true, []int32{257, 256}},
		{"<<e>", true, []int32{'<', 256}},
		{"<e<e>x", true, []int32{'<', 'e', 257}},
		{"<tool>", true, []int32{258}},
		{"<tool>", false, []int32{258}},
		{"<tool><e>", false, []int32{258, '<', 'e', '>'}},
		{"", true, nil},
	} {
		want := make([]int32, len(c.want))
		for i, id := range c.want {
			if want[i] = id; id < 256 {
				want[i] = tok.bytes[id]
			}
		}
		if got := tok.Encode(nil, c.text, c.special); !slices.Equal(got, want) {
			t.Errorf("Encode(%q, %t) = %v, want %v", c.text, c.special, got, want)
		}
	}
	if !tok.IsSpecial(256) || tok.IsSpecial(258) || tok.IsSpecial(65) || tok.IsSpecial(-1) || tok.IsSpecial(9999) {
		t.Error("IsSpecial must name control tokens only")
	}
	if !slices.Equal(tok.EOGs(), []int32{256}) || !tok.IsEOG(256) || tok.IsEOG(257) {
		t.Errorf("EOGs = %v", tok.EOGs())
	}
	if got := smolLM2().EOGs(); !slices.Equal(got, []int32{0, 2}) {
		t.Errorf("EOGs of SmolLM2 = %v, want end of text and end of turn", got)
	}
}

func TestMerges(t *testing.T) {
	v := small()
	tok := mustNew(t, v)
	abc, _ := tok.TokenID("abc")
	// "b c" comes first, so "abcd" becomes "abc d"; there is no merge that makes the token "abcd".
	if got := tok.Encode(nil, "abcd", false); !slices.Equal(got, []int32{abc, tok.bytes['d']}) {
		t.Errorf("Encode(abcd) = %v", got)
	}
	v.IgnoreMerges = true
	tok = mustNew(t, v)
	abcd, _ := tok.TokenID("abcd")
	if got := tok.Encode(nil, "abcd", false); !slices.Equal(got, []int32{abcd}) {
		t.Errorf("with whole words first, Encode(abcd) = %v, want [%d]", got, abcd)
	}
}

// naiveMerge is the definition: of all pairs, merge the one of lowest rank, the leftmost of several.
func naiveMerge(t *Tokenizer, word string) []int32 {
	var ids []int32
	for i := range len(word) {
		if id := t.bytes[word[i]]; id >= 0 {
			ids = append(ids, id)
		}
	}
	for {
		best, at := merge{rank: ^uint32(0)}, -1
		for i := range len(ids) - 1 {
			if m, ok := t.merges[pair(ids[i], ids[i+1])]; ok && m.rank < best.rank {
				best, at = m, i
			}
		}
		if at < 0 {
			return ids
		}
		ids = slices.Delete(ids, at+1, at+2)
		ids[at] = best.id
	}
}

func TestMergeEqualsDefinition(t *testing.T) {
	tok := smolLM2()
	e := tok.pool.get()
	r := rand.New(rand.NewPCG(1, 2))
	for range 3000 {
		word := make([]byte, 1+r.IntN(40))
		for i := range word {
			word[i] = " aeinrst"[r.IntN(8)]
			if r.IntN(30) == 0 {
				word[i] = byte(r.IntN(256))
			}
		}
		if got, want := tok.mergeWord(e, nil, string(word)), naiveMerge(tok, string(word)); !slices.Equal(got, want) {
			t.Fatalf("merging %q gave %v, want %v", word, got, want)
		}
	}
}

func TestInvalidUTF8(t *testing.T) {
	tok := mustNew(t, small())
	text := "a\xff\xc3 \xe2\x82 \xf0\x9f\x98\x80 \xc0\xaf"
	ids := tok.Encode(nil, text, false)
	var back []byte
	for _, id := range ids {
		back = append(back, tok.Bytes(id)...)
	}
	if string(back) != text {
		t.Errorf("bytes after a round trip: %q, want %q", back, text)
	}
	if got, want := tok.Decode(ids, false), "a\ufffd\ufffd \ufffd \U0001f600 \ufffd\ufffd"; got != want {
		t.Errorf("Decode = %q, want %q", got, want)
	}
}

func TestNewRefuses(t *testing.T) {
	for _, c := range []struct {
		name   string
		change func(*Vocab)
		want   string
	}{
		{"model", func(v *Vocab) { v.Model = "llama" }, `vocabulary model "llama"`},
		{"pattern", func(v *Vocab) { v.Pre = "chameleon" }, `pre-tokenizer "chameleon"`},
		{"no pattern", func(v *Vocab) { v.Pre = "" }, `pre-tokenizer ""`},
		{"empty", func(v *Vocab) { v.Tokens, v.Types = nil, nil }, "0 tokens"},
		{"types", func(v *Vocab) { v.Types = v.Types[1:] }, "262 token types for 263 tokens"},
		{"eos", func(v *Vocab) { v.EOS = 1000 }, "EOS token 1000 of 263"},
		{"bos", func(v *Vocab) { v.BOS = -2 }, "BOS token -2"},
		{"merge without pair", func(v *Vocab) { v.Merges[1] = "ab" }, `merge 1, "ab", is not a pair`},
		{"merge of three", func(v *Vocab) { v.Merges[1] = "a b c" }, "is not a pair"},
		{"merge of nothing", func(v *Vocab) { v.Merges[1] = " ab" }, "is not a pair"},
		{"merge unknown", func(v *Vocab) { v.Merges[2] = "a x" }, `"ax" is no token`},
		{"byte missing", func(v *Vocab) { v.Tokens['e'] = "zzz" }, `no token for byte 0x65, 'e'`},
		{"byte token", func(v *Vocab) { v.Types[0] = typeByte }, "is of type byte"},
		{"long token", func(v *Vocab) { v.Tokens[0] = strings.Repeat("x", 5000) }, "5000 bytes, the limit is 4096"},
	} {
		v := small()
		c.change(&v)
		_, err := New(v)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want one with %q", c.name, err, c.want)
		}
		if unsupported := c.name == "model" || strings.Contains(c.name, "pattern"); errors.Is(err, ErrUnsupported) != unsupported {
			t.Errorf("%s: ErrUnsupported is %t", c.name, !unsupported)
		}
	}
}

func TestMinTokens(t *testing.T) {
	tok := mustNew(t, small())
	for bytes, want := range map[int]int{0: 0, 1: 1, 6: 1, 7: 2, 600: 100} {
		if got := tok.MinTokens(bytes); got != want { // the longest token is <tool>
			t.Errorf("MinTokens(%d) = %d, want %d", bytes, got, want)
		}
	}
	for _, text := range []string{"<tool><tool>", "hello there", "<e>x"} {
		if got := len(tok.Encode(nil, text, true)); got < tok.MinTokens(len(text)) {
			t.Errorf("%q became %d tokens, fewer than %d", text, got, tok.MinTokens(len(text)))
		}
	}
}

func TestOutsideVocabulary(t *testing.T) {
	tok := mustNew(t, small())
	if tok.Bytes(-1) != nil || tok.Bytes(int32(tok.Size())) != nil || tok.Text(-5) != "" || tok.Text(1<<30) != "" {
		t.Error("an id outside the vocabulary must have no bytes and no text")
	}
	if got := tok.Decode([]int32{-1, tok.bytes['a'], 1 << 30}, true); got != "a" {
		t.Errorf("Decode with ids outside = %q, want a", got)
	}
}

func TestConcurrentUse(t *testing.T) {
	var texts []string
	golden(t, "texts", &texts)
	tok := smolLM2()
	want := make([][]int32, len(texts))
	for i, text := range texts {
		want[i] = naiveEncode(tok, text)
	}
	var group sync.WaitGroup
	for g := range 4 {
		group.Go(func() {
			for k := range texts {
				i := (k*7 + g*13) % len(texts)
				if got := tok.Encode(nil, texts[i], false); !slices.Equal(got, want[i]) {
					t.Errorf("Encode(%q) = %v, want %v", texts[i], got, want[i])
					return
				}
			}
		})
	}
	group.Wait()
}

func naiveEncode(t *Tokenizer, text string) []int32 {
	var ids []int32
	for text != "" {
		n := t.split(text)
		ids = append(ids, naiveMerge(t, text[:n])...)
		text = text[n:]
	}
	return ids
}

// TestEncodeMarkedEqualsDefinition: a text is cut at the special tokens that lie within the marked parts,
// and what is between two of them is encoded as one plain text. Without any part nothing special is
// left; with one part that is all of it, everything.
func TestEncodeMarkedEqualsDefinition(t *testing.T) {
	piece := rapid.SampledFrom([]string{"<e>", "<e", ">", "<e>x", "<tool>", "<to", "ol>", "ab", " a", "c d", "\n", "e>", "<", "é", "x", "<|m|>", "|>", "<|m"})
	v := small()
	v.Tokens, v.Types = append(v.Tokens, "<|m|>"), append(v.Types, typeUserDefined)
	tok := mustNew(t, v)
	rapid.Check(t, func(t *rapid.T) {
		var text string
		var marked [][2]int
		for _, p := range rapid.SliceOfN(piece, 0, 12).Draw(t, "pieces") {
			from := len(text)
			text += p
			if !rapid.Bool().Draw(t, "marked") || p == "" {
				continue
			}
			if n := len(marked); n > 0 && marked[n-1][1] == from {
				marked[n-1][1] = len(text)
			} else {
				marked = append(marked, [2]int{from, len(text)})
			}
		}
		within := func(from, to int) bool {
			return slices.ContainsFunc(marked, func(m [2]int) bool { return m[0] <= from && to <= m[1] })
		}
		var want []int32
		plain := ""
		for at := 0; at < len(text); {
			best := ""
			for _, s := range []string{"<e>", "<e>x", "<tool>", "<|m|>"} {
				if strings.HasPrefix(text[at:], s) && (s == "<tool>" || within(at, at+len(s))) && len(s) > len(best) {
					best = s
				}
			}
			if best == "" {
				plain += text[at : at+1]
				at++
				continue
			}
			id, _ := tok.TokenID(best)
			want = append(tok.Encode(want, plain, false), id)
			plain = ""
			at += len(best)
		}
		want = tok.Encode(want, plain, false)
		if got := tok.EncodeMarked(nil, text, marked); !slices.Equal(got, want) {
			t.Fatalf("%q with %v: %v, want %v", text, marked, got, want)
		}
		if got, want := tok.EncodeMarked(nil, text, [][2]int{{0, len(text)}}), tok.Encode(nil, text, true); !slices.Equal(got, want) {
			t.Fatalf("%q marked as a whole: %v, want %v", text, got, want)
		}
		if got, want := tok.EncodeMarked(nil, text, nil), tok.Encode(nil, text, false); !slices.Equal(got, want) {
			t.Fatalf("%q without a mark: %v, want %v", text, got, want)
		}
	})
}

// TestMarkersAreNotPlainText: some files call tokens that begin and end turns user-defined.
func TestMarkersAreNotPlainText(t *testing.T) {
	v := small()
	markers := []string{"<|user|>", "<|im_start|>", "<\uff5cUser\uff5c>", "<start_of_turn>", "<end_of_turn>", "[INST]", "[/INST]", "<s>", "</s>", "<bos>"}
	for _, s := range markers {
		v.Tokens, v.Types = append(v.Tokens, s), append(v.Types, typeUserDefined)
	}
	tok := mustNew(t, v)
	for _, s := range markers {
		if ids := tok.Encode(nil, s, false); len(ids) != len(s) {
			t.Errorf("plain text %q became %v", s, ids)
		}
		if ids := tok.Encode(nil, s, true); len(ids) != 1 {
			t.Errorf("marker %q became %v", s, ids)
		}
	}
	if ids := tok.Encode(nil, "<tool>", false); len(ids) != 1 {
		t.Errorf("the user-defined token <tool> became %v", ids)
	}
}

// TestSpellings: a word is spelled at the beginning of a text and behind a blank, however many it has itself.
func TestSpellings(t *testing.T) {
	tok := smolLM2()
	for word, texts := range map[string][]string{
		"cat": {"cat", " cat"}, " cat": {"cat", " cat"}, "New York": {"New York", " New York"},
		"  ": {"  ", "   "}, "<|im_end|>": {"<|im_end|>", " <|im_end|>"}, "\u20ac": {"\u20ac", " \u20ac"},
	} {
		var want [][]int32
		for _, text := range texts {
			want = append(want, tok.Encode(nil, text, true))
		}
		if got := tok.Spellings(word); !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, want %v", word, got, want)
		}
	}
}
