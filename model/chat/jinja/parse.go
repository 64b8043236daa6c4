package jinja

import (
	"fmt"
	"slices"
	"strings"
)

// Template is a compiled template. It is safe for concurrent use.
type Template struct{ body []statement }

// Parse compiles source, as transformers would with Jinja2.
func Parse(source string) (t *Template, err error) {
	defer catch(&err)
	p := parser{parts: lex(source)}
	t = &Template{body: p.statements()}
	if p.at < len(p.parts) {
		p.failf("unexpected %q", p.peek().text)
	}
	return t, nil
}

// catch turns panics into err. One that is not the package's own is a fault of the interpreter: a file
// that finds one costs its own chats, not the server.
func catch(err *error) {
	switch p := recover().(type) {
	case nil:
	case *Error:
		*err = p
	default:
		*err = &Error{Text: fmt.Sprintf("%s: %v", faulty, p)}
	}
}

const faulty = "a fault of the interpreter"

// parser reads parts, and the tokens of the part that it is in.
type parser struct {
	parts  []part
	at     int // the next part
	tokens []token
	depth  int
	loops  int // that are open
	// named are the names that the macro being read asks for.
	named map[string]bool
}

func (p *parser) peek() token {
	if len(p.tokens) == 0 {
		return token{kind: tokenEnd}
	}
	return p.tokens[0]
}

func (p *parser) next() token {
	t := p.peek()
	if t.kind != tokenEnd {
		p.tokens = p.tokens[1:]
	}
	return t
}

func (p *parser) failf(format string, args ...any) {
	panic(&Error{Line: p.peek().line, Text: fmt.Sprintf(format, args...)})
}

func (t token) describe() string {
	switch t.kind {
	case tokenEnd:
		return "the end of the tag"
	case tokenString:
		return "a string"
	case tokenInt, tokenFloat:
		return "a number"
	}
	return fmt.Sprintf("%q", t.text)
}

func (p *parser) is(kind tokenKind, text string) bool {
	t := p.peek()
	return t.kind == kind && t.text == text
}

// skip takes the token if it is the next.
func (p *parser) skip(kind tokenKind, text string) bool {
	if p.is(kind, text) {
		p.next()
		return true
	}
	return false
}

func (p *parser) op(text string) bool   { return p.skip(tokenOp, text) }
func (p *parser) word(text string) bool { return p.skip(tokenName, text) }

func (p *parser) expect(text string) {
	if !p.op(text) {
		p.failf("expected %q, not %s", text, p.peek().describe())
	}
}

func (p *parser) expectWord(text string) {
	if !p.word(text) {
		p.failf("expected %q, not %s", text, p.peek().describe())
	}
}

func (p *parser) name() string {
	t := p.peek()
	if t.kind != tokenName {
		p.failf("expected a name, not %s", t.describe())
	}
	return p.next().text
}

// end wants the end of the tag.
func (p *parser) end() {
	if t := p.peek(); t.kind != tokenEnd {
		p.failf("unexpected %s", t.describe())
	}
}

// deeper bounds recursion.
func (p *parser) deeper() func() {
	if p.depth++; p.depth > 4*maxNesting {
		p.failf("the template nests more than %d levels", 4*maxNesting)
	}
	return func() { p.depth-- }
}

// statements reads up to a tag that begins with one of ends, which is left as the current tag with its
// first word taken.
func (p *parser) statements(ends ...string) []statement {
	defer p.deeper()()
	var body []statement
	for ; p.at < len(p.parts); p.at++ {
		part := &p.parts[p.at]
		p.tokens = part.tokens
		switch part.kind {
		case 0:
			body = append(body, &literal{Own(part.text)})
		case '{':
			body = append(body, &output{p.tuple(), part.line})
			p.end()
		default:
			word := p.peek().text
			if slices.Contains(ends, word) {
				return body
			}
			body = append(body, &located{p.statement(), part.line})
		}
	}
	if len(ends) > 0 {
		panic(&Error{Text: "the template ends without " + strings.Join(ends, " or ")})
	}
	return body
}

// block reads the body of the statement whose tag is at its end, and the tag that ends it, whose first
// word it returns.
func (p *parser) block(ends ...string) ([]statement, string) {
	p.end()
	p.at++
	body := p.statements(ends...)
	return body, p.next().text
}

