package engine

import (
	"math/bits"
	"slices"
)

// Bad words are sequences of tokens that a choice must not hold: the last token of one is forbidden
// wherever the others have just been generated. They are cleared from the mask of what may follow. That
// is a function of the choice's own tokens, so a preempted or moved choice goes on as if nothing had been.
//
// Who asks for more than can be had gets, in this order: the constraint, or the allowed tokens; no bad
// word; no end before min_tokens. So there is always something to draw.

// badWords lists the spellings of words once each. A sequence with a longer one's last tokens makes that
// one superfluous.
func badWords(words []string, spell func(string) [][]int32) (list [][]int32) {
	for _, word := range words {
		list = append(list, spell(word)...)
	}
	slices.SortFunc(list, func(a, b []int32) int { return len(a) - len(b) })
	kept := list[:0]
	for _, w := range list {
		if !slices.ContainsFunc(kept, func(k []int32) bool { return slices.Equal(k, w[len(w)-len(k):]) }) {
			kept = append(kept, w)
		}
	}
	return kept
}

// ends reports whether what s has generated, and drafts behind it, ends with words.
func (s *sequence) ends(words, drafts []int32) bool {
	own := s.tokens[s.prompt:]
	for i := len(words) - 1; i >= 0; i-- {
		from := &own
		if len(drafts) > 0 {
			from = &drafts
		}
		last := len(*from) - 1
		if last < 0 || (*from)[last] != words[i] {
			return false
		}
		*from = (*from)[:last]
	}
	return true
}

// undecided reports whether a draw that has not come back may decide about a bad word.
func (s *sequence) undecided() bool {
	if s.pending == 0 {
		return false
	}
	for _, w := range s.bad {
		if before := len(w) - 1; before > 0 && s.ends(w[:max(0, before-s.pending)], nil) {
			return true
		}
	}
	return false
}

// recalls reports whether bad words depend on what came before.
func (s *sequence) recalls() bool { return len(s.bad) > 0 && len(s.bad[len(s.bad)-1]) > 1 }

// forbid clears the last tokens of bad words from mask, of what may follow s and drafts, unless nothing
// would be left. unknown is how many draws have not come back: if any, s is not undecided, and longer words
// do not end here.
func (s *sequence) forbid(mask []uint32, drafts []int32, unknown int) {
	left := 0
	for _, word := range mask {
		left += bits.OnesCount32(word)
	}
	var cleared []int32
	for _, w := range s.bad {
		t := w[len(w)-1]
		if bit := uint32(1) << (t & 31); mask[t>>5]&bit != 0 && (len(w) == 1 || unknown == 0 && s.ends(w[:len(w)-1], drafts)) {
			mask[t>>5] &^= bit
			cleared = append(cleared, t)
		}
	}
	if len(cleared) == left {
		for _, t := range cleared {
			mask[t>>5] |= 1 << (t & 31)
		}
	}
}

// maskOf is a mask of tokens, of all if there are none.
func maskOf(tokens []int32, vocab int) []uint32 {
	mask := make([]uint32, (vocab+31)/32)
	if len(tokens) == 0 {
		for t := range vocab {
			mask[t>>5] |= 1 << (t & 31)
		}
	}
	for _, t := range tokens {
		mask[t>>5] |= 1 << (t & 31)
	}
	return mask
}
