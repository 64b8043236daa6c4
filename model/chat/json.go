package chat

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/ardanlabs/jinja"
)

// jsonName is the filter that prepare puts in the place of tojson, which in the interpreter sorts keys
// and escapes HTML when it is asked to indent. Tool definitions go through it, so every byte counts.
const jsonName = "quire_json"

// toJSON is the tojson that Hugging Face gives templates: Python's json.dumps with
// ensure_ascii=False, and the arguments indent, separators and sort_keys.
func toJSON(args []jinja.Value, named map[string]jinja.Value) (string, error) {
	w := jsonWriter{item: ", ", key: ": "}
	if v, ok := named["indent"]; ok && !v.IsNone() {
		if !v.IsInt() || v.AsInt() < 0 || v.AsInt() > 16 {
			return "", fmt.Errorf("chat: tojson: indent must be between 0 and 16, not %s", text(v))
		}
		w.indent, w.lines, w.item = int(v.AsInt()), true, ","
	}
	if v, ok := named["separators"]; ok && !v.IsNone() {
		if !v.IsList() || v.AsList().Len() != 2 || !v.AsList().Get(0).IsString() || !v.AsList().Get(1).IsString() {
			return "", fmt.Errorf("chat: tojson: separators must be two strings")
		}
		w.item, w.key = v.AsList().Get(0).AsString(), v.AsList().Get(1).AsString()
	}
	if v, ok := named["sort_keys"]; ok {
		w.sorted = v.IsTruthy()
	}
	if v, ok := named["ensure_ascii"]; ok && v.IsTruthy() {
		return "", fmt.Errorf("chat: tojson: ensure_ascii is not supported")
	}
	if err := w.write(args[0], 0); err != nil {
		return "", err
	}
	return w.out.String(), nil
}

type jsonWriter struct {
	out       strings.Builder
	item, key string
	indent    int
	lines     bool // each item on a line of its own
	sorted    bool
}

func (w *jsonWriter) write(v jinja.Value, depth int) error {
	if depth > maxDepth {
		return fmt.Errorf("%w: tojson of more than %d levels", ErrTooLarge, maxDepth)
	}
	switch {
	case v.IsNone():
		w.out.WriteString("null")
	case v.IsBool():
		w.out.WriteString(strconv.FormatBool(v.AsBool()))
	case v.IsInt():
		w.out.WriteString(strconv.FormatInt(v.AsInt(), 10))
	case v.IsFloat():
		w.out.WriteString(pythonFloat(v.AsFloat()))
	case v.IsString():
		w.quote(v.AsString())
	case v.IsList():
		items := v.AsList().Items
		return w.items('[', ']', len(items), depth, func(i int) error { return w.write(items[i], depth+1) })
	case v.IsDict():
		d := v.AsDict()
		keys := d.OrderedKeys()
		if w.sorted {
			keys = slices.Sorted(slices.Values(keys))
		}
		return w.items('{', '}', len(keys), depth, func(i int) error {
			w.quote(keys[i])
			w.out.WriteString(w.key)
			member, _ := d.Get(keys[i])
			return w.write(member, depth+1)
		})
	default:
		return fmt.Errorf("chat: tojson of something undefined or of a function")
	}
	return nil
}

func (w *jsonWriter) items(open, end byte, n, depth int, each func(i int) error) error {
	w.out.WriteByte(open)
	for i := range n {
		if i > 0 {
			w.out.WriteString(w.item)
		}
		w.line(depth + 1)
		if err := each(i); err != nil {
			return err
		}
	}
	if n > 0 {
		w.line(depth)
	}
	w.out.WriteByte(end)
	return nil
}

func (w *jsonWriter) line(depth int) {
	if w.lines {
		w.out.WriteByte('\n')
		w.out.WriteString(strings.Repeat(" ", w.indent*depth))
	}
}

func (w *jsonWriter) quote(s string) {
	const short = "\b\t\n\f\r\"\\"
	w.out.WriteByte('"')
	for i := range len(s) {
		c := s[i]
		if k := strings.IndexByte(short, c); k >= 0 {
			w.out.WriteByte('\\')
			w.out.WriteByte("btnfr\"\\"[k])
		} else if c < 0x20 {
			fmt.Fprintf(&w.out, "\\u%04x", c)
		} else {
			w.out.WriteByte(c)
		}
	}
	w.out.WriteByte('"')
}

// pythonFloat is Python's repr of a float: the shortest digits, with an exponent below 1e-4 and from 1e16.
func pythonFloat(f float64) string {
	switch size := math.Abs(f); {
	case math.IsInf(f, 1):
		return "Infinity"
	case math.IsInf(f, -1):
		return "-Infinity"
	case math.IsNaN(f):
		return "NaN"
	case size != 0 && (size < 1e-4 || size >= 1e16):
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// text is what a template prints for v.
func text(v jinja.Value) string {
	if v.IsString() {
		return v.AsString()
	}
	return v.String()
}
