package grammar

import (
	"fmt"
	"slices"
	"unicode/utf8"
)

// A span is a range of bytes; a run of spans is a set of byte strings of equal length.
type span struct{ lo, hi byte }

// utf8Runs appends the runs that together are the UTF-8 encodings of lo to hi. Surrogates, which
// have none, are left out. Within a run each byte varies by itself, so a range is cut wherever a
// later byte is not yet at its first value, or not at its last.
func utf8Runs(dst [][]span, lo, hi rune) [][]span {
	if lo > hi {
		return dst
	}
	if lo <= 0xDFFF && hi >= 0xD800 {
		dst = utf8Runs(dst, lo, 0xD7FF)
		return utf8Runs(dst, 0xE000, hi)
	}
	for _, last := range []rune{0x7F, 0x7FF, 0xFFFF} {
		if lo <= last && last < hi {
			dst = utf8Runs(dst, lo, last)
			return utf8Runs(dst, last+1, hi)
		}
	}
	if hi > 0x7F {
		for shift := 6; shift <= 18; shift += 6 {
			low := rune(1)<<shift - 1
			if lo&^low == hi&^low {
				break
			}
			if lo&low != 0 {
				dst = utf8Runs(dst, lo, lo|low)
				return utf8Runs(dst, (lo|low)+1, hi)
			}
			if hi&low != low {
				dst = utf8Runs(dst, lo, hi&^low-1)
				return utf8Runs(dst, hi&^low, hi)
			}
		}
	}
	var first, last [utf8.UTFMax]byte
	n := utf8.EncodeRune(first[:], lo)
	utf8.EncodeRune(last[:], hi)
	run := make([]span, n)
	for i := range run {
		run[i] = span{first[i], last[i]}
	}
	return append(dst, run)
}

// A spelling is how characters become bytes.
type spelling int

const (
	// plain: as UTF-8.
	plain spelling = iota
	// quoted: as between the quotes of a JSON string, each character in its shortest form.
	quoted
)

// chars adds the characters of the ranges (pairs of first and last, ascending), as the spelling
// has them. Sets of many runs, such as letters, are built once and called.
func (b *builder) chars(from, to int32, ranges []rune, s spelling) {
	b.spend(len(ranges))
	var runs [][]span
	for i := 0; i+1 < len(ranges); i += 2 {
		lo, hi := ranges[i], ranges[i+1]
		if s == plain {
			runs = utf8Runs(runs, lo, hi)
			continue
		}
		for c := lo; c <= hi && c < 0x20; c++ {
			runs = append(runs, textRun(escapes[c]))
		}
		for _, c := range []rune{'"', '\\'} {
			if lo <= c && c <= hi {
				runs = append(runs, []span{{'\\', '\\'}, {byte(c), byte(c)}})
			}
		}
		for _, part := range [][2]rune{{0x20, '"' - 1}, {'"' + 1, '\\' - 1}, {'\\' + 1, utf8.MaxRune}} {
			runs = utf8Runs(runs, max(lo, part[0]), min(hi, part[1]))
		}
	}
	if len(runs) <= 8 {
		b.runs(from, to, runs)
		return
	}
	start := b.rule(fmt.Sprint("chars ", s, ranges), func(from, to int32) { b.runs(from, to, runs) })
	b.call(from, start, to, false)
}

// runs adds the byte strings, common beginnings shared.
func (b *builder) runs(from, to int32, runs [][]span) {
	type step struct {
		node int32
		span span
	}
	next := map[step]int32{}
	for _, run := range runs {
		at := from
		for _, sp := range run[:len(run)-1] {
			k := step{at, sp}
			n, ok := next[k]
			if !ok {
				n = b.node()
				next[k] = n
				b.bytes(at, n, sp.lo, sp.hi)
			}
			at = n
		}
		b.bytes(at, to, run[len(run)-1].lo, run[len(run)-1].hi)
	}
}

func textRun(text string) []span {
	run := make([]span, len(text))
	for i := range run {
		run[i] = span{text[i], text[i]}
	}
	return run
}

// escapes are the JSON spellings of the control characters.
var escapes = func() (e [0x20]string) {
	for c := range e {
		e[c] = fmt.Sprintf(`\u%04x`, c)
	}
	e['\b'], e['\f'], e['\n'], e['\r'], e['\t'] = `\b`, `\f`, `\n`, `\r`, `\t`
	return e
}()

// quote spells text as a JSON string, the way that chars spells it.
func quote(text string) string {
	out := []byte{'"'}
	for _, c := range text {
		switch {
		case c < 0x20:
			out = append(out, escapes[c]...)
		case c == '"' || c == '\\':
			out = append(out, '\\', byte(c))
		default:
			out = utf8.AppendRune(out, c)
		}
	}
	return string(append(out, '"'))
}

// without returns the characters that are not in the list.
func without(list []rune) []rune {
	list = slices.Sorted(slices.Values(list))
	var out []rune
	next := rune(0)
	for _, c := range list {
		if c > next {
			out = append(out, next, c-1)
		}
		next = max(next, c+1)
	}
	return append(out, next, utf8.MaxRune)
}
