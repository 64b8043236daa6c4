package grammar

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"unsafe"
)

// An automaton runs a network over all its ways at once. A configuration is a node and the stack
// of calls that it is in; a state is the set of configurations that the text so far leads to. Sets
// get numbers as they are met, and the step from number to number is kept in a table, so that each
// set is worked out once. A network without nesting has finitely many sets (this is then the usual
// lazy subset construction); with nesting there are as many as the texts need, and the tables are
// emptied when they have grown past their limit.
type automaton struct {
	*network
	limits Limits

	class   [256]uint8 // bytes that no edge tells apart share a class
	classes int
	sample  []byte // a byte of each class

	// All below is thrown away by reset. Frames are compared by identity within a generation.
	generation uint32
	frames     map[frameKey]*frame
	ids        map[string]int32
	states     []state
	next       []transition // [state][class]
	bytes      int

	// Scratch of add and intern.
	todo  []config
	seen  map[config]struct{}
	set   []config
	ended bool
	key   []byte

	// operation numbers the operations (one mask, one accepted token), and allowed is the work that
	// the one under way may still do. A step that it needs costs what working it out costs, whether
	// it is in the table or not, and each costs once: so whether an operation ends with ErrLimit is
	// a function of the text alone, and not of what others have asked for before.
	operation uint64
	allowed   int
	worked    int64 // what was really worked out, since the beginning
}

// A transition is the step from a state by a class of bytes.
type transition struct {
	to   int32 // unknown if not yet worked out
	cost int32
	// used is the newest operation that needed it.
	used uint64
}

type config struct {
	node  int32
	stack *frame
}

// A frame is a call in progress: where to go on after it, and below it the calls around it.
type frame struct {
	parent *frame
	ret    int32
	depth  int32 // calls that nest, this one included
	id     uint32
}

type frameKey struct {
	parent *frame
	ret    int32
	nests  bool
}

type state struct {
	configs []config
	// accepting: the text may end here.
	accepting bool
	mask      *mask
}

const (
	unknown int32 = -1
	dead    int32 = 0
)

func newAutomaton(n *network, limits Limits) *automaton {
	a := &automaton{network: n, limits: limits, seen: map[config]struct{}{}}
	var starts [257]bool
	starts[0] = true
	for i := range n.nodes {
		for _, e := range n.nodes[i].edges {
			starts[e.lo], starts[int(e.hi)+1] = true, true
		}
	}
	for c := range 256 {
		if starts[c] {
			a.sample = append(a.sample, byte(c))
		}
		a.class[c] = uint8(len(a.sample) - 1)
	}
	a.classes = len(a.sample)
	a.reset()
	return a
}

// reset forgets all states. States that requests hold become stale and are entered again by
// restore.
func (a *automaton) reset() {
	a.generation++
	a.frames = map[frameKey]*frame{}
	a.ids = map[string]int32{}
	a.states = nil
	a.next = nil
	a.bytes = 0
	a.set, a.ended = nil, false
	a.intern() // the empty set is the state dead
}

// full says that the tables should be emptied before the next operation.
func (a *automaton) full() bool { return a.bytes > a.limits.StateBytes }

// operate begins an operation.
func (a *automaton) operate() {
	a.operation++
	a.allowed = a.limits.Work
}

// initial returns the state before the first byte.
func (a *automaton) initial() (int32, error) {
	a.operate()
	a.begin()
	a.add(config{a.start, nil})
	return a.finish()
}

// restore enters a state of an earlier generation. It is no operation: it follows no more ways than
// were followed when the state was first met, so it cannot fail where that did not.
func (a *automaton) restore(configs []config, accepting bool) (int32, error) {
	a.allowed = math.MaxInt
	a.begin()
	a.ended = accepting
	for _, c := range configs {
		a.add(config{c.node, a.adopt(c.stack)})
	}
	return a.finish()
}

func (a *automaton) adopt(f *frame) *frame {
	if f == nil {
		return nil
	}
	parent := a.adopt(f.parent)
	return a.push(parent, f.ret, f.depth > depth(f.parent))
}

func depth(f *frame) int32 {
	if f == nil {
		return 0
	}
	return f.depth
}

// step returns the state after a byte of the class, and charges the operation for it.
func (a *automaton) step(from int32, class uint8) (int32, error) {
	at := int(from)*a.classes + int(class)
	t := a.next[at]
	switch {
	case t.used == a.operation:
		return t.to, nil
	case t.to != unknown:
		if a.allowed -= int(t.cost); a.allowed < 0 {
			return dead, a.overworked()
		}
		a.next[at].used = a.operation
		return t.to, nil
	}
	before := a.allowed
	a.begin()
	b := a.sample[class]
	for _, c := range a.states[from].configs {
		edges := a.nodes[c.node].edges
		a.allowed -= len(edges)
		for _, e := range edges {
			if e.lo <= b && b <= e.hi {
				a.add(config{e.to, c.stack})
			}
		}
	}
	to, err := a.finish()
	a.worked += int64(before - a.allowed)
	if err != nil {
		return dead, err
	}
	a.next[at] = transition{to: to, cost: int32(before - a.allowed), used: a.operation}
	return to, nil
}

