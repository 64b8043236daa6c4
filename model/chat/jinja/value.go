package jinja

import (
	"cmp"
	"encoding/json"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// value is one of: nil (None), undefined, bool, int64, float64, Text, *list, *dict, *namespace, *loop,
// *closure, function.
type value any

// undefined is the value of what is not there; using it for more than a test or an empty text fails.
type undefined struct{ why string }

// list is a list or a tuple. It never changes once a template can see it.
type list struct {
	items []value
	tuple bool
}

// dict keeps the order in which its keys came.
type dict struct {
	keys, values []value
	at           map[any]int // hashable key → place
}

// namespace is the one thing that a template can change.
type namespace struct{ dict }

// function is what can be called beside macros.
type function struct {
	name string
	call func(in *interp, a args) value
}

// args are the arguments of one call.
type args struct {
	positional []value
	names      []string
	named      []value
}

// get returns a parameter by its place or its name, nil and false where it is not given.
func (a *args) get(i int, name string) (value, bool) {
	if i < len(a.positional) {
		return a.positional[i], true
	}
	if k := slices.Index(a.names, name); k >= 0 {
		return a.named[k], true
	}
	return nil, false
}

func (a *args) or(i int, name string, absent value) value {
	if v, ok := a.get(i, name); ok {
		return v
	}
	return absent
}

// must returns a parameter that has no default.
func (a *args) must(i int, name string) value {
	v, ok := a.get(i, name)
	if !ok {
		fail("the argument %q is missing", name)
	}
	return v
}

func (a *args) text(i int, name, absent string) Text {
	v, ok := a.get(i, name)
	if !ok {
		return Own(absent)
	}
	return wantText(v)
}

func (a *args) integer(i int, name string, absent int64) int64 {
	v, ok := a.get(i, name)
	if !ok || v == nil {
		return absent
	}
	return wantInt(v)
}

func (a *args) truth(i int, name string, absent bool) bool {
	v, ok := a.get(i, name)
	if !ok {
		return absent
	}
	return truth(v)
}

// only fails on arguments that a function does not have.
func (a *args) only(names ...string) {
	if len(a.positional) > len(names) {
		fail("takes at most %d arguments, not %d", len(names), len(a.positional))
	}
	for _, n := range a.names {
		if !slices.Contains(names, n) {
			fail("has no argument %q", n)
		}
	}
}

func wantText(v value) Text {
	t, ok := v.(Text)
	if !ok {
		fail("%s where a string is wanted", kind(v))
	}
	return t
}

func wantInt(v value) int64 {
	switch n := v.(type) {
	case int64:
		return n
	case bool:
		return toInt(n)
	}
	fail("%s where an integer is wanted", kind(v))
	return 0
}

func toInt(b bool) int64 {
	if b {
		return 1
	}
	return 0
}

// kind names a value's type in errors.
func kind(v value) string {
	switch v := v.(type) {
	case nil:
		return "none"
	case undefined:
		return v.why
	case bool:
		return "a boolean"
	case int64:
		return "an integer"
	case float64:
		return "a float"
	case Text:
		return "a string"
	case *list:
		if v.tuple {
			return "a tuple"
		}
		return "a list"
	case *dict:
		return "an object"
	case *namespace:
		return "a namespace"
	case *loop:
		return "a loop"
	case *closure:
		return "the macro " + v.name
	case function:
		return "the function " + v.name
	}
	return fmt.Sprintf("a %T", v)
}

func truth(v value) bool {
	switch v := v.(type) {
	case nil, undefined:
		return false
	case bool:
		return v
	case int64:
		return v != 0
	case float64:
		return v != 0
	case Text:
		return v.s != ""
	case *list:
		return len(v.items) > 0
	case *dict:
		return len(v.keys) > 0
	}
	return true
}

// hashable returns what a dict finds v by: equal values have equal keys, as in Python, where 1, 1.0
// and true are one.
func hashable(v value) any {
	switch v := v.(type) {
	case nil:
		return struct{}{}
	case Text:
		return v.s
	case bool:
		return toInt(v)
	case int64:
		return v
	case float64:
		if i := int64(v); float64(i) == v {
			return i
		}
		return v
	}
	fail("%s cannot be the key of an object", kind(v))
	return nil
}

func (d *dict) get(key value) (value, bool) {
	if i, ok := d.at[hashable(key)]; ok {
		return d.values[i], true
	}
	return nil, false
}

func (d *dict) text(key string) (value, bool) {
	if i, ok := d.at[key]; ok {
		return d.values[i], true
	}
	return nil, false
}

// set adds or replaces a member; its maker has paid for it.
func (d *dict) set(key, v value) {
	h := hashable(key)
	if i, ok := d.at[h]; ok {
		d.values[i] = v
		return
	}
	if d.at == nil {
		d.at = map[any]int{}
	}
	d.at[h] = len(d.keys)
	d.keys, d.values = append(d.keys, key), append(d.values, v)
}

// number returns a number as a float.
func number(v value) (float64, bool) {
	switch v := v.(type) {
	case bool:
		return float64(toInt(v)), true
	case int64:
		return float64(v), true
	case float64:
		return v, true
	}
	return 0, false
}

// equal is Python's ==.
func (in *interp) equal(a, b value) bool {
	defer in.deeper()()
	in.m.step(1)
	switch x := a.(type) {
	case undefined:
		_, ok := b.(undefined)
		return ok
	case Text:
		y, ok := b.(Text)
		if !ok || len(x.s) != len(y.s) {
			return false
		}
		in.m.scan(len(x.s))
		return x.s == y.s
	case *list:
		y, ok := b.(*list)
		if !ok || x.tuple != y.tuple || len(x.items) != len(y.items) {
			return false
		}
		for i := range x.items {
			if !in.equal(x.items[i], y.items[i]) {
				return false
			}
		}
		return true
	case *dict:
		y, ok := b.(*dict)
		if !ok || len(x.keys) != len(y.keys) {
			return false
		}
		for i, k := range x.keys {
			if v, ok := y.get(k); !ok || !in.equal(x.values[i], v) {
				return false
			}
		}
		return true
	case function:
		return false
	}
	if x, ok := a.(int64); ok {
		if y, ok := b.(int64); ok {
			return x == y
		}
	}
	if x, ok := number(a); ok {
		y, ok := number(b)
		return ok && x == y
	}
	switch b.(type) {
	case undefined, function:
		return false
	}
	return a == b
}

// compare orders a and b: -1, 0 or 1, and unordered for a float that is no number.
func (in *interp) compare(a, b value, op string) int {
	defer in.deeper()()
	in.m.step(1)
	if x, ok := a.(int64); ok {
		if y, ok := b.(int64); ok {
			switch {
			case x < y:
				return -1
			case x > y:
				return 1
			}
			return 0
		}
	}
	if x, ok := number(a); ok {
		if y, ok := number(b); ok {
			switch {
			case x < y:
				return -1
			case x > y:
				return 1
			case x == y:
				return 0
			}
			return unordered
		}
	}
	switch x := a.(type) {
	case Text:
		if y, ok := b.(Text); ok {
			in.m.scan(min(len(x.s), len(y.s)))
			return strings.Compare(x.s, y.s)
		}
	case *list:
		if y, ok := b.(*list); ok && x.tuple == y.tuple {
			for i := range min(len(x.items), len(y.items)) {
				if !in.equal(x.items[i], y.items[i]) {
					return in.compare(x.items[i], y.items[i], op)
				}
			}
			return cmp.Compare(len(x.items), len(y.items))
		}
	}
	fail("%s and %s cannot be compared by %q", kind(a), kind(b), op)
	return 0
}

const unordered = 2

// contains is Python's in.
func (in *interp) contains(all, v value) bool {
	switch all := all.(type) {
	case Text:
		part := wantText(v)
		in.m.scan(len(all.s))
		return strings.Contains(all.s, part.s)
	case *dict:
		in.m.step(1)
		_, ok := all.get(v)
		return ok
	case undefined:
		return false
	case *list:
		for _, item := range all.items {
			if in.equal(item, v) {
				return true
			}
		}
		return false
	}
	fail("nothing is in %s", kind(all))
	return false
}

// items returns what a loop over v goes through.
func (in *interp) items(v value) []value {
	switch v := v.(type) {
	case *list:
		return v.items
	case *dict:
		return v.keys
	case undefined:
		return nil
	case Text:
		n := v.chars()
		in.m.elements(n)
		items := make([]value, 0, n)
		for at := 0; at < len(v.s); {
			_, size := utf8.DecodeRuneInString(v.s[at:])
			items = append(items, in.m.slice(v, at, at+size))
			at += size
		}
		return items
	}
	fail("%s has no items", kind(v))
	return nil
}

// newList pays for a list of items, which it keeps.
func (in *interp) newList(items []value) *list {
	in.m.elements(len(items))
	return &list{items: items}
}

// text is Python's str: what a template prints for v.
func (in *interp) text(v value) Text {
	switch v := v.(type) {
	case Text:
		return v
	case undefined:
		return Own("")
	}
	b := builder{m: &in.m}
	in.repr(&b, v)
	return b.text()
}

// repr is Python's repr. What is computed counts as data: no template spells its tokens by numbers.
func (in *interp) repr(b *builder, v value) {
	defer in.deeper()()
	in.m.step(1)
	switch v := v.(type) {
	case nil:
		b.writeData("None")
	case undefined:
		b.writeData("Undefined")
	case bool:
		if v {
			b.writeData("True")
		} else {
			b.writeData("False")
		}
	case int64:
		b.writeData(strconv.FormatInt(v, 10))
	case float64:
		b.writeData(pythonFloat(v))
	case Text:
		in.m.alloc(len(v.s))
		b.write(Text{s: pythonQuote(v.s), all: v.all})
	case *list:
		open, end := "[", "]"
		if v.tuple {
			open, end = "(", ")"
			if len(v.items) == 1 {
				end = ",)"
			}
		}
		b.writeOwn(open)
		for i, item := range v.items {
			if i > 0 {
				b.writeOwn(", ")
			}
			in.repr(b, item)
		}
		b.writeOwn(end)
	case *dict:
		b.writeOwn("{")
		for i, k := range v.keys {
			if i > 0 {
				b.writeOwn(", ")
			}
			in.repr(b, k)
			b.writeOwn(": ")
			in.repr(b, v.values[i])
		}
		b.writeOwn("}")
	default:
		fail("%s cannot be printed", kind(v))
	}
}

// pythonFloat is Python's repr of a float: the shortest digits, with an exponent below 1e-4 and from 1e16.
func pythonFloat(f float64) string {
	switch size := math.Abs(f); {
	case math.IsInf(f, 1):
		return "inf"
	case math.IsInf(f, -1):
		return "-inf"
	case math.IsNaN(f):
		return "nan"
	case size != 0 && (size < 1e-4 || size >= 1e16):
		return strconv.FormatFloat(f, 'e', -1, 64)
	}
	s := strconv.FormatFloat(f, 'f', -1, 64)
	if !strings.Contains(s, ".") {
		s += ".0"
	}
	return s
}

// pythonQuote is Python's repr of a string.
func pythonQuote(s string) string {
	quote := byte('\'')
	if strings.Contains(s, "'") && !strings.Contains(s, "\"") {
		quote = '"'
	}
	var b strings.Builder
	b.WriteByte(quote)
	for _, r := range s {
		switch {
		case r == rune(quote) || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r == '\t':
			b.WriteString(`\t`)
		case strconv.IsPrint(r):
			b.WriteRune(r)
		case r < 0x100:
			fmt.Fprintf(&b, `\x%02x`, r)
		case r < 0x10000:
			fmt.Fprintf(&b, `\u%04x`, r)
		default:
			fmt.Fprintf(&b, `\U%08x`, r)
		}
	}
	b.WriteByte(quote)
	return b.String()
}

// fromGo converts a variable. Raw JSON keeps the order of its keys; Go maps have none and are sorted.
func (in *interp) fromGo(v any) value {
	defer in.deeper()()
	in.m.step(1)
	switch v := v.(type) {
	case nil:
		return nil
	case bool:
		return v
	case int:
		return int64(v)
	case int64:
		return v
	case float64:
		return v
	case json.Number:
		if i, err := strconv.ParseInt(v.String(), 10, 64); err == nil {
			return i
		}
		f, err := v.Float64()
		if err != nil {
			fail("the number %.40s is out of range", v)
		}
		return f
	case string:
		return Data(v)
	case Text:
		return v
	case json.RawMessage:
		d := json.NewDecoder(strings.NewReader(string(v)))
		d.UseNumber()
		out := in.decode(d)
		if d.More() {
			fail("more than one JSON value")
		}
		return out
	case []any:
		items := make([]value, len(v))
		for i := range v {
			items[i] = in.fromGo(v[i])
		}
		return in.newList(items)
	case Object:
		in.m.elements(len(v))
		d := &dict{}
		for _, m := range v {
			d.set(Own(m.Name), in.fromGo(m.Value))
		}
		return d
	case map[string]any:
		in.m.elements(len(v))
		d := &dict{}
		names := make([]string, 0, len(v))
		for k := range v {
			names = append(names, k)
		}
		slices.Sort(names)
		for _, k := range names {
			d.set(Data(k), in.fromGo(v[k]))
		}
		return d
	}
	fail("a variable of type %T", v)
	return nil
}

func (in *interp) decode(d *json.Decoder) value {
	defer in.deeper()()
	in.m.elements(1)
	t, err := d.Token()
	if err != nil {
		fail("not JSON: %v", err)
	}
	delim, ok := t.(json.Delim)
	if !ok {
		return in.fromGo(t)
	}
	l, object := &list{}, &dict{}
	for d.More() {
		if delim == '[' {
			l.items = append(l.items, in.decode(d))
			continue
		}
		key, err := d.Token()
		if err != nil {
			fail("not JSON: %v", err)
		}
		object.set(Data(key.(string)), in.decode(d))
	}
	if _, err := d.Token(); err != nil {
		fail("not JSON: %v", err)
	}
	if delim == '[' {
		return l
	}
	return object
}
