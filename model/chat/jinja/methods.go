package jinja

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/text/cases"
	"golang.org/x/text/language"
)

// method returns what v.name is, bound to v.
func method(v value, name string) (value, bool) {
	switch v := v.(type) {
	case Text:
		if f, ok := textMethods[name]; ok {
			return function{name, func(in *interp, a args) value {
				in.m.look(v)
				return f(in, v, a)
			}}, true
		}
	case *dict:
		if f, ok := dictMethods[name]; ok {
			return function{name, func(in *interp, a args) value { return f(in, v, a) }}, true
		}
	case *list:
		if f, ok := listMethods[name]; ok {
			return function{name, func(in *interp, a args) value { return f(in, v, a) }}, true
		}
	}
	return nil, false
}

var dictMethods map[string]func(in *interp, d *dict, a args) value

var listMethods map[string]func(in *interp, l *list, a args) value

var textMethods map[string]func(in *interp, t Text, a args) value

func init() {
	dictMethods = map[string]func(in *interp, d *dict, a args) value{
		"get": func(in *interp, d *dict, a args) value {
			if v, ok := d.get(a.must(0, "key")); ok {
				return v
			}
			return a.or(1, "default", nil)
		},
		"keys":   func(in *interp, d *dict, a args) value { return in.newList(d.keys) },
		"values": func(in *interp, d *dict, a args) value { return in.newList(d.values) },
		"items":  func(in *interp, d *dict, a args) value { return in.pairs(d) },
		"copy":   func(in *interp, d *dict, a args) value { return d },
	}
	listMethods = map[string]func(in *interp, l *list, a args) value{
		"index": func(in *interp, l *list, a args) value {
			for i, item := range l.items {
				if in.equal(item, a.must(0, "value")) {
					return int64(i)
				}
			}
			fail("the value is not in the list")
			return nil
		},
		"count": func(in *interp, l *list, a args) value {
			n := int64(0)
			for _, item := range l.items {
				n += toInt(in.equal(item, a.must(0, "value")))
			}
			return n
		},
		"copy": func(in *interp, l *list, a args) value { return l },
	}
	textMethods = map[string]func(in *interp, t Text, a args) value{
		"upper":      cased(upper),
		"lower":      cased(lower),
		"casefold":   cased(fold),
		"swapcase":   cased(swapCase),
		"title":      cased(titleWords),
		"capitalize": func(in *interp, t Text, a args) value { return in.capitalize(t) },
		"strip":      func(in *interp, t Text, a args) value { return in.strip(t, a, true, true) },
		"lstrip":     func(in *interp, t Text, a args) value { return in.strip(t, a, true, false) },
		"rstrip":     func(in *interp, t Text, a args) value { return in.strip(t, a, false, true) },
		"startswith": func(in *interp, t Text, a args) value { return in.affix(t, a, strings.HasPrefix) },
		"endswith":   func(in *interp, t Text, a args) value { return in.affix(t, a, strings.HasSuffix) },
		"removeprefix": func(in *interp, t Text, a args) value {
			if p := a.text(0, "prefix", ""); strings.HasPrefix(t.s, p.s) {
				return in.m.slice(t, len(p.s), len(t.s))
			}
			return t
		},
		"removesuffix": func(in *interp, t Text, a args) value {
			if p := a.text(0, "suffix", ""); strings.HasSuffix(t.s, p.s) {
				return in.m.slice(t, 0, len(t.s)-len(p.s))
			}
			return t
		},
		"split":      func(in *interp, t Text, a args) value { return in.split(t, a, false) },
		"rsplit":     func(in *interp, t Text, a args) value { return in.split(t, a, true) },
		"splitlines": func(in *interp, t Text, a args) value { return in.newList(in.lines(t, a.truth(0, "keepends", false))) },
		"partition": func(in *interp, t Text, a args) value {
			sep := separator(a)
			i := strings.Index(t.s, sep)
			if i < 0 {
				return in.tuple(t, Own(""), Own(""))
			}
			return in.tuple(in.m.slice(t, 0, i), in.m.slice(t, i, i+len(sep)), in.m.slice(t, i+len(sep), len(t.s)))
		},
		"rpartition": func(in *interp, t Text, a args) value {
			sep := separator(a)
			i := strings.LastIndex(t.s, sep)
			if i < 0 {
				return in.tuple(Own(""), Own(""), t)
			}
			return in.tuple(in.m.slice(t, 0, i), in.m.slice(t, i, i+len(sep)), in.m.slice(t, i+len(sep), len(t.s)))
		},
		"replace": func(in *interp, t Text, a args) value {
			return in.replace(t, wantText(a.must(0, "old")), wantText(a.must(1, "new")), a.integer(2, "count", -1))
		},
		"join":   func(in *interp, t Text, a args) value { return in.join(in.items(a.must(0, "iterable")), t, true) },
		"find":   func(in *interp, t Text, a args) value { return in.find(t, a, strings.Index) },
		"rfind":  func(in *interp, t Text, a args) value { return in.find(t, a, strings.LastIndex) },
		"index":  func(in *interp, t Text, a args) value { return in.found(t, a, strings.Index) },
		"rindex": func(in *interp, t Text, a args) value { return in.found(t, a, strings.LastIndex) },
		"count": func(in *interp, t Text, a args) value {
			return int64(strings.Count(t.s, wantText(a.must(0, "sub")).s))
		},
		"zfill": func(in *interp, t Text, a args) value {
			n := in.padding(t, wantInt(a.must(0, "width")))
			b := builder{m: &in.m}
			if t.s != "" && (t.s[0] == '-' || t.s[0] == '+') {
				b.write(in.m.slice(t, 0, 1))
				t = in.m.slice(t, 1, len(t.s))
			}
			b.repeat(Own("0"), n)
			b.write(t)
			return b.text()
		},
		"center": func(in *interp, t Text, a args) value {
			n := in.padding(t, wantInt(a.must(0, "width")))
			// Python gives the odd blank to the left if the width is odd.
			return in.pad(t, a.text(1, "fillchar", " "), n/2+n&int(wantInt(a.must(0, "width")))&1, n-n/2-n&int(wantInt(a.must(0, "width")))&1)
		},
		"ljust": func(in *interp, t Text, a args) value {
			return in.pad(t, a.text(1, "fillchar", " "), 0, in.padding(t, wantInt(a.must(0, "width"))))
		},
		"rjust": func(in *interp, t Text, a args) value {
			return in.pad(t, a.text(1, "fillchar", " "), in.padding(t, wantInt(a.must(0, "width"))), 0)
		},
		"format":    func(in *interp, t Text, a args) value { return in.format(t, a) },
		"isdigit":   every(unicode.IsDigit),
		"isdecimal": every(unicode.IsDigit),
		"isnumeric": every(unicode.IsNumber),
		"isalpha":   every(unicode.IsLetter),
		"isalnum":   every(func(r rune) bool { return unicode.IsLetter(r) || unicode.IsNumber(r) }),
		"isspace":   every(isSpace),
		"isupper":   func(in *interp, t Text, a args) value { return isCase(t.s, unicode.IsUpper, unicode.IsLower) },
		"islower":   func(in *interp, t Text, a args) value { return isCase(t.s, unicode.IsLower, unicode.IsUpper) },
	}
}

