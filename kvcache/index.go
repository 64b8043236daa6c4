package kvcache

import "math/bits"

// index finds a block by its hash. It is a table of buckets, each a chain through the blocks
// themselves: no allocation after construction, and several blocks may carry one hash.
//
// Which bucket a hash falls into depends on two secret odd factors, so that nobody who can choose
// prompts can aim them all at one bucket. Behaviour does not depend on them: only speed.
type index struct {
	buckets []BlockID // heads of chains
	shift   int
	k0, k1  uint64
	n       int // named blocks
}

func newIndex(blocks int, k0, k1 uint64) index {
	size := bits.Len(uint(max(2*blocks, 2) - 1)) // at most half full
	x := index{buckets: make([]BlockID, 1<<size), shift: 64 - size, k0: k0 | 1, k1: k1 | 1}
	for i := range x.buckets {
		x.buckets[i] = NoBlock
	}
	return x
}

func (x *index) bucket(h *Hash) *BlockID {
	lo, hi := h.words()
	return &x.buckets[(lo*x.k0+hi*x.k1)>>x.shift]
}

// find returns a block that carries h: the one named last, or NoBlock.
func (x *index) find(blocks []block, h *Hash) BlockID {
	for id := *x.bucket(h); id != NoBlock; id = blocks[id].chain {
		if blocks[id].hash == *h {
			return id
		}
	}
	return NoBlock
}

// other returns a block besides id that carries the same hash, or NoBlock.
func (x *index) other(blocks []block, id BlockID) BlockID {
	h := &blocks[id].hash
	for at := *x.bucket(h); at != NoBlock; at = blocks[at].chain {
		if at != id && blocks[at].hash == *h {
			return at
		}
	}
	return NoBlock
}

// insert adds id under the hash that it carries.
func (x *index) insert(blocks []block, id BlockID) {
	head := x.bucket(&blocks[id].hash)
	blocks[id].chain = *head
	*head = id
	x.n++
}

// remove takes id out. It reports false if id was not there.
func (x *index) remove(blocks []block, id BlockID) bool {
	for at := x.bucket(&blocks[id].hash); *at != NoBlock; at = &blocks[*at].chain {
		if *at == id {
			*at = blocks[id].chain
			blocks[id].chain = NoBlock
			x.n--
			return true
		}
	}
	return false
}
