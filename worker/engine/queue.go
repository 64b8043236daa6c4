package engine

import "slices"

// order is a list of sequences kept in the order of [sequence.before].
type order []*sequence

func (o *order) insert(s *sequence) {
	if n := len(*o); n == 0 || (*o)[n-1].before(s) {
		*o = append(*o, s)
		return
	}
	i, _ := slices.BinarySearchFunc(*o, s, compare)
	*o = slices.Insert(*o, i, s)
}

func (o *order) remove(s *sequence) {
	if i, ok := slices.BinarySearchFunc(*o, s, compare); ok {
		*o = slices.Delete(*o, i, i+1)
	}
}

// last is the first to be preempted.
func (o order) last() *sequence { return o[len(o)-1] }
