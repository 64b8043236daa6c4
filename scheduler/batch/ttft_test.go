package batch

import (
	"fmt"
	"strings"
	"testing"

	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/scheduler/prefix"
)

// fleet is a batcher over workers whose caches are known to an index. Its workers have steps of 512
// tokens and are taken to compute 8,000 tokens a second.
type fleet struct {
	*Batcher
	index *prefix.Index
	names map[string]prefix.Worker
}

func newFleet(t testing.TB, settings Settings, workers ...string) *fleet {
	f := &fleet{index: prefix.New(prefix.Settings{}), names: map[string]prefix.Worker{}}
	settings.Matcher = f.index
	f.Batcher = New(settings)
	for _, id := range workers {
		f.join(t, id)
	}
	return f
}

func (f *fleet) join(t testing.TB, id string) {
	name, err := f.index.Add()
	if err != nil {
		t.Fatal(err)
	}
	f.names[id] = name
	w := worker(id)
	w.Cache, w.ContextTokens, w.TotalBlocks, w.MaxSequences = name, 1<<16, 1<<12, 64
	f.Join(w, true, 0)
}

func (f *fleet) stores(id string, medium kvcache.Medium, r Request) {
	f.index.Stored(f.names[id], medium, r.Hashes)
}

// prompt is a request that begins with so many tokens of a stem and has so many of its own.
func prompt(id string, stem, shared, own int) Request {
	tokens := make([]int32, shared, shared+own)
	for n := range tokens {
		tokens[n] = int32(stem)
	}
	for n := range own {
		tokens = append(tokens, int32(1000+len(id)*n), int32(id[len(id)-1]))
	}
	r := request(id, shared+own)
	r.Hashes = kvcache.Hashes(nil, kvcache.Hash{}, tokens[:shared+own], 16)
	return r
}

func TestPromptsGoToTheirPrefix(t *testing.T) {
	f := newFleet(t, Settings{}, "a", "b", "c")
	f.stores("b", kvcache.Host, prompt("x", 1, 800, 0))
	f.stores("c", kvcache.Device, prompt("x", 1, 480, 0))
	f.Push(prompt("r1", 1, 800, 20))
	if got := plan(f.Batcher, 0, 1); got != "r1>b" {
		t.Errorf("800 tokens in host memory beat 480 on a device: %q", got)
	}
	f.Push(prompt("r2", 2, 800, 20))
	if got := plan(f.Batcher, 0, 2); got != "r2>a" {
		t.Errorf("an unknown prompt goes to an idle worker: %q", got)
	}
	// The charge is what must be computed: 20 tokens, and a tenth of 800.
	if m := f.members["b"]; m.charged.tokens != 100 {
		t.Errorf("b was charged %d tokens, want 100", m.charged.tokens)
	}
	f.Drain("b")
	f.Push(prompt("r3", 1, 800, 20))
	if got := plan(f.Batcher, 0, 3); got != "r3>c" {
		t.Errorf("with b draining, c has the next longest prefix: %q", got)
	}
}

// TestBurstsLandTogether: prompts with a common beginning that nobody holds, at one instant, compute
// it once; the promise lasts until events could have come, and goes with its worker.
func TestBurstsLandTogether(t *testing.T) {
	f := newFleet(t, Settings{}, "a", "b", "c", "d")
	for n := range 6 {
		f.Push(prompt(fmt.Sprint("r", n), 1, 480, 4))
	}
	got := plan(f.Batcher, 0, 1)
	if strings.Count(got, ">") != 6 || strings.Count(got, got[3:4]) != 6 {
		t.Errorf("a burst was scattered: %s", got)
	}
	f.Report("a", Load{Sequence: 1, FreeBlocks: 4096, DispatchIndex: 1}, 100)
	f.Push(prompt("soon", 1, 480, 4))
	if got := plan(f.Batcher, 100, 2); got != "soon>a" {
		t.Errorf("before its events are due: %q", got)
	}
	f.Report("a", Load{Sequence: 2, FreeBlocks: 4096, DispatchIndex: 2}, 5000)
	e := explained(t, f, prompt("late", 1, 480, 4), 5000)
	for _, w := range e.Workers {
		if w.DeviceTokens != 0 {
			t.Errorf("5 s later, without an event, %d tokens are promised by %s", w.DeviceTokens, w.WorkerID)
		}
	}

	f = newFleet(t, Settings{}, "a", "b")
	f.Push(prompt("r", 1, 960, 4))
	plan(f.Batcher, 0, 1)
	f.Leave("a")
	f.join(t, "a")
	for _, w := range explained(t, f, prompt("again", 1, 960, 4), 1).Workers {
		if w.DeviceTokens != 0 {
			t.Errorf("%s holds %d tokens by the promise of a worker that left", w.WorkerID, w.DeviceTokens)
		}
	}
}

