package prefix

import "github.com/quire-serve/quire/kvcache"

// Match is how much of a prompt a worker holds: the blocks of the longest unbroken beginning, by the
// fastest medium that has each.
type Match struct {
	Worker             Worker
	Device, Host, Disk int32
}

// Blocks is the length of the beginning.
func (m Match) Blocks() int32 { return m.Device + m.Host + m.Disk }

// scratch is the memory of one lookup.
type scratch struct {
	// active are the seats that hold all blocks so far; holders those of a run of blocks, by medium.
	active  []uint64
	holders [media][]uint64
	// slower counts, by seat, the blocks that are found in host memory and on disk.
	slower [][2]int32
	sink   uint64
}

func (s *scratch) fit(words int) {
	if len(s.active) >= words {
		return
	}
	s.active = make([]uint64, words)
	for n := range s.holders {
		s.holders[n] = make([]uint64, words)
	}
	s.slower = make([][2]int32, 64*words)
}

const (
	// ahead is how many blocks are touched before they are looked at.
	ahead = 32
	// defaultStride is how far apart the blocks are that a lookup reads first.
	defaultStride = 8
)

// touch reads the entries where the search for every stride-th of the blocks begins, one behind the
// other without a branch between, so that the processor waits for many of them at once. A search that
// took them one by one would wait for memory at every block.
func (x *Index) touch(hashes []kvcache.Hash, stride int) {
	var sum uint64
	for n := 0; n < len(hashes); n += stride {
		k := keyOf(&hashes[n])
		t := &x.tables[k.table]
		sum += t.entries[t.home(k.lo)].lo
	}
	x.scratch.sink = sum
}

func (x *Index) holders(h *kvcache.Hash) [media]setID {
	k := keyOf(h)
	return x.tables[k.table].find(k).holders
}

// Match appends to dst one match for each worker that holds the first block of a prompt with these
// hashes, at least.
//
// It reads every eighth block, and those between where the holders of the two differ. Caches drop
// the ends of chains before their beginnings, so that holders which are the same at both ends have
// what is between; a worker that lacks just a piece between is taken to have it.
func (x *Index) Match(dst []Match, hashes []kvcache.Hash) []Match {
	if len(hashes) == 0 {
		return dst
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	s := &x.scratch
	s.fit(x.sets.words)
	last := x.holders(&hashes[0])
	run := int32(1) // Blocks with these holders so far.
	dst, any := x.narrow(dst, last, 0)
	n := 1
	for n < len(hashes) && any {
		if (n-1)%(ahead*x.stride) == 0 {
			from := min(n-1+x.stride, len(hashes)-1)
			x.touch(hashes[from:min(from+ahead*x.stride, len(hashes))], x.stride)
		}
		next := min(n-1+x.stride, len(hashes)-1)
		if x.holders(&hashes[next]) == last {
			run += int32(next - n + 1)
			n = next + 1
			continue
		}
		x.touch(hashes[n:next], 1)
		for ; n <= next && any; n++ {
			holders := x.holders(&hashes[n])
			if holders != last {
				x.book(last, run)
				dst, any = x.narrow(dst, holders, n)
				last, run = holders, 0
			}
			run++
		}
	}
	if any {
		x.book(last, run)
		each(s.active[:x.sets.words], func(seat int) { dst = append(dst, x.emit(seat, len(hashes))) })
	}
	if x.full {
		x.mark(hashes[:n])
	}
	return dst
}

// narrow leaves only those active that hold the block number n too, and appends the others' matches.
// any says whether some are left.
func (x *Index) narrow(dst []Match, holders [media]setID, n int) (_ []Match, any bool) {
	s := &x.scratch
	for medium, id := range holders {
		x.expand(s.holders[medium], id)
	}
	for w := range x.sets.words {
		have := s.holders[0][w] | s.holders[1][w] | s.holders[2][w]
		if n == 0 {
			s.active[w] = have &^ x.dead[w]
		} else if left := s.active[w] &^ have; left != 0 {
			one := [1]uint64{left}
			each(one[:], func(seat int) { dst = append(dst, x.emit(64*w+seat, n)) })
			s.active[w] &= have
		}
		any = any || s.active[w] != 0
	}
	return dst, any
}

func (x *Index) expand(bitmap []uint64, id setID) {
	switch {
	case id&setShared != 0:
		copy(bitmap, x.sets.bitmap(id))
	default:
		clear(bitmap)
		if id != 0 {
			seat := int(id) - 1
			bitmap[seat/64] = 1 << (seat % 64)
		}
	}
}

// book counts a run of blocks for those active that have them on slower media.
func (x *Index) book(holders [media]setID, run int32) {
	if holders[1] == 0 && holders[2] == 0 {
		return
	}
	s := &x.scratch
	for w := range x.sets.words {
		host := s.active[w] & s.holders[1][w] &^ s.holders[0][w]
		disk := s.active[w] & s.holders[2][w] &^ s.holders[0][w] &^ host
		for medium, word := range [2]uint64{host, disk} {
			one := [1]uint64{word}
			each(one[:], func(seat int) { s.slower[64*w+seat][medium] += run })
		}
	}
}

// emit is the match of a seat that holds so many blocks.
func (x *Index) emit(seat, blocks int) Match {
	slower := x.scratch.slower[seat]
	x.scratch.slower[seat] = [2]int32{}
	return Match{
		Worker: x.seats[seat].worker, Device: int32(blocks) - slower[0] - slower[1], Host: slower[0], Disk: slower[1],
	}
}
