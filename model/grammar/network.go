package grammar

import (
	"context"
	"fmt"
	"regexp/syntax"
)

// A network is a set of byte automata that call each other, as the diagrams of a language's syntax
// do. A node has four kinds of ways out: a range of bytes, nothing at all, a call (run through
// another automaton of the network, then go on at ret), and the end of the automaton it is in.
//
// Calls keep a network small where copies would not: the 2,000 characters of a bounded string are
// 2,000 calls of one automaton for a character. Calls that nest are the ones that can recur (a
// JSON value within a value, a $ref); only those count against the nesting limit. The others
// follow the source's own nesting, which is bounded when it is read.
type network struct {
	nodes []node
	start int32
}

type node struct {
	edges []edge
	empty []int32
	calls []call
	end   bool
	// need is how much nesting it takes at least to get from here to the end of the automaton;
	// unreachable if there is no way.
	need int32
}

type edge struct {
	lo, hi byte
	to     int32
}

type call struct {
	start, ret int32
	nests      bool
}

const unreachable = int32(1) << 30

// A builder makes a network. Its first error stays; after it, nodes are no longer made and what is
// built does not matter, but loops over source text must look at err.
type builder struct {
	ctx    context.Context
	limits Limits
	nodes  []node
	steps  int // operations so far
	err    error
	// place says what is being built, for the messages of limits.
	place  string
	rules  map[string]int32
	blanks *syntax.Regexp // Spec.Whitespace, nil without
}

func newBuilder(ctx context.Context, limits Limits) *builder {
	return &builder{ctx: ctx, limits: limits, rules: map[string]int32{}, nodes: make([]node, 1, 64)}
}

func (b *builder) fail(err error) {
	if b.err == nil {
		b.err = err
	}
}

func (b *builder) node() int32 {
	if b.err != nil {
		return 0
	}
	if len(b.nodes) >= b.limits.Nodes {
		b.fail(fmt.Errorf("%w: %s: more than %d automaton nodes", ErrLimit, b.place, b.limits.Nodes))
		return 0
	}
	b.spend(1)
	b.nodes = append(b.nodes, node{})
	return int32(len(b.nodes) - 1)
}

// spend counts operations. Loops over what a source says must call it, or something that does.
func (b *builder) spend(steps int) {
	before := b.steps
	b.steps += steps
	switch {
	case b.steps > b.limits.Steps:
		b.fail(fmt.Errorf("%w: %s: compiling takes more than %d operations", ErrLimit, b.place, b.limits.Steps))
	case before/1024 != b.steps/1024 && b.ctx.Err() != nil:
		b.fail(fmt.Errorf("%s: %w", b.place, context.Cause(b.ctx)))
	}
}

func (b *builder) bytes(from, to int32, lo, hi byte) {
	b.spend(1)
	n := &b.nodes[from]
	n.edges = append(n.edges, edge{lo, hi, to})
}

func (b *builder) empty(from, to int32) {
	b.spend(1)
	if from != to {
		b.nodes[from].empty = append(b.nodes[from].empty, to)
	}
}

func (b *builder) call(from, start, to int32, nests bool) {
	b.spend(1)
	b.nodes[from].calls = append(b.nodes[from].calls, call{start, to, nests})
}

// literal adds the path that reads text.
func (b *builder) literal(from, to int32, text string) {
	if text == "" {
		b.empty(from, to)
		return
	}
	for i := range len(text) - 1 {
		next := b.node()
		b.bytes(from, next, text[i], text[i])
		from = next
	}
	b.bytes(from, to, text[len(text)-1], text[len(text)-1])
}

// literals adds a path for each text, common beginnings shared: as many paths from one node as
// there are texts would make that state's set of configurations as large.
func (b *builder) literals(from, to int32, texts []string) {
	type step struct {
		node int32
		c    byte
	}
	next := map[step]int32{}
	for _, text := range texts {
		at := from
		for i := range len(text) {
			s := step{at, text[i]}
			n, ok := next[s]
			if !ok {
				n = b.node()
				if b.err != nil {
					return
				}
				next[s] = n
				b.bytes(at, n, text[i], text[i])
			}
			at = n
		}
		b.empty(at, to)
	}
}