// closed is block for a body with one end.
func (p *parser) closed(end string) []statement {
	body, _ := p.block(end)
	p.end()
	return body
}

func (p *parser) statement() statement {
	switch keyword := p.name(); keyword {
	case "if":
		return p.ifStatement()
	case "for":
		return p.forStatement()
	case "set":
		return p.setStatement()
	case "macro":
		name := p.name()
		return &setMacro{name, p.macro(name, "endmacro", true)}
	case "call":
		return p.callStatement()
	case "filter":
		var value expression = &captured{}
		value = p.filters(value, true)
		return &filterBlock{value, p.closed("endfilter")}
	case "with":
		return p.withStatement()
	case "generation":
		// Marks what the assistant said, for training; it is rendered as it stands.
		return &scopeBlock{body: p.closed("endgeneration")}
	case "break", "continue":
		if p.loops == 0 {
			p.failf("%s outside of a loop", keyword)
		}
		p.end()
		if keyword == "break" {
			return leave(breaks)
		}
		return leave(continues)
	default:
		p.failf("unknown statement %q", keyword)
		return nil
	}
}

func (p *parser) ifStatement() statement {
	s := &ifStatement{}
	for {
		cond := p.condition()
		body, end := p.block("elif", "else", "endif")
		s.cases = append(s.cases, ifCase{cond, body})
		if end == "elif" {
			continue
		}
		if end == "else" {
			s.otherwise, _ = p.block("endif")
		}
		p.end()
		return s
	}
}

func (p *parser) forStatement() statement {
	s := &forStatement{target: p.target(false)}
	p.expectWord("in")
	s.over = p.tupleOf(p.or)
	if p.word("if") {
		s.where = p.expression()
	}
	s.recursive = p.word("recursive")
	var end string
	p.loops++
	s.body, end = p.block("endfor", "else")
	p.loops--
	if end == "else" {
		s.otherwise, _ = p.block("endfor")
	}
	p.end()
	return s
}

func (p *parser) setStatement() statement {
	target := p.target(true)
	if p.op("=") {
		s := &setStatement{target, p.tuple()}
		p.end()
		return s
	}
	var value expression = &captured{}
	value = p.filters(value, false)
	return &setStatement{target, &captureBlock{p.closed("endset"), value}}
}

func (p *parser) withStatement() statement {
	s := &scopeBlock{}
	for p.peek().kind != tokenEnd {
		if len(s.sets) > 0 {
			p.expect(",")
		}
		target := p.target(false)
		p.expect("=")
		s.sets = append(s.sets, setStatement{target, p.expression()})
	}
	s.body = p.closed("endwith")
	return s
}

func (p *parser) callStatement() statement {
	s := &callBlock{}
	params, defaults := []string(nil), []expression(nil)
	if p.is(tokenOp, "(") {
		params, defaults = p.signature()
	}
	c, ok := p.expression().(*call)
	if !ok {
		p.failf("a call block needs a call")
	}
	s.call, s.caller = c, p.macro("caller", "endcall", false)
	s.caller.params, s.caller.defaults = params, defaults
	return s
}

func (p *parser) macro(name, end string, signed bool) *macro {
	outer, loops := p.named, p.loops
	p.named, p.loops = map[string]bool{}, 0
	m := &macro{name: name}
	if signed {
		m.params, m.defaults = p.signature()
	}
	m.body = p.closed(end)
	m.takesMore, m.takesNamed, m.takesCaller = p.named["varargs"], p.named["kwargs"], p.named["caller"]
	for name := range p.named {
		if outer != nil {
			outer[name] = true
		}
	}
	p.named, p.loops = outer, loops
	return m
}

// signature reads a macro's parameters; the last ones may have defaults.
func (p *parser) signature() (params []string, defaults []expression) {
	p.expect("(")
	for !p.op(")") {
		if len(params) > 0 {
			p.expect(",")
		}
		params = append(params, p.name())
		switch {
		case p.op("="):
			defaults = append(defaults, p.expression())
		case defaults != nil:
			p.failf("a parameter without default after one with a default")
		}
	}
	return params, defaults
}

