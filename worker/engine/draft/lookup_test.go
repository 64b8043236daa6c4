package draft

import (
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestLookup: proposals are what a search through everything would find.
func TestLookup(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		vocab := int32(rapid.SampledFrom([]int{20, 60}).Draw(t, "vocabulary"))
		tokens := rapid.SliceOfN(rapid.Int32Range(0, vocab-1), 1, 700).Draw(t, "tokens")
		if rapid.Bool().Draw(t, "again") {
			tokens = append(tokens, tokens[:rapid.IntRange(0, len(tokens)).Draw(t, "part")]...)
		}
		skip, n := rapid.IntRange(0, 1).Draw(t, "skip"), rapid.IntRange(1, MaxPerSequence).Draw(t, "n")
		var r Lookup
		for i := 1; i < len(tokens); i += rapid.IntRange(1, 300).Draw(t, "more") {
			r.Learn(tokens[:i], 1)
		}
		r.Learn(tokens, 1)
		got := r.propose(nil, tokens, skip, n)

		last, best, at := len(tokens)-1, 1, -1
		candidates := 0
		for c := last - 1; c >= 1 && candidates < maxChain; c-- {
			k := 0
			for k < maxMatched && k <= c && tokens[c-k] == tokens[last-k] {
				k++
			}
			if k >= 2 {
				candidates++
			}
			if k > best {
				best, at = k, c
			}
		}
		if at < 0 {
			if len(got) > 0 {
				t.Fatalf("%v proposed after %v", got, tokens)
			}
			return
		}
		if len(got) == 0 {
			return // other pairs of the same hash stood before it
		}
		text := slices.Clone(tokens)
		for i := range skip + n {
			text = append(text, text[at+1+i])
		}
		if want := text[len(tokens)+skip:]; best == maxMatched && !slices.Equal(got, want) {
			t.Fatalf("%v proposed, want %v", got, want)
		}
	})
}
