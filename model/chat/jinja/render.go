package jinja

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"
)

// Object is a variable with members in this order.
type Object []Member

// Member is one member of an [Object].
type Member struct {
	Name  string
	Value any
}

// Environment is what a rendering is given besides its variables.
type Environment struct {
	Limits Limits
	// Now is the clock of strftime_now.
	Now func() time.Time
}

// Render returns the text of t with variables, unless ctx ends before that. Their values are those of encoding/json, [Object], and
// [Text]; strings count as data. The error is an [*Error], or why ctx has ended.
func (t *Template) Render(ctx context.Context, variables Object, e Environment) (out Text, err error) {
	in := &interp{m: meter{ctx: ctx, limits: e.Limits, steps: e.Limits.Steps, bytes: e.Limits.Bytes}, now: e.Now}
	defer func() {
		var e *Error
		if errors.As(err, &e) && e.Line == 0 {
			e.Line = in.line
		}
		if in.m.left {
			err = context.Cause(ctx)
		}
	}()
	defer catch(&err)
	sc := &scope{vars: map[string]value{}}
	for _, m := range variables {
		v, err := in.variable(m.Value)
		if err != nil {
			return Text{}, &Error{Text: fmt.Sprintf("variable %q: %v", m.Name, err), Limit: err.Limit}
		}
		sc.vars[m.Name] = v
	}
	b := &builder{m: &in.m}
	in.run(t.body, &scope{up: sc}, b)
	return b.text(), nil
}

// variable is fromGo with its error.
func (in *interp) variable(v any) (out value, failure *Error) {
	var err error
	func() {
		defer catch(&err)
		out = in.fromGo(v)
	}()
	errors.As(err, &failure)
	return out, failure
}

// interp is one rendering.
type interp struct {
	m     meter
	now   func() time.Time
	depth int
	line  int
}

// deeper bounds the stack.
func (in *interp) deeper() func() {
	in.enter()
	return in.exit
}

func (in *interp) enter() {
	if in.depth++; in.depth > maxDepth {
		panic(&Error{Limit: true, Text: "the limit of nested evaluations is reached"})
	}
}

func (in *interp) exit() { in.depth-- }

// scope is the variables of a block, and those around it.
type scope struct {
	vars map[string]value
	up   *scope
}

// set pays for a variable and sets it.
func (in *interp) set(sc *scope, name string, v value) {
	in.m.alloc(elementBytes)
	if sc.vars == nil {
		in.m.alloc(scopeBytes)
		sc.vars = map[string]value{}
	}
	sc.vars[name] = v
}

func (in *interp) get(sc *scope, name string) (value, bool) {
	for ; sc != nil; sc = sc.up {
		in.m.step(1)
		if v, ok := sc.vars[name]; ok {
			return v, true
		}
	}
	return nil, false
}

// control is how a statement ended.
type control byte

const (
	goesOn control = iota
	breaks
	continues
)

type statement interface {
	run(in *interp, sc *scope, out *builder) control
}

func (in *interp) run(body []statement, sc *scope, out *builder) control {
	in.enter()
	defer in.exit()
	for _, s := range body {
		in.m.step(1)
		if c := s.run(in, sc, out); c != goesOn {
			return c
		}
	}
	return goesOn
}

type literal struct{ text Text }

func (s *literal) run(in *interp, sc *scope, out *builder) control {
	out.write(s.text)
	return goesOn
}

type output struct {
	e    expression
	line int
}

func (s *output) run(in *interp, sc *scope, out *builder) control {
	in.line = s.line
	out.write(in.text(in.eval(s.e, sc)))
	return goesOn
}

// located remembers where a statement stands.
type located struct {
	statement
	line int
}

func (s *located) run(in *interp, sc *scope, out *builder) control {
	in.line = s.line
	return s.statement.run(in, sc, out)
}

type leave control

func (s leave) run(*interp, *scope, *builder) control { return control(s) }

type ifStatement struct {
	cases     []ifCase
	otherwise []statement
}

type ifCase struct {
	cond expression
	body []statement
}

func (s *ifStatement) run(in *interp, sc *scope, out *builder) control {
	for _, c := range s.cases {
		if truth(in.eval(c.cond, sc)) {
			return in.run(c.body, sc, out)
		}
	}
	return in.run(s.otherwise, sc, out)
}

// target is what a value is assigned to.
type target struct {
	refs    []reference
	several bool
}

// reference is a variable, or an attribute of the namespace that it holds.
type reference struct{ name, attribute string }

func (t *target) assign(in *interp, sc, from *scope, v value) {
	if !t.several {
		t.refs[0].assign(in, sc, from, v)
		return
	}
	items := in.items(v)
	if len(items) != len(t.refs) {
		fail("%d values for %d variables", len(items), len(t.refs))
	}
	for i, r := range t.refs {
		r.assign(in, sc, from, items[i])
	}
}

