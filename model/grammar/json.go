package grammar

import (
	"fmt"
	"regexp/syntax"
	"slices"
	"strings"
)

// JSON, as the networks write it (RFC 8259, with these bounds so that a model that has nothing to
// say cannot fill the context with it): between tokens, where a pretty-printer would put white
// space, at most one blank, or what Spec.Whitespace says; numbers of at most 18 digits before the
// point, 17 after it and 2 of exponent, which every reader holds without overflow.
const (
	maxDigits     = 18
	maxFraction   = 17
	maxExponent   = 2
	largestDigits = 999_999_999_999_999_999 // maxDigits nines
)

// space adds optional white space.
func (b *builder) space(from, to int32) {
	start := b.rule("space", func(from, to int32) {
		if b.blanks != nil {
			(&expression{b: b, spelling: plain, start: from, end: to}).add(b.blanks, from, to, true, true)
			return
		}
		b.empty(from, to)
		b.bytes(from, to, ' ', ' ')
	})
	b.call(from, start, to, false)
}

// whitespace sets what space adds: what an expression matches, which must be JSON's white space.
func (b *builder) whitespace(source string) {
	place := b.place
	b.place = "whitespace"
	defer func() { b.place = place }()
	r := b.parseRegex(source)
	if r == nil {
		return
	}
	var blank func(r *syntax.Regexp) bool
	blank = func(r *syntax.Regexp) bool {
		switch r.Op {
		case syntax.OpNoMatch, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
			return false
		case syntax.OpLiteral:
			return strings.Trim(string(r.Rune), " \t\r\n") == ""
		case syntax.OpCharClass:
			for i := 0; i < len(r.Rune); i += 2 {
				for c := r.Rune[i]; c <= r.Rune[i+1]; c++ {
					if !strings.ContainsRune(" \t\r\n", c) {
						return false
					}
				}
			}
		}
		return !slices.ContainsFunc(r.Sub, func(sub *syntax.Regexp) bool { return !blank(sub) })
	}
	if !blank(r) {
		b.fail(fmt.Errorf("%w: whitespace: the expression %.100q matches more than blanks, tabs and line breaks, and the rest would not be JSON", ErrUnsupported, source))
		return
	}
	b.blanks = r
}

// digits adds min to max decimal digits.
func (b *builder) digits(from, to int32, min, max int) {
	digit := b.rule("digit", func(from, to int32) { b.bytes(from, to, '0', '9') })
	b.repeat(from, to, digit, min, max)
}

// number adds a number; negative says whether it may be.
func (b *builder) number(from, to int32, negative bool) {
	name := "number"
	if !negative {
		name = "number without sign"
	}
	start := b.rule(name, func(from, to int32) {
		whole, point, fraction, e, power, signed := b.node(), b.node(), b.node(), b.node(), b.node(), b.node()
		if negative {
			b.bytes(from, signed, '-', '-')
		}
		b.empty(from, signed)
		b.bytes(signed, whole, '0', '0')
		more := b.node()
		b.bytes(signed, more, '1', '9')
		b.digits(more, whole, 0, maxDigits-1)
		b.bytes(whole, point, '.', '.')
		b.digits(point, fraction, 1, maxFraction)
		b.empty(whole, fraction)
		b.bytes(fraction, e, 'e', 'e')
		b.bytes(fraction, e, 'E', 'E')
		b.bytes(e, power, '+', '+')
		b.bytes(e, power, '-', '-')
		b.empty(e, power)
		b.digits(power, to, 1, maxExponent)
		b.empty(fraction, to)
	})
	b.call(from, start, to, false)
}

