package jinja

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
)

// toJSON is the tojson that transformers gives templates: Python's json.dumps with its arguments
// ensure_ascii (off), indent, separators and sort_keys. Tool definitions go through it, so every byte
// counts.
func (in *interp) toJSON(v value, a args) Text {
	a.only("ensure_ascii", "indent", "separators", "sort_keys")
	w := jsonWriter{in: in, b: builder{m: &in.m}, item: Own(", "), key: Own(": "), ascii: a.truth(0, "ensure_ascii", false), sorted: a.truth(3, "sort_keys", false)}
	if v, ok := a.get(1, "indent"); ok && v != nil {
		w.lines, w.item = true, Own(",")
		if t, ok := v.(Text); ok {
			w.indent = t
		} else {
			w.indent = in.repeated(Own(" "), wantInt(v))
		}
	}
	if v, ok := a.get(2, "separators"); ok && v != nil {
		l, ok := v.(*list)
		if !ok || len(l.items) != 2 {
			fail("separators must be two strings")
		}
		w.item, w.key = wantText(l.items[0]), wantText(l.items[1])
	}
	w.write(v, 0)
	return w.b.text()
}

type jsonWriter struct {
	in        *interp
	b         builder
	item, key Text
	indent    Text
	lines     bool // each item on a line of its own
	ascii     bool
	sorted    bool
}

func (w *jsonWriter) write(v value, depth int) {
	w.in.enter()
	defer w.in.exit()
	w.in.m.step(1)
	switch v := v.(type) {
	case nil, bool, int64, float64:
		w.b.writeData(jsonScalar(v))
	case Text:
		w.quote(v)
	case *list:
		w.items("[", "]", len(v.items), depth, func(i int) { w.write(v.items[i], depth+1) })
	case *dict:
		order := make([]int, len(v.keys))
		for i := range order {
			order[i] = i
		}
		name := func(i int) Text {
			if t, ok := v.keys[i].(Text); ok {
				return t
			}
			return Data(jsonScalar(v.keys[i]))
		}
		if w.sorted {
			slices.SortStableFunc(order, func(i, j int) int { return w.in.compare(v.keys[i], v.keys[j], "<") })
		}
		w.in.m.step(len(order))
		w.items("{", "}", len(order), depth, func(i int) {
			w.quote(name(order[i]))
			w.b.write(w.key)
			w.write(v.values[order[i]], depth+1)
		})
	default:
		fail("tojson of %s", kind(v))
	}
}

func jsonScalar(v value) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case int64:
		return strconv.FormatInt(v, 10)
	case float64:
		switch s := pythonFloat(v); s {
		case "inf":
			return "Infinity"
		case "-inf":
			return "-Infinity"
		case "nan":
			return "NaN"
		default:
			return s
		}
	}
	fail("%s cannot be a key", kind(v))
	return ""
}

func (w *jsonWriter) items(open, end string, n, depth int, each func(i int)) {
	w.b.writeOwn(open)
	for i := range n {
		if i > 0 {
			w.b.write(w.item)
		}
		w.line(depth + 1)
		each(i)
	}
	if n > 0 {
		w.line(depth)
	}
	w.b.writeOwn(end)
}

func (w *jsonWriter) line(depth int) {
	if w.lines {
		w.b.writeOwn("\n")
		w.b.repeat(w.indent, depth)
	}
}

func (w *jsonWriter) quote(t Text) {
	w.in.m.look(t)
	w.b.writeOwn(`"`)
	t.segments(func(s string, own bool) {
		const short = "\b\t\n\f\r\"\\"
		plain := func(r rune) bool { return r >= 0x20 && r != '"' && r != '\\' && (r < 0x7f || !w.ascii) }
		for s != "" {
			n := strings.IndexFunc(s, func(r rune) bool { return !plain(r) })
			if n < 0 {
				n = len(s)
			}
			if n > 0 {
				w.b.write(Text{s: s[:n], all: own})
				s = s[n:]
				continue
			}
			r := firstRune(s)
			s = s[Text{s: s}.offset(1):]
			switch k := strings.IndexRune(short, r); {
			case k >= 0:
				w.b.write(Text{s: "\\" + "btnfr\"\\"[k:k+1], all: own})
			case r > 0xffff:
				high, low := utf16.EncodeRune(r)
				w.b.write(Text{s: fmt.Sprintf("\\u%04x\\u%04x", high, low), all: own})
			default:
				w.b.write(Text{s: fmt.Sprintf("\\u%04x", r), all: own})
			}
		}
	})
	w.b.writeOwn(`"`)
}
