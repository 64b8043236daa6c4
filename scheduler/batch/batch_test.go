package batch

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/scheduler/prefix"
)

func worker(id string) Worker {
	return Worker{ID: id, Model: "m", ContextTokens: 2048, BlockTokens: 16, TotalBlocks: 256, MaxSequences: 8, MaxBatchTokens: 512}
}

func request(id string, tokens int) Request {
	return Request{ID: id, Model: "m", Tenant: "t", Tokens: tokens, Bytes: 100}
}

var all = Limits{Requests: 1 << 20, Bytes: 1 << 30}

// plan runs one plan and renders it as "request>worker" words.
func plan(b *Batcher, nowMS int64, index uint64) string {
	var out []string
	for _, a := range b.Plan(nowMS, index, all) {
		out = append(out, a.Request.ID+">"+a.WorkerID)
	}
	return strings.Join(out, " ")
}

func TestRequestsSpreadOverWorkersAndWaitForRoom(t *testing.T) {
	b := New(Settings{})
	for _, w := range []string{"w1", "w2"} {
		b.Join(worker(w), true, 0)
	}
	for i := range 18 {
		b.Push(request(fmt.Sprint("r", i), 10))
	}
	first := plan(b, 0, 1)
	if strings.Count(first, ">w1") != 8 || strings.Count(first, ">w2") != 8 || b.Len() != 2 {
		t.Fatalf("16 of 18 should be bound, 8 a worker: %s; %d wait", first, b.Len())
	}
	if !strings.HasPrefix(first, "r0>w1 r1>w2 r2>w1 ") {
		t.Errorf("not in order of arrival by turns: %s", first)
	}
	if got := plan(b, 1, 2); got != "" {
		t.Errorf("bound without room: %s", got)
	}
	// The heartbeat counts dispatch 1: eight run. One ends: room for one.
	b.Report("w1", Load{Sequence: 1, Running: 7, FreeBlocks: 249, DispatchIndex: 1}, 5)
	if got := plan(b, 5, 3); got != "r16>w1" {
		t.Errorf("after one ended on w1: %q, want r16>w1", got)
	}
}

func TestChargesAndTheirUndo(t *testing.T) {
	b := New(Settings{})
	b.Join(worker("w"), true, 0)
	for i := range 8 {
		b.Push(request(fmt.Sprint("r", i), 10))
	}
	if got := plan(b, 0, 5); strings.Count(got, ">") != 8 {
		t.Fatalf("bound %s", got)
	}
	// A heartbeat from before the dispatch changes nothing: the worker is still full.
	b.Report("w", Load{Sequence: 1, FreeBlocks: 256, DispatchIndex: 4}, 1)
	b.Push(request("next", 10))
	if got := plan(b, 1, 6); got != "" {
		t.Errorf("a heartbeat that is older than the dispatch made room: %s", got)
	}
	b.Forget("w", "r3")
	if got := plan(b, 1, 7); got != "next>w" {
		t.Errorf("after undoing one: %q, want next>w", got)
	}
	// A repeated older heartbeat is ignored.
	b.Report("w", Load{Sequence: 3, Running: 8, FreeBlocks: 240, DispatchIndex: 7}, 2)
	b.Report("w", Load{Sequence: 2, Running: 0, FreeBlocks: 256, DispatchIndex: 7}, 3)
	b.Push(request("late", 10))
	if got := plan(b, 3, 8); got != "" {
		t.Errorf("an overtaken heartbeat was believed: %s", got)
	}
}

