package jinja

import (
	"math"
	"math/bits"
	"slices"
)

type expression interface {
	eval(in *interp, sc *scope) value
}

func (in *interp) eval(e expression, sc *scope) value {
	in.enter()
	in.m.step(1)
	v := e.eval(in, sc)
	in.exit()
	return v
}

type constant struct{ v value }

func (e *constant) eval(*interp, *scope) value { return e.v }

type variable struct{ name string }

func (e *variable) eval(in *interp, sc *scope) value {
	if v, ok := in.get(sc, e.name); ok {
		return v
	}
	if f, ok := globals[e.name]; ok {
		return f
	}
	return undefined{e.name + ", which is undefined,"}
}

type listLiteral struct {
	items []expression
	tuple bool
}

func (e *listLiteral) eval(in *interp, sc *scope) value {
	in.m.elements(len(e.items))
	l := &list{items: make([]value, len(e.items)), tuple: e.tuple}
	for i, item := range e.items {
		l.items[i] = in.eval(item, sc)
	}
	return l
}

type dictLiteral struct{ keys, values []expression }

func (e *dictLiteral) eval(in *interp, sc *scope) value {
	in.m.elements(len(e.keys))
	d := &dict{}
	for i := range e.keys {
		d.set(in.eval(e.keys[i], sc), in.eval(e.values[i], sc))
	}
	return d
}

type conditional struct{ cond, yes, no expression }

func (e *conditional) eval(in *interp, sc *scope) value {
	switch {
	case truth(in.eval(e.cond, sc)):
		return in.eval(e.yes, sc)
	case e.no != nil:
		return in.eval(e.no, sc)
	}
	return undefined{"what an if without else left undefined"}
}

type logical struct {
	left, right expression
	or          bool
}

func (e *logical) eval(in *interp, sc *scope) value {
	left := in.eval(e.left, sc)
	if truth(left) == e.or {
		return left
	}
	return in.eval(e.right, sc)
}

type negation struct{ e expression }

func (e *negation) eval(in *interp, sc *scope) value { return !truth(in.eval(e.e, sc)) }

type comparison struct {
	first expression
	ops   []string
	rest  []expression
}

func (e *comparison) eval(in *interp, sc *scope) value {
	left := in.eval(e.first, sc)
	for i, op := range e.ops {
		right := in.eval(e.rest[i], sc)
		if !in.compares(op, left, right) {
			return false
		}
		left = right
	}
	return true
}

func (in *interp) compares(op string, a, b value) bool {
	switch op {
	case "==":
		return in.equal(a, b)
	case "!=":
		return !in.equal(a, b)
	case "in":
		return in.contains(b, a)
	case "not in":
		return !in.contains(b, a)
	}
	c := in.compare(a, b, op)
	switch op {
	case "<":
		return c < 0
	case "<=":
		return c <= 0
	case ">":
		return c == 1
	default:
		return c == 0 || c == 1
	}
}

type concatenation struct{ items []expression }

func (e *concatenation) eval(in *interp, sc *scope) value {
	b := builder{m: &in.m}
	for _, item := range e.items {
		b.write(in.text(in.eval(item, sc)))
	}
	return b.text()
}

type sign struct {
	e     expression
	minus bool
}

func (e *sign) eval(in *interp, sc *scope) value {
	v := in.eval(e.e, sc)
	if b, ok := v.(bool); ok {
		v = toInt(b)
	}
	switch n := v.(type) {
	case int64:
		if !e.minus {
			return n
		}
		if n == math.MinInt64 {
			overflow()
		}
		return -n
	case float64:
		if e.minus {
			return -n
		}
		return n
	}
	fail("%s has no sign", kind(v))
	return nil
}

func overflow() { fail("an integer of more than 64 bits") }

type arithmetic struct {
	op          string
	left, right expression
}

func (e *arithmetic) eval(in *interp, sc *scope) value {
	return in.arithmetic(e.op, in.eval(e.left, sc), in.eval(e.right, sc))
}