// target reads what is assigned to: a name, several, or a namespace's attribute.
func (p *parser) target(attributes bool) target {
	var t target
	one := func() {
		name := p.name()
		if slices.Contains([]string{"true", "false", "none", "True", "False", "None", "in", "is", "not", "and", "or", "if", "else"}, name) {
			p.failf("cannot assign to %q", name)
		}
		ref := reference{name: name}
		if attributes && p.op(".") {
			ref.attribute = p.name()
		}
		t.refs = append(t.refs, ref)
	}
	bracket := p.op("(")
	one()
	for p.op(",") {
		t.several = true
		one()
	}
	if bracket {
		p.expect(")")
	}
	return t
}

// tuple reads an expression, or several with commas between.
func (p *parser) tuple() expression { return p.tupleOf(p.expression) }

func (p *parser) condition() expression { return p.tupleOf(p.or) }

func (p *parser) tupleOf(one func() expression) expression {
	first := one()
	if !p.is(tokenOp, ",") {
		return first
	}
	t := &listLiteral{items: []expression{first}, tuple: true}
	for p.op(",") {
		if k := p.peek(); k.kind == tokenEnd || k.kind == tokenOp && strings.Contains(")]}", k.text) || k.kind == tokenName && k.text == "recursive" {
			break
		}
		t.items = append(t.items, one())
	}
	return t
}

func (p *parser) expression() expression {
	defer p.deeper()()
	e := p.or()
	for p.word("if") {
		c := &conditional{cond: p.or(), yes: e}
		if p.word("else") {
			c.no = p.expression()
		}
		e = c
	}
	return e
}

func (p *parser) or() expression {
	e := p.and()
	for p.word("or") {
		e = &logical{e, p.and(), true}
	}
	return e
}

func (p *parser) and() expression {
	e := p.not()
	for p.word("and") {
		e = &logical{e, p.not(), false}
	}
	return e
}

func (p *parser) not() expression {
	if !p.word("not") {
		return p.compare()
	}
	defer p.deeper()()
	return &negation{p.not()}
}

var comparisons = []string{"==", "!=", "<", "<=", ">", ">="}

func (p *parser) compare() expression {
	c := &comparison{first: p.sum()}
	for {
		t := p.peek()
		op := ""
		switch {
		case t.kind == tokenOp && slices.Contains(comparisons, t.text):
			op = p.next().text
		case p.word("in"):
			op = "in"
		case p.is(tokenName, "not") && len(p.tokens) > 1 && p.tokens[1].kind == tokenName && p.tokens[1].text == "in":
			p.next()
			p.next()
			op = "not in"
		default:
			if len(c.ops) == 0 {
				return c.first
			}
			return c
		}
		c.ops, c.rest = append(c.ops, op), append(c.rest, p.sum())
	}
}

func (p *parser) sum() expression {
	return p.binary(p.concat, "+", "-")
}

func (p *parser) product() expression {
	return p.binary(func() expression { return p.binary(func() expression { return p.unary(true) }, "**") }, "*", "/", "//", "%")
}

func (p *parser) binary(operand func() expression, ops ...string) expression {
	e := operand()
	for {
		t := p.peek()
		if t.kind != tokenOp || !slices.Contains(ops, t.text) {
			return e
		}
		p.next()
		e = &arithmetic{t.text, e, operand()}
	}
}

func (p *parser) concat() expression {
	first := p.product()
	if !p.is(tokenOp, "~") {
		return first
	}
	c := &concatenation{[]expression{first}}
	for p.op("~") {
		c.items = append(c.items, p.product())
	}
	return c
}

func (p *parser) unary(filtered bool) expression {
	var e expression
	if t := p.peek(); t.kind == tokenOp && (t.text == "-" || t.text == "+") {
		done := p.deeper()
		p.next()
		e = &sign{p.unary(false), t.text == "-"}
		done()
	} else {
		e = p.primary()
	}
	e = p.postfix(e)
	if filtered {
		e = p.filters(e, false)
	}
	return e
}