func TestBlocksAndPrefillBoundBinding(t *testing.T) {
	b := New(Settings{})
	b.Join(worker("w"), true, 0)
	b.Push(request("a", 500))
	b.Push(request("b", 500))
	b.Push(request("c", 500))
	if got := plan(b, 0, 1); got != "a>w b>w" {
		t.Errorf("two steps of prompts, no more: %q, want a>w b>w", got)
	}
	b.Report("w", Load{Sequence: 1, Running: 2, FreeBlocks: 20, DispatchIndex: 1}, 1)
	if got := plan(b, 1, 2); got != "" {
		t.Errorf("20 free blocks cannot take 500 tokens: %s", got)
	}
	b.Report("w", Load{Sequence: 2, Running: 2, FreeBlocks: 33, DispatchIndex: 1}, 2)
	if got := plan(b, 2, 3); got != "c>w" {
		t.Errorf("33 free blocks take 500 tokens and one more: %q, want c>w", got)
	}
	long := request("long", 2000)
	b.Push(long)
	b.Report("w", Load{Sequence: 3, Running: 3, FreeBlocks: 200, PendingPrefill: 1, DispatchIndex: 3}, 3)
	if got := plan(b, 3, 4); got != "" {
		t.Errorf("a prompt of four steps went behind another: %s", got)
	}
	b.Report("w", Load{Sequence: 4, Running: 3, FreeBlocks: 200, DispatchIndex: 3}, 4)
	if got := plan(b, 4, 5); got != "long>w" {
		t.Errorf("a long prompt alone: %q, want long>w", got)
	}
}

func TestChoicesTakeSequences(t *testing.T) {
	b := New(Settings{})
	b.Join(worker("w"), true, 0)
	r := request("n5", 16)
	r.Choices = 5
	b.Push(r)
	r.ID = "n4"
	r.Choices = 4
	b.Push(r)
	if got := plan(b, 0, 1); got != "n5>w" {
		t.Errorf("5+4 sequences on 8: %q, want n5>w", got)
	}
	b = New(Settings{})
	b.Join(worker("w"), true, 0)
	r.ID, r.Choices = "n128", 128
	b.Push(r)
	if got := plan(b, 0, 1); got != "n128>w" {
		t.Errorf("more choices than sequences start on an idle worker: %q", got)
	}
}

func TestOrder(t *testing.T) {
	b := New(Settings{Weights: map[string]int64{"heavy": 3}})
	push := func(id, tenant string, priority int32, arrival, deadline int64) {
		b.Push(Request{ID: id, Model: "m", Tenant: tenant, Priority: priority, ArrivalMS: arrival, DeadlineMS: deadline, Tokens: 64})
	}
	push("late", "t", 0, 20, 0)
	push("early", "t", 0, 10, 0)
	push("due", "t", 0, 30, 50_000)
	push("background", "t", 5, 0, 0)
	push("urgent", "t", -1, 30, 0)
	w := worker("w")
	w.MaxSequences = 100
	b.Join(w, true, 0)
	if got := plan(b, 40, 1); got != "urgent>w due>w early>w late>w background>w" {
		t.Errorf("order %s", got)
	}

	// Tenants take turns by tokens served; weight 3 gets three of four.
	b.Report("w", Load{Sequence: 1, FreeBlocks: 256, DispatchIndex: 1}, 40)
	for i := range 8 {
		push(fmt.Sprint("h", i), "heavy", 0, 40, 0)
		push(fmt.Sprint("l", i), "light", 0, 40, 0)
	}
	got := b.Plan(41, 2, Limits{Requests: 8, Bytes: 1 << 20})
	heavy := 0
	for _, a := range got {
		if a.Request.Tenant == "heavy" {
			heavy++
		}
	}
	if len(got) != 8 || heavy != 6 {
		t.Errorf("%d of %d went to the tenant of weight 3, want 6 of 8", heavy, len(got))
	}
}

