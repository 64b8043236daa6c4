package batch

import (
	"fmt"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

func TestExplainNamesEachBlock(t *testing.T) {
	b := New(Settings{FreshMS: 100, StaleMS: 300})
	for _, w := range []string{"blocks", "draining", "new", "prompt", "sequences", "sick", "stale", "tiny"} {
		info := worker(w)
		if w == "tiny" {
			info.ContextTokens = 64
		}
		b.Join(info, w != "new", 0)
		load := Load{Sequence: 1, FreeBlocks: 256}
		switch w {
		case "blocks":
			load.FreeBlocks = 20
		case "prompt":
			load.PendingPrefill = 900
		case "sequences":
			load.Running = 8
		case "sick":
			load.Unhealthy = true
		}
		if w != "stale" && w != "new" {
			b.Report(w, load, 1000)
		}
	}
	b.Drain("draining")
	r := request("r", 500)
	r.ArrivalMS = 400
	b.Push(r)

	e, ok := b.Explain("r", 1000)
	if !ok || e.WaitMS != 600 || e.Position != 1 || e.Policy != PolicyTTFT {
		t.Fatalf("explained %v: %+v", ok, e)
	}
	want := map[string]struct {
		block   Block
		unblock string
	}{
		"blocks":    {Blocks, "13 more free blocks, of 256"},
		"draining":  {Draining, "another worker: this one drains"},
		"new":       {Unknown, "its first heartbeat"},
		"prompt":    {PromptTokens, "376 prompt tokens computed, of 900 pending"},
		"sequences": {Sequences, "1 sequences fewer, of 8"},
		"sick":      {Unhealthy, "its devices' recovery"},
		"stale":     {Stale, "its next heartbeat; 1 sequences fewer, of 8; 33 more free blocks, of 256"},
		"tiny":      {TooLong, "another worker: this one holds sequences of 64 tokens"},
	}
	for _, w := range e.Workers {
		x := want[w.WorkerID]
		if w.Blocked&x.block == 0 || w.Unblock != x.unblock {
			t.Errorf("%s: blocked by %v, unblocked by %q; want %v, %q", w.WorkerID, w.Blocked, w.Unblock, x.block, x.unblock)
		}
	}
	if len(e.Workers) != len(want) || e.Workers[0].WorkerID != "prompt" || !e.Workers[0].Rated {
		t.Errorf("%d workers, first %+v; the one that only computes prompts is rated, the others are not", len(e.Workers), e.Workers[0])
	}
	if e.Blocked != Blocks || !strings.HasPrefix(e.Unblock, "blocks: 13 more") {
		t.Errorf("nearest is %v, %q; want the one that lacks 13 blocks of 256", e.Blocked, e.Unblock)
	}
	if _, ok := b.Explain("other", 1000); ok {
		t.Error("a request that is not in the queue was explained")
	}
}

func TestSummaryCounts(t *testing.T) {
	b := New(Settings{})
	b.Join(worker("w"), true, 0)
	b.Report("w", Load{Sequence: 1, Running: 8, FreeBlocks: 256}, 0)
	for n := range 5 {
		r := request(fmt.Sprint("r", n), 100)
		r.ArrivalMS = int64(100 * n)
		if n > 2 {
			r.Tenant = "u"
		}
		b.Push(r)
	}
	r := request("elsewhere", 7)
	r.Model, r.ArrivalMS = "unknown", 900
	b.Push(r)
	s := b.Summary(1000)
	if got, want := fmt.Sprintf("%+v", s), "{Count:{Name: Requests:6 Tokens:507 OldestWaitMS:1000} Bytes:600 "+
		"Tenants:[{Name:t Requests:4 Tokens:307 OldestWaitMS:1000} {Name:u Requests:2 Tokens:200 OldestWaitMS:700}] "+
		"Models:[{Name:m Requests:5 Tokens:500 OldestWaitMS:1000} {Name:unknown Requests:1 Tokens:7 OldestWaitMS:100}] "+
		"Blocked:[{Name:sequences Requests:5 Tokens:500 OldestWaitMS:1000}] Ready:0 Held:0 Unserved:1}"; got != want {
		t.Errorf("summary\n%s, want\n%s", got, want)
	}
	b.Report("w", Load{Sequence: 2, FreeBlocks: 256}, 1000)
	if s := b.Summary(1000); s.Ready != 5 || len(s.Blocked) != 0 {
		t.Errorf("with room: %+v", s)
	}
}

// TestPositionIsTheOrderOfPlacement: what Explain says of positions is the order in which a worker
// with room takes the requests, and asking changes nothing.
func TestPositionIsTheOrderOfPlacement(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := New(Settings{Weights: map[string]int64{"u": 3}})
		w := worker("w")
		w.MaxSequences, w.MaxBatchTokens, w.TotalBlocks = 1000, 1<<20, 1<<20
		b.Join(w, true, 0)
		n := rapid.IntRange(1, 30).Draw(t, "requests")
		for i := range n {
			r := drawRequest(t, fmt.Sprint("r", i), rapid.Int64Range(0, 5).Draw(t, "arrival"))
			r.Model, r.Choices, r.Resumed = "m", 1, rapid.IntRange(0, 4).Draw(t, "resumed") == 0
			b.Push(r)
		}
		position := map[string]int{}
		for i := range n {
			id := fmt.Sprint("r", i)
			e, _ := b.Explain(id, 10)
			b.Summary(10)
			position[id] = e.ClassPosition
		}
		placed := map[int]int{}
		for _, a := range b.Plan(10, 1, all) {
			class := classOf(a.Request.Priority)
			placed[class]++
			if position[a.Request.ID] != placed[class] {
				t.Fatalf("%s was placed as number %d of its class, explained as %d", a.Request.ID, placed[class], position[a.Request.ID])
			}
		}
		if b.Len() != 0 {
			t.Fatalf("%d were not placed", b.Len())
		}
	})
}

func TestFiguresCount(t *testing.T) {
	b := New(Settings{})
	for n := range 3 {
		r := request(fmt.Sprint(n), 10)
		r.Choices, r.ArrivalMS, r.Priority = 1+n, int64(100*n), int32(-8+n/2)
		b.Push(r)
	}
	f := b.Figures(1000)
	if len(f) != 1 || f[0].Model != "m" || f[0].Requests != 3 || f[0].Sequences != 6 || f[0].Bytes != 300 || f[0].OldestWaitMS != 1000 || f[0].Classes[0] != 2 || f[0].Classes[1] != 1 {
		t.Errorf("%+v", f)
	}
	b.Remove("0")
	if f := b.Figures(1000); f[0].Requests != 2 || f[0].Sequences != 5 || f[0].OldestWaitMS != 900 || f[0].Classes[0] != 1 {
		t.Errorf("after one left %+v", f)
	}
}
