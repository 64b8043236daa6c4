package jinja

import (
	"fmt"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// part is a statement, a printed expression or literal text.
type part struct {
	kind   byte // '%', '{', or 0 for text
	text   string
	tokens []token // of a statement or expression, an end last
	line   int
}

type tokenKind byte

const (
	tokenEnd tokenKind = iota + 1
	tokenName
	tokenString
	tokenInt
	tokenFloat
	tokenOp
)

type token struct {
	kind tokenKind
	text string // name, operator, or a string's value
	n    int64
	f    float64
	line int
}

const blanks = " \t\n\r\v\f"

// lexer cuts a template into parts and applies the rules for the space around tags.
type lexer struct {
	source string // what is left
	line   int
	parts  []part
}

func lex(source string) []part {
	source = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(source)
	l := lexer{source: strings.TrimSuffix(source, "\n"), line: 1}
	lineStart := true // what comes next is at the start of a line
	for {
		start := 0
		for start < len(l.source) && !(l.source[start] == '{' && start+1 < len(l.source) && strings.IndexByte("{%#", l.source[start+1]) >= 0) {
			start++
		}
		if start == len(l.source) {
			l.text(l.source)
			return l.parts
		}
		text := l.take(start)
		line, kind := l.line, l.source[1]
		l.take(2)
		mark := l.mark()
		l.text(trimBefore(text, kind, mark, lineStart))
		var closing byte
		if kind == '#' {
			closing = l.comment(line)
		} else {
			p := part{kind: kind, line: line}
			p.tokens, closing = l.tag(kind, line)
			if kind == '%' && p.tokens[0].text == "raw" {
				closing = l.raw(closing, line)
			} else {
				l.parts = append(l.parts, p)
			}
		}
		switch {
		case closing == '-':
			skipped := l.take(len(l.source) - len(strings.TrimLeft(l.source, blanks)))
			lineStart = strings.HasSuffix(skipped, "\n")
		case kind != '{' && closing != '+' && strings.HasPrefix(l.source, "\n"):
			lineStart = true
			l.take(1)
		default:
			lineStart = false
		}
	}
}

func (l *lexer) fail(line int, format string, args ...any) {
	panic(&Error{Line: line, Text: fmt.Sprintf(format, args...)})
}

// take returns the next n bytes.
func (l *lexer) take(n int) string {
	s := l.source[:n]
	l.line += strings.Count(s, "\n")
	l.source = l.source[n:]
	return s
}

func (l *lexer) text(s string) {
	if s != "" {
		l.parts = append(l.parts, part{text: s})
	}
}

// mark takes the minus or plus at the beginning of a tag.
func (l *lexer) mark() byte {
	if l.source != "" && (l.source[0] == '-' || l.source[0] == '+') {
		return l.take(1)[0]
	}
	return 0
}

// trimBefore trims the text before a tag: all space if the tag is marked with a minus; else, before
// a statement or comment that is first on its line, the indentation.
func trimBefore(text string, kind, mark byte, lineStart bool) string {
	if mark == '-' {
		return strings.TrimRight(text, blanks)
	}
	line := strings.LastIndexByte(text, '\n') + 1
	if kind != '{' && mark != '+' && (line > 0 || lineStart) && strings.Trim(text[line:], blanks) == "" {
		return text[:line]
	}
	return text
}

func (l *lexer) comment(line int) (closing byte) {
	n := strings.Index(l.source, "#}")
	if n < 0 {
		l.fail(line, "a comment without its end")
	}
	s := l.take(n + 2)
	if n > 0 {
		closing = s[n-1]
	}
	return closing
}

// raw takes the text up to the end of a raw block, whose tags trim as others do.
func (l *lexer) raw(opening byte, line int) (closing byte) {
	lineStart := false
	if opening == '-' {
		skipped := l.take(len(l.source) - len(strings.TrimLeft(l.source, blanks)))
		lineStart = strings.HasSuffix(skipped, "\n")
	}
	for i := 0; ; {
		n := strings.Index(l.source[i:], "{%")
		if n < 0 {
			l.fail(line, "a raw block without its end")
		}
		start := i + n
		i = start + 2
		mark := byte(0)
		if i < len(l.source) && (l.source[i] == '-' || l.source[i] == '+') {
			mark = l.source[i]
			i++
		}
		body, _, ended := strings.Cut(l.source[i:], "%}")
		if !ended || strings.Trim(strings.TrimRight(body, "-+"), blanks) != "endraw" {
			continue
		}
		l.text(trimBefore(l.source[:start], '%', mark, lineStart))
		l.take(i + len(body) + 2)
		return body[len(body)-1]
	}
}

var operators = []string{"**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/", "%", "~", "<", ">", "=", ".", ",", ":", "|", "(", ")", "[", "]", "{", "}"}

// tag returns the tokens up to the tag's end, and the last byte before that, which may trim.
func (l *lexer) tag(kind byte, line int) (tokens []token, closing byte) {
	closer := "%}"
	if kind == '{' {
		closer = "}}"
	}
	open := ""
	for {
		l.take(len(l.source) - len(strings.TrimLeft(l.source, blanks)))
		s := l.source
		if s == "" {
			l.fail(line, "a tag without %q", closer)
		}
		if open == "" {
			end := token{kind: tokenEnd, line: l.line}
			if strings.HasPrefix(s, closer) {
				l.take(2)
				return append(tokens, end), 0
			}
			if (s[0] == '-' || s[0] == '+') && strings.HasPrefix(s[1:], closer) {
				l.take(3)
				return append(tokens, end), s[0]
			}
		}
		t := token{line: l.line}
		switch c := s[0]; {
		case c == '\'' || c == '"':
			t.kind, t.text = tokenString, l.quoted()
		case c >= '0' && c <= '9':
			l.number(&t)
		case c == '_' || c >= utf8.RuneSelf || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z':
			n := strings.IndexFunc(s, func(r rune) bool { return r != '_' && !unicode.IsLetter(r) && !unicode.IsDigit(r) })
			if n < 0 {
				n = len(s)
			}
			if n == 0 {
				l.fail(l.line, "unexpected character %q", firstRune(s))
			}
			t.kind, t.text = tokenName, l.take(n)
		default:
			t.kind = tokenOp
			for _, op := range operators {
				if strings.HasPrefix(s, op) {
					t.text = l.take(len(op))
					break
				}
			}
			switch t.text {
			case "":
				l.fail(l.line, "unexpected character %q", firstRune(s))
			case "(", "[", "{":
				if len(open) == maxNesting {
					l.fail(l.line, "more than %d brackets inside each other", maxNesting)
				}
				open += t.text
			case ")", "]", "}":
				if open == "" || strings.IndexByte("([{", open[len(open)-1]) != strings.IndexByte(")]}", t.text[0]) {
					l.fail(l.line, "unexpected %q", t.text)
				}
				open = open[:len(open)-1]
			}
		}
		tokens = append(tokens, t)
	}
}

func firstRune(s string) rune {
	r, _ := utf8.DecodeRuneInString(s)
	return r
}

func (l *lexer) number(t *token) {
	digits := func(s string) int {
		i := 0
		for i < len(s) && (s[i] >= '0' && s[i] <= '9' || s[i] == '_' && i > 0) {
			i++
		}
		return i
	}
	s := l.source
	if len(s) > 2 && s[0] == '0' && strings.IndexByte("xXoObB", s[1]) >= 0 {
		n := 2
		for n < len(s) && (s[n] == '_' || strings.IndexByte("0123456789abcdefABCDEF", s[n]) >= 0) {
			n++
		}
		v, err := strconv.ParseInt(s[:n], 0, 64)
		if err != nil {
			l.fail(l.line, "not an integer of 64 bits: %s", s[:min(n, 40)])
		}
		t.kind, t.n = tokenInt, v
		l.take(n)
		return
	}
	n, whole := digits(s), true
	if n+1 < len(s) && s[n] == '.' && s[n+1] >= '0' && s[n+1] <= '9' {
		n, whole = n+1+digits(s[n+1:]), false
	}
	if n < len(s) && (s[n] == 'e' || s[n] == 'E') {
		m := n + 1
		if m < len(s) && (s[m] == '+' || s[m] == '-') {
			m++
		}
		if d := digits(s[m:]); d > 0 {
			n, whole = m+d, false
		}
	}
	text := strings.ReplaceAll(l.take(n), "_", "")
	var err error
	if whole {
		t.kind = tokenInt
		t.n, err = strconv.ParseInt(text, 10, 64)
	} else {
		t.kind = tokenFloat
		t.f, err = strconv.ParseFloat(text, 64)
	}
	if err != nil {
		l.fail(t.line, "a number out of range: %s", text[:min(len(text), 40)])
	}
}

// quoted takes a string with Python's escapes.
func (l *lexer) quoted() string {
	line, quote := l.line, l.source[0]
	var out strings.Builder
	s := l.source
	for i := 1; i < len(s); {
		c := s[i]
		switch {
		case c == quote:
			l.take(i + 1)
			return out.String()
		case c != '\\' || i+1 == len(s):
			out.WriteByte(c)
			i++
			continue
		}
		i += 2
		const escapes, meanings = `'"\abfnrtv`, "'\"\\\a\b\f\n\r\t\v"
		switch c := s[i-1]; {
		case strings.IndexByte(escapes, c) >= 0:
			out.WriteByte(meanings[strings.IndexByte(escapes, c)])
		case c == '\n':
		case c == 'x' || c == 'u' || c == 'U':
			n := map[byte]int{'x': 2, 'u': 4, 'U': 8}[c]
			if i+n > len(s) {
				l.fail(line, "a string without its end")
			}
			v, err := strconv.ParseUint(s[i:i+n], 16, 32)
			if err != nil || !utf8.ValidRune(rune(v)) {
				l.fail(line, "not a character: \\%c%s", c, s[i:i+n])
			}
			out.WriteRune(rune(v))
			i += n
		case c >= '0' && c <= '7':
			v := rune(c - '0')
			for n := 1; n < 3 && i < len(s) && s[i] >= '0' && s[i] <= '7'; n++ {
				v = v*8 + rune(s[i]-'0')
				i++
			}
			out.WriteRune(v)
		default:
			out.WriteByte('\\')
			i--
		}
	}
	l.fail(line, "a string without its end")
	return ""
}
