package gateway

import (
	"fmt"
	"log/slog"
	"runtime"
	"testing"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestMemoryOfARequest: a request that is kept for its client takes at most what docs/operations.md says, 2 kB
// and 8 B a token of its output (4 of them on their way to a larger array) beside its prompt, and nothing once
// its grace is over.
func TestMemoryOfARequest(t *testing.T) {
	const requests, prompt, output, most = 2000, 500, 300, 2000 + 4*500 + 8*300
	g := &Gateway{}
	g.workers.byID = map[string]*attachment{}
	g.lives.byID = map[string]*live{}
	m := &served{Model: Model{ID: "m"}, meters: newMetrics(g).of("m"), log: slog.New(slog.DiscardHandler)}
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var s runtime.MemStats
		runtime.ReadMemStats(&s)
		return int64(s.HeapAlloc)
	}
	now := time.Unix(1, 0)
	before := heap()
	for i := range requests {
		id := fmt.Sprintf("a-key-of-a-usual-length-%08d", i)
		r := &reader{wake: make(chan struct{}, 1)}
		seed := uint64(i)
		e := g.lives.enter(id, r, true, make([]byte, 16), func() *live {
			l := newLive(&pb.Request{Id: id, Model: "m", Tenant: "tenant", Prompt: make([]int32, prompt), GatewayId: "node-1",
				Sampling: &pb.SamplingParams{MaxTokens: output, Seed: &seed}}, m, true, now)
			l.digest = make([]byte, 16)
			close(l.admitted)
			return l
		})
		for k := range output {
			e.live.apply("w", &pb.TokenEvent{Index: 1, First: int32(k), TokenIds: []int32{1}}, now)
		}
		if d := g.lives.leave(e.live, r, now.Add(time.Second)); !d.lingers {
			t.Fatalf("it does not wait for its client: %+v", d)
		}
	}
	if each := (heap() - before) / requests; each > most {
		t.Errorf("a request takes %d B, more than %d", each, most)
	} else {
		t.Logf("a request takes %d B", each)
	}
	for _, l := range g.lives.all() {
		if d := g.lives.expire(l, now.Add(2*time.Second)); !d.retired {
			t.Fatalf("it stays: %+v", d)
		}
	}
	if each := (heap() - before) / requests; each > 64 {
		t.Errorf("a request that is gone still takes %d B", each)
	}
	runtime.KeepAlive(g)
}
