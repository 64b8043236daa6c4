package batch

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// greedy is a tenant that keeps so many requests waiting.
type greedy struct {
	name     string
	priority int32
	weight   int64
	backlog  int
	largest  int
}

// waiting is a request of an overload with what had been served when it came.
type waiting struct {
	Request
	tenant *greedy
	// since is what was served before it, ahead what its tenant had waiting before it.
	since, ahead int64
}

// overload keeps tenants' backlogs up while a worker serves one request after the other for ever. It
// calls started for each, with the tokens served since it came.
func overload(t *rapid.T, tenants []*greedy, starts int, started func(w *waiting, tokens int64)) {
	weights := map[string]int64{}
	for _, g := range tenants {
		weights[g.name] = g.weight
	}
	b := New(Settings{Weights: weights})
	w := worker("w")
	w.MaxSequences, w.ContextTokens, w.TotalBlocks, w.MaxBatchTokens = 1, 1<<20, 1<<16, 1<<20
	b.Join(w, true, 0)
	queued := map[string]*waiting{}
	backlog, ahead := map[*greedy]int{}, map[*greedy]int64{}
	served, n := int64(0), 0
	for now := int64(0); now < int64(starts); now++ {
		for _, g := range tenants {
			for backlog[g] < g.backlog {
				n++
				r := Request{ID: fmt.Sprint("r", n), Model: "m", Tenant: g.name, Priority: g.priority, ArrivalMS: now, Tokens: 1 + int(draw(uint64(n))%uint64(g.largest))}
				queued[r.ID] = &waiting{r, g, served, ahead[g]}
				ahead[g] += int64(r.Tokens)
				backlog[g]++
				b.Push(r)
			}
		}
		for _, a := range b.Plan(now, uint64(now+1), all) {
			q := queued[a.Request.ID]
			delete(queued, a.Request.ID)
			backlog[q.tenant]--
			ahead[q.tenant] -= int64(q.Tokens)
			started(q, served-q.since)
			served += int64(q.Tokens)
			b.Forget("w", a.Request.ID)
		}
		b.Report("w", Load{Sequence: uint64(now + 1), FreeBlocks: w.TotalBlocks, DispatchIndex: uint64(now + 1)}, now)
	}
}

func drawGreedy(t *rapid.T) []*greedy {
	var out []*greedy
	for n := range rapid.IntRange(2, 8).Draw(t, "tenants") {
		out = append(out, &greedy{
			name: fmt.Sprint("t", n), priority: rapid.Int32Range(-8, 7).Draw(t, "priority"), weight: rapid.Int64Range(1, 4).Draw(t, "weight"),
			backlog: rapid.SampledFrom([]int{1, 2, 30, 1000}).Draw(t, "backlog"), largest: rapid.SampledFrom([]int{10, 100, 1000}).Draw(t, "largest"),
		})
	}
	return out
}

// worstTokens is what may be served at most between a request's coming and its start, in tokens; see
// docs/scheduling.md. Every tenant has always something waiting.
func worstTokens(q *waiting, tenants []*greedy) float64 {
	var weights, largest, classWeights int64
	seen := map[int32]bool{}
	top := true
	for _, g := range tenants {
		largest = max(largest, int64(g.largest))
		if g.priority < q.Priority {
			top = false
		}
		if g.priority == q.Priority {
			weights += g.weight
		}
		if !seen[g.priority] {
			seen[g.priority] = true
			classWeights += int64(MaxPriority+1) - int64(g.priority)
		}
	}
	// Beyond its share, each tenant of its class may be one request of its own ahead by weight.
	lumps := 2 * largest * weights
	inClass := float64(q.ahead+int64(q.Tokens))*float64(weights)/float64(q.tenant.weight) + float64(lumps)
	if top {
		return inClass*reserveShare/(reserveShare-1) + float64(creditTokens+largest)
	}
	share := float64(MaxPriority+1-q.Priority) / float64(classWeights) / reserveShare
	// The other classes may be one request ahead by weight, and the reserve in debt.
	return (inClass+2*float64(largest))/share + reserveShare*float64(2*creditTokens+largest)
}

// TestNothingStarves: under an overload that never ends, without deadlines, from tenants of unequal
// greed, weights and classes, every request starts within the bound that the documentation states.
func TestNothingStarves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tenants := drawGreedy(t)
		overload(t, tenants, 4000, func(q *waiting, tokens int64) {
			if worst := worstTokens(q, tenants); float64(tokens) > worst {
				t.Fatalf("a request of %s (priority %d, weight %d, %d tokens, %d ahead) started after %d tokens; the bound is %.0f",
					q.Tenant, q.Priority, q.tenant.weight, q.Tokens, q.ahead, tokens, worst)
			}
		})
	})
}

