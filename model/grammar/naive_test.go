package grammar

import (
	"fmt"
	"slices"
)

// naive runs a network the plain way: a list of configurations with whole stacks, nothing shared,
// nothing kept. It is what an automaton and its masks are compared with.
type naive struct {
	n       *network
	nesting int
	now     []naiveConfig
}

type naiveConfig struct {
	node  int32
	stack []call // outermost first
}

func newNaive(n *network, nesting int) naive {
	return naive{n, nesting, naiveClosure(n, nesting, []naiveConfig{{node: n.start}})}
}

func naiveClosure(n *network, nesting int, from []naiveConfig) []naiveConfig {
	seen := map[string]bool{}
	var all []naiveConfig
	var visit func(c naiveConfig)
	visit = func(c naiveConfig) {
		key := fmt.Sprint(c)
		depth := int(n.nodes[c.node].need)
		for _, f := range c.stack {
			if f.nests {
				depth++
			}
		}
		if seen[key] || depth > nesting {
			return
		}
		seen[key] = true
		all = append(all, c)
		at := &n.nodes[c.node]
		if k := len(c.stack); at.end && k > 0 {
			visit(naiveConfig{c.stack[k-1].ret, slices.Clone(c.stack[:k-1])})
		}
		for _, t := range at.empty {
			visit(naiveConfig{t, c.stack})
		}
		for _, call := range at.calls {
			if n.nodes[call.ret].need < unreachable {
				visit(naiveConfig{call.start, append(slices.Clone(c.stack), call)})
			}
		}
	}
	for _, c := range from {
		visit(c)
	}
	return all
}

// read returns the state after the text, which is dead if now is empty.
func (x naive) read(text []byte) naive {
	for _, b := range text {
		var next []naiveConfig
		for _, c := range x.now {
			for _, e := range x.n.nodes[c.node].edges {
				if e.lo <= b && b <= e.hi {
					next = append(next, naiveConfig{e.to, c.stack})
				}
			}
		}
		x.now = naiveClosure(x.n, x.nesting, next)
	}
	return x
}

func (x naive) accepting() bool {
	return slices.ContainsFunc(x.now, func(c naiveConfig) bool { return len(c.stack) == 0 && x.n.nodes[c.node].end })
}