// isSpace is Python's idea of white space.
func isSpace(r rune) bool { return unicode.IsSpace(r) || r >= 0x1c && r <= 0x1f }

func every(f func(r rune) bool) func(in *interp, t Text, a args) value {
	return func(in *interp, t Text, a args) value {
		return t.s != "" && strings.IndexFunc(t.s, func(r rune) bool { return !f(r) }) < 0
	}
}

func isCase(s string, is, isNot func(rune) bool) bool {
	return strings.IndexFunc(s, is) >= 0 && strings.IndexFunc(s, isNot) < 0
}

func upper(s string) string { return cases.Upper(language.Und).String(s) }
func lower(s string) string { return cases.Lower(language.Und).String(s) }
func fold(s string) string  { return cases.Fold().String(s) }

func swapCase(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsUpper(r) {
			return unicode.ToLower(r)
		}
		return unicode.ToUpper(r)
	}, s)
}

// titleWords is str.title: a letter after what is none is big.
func titleWords(s string) string {
	inside := false
	return strings.Map(func(r rune) rune {
		was := inside
		if inside = unicode.IsLetter(r); was {
			return unicode.ToLower(r)
		}
		return unicode.ToTitle(r)
	}, s)
}

func cased(f func(string) string) func(in *interp, t Text, a args) value {
	return func(in *interp, t Text, a args) value { return in.mapped(t, f) }
}

