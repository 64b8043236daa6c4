package scheduler

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/quire-serve/quire/kvcache"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func (w *fakeWorker) caches(events ...*pb.CacheEvent) {
	w.say(&pb.WorkRequest{Message: &pb.WorkRequest_CacheEvents{CacheEvents: &pb.CacheEvents{Events: events}}})
}

func stored(hashes []kvcache.Hash) *pb.CacheEvent {
	e := &pb.CacheEvent{Kind: pb.CacheEvent_KIND_STORED, Medium: pb.CacheEvent_MEDIUM_DEVICE}
	for _, h := range hashes {
		e.Hashes = append(e.Hashes, h[:]...)
	}
	return e
}

// TestPromptsGoWhereTheirPrefixIs: what a worker says of its cache decides where prompts go, for the
// tenant's salt, until its session ends.
func TestPromptsGoWhereTheirPrefixIs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		one, two := newWorker(t, "w1"), newWorker(t, "w2")
		one.join(s)
		two.join(s)
		until(t, "both are in session", func() bool { return s.Stats().Workers == 2 })
		prompt := make([]int32, 1000)
		salted := func(id, salt string) *pb.Request {
			r := request(id)
			r.Prompt, r.CacheSalt = prompt, []byte(salt)
			return r
		}
		hashes := kvcache.Hashes(nil, kvcache.Root([]byte("salt"), nil), prompt, 16)
		two.caches(&pb.CacheEvent{Kind: pb.CacheEvent_KIND_RESET}, stored(hashes))
		index := s.leader.Load().prefixes
		until(t, "the events are applied", func() bool { return index.Stats().Blocks == int64(len(hashes)) })

		mustSubmit(t, s, salted("mine", "salt"))
		until(t, "it runs", func() bool { return one.has("mine") || two.has("mine") })
		if !two.has("mine") {
			t.Error("the prompt went to the worker that does not hold it")
		}
		mustSubmit(t, s, salted("theirs", "other"))
		until(t, "it runs", func() bool { return one.has("theirs") || two.has("theirs") })
		if !one.has("theirs") {
			t.Error("with another salt, the prompt went to the busier worker")
		}

		two.caches(&pb.CacheEvent{Kind: pb.CacheEvent_KIND_CLEARED, Medium: pb.CacheEvent_MEDIUM_DEVICE})
		until(t, "the cache is known to be empty", func() bool { return index.Stats().Blocks == 0 })
		two.caches(stored(hashes[:8]))
		until(t, "it fills", func() bool { return index.Stats().Blocks == 8 })
		two.caches(&pb.CacheEvent{Kind: pb.CacheEvent_KIND_STORED, Medium: pb.CacheEvent_MEDIUM_HOST, Hashes: []byte("short")})
		until(t, "the session ends", func() bool { return two.end() != nil })
		if err := two.end(); !strings.Contains(err.Error(), "hashes: event 0: 5 bytes; a hash has 16") {
			t.Errorf("a cut hash ended the session with %v", err)
		}
		if got := index.Match(nil, hashes); len(got) != 0 {
			t.Errorf("the index still knows %v of a worker whose session ended", got)
		}
		one.leave()
		two.leave()
	})
}

// TestNewLeadersKnowPrompts: what an earlier leader left in the queue is placed by its prefix too.
func TestNewLeadersKnowPrompts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		memory := inMemory()
		s := start(t, Settings{consensus: memory})
		w := newWorker(t, "w")
		w.info.MaxSequences = 1
		w.join(s)
		until(t, "it is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("runs"))
		until(t, "it runs", func() bool { return w.has("runs") })
		waits := request("waits")
		waits.Prompt, waits.CacheSalt = make([]int32, 1000), []byte("salt")
		mustSubmit(t, s, waits)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
		w.leave()
		next := start(t, Settings{consensus: memory}).leader.Load()
		want := kvcache.Hashes(nil, kvcache.Root([]byte("salt"), nil), waits.Prompt, 16)
		if got := next.live["waits"].hashes; !slices.Equal(got, want) {
			t.Errorf("the new leader knows %d of %d blocks", len(got), len(want))
		}
	})
}
