package batch

import "github.com/quire-serve/quire/kvcache"

// A promise is a prefix that a worker does not hold yet but was sent a prompt with: requests with
// the same beginning that come in a burst find it before the worker's cache events do. A promise
// ends promiseMS after the prompt should have been computed; by then events speak for themselves.
//
// A prompt leaves promises at a few of its lengths only (marks), so that the promises of a prompt of
// 8k tokens are some seventy, not 512.
const (
	promiseMS = 2000
	// promisesKept bounds the promises; the oldest go first.
	promisesKept = 1 << 15
)

type promise struct {
	hash    kvcache.Hash
	member  *member
	untilMS int64
	// next is the promise before this one with the same hash, plus one; 0 is none.
	next int32
}

type promises struct {
	ring []promise
	next int
	// heads finds the newest promise of a hash: its place in ring, plus one.
	heads map[kvcache.Hash]int32
}

type promised struct {
	member *member
	blocks int32
}

// mark is the next length after n at which a prompt leaves a promise, in blocks: every one up to 4,
// then every 8th, and from 512 on every 64th.
func mark(n int) int {
	switch {
	case n < 4:
		return n + 1
	case n < 512:
		return n/8*8 + 8
	}
	return n/64*64 + 64
}

// add notes that the worker will hold the prompt.
func (x *promises) add(m *member, hashes []kvcache.Hash, untilMS int64) {
	for n := mark(0); n <= len(hashes); n = mark(n) {
		h := hashes[n-1]
		if p := x.of(h, m); p != nil {
			p.untilMS = max(p.untilMS, untilMS)
			continue
		}
		if len(x.ring) < promisesKept {
			x.ring = append(x.ring, promise{})
		} else if old := &x.ring[x.next]; old.member != nil {
			x.unlink(int32(x.next))
		}
		x.ring[x.next] = promise{hash: h, member: m, untilMS: untilMS, next: x.heads[h]}
		x.heads[h] = int32(x.next) + 1
		x.next = (x.next + 1) % promisesKept
	}
}

// of is the worker's promise of a hash, nil if it made none.
func (x *promises) of(h kvcache.Hash, m *member) *promise {
	for at := x.heads[h]; at != 0; at = x.ring[at-1].next {
		if p := &x.ring[at-1]; p.member == m {
			return p
		}
	}
	return nil
}

// unlink takes a promise out of its hash's list.
func (x *promises) unlink(at int32) {
	p := &x.ring[at]
	head := x.heads[p.hash]
	if head == at+1 {
		if p.next == 0 {
			delete(x.heads, p.hash)
		} else {
			x.heads[p.hash] = p.next
		}
		return
	}
	for before := head; before != 0; before = x.ring[before-1].next {
		if b := &x.ring[before-1]; b.next == at+1 {
			b.next = p.next
			return
		}
	}
}

// find appends the workers that promised a beginning of the prompt, with its length in blocks. A
// worker may be named several times; the last time counts.
func (x *promises) find(dst []promised, hashes []kvcache.Hash, nowMS int64) []promised {
	for n := mark(0); n <= len(hashes); n = mark(n) {
		at, live := x.heads[hashes[n-1]], false
		for ; at != 0; at = x.ring[at-1].next {
			if p := &x.ring[at-1]; p.untilMS > nowMS && !p.member.gone {
				dst, live = append(dst, promised{p.member, int32(n)}), true
			}
		}
		if !live {
			break
		}
	}
	return dst
}