// assign sets a variable of sc; a namespace is looked up from from.
func (r *reference) assign(in *interp, sc, from *scope, v value) {
	if r.attribute == "" {
		in.set(sc, r.name, v)
		return
	}
	held, _ := in.get(from, r.name)
	n, ok := held.(*namespace)
	if !ok {
		fail("cannot set an attribute of %q: it is no namespace", r.name)
	}
	in.m.alloc(elementBytes)
	n.set(Own(r.attribute), v)
}

type setStatement struct {
	target target
	value  expression
}

func (s *setStatement) run(in *interp, sc *scope, out *builder) control {
	s.target.assign(in, sc, sc, in.eval(s.value, sc))
	return goesOn
}

// scopeBlock is a block with variables of its own.
type scopeBlock struct {
	sets []setStatement
	body []statement
}

func (s *scopeBlock) run(in *interp, sc *scope, out *builder) control {
	inner := &scope{up: sc}
	for i := range s.sets {
		s.sets[i].target.assign(in, inner, sc, in.eval(s.sets[i].value, sc))
	}
	return in.run(s.body, inner, out)
}

type filterBlock struct {
	value expression // of a captured
	body  []statement
}

func (s *filterBlock) run(in *interp, sc *scope, out *builder) control {
	out.write(in.text(in.eval(&captureBlock{s.body, s.value}, sc)))
	return goesOn
}

// captureBlock is the text of a block, through the filters of value.
type captureBlock struct {
	body  []statement
	value expression
}

const capturedName = " captured" // no variable is named so

func (e *captureBlock) eval(in *interp, sc *scope) value {
	b := &builder{m: &in.m}
	in.run(e.body, &scope{up: sc}, b)
	inner := &scope{up: sc}
	in.set(inner, capturedName, b.text())
	return in.eval(e.value, inner)
}

// captured stands for the text of the block that is being captured.
type captured struct{}

func (e *captured) eval(in *interp, sc *scope) value {
	v, _ := in.get(sc, capturedName)
	return v
}

type forStatement struct {
	target    target
	over      expression
	where     expression // nil: all
	recursive bool
	body      []statement
	otherwise []statement
}

// loop is the variable of that name.
type loop struct {
	items    []value
	i, depth int
	last     value // what changed saw last
	again    func(items value) Text
}

func (s *forStatement) run(in *interp, sc *scope, out *builder) control {
	s.loop(in, sc, out, in.eval(s.over, sc), 1)
	return goesOn
}

func (s *forStatement) loop(in *interp, sc *scope, out *builder, over value, depth int) {
	in.enter()
	defer in.exit()
	items := in.items(over)
	if s.where != nil {
		var kept []value
		for _, item := range items {
			inner := &scope{up: sc}
			s.target.assign(in, inner, sc, item)
			if truth(in.eval(s.where, inner)) {
				kept = append(kept, item)
			}
		}
		items = kept
	}
	if len(items) == 0 {
		in.run(s.otherwise, &scope{up: sc}, out)
		return
	}
	l := &loop{items: items, depth: depth, last: undefined{}}
	if s.recursive {
		l.again = func(items value) Text {
			b := &builder{m: &in.m}
			s.loop(in, sc, b, items, depth+1)
			return b.text()
		}
	}
	for i, item := range items {
		l.i = i
		inner := &scope{up: sc}
		in.set(inner, "loop", l)
		s.target.assign(in, inner, sc, item)
		if in.run(s.body, inner, out) == breaks {
			return
		}
	}
}

func (l *loop) attribute(name string) (value, bool) {
	n := len(l.items)
	at := func(i int, why string) value {
		if i < 0 || i >= n {
			return undefined{why}
		}
		return l.items[i]
	}
	switch name {
	case "index":
		return int64(l.i + 1), true
	case "index0":
		return int64(l.i), true
	case "revindex":
		return int64(n - l.i), true
	case "revindex0":
		return int64(n - l.i - 1), true
	case "first":
		return l.i == 0, true
	case "last":
		return l.i == n-1, true
	case "length":
		return int64(n), true
	case "depth":
		return int64(l.depth), true
	case "depth0":
		return int64(l.depth - 1), true
	case "previtem":
		return at(l.i-1, "there is no previous item"), true
	case "nextitem":
		return at(l.i+1, "there is no next item"), true
	case "cycle":
		return function{"cycle", func(in *interp, a args) value {
			if len(a.positional) == 0 {
				fail("loop.cycle of nothing")
			}
			return a.positional[l.i%len(a.positional)]
		}}, true
	case "changed":
		return function{"changed", func(in *interp, a args) value {
			now := in.newList(a.positional)
			if in.equal(l.last, now) {
				return false
			}
			l.last = now
			return true
		}}, true
	}
	return nil, false
}

// macro is a macro as written; closure is one in its place.
type macro struct {
	name                               string
	params                             []string
	defaults                           []expression // of the last params
	body                               []statement
	takesMore, takesNamed, takesCaller bool
}

