package batch

// need is what a request takes of a worker, by dimension; or, negated, the room that a worker has. In
// both the lower number in every dimension is the easier match.
type need [5]int32

// The dimensions of a need.
const (
	// needSequences is its choices.
	needSequences = iota
	// needTokens must be computed and held at its start, those of all choices together.
	needTokens
	// needPrompt is one above the tokens of the longest choice at its start; needLength its longest
	// choice at its end.
	needPrompt
	needLength
	// needOutput bounds the tokens that each choice has still to generate.
	needOutput
)

// least lowers each dimension to the other's.
func (n *need) least(other *need) {
	for d := range n {
		n[d] = min(n[d], other[d])
	}
}

// covers says whether whatever has no room for n has none for the other either.
func (n *need) covers(other *need) bool {
	for d := range n {
		if n[d] > other[d] {
			return false
		}
	}
	return true
}

// tree keeps values in order. Every node knows the least need of each dimension below it, so that the
// first value that fits is found without a look at those that do not: the naive way, to try one after
// the other, takes a pass over a hundred thousand that wait for each one that is bound.
//
// It is a treap: a search tree by value and a heap by rank, whose ranks are drawn. Values hold their
// node, so that nothing is allocated.
type tree[T any] struct {
	root *node[T]
	less func(a, b T) bool
	// at points to a value's node.
	at    func(T) *node[T]
	drawn uint64
}

type node[T any] struct {
	value               T
	own, least          need
	size                int
	rank                uint64
	left, right, parent *node[T]
}

func (t *tree[T]) len() int {
	if t.root == nil {
		return 0
	}
	return t.root.size
}

func (t *tree[T]) has(x T) bool { return t.at(x).size > 0 }

// sum brings a node up to date with its children.
func (n *node[T]) sum() {
	n.least, n.size = n.own, 1
	if n.left != nil {
		n.least.least(&n.left.least)
		n.size += n.left.size
	}
	if n.right != nil {
		n.least.least(&n.right.least)
		n.size += n.right.size
	}
}

func (n *node[T]) sumUp() {
	for ; n != nil; n = n.parent {
		n.sum()
	}
}

// insert puts in a value that is not there.
func (t *tree[T]) insert(x T, own need) {
	n := t.at(x)
	t.drawn++
	*n = node[T]{value: x, own: own, least: own, size: 1, rank: draw(t.drawn)}
	at := &t.root
	for *at != nil {
		n.parent = *at
		if t.less(x, (*at).value) {
			at = &(*at).left
		} else {
			at = &(*at).right
		}
	}
	*at = n
	for n.parent != nil && n.rank > n.parent.rank {
		t.rotate(n)
	}
	n.parent.sumUp()
}

// rotate turns a node and its parent around.
func (t *tree[T]) rotate(n *node[T]) {
	p, above := n.parent, n.parent.parent
	if p.left == n {
		p.left = n.right
		if n.right != nil {
			n.right.parent = p
		}
		n.right = p
	} else {
		p.right = n.left
		if n.left != nil {
			n.left.parent = p
		}
		n.left = p
	}
	n.parent, p.parent = above, n
	t.hang(above, p, n)
	p.sum()
	n.sum()
}

// hang puts a node, or none, where another one hung.
func (t *tree[T]) hang(above, old, n *node[T]) {
	switch {
	case above == nil:
		t.root = n
	case above.left == old:
		above.left = n
	default:
		above.right = n
	}
}

// remove takes out a value that is there. Its order may have changed.
func (t *tree[T]) remove(x T) {
	n := t.at(x)
	for n.left != nil && n.right != nil {
		if n.left.rank > n.right.rank {
			t.rotate(n.left)
		} else {
			t.rotate(n.right)
		}
	}
	child := n.left
	if child == nil {
		child = n.right
	}
	if child != nil {
		child.parent = n.parent
	}
	t.hang(n.parent, n, child)
	n.parent.sumUp()
	*n = node[T]{}
}

// update gives a value that is there another need, and its place if its order changed.
func (t *tree[T]) update(x T, own need) {
	n := t.at(x)
	before, after := n.beside(func(n *node[T]) (*node[T], *node[T]) { return n.left, n.right }),
		n.beside(func(n *node[T]) (*node[T], *node[T]) { return n.right, n.left })
	if before != nil && !t.less(before.value, x) || after != nil && !t.less(x, after.value) {
		t.remove(x)
		t.insert(x, own)
		return
	}
	n.own = own
	for least := n.least; n != nil; n = n.parent {
		if n.sum(); n.least == least {
			return // What is above does not change.
		}
		if n.parent != nil {
			least = n.parent.least
		}
	}
}

// beside is a node's neighbour on the near side of its children.
func (n *node[T]) beside(children func(*node[T]) (near, far *node[T])) *node[T] {
	if next, _ := children(n); next != nil {
		for {
			_, far := children(next)
			if far == nil {
				return next
			}
			next = far
		}
	}
	for ; n.parent != nil; n = n.parent {
		if _, far := children(n.parent); far == n {
			return n.parent
		}
	}
	return nil
}

// first is the first value in order that is wanted. may says of the least need among some values
// whether one of them could be: false only if none is.
func (t *tree[T]) first(may func(least *need) bool, wanted func(T) bool) (x T, ok bool) {
	if n := t.root.first(may, wanted); n != nil {
		return n.value, true
	}
	return x, false
}

func (n *node[T]) first(may func(*need) bool, wanted func(T) bool) *node[T] {
	if n == nil || !may(&n.least) {
		return nil
	}
	if found := n.left.first(may, wanted); found != nil {
		return found
	}
	if wanted(n.value) {
		return n
	}
	return n.right.first(may, wanted)
}

// count is how many values in order are before the first that is not wanted.
func (t *tree[T]) count(wanted func(T) bool) int {
	before := 0
	for n := t.root; n != nil; {
		if !wanted(n.value) {
			n = n.left
			continue
		}
		before++
		if n.left != nil {
			before += n.left.size
		}
		n = n.right
	}
	return before
}

// all goes through the values in order.
func (t *tree[T]) all(yield func(T) bool) { t.root.all(yield) }

func (n *node[T]) all(yield func(T) bool) bool {
	return n == nil || n.left.all(yield) && yield(n.value) && n.right.all(yield)
}