func (a *automaton) overworked() error {
	return fmt.Errorf("%w: one token takes more than %d operations", ErrLimit, a.limits.Work)
}

func (a *automaton) begin() {
	a.todo, a.set, a.ended = a.todo[:0], a.set[:0], false
	if len(a.seen) > 4096 {
		a.seen = map[config]struct{}{}
	}
	clear(a.seen)
}

func (a *automaton) add(c config) { a.todo = append(a.todo, c) }

// finish follows the empty ways, calls and ends of what was added, and returns the state of all
// that waits for a byte then.
func (a *automaton) finish() (int32, error) {
	limit := int32(a.limits.Nesting)
	for len(a.todo) > 0 {
		c := a.todo[len(a.todo)-1]
		a.todo = a.todo[:len(a.todo)-1]
		n := &a.nodes[c.node]
		d := depth(c.stack)
		if d+n.need > limit {
			continue
		}
		if _, ok := a.seen[c]; ok {
			continue
		}
		if len(a.seen) >= a.limits.Ways {
			return dead, fmt.Errorf("%w: more than %d ways to read the text at once", ErrLimit, a.limits.Ways)
		}
		a.seen[c] = struct{}{}
		if a.allowed -= 1 + len(n.empty) + len(n.calls); a.allowed < 0 {
			return dead, a.overworked()
		}
		if n.end {
			if c.stack == nil {
				a.ended = true
			} else {
				a.add(config{c.stack.ret, c.stack.parent})
			}
		}
		for _, t := range n.empty {
			a.add(config{t, c.stack})
		}
		for _, call := range n.calls {
			if d+call.need(a.nodes) > limit {
				continue
			}
			if !call.nests && a.onlyEnds(call.ret) {
				a.add(config{call.start, c.stack}) // a last call needs no frame
				continue
			}
			a.add(config{call.start, a.push(c.stack, call.ret, call.nests)})
		}
		if len(n.edges) > 0 {
			a.set = append(a.set, c)
		}
	}
	// A set that is new is charged for as one that is not.
	if a.allowed -= a.classes/2 + len(a.set); a.allowed < 0 {
		return dead, a.overworked()
	}
	slices.SortFunc(a.set, func(x, y config) int {
		return cmp.Or(cmp.Compare(x.node, y.node), cmp.Compare(frameID(x.stack), frameID(y.stack)))
	})
	return a.intern(), nil
}

func (a *automaton) onlyEnds(id int32) bool {
	n := &a.nodes[id]
	return n.end && len(n.edges) == 0 && len(n.empty) == 0 && len(n.calls) == 0
}

func frameID(f *frame) uint32 {
	if f == nil {
		return 0
	}
	return f.id
}

func (a *automaton) push(parent *frame, ret int32, nests bool) *frame {
	k := frameKey{parent, ret, nests}
	if f, ok := a.frames[k]; ok {
		return f
	}
	f := &frame{parent: parent, ret: ret, depth: depth(parent), id: uint32(len(a.frames) + 1)}
	if nests {
		f.depth++
	}
	a.frames[k] = f
	a.bytes += int(unsafe.Sizeof(*f)+unsafe.Sizeof(k)) + 24
	return f
}

// intern returns the number of the set in a.set.
func (a *automaton) intern() int32 {
	a.key = a.key[:0]
	if a.ended {
		a.key = append(a.key, 1)
	}
	for _, c := range a.set {
		a.key = binary.LittleEndian.AppendUint32(a.key, uint32(c.node))
		a.key = binary.LittleEndian.AppendUint32(a.key, frameID(c.stack))
	}
	if id, ok := a.ids[string(a.key)]; ok {
		return id
	}
	id := int32(len(a.states))
	a.ids[string(a.key)] = id
	a.states = append(a.states, state{configs: slices.Clone(a.set), accepting: a.ended})
	for range a.classes {
		a.next = append(a.next, transition{to: unknown})
	}
	if id == dead {
		for i := range a.next {
			a.next[i].to = dead
		}
	}
	cost := len(a.key) + len(a.set)*int(unsafe.Sizeof(config{})) + int(unsafe.Sizeof(transition{}))*a.classes + int(unsafe.Sizeof(state{})) + 48
	a.bytes += cost
	return id
}
