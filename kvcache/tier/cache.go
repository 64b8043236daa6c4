package tier

import (
	"fmt"
	"sync"

	"github.com/quire-serve/quire/kvcache"
)

// Settings are what a [Cache] is made of.
type Settings struct {
	PageBytes int
	Pages     int // in host memory
	// TenantPages bounds single tenants' pages there; 0, or a tenant past the end, is no bound.
	TenantPages []int
	// Disk is the tier below, or nil. The cache is its only user.
	Disk *Disk
	// Reads bounds how many pages may be on their way up at once (default: an eighth of Pages).
	Reads int
}

// Stats are a cache's figures. Pages is now, the others since it was made.
type Stats struct {
	Pages                 int
	Hits, Misses          int64 // of Pin
	FromDisk, FromPeer    int64 // of the hits, pages that came up from disk for it, or from another worker
	Stored, Evictions     int64
	Refused               int64 // Reserve: every page was pinned, or the tenant's quota was
	Lost                  int64 // evicted before they could be written to disk
	DiskReads, DiskWrites int64
	DiskErrors            int64 // writes that failed
}

// Change is a page that came to or left a medium, for [kvcache.Pool.RecordTier].
type Change struct {
	Kind         kvcache.EventKind // Stored, Removed, or Cleared
	Medium       kvcache.Medium
	Hash, Parent kvcache.Hash
}

// Cache is a bounded set of pages in host memory over an optional disk tier. Methods may be called
// from several goroutines and never wait for a file.
type Cache struct {
	s     Settings
	ahead int // pages, least recently used first, that the worker keeps written to disk

	mu       sync.Mutex
	work     sync.Cond
	lru      lru
	spare    [][]byte
	made     int     // pages whose memory is allocated
	reads    []*item // to be read from disk, in order
	reading  int     // reads that have not ended
	closing  bool
	last     []*item // when closing: what may not be on disk yet
	looked   int     // pages looked at for one that is not on disk; a test bounds it
	changes  []Change
	overflow bool
	stats    Stats
	done     chan struct{}
	ready    chan struct{} // capacity 1
}

// New makes a cache. Its memory is allocated as pages come, and its goroutine, if there is a disk, runs
// until Close.
func New(s Settings) (*Cache, error) {
	switch {
	case s.PageBytes < 1:
		return nil, fmt.Errorf("tier: PageBytes is %d, must be positive", s.PageBytes)
	case s.Pages < 1:
		return nil, fmt.Errorf("tier: Pages is %d, must be positive", s.Pages)
	case s.Reads < 0:
		return nil, fmt.Errorf("tier: Reads is %d, must not be negative", s.Reads)
	case s.Disk != nil && s.Disk.s.PageBytes != s.PageBytes:
		return nil, fmt.Errorf("tier: PageBytes is %d, the disk's %d", s.PageBytes, s.Disk.s.PageBytes)
	}
	if s.Reads == 0 {
		s.Reads = max(1, s.Pages/8)
	}
	c := &Cache{
		s: s, ahead: max(min(max(1, s.Pages/8), 256), s.Reads),
		lru:   newLRU(s.TenantPages, min(s.Pages, 4096)), // a passage between workers is mostly empty
		done:  make(chan struct{}),
		ready: make(chan struct{}, 1),
	}
	c.work.L = &c.mu
	if s.Disk == nil {
		close(c.done)
		return c, nil
	}
	s.Disk.each(func(h, parent kvcache.Hash) { c.note(kvcache.Stored, kvcache.Disk, h, parent) })
	go c.run()
	return c, nil
}

// Ready is signalled after a page has come up from disk, or turned out to be damaged.
func (c *Cache) Ready() <-chan struct{} { return c.ready }

// Close writes what is not on disk yet, and waits for that.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closing = true
	c.work.Broadcast()
	c.mu.Unlock()
	<-c.done
}

// Reserve returns memory for a page that leaves the device; the caller fills it and calls Commit.
// It returns nil if the page is here already, or no room can be made.
func (c *Cache) Reserve(h, parent kvcache.Hash, tenant int) []byte {
	return c.expect(h, parent, tenant, fromDevice)
}

// Receive is Reserve for a page that comes from another worker.
func (c *Cache) Receive(h, parent kvcache.Hash, tenant int) []byte {
	return c.expect(h, parent, tenant, fromPeer)
}

func (c *Cache) expect(h, parent kvcache.Hash, tenant int, from origin) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	if it := c.lru.items[h]; it != nil {
		c.lru.touch(it)
		return nil
	}
	it := c.reserve(h, parent, tenant)
	if it == nil {
		c.stats.Refused++
		return nil
	}
	it.from = from
	return it.page
}