// TestBacklogsBuyNothing: tenants of one class get what their weights say, whatever they have waiting.
func TestBacklogsBuyNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tenants := drawGreedy(t)
		var weights int64
		for _, g := range tenants {
			g.priority = 0
			weights += g.weight
		}
		served, total := map[string]int64{}, int64(0)
		overload(t, tenants, 4000, func(q *waiting, _ int64) {
			served[q.Tenant] += int64(q.Tokens)
			total += int64(q.Tokens)
		})
		for _, g := range tenants {
			want := total * g.weight / weights
			if off := served[g.name] - want; off < -4000 || off > 4000 {
				t.Fatalf("%s, weight %d of %d with a backlog of %d, was served %d of %d tokens; its share is %d", g.name, g.weight, weights, g.backlog, served[g.name], total, want)
			}
		}
	})
}

// TestClassesAreNotTurnedOver: the most urgent class gets all but the reserve, and of the others none
// less than one that is less urgent.
func TestClassesAreNotTurnedOver(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tenants := drawGreedy(t)
		for _, g := range tenants {
			g.largest = 100
		}
		served, total := map[int32]int64{}, int64(0)
		overload(t, tenants, 6000, func(q *waiting, _ int64) {
			served[q.Priority] += int64(q.Tokens)
			total += int64(q.Tokens)
		})
		var above int32 = MinPriority - 1
		for p := int32(MinPriority); p <= MaxPriority; p++ {
			if served[p] == 0 {
				continue
			}
			if above < MinPriority {
				if least := total*(reserveShare-1)/reserveShare - creditTokens; served[p] < least {
					t.Fatalf("the most urgent class %d got %d of %d tokens, want %d", p, served[p], total, least)
				}
			} else if served[p] > served[above]+200 {
				t.Fatalf("class %d got %d tokens, class %d above it %d", p, served[p], above, served[above])
			}
			above = p
		}
	})
}

// TestNewcomersStartWhereOthersStand: a tenant that comes, or comes back, is behind nobody's backlog,
// whatever other classes and models were served meanwhile.
func TestNewcomersStartWhereOthersStand(t *testing.T) {
	b := New(Settings{})
	for _, model := range []string{"fast", "slow"} {
		w := worker(model)
		w.Model, w.MaxSequences = model, 1
		b.Join(w, true, 0)
	}
	n := 0
	push := func(model, tenant string, priority int32) string {
		n++
		id := fmt.Sprint(tenant, n)
		b.Push(Request{ID: id, Model: model, Tenant: tenant, Priority: priority, ArrivalMS: int64(n), Tokens: 100})
		return id
	}
	for range 300 {
		push("slow", "backlog", 3)
	}
	index := uint64(0)
	step := func() (out []Assignment) {
		index++
		out = b.Plan(int64(n), index, all)
		for _, a := range out {
			b.Forget(a.WorkerID, a.Request.ID)
		}
		return out
	}
	for range 200 { // Others are given much in another model and in another class.
		push("fast", "rich", 0)
		push("slow", "urgent", -1)
		step()
	}
	id := push("slow", "newcomer", 3)
	for range 40 {
		for _, a := range step() {
			if a.Request.ID == id {
				return
			}
		}
	}
	t.Error("a newcomer's single request waits behind another tenant's backlog")
}

// TestIdlingSavesNoCredit: a tenant or a class that comes back after a rest has its share from then on,
// and nothing for the time before.
func TestIdlingSavesNoCredit(t *testing.T) {
	b := New(Settings{})
	w := worker("w")
	w.MaxSequences = 1
	b.Join(w, true, 0)
	now, n := int64(0), 0
	// serve starts so many requests, each of 100 tokens, while each of these keeps ten waiting, and counts
	// how many are whose.
	type line struct {
		tenant   string
		priority int32
	}
	waits := map[line]int{}
	serve := func(starts int, lines ...line) map[line]int {
		out := map[line]int{}
		for range starts {
			now++
			for _, l := range lines {
				for ; waits[l] < 10; waits[l]++ {
					n++
					b.Push(Request{ID: fmt.Sprint(n), Model: "m", Tenant: l.tenant, Priority: l.priority, ArrivalMS: now, Tokens: 100})
				}
			}
			for _, a := range b.Plan(now, uint64(now), all) {
				l := line{a.Request.Tenant, a.Request.Priority}
				waits[l]--
				out[l]++
				b.Forget("w", a.Request.ID)
			}
			b.Report("w", Load{Sequence: uint64(now), FreeBlocks: 256, DispatchIndex: uint64(now)}, now)
		}
		return out
	}
	rests, works, low, lower := line{"rests", 0}, line{"works", 0}, line{"low", 1}, line{"lower", 2}
	serve(20, rests)
	serve(1000, works)
	if got := serve(100, rests, works); got[rests] < 45 || got[rests] > 55 {
		t.Errorf("after a rest a tenant got %d of 100; half are its share", got[rests])
	}
	b = New(Settings{})
	b.Join(w, true, now)
	clear(waits)
	serve(4000, works, low)
	if got := serve(800, works, low, lower); got[lower] < 40 || got[lower] > 60 {
		t.Errorf("after a rest a class got %d of 800; its share is 6 of 13 of an eighth", got[lower])
	}
}

