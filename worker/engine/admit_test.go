package engine

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"pgregory.net/rapid"
)

// running reports whether the request's first choice runs.
func (r *rig) running(id string) bool {
	q := r.find(id)
	return q != nil && q.choices[0].state == stateRunning
}

// TestShortOnesPassWhileMemoryIsFree: behind one that does not fit, however many wait before them and
// however many went before, short requests run in the memory that is free; so they do behind one that was
// preempted.
func TestShortOnesPassWhileMemoryIsFree(t *testing.T) {
	for _, preempted := range []bool{false, true} {
		r := newRig(t, Settings{Blocks: 100, BlockTokens: 4, MaxSequences: 64})
		var asked []*pb.Request
		add := func(q *pb.Request) { asked = append(asked, q); r.add(q) }
		add(ask("a", prompt(0, 150), 120)) // grows from 38 to 68 blocks
		if preempted {
			add(ask("big", prompt(1, 100), 150))
			for r.p.count.preemptions == 0 {
				r.step()
			}
		} else {
			r.step()
			for i := range 100 { // none fits beside a
				add(ask(fmt.Sprint("big", i), prompt(i, 300), 4))
			}
		}
		for i := range 60 {
			id := fmt.Sprint("short", i)
			add(ask(id, prompt(200+i, 8), 2))
			for steps := 0; r.got[key(id, 0)] == nil || r.got[key(id, 0)].finish == 0; steps++ {
				if steps > 40 {
					t.Fatalf("preempted %v: the short request %d waits with %d of %d blocks free", preempted, i, r.p.pool.Free(), r.p.Blocks)
				}
				if r.got["a/0"] != nil && r.got["a/0"].finish != 0 {
					break // nobody waits any more
				}
				r.step()
			}
		}
		r.finish()
		for _, q := range asked {
			r.want(q)
		}
	}
}

// TestPassingDelaysNobody: who waits for blocks or a slot starts as soon, but for the step in which the
// others stop, as it would have if nobody who comes after it had been there; and while it waits nobody
// who fits waits too.
func TestPassingDelaysNobody(t *testing.T) {
	passed, pressed := 0, 0
	rapid.Check(t, func(t *rapid.T) {
		s := Settings{
			BlockTokens: 4, Blocks: rapid.IntRange(20, 80).Draw(t, "blocks"), MaxSequences: rapid.IntRange(2, 12).Draw(t, "sequences"),
			MaxBatchTokens: 4096, Depth: rapid.IntRange(1, 2).Draw(t, "depth"), PrefixCache: rapid.Bool().Draw(t, "cache"),
		}
		if rapid.Bool().Draw(t, "bound") {
			s.Tenants = []Tenant{{"a", rapid.IntRange(10, s.Blocks).Draw(t, "tenant blocks")}}
		}
		draw := func(id string, most int) *pb.Request {
			n := s.Blocks
			if s.Tenants != nil {
				n = s.Tenants[0].Blocks
			}
			most = min(most, 4*n-2)
			length := rapid.IntRange(1, most).Draw(t, "prompt")
			return ask(id, prompt(rapid.IntRange(0, 5).Draw(t, "which"), length), rapid.IntRange(1, min(30, 4*n-length)).Draw(t, "output"), of("a"))
		}
		var first, later []*pb.Request
		for i := range rapid.IntRange(1, 6).Draw(t, "before") {
			first = append(first, draw(fmt.Sprint("first", i), 4*s.Blocks))
		}
		for i := range rapid.IntRange(1, 20).Draw(t, "behind") {
			later = append(later, draw(fmt.Sprint("later", i), 40))
		}
		gaps := rapid.SliceOfN(rapid.IntRange(0, 3), len(later), len(later)).Draw(t, "gaps")
		// The steps in which each of the first starts for the first time.
		starts := func(others []*pb.Request) (at []int, before []bool, p *planner) {
			r := newRig(t, s)
			r.add(first...)
			at, before = make([]int, len(first)), make([]bool, len(first)) // before another of them, which waits
			for step, next := 1, 0; ; step++ {
				for ; next < len(others) && gaps[next]+next <= step; next++ {
					r.add(others[next])
				}
				more := r.step()
				left := len(others) - next
				for i, q := range first {
					if at[i] == 0 && (r.find(q.Id) == nil || r.find(q.Id).started > 0) {
						at[i] = step
						if q := r.find(q.Id); q != nil {
							before[i] = q.choices[0].onSufferance
						}
					}
					if at[i] == 0 {
						left++
					}
				}
				if left == 0 {
					for _, s := range r.p.running {
						if s.arrival == 0 && s.number > uint64(len(first)) {
							passed++
						}
					}
					r.finish()
					for _, q := range first {
						r.want(q)
					}
					for _, q := range others {
						r.want(q)
					}
					return at, before, r.p
				}
				if !more && next == len(others) {
					t.Fatal("stands still")
				}
			}
		}
		alone, before, _ := starts(nil)
		beside, _, p := starts(later)
		if p.count.preemptions > 0 {
			pressed++
		}
		// The first that waits: those behind it start when it lets them, in one run as in the other.
		i := slices.IndexFunc(alone, func(step int) bool { return step > 1 })
		if i >= 0 && !before[i] && beside[i] > alone[i]+2*(1+int(p.count.preemptions)) {
			t.Errorf("%s starts in step %d, without those behind it in step %d", first[i].Id, beside[i], alone[i])
		}
	})
	if passed == 0 || pressed == 0 {
		t.Errorf("%d passed, %d runs with preemptions: the property is tested on nothing", passed, pressed)
	}
}

// TestSufferanceEnds: who passed one that waited runs like any other once that one has started.
func TestSufferanceEnds(t *testing.T) {
	r := newRig(t, Settings{Blocks: 40, BlockTokens: 4, MaxSequences: 8})
	r.add(ask("a", prompt(1, 60), 20)) // 15 blocks, then 20
	r.step()
	r.add(ask("big", prompt(2, 100), 4), ask("short", prompt(3, 4), 60))
	r.step()
	if !r.running("short") || !r.find("short").choices[0].onSufferance || r.running("big") {
		t.Fatalf("the short one does not pass: %s", r.state())
	}
	for !r.running("big") {
		r.step()
	}
	r.add(ask("urgent", prompt(4, 48), 4, func(q *pb.Request) { q.Priority = -1 }))
	r.step()
	if r.running("urgent") {
		t.Fatalf("the urgent one does not wait: %s", r.state())
	}
	for r.find("urgent") != nil {
		r.step()
	}
	if n := r.p.count.preemptions; n > 0 {
		t.Errorf("%d preemptions: the short one still yields to whoever comes", n)
	}
	r.finish()
}

// TestNewcomersLeaveRoomToGrow: under pressure little is computed twice, because nobody starts unless
// everyone who runs can take one more block.
func TestNewcomersLeaveRoomToGrow(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	r := newRig(t, Settings{Blocks: 600, MaxSequences: 64, MaxBatchTokens: 512})
	needed := 0
	for i := range 300 {
		p, out := 50+rng.IntN(400), 50+rng.IntN(300)
		r.add(ask(fmt.Sprint(i), prompt(i, p), out))
		needed += p + out - 1
	}
	r.finish()
	again := float64(r.runner.Rows()-needed) / float64(r.runner.Rows())
	t.Logf("%.1f %% of the rows computed again, %d preemptions, %d steps", 100*again, r.p.count.preemptions, len(r.runner.Steps()))
	if again > 0.15 {
		t.Errorf("%.1f %% of the rows are computed again", 100*again)
	}
}
