package prefix

import (
	"errors"
	"fmt"
	"sync"

	"github.com/quire-serve/quire/kvcache"
)

// Settings of an Index. Zero values mean the defaults.
type Settings struct {
	// Bytes bounds the index's memory. Default DefaultBytes, some five million blocks.
	Bytes int64
}

const (
	// DefaultBytes and LeastBytes of Settings; the least holds the empty index.
	DefaultBytes = 256 << 20
	LeastBytes   = 1 << 20
	// evictedShare is the part of a full table that goes at a time.
	evictedShare = 16
	// MaxWorkers bounds the workers of an index.
	MaxWorkers = 1 << slotBits
	// lockedBlocks is how many blocks are updated at a time: lookups wait no longer.
	lockedBlocks = 256
	// maxDead bounds the seats that wait for their entries to go.
	maxDead = 256
)

// Validate says which field is wrong, and its limit.
func (s Settings) Validate() error {
	if s.Bytes != 0 && s.Bytes < LeastBytes {
		return fmt.Errorf("prefix: Bytes is %d; the least is %d", s.Bytes, LeastBytes)
	}
	return nil
}

// ErrTooManyWorkers means that MaxWorkers are known.
var ErrTooManyWorkers = errors.New("prefix: too many workers")

// Index knows which blocks workers hold. It is safe for concurrent use.
type Index struct {
	mu     sync.Mutex
	limit  int64
	stride int
	tables [tables]table
	slots  int64 // Of all tables.
	sets   sets
	// workers are by slot; those in freeSlots are not known.
	workers   []worker
	freeSlots []int
	// seats are by place in the bitmaps. dead marks those whose worker has left or started anew, with
	// entries that still name them; sweep is the table that is looked through for these next.
	seats     []seat
	freeSeats []int
	dead      []uint64
	deadSeats int
	sweep     int
	blocks    int64
	// full says that tables cannot grow any more: what is matched is marked from then on.
	full    bool
	evicted uint64
	dropped uint64
	scratch scratch
}

// Worker names a worker to the index. No two have the same name, until a slot was used 32,767 times.
type Worker int32

const (
	slotBits      = 16
	maxGeneration = 1<<15 - 1
)

// Slot is a small number that no other worker has at the same time.
func (w Worker) Slot() int { return int(w & (1<<slotBits - 1)) }

type worker struct {
	name       Worker
	generation int
	known      bool
	seat       int
}

type seat struct {
	worker Worker
	// blocks counts the entries that name the seat, by medium.
	blocks [media]int64
}

// New returns an empty index. Settings must be valid.
func New(s Settings) *Index {
	if s.Bytes == 0 {
		s.Bytes = DefaultBytes
	}
	x := &Index{limit: s.Bytes, stride: defaultStride, sets: newSets(1), dead: make([]uint64, 1)}
	for n := range x.tables {
		x.tables[n] = newTable()
	}
	x.slots = tables * firstEntries
	return x
}

// Add makes room for a worker.
func (x *Index) Add() (Worker, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	slot := len(x.workers)
	if n := len(x.freeSlots); n > 0 {
		slot = x.freeSlots[n-1]
		x.freeSlots = x.freeSlots[:n-1]
	} else {
		if slot >= MaxWorkers {
			return 0, ErrTooManyWorkers
		}
		x.workers = append(x.workers, worker{})
	}
	w := &x.workers[slot]
	// Generations begin at 1, so that the zero Worker is nobody.
	*w = worker{name: Worker(slot) | Worker(w.generation%maxGeneration+1)<<slotBits, generation: w.generation + 1, known: true}
	w.seat = x.sit(w.name)
	return w.name, nil
}

// find returns what is known of a worker; nil if it was removed.
func (x *Index) find(name Worker) *worker {
	if slot := name.Slot(); slot < len(x.workers) {
		if w := &x.workers[slot]; w.known && w.name == name {
			return w
		}
	}
	return nil
}

// sit finds a worker a seat that no entry names.
func (x *Index) sit(name Worker) (at int) {
	if n := len(x.freeSeats); n > 0 {
		at = x.freeSeats[n-1]
		x.freeSeats = x.freeSeats[:n-1]
	} else {
		at = len(x.seats)
		x.seats = append(x.seats, seat{})
		if words := at/64 + 1; words > x.sets.words {
			words = max(words, 2*x.sets.words)
			if !x.room(int64(cap(x.sets.heads)*(words-x.sets.words)) * 8) {
				x.clear()
			}
			x.sets.widen(words)
			x.dead = append(x.dead, make([]uint64, words-len(x.dead))...)
		}
	}
	x.seats[at].worker = name
	return at
}