// TestDeadlinesPassForAMinute: a tenant's requests with deadlines pass its one without, but not for ever.
func TestDeadlinesPassForAMinute(t *testing.T) {
	b := New(Settings{})
	w := worker("w")
	w.MaxSequences = 1
	b.Join(w, true, 0)
	b.Push(request("patient", 10))
	for now := int64(0); now <= 70_000; now += 100 {
		r := request(fmt.Sprint("due", now), 10)
		r.ArrivalMS, r.DeadlineMS = now, now+5000
		b.Push(r)
		b.Expired(now)
		for _, a := range b.Plan(now, uint64(now+1), all) {
			if a.Request.ID == "patient" {
				if now < patienceMS-5000 {
					t.Errorf("one without a deadline went first after %d ms", now)
				}
				return
			}
			b.Forget("w", a.Request.ID)
		}
		b.Report("w", Load{Sequence: uint64(now + 1), FreeBlocks: 256, DispatchIndex: uint64(now + 1)}, now)
	}
	t.Error("a request without a deadline starves behind its own tenant's with one")
}

// TestReservationsArePaidOnce: a request with a reservation is charged when it gets it, and its tenant
// has its tokens back if it leaves without having started.
func TestReservationsArePaidOnce(t *testing.T) {
	account := func(b *Batcher) int64 { return b.pools["m"].queue.class(classOf(0)).flows["t"].served / accountScale }
	b := New(Settings{PassMS: 100})
	b.Join(worker("w"), true, 0)
	b.Report("w", Load{Sequence: 1, Running: 2, FreeBlocks: 60}, 0)
	b.Push(request("big", 1600))
	b.Push(request("small", 16))
	if got := plan(b, 0, 1); got != "small>w" || account(b) != 16 {
		t.Fatalf("placed %s, charged %d", got, account(b))
	}
	plan(b, 100, 2)
	if got := account(b); got != 1616 || len(b.pools["m"].reserved) != 1 {
		t.Fatalf("with %d reservations %d tokens are charged, want 1 and 1,616", len(b.pools["m"].reserved), got)
	}
	b.Remove("big")
	if got := account(b); got != 16 || len(b.pools["m"].reserved) != 0 || !b.pools["m"].open.has(b.members["w"]) {
		t.Errorf("after it left %d tokens are charged, %d reservations", got, len(b.pools["m"].reserved))
	}
	b.Push(request("big", 1600))
	b.Push(request("small", 16))
	plan(b, 200, 3)
	plan(b, 300, 4)
	b.Report("w", Load{Sequence: 2, FreeBlocks: 256, DispatchIndex: 4}, 301)
	if got := plan(b, 301, 5); got != "big>w" || account(b) != 1632 {
		t.Errorf("started %q, %d tokens are charged; want big>w, 1,632", got, account(b))
	}
}

// TestChoicesCost: a tenant whose requests have many choices is served fewer of them than one whose equal
// prompts have one, by what its further sequences count.
func TestChoicesCost(t *testing.T) {
	b := New(Settings{})
	w := worker("w")
	w.MaxSequences, w.ContextTokens, w.TotalBlocks, w.MaxBatchTokens = 64, 1<<20, 1<<16, 1<<20
	b.Join(w, true, 0)
	started := map[string]int{}
	for n := range 400 {
		for tenant, choices := range map[string]int{"many": 15, "one": 1} {
			b.Push(Request{ID: fmt.Sprint(tenant, n), Model: "m", Tenant: tenant, Tokens: 32, Choices: choices})
		}
	}
	for now := range int64(300) {
		for _, a := range b.Plan(now, uint64(now+1), Limits{Requests: 1, Bytes: 1 << 30}) {
			started[a.Request.Tenant]++
			b.Forget("w", a.Request.ID)
		}
		b.Report("w", Load{Sequence: uint64(now + 1), FreeBlocks: w.TotalBlocks, DispatchIndex: uint64(now + 1)}, now)
	}
	// 32 tokens and 14 sequences of 16 beside them, 256, against 32.
	if started["many"]+started["one"] != 300 || started["one"] < 7*started["many"] || started["one"] > 9*started["many"] {
		t.Errorf("started %v, want eight of one for each of many", started)
	}
}
