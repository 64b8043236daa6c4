package batch

import "github.com/quire-serve/quire/kvcache"

// A promise is a prefix that a worker does not hold yet but was sent a prompt with: requests with
// the same beginning that come in a burst find it before the worker's cache events do. A promise
// ends promiseMS after the prompt should have been computed; by then events speak for themselves.
//
// A prompt leaves promises at a few of its lengths only (marks): one of 8k tokens some thirty, not 512.
const (
	promiseMS = 2000
	// promisesKept bounds the promises; the oldest go first. promisesAsked bounds those of one hash
	// that are looked at, the newest.
	promisesKept  = 1 << 15
	promisesAsked = 16
)

type promise struct {
	hash    kvcache.Hash
	member  *member
	untilMS int64
	// older and newer are the neighbours among the promises of this hash: places in ring, plus one; 0
	// is none.
	older, newer int32
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
// every 8th up to 64, every 32nd up to 512, and every 128th from there.
func mark(n int) int {
	step := 128
	switch {
	case n < 4:
		step = 1
	case n < 64:
		step = 8
	case n < 512:
		step = 32
	}
	return n/step*step + step
}

// add notes that the worker will hold the prompt, of which it holds so many blocks.
func (x *promises) add(m *member, hashes []kvcache.Hash, held int32, untilMS int64) {
	for n := mark(0); n <= len(hashes); n = mark(n) {
		if n <= int(held) {
			continue
		}
		h := hashes[n-1]
		if len(x.ring) < promisesKept {
			x.ring = append(x.ring, promise{})
		} else {
			x.unlink(&x.ring[x.next])
		}
		at, older := int32(x.next)+1, x.heads[h]
		x.ring[x.next] = promise{hash: h, member: m, untilMS: untilMS, older: older}
		if older != 0 {
			x.ring[older-1].newer = at
		}
		x.heads[h] = at
		x.next = (x.next + 1) % promisesKept
	}
}

// unlink takes the oldest promise, which is the last of its hash's list, out of it.
func (x *promises) unlink(p *promise) {
	if p.newer == 0 {
		delete(x.heads, p.hash)
	} else {
		x.ring[p.newer-1].older = 0
	}
}

// find appends the workers that promised a beginning of the prompt, with its length in blocks. A
// worker may be named several times; the last time counts.
func (x *promises) find(dst []promised, hashes []kvcache.Hash, nowMS int64) []promised {
	for n := mark(0); n <= len(hashes); n = mark(n) {
		at, live := x.heads[hashes[n-1]], false
		for asked := 0; at != 0 && asked < promisesAsked; at, asked = x.ring[at-1].older, asked+1 {
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