// clear forgets what all workers hold.
func (x *Index) clear() {
	x.dropped += uint64(x.blocks)
	x.blocks, x.slots, x.full = 0, tables*firstEntries, false
	for n := range x.tables {
		x.tables[n] = newTable()
	}
	x.sets = newSets(x.sets.words)
	for n := range x.seats {
		x.seats[n].blocks = [media]int64{}
	}
	x.freeDead()
}

// rise gives up a seat. It is free once no entry names it.
func (x *Index) rise(at int) {
	for x.deadSeats >= maxDead {
		x.sweepTable()
	}
	s := &x.seats[at]
	if s.blocks == [media]int64{} {
		x.freeSeats = append(x.freeSeats, at)
		return
	}
	x.dead[at/64] |= 1 << (at % 64)
	x.deadSeats++
}

// Remove forgets a worker and all that it holds. What is said of it from then on counts for nothing.
func (x *Index) Remove(name Worker) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if w := x.find(name); w != nil {
		w.known = false
		x.freeSlots = append(x.freeSlots, name.Slot())
		x.rise(w.seat)
	}
}

// Reset forgets what a worker holds.
func (x *Index) Reset(name Worker) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if w := x.find(name); w != nil && x.seats[w.seat].blocks != [media]int64{} {
		x.rise(w.seat)
		w.seat = x.sit(name)
	}
}

// Stored notes that a worker holds blocks on a medium.
func (x *Index) Stored(name Worker, medium kvcache.Medium, hashes []kvcache.Hash) {
	x.update(name, medium, hashes, true)
}

// Removed notes that a worker does not hold blocks on a medium any more.
func (x *Index) Removed(name Worker, medium kvcache.Medium, hashes []kvcache.Hash) {
	x.update(name, medium, hashes, false)
}

func (x *Index) update(name Worker, medium kvcache.Medium, hashes []kvcache.Hash, holds bool) {
	for len(hashes) > 0 {
		n := min(len(hashes), lockedBlocks)
		x.mu.Lock()
		if w := x.find(name); w != nil {
			x.change(w.seat, int(medium), hashes[:n], holds)
		}
		if x.deadSeats > 0 {
			x.sweepTable()
		}
		x.mu.Unlock()
		hashes = hashes[n:]
	}
}

// change brings blocks to the state of being held on a medium, or not. Neighbours in a chain mostly
// have the same holders before, and then have the same ones after.
func (x *Index) change(seat, medium int, hashes []kvcache.Hash, holds bool) {
	var from, to setID
	x.touch(hashes, 1)
	for n := range hashes {
		k := keyOf(&hashes[n])
		t := &x.tables[k.table]
		e := t.find(k)
		isNew := e.free()
		if isNew {
			if !holds {
				continue
			}
			if t.full() {
				if grown := int64(len(t.entries)) * entryBytes; x.room(grown) && x.slots*entryBytes+grown <= x.limit-x.limit/4 {
					x.slots += int64(len(t.entries))
					t.grow()
				} else {
					x.full = true
					x.evict(t)
					from = 0 // Nobody may refer to it any more.
				}
				e = t.find(k)
			}
		}
		old := e.holders[medium]
		if old == 0 || old != from {
			if x.sets.has(old, seat) == holds {
				continue
			}
			result, ok := x.sets.flip(old, seat, x.room)
			if !ok {
				x.dropped++
				if !holds {
					x.forget(t, e)
				}
				x.full = true
				x.evict(t) // The next one may find room.
				from = 0
				continue
			}
			from, to = old, result
		} else {
			x.sets.drop(old, 1)
			x.sets.keep(to, 1)
		}
		if from&setShared != 0 && x.sets.heads[from&^setShared].refs == 0 {
			from = 0 // Its number may be given to another set.
		}
		e.holders[medium] = to
		delta := int64(1)
		if !holds {
			delta = -1
		}
		x.seats[seat].blocks[medium] += delta
		switch {
		case isNew:
			e.lo, e.hi = k.lo, k.hi
			t.used++
			x.blocks++
		case e.free():
			x.removeEntry(t, e)
		}
	}
}