type closure struct {
	*macro
	sc *scope
}

type setMacro struct {
	name  string
	macro *macro
}

func (s *setMacro) run(in *interp, sc *scope, out *builder) control {
	in.set(sc, s.name, &closure{s.macro, sc})
	return goesOn
}

func (c *closure) call(in *interp, a args) Text {
	in.enter()
	defer in.exit()
	in.m.alloc(scopeBytes + elementBytes*(1+len(c.params)))
	inner := &scope{vars: make(map[string]value, len(c.params)), up: c.sc}
	used := 0
	for i, name := range c.params {
		if v, ok := a.get(i, name); ok {
			if i >= len(a.positional) {
				used++
			}
			inner.vars[name] = v
			continue
		}
		if d := i - len(c.params) + len(c.defaults); d >= 0 {
			inner.vars[name] = in.eval(c.defaults[d], inner)
		} else {
			inner.vars[name] = undefined{"the parameter " + name + " was not given"}
		}
	}
	if more := a.positional[min(len(c.params), len(a.positional)):]; c.takesMore {
		l := in.newList(more)
		l.tuple = true
		inner.vars["varargs"] = l
	} else if len(more) > 0 {
		fail("the macro %q takes at most %d arguments", c.name, len(c.params))
	}
	named := &dict{}
	for i, name := range a.names {
		isParam := false
		for _, p := range c.params {
			isParam = isParam || p == name
		}
		switch {
		case isParam:
		case name == "caller" && c.takesCaller:
			inner.vars["caller"] = a.named[i]
		case c.takesNamed:
			in.m.alloc(elementBytes)
			named.set(Own(name), a.named[i])
		default:
			fail("the macro %q has no parameter %q", c.name, name)
		}
	}
	if c.takesNamed {
		inner.vars["kwargs"] = named
	}
	if _, ok := inner.vars["caller"]; c.takesCaller && !ok {
		inner.vars["caller"] = undefined{"there is no caller"}
	}
	b := &builder{m: &in.m}
	in.run(c.body, inner, b)
	return b.text()
}

// callBlock calls a macro with a block as its caller.
type callBlock struct {
	call   *call
	caller *macro
}

func (s *callBlock) run(in *interp, sc *scope, out *builder) control {
	a := in.args(s.call.args, sc)
	a.names, a.named = append(a.names, "caller"), append(a.named, &closure{s.caller, sc})
	out.write(in.text(in.call(in.eval(s.call.f, sc), a)))
	return goesOn
}

// globals are the functions that every template has.
var globals = map[string]function{
	"range": {"range", func(in *interp, a args) value { return in.numberRange(a) }},
	"dict": {"dict", func(in *interp, a args) value {
		d := &dict{}
		in.fill(d, a)
		return d
	}},
	"namespace": {"namespace", func(in *interp, a args) value {
		n := &namespace{}
		in.fill(&n.dict, a)
		return n
	}},
	"raise_exception": {"raise_exception", func(in *interp, a args) value {
		reason := in.text(a.must(0, "message")).s
		panic(&Error{Raised: true, Text: strings.Clone(reason)})
	}},
	"strftime_now": {"strftime_now", func(in *interp, a args) value {
		format := wantText(a.must(0, "format"))
		in.m.alloc(32 * len(format.s))
		return Data(strftime(in.now(), format.s))
	}},
}

// fill is how dict and namespace take members: from objects or pairs, and by name.
func (in *interp) fill(d *dict, a args) {
	for _, v := range a.positional {
		if other, ok := v.(*dict); ok {
			in.m.elements(len(other.keys))
			for i, k := range other.keys {
				d.set(k, other.values[i])
			}
			continue
		}
		for _, pair := range in.items(v) {
			kv := in.items(pair)
			if len(kv) != 2 {
				fail("an object is made of pairs, not of %d values", len(kv))
			}
			in.m.elements(1)
			d.set(kv[0], kv[1])
		}
	}
	in.m.elements(len(a.names))
	for i, name := range a.names {
		d.set(Own(name), a.named[i])
	}
}

// numberRange is Python's range as a list.
func (in *interp) numberRange(a args) value {
	n := []int64{0, 0, 1}
	if len(a.positional) == 0 || len(a.positional) > 3 || len(a.names) > 0 {
		fail("range takes one to three numbers")
	}
	for i, v := range a.positional {
		if len(a.positional) == 1 {
			i = 1
		}
		n[i] = wantInt(v)
	}
	start, stop, step := n[0], n[1], n[2]
	if step == 0 {
		fail("the step of a range must not be zero")
	}
	l := &list{}
	for i := start; step > 0 && i < stop || step < 0 && i > stop; i += step {
		in.m.elements(1)
		l.items = append(l.items, i)
		if next := i + step; (next > i) != (step > 0) {
			break // past the ends of 64 bits
		}
	}
	return l
}