// TestOutputFits: a request goes to a worker that can hold it to its end, and waits where there is none.
func TestOutputFits(t *testing.T) {
	b := New(Settings{})
	for _, w := range []string{"long", "short"} {
		info := worker(w)
		if w == "short" {
			info.ContextTokens = 512
		}
		b.Join(info, true, 0)
	}
	for i, c := range []struct {
		length int
		at     string
	}{{0, "long"}, {600, "long"}, {600, "long"}, {2048, "long"}, {512, "short"}} {
		r := request(fmt.Sprint(i), 100)
		r.Length = c.length
		b.Push(r)
		if got, want := plan(b, 0, uint64(i+1)), fmt.Sprintf("%d>%s", i, c.at); got != want {
			t.Errorf("length %d: %s, want %s", c.length, got, want)
		}
	}
	b.Cordon("long", true)
	r := request("last", 100)
	r.Length = 2048
	b.Push(r)
	if got := plan(b, 0, 10); got != "" {
		t.Errorf("%s, which would end it early", got)
	}
	b.Leave("long")
	if got := plan(b, 0, 11); got != "" {
		t.Errorf("%s, which would end it early", got)
	}
	b.Join(worker("another"), true, 0)
	if got := plan(b, 0, 12); got != "last>another" {
		t.Errorf("%q, now that a worker can hold it", got)
	}
}

func TestBigRequestIsPassedThenWaitedFor(t *testing.T) {
	b := New(Settings{PassMS: 100})
	b.Join(worker("w"), true, 0)
	b.Report("w", Load{Sequence: 1, Running: 2, FreeBlocks: 60}, 0)
	b.Push(request("big", 1600))
	b.Push(request("small", 16))
	if got := plan(b, 0, 1); got != "small>w" {
		t.Errorf("a small request may pass at first: %q", got)
	}
	b.Push(request("small2", 16))
	b.Report("w", Load{Sequence: 2, Running: 3, FreeBlocks: 58, DispatchIndex: 1}, 100)
	if got := plan(b, 100, 2); got != "" {
		t.Errorf("after PassMS the worker is kept for the big one: %q", got)
	}
	b.Report("w", Load{Sequence: 3, Running: 0, FreeBlocks: 256, DispatchIndex: 1}, 101)
	if got := plan(b, 101, 3); got != "big>w" {
		t.Errorf("the big one starts, alone for now: %q", got)
	}
}

func TestStaleHeartbeatsLoseTheirRoom(t *testing.T) {
	b := New(Settings{FreshMS: 100, StaleMS: 300})
	for _, w := range []string{"w"} {
		b.Join(worker(w), true, 0)
	}
	for i := range 20 {
		b.Push(request(fmt.Sprint("r", i), 4))
	}
	if got := plan(b, 200, 1); strings.Count(got, ">") != 4 {
		t.Errorf("half stale, half the room: %s", got)
	}
	if got := plan(b, 301, 2); got != "" {
		t.Errorf("a silent worker was given work: %s", got)
	}
	b.Report("w", Load{Sequence: 1, Running: 4, FreeBlocks: 252, DispatchIndex: 1}, 302)
	if got := plan(b, 302, 3); strings.Count(got, ">") != 4 {
		t.Errorf("heard again, the rest fits: %s", got)
	}
}

func TestExpiredRemoveAndDrain(t *testing.T) {
	b := New(Settings{})
	r := request("a", 10)
	r.DeadlineMS = 50
	b.Push(r)
	r.ID, r.DeadlineMS = "b", 40
	b.Push(r)
	b.Push(request("c", 10))
	if next, ok := b.NextDeadlineMS(); !ok || next != 40 {
		t.Errorf("next deadline %d %v, want 40", next, ok)
	}
	if got := b.Expired(45); len(got) != 1 || got[0].ID != "b" {
		t.Errorf("expired at 45: %v", got)
	}
	if !b.Remove("a") || b.Remove("a") || b.Len() != 1 || b.Bytes() != 100 {
		t.Errorf("after removing a: %d wait, %d bytes", b.Len(), b.Bytes())
	}
	b.Join(worker("w"), true, 0)
	b.Drain("w")
	if got := plan(b, 0, 1); got != "" {
		t.Errorf("a draining worker got %s", got)
	}
	b.Leave("w")
	b.Remove("c")
	if len(b.pools) != 0 {
		t.Errorf("%d pools left of nothing", len(b.pools))
	}
}

// truth is what workers really hold in a simulation, apart from the batcher's own books.
type truth struct {
	Worker
	running map[string]Request
	index   uint64
	seq     uint64
}

