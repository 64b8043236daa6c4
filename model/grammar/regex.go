package grammar

import (
	"errors"
	"fmt"
	"regexp/syntax"
	"strings"
	"unicode"
)

// regex adds what the expression matches from the beginning of the text to its end; ^ and $ at its
// ends say nothing more.
func (b *builder) regex(from, to int32, source string) {
	r := b.parseRegex(source)
	if r == nil {
		return
	}
	(&expression{b: b, spelling: plain, start: from, end: to}).add(r, from, to, true, true)
}

// pattern adds strings (without their quotes) in which the expression matches somewhere, as the
// keyword pattern has it: anything may stand before it and after it, unless ^ and $ forbid. The
// strings have min to max characters, max < 0 for any number: where the expression is one character
// repeated that is its count; others must keep to the lengths by themselves.
func (b *builder) pattern(from, to int32, source string, min, max int) {
	r := b.parseRegex(source)
	if r == nil {
		return
	}
	if min > 0 || max >= 0 {
		if sub, lo, hi := runOf(r); sub != nil {
			if lo = atLeast(lo, min); hi < 0 || max >= 0 && max < hi {
				hi = max
			}
			if hi >= 0 && lo > hi {
				b.fail(fmt.Errorf("%w: %s: no text has %d characters or more, and %d or less", ErrUnsupported, b.place, lo, hi))
				return
			}
			(&expression{b: b, spelling: quoted, start: from, end: to}).repeat(sub, from, to, lo, hi)
			return
		}
		lo, hi, begins, ends := lengths(r)
		if lo < min || max >= 0 && (hi < 0 || hi > max || !begins || !ends) {
			b.fail(fmt.Errorf("%w: %s: pattern together with minLength or maxLength that it does not imply: count in the pattern, as in ^[a-z]{2,8}$", ErrUnsupported, b.place))
			return
		}
	}
	before, after := b.node(), b.node()
	char := b.automaton(func(from, to int32) { b.chars(from, to, []rune{0, unicode.MaxRune}, quoted) })
	b.repeat(from, before, char, 0, -1)
	(&expression{b: b, spelling: quoted, start: from, end: to}).add(r, before, after, true, true)
	b.repeat(after, to, char, 0, -1)
}

func atLeast(n, least int) int { return max(n, least) }

// instead says what to write instead of what other engines have and no automaton has.
func instead(expr string) string {
	switch {
	case strings.HasPrefix(expr, "(?=") || strings.HasPrefix(expr, "(?!") || strings.HasPrefix(expr, "(?<=") || strings.HasPrefix(expr, "(?<!"):
		return `: look-around is not supported, say what may stand there instead; a decimal number, as of Pydantic's Decimal, is ^[+-]?\d+(\.\d+)?$, or type number`
	case len(expr) == 2 && expr[0] == '\\' && expr[1] >= '1' && expr[1] <= '9':
		return ": back-references are not supported"
	}
	return ""
}

// runOf takes ^x{lo,hi}$ apart, x being one character; sub is nil for anything else.
func runOf(r *syntax.Regexp) (sub *syntax.Regexp, lo, hi int) {
	if r.Op != syntax.OpConcat || len(r.Sub) != 3 || r.Sub[0].Op != syntax.OpBeginText || r.Sub[2].Op != syntax.OpEndText {
		return nil, 0, 0
	}
	r = r.Sub[1]
	for r.Op == syntax.OpCapture {
		r = r.Sub[0]
	}
	switch r.Op {
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat:
		if one, most, _, _ := lengths(r.Sub[0]); one == 1 && most == 1 {
			lo, hi = counts(r)
			return r.Sub[0], lo, hi
		}
	}
	return nil, 0, 0
}

// counts is how often what r repeats stands there; hi < 0 for any number.
func counts(r *syntax.Regexp) (lo, hi int) {
	switch r.Op {
	case syntax.OpStar:
		return 0, -1
	case syntax.OpPlus:
		return 1, -1
	case syntax.OpQuest:
		return 0, 1
	}
	return r.Min, r.Max
}

// lengths is how many characters an expression matches at least and at most, hi < 0 for any number,
// and whether it begins with ^ and ends with $.
func lengths(r *syntax.Regexp) (lo, hi int, begins, ends bool) {
	switch r.Op {
	case syntax.OpLiteral:
		return len(r.Rune), len(r.Rune), false, false
	case syntax.OpCharClass, syntax.OpAnyChar, syntax.OpAnyCharNotNL:
		return 1, 1, false, false
	case syntax.OpCapture:
		return lengths(r.Sub[0])
	case syntax.OpBeginText:
		return 0, 0, true, false
	case syntax.OpEndText:
		return 0, 0, false, true
	case syntax.OpConcat:
		for i, sub := range r.Sub {
			l, h, b, e := lengths(sub)
			lo += l
			if hi += h; h < 0 || hi < 0 {
				hi = -1 << 40 // stays below 0, whatever is added
			}
			begins = begins || b && i == 0
			ends = e && i == len(r.Sub)-1
		}
		return lo, max(hi, -1), begins, ends
	case syntax.OpAlternate:
		lo, hi, begins, ends = lengths(r.Sub[0])
		for _, sub := range r.Sub[1:] {
			l, h, b, e := lengths(sub)
			if lo = min(lo, l); h < 0 || hi < 0 {
				hi = -1
			} else {
				hi = max(hi, h)
			}
			begins, ends = begins && b, ends && e
		}
		return lo, hi, begins, ends
	case syntax.OpStar, syntax.OpPlus, syntax.OpQuest, syntax.OpRepeat:
		l, h, _, _ := lengths(r.Sub[0])
		low, high := counts(r)
		if lo = l * low; h < 0 && high != 0 || high < 0 && h != 0 {
			return lo, -1, false, false
		}
		return lo, h * high, false, false
	}
	return 0, 0, false, false
}

