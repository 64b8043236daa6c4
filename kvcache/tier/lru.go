package tier

import "github.com/quire-serve/quire/kvcache"

// item is one page of a tier.
type item struct {
	hash, parent kvcache.Hash
	tenant       int
	used         uint64 // the lru's count of uses when this one was used last
	prev, next   *item  // neighbours of the same tenant

	// In host memory only.
	page    []byte
	pins    int
	filling bool // reserved, content not there yet
	dirty   bool // not on disk
	from    origin
}

// origin is where a page that was not pinned since came from.
type origin uint8

const (
	fromDevice origin = iota
	fromDisk
	fromPeer
)

// lru knows the pages of one tier: by hash, and by tenant in order of use.
type lru struct {
	items   map[kvcache.Hash]*item
	tenants map[int]*queue
	limits  []int // pages of each tenant; 0, or past the end, is no limit
	uses    uint64
}

// queue is a tenant's pages, least recently used first.
type queue struct {
	head, tail *item
	n          int
}

func newLRU(limits []int, pages int) lru {
	return lru{items: make(map[kvcache.Hash]*item, pages), tenants: map[int]*queue{}, limits: limits}
}

func (s *lru) add(it *item) {
	s.items[it.hash] = it
	q := s.tenants[it.tenant]
	if q == nil {
		q = &queue{}
		s.tenants[it.tenant] = q
	}
	s.uses++
	it.used = s.uses
	it.prev, it.next = q.tail, nil
	if q.tail == nil {
		q.head = it
	} else {
		q.tail.next = it
	}
	q.tail = it
	q.n++
}

func (s *lru) remove(it *item) {
	delete(s.items, it.hash)
	q := s.tenants[it.tenant]
	if it.prev == nil {
		q.head = it.next
	} else {
		it.prev.next = it.next
	}
	if it.next == nil {
		q.tail = it.prev
	} else {
		it.next.prev = it.prev
	}
	it.prev, it.next = nil, nil
	if q.n--; q.n == 0 {
		delete(s.tenants, it.tenant)
	}
}

func (s *lru) touch(it *item) {
	s.remove(it)
	s.add(it)
}

// full reports whether tenant holds as many pages as it may.
func (s *lru) full(tenant int) bool { return s.nearlyFull(tenant, 0) }

// nearlyFull reports whether tenant may hold no more than slack pages besides its own.
func (s *lru) nearlyFull(tenant, slack int) bool {
	if tenant >= len(s.limits) || s.limits[tenant] == 0 {
		return false
	}
	q := s.tenants[tenant]
	return q != nil && q.n+slack >= s.limits[tenant]
}

// oldestOf returns tenant's least recently used page that may go, or nil.
func (s *lru) oldestOf(tenant int) *item {
	q := s.tenants[tenant]
	if q == nil {
		return nil
	}
	for it := q.head; it != nil; it = it.next {
		if it.pins == 0 {
			return it
		}
	}
	return nil
}

// oldest returns the least recently used page of all that may go, or nil.
func (s *lru) oldest() *item {
	var best *item
	for tenant := range s.tenants {
		if it := s.oldestOf(tenant); it != nil && (best == nil || it.used < best.used) {
			best = it
		}
	}
	return best
}