// mapped changes the letters of t. A mapping looks at each part of one provenance alone.
func (in *interp) mapped(t Text, f func(string) string) Text {
	in.m.look(t)
	in.m.alloc(3 * len(t.s)) // the most that changing case can lengthen a text
	b := builder{m: &in.m}
	t.segments(func(s string, own bool) { b.write(Text{s: f(s), all: own}) })
	return b.text()
}

func (in *interp) capitalize(t Text) Text {
	if t.s == "" {
		return t
	}
	_, n := utf8.DecodeRuneInString(t.s)
	b := builder{m: &in.m}
	b.write(in.mapped(in.m.slice(t, 0, n), func(s string) string { return cases.Title(language.Und).String(s) }))
	b.write(in.mapped(in.m.slice(t, n, len(t.s)), lower))
	return b.text()
}

func (in *interp) strip(t Text, a args, left, right bool) Text {
	in.m.look(t)
	cut := isSpace
	if v, ok := a.get(0, "chars"); ok && v != nil {
		set := wantText(v).s
		// Each character is looked up in the set: pay as if none were found.
		in.m.step(1 + t.chars()*len(set)/bytesPerStep)
		cut = func(r rune) bool { return strings.ContainsRune(set, r) }
	}
	from, to := 0, len(t.s)
	if left {
		from = to - len(strings.TrimLeftFunc(t.s, cut))
	}
	if right {
		to = from + len(strings.TrimRightFunc(t.s[from:], cut))
	}
	return in.m.slice(t, from, to)
}

func (in *interp) affix(t Text, a args, has func(s, affix string) bool) bool {
	v := a.must(0, "prefix")
	if l, ok := v.(*list); ok && l.tuple {
		for _, item := range l.items {
			in.m.step(1)
			if has(t.s, wantText(item).s) {
				return true
			}
		}
		return false
	}
	return has(t.s, wantText(v).s)
}

func (in *interp) tuple(items ...value) *list {
	l := in.newList(items)
	l.tuple = true
	return l
}

func (in *interp) pairs(d *dict) *list {
	in.m.elements(3 * len(d.keys))
	l := &list{items: make([]value, len(d.keys))}
	for i, k := range d.keys {
		l.items[i] = &list{items: []value{k, d.values[i]}, tuple: true}
	}
	return l
}

func separator(a args) string {
	sep := wantText(a.must(0, "sep")).s
	if sep == "" {
		fail("an empty separator")
	}
	return sep
}

func (in *interp) split(t Text, a args, right bool) value {
	in.m.look(t)
	most := a.integer(1, "maxsplit", -1)
	var items []value
	add := func(from, to int) {
		in.m.elements(1)
		items = append(items, in.m.slice(t, from, to))
	}
	sep, ok := a.get(0, "sep")
	if !ok || sep == nil {
		in.fields(t.s, most, right, add)
	} else {
		sep := separator(a)
		rest := t.s
		for ; most != 0; most-- {
			if right {
				i := strings.LastIndex(rest, sep)
				if i < 0 {
					break
				}
				add(i+len(sep), len(rest))
				rest = rest[:i]
				continue
			}
			before, after, found := strings.Cut(rest, sep)
			if !found {
				break
			}
			at := len(t.s) - len(rest)
			add(at, at+len(before))
			rest = after
		}
		if right {
			add(0, len(rest))
		} else {
			add(len(t.s)-len(rest), len(t.s))
		}
	}
	if right {
		for i, j := 0, len(items)-1; i < j; i, j = i+1, j-1 {
			items[i], items[j] = items[j], items[i]
		}
	}
	return &list{items: items}
}

