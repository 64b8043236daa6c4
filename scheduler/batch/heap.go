package batch

// heap is a binary heap whose items know their place, so that any item can be moved or removed.
// The standard library's needs a type with five methods for each order that we keep.
type heap[T any] struct {
	items []T
	less  func(a, b T) bool
	// at points to where an item keeps its place; absent (-1) while it is not in the heap.
	at func(T) *int
}

const absent = -1

func (h *heap[T]) len() int { return len(h.items) }

func (h *heap[T]) top() T { return h.items[0] }

func (h *heap[T]) has(x T) bool { return *h.at(x) != absent }

func (h *heap[T]) push(x T) {
	*h.at(x) = len(h.items)
	h.items = append(h.items, x)
	h.up(len(h.items) - 1)
}

// remove takes x out; x must be in the heap.
func (h *heap[T]) remove(x T) {
	i := *h.at(x)
	last := len(h.items) - 1
	h.swap(i, last)
	var none T
	h.items[last] = none
	h.items = h.items[:last]
	*h.at(x) = absent
	if i < last {
		h.fix(h.items[i])
	}
}

// fix restores the order after x changed.
func (h *heap[T]) fix(x T) {
	i := *h.at(x)
	if !h.down(i) {
		h.up(i)
	}
}

func (h *heap[T]) swap(i, j int) {
	h.items[i], h.items[j] = h.items[j], h.items[i]
	*h.at(h.items[i]), *h.at(h.items[j]) = i, j
}

func (h *heap[T]) up(i int) {
	for i > 0 {
		parent := (i - 1) / 2
		if !h.less(h.items[i], h.items[parent]) {
			return
		}
		h.swap(i, parent)
		i = parent
	}
}

func (h *heap[T]) down(i int) (moved bool) {
	for {
		child := 2*i + 1
		if child >= len(h.items) {
			return moved
		}
		if child+1 < len(h.items) && h.less(h.items[child+1], h.items[child]) {
			child++
		}
		if !h.less(h.items[child], h.items[i]) {
			return moved
		}
		h.swap(i, child)
		i, moved = child, true
	}
}