func (in *interp) arithmetic(op string, a, b value) value {
	switch op {
	case "+":
		if x, ok := a.(Text); ok {
			if y, ok := b.(Text); ok {
				out := builder{m: &in.m}
				out.write(x)
				out.write(y)
				return out.text()
			}
		}
		if x, ok := a.(*list); ok {
			if y, ok := b.(*list); ok && x.tuple == y.tuple {
				in.m.elements(len(x.items) + len(y.items))
				return &list{items: slices.Concat(x.items, y.items), tuple: x.tuple}
			}
		}
	case "*":
		for range 2 {
			if n, ok := b.(int64); ok {
				switch x := a.(type) {
				case Text:
					return in.repeated(x, n)
				case *list:
					n := in.times(n, len(x.items))
					in.m.elements(n * len(x.items))
					return &list{items: slices.Repeat(x.items, n), tuple: x.tuple}
				}
			}
			a, b = b, a
		}
	case "%":
		if x, ok := a.(Text); ok {
			if l, ok := b.(*list); ok && l.tuple {
				return in.percent(x, args{positional: l.items})
			}
			return in.percent(x, args{positional: []value{b}})
		}
	}
	if x, ok := a.(bool); ok {
		a = toInt(x)
	}
	if y, ok := b.(bool); ok {
		b = toInt(y)
	}
	x, isInt := a.(int64)
	if y, ok := b.(int64); ok && isInt && op != "/" {
		if op == "**" && y < 0 {
			return math.Pow(float64(x), float64(y))
		}
		return integers(op, x, y)
	}
	f, okA := number(a)
	g, okB := number(b)
	if !okA || !okB {
		fail("%q of %s and %s", op, kind(a), kind(b))
	}
	switch op {
	case "+":
		return f + g
	case "-":
		return f - g
	case "*":
		return f * g
	case "**":
		return math.Pow(f, g)
	}
	if g == 0 {
		fail("division by zero")
	}
	switch op {
	case "/":
		return f / g
	case "//":
		return math.Floor(f / g)
	default:
		m := math.Mod(f, g)
		if m != 0 && (m < 0) != (g < 0) {
			m += g
		}
		return m
	}
}

// times is how often n elements can be repeated within the limits at all.
func (in *interp) times(count int64, n int) int {
	if count <= 0 || n == 0 {
		return 0
	}
	if count > int64(in.m.limits.Bytes/n) {
		in.m.alloc(in.m.limits.Bytes + 1)
	}
	return int(count)
}

func (in *interp) repeated(t Text, count int64) Text {
	b := builder{m: &in.m}
	b.repeat(t, in.times(count, len(t.s)))
	return b.text()
}

func integers(op string, x, y int64) int64 {
	switch op {
	case "+":
		if s := x + y; (s > x) == (y > 0) {
			return s
		}
	case "-":
		if s := x - y; (s < x) == (y > 0) {
			return s
		}
	case "*":
		hi, lo := bits.Mul64(magnitude(x), magnitude(y))
		negative := (x < 0) != (y < 0)
		if hi == 0 && lo <= math.MaxInt64 {
			if negative {
				return -int64(lo)
			}
			return int64(lo)
		}
	case "**":
		result := int64(1)
		for range min(y, 64) {
			if x == 0 || x == 1 {
				break
			}
			result = integers("*", result, x)
		}
		switch {
		case x == 0 && y > 0:
			return 0
		case x == -1 && y > 64:
			return 1 - 2*(y&1)
		case y > 64 && x != 1:
			overflow()
		}
		return result
	default:
		if y == 0 {
			fail("division by zero")
		}
		if x == math.MinInt64 && y == -1 {
			overflow()
		}
		q, m := x/y, x%y
		if m != 0 && (m < 0) != (y < 0) {
			q, m = q-1, m+y
		}
		if op == "//" {
			return q
		}
		return m
	}
	overflow()
	return 0
}

func magnitude(x int64) uint64 {
	if x < 0 {
		return -uint64(x)
	}
	return uint64(x)
}

type attribute struct {
	of   expression
	name string
}

func (e *attribute) eval(in *interp, sc *scope) value {
	return in.attribute(in.eval(e.of, sc), e.name)
}

// attribute is what v.name means: a method, or else a member.
func (in *interp) attribute(v value, name string) value {
	if m, ok := method(v, name); ok {
		return m
	}
	switch v := v.(type) {
	case *dict:
		if member, ok := v.text(name); ok {
			return member
		}
	case *namespace:
		if member, ok := v.text(name); ok {
			return member
		}
	case *loop:
		if a, ok := v.attribute(name); ok {
			return a
		}
	case *closure:
		if name == "name" {
			return Own(v.name)
		}
	case undefined:
		fail("the attribute %q of %s", name, v.why)
	}
	return undefined{kind(v) + " without the attribute " + name}
}

type item struct{ of, key expression }

func (e *item) eval(in *interp, sc *scope) value {
	return in.item(in.eval(e.of, sc), in.eval(e.key, sc))
}

// item is what v[key] means: a member or an element, or else a method.
func (in *interp) item(v, key value) value {
	switch v := v.(type) {
	case undefined:
		fail("an item of %s", v.why)
	case *dict:
		if member, ok := v.get(key); ok {
			return member
		}
	case *list:
		if i, ok := key.(int64); ok {
			if i < 0 {
				i += int64(len(v.items))
			}
			if i >= 0 && i < int64(len(v.items)) {
				return v.items[i]
			}
			return undefined{"an element beyond the list's end"}
		}
	case Text:
		if i, ok := key.(int64); ok {
			in.m.scan(len(v.s))
			n := int64(v.chars())
			if i < 0 {
				i += n
			}
			if i < 0 || i >= n {
				return undefined{"a character beyond the string's end"}
			}
			at := v.offset(int(i))
			return in.m.slice(v, at, at+Text{s: v.s[at:]}.offset(1))
		}
	}
	if name, ok := key.(Text); ok {
		return in.attribute(v, name.s)
	}
	return undefined{kind(v) + " without such an item"}
}