func explained(t *testing.T, f *fleet, r Request, nowMS int64) Explanation {
	t.Helper()
	f.Push(r)
	defer f.Remove(r.ID)
	e, ok := f.Explain(r.ID, nowMS)
	if !ok {
		t.Fatalf("%s is not in the queue", r.ID)
	}
	return e
}

// TestHotPrefixesReplicate: requests wait for the busy holder of their prefix, in all no longer than
// computing it elsewhere takes; then another worker becomes a holder.
func TestHotPrefixesReplicate(t *testing.T) {
	f := newFleet(t, Settings{}, "cold", "hot")
	f.stores("hot", kvcache.Device, prompt("x", 1, 4000, 0))
	// The holder has all the prompt tokens that it may hold: 2 steps of 512.
	f.Report("hot", Load{Sequence: 1, Running: 4, FreeBlocks: 4096, PendingPrefill: 1024}, 0)
	for n := range 80 {
		f.Push(prompt(fmt.Sprint("r", n), 1, 4000, 400))
	}
	got := plan(f.Batcher, 0, 1)
	if n := strings.Count(got, ">cold"); n == 0 || strings.Contains(got, ">hot") {
		t.Fatalf("placed %q; want the overflow on the cold worker, the others held", got)
	}
	if f.Len() < 10 {
		t.Errorf("%d wait for the holder; it is worth waiting for 4,000 tokens' time for some", f.Len())
	}
	f.Report("cold", Load{Sequence: 1, FreeBlocks: 4096, DispatchIndex: 1}, 50)
	held := 0
	for n := range 80 {
		if e, ok := f.Explain(fmt.Sprint("r", n), 50); ok && e.HeldMS > 0 {
			held++
			if !strings.Contains(e.Unblock, "room on a worker that holds its prefix") || e.HeldMS != 50 {
				t.Fatalf("%s is explained by %q, held %d ms", e.Request.ID, e.Unblock, e.HeldMS)
			}
		}
	}
	if s := f.Summary(50); s.Held != held || held < 5 {
		t.Errorf("%d are held, the summary says %+v", held, s)
	}
	// The holder has time again: they go there.
	f.Report("hot", Load{Sequence: 2, Running: 4, FreeBlocks: 4096}, 100)
	if got := plan(f.Batcher, 100, 2); !strings.Contains(got, ">hot") {
		t.Errorf("the holder has room, placed %q", got)
	}
}

func TestHoldingEnds(t *testing.T) {
	f := newFleet(t, Settings{HoldMS: 500}, "cold", "hot")
	f.stores("hot", kvcache.Device, prompt("x", 1, 4000, 0))
	for now := int64(0); now <= 500; now += 100 {
		f.Report("hot", Load{Sequence: uint64(now + 1), Running: 4, FreeBlocks: 4096, PendingPrefill: 1024}, now)
		f.Report("cold", Load{Sequence: uint64(now + 1), FreeBlocks: 4096}, now)
		if now == 0 {
			f.Push(prompt("r", 1, 4000, 16))
		}
		want := ""
		if now == 500 {
			want = "r>cold"
		}
		if got := plan(f.Batcher, now, uint64(now+1)); got != want {
			t.Errorf("at %d ms: %q, want %q", now, got, want)
		}
	}
}

// TestResumedRequestsAreNotHeld: somebody reads them, so they start where there is room now.
func TestResumedRequestsAreNotHeld(t *testing.T) {
	f := newFleet(t, Settings{HoldMS: 500}, "cold", "hot")
	f.stores("hot", kvcache.Device, prompt("x", 1, 4000, 0))
	f.Report("hot", Load{Sequence: 1, Running: 4, FreeBlocks: 4096, PendingPrefill: 1024}, 0)
	f.Report("cold", Load{Sequence: 1, FreeBlocks: 4096}, 0)
	r := prompt("r", 1, 4000, 16)
	r.Resumed = true
	f.Push(r)
	if got := plan(f.Batcher, 0, 1); got != "r>cold" {
		t.Errorf("placed %q, want r>cold", got)
	}
}

