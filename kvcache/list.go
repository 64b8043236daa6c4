package kvcache

// BlockID is a block of the device's memory, from 0 to Config.Blocks-1.
type BlockID int32

// NoBlock stands in a block table where a block was given back: it lay wholly behind the attention
// window, and no kernel may read there. It also ends lists.
const NoBlock BlockID = -1

// state says which of the pool's books holds a block.
//
//	        take                    name
//	free ─────────▶ referenced ───────────────▶ referenced, named
//	  ▲                 │ ▲                          │
//	  │    last release │ │ hit          last release │
//	  ├─────────────────┘ └────────── cached ◀────────┘
//	  └──────────── evict ──────────────┘
//
// Any of them may become quarantined, for good, when the books disagree about it.
type state uint8

const (
	stateFree state = iota + 1
	stateCached
	stateReferenced
	stateQuarantined
)

func (s state) String() string {
	switch s {
	case stateFree:
		return "free"
	case stateCached:
		return "cached"
	case stateReferenced:
		return "referenced"
	case stateQuarantined:
		return "quarantined"
	}
	return "unknown"
}

// block is a block's entry in the books: one cache line.
type block struct {
	hash   Hash // zero: no name
	parent Hash
	step   uint64  // the step that named it
	writer uint32  // serial of the sequence that took it last
	refs   int32   // block tables that hold it
	prev   BlockID // neighbours in a list
	next   BlockID
	chain  BlockID // next block in its index bucket
	state  state
	tenant uint16 // of the sequence that named it
}

// list is a doubly linked list through blocks' own prev and next: removal from the middle is O(1)
// and nothing is allocated.
type list struct {
	head, tail BlockID
	n          int
}

func newList() list { return list{head: NoBlock, tail: NoBlock} }

func (l *list) pushFront(blocks []block, id BlockID) {
	b := &blocks[id]
	b.prev, b.next = NoBlock, l.head
	if l.head == NoBlock {
		l.tail = id
	} else {
		blocks[l.head].prev = id
	}
	l.head = id
	l.n++
}

func (l *list) pushBack(blocks []block, id BlockID) {
	b := &blocks[id]
	b.prev, b.next = l.tail, NoBlock
	if l.tail == NoBlock {
		l.head = id
	} else {
		blocks[l.tail].next = id
	}
	l.tail = id
	l.n++
}

func (l *list) remove(blocks []block, id BlockID) {
	b := &blocks[id]
	if b.prev == NoBlock {
		l.head = b.next
	} else {
		blocks[b.prev].next = b.next
	}
	if b.next == NoBlock {
		l.tail = b.prev
	} else {
		blocks[b.next].prev = b.prev
	}
	b.prev, b.next = NoBlock, NoBlock
	l.n--
}

// popFront removes the first block. It returns NoBlock if there is none.
func (l *list) popFront(blocks []block) BlockID {
	id := l.head
	if id != NoBlock {
		l.remove(blocks, id)
	}
	return id
}
