package engine

import (
	"log/slog"
	"slices"
	"time"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/kvcache/tier"
)

// Tiers are where blocks go that the pool evicts, and where they come back from.
type Tiers struct {
	// Cache is host memory, over a disk or not. The engine is its only user; its owner closes it
	// after Run.
	Cache *tier.Cache
	// Transit says that Cache takes nothing but what other workers send, and keeps that until it is copied
	// up: there is no tier in host memory.
	Transit bool
	// Peers are asked for the blocks of requests that come with a KvSource, if not nil.
	Peers Peers
	// Pages is the runner's KV cache.
	Pages device.Pages
	// Costs decide between copying and computing. Zero: copying is always worth it.
	Costs Costs
}

// Costs are what the device needs, as measured on it.
type Costs struct {
	Page  time.Duration // to copy a page, one way
	Token time.Duration // to compute a prompt's token in a full step
	Step  time.Duration // to compute a step of one token
}

// load reports whether blocks blocks that lie below are sooner copied up than computed. Copying
// holds a sequence back for about a step.
func (c Costs) load(blocks, blockTokens int) bool {
	return blocks > 0 && c.Step+time.Duration(blocks)*c.Page <= time.Duration(blocks*blockTokens)*c.Token || c == Costs{} && blocks > 0
}

// loadTime bounds the copying up in one plan, and with it how long a step may be held up by it.
const loadTime = 2 * time.Millisecond

// lower is the planner's part of the tiers.
//
// A block is copied down while the step that takes its memory is planned, and the step before it
// runs: the step that computed it has been waited for, and none since has written to it. A sequence
// that finds blocks below takes memory for them like any other, but has no row until they are
// copied up; and that waits for the steps that were in flight when it took the memory, so that no
// submitted step can still touch it. Meanwhile others run.
type lower struct {
	Tiers
	bytes    int // of a page
	pages    int // to copy up in one plan
	log      *slog.Logger
	loading  []*sequence               // with blocks to be copied up, in the order in which they began
	fetching bool                      // this plan left a sequence waiting for the disk
	notKept  map[kvcache.Hash]struct{} // not worth copying down
	finished uint64                    // newest step that the device has finished, as the pool counts
	evicted  []kvcache.Eviction
	changes  []tier.Change
	broken   int64 // copies that failed

	asked  []*request // whose blocks other workers may have, to be fetched in order
	flying int        // fetches that have not ended
	replan bool       // this plan found that one of asked needs nothing: the next may start it
}

func newLower(t *Tiers, log *slog.Logger) *lower {
	if t == nil {
		return nil
	}
	l := &lower{Tiers: *t, log: log, notKept: map[kvcache.Hash]struct{}{}, bytes: int(t.Pages.Layout().PageBytes()), pages: 64}
	if c := t.Costs.Page; c > 0 {
		l.pages = int(max(4, min(loadTime/c, 1<<16)))
	}
	return l
}

// below says how many blocks after the cached tokens of s are in host memory and worth copying up.
// wait means that more is on its way there, from disk or for a sequence with the same prefix.
func (p *planner) below(s *sequence, cached int) (n int, wait bool) {
	l := p.lower
	if l == nil || s.suspect || cached%p.BlockTokens != 0 || cached == len(s.tokens)-1 {
		return 0, false
	}
	hashes := s.kv.Hashes()[:s.readable()/p.BlockTokens]
	first := cached / p.BlockTokens
	if first >= len(hashes) {
		return 0, false
	}
	all := len(hashes)
	hashes = hashes[first:]
	for _, o := range l.loading {
		if first < o.loadFirst+len(o.pinned) && o.kv.Hashes()[first] == hashes[0] {
			return 0, true
		}
	}
	host, total := l.Cache.Match(hashes)
	// Waiting ends: each read does, and s begins only so many.
	if host < total && s.fetched < 2*all {
		begun, coming := l.Cache.Prefetch(hashes[:total], s.tenant)
		s.fetched += begun
		if coming {
			l.fetching = true
			return 0, true
		}
	}
	if !l.Costs.load(host, p.BlockTokens) {
		return 0, false
	}
	return host, false
}

// fetch starts to bring up what s will need from disk, as soon as it waits.
func (p *planner) fetch(s *sequence) {
	l := p.lower
	if l == nil {
		return
	}
	cached := p.lookup(s)
	if hashes := s.kv.Hashes()[:s.readable()/p.BlockTokens]; cached/p.BlockTokens < len(hashes) {
		begun, _ := l.Cache.Prefetch(hashes[cached/p.BlockTokens:], s.tenant)
		s.fetched += begun
	}
}