func (w *truth) used() (sequences, blocks int) {
	for _, r := range w.running {
		sequences += min(max(1, r.Choices), w.MaxSequences)
		blocks += min((r.Tokens+w.BlockTokens-1)/w.BlockTokens+max(1, r.Choices), w.TotalBlocks)
	}
	return sequences, blocks
}

// randomCaches say that workers hold more or less of a prompt.
type randomCaches struct{ seed byte }

func (c *randomCaches) Match(dst []prefix.Match, hashes []kvcache.Hash) []prefix.Match {
	for n := range byte(4) {
		if m := (c.seed + n*37 + hashes[0][0]) % 16; m < 12 {
			dst = append(dst, prefix.Match{Worker: prefix.Worker(n), Device: int32(m % 5), Host: int32(m % 3), Disk: int32(m % 2)})
		}
	}
	return dst
}

func drawRequest(t *rapid.T, id string, nowMS int64) Request {
	r := Request{
		ID: id, Model: rapid.SampledFrom([]string{"m", "n"}).Draw(t, "model"),
		Tenant:    rapid.SampledFrom([]string{"t", "u", "v"}).Draw(t, "tenant"),
		Priority:  rapid.Int32Range(-10, 10).Draw(t, "priority"),
		ArrivalMS: nowMS, Tokens: rapid.IntRange(1, 2047).Draw(t, "tokens"),
		Choices: rapid.IntRange(0, 9).Draw(t, "choices"), Bytes: 10,
	}
	for n := range r.Tokens / 16 {
		r.Hashes = append(r.Hashes, kvcache.Hash{byte(r.Tokens % 3), byte(n)})
	}
	if rapid.Bool().Draw(t, "due") {
		r.DeadlineMS = nowMS + rapid.Int64Range(1, 5000).Draw(t, "deadline")
	}
	return r
}