// rule returns the automaton of that name, built the first time that it is asked for. It may call
// itself.
func (b *builder) rule(name string, build func(from, to int32)) int32 {
	if start, ok := b.rules[name]; ok {
		return start
	}
	start, end := b.node(), b.node()
	b.rules[name] = start
	b.nodes[end].end = true
	build(start, end)
	return start
}

// automaton is a rule without a name.
func (b *builder) automaton(build func(from, to int32)) int32 {
	start, end := b.node(), b.node()
	b.nodes[end].end = true
	build(start, end)
	return start
}

// repeat adds between min and max passes of the automaton at start, max < 0 for any number.
func (b *builder) repeat(from, to int32, start int32, min, max int) {
	at := from
	for range min {
		next := b.node()
		b.call(at, start, next, false)
		if b.err != nil {
			return
		}
		at = next
	}
	if max < 0 {
		loop := b.node()
		b.empty(at, loop)
		b.call(loop, start, loop, false)
		b.empty(loop, to)
		return
	}
	for range max - min {
		b.empty(at, to)
		next := b.node()
		b.call(at, start, next, false)
		if b.err != nil {
			return
		}
		at = next
	}
	b.empty(at, to)
}

// network finishes: bytes that the vocabulary cannot write are taken out, and every node learns
// how much nesting it needs, so that no way is ever entered that has no end.
func (b *builder) network(start int32, spelled *[256]bool) (*network, error) {
	if b.err != nil {
		return nil, b.err
	}
	for i := range b.nodes {
		n := &b.nodes[i]
		var kept []edge
		for _, e := range n.edges {
			for c := int(e.lo); c <= int(e.hi); c++ {
				if !spelled[c] {
					continue
				}
				lo := c
				for c < int(e.hi) && spelled[c+1] {
					c++
				}
				kept = append(kept, edge{byte(lo), byte(c), e.to})
			}
		}
		n.edges = kept
	}
	b.findNeeds()
	if b.err != nil {
		return nil, b.err
	}
	if b.nodes[start].need > int32(b.limits.Nesting) {
		if b.nodes[start].need < unreachable {
			return nil, fmt.Errorf("%w: the shortest text nests %d deep, more than %d", ErrLimit, b.nodes[start].need, b.limits.Nesting)
		}
		return nil, fmt.Errorf("%w: no text that this vocabulary can write satisfies it", ErrUnsupported)
	}
	return &network{nodes: b.nodes, start: start}, nil
}

// findNeeds solves, from the ends backwards,
//
//	need(n) = min(0 if n is an end, need(t) over n's edges and empty ways to t,
//	              max(need(start)+nests, need(ret)) over n's calls).
//
// Needs only fall, and no further than to the number of nested calls, so the queue empties.
func (b *builder) findNeeds() {
	before := make([][]int32, len(b.nodes))
	waits := make([]bool, len(b.nodes))
	var queue []int32
	push := func(ids []int32) {
		for _, id := range ids {
			if !waits[id] {
				waits[id] = true
				queue = append(queue, id)
			}
		}
	}
	for i := range b.nodes {
		n, id := &b.nodes[i], int32(i)
		n.need = unreachable
		for _, e := range n.edges {
			before[e.to] = append(before[e.to], id)
		}
		for _, t := range n.empty {
			before[t] = append(before[t], id)
		}
		for _, c := range n.calls {
			before[c.start] = append(before[c.start], id)
			before[c.ret] = append(before[c.ret], id)
		}
		if n.end {
			n.need = 0
		}
	}
	for i := range b.nodes {
		if b.nodes[i].end {
			push(before[i])
		}
	}
	for len(queue) > 0 && b.err == nil {
		id := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		waits[id] = false
		n := &b.nodes[id]
		b.spend(1 + (len(n.edges)+len(n.empty)+len(n.calls))/4)
		need := n.need
		for _, e := range n.edges {
			need = min(need, b.nodes[e.to].need)
		}
		for _, t := range n.empty {
			need = min(need, b.nodes[t].need)
		}
		for _, c := range n.calls {
			need = min(need, c.need(b.nodes))
		}
		if need < n.need {
			n.need = need
			push(before[id])
		}
	}
}

// need is the nesting that a call takes, its own level included.
func (c call) need(nodes []node) int32 {
	inside := nodes[c.start].need
	if c.nests && inside < unreachable {
		inside++
	}
	return max(inside, nodes[c.ret].need)
}