// swapIn begins to copy n blocks of s up, from block first on. It returns how many it can.
func (p *planner) swapIn(s *sequence, first, n int) int {
	l := p.lower
	s.pinned = s.pinned[:0]
	for _, h := range s.kv.Hashes()[first : first+n] {
		page := l.Cache.Pin(h)
		if page == nil {
			break
		}
		s.pinned = append(s.pinned, page)
	}
	if len(s.pinned) == 0 {
		return 0
	}
	p.note(noteSwapIn, s, len(s.pinned))
	s.loadFirst, s.loadAfter = first, p.number
	l.loading = append(l.loading, s)
	return len(s.pinned)
}

// loading reports whether blocks of s are still to be copied up.
func (s *sequence) loading() bool { return len(s.pinned) > 0 }

// drop forgets what is left to be copied up for s.
func (l *lower) drop(s *sequence) {
	if l == nil || !s.loading() {
		return
	}
	for i := range s.pinned {
		l.Cache.Unpin(s.kv.Hashes()[s.loadFirst+i])
	}
	clear(s.pinned)
	s.pinned = s.pinned[:0]
	if i := slices.Index(l.loading, s); i >= 0 {
		l.loading = slices.Delete(l.loading, i, i+1)
	}
}

// copyUp fills blocks of sequences that wait for them, as many as one plan may.
func (p *planner) copyUp() {
	l := p.lower
	if l == nil {
		return
	}
	l.fetching = false
	for left := l.pages; left > 0 && len(l.loading) > 0; {
		s := l.loading[0]
		if p.writing(s.loadAfter) {
			return // and so must those behind it
		}
		n, failed := 0, false
		for ; n < len(s.pinned) && left > 0 && !failed; n++ {
			if err := l.Pages.Write(int32(s.kv.Table()[s.loadFirst+n]), s.pinned[n]); err != nil {
				l.failed("up", err)
				failed = true
				break
			}
			if h := s.kv.Hashes()[s.loadFirst+n]; l.Transit {
				l.Cache.Release(h)
			} else {
				l.Cache.Unpin(h)
			}
			left--
			p.trace.CopiedUp++
		}
		s.loadFirst += n
		s.pinned = slices.Delete(s.pinned, 0, n)
		if failed {
			l.drop(s) // the rest is computed
		}
		if s.loading() {
			return
		}
		if !failed {
			l.loading = slices.Delete(l.loading, 0, 1)
		}
		p.swappedIn(s)
	}
}

// swappedIn lets s go on after its last copied block. All but the last token need no computing; the
// block that holds that one is named when it is computed.
func (p *planner) swappedIn(s *sequence) {
	s.computed = min(s.loadFirst*p.BlockTokens, len(s.tokens)-1)
	if full := s.computed - s.computed%p.BlockTokens; full > s.published {
		s.kv.Publish(s.tokens[:full])
		s.published = full
	}
}

// copyDown keeps what the plan evicted. What no step has computed yet is lost.
func (p *planner) copyDown() {
	l := p.lower
	if l == nil || l.Transit {
		return
	}
	l.evicted = p.pool.Evicted(l.evicted[:0])
	for _, e := range l.evicted {
		if _, notKept := l.notKept[e.Hash]; notKept || e.Step > l.finished {
			continue
		}
		page := l.Cache.Reserve(e.Hash, e.Parent, e.Tenant)
		if page == nil {
			continue
		}
		err := l.Pages.Read(int32(e.Block), page)
		l.Cache.Commit(e.Hash, err == nil)
		if err != nil {
			l.failed("down", err)
			continue
		}
		p.trace.CopiedDown++
	}
	l.changes = l.Cache.Changes(l.changes[:0])
	for _, c := range l.changes {
		p.pool.RecordTier(c.Kind, c.Medium, c.Hash, c.Parent)
	}
}

func (l *lower) failed(way string, err error) {
	if l.broken++; l.broken == 1 {
		l.log.Error("copying a page failed", slog.String("way", way), slog.Any("error", err))
	}
}

// busy reports whether planning again, with nothing in flight, gets on.
func (l *lower) busy() bool { return l != nil && (len(l.loading) > 0 || l.replan) }

// ready is signalled when a page has come up from disk.
func (l *lower) ready() <-chan struct{} {
	if l == nil {
		return nil
	}
	return l.Cache.Ready()
}

// stats are the figures of the tiers.
func (l *lower) stats() (s TierStats) {
	if l == nil {
		return s
	}
	c := l.Cache.Stats()
	s = TierStats{HostHits: c.Hits - c.FromDisk - c.FromPeer, DiskHits: c.FromDisk, PeerHits: c.FromPeer, Stored: c.Stored, Failures: l.broken}
	if !l.Transit {
		s.Pages = c.Pages
	}
	return s
}
