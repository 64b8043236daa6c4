package tokenizer

import (
	"unicode"
	"unicode/utf8"
)

// splitO200K is, with U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}], L = [\p{Ll}\p{Lm}\p{Lo}\p{M}] and
// C = (?i:'s|'t|'re|'ve|'m|'ll|'d),
//
//	[^\r\n\p{L}\p{N}]?U*L+C?|[^\r\n\p{L}\p{N}]?U+L*C?|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+
func splitO200K(text string) int {
	c, n := classAt(text, 0)
	prefix := c != letter && c != number && text[0] != '\r' && text[0] != '\n'
	for _, match := range []func(string, int) int{capitalised, capitals} {
		if prefix {
			if end := match(text, n); end > 0 {
				return end + contraction(text[end:], true)
			}
		}
		// A mark can be the prefix and can also begin the word itself.
		if end := match(text, 0); end > 0 {
			return end + contraction(text[end:], true)
		}
	}
	if c == number {
		return numbers(text, 3)
	}
	if end := punctuation(text, "\r\n/"); end > 0 {
		return end
	}
	return lines(text)
}

// cases says whether the character at text[i] is in U, in L, or in both.
func cases(text string, i int) (upper, lower bool, n int) {
	if i >= len(text) {
		return false, false, 0
	}
	r, n := utf8.DecodeRuneInString(text[i:])
	switch {
	case r < utf8.RuneSelf:
		return r >= 'A' && r <= 'Z', r >= 'a' && r <= 'z', n
	case unicode.In(r, unicode.Lu, unicode.Lt, newUpper):
		return true, false, n
	case unicode.In(r, unicode.Ll, newLower):
		return false, true, n
	}
	both := classOfRune(r) == letter || unicode.In(r, unicode.M, newMarks)
	return both, both, n
}

// capitalised matches U*L+ at text[i]; 0 if it does not match.
func capitalised(text string, i int) int {
	back := 0 // after the last character that U* took and can give back to L+
	for {
		upper, lower, n := cases(text, i)
		if !upper {
			break
		}
		i += n
		if lower {
			back = i
		}
	}
	if end := lowerRun(text, i); end > i {
		return end
	}
	return back
}

// capitals matches U+L* at text[i]; 0 if it does not match.
func capitals(text string, i int) int {
	start := i
	for {
		upper, _, n := cases(text, i)
		if !upper {
			break
		}
		i += n
	}
	if i == start {
		return 0
	}
	return lowerRun(text, i)
}

func lowerRun(text string, i int) int {
	for {
		_, lower, n := cases(text, i)
		if !lower {
			return i
		}
		i += n
	}
}