// char is one character of a string, in any of its spellings. A \u that is half of a surrogate
// pair must be followed by the other half.
func (b *builder) char() int32 {
	return b.rule("char", func(from, to int32) {
		b.runs(from, to, utf8Runs(utf8Runs(utf8Runs(nil, 0x20, '"'-1), '"'+1, '\\'-1), '\\'+1, 0x10FFFF))
		escape, unicode := b.node(), b.node()
		b.bytes(from, escape, '\\', '\\')
		for _, c := range []byte(`"\/bfnrt`) {
			b.bytes(escape, to, c, c)
		}
		b.bytes(escape, unicode, 'u', 'u')
		hex := func(from, to int32, lo, hi byte) { // lo and hi are values of a digit
			for v := lo; v <= hi; v++ {
				b.bytes(from, to, "0123456789abcdef"[v], "0123456789abcdef"[v])
				if v > 9 {
					b.bytes(from, to, "0123456789ABCDEF"[v], "0123456789ABCDEF"[v])
				}
			}
		}
		three, two, one := b.node(), b.node(), b.node()
		hex(unicode, three, 0, 12)
		hex(unicode, three, 14, 15)
		hex(three, two, 0, 15)
		hex(two, one, 0, 15)
		hex(one, to, 0, 15)
		d, low, last, half, slash, second, third := b.node(), b.node(), b.node(), b.node(), b.node(), b.node(), b.node()
		hex(unicode, d, 13, 13)
		hex(d, two, 0, 7) // not a surrogate
		hex(d, low, 8, 11)
		hex(low, last, 0, 15)
		hex(last, half, 0, 15)
		b.bytes(half, slash, '\\', '\\')
		b.bytes(slash, second, 'u', 'u')
		hex(second, third, 13, 13)
		hex(third, two, 12, 15)
	})
}

// text adds a string of min to max characters, max < 0 for any number.
func (b *builder) text(from, to int32, min, max int) {
	inside, end := b.node(), b.node()
	b.bytes(from, inside, '"', '"')
	b.repeat(inside, end, b.char(), min, max)
	b.bytes(end, to, '"', '"')
}

// anyText adds any string.
func (b *builder) anyText(from, to int32) {
	b.call(from, b.rule("string", func(from, to int32) { b.text(from, to, 0, -1) }), to, false)
}

// list adds open, what items adds between its two nodes any number of times with commas between,
// and close.
func (b *builder) list(from, to int32, open, close byte, items func(from, to int32)) {
	inside, first, after, comma := b.node(), b.node(), b.node(), b.node()
	b.bytes(from, inside, open, open)
	b.space(inside, first)
	b.bytes(first, to, close, close)
	items(first, after)
	b.bytes(after, comma, ',', ',')
	next := b.node()
	b.space(comma, next)
	items(next, after)
	last := b.node()
	b.space(after, last)
	b.bytes(last, to, close, close)
}

// colon adds what stands between a name and its value.
func (b *builder) colon(from, to int32) {
	at := b.node()
	b.bytes(from, at, ':', ':')
	b.space(at, to)
}

// anyObject adds any object.
func (b *builder) anyObject(from, to int32) {
	member := b.rule("member", func(from, to int32) {
		name, value := b.node(), b.node()
		b.anyText(from, name)
		b.colon(name, value)
		b.anyValue(value, to)
	})
	start := b.rule("object", func(from, to int32) {
		b.list(from, to, '{', '}', func(from, to int32) { b.call(from, member, to, false) })
	})
	b.call(from, start, to, false)
}

// anyArray adds any array.
func (b *builder) anyArray(from, to int32) {
	start := b.rule("array", func(from, to int32) { b.list(from, to, '[', ']', b.anyValue) })
	b.call(from, start, to, false)
}

// anyValue adds any value. Its call nests: it is where free-form JSON recurs.
func (b *builder) anyValue(from, to int32) {
	start := b.rule("value", func(from, to int32) {
		b.anyText(from, to)
		b.number(from, to, true)
		b.literals(from, to, []string{"true", "false", "null"})
		b.anyArray(from, to)
		b.anyObject(from, to)
	})
	b.call(from, start, to, true)
}
