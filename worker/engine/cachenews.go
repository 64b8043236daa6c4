package engine

import (
	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/kvcache/tier"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// CacheNews is what the KV cache took up and lost.
type CacheNews struct {
	Events []*pb.CacheEvent
	// More says that a snapshot goes on: ask again.
	More bool
}

const (
	// snapshotBlocks and snapshotPages are how many blocks and pages of lower tiers one answer looks
	// at, so that a snapshot of a large cache does not hold a step up.
	snapshotBlocks = 8192
	snapshotPages  = 8192
	// eventHashes bounds the hashes of an event.
	eventHashes = 4096
)

// cacheNews is the planner's part of telling the cache's contents. The pool's journal bounds what
// waits to be told: whoever asks too late starts over from a snapshot. That is told in parts, with the
// events since the part before: what is told twice changes nothing.
type cacheNews struct {
	scanned int           // blocks of the pool that the snapshot has told, all if there is none
	pages   []tier.Change // pages of lower tiers that it has not
	events  []kvcache.Event
}

// AskCache has the loop answer with what the KV cache took up and lost since the last answer, from the
// beginning if reset. The answer comes, between two steps, while Run runs; reply needs a capacity.
func (e *Engine) AskCache(reset bool, reply chan<- CacheNews) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.send(command{cache: reply, reset: reset})
}

// tellCache is the answer.
func (p *planner) tellCache(reset bool) (news CacheNews) {
	if !p.PrefixCache {
		return news
	}
	n := &p.news
	n.events = p.pool.Events(n.events[:0])
	if reset || len(n.events) > 0 && n.events[0].Kind == kvcache.Missed {
		// The snapshot says what these do.
		n.events, n.scanned, n.pages = n.events[:0], 0, nil
		if p.lower != nil && !p.lower.Transit {
			n.pages = p.lower.Cache.Contents(nil)
		}
		news.Events = append(news.Events, &pb.CacheEvent{Kind: pb.CacheEvent_KIND_RESET})
	}
	for _, e := range n.events {
		if e.Kind == kvcache.Cleared {
			news.Events = append(news.Events, &pb.CacheEvent{Kind: pb.CacheEvent_KIND_CLEARED, Medium: medium(e.Medium)})
			continue
		}
		parent := e.Parent
		for i := range e.Hashes {
			news.add(e.Kind, e.Medium, e.Hashes[i], parent)
			parent = e.Hashes[i]
		}
	}
	if n.scanned < p.Blocks {
		p.pool.EachName(kvcache.BlockID(n.scanned), snapshotBlocks, func(h, parent kvcache.Hash) {
			news.add(kvcache.Stored, kvcache.Device, h, parent)
		})
		n.scanned += snapshotBlocks
	}
	some := min(len(n.pages), snapshotPages)
	for _, c := range n.pages[:some] {
		news.add(c.Kind, c.Medium, c.Hash, c.Parent)
	}
	n.pages = n.pages[some:]
	news.More = n.scanned < p.Blocks || len(n.pages) > 0
	return news
}

// add tells one block, together with its neighbours where they follow each other.
func (n *CacheNews) add(kind kvcache.EventKind, m kvcache.Medium, h, parent kvcache.Hash) {
	k := pb.CacheEvent_KIND_STORED
	if kind == kvcache.Removed {
		k = pb.CacheEvent_KIND_REMOVED
	}
	if len(n.Events) > 0 {
		e := n.Events[len(n.Events)-1]
		follows := len(e.Hashes) > 0 && kvcache.Hash(e.Hashes[len(e.Hashes)-len(parent):]) == parent
		if e.Kind == k && e.Medium == medium(m) && len(e.Hashes) < eventHashes*len(h) && (follows || k == pb.CacheEvent_KIND_REMOVED) {
			e.Hashes = append(e.Hashes, h[:]...)
			return
		}
	}
	e := &pb.CacheEvent{Kind: k, Medium: medium(m), Hashes: append(make([]byte, 0, 4*len(h)), h[:]...)}
	if k == pb.CacheEvent_KIND_STORED {
		e.Parent = append([]byte(nil), parent[:]...)
	}
	n.Events = append(n.Events, e)
}

func medium(m kvcache.Medium) pb.CacheEvent_Medium {
	switch m {
	case kvcache.Host:
		return pb.CacheEvent_MEDIUM_HOST
	case kvcache.Disk:
		return pb.CacheEvent_MEDIUM_DISK
	}
	return pb.CacheEvent_MEDIUM_DEVICE
}