// TestPlanSafety drives two batchers with the same random history and holds three properties: the
// same calls give the same plans; no worker is ever given more sequences or blocks than it has, nor
// anything once it has the prompt tokens of the steps ahead; and no request is lost or given twice.
func TestPlanSafety(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		policy := rapid.SampledFrom(Policies()).Draw(t, "policy")
		caches := &randomCaches{}
		settings := Settings{PassMS: 50, HoldMS: 500, Policy: policy, Matcher: caches}
		one, two := New(settings), New(settings)
		workers := map[string]*truth{}
		waiting := map[string]bool{}
		var now int64
		index := uint64(1)
		next := 0
		each := func(f func(*Batcher)) { f(one); f(two) }
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			now += rapid.Int64Range(0, 400).Draw(t, "wait")
			id := rapid.SampledFrom([]string{"w1", "w2", "w3"}).Draw(t, "worker")
			w := workers[id]
			switch action := rapid.IntRange(0, 9).Draw(t, "action"); {
			case action < 4:
				r := drawRequest(t, fmt.Sprint("r", next), now)
				next++
				waiting[r.ID] = true
				each(func(b *Batcher) { b.Push(r) })
			case action == 4:
				w = &truth{Worker: worker(id), running: map[string]Request{}}
				w.Cache = prefix.Worker(id[1] - '0')
				if id == "w3" {
					w.Model = "n"
				}
				workers[id] = w
				each(func(b *Batcher) { b.Join(w.Worker, true, now) })
			case action == 5:
				delete(workers, id)
				each(func(b *Batcher) { b.Leave(id) })
			case action == 6 && w != nil:
				for r := range w.running {
					delete(w.running, r)
					each(func(b *Batcher) { b.Forget(id, r) })
					break
				}
			case action == 7 && w != nil:
				w.seq++
				sequences, blocks := w.used()
				load := Load{Sequence: w.seq, Running: sequences, FreeBlocks: w.TotalBlocks - blocks, DispatchIndex: w.index}
				each(func(b *Batcher) { b.Report(id, load, now) })
			case action == 8:
				gone := one.Expired(now)
				if again := two.Expired(now); !reflect.DeepEqual(gone, again) {
					t.Fatalf("expired differ: %v, %v", gone, again)
				}
				for _, r := range gone {
					delete(waiting, r.ID)
				}
			}
			caches.seed = rapid.Byte().Draw(t, "caches")
			if rapid.Bool().Draw(t, "ask") { // Asking changes nothing: the other batcher is not asked.
				one.Summary(now)
				one.Explain(fmt.Sprint("r", next-1), now)
			}
			index++
			limits := Limits{Requests: rapid.IntRange(1, 9).Draw(t, "limit"), Bytes: 1 << 20}
			got := one.Plan(now, index, limits)
			if again := two.Plan(now, index, limits); !reflect.DeepEqual(got, again) {
				t.Fatalf("plans differ:\n%v\n%v", got, again)
			}
			if len(got) > limits.Requests {
				t.Fatalf("%d assignments, limit %d", len(got), limits.Requests)
			}
			for _, a := range got {
				w := workers[a.WorkerID]
				if !waiting[a.Request.ID] || w == nil || w.Model != a.Request.Model {
					t.Fatalf("%s bound to %s: waiting %v, worker %+v", a.Request.ID, a.WorkerID, waiting[a.Request.ID], w)
				}
				delete(waiting, a.Request.ID)
				w.running[a.Request.ID] = a.Request
				w.index = index
			}
			for _, w := range workers {
				if sequences, blocks := w.used(); sequences > w.MaxSequences || blocks > w.TotalBlocks {
					t.Fatalf("worker %s holds %d of %d sequences, %d of %d blocks", w.ID, sequences, w.MaxSequences, blocks, w.TotalBlocks)
				}
			}
			for id, m := range one.members {
				if n := len(m.charges); n > 1 && m.charges[n-1].index == index && m.charged.tokens-m.charges[n-1].tokens >= 2*512 {
					t.Fatalf("worker %s was charged %d prompt tokens in %d dispatches", id, m.charged.tokens, len(m.charges))
				}
			}
			if one.Len() != len(waiting) || one.Bytes() != int64(10*len(waiting)) {
				t.Fatalf("%d wait (%d bytes), want %d", one.Len(), one.Bytes(), len(waiting))
			}
		}
	})
}

// BenchmarkPlan is the leader's load at 1,000 workers: at each instant some requests arrive, are
// bound, and end, and the workers concerned send heartbeats.
func BenchmarkPlan(b *testing.B) {
	for _, waiting := range []int{0, 10_000, 100_000} {
		b.Run(fmt.Sprintf("workers=1000/waiting=%d", waiting), func(b *testing.B) {
			batcher := New(Settings{})
			type state struct {
				running int
				seq     uint64
			}
			states := map[string]*state{}
			for i := range 1000 {
				w := worker(fmt.Sprintf("w%04d", i))
				w.MaxSequences, w.TotalBlocks = 64, 1<<16
				batcher.Join(w, true, 0)
				states[w.ID] = &state{}
			}
			n := 0
			push := func(now int64) {
				n++
				batcher.Push(Request{ID: fmt.Sprint("r", n), Model: "m", Tenant: fmt.Sprint("t", n%100), ArrivalMS: now, Tokens: 128, Bytes: 500})
			}
			if waiting > 0 { // Fill every worker first, so that the queue stays.
				for id, s := range states {
					s.running = 64
					s.seq++
					batcher.Report(id, Load{Sequence: s.seq, Running: 64, FreeBlocks: 1 << 15}, 0)
				}
				for range waiting {
					push(0)
				}
			}
			var bound []Assignment
			now, index, done := int64(0), uint64(0), 0
			b.ResetTimer()
			for done < b.N {
				now++
				index++
				ended := bound
				for range 20 {
					push(now)
				}
				if waiting > 0 && len(ended) == 0 {
					for i := range 20 {
						ended = append(ended, Assignment{WorkerID: fmt.Sprintf("w%04d", (int(now)*20+i)%1000)})
					}
				}
				for _, a := range ended {
					s := states[a.WorkerID]
					s.seq++
					s.running = max(0, s.running-1)
					batcher.Report(a.WorkerID, Load{Sequence: s.seq, Running: s.running, FreeBlocks: 1 << 15, DispatchIndex: index - 1}, now)
					batcher.Forget(a.WorkerID, a.Request.ID)
				}
				if now%250 == 0 {
					for id, s := range states {
						s.seq++
						batcher.Report(id, Load{Sequence: s.seq, Running: s.running, FreeBlocks: 1 << 15, DispatchIndex: index - 1}, now)
					}
				}
				bound = batcher.Plan(now, index, all)
				for _, a := range bound {
					states[a.WorkerID].running++
				}
				done += 20
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "admissions/s")
		})
	}
}