func (p *parser) primary() expression {
	t := p.next()
	switch t.kind {
	case tokenName:
		switch t.text {
		case "true", "True":
			return &constant{true}
		case "false", "False":
			return &constant{false}
		case "none", "None":
			return &constant{nil}
		}
		if p.named != nil {
			p.named[t.text] = true
		}
		return &variable{t.text}
	case tokenString:
		s := t.text
		for p.peek().kind == tokenString {
			s += p.next().text
		}
		return &constant{Own(s)}
	case tokenInt:
		return &constant{t.n}
	case tokenFloat:
		return &constant{t.f}
	case tokenOp:
		switch t.text {
		case "(":
			if p.op(")") {
				return &listLiteral{tuple: true}
			}
			e := p.tuple()
			p.expect(")")
			return e
		case "[":
			l := &listLiteral{}
			p.list("]", func() { l.items = append(l.items, p.expression()) })
			return l
		case "{":
			d := &dictLiteral{}
			p.list("}", func() {
				d.keys = append(d.keys, p.expression())
				p.expect(":")
				d.values = append(d.values, p.expression())
			})
			return d
		}
	}
	p.tokens = append([]token{t}, p.tokens...)
	p.failf("unexpected %s", t.describe())
	return nil
}

// list reads items with commas between them, and one after the last if the author likes.
func (p *parser) list(end string, item func()) {
	for first := true; !p.op(end); first = false {
		if !first {
			if p.expect(","); p.op(end) {
				return
			}
		}
		item()
	}
}

func (p *parser) postfix(e expression) expression {
	for {
		switch {
		case p.op("."):
			if t := p.peek(); t.kind == tokenInt {
				p.next()
				e = &item{e, &constant{t.n}}
			} else {
				e = &attribute{e, p.name()}
			}
		case p.op("["):
			e = p.subscript(e)
		case p.is(tokenOp, "("):
			e = &call{e, p.arguments()}
		default:
			return e
		}
	}
}

func (p *parser) subscript(e expression) expression {
	part := func() expression {
		if t := p.peek(); t.kind == tokenOp && (t.text == ":" || t.text == "]") {
			return nil
		}
		return p.expression()
	}
	first := part()
	if !p.is(tokenOp, ":") {
		if first == nil {
			p.failf("an empty subscript")
		}
		if p.is(tokenOp, ",") {
			p.failf("a subscript of several indices")
		}
		p.expect("]")
		return &item{e, first}
	}
	s := &slicing{of: e, from: first}
	p.op(":")
	s.to = part()
	if p.op(":") {
		s.by = part()
	}
	p.expect("]")
	return s
}

// arguments reads a call's arguments.
func (p *parser) arguments() *arguments {
	a := &arguments{}
	p.expect("(")
	p.list(")", func() {
		switch {
		case p.op("*"):
			a.morePositional = append(a.morePositional, p.expression())
		case p.op("**"):
			a.moreNamed = append(a.moreNamed, p.expression())
		case p.peek().kind == tokenName && len(p.tokens) > 1 && p.tokens[1].kind == tokenOp && p.tokens[1].text == "=":
			name := p.name()
			p.next()
			a.names, a.named = append(a.names, name), append(a.named, p.expression())
		default:
			if len(a.names)+len(a.morePositional)+len(a.moreNamed) > 0 {
				p.failf("a positional argument after one with a name")
			}
			a.positional = append(a.positional, p.expression())
		}
	})
	return a
}

// filters reads the filters and tests that follow e; bare means that the first one stands without its
// bar.
func (p *parser) filters(e expression, bare bool) expression {
	for {
		switch {
		case bare || p.op("|"):
			bare = false
			name := p.name()
			f, ok := filters[name]
			if !ok {
				p.failf("unknown filter %q", name)
			}
			a := &arguments{}
			if p.is(tokenOp, "(") {
				a = p.arguments()
			}
			e = &filtered{f, e, a}
		case p.word("is"):
			e = p.test(e)
		case p.is(tokenOp, "("):
			e = &call{e, p.arguments()}
		default:
			return e
		}
	}
}

func (p *parser) test(e expression) expression {
	negated := p.word("not")
	name := p.name()
	f, ok := tests[name]
	if !ok {
		p.failf("unknown test %q", name)
	}
	a := &arguments{}
	switch t := p.peek(); {
	case p.is(tokenOp, "("):
		a = p.arguments()
	case t.kind == tokenName && !slices.Contains([]string{"else", "or", "and", "is", "if", "in", "not", "recursive"}, t.text),
		t.kind == tokenString, t.kind == tokenInt, t.kind == tokenFloat, t.kind == tokenOp && (t.text == "[" || t.text == "{"):
		a.positional = []expression{p.postfix(p.primary())}
	}
	e = &tested{f, e, a}
	if negated {
		e = &negation{e}
	}
	return e
}