// TestFreshWorkers: one that joins a busy fleet neither starves nor gets everything.
func TestFreshWorkers(t *testing.T) {
	f := newFleet(t, Settings{}, "a", "b", "c")
	n := 0
	index := uint64(0)
	round := func(now int64) map[string]int {
		on := map[string]int{}
		for range 12 {
			n++
			stem := n % 40
			if n%3 == 0 {
				stem = n
			}
			f.Push(prompt(fmt.Sprint("r", n), stem, 320, 64))
		}
		index++
		for _, a := range f.Plan(now, index, all) {
			on[a.WorkerID]++
			f.stores(a.WorkerID, kvcache.Device, a.Request)
		}
		for id := range f.members {
			f.Report(id, Load{Sequence: index, FreeBlocks: 4096, DispatchIndex: index}, now)
		}
		return on
	}
	for now := range int64(40) {
		round(now * 100)
	}
	f.join(t, "fresh")
	total, fresh := 0, 0
	for now := int64(40); now < 140; now++ {
		on := round(now * 100)
		if on["fresh"] > 9 {
			t.Errorf("at %d the fresh worker got %d of 12", now, on["fresh"])
		}
		fresh += on["fresh"]
		total += 12
	}
	if fresh < total/16 {
		t.Errorf("the fresh worker got %d of %d", fresh, total)
	}
}

// TestPrediction pins the formula, and how heartbeats age in it.
func TestPrediction(t *testing.T) {
	b := New(Settings{FreshMS: 100, StaleMS: 300})
	b.Join(worker("w"), true, 0)
	b.Report("w", Load{Sequence: 1, Running: 5, FreeBlocks: 256, PendingPrefill: 900}, 1000)
	m := b.members["w"]
	r := request("r", 700)
	// 900 pending and 700 own make 4 steps of 512, in each of which 5 sequences take 4 tokens' time.
	if c := b.candidate(b.pools[m.Model], m, &item{Request: r, need: r.need()}, 1000); c.us != (900+700+4*5*4)*1000/8 {
		t.Errorf("predicted %d us", c.us)
	}
	// 50 ms later 400 of the pending ones are computed.
	if c := b.candidate(b.pools[m.Model], m, &item{Request: r, need: r.need()}, 1050); c.us != (500+700+3*5*4)*1000/8 {
		t.Errorf("after 50 ms %d us", c.us)
	}
	// At 200 ms nothing is pending and the word counts half.
	if c := b.candidate(b.pools[m.Model], m, &item{Request: r, need: r.need()}, 1200); c.us != (700+2*5*4)*1000/8*2 {
		t.Errorf("after 200 ms %d us", c.us)
	}
	b.Report("w", Load{Sequence: 2, FreeBlocks: 256, Derate: 250}, 1200)
	if c := b.candidate(b.pools[m.Model], m, &item{Request: r, need: r.need()}, 1200); c.us != 700*1000/8*4 {
		t.Errorf("at a quarter of the speed %d us", c.us)
	}
}

// TestSpeedIsMeasured from heartbeats of a worker that has prompts to compute throughout.
func TestSpeedIsMeasured(t *testing.T) {
	b := New(Settings{})
	b.Join(worker("w"), true, 0)
	m := b.members["w"]
	pending := int64(3000)
	for n := range int64(100) { // 2,000 tokens a second, a prompt of 400 every 200 ms.
		b.Report("w", Load{Sequence: uint64(n + 1), FreeBlocks: 256, PendingPrefill: pending, DispatchIndex: uint64(n)}, n*200)
		m.take(charge{request: fmt.Sprint(n), index: uint64(n + 1), tokens: 400})
	}
	if got := m.speed.tokensPerS(); got != 2000 {
		t.Errorf("measured %d tokens/s, want 2,000", got)
	}
	// Idle times are not measured.
	for n := range int64(10) {
		b.Report("w", Load{Sequence: uint64(n + 200), FreeBlocks: 256, DispatchIndex: 1000}, 20_000+n*1000)
	}
	if got := m.speed.tokensPerS(); got != 2000 {
		t.Errorf("after idling %d tokens/s", got)
	}
}

// TestPromisesAreBounded: the oldest go first, and the lists stay whole.
func TestPromisesAreBounded(t *testing.T) {
	x := promises{heads: map[kvcache.Hash]int32{}}
	one, two := &member{}, &member{}
	common := prompt("x", 1, 64, 0).Hashes
	x.add(one, common, 0, 1)
	x.add(two, common, 0, 1)
	for n := range promisesKept {
		x.add(one, []kvcache.Hash{{1: byte(n), 2: byte(n >> 8), 3: byte(n >> 16), 4: 1}}, 0, 1)
	}
	if got := x.find(nil, common, 0); len(got) != 0 || len(x.ring) != promisesKept || len(x.heads) != promisesKept {
		t.Errorf("%d promises of the oldest, %d in all under %d hashes", len(got), len(x.ring), len(x.heads))
	}
	x.add(two, common, 0, 1)
	x.add(one, common, 0, 1)
	if got := x.find(nil, common, 0); len(got) != 2*4 || got[7].blocks != 4 {
		t.Errorf("promised %v; want 4 blocks of each of the two", got)
	}
	if got := x.find(nil, common, 1); len(got) != 0 {
		t.Errorf("%d promises after their time", len(got))
	}
}