// reserve makes an item with a page, filling and pinned once, or returns nil.
func (c *Cache) reserve(h, parent kvcache.Hash, tenant int) *item {
	var victim *item
	switch {
	case c.closing:
		return nil
	case c.lru.full(tenant):
		if victim = c.lru.oldestOf(tenant); victim == nil {
			return nil
		}
	case c.room() == 0:
		if victim = c.lru.oldest(); victim == nil {
			return nil
		}
	}
	if victim != nil {
		if victim.dirty {
			c.stats.Lost++
		}
		c.stats.Evictions++
		c.drop(victim)
	}
	it := &item{hash: h, parent: parent, tenant: tenant, pins: 1, filling: true}
	if n := len(c.spare); n > 0 {
		it.page, c.spare = c.spare[n-1], c.spare[:n-1]
	} else {
		it.page = make([]byte, c.s.PageBytes)
		c.made++
	}
	c.lru.add(it)
	return it
}

// room is how many pages can be taken before others must go.
func (c *Cache) room() int { return len(c.spare) + c.s.Pages - c.made }

// drop takes an item out and keeps its memory.
func (c *Cache) drop(it *item) {
	c.lru.remove(it)
	c.spare = append(c.spare, it.page)
	it.page = nil
	if !it.filling {
		c.note(kvcache.Removed, kvcache.Host, it.hash, it.parent)
	}
}

// Commit ends a Reserve: the page is filled, or, if not ok, dropped.
func (c *Cache) Commit(h kvcache.Hash, ok bool) {
	onDisk := ok && c.s.Disk != nil && c.s.Disk.Has(h)
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.lru.items[h]
	if it == nil || !it.filling {
		panic("tier: Commit without Reserve")
	}
	it.pins--
	if !ok {
		c.drop(it)
		return
	}
	it.dirty = c.s.Disk != nil && !onDisk
	c.filled(it)
	c.work.Signal()
}

func (c *Cache) filled(it *item) {
	it.filling = false
	c.stats.Stored++
	c.note(kvcache.Stored, kvcache.Host, it.hash, it.parent)
}

// Match returns how many leading hashes are in host memory, ready to be pinned, and how many are
// there or on disk.
func (c *Cache) Match(hashes []kvcache.Hash) (host, total int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range hashes {
		it := c.lru.items[h]
		ready := it != nil && !it.filling
		if !ready && (it == nil && (c.s.Disk == nil || !c.s.Disk.Has(h))) {
			break
		}
		if ready && host == total {
			host++
		}
		total++
	}
	return host, total
}

// Prefetch starts to bring the leading pages that are on disk alone up to host memory, as far as
// Settings.Reads allows, and marks those already there as used. Call it when a request is queued,
// and again while it waits. It returns how many reads it began, and whether waiting for [Cache.Ready]
// and asking again may bring more.
func (c *Cache) Prefetch(hashes []kvcache.Hash, tenant int) (begun int, coming bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, h := range hashes {
		if it := c.lru.items[h]; it != nil {
			coming = coming || it.filling
			c.lru.touch(it)
			continue
		}
		if c.s.Disk == nil || !c.s.Disk.Has(h) {
			break
		}
		if c.reading == c.s.Reads {
			return begun, true
		}
		it := c.reserve(h, kvcache.Hash{}, tenant)
		if it == nil {
			break
		}
		c.reads = append(c.reads, it)
		c.reading++
		begun++
		coming = true
		c.work.Signal()
	}
	return begun, coming
}

// Pin returns a page's bytes, which stay until Unpin, or nil if it is not in host memory. They must
// not be written to.
func (c *Cache) Pin(h kvcache.Hash) []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.lru.items[h]
	if it == nil || it.filling {
		c.stats.Misses++
		return nil
	}
	c.stats.Hits++
	switch it.from {
	case fromDisk:
		c.stats.FromDisk++
	case fromPeer:
		c.stats.FromPeer++
	}
	it.from = fromDevice
	c.lru.touch(it)
	it.pins++
	return it.page
}

// Pinned is how many pages are pinned or being filled, by the engine or to be written to disk.
func (c *Cache) Pinned() (n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, it := range c.lru.items {
		if it.pins > 0 {
			n++
		}
	}
	return n
}

// Unpin ends a Pin.
func (c *Cache) Unpin(h kvcache.Hash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.lru.items[h]
	if it == nil || it.pins == 0 {
		panic("tier: Unpin without Pin")
	}
	it.pins--
}

// Release ends a Pin and, if it was the last, drops the page with its memory.
func (c *Cache) Release(h kvcache.Hash) {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.lru.items[h]
	if it == nil || it.pins == 0 {
		panic("tier: Release without Pin")
	}
	if it.pins--; it.pins == 0 {
		c.drop(it)
		c.spare = c.spare[:len(c.spare)-1]
		c.made--
	}
}