type slicing struct{ of, from, to, by expression }

func (e *slicing) eval(in *interp, sc *scope) value {
	v := in.eval(e.of, sc)
	bound := func(e expression) *int64 {
		if e == nil {
			return nil
		}
		v := in.eval(e, sc)
		if v == nil {
			return nil
		}
		n := wantInt(v)
		return &n
	}
	from, to, by := bound(e.from), bound(e.to), bound(e.by)
	step := int64(1)
	if by != nil {
		if step = *by; step == 0 {
			fail("a slice's step must not be zero")
		}
	}
	switch v := v.(type) {
	case *list:
		n := len(v.items)
		if start, end := sliceBounds(from, to, step, int64(n)); step == 1 {
			in.m.step(1)
			return &list{items: v.items[start:max(start, end):max(start, end)], tuple: v.tuple}
		}
		l := &list{tuple: v.tuple}
		in.each(from, to, step, n, func(i int) { l.items = append(l.items, v.items[i]) })
		return l
	case Text:
		in.m.scan(len(v.s))
		n := v.chars()
		if start, end := sliceBounds(from, to, step, int64(n)); step == 1 {
			at := v.offset(int(start))
			return in.m.slice(v, at, at+Text{s: v.s[at:]}.offset(int(max(0, end-start))))
		}
		chars := in.items(v)
		b := builder{m: &in.m}
		in.each(from, to, step, n, func(i int) { b.write(chars[i].(Text)) })
		return b.text()
	case undefined:
		fail("a slice of %s", v.why)
	}
	fail("a slice of %s", kind(v))
	return nil
}

// each pays for and goes through the places of a slice of n elements.
func (in *interp) each(from, to *int64, step int64, n int, f func(i int)) {
	start, end := sliceBounds(from, to, step, int64(n))
	for i := start; step > 0 && i < end || step < 0 && i > end; i += step {
		in.m.elements(1)
		f(int(i))
		if step > int64(n) || -step > int64(n) {
			break
		}
	}
}

// sliceBounds is Python's slice.indices.
func sliceBounds(from, to *int64, step, n int64) (start, end int64) {
	lo, hi := int64(0), n
	if step < 0 {
		lo, hi = -1, n-1
	}
	clamp := func(p *int64, absent int64) int64 {
		if p == nil {
			return absent
		}
		i := *p
		if i < 0 {
			i = max(i, -n-1) + n
		}
		return min(max(i, lo), hi)
	}
	if step < 0 {
		return clamp(from, hi), clamp(to, lo)
	}
	return clamp(from, lo), clamp(to, hi)
}

// arguments are a call's arguments as written.
type arguments struct {
	positional, morePositional []expression
	names                      []string
	named, moreNamed           []expression
}

func (in *interp) args(w *arguments, sc *scope) args {
	a := args{names: slices.Clip(w.names)}
	in.m.elements(len(w.positional) + len(w.named))
	for _, e := range w.positional {
		a.positional = append(a.positional, in.eval(e, sc))
	}
	for _, e := range w.morePositional {
		items := in.items(in.eval(e, sc))
		in.m.elements(len(items))
		a.positional = append(a.positional, items...)
	}
	for _, e := range w.named {
		a.named = append(a.named, in.eval(e, sc))
	}
	for _, e := range w.moreNamed {
		v := in.eval(e, sc)
		d, ok := v.(*dict)
		if !ok {
			fail("%s where named arguments are wanted", kind(v))
		}
		in.m.elements(len(d.keys))
		for i, k := range d.keys {
			a.names, a.named = append(a.names, wantText(k).s), append(a.named, d.values[i])
		}
	}
	return a
}

type call struct {
	f    expression
	args *arguments
}

func (e *call) eval(in *interp, sc *scope) value {
	f := in.eval(e.f, sc)
	return in.call(f, in.args(e.args, sc))
}

func (in *interp) call(f value, a args) value {
	switch f := f.(type) {
	case function:
		return f.call(in, a)
	case *closure:
		return f.call(in, a)
	case *loop:
		if f.again != nil && len(a.positional) == 1 {
			return f.again(a.positional[0])
		}
		fail("the loop is not recursive")
	case undefined:
		fail("a call of %s", f.why)
	}
	fail("a call of %s", kind(f))
	return nil
}

type filtered struct {
	f    func(in *interp, v value, a args) value
	of   expression
	args *arguments
}

func (e *filtered) eval(in *interp, sc *scope) value {
	return e.f(in, in.eval(e.of, sc), in.args(e.args, sc))
}

type tested struct {
	f    func(in *interp, v value, a args) bool
	of   expression
	args *arguments
}

func (e *tested) eval(in *interp, sc *scope) value {
	return e.f(in, in.eval(e.of, sc), in.args(e.args, sc))
}