// maxRegexBytes bounds an expression, for the parser unfolds classes: 3 bytes can name 600 ranges.
const maxRegexBytes = 16 << 10

func (b *builder) parseRegex(source string) *syntax.Regexp {
	if len(source) > maxRegexBytes {
		b.fail(fmt.Errorf("%w: %s: a regular expression of %d bytes, more than %d", ErrLimit, b.place, len(source), maxRegexBytes))
		return nil
	}
	r, err := syntax.Parse(unicodeEscapes(source), syntax.Perl)
	if err == nil {
		return r
	}
	var at *syntax.Error
	if errors.As(err, &at) {
		where := ""
		if i := strings.Index(source, at.Expr); i > 0 && at.Expr != "" {
			where = fmt.Sprintf(" at offset %d", i)
		}
		err = fmt.Errorf("%s: %.100q%s%s", at.Code, at.Expr, where, instead(at.Expr))
	}
	b.fail(fmt.Errorf("%w: %s: %w", ErrUnsupported, b.place, err))
	return nil
}

// unicodeEscapes rewrites \uXXXX, which JSON schemas' dialect has, as \x{XXXX}.
func unicodeEscapes(source string) string {
	var out strings.Builder
	for i := 0; i < len(source); i++ {
		if source[i] != '\\' || i+1 == len(source) {
			out.WriteByte(source[i])
			continue
		}
		i++
		if source[i] == 'u' && i+4 < len(source) {
			out.WriteString(`\x{` + source[i+1:i+5] + `}`)
			i += 4
			continue
		}
		out.WriteString(source[i-1 : i+1])
	}
	return out.String()
}

// An expression is a regular expression being added. start and end are the ends of the whole text,
// which is where ^ and $ lead, past anything that a pattern allows before and after.
type expression struct {
	b          *builder
	spelling   spelling
	start, end int32
}

// add adds r between two nodes. first and last say that nothing of the expression can stand before
// it, or after it.
func (x *expression) add(r *syntax.Regexp, from, to int32, first, last bool) {
	b := x.b
	if b.err != nil {
		return
	}
	switch r.Op {
	case syntax.OpNoMatch:
	case syntax.OpEmptyMatch:
		b.empty(from, to)
	case syntax.OpLiteral:
		for i, c := range r.Rune {
			next := to
			if i < len(r.Rune)-1 {
				next = b.node()
			}
			ranges := []rune{c, c}
			if r.Flags&syntax.FoldCase != 0 {
				for f := unicode.SimpleFold(c); f != c; f = unicode.SimpleFold(f) {
					ranges = append(ranges, f, f)
				}
			}
			b.chars(from, next, ranges, x.spelling)
			from = next
		}
	case syntax.OpCharClass:
		b.chars(from, to, r.Rune, x.spelling)
	case syntax.OpAnyChar:
		b.chars(from, to, []rune{0, unicode.MaxRune}, x.spelling)
	case syntax.OpAnyCharNotNL:
		b.chars(from, to, without([]rune{'\n'}), x.spelling)
	case syntax.OpCapture:
		x.add(r.Sub[0], from, to, first, last)
	case syntax.OpConcat:
		for i, sub := range r.Sub {
			next := to
			if i < len(r.Sub)-1 {
				next = b.node()
			}
			x.add(sub, from, next, first && i == 0, last && i == len(r.Sub)-1)
			from = next
		}
	case syntax.OpAlternate:
		for _, sub := range r.Sub {
			x.add(sub, from, to, first, last)
		}
	case syntax.OpQuest:
		x.repeat(r.Sub[0], from, to, 0, 1)
	case syntax.OpStar:
		x.repeat(r.Sub[0], from, to, 0, -1)
	case syntax.OpPlus:
		x.repeat(r.Sub[0], from, to, 1, -1)
	case syntax.OpRepeat:
		x.repeat(r.Sub[0], from, to, r.Min, r.Max)
	case syntax.OpBeginText:
		if !first {
			x.refuse("^ is not at the beginning")
			return
		}
		b.empty(x.start, to)
	case syntax.OpEndText:
		if !last {
			x.refuse("$ is not at the end")
			return
		}
		b.empty(from, x.end)
	case syntax.OpBeginLine, syntax.OpEndLine:
		x.refuse("(?m)")
	case syntax.OpWordBoundary, syntax.OpNoWordBoundary:
		x.refuse(`\b and \B`)
	default:
		x.refuse(r.Op.String())
	}
}

func (x *expression) repeat(sub *syntax.Regexp, from, to int32, min, max int) {
	start := x.b.automaton(func(from, to int32) { x.add(sub, from, to, false, false) })
	x.b.repeat(from, to, start, min, max)
}

func (x *expression) refuse(what string) {
	x.b.fail(fmt.Errorf("%w: %s: regular expression: %s", ErrUnsupported, x.b.place, what))
}
