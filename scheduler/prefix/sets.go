package prefix

import (
	"math/bits"
	"slices"
)

// setID names a set of seats (a seat is a worker's place in the bitmaps): 0 is the empty one, seat+1
// the set of one seat, and with setShared the number of a bitmap.
type setID uint32

const setShared setID = 1 << 31

func single(seat int) setID { return setID(seat + 1) }

// sets holds the bitmaps. Equal sets have one id, so that they are compared by it; a set lives as
// long as entries refer to it.
type sets struct {
	// words is the length of a bitmap; set n has bitmaps[n*words:][:words].
	words   int
	bitmaps []uint64
	heads   []setHead
	byHash  map[uint64]setID
	unused  []setID
	scratch []uint64
}

type setHead struct {
	// hash is the sum (exclusive or) of its members' random numbers.
	hash uint64
	refs uint32
	size uint32
	// next is another set with the same hash.
	next setID
}

// setBytes is what a shared set takes beside its bitmap: its head and its place in byHash.
const setBytes = 24 + 24

func newSets(words int) sets {
	return sets{words: words, scratch: make([]uint64, words), byHash: map[uint64]setID{}}
}

// random is a seat's number in hashes of sets (SplitMix64).
func random(seat int) uint64 {
	n := uint64(seat+1) * 0x9e3779b97f4a7c15
	n = (n ^ n>>30) * 0xbf58476d1ce4e5b9
	n = (n ^ n>>27) * 0x94d049bb133111eb
	return n ^ n>>31
}

func (s *sets) bytes() int64 {
	return int64(cap(s.bitmaps))*8 + int64(cap(s.heads))*setBytes
}

// widen lengthens every bitmap.
func (s *sets) widen(words int) {
	wide := make([]uint64, len(s.heads)*words, cap(s.heads)*words)
	for n := range s.heads {
		copy(wide[n*words:], s.bitmap(setID(n)))
	}
	s.words, s.bitmaps, s.scratch = words, wide, make([]uint64, words)
}

func (s *sets) bitmap(id setID) []uint64 {
	n := int(id&^setShared) * s.words
	return s.bitmaps[n : n+s.words]
}

func (s *sets) has(id setID, seat int) bool {
	if id&setShared == 0 {
		return id == single(seat)
	}
	return s.bitmap(id)[seat/64]>>(seat%64)&1 == 1
}

// first is the first seat of the set that is in the mask; -1 if there is none.
func (s *sets) first(id setID, mask []uint64) int {
	switch {
	case id == 0:
	case id&setShared == 0:
		if seat := int(id) - 1; mask[seat/64]>>(seat%64)&1 == 1 {
			return seat
		}
	default:
		for n, word := range s.bitmap(id) {
			if word &= mask[n]; word != 0 {
				return 64*n + bits.TrailingZeros64(word)
			}
		}
	}
	return -1
}

// flip is the set with the seat put in, or taken out if it is there. The caller refers to the result,
// and no more to id. ok is false if the result is a new bitmap and the caller has no room.
func (s *sets) flip(id setID, seat int, room func(bytes int64) bool) (result setID, ok bool) {
	if id == 0 {
		return single(seat), true
	}
	if id == single(seat) {
		return 0, true
	}
	clear(s.scratch)
	hash, size := random(seat), 0
	if id&setShared == 0 {
		other := int(id) - 1
		s.scratch[other/64] |= 1 << (other % 64)
		hash ^= random(other)
		size = 1
	} else {
		copy(s.scratch, s.bitmap(id))
		hash ^= s.heads[id&^setShared].hash
		size = int(s.heads[id&^setShared].size)
	}
	s.scratch[seat/64] ^= 1 << (seat % 64)
	if s.scratch[seat/64]>>(seat%64)&1 == 1 {
		size++
	} else {
		size--
	}
	result, ok = s.intern(hash, size, room)
	if ok {
		s.drop(id, 1)
	}
	return result, ok
}

// intern finds or makes the set in scratch, and refers to it once.
func (s *sets) intern(hash uint64, size int, room func(bytes int64) bool) (setID, bool) {
	switch size {
	case 0:
		return 0, true
	case 1:
		for n, word := range s.scratch {
			if word != 0 {
				return single(64*n + bits.TrailingZeros64(word)), true
			}
		}
	}
	first := s.byHash[hash]
	for id := first; id != 0; id = s.heads[id&^setShared].next {
		if slices.Equal(s.bitmap(id), s.scratch) {
			s.heads[id&^setShared].refs++
			return id, true
		}
	}
	head := setHead{hash: hash, refs: 1, size: uint32(size), next: first}
	var id setID
	if n := len(s.unused); n > 0 {
		id = s.unused[n-1]
		s.unused = s.unused[:n-1]
		s.heads[id&^setShared] = head
		copy(s.bitmap(id), s.scratch)
	} else {
		if len(s.heads) == cap(s.heads) {
			// As much again, at once, so that what it takes is known.
			more := max(16, len(s.heads))
			if !room(int64(more) * (setBytes + 8*int64(s.words))) {
				return 0, false
			}
			more += len(s.heads)
			s.heads = append(make([]setHead, 0, more), s.heads...)
			s.bitmaps = append(make([]uint64, 0, more*s.words), s.bitmaps...)
		}
		id = setShared | setID(len(s.heads))
		s.heads = append(s.heads, head)
		s.bitmaps = append(s.bitmaps, s.scratch...)
	}
	s.byHash[hash] = id
	return id, true
}

// keep adds references to a set; drop ends some.
func (s *sets) keep(id setID, n uint32) {
	if id&setShared != 0 {
		s.heads[id&^setShared].refs += n
	}
}

func (s *sets) drop(id setID, n uint32) {
	if id&setShared == 0 {
		return
	}
	head := &s.heads[id&^setShared]
	head.refs -= n
	if head.refs > 0 {
		return
	}
	first := s.byHash[head.hash]
	if first == id {
		if head.next == 0 {
			delete(s.byHash, head.hash)
		} else {
			s.byHash[head.hash] = head.next
		}
	} else {
		for at := first; ; at = s.heads[at&^setShared].next {
			if h := &s.heads[at&^setShared]; h.next == id {
				h.next = head.next
				break
			}
		}
	}
	s.unused = append(s.unused, id)
}

// each calls f with every seat of the bitmap.
func each(bitmap []uint64, f func(seat int)) {
	for n, word := range bitmap {
		for ; word != 0; word &= word - 1 {
			f(64*n + bits.TrailingZeros64(word))
		}
	}
}