// TestDevicesSteerPlacement: an unhealthy worker gets nothing new until it is healthy again; one that
// is held down gets its share less.
func TestDevicesSteerPlacement(t *testing.T) {
	b := New(Settings{})
	for _, w := range []string{"hot", "sick", "well"} {
		b.Join(worker(w), true, 0)
	}
	b.Report("hot", Load{Sequence: 1, FreeBlocks: 256, Derate: 250}, 1)
	b.Report("sick", Load{Sequence: 1, FreeBlocks: 256, Derate: 1000, Unhealthy: true}, 1)
	b.Report("well", Load{Sequence: 1, FreeBlocks: 256, Derate: 1000}, 1)
	for i := range 5 {
		b.Push(request(fmt.Sprint("r", i), 10))
	}
	got := plan(b, 1, 1)
	if strings.Count(got, ">well") != 4 || strings.Count(got, ">hot") != 1 || strings.Contains(got, ">sick") {
		t.Errorf("placed %s; want four at the well one for one at the hot one", got)
	}
	b.Report("sick", Load{Sequence: 2, FreeBlocks: 256, Derate: 1000}, 2)
	b.Push(request("late", 10))
	if got := plan(b, 2, 2); got != "late>sick" {
		t.Errorf("after its recovery: %q, want late>sick, which is idle", got)
	}
}

// TestResumedRequestsGoInTheOrderOfTheirPause: of requests that lost their workers, those whose clients wait
// longest are first, whatever order they came back in.
func TestResumedRequestsGoInTheOrderOfTheirPause(t *testing.T) {
	b := New(Settings{})
	w := worker("w")
	w.MaxSequences = 100
	b.Join(w, true, 0)
	b.Push(request("new", 10))
	for n, paused := range []int64{30, 10, 20} {
		r := request(fmt.Sprint("paused", paused), 10)
		r.ArrivalMS, r.Resumed, r.PausedMS = int64(n), true, paused
		b.Push(r)
	}
	if got := plan(b, 40, 1); got != "paused10>w paused20>w paused30>w new>w" {
		t.Errorf("placed %s", got)
	}
}

// TestResumedRequestsGoFirst: what has run before passes its class, whatever its tenant was given, but
// not the classes above.
func TestResumedRequestsGoFirst(t *testing.T) {
	b := New(Settings{})
	w := worker("w")
	w.MaxSequences = 1
	b.Join(w, true, 0)
	b.Served("m", "heavy", 0, 1_000_000)
	for _, r := range []Request{
		{ID: "light", Tenant: "light"}, {ID: "heavy", Tenant: "heavy", Resumed: true}, {ID: "urgent", Tenant: "light", Priority: -1},
	} {
		r.Model, r.Tokens, r.Bytes = "m", 10, 100
		b.Push(r)
	}
	var order []string
	for n := range uint64(3) {
		for _, a := range b.Plan(int64(n), n+1, all) {
			order = append(order, a.Request.ID)
			b.Forget("w", a.Request.ID)
		}
	}
	if got := strings.Join(order, " "); got != "urgent heavy light" {
		t.Errorf("placed %s, want urgent heavy light", got)
	}
}
