package kvcache

import (
	"errors"
	"fmt"
)

// ErrEventsGone means that the events asked for are no longer in the buffer: start again from
// [Pool.Snapshot].
var ErrEventsGone = errors.New("kvcache: events no longer buffered")

// EventKind says what happened to blocks.
type EventKind uint8

const (
	// Stored: Hashes can be found on Medium now; the first follows Parent, each other the one
	// before it.
	Stored EventKind = iota + 1
	// Removed: Hashes are no longer on Medium.
	Removed
	// Cleared: nothing is on Medium any more.
	Cleared
	// Missed: events before this one were overwritten before they were drained. The consumer's view
	// is stale: it starts again from Snapshot.
	Missed
)

func (k EventKind) String() string {
	switch k {
	case Stored:
		return "stored"
	case Removed:
		return "removed"
	case Cleared:
		return "cleared"
	case Missed:
		return "missed"
	}
	return "unknown"
}

// Medium is where a block's content lies.
type Medium uint8

const (
	Device Medium = iota
	Host
	Disk
)

func (m Medium) String() string {
	switch m {
	case Device:
		return "device"
	case Host:
		return "host"
	case Disk:
		return "disk"
	}
	return "unknown"
}

// Event tells a prefix index elsewhere what this pool has. A chain's first parent is its [Root], by
// which the consumer knows the tenant and the adapter.
type Event struct {
	// Seq numbers the event's first block; an event of n blocks is followed by number Seq+n. A
	// Cleared or Missed event counts as one.
	Seq         uint64
	Kind        EventKind
	Medium      Medium
	Group       int // Config.Group
	BlockTokens int
	Parent      Hash // of a Stored event's first hash
	Hashes      []Hash
}

// Tokens is how many tokens the event's blocks hold.
func (e Event) Tokens() int { return len(e.Hashes) * e.BlockTokens }

// record is one block's event. Neighbours are put together when they are read, so that writing one
// is a store into a ring.
type record struct {
	kind         EventKind
	medium       Medium
	hash, parent Hash
}

// journal is a ring of the last records; record number seq is at ring[seq % len].
type journal struct {
	ring   []record
	next   uint64 // number of the next record; numbers start at 1
	cursor uint64 // next to drain
	hashes []Hash // backs the events read last
}

func newJournal(size int) *journal {
	return &journal{ring: make([]record, size), next: 1, cursor: 1}
}

func (j *journal) add(r record) {
	j.ring[j.next%uint64(len(j.ring))] = r
	j.next++
}

// oldest is the number of the oldest record that is still there.
func (j *journal) oldest() uint64 {
	if n := uint64(len(j.ring)); j.next > n {
		return max(j.next-n, 1)
	}
	return 1
}

// read appends the events of records [from, next) to dst.
func (j *journal) read(dst []Event, from uint64, c *Config) []Event {
	if n := int(j.next - from); cap(j.hashes) < n {
		j.hashes = make([]Hash, 0, n)
	}
	hashes := j.hashes[:0]
	first := len(dst)
	for seq := from; seq < j.next; seq++ {
		r := &j.ring[seq%uint64(len(j.ring))]
		if r.kind == Cleared {
			dst = append(dst, Event{Seq: seq, Kind: Cleared, Medium: r.medium, Group: c.Group, BlockTokens: c.BlockTokens})
			continue
		}
		hashes = append(hashes, r.hash)
		if len(dst) > first {
			e := &dst[len(dst)-1]
			chained := r.kind != Stored || len(e.Hashes) > 0 && e.Hashes[len(e.Hashes)-1] == r.parent
			if e.Kind == r.kind && e.Medium == r.medium && chained {
				e.Hashes = e.Hashes[:len(e.Hashes)+1] // the hash just appended
				continue
			}
		}
		dst = append(dst, Event{
			Seq: seq, Kind: r.kind, Medium: r.medium, Group: c.Group, BlockTokens: c.BlockTokens,
			Parent: r.parent, Hashes: hashes[len(hashes)-1:],
		})
	}
	return dst
}

// Events appends what happened since the last call to dst. The events' Hashes alias internal
// memory, valid until the next call of Events or EventsSince. With events off there are none.
func (p *Pool) Events(dst []Event) []Event {
	j := p.journal
	if j == nil {
		return dst
	}
	if oldest := j.oldest(); j.cursor < oldest {
		dst = append(dst, Event{Seq: j.cursor, Kind: Missed, Group: p.cfg.Group, BlockTokens: p.cfg.BlockTokens})
		j.cursor = oldest
	}
	dst = j.read(dst, j.cursor, &p.cfg)
	j.cursor = j.next
	return dst
}

// EventsSince appends the events from number seq on, whether drained or not, to dst: a consumer
// that lost some asks for them again. The same rule holds for Hashes as for Events. ErrEventsGone
// if the buffer no longer reaches back to seq.
func (p *Pool) EventsSince(dst []Event, seq uint64) ([]Event, error) {
	j := p.journal
	if j == nil {
		return dst, nil
	}
	if oldest := j.oldest(); seq < oldest || seq > j.next {
		return dst, fmt.Errorf("%w: asked for %d, have %d to %d", ErrEventsGone, seq, oldest, j.next-1)
	}
	return j.read(dst, seq, &p.cfg), nil
}

// Snapshot appends one Stored event for each hash on the device to dst and returns the number of
// the next event: a consumer that starts here continues with EventsSince(next).
func (p *Pool) Snapshot(dst []Event) (events []Event, next uint64) {
	if p.journal == nil {
		return dst, 0
	}
	p.EachName(0, len(p.blocks), func(h, parent Hash) {
		dst = append(dst, Event{
			Seq: p.journal.next, Kind: Stored, Group: p.cfg.Group, BlockTokens: p.cfg.BlockTokens,
			Parent: parent, Hashes: []Hash{h},
		})
	})
	return dst, p.journal.next
}

// EachName calls f for each hash that one of n blocks from first on carries, once for those that
// several do. A consumer that is told of all blocks so, in any number of parts, and of the events
// since the first part, knows what the pool has: being told the same twice changes nothing.
func (p *Pool) EachName(first BlockID, n int, f func(h, parent Hash)) {
	for i := int(first); i < min(int(first)+n, len(p.blocks)); i++ {
		b := &p.blocks[i]
		if b.hash != (Hash{}) && p.index.find(p.blocks, &b.hash) == BlockID(i) {
			f(b.hash, b.parent) // another block that carries it tells nothing
		}
	}
}

// RecordTier adds an event about a lower tier, in order with the pool's own.
func (p *Pool) RecordTier(kind EventKind, medium Medium, h, parent Hash) {
	if p.journal != nil {
		p.journal.add(record{kind: kind, medium: medium, hash: h, parent: parent})
	}
}