// evict makes room in a table: blocks go that were not matched since the last time around, those that are
// named for the longest first. Tables share all blocks evenly, so that what goes is what would go of all.
func (x *Index) evict(t *table) {
	mask := len(t.entries) - 1
	left := max(1, t.used/evictedShare)
	for steps := 2 * len(t.entries); left > 0 && steps > 0; steps-- {
		e := &t.entries[t.hand&mask]
		if e.free() || e.hi&matched != 0 {
			e.hi &^= matched
			t.hand = (t.hand + 1) & mask
			continue
		}
		x.forget(t, e) // Another one may take its place.
		x.evicted++
		left--
	}
}

// mark notes that blocks were matched.
func (x *Index) mark(hashes []kvcache.Hash) {
	for n := range hashes {
		k := keyOf(&hashes[n])
		if e := x.tables[k.table].find(k); !e.free() {
			e.hi |= matched
		}
	}
}

// room says whether so many more bytes are within the limit.
func (x *Index) room(bytes int64) bool {
	return x.slots*entryBytes+x.sets.bytes()+bytes <= x.limit
}

// removeEntry takes out an entry that has no holders left.
func (x *Index) removeEntry(t *table, e *entry) {
	mask := len(t.entries) - 1
	at := t.home(e.lo)
	for &t.entries[at] != e {
		at = (at + 1) & mask
	}
	t.remove(at)
	x.blocks--
}

// forget drops an entry whole: there is no room to say who still holds it.
func (x *Index) forget(t *table, e *entry) {
	for medium, id := range e.holders {
		x.eachHolder(id, func(seat int) { x.seats[seat].blocks[medium]-- })
		x.sets.drop(id, 1)
	}
	e.holders = [media]setID{}
	x.removeEntry(t, e)
	x.freeDead()
}

func (x *Index) eachHolder(id setID, f func(seat int)) {
	switch {
	case id == 0:
	case id&setShared == 0:
		f(int(id) - 1)
	default:
		each(x.sets.bitmap(id), f)
	}
}

// Cleared notes that a worker holds nothing on a medium any more.
func (x *Index) Cleared(name Worker, medium kvcache.Medium) {
	var mask []uint64
	for n := range x.tables {
		x.mu.Lock()
		if w := x.find(name); w != nil && x.seats[w.seat].blocks[medium] > 0 {
			mask = append(mask[:0], make([]uint64, x.sets.words)...)
			mask[w.seat/64] = 1 << (w.seat % 64)
			x.unseat(&x.tables[n], int(medium), mask)
		}
		x.mu.Unlock()
	}
}

// sweepTable takes dead seats out of the next table.
func (x *Index) sweepTable() {
	t := &x.tables[x.sweep]
	x.sweep = (x.sweep + 1) % tables
	for medium := range media {
		x.unseat(t, medium, x.dead)
	}
	x.freeDead()
}

// freeDead frees the dead seats that no entry names any more.
func (x *Index) freeDead() {
	if x.deadSeats == 0 {
		return
	}
	each(x.dead, func(at int) {
		if x.seats[at].blocks == [media]int64{} {
			x.dead[at/64] &^= 1 << (at % 64)
			x.deadSeats--
			x.freeSeats = append(x.freeSeats, at)
		}
	})
}

// unseat takes the seats of a mask out of a table's entries.
func (x *Index) unseat(t *table, medium int, mask []uint64) {
	for at := 0; at < len(t.entries); {
		e := &t.entries[at]
		seat := x.sets.first(e.holders[medium], mask)
		if seat < 0 {
			at++
			continue // Before, the same place is looked at again: it may name more, or be another's.
		}
		id, ok := x.sets.flip(e.holders[medium], seat, x.room)
		if !ok {
			x.dropped++
			x.forget(t, e)
			continue
		}
		e.holders[medium] = id
		x.seats[seat].blocks[medium]--
		if e.free() {
			t.remove(at)
			x.blocks--
		}
	}
}

// Stats of an index.
type Stats struct {
	// Blocks that some worker holds, and the bytes that they and the sets of their holders take.
	Blocks, Bytes int64
	// Sets of more than one worker.
	Sets int
	// Evicted blocks made room for others. Dropped updates had no room to say who holds a block.
	Evicted, Dropped uint64
}

// Stats returns the current numbers.
func (x *Index) Stats() Stats {
	x.mu.Lock()
	defer x.mu.Unlock()
	return Stats{
		Blocks: x.blocks, Bytes: x.slots*entryBytes + x.sets.bytes(),
		Sets: len(x.sets.heads) - len(x.sets.unused), Evicted: x.evicted, Dropped: x.dropped,
	}
}