// Copy copies a page to dst, which is as large, and reports whether it is in host memory. It counts as
// no use of it.
func (c *Cache) Copy(h kvcache.Hash, dst []byte) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	it := c.lru.items[h]
	if it == nil || it.filling {
		return false
	}
	copy(dst, it.page)
	return true
}

// Stats returns the cache's figures.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Pages = len(c.lru.items)
	return s
}

// Changes appends what came and went since the last call to dst. Whoever does not call it for long
// gets Cleared for both media, and then all that is there.
func (c *Cache) Changes(dst []Change) []Change {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.overflow {
		dst = append(dst, c.changes...)
		c.changes = c.changes[:0]
		return dst
	}
	c.overflow = false
	dst = append(dst, Change{Kind: kvcache.Cleared, Medium: kvcache.Host}, Change{Kind: kvcache.Cleared, Medium: kvcache.Disk})
	return c.contents(dst)
}

// Contents appends a Stored change for everything that is there to dst. Changes goes on as if it had
// not been called.
func (c *Cache) Contents(dst []Change) []Change {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.contents(dst)
}

func (c *Cache) contents(dst []Change) []Change {
	for _, it := range c.lru.items {
		if !it.filling {
			dst = append(dst, Change{kvcache.Stored, kvcache.Host, it.hash, it.parent})
		}
	}
	if c.s.Disk != nil {
		c.s.Disk.each(func(h, parent kvcache.Hash) {
			dst = append(dst, Change{kvcache.Stored, kvcache.Disk, h, parent})
		})
	}
	return dst
}

func (c *Cache) note(kind kvcache.EventKind, medium kvcache.Medium, h, parent kvcache.Hash) {
	if c.overflow {
		return
	}
	if len(c.changes) == max(1024, 4*c.s.Pages) {
		c.overflow = true
		c.changes = c.changes[:0]
		return
	}
	c.changes = append(c.changes, Change{kind, medium, h, parent})
}

// run is the worker: reads ahead before writes behind, one at a time.
func (c *Cache) run() {
	defer close(c.done)
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if len(c.reads) > 0 {
			it := c.reads[0]
			c.reads = append(c.reads[:0], c.reads[1:]...)
			c.read(it)
			continue
		}
		if it := c.unwritten(); it != nil {
			c.write(it)
			continue
		}
		if c.closing {
			return
		}
		c.work.Wait()
	}
}

// unwritten returns a page that should be on disk and is not: one of those that are next to go once
// memory, or the tenant's share of it, runs short, or any when closing.
func (c *Cache) unwritten() *item {
	if c.closing {
		return c.rest()
	}
	for tenant, q := range c.lru.tenants {
		if c.room() > c.ahead && !c.lru.nearlyFull(tenant, c.ahead) {
			continue
		}
		looked := 0
		for it := q.head; it != nil && looked < c.ahead; it = it.next {
			if it.dirty {
				return it
			}
			looked++
		}
	}
	return nil
}

// rest returns any page that is not on disk. Nothing new comes when closing, so that one list of all pages
// serves until it is empty; it is made again for those that were being filled.
func (c *Cache) rest() *item {
	for {
		for len(c.last) > 0 {
			it := c.last[0]
			c.last = c.last[1:]
			c.looked++
			if it.dirty && it.page != nil { // it may have been dropped meanwhile
				return it
			}
		}
		for _, q := range c.lru.tenants {
			for it := q.head; it != nil; it = it.next {
				if c.looked++; it.dirty {
					c.last = append(c.last, it)
				}
			}
		}
		if len(c.last) == 0 {
			return nil
		}
	}
}

// write puts a page on disk. It holds the lock, but not meanwhile.
func (c *Cache) write(it *item) {
	it.pins++
	c.mu.Unlock()
	evicted, err := c.s.Disk.Put(it.hash, it.parent, it.tenant, it.page)
	c.mu.Lock()
	it.pins--
	it.dirty = false // not tried again: losing a page is allowed, a loop on a full disk is not
	for _, h := range evicted {
		c.note(kvcache.Removed, kvcache.Disk, h, kvcache.Hash{})
	}
	if err != nil {
		c.stats.DiskErrors++
		return
	}
	c.stats.DiskWrites++
	c.note(kvcache.Stored, kvcache.Disk, it.hash, it.parent)
}

// read fills a reserved page from disk. It holds the lock, but not meanwhile.
func (c *Cache) read(it *item) {
	c.mu.Unlock()
	parent, found := c.s.Disk.Get(it.hash, it.page)
	c.mu.Lock()
	c.reading--
	it.pins--
	it.parent = parent
	c.stats.DiskReads++
	select {
	case c.ready <- struct{}{}:
	default:
	}
	if !found {
		c.drop(it)
		c.note(kvcache.Removed, kvcache.Disk, it.hash, kvcache.Hash{})
		return
	}
	it.from = fromDisk
	c.filled(it)
}