// fields cuts s at white space, at most so many times.
func (in *interp) fields(s string, most int64, right bool, add func(from, to int)) {
	notSpace := func(r rune) bool { return !isSpace(r) }
	if right {
		for end := len(s); ; most-- {
			end = len(strings.TrimRightFunc(s[:end], isSpace))
			if end == 0 {
				return
			}
			start := strings.LastIndexFunc(s[:end], isSpace)
			if start >= 0 {
				_, n := utf8.DecodeRuneInString(s[start:])
				start += n
			} else {
				start = 0
			}
			if most == 0 {
				add(0, end)
				return
			}
			add(start, end)
			end = start
		}
	}
	for at := 0; ; most-- {
		n := strings.IndexFunc(s[at:], notSpace)
		if n < 0 {
			return
		}
		at += n
		n = strings.IndexFunc(s[at:], isSpace)
		if n < 0 || most == 0 {
			add(at, len(s))
			return
		}
		add(at, at+n)
		at += n
	}
}

func isLineEnd(r rune) bool {
	return r >= '\n' && r <= '\r' || r >= 0x1c && r <= 0x1e || r == 0x85 || r == 0x2028 || r == 0x2029
}

// lines is Python's splitlines.
func (in *interp) lines(t Text, keep bool) []value {
	in.m.look(t)
	var items []value
	for at := 0; at < len(t.s); {
		n := strings.IndexFunc(t.s[at:], isLineEnd)
		end, next := len(t.s), len(t.s)
		if n >= 0 {
			end = at + n
			_, size := utf8.DecodeRuneInString(t.s[end:])
			if next = end + size; t.s[end] == '\r' && next < len(t.s) && t.s[next] == '\n' {
				next++
			}
		}
		in.m.elements(1)
		if keep {
			end = next
		}
		items = append(items, in.m.slice(t, at, end))
		at = next
	}
	return items
}

func (in *interp) replace(t, before, after Text, most int64) Text {
	in.m.look(t)
	b := builder{m: &in.m}
	at := 0
	for ; most != 0; most-- {
		if before.s == "" {
			b.write(after)
			if at == len(t.s) {
				return b.text()
			}
			_, n := utf8.DecodeRuneInString(t.s[at:])
			b.write(in.m.slice(t, at, at+n))
			at += n
			continue
		}
		n := strings.Index(t.s[at:], before.s)
		if n < 0 {
			break
		}
		b.write(in.m.slice(t, at, at+n))
		b.write(after)
		at += n + len(before.s)
	}
	if at == 0 && b.b.Len() == 0 {
		return t
	}
	b.write(in.m.slice(t, at, len(t.s)))
	return b.text()
}

// join puts items together; strict is the method, which takes strings alone.
func (in *interp) join(items []value, sep Text, strict bool) Text {
	b := builder{m: &in.m}
	for i, item := range items {
		in.m.step(1)
		if i > 0 {
			b.write(sep)
		}
		if strict {
			b.write(wantText(item))
		} else {
			b.write(in.text(item))
		}
	}
	return b.text()
}

func (in *interp) find(t Text, a args, index func(s, sub string) int) value {
	sub := wantText(a.must(0, "sub")).s
	n := int64(t.chars())
	var from, to *int64
	for i, p := range []**int64{&from, &to} {
		if v, ok := a.get(1+i, ""); ok && v != nil {
			bound := wantInt(v)
			*p = &bound
		}
	}
	start, end := sliceBounds(from, to, 1, n)
	if from != nil && *from > n || end < start {
		return int64(-1)
	}
	at, until := t.offset(int(start)), t.offset(int(end))
	i := index(t.s[at:until], sub)
	if i < 0 {
		return int64(-1)
	}
	return start + int64(utf8.RuneCountInString(t.s[at:at+i]))
}

func (in *interp) found(t Text, a args, index func(s, sub string) int) value {
	i := in.find(t, a, index)
	if i == int64(-1) {
		fail("the substring is not found")
	}
	return i
}

// padding is how many characters t lacks for a width.
func (in *interp) padding(t Text, width int64) int {
	return in.times(max(0, width-int64(t.chars())), 1)
}

func (in *interp) pad(t, fill Text, left, right int) Text {
	if fill.chars() != 1 {
		fail("the fill must be one character")
	}
	b := builder{m: &in.m}
	b.repeat(fill, left)
	b.write(t)
	b.repeat(fill, right)
	return b.text()
}
