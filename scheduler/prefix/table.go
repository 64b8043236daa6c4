package prefix

import (
	"encoding/binary"
	"math/bits"

	"github.com/quire-serve/quire/kvcache"
)

// media are those of kvcache.Medium.
const media = 3

// entry is a block that some worker holds: 95 bits of its hash (its table says eight more), whether it was
// matched of late, and who holds it on each medium. An entry without holders is a free slot.
type entry struct {
	lo      uint64
	hi      uint32
	holders [media]setID
}

const entryBytes = 24

// matched is the bit of hi that says that the block was matched since the hand of evict passed it.
const matched uint32 = 1 << 31

func (e *entry) free() bool { return e.holders == [media]setID{} }

// key is a hash cut up: lo and hi are kept, table picks the table.
type key struct {
	lo    uint64
	hi    uint32
	table uint8
}

func keyOf(h *kvcache.Hash) key {
	hi := binary.LittleEndian.Uint64(h[8:])
	return key{lo: binary.LittleEndian.Uint64(h[:8]), hi: uint32(hi) &^ matched, table: uint8(hi >> 56)}
}

// tables is how many there are: one that grows moves its own entries only, so that no update waits
// for all of them.
const tables = 256

// table is a hash table with linear probing. Removing moves later entries up, so that there are no
// tombstones. It grows at four fifths full.
type table struct {
	entries []entry
	used    int
	hand    int
	shift   uint8 // 64 less the bits of a place
}

const firstEntries = 16

func newTable() table {
	return table{entries: make([]entry, firstEntries), shift: uint8(64 - bits.TrailingZeros(firstEntries))}
}

// home is where the search for a block begins.
func (t *table) home(lo uint64) int { return int(lo >> t.shift) }

// find returns the block's entry, or the free slot where it belongs.
func (t *table) find(k key) *entry {
	mask := len(t.entries) - 1
	for at := t.home(k.lo); ; at = (at + 1) & mask {
		e := &t.entries[at]
		if e.lo == k.lo && e.hi&^matched == k.hi || e.free() {
			return e
		}
	}
}

// full says that the table must grow before another entry.
func (t *table) full() bool { return (t.used+1)*5 > len(t.entries)*4 }

func (t *table) grow() {
	old := t.entries
	t.entries = make([]entry, 2*len(old))
	t.shift--
	for i := range old {
		if !old[i].free() {
			*t.find(key{lo: old[i].lo, hi: old[i].hi &^ matched}) = old[i]
		}
	}
}

// remove frees the slot at a place, and moves up the entries behind it that have their home at it or
// before.
func (t *table) remove(at int) {
	mask := len(t.entries) - 1
	t.used--
	for next := (at + 1) & mask; !t.entries[next].free(); next = (next + 1) & mask {
		if home := t.home(t.entries[next].lo); (next-home)&mask >= (next-at)&mask {
			t.entries[at] = t.entries[next]
			at = next
		}
	}
	t.entries[at] = entry{}
}
