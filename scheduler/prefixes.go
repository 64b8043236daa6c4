package scheduler

import (
	"github.com/quire-serve/quire/kvcache"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/rpc"
)

// Every session of a worker has a name in the prefix index: what an earlier one said counts no more,
// and a session begins with a snapshot.

// index gives a session its name. A worker for which there is none is placed by its load alone.
func (l *leader) index(s *session) {
	name, err := l.prefixes.Add()
	if err != nil {
		l.s.settings.Logger.Warn("what a worker's cache holds is not followed", "worker", s.info.GetId(), "error", err)
	}
	s.cache = name
}

// cacheEvents takes in what a worker's KV cache took up and lost. The index has a lock of its own, so
// that a snapshot holds nobody up.
func (l *leader) cacheEvents(s *session, in *pb.CacheEvents) error {
	var hashes []kvcache.Hash
	for n, e := range in.GetEvents() {
		if e.GetKind() == pb.CacheEvent_KIND_RESET {
			l.prefixes.Reset(s.cache)
			continue
		}
		medium, ok := cacheMedia[e.GetMedium()]
		if !ok {
			return rpc.Invalid("cache_events.events.medium", "event %d: %v is unknown", n, e.GetMedium())
		}
		if len(e.GetHashes())%len(kvcache.Hash{}) != 0 {
			return rpc.Invalid("cache_events.events.hashes", "event %d: %d bytes; a hash has %d", n, len(e.GetHashes()), len(kvcache.Hash{}))
		}
		hashes = hashes[:0]
		for b := e.GetHashes(); len(b) > 0; b = b[len(kvcache.Hash{}):] {
			hashes = append(hashes, kvcache.Hash(b[:len(kvcache.Hash{})]))
		}
		switch e.GetKind() {
		case pb.CacheEvent_KIND_STORED:
			l.prefixes.Stored(s.cache, medium, hashes)
		case pb.CacheEvent_KIND_REMOVED:
			l.prefixes.Removed(s.cache, medium, hashes)
		case pb.CacheEvent_KIND_CLEARED:
			l.prefixes.Cleared(s.cache, medium)
		default:
			return rpc.Invalid("cache_events.events.kind", "event %d: %v is unknown", n, e.GetKind())
		}
	}
	return nil
}

var cacheMedia = map[pb.CacheEvent_Medium]kvcache.Medium{
	pb.CacheEvent_MEDIUM_DEVICE: kvcache.Device,
	pb.CacheEvent_MEDIUM_HOST:   kvcache.Host,
	pb.CacheEvent_MEDIUM_DISK:   kvcache.Disk,
}

// promptHashes names the blocks of a prompt as the model's workers do. It takes long enough (some
// 10 us a 1,000 tokens) not to be done under the lock.
func (l *leader) promptHashes(r *pb.Request) []kvcache.Hash {
	l.mu.Lock()
	size := l.models[r.GetModel()].blockTokens
	l.mu.Unlock()
	return hashPrompt(r, size)
}

// hashPrompt names the blocks of so many tokens; none for 0.
func hashPrompt(r *pb.Request, size int) []kvcache.Hash {
	if size == 0 || len(r.GetPrompt()) < size {
		return nil
	}
	hashes := make([]kvcache.Hash, 0, len(r.GetPrompt())/size)
	return kvcache.Hashes(hashes, kvcache.Root(r.GetCacheSalt(), nil), r.GetPrompt(), size)
}
