package jinja

import (
	"sort"
	"strings"
	"unicode/utf8"
)

// Span is the bytes [From, To) of a text.
type Span struct{ From, To int }

// Text is a string that knows which of its bytes the template's author wrote.
type Text struct {
	s string
	// own lists the author's bytes, ascending; spans do not touch. The two usual cases, all and none,
	// need no list.
	own []Span
	all bool
}

// Own returns s as text of the template's author.
func Own(s string) Text { return Text{s: s, all: true} }

// Data returns s as text that came with the data.
func Data(s string) Text { return Text{s: s} }

// String returns the text without its provenance.
func (t Text) String() string { return t.s }

// Own returns the spans that the template's author wrote, ascending.
func (t Text) Own() []Span {
	if t.all && t.s != "" {
		return []Span{{0, len(t.s)}}
	}
	return t.own
}

// slice returns the bytes [from, to) of t. Spans are found by bisection, so that cutting a text of many
// spans into characters does not cost its square.
func (m *meter) slice(t Text, from, to int) Text {
	out := Text{s: t.s[from:to], all: t.all}
	first := sort.Search(len(t.own), func(i int) bool { return t.own[i].To > from })
	last := first + sort.Search(len(t.own)-first, func(i int) bool { return t.own[first+i].From >= to })
	m.alloc(spanBytes * (last - first))
	for _, o := range t.own[first:last] {
		out.own = append(out.own, Span{max(o.From, from) - from, min(o.To, to) - from})
	}
	return out
}

// look pays for looking through a text and its spans.
func (m *meter) look(t Text) { m.scan(len(t.s) + spanBytes*len(t.own)) }

// segments calls f for each maximal part of one provenance.
func (t Text) segments(f func(s string, own bool)) {
	if t.all || len(t.own) == 0 {
		f(t.s, t.all)
		return
	}
	at := 0
	for _, o := range t.own {
		if at < o.From {
			f(t.s[at:o.From], false)
		}
		f(t.s[o.From:o.To], true)
		at = o.To
	}
	if at < len(t.s) {
		f(t.s[at:], false)
	}
}

// builder puts a text together. It pays for every byte before it takes it.
type builder struct {
	m   *meter
	b   strings.Builder
	own []Span
}

func (b *builder) write(t Text) {
	if t.s == "" {
		return
	}
	b.m.alloc(len(t.s) + spanBytes*len(t.own))
	at := b.b.Len()
	b.b.WriteString(t.s)
	if t.all {
		b.mark(at, at+len(t.s))
		return
	}
	for _, o := range t.own {
		b.mark(at+o.From, at+o.To)
	}
}

func (b *builder) mark(from, to int) {
	if n := len(b.own); n > 0 && b.own[n-1].To == from {
		b.own[n-1].To = to
		return
	}
	b.own = append(b.own, Span{from, to})
}

func (b *builder) writeOwn(s string)  { b.write(Own(s)) }
func (b *builder) writeData(s string) { b.write(Data(s)) }

func (b *builder) repeat(t Text, n int) {
	for range n {
		b.write(t)
	}
}

func (b *builder) text() Text {
	t := Text{s: b.b.String(), own: b.own}
	if len(t.own) == 1 && t.own[0] == (Span{0, len(t.s)}) || t.s == "" {
		t.own, t.all = nil, true
	}
	return t
}

// offset returns where the i-th character begins, the text's length if it has fewer.
func (t Text) offset(i int) int {
	at := 0
	for ; i > 0 && at < len(t.s); i-- {
		_, n := utf8.DecodeRuneInString(t.s[at:])
		at += n
	}
	return at
}

// chars is the number of characters.
func (t Text) chars() int { return utf8.RuneCountInString(t.s) }
