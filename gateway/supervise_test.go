package gateway

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestSupervisionMissesNothing: whatever happens to requests, one that is not due for an inspection has
// nothing for the supervisor to do.
func TestSupervisionMissesNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := time.Unix(0, 0)
		g := &Gateway{Settings: Settings{Now: func() time.Time { return now }}, look: make(chan struct{}, 1), lives: table{byID: map[string]*live{}}}
		up := map[string]bool{"w0": true, "w1": true}
		attached := func(worker string) bool { return up[worker] }
		readers := map[*live]*reader{}
		for n := range 2 {
			l := testLive(fmt.Sprint("r", n), 1000, 1)
			l.named = true
			readers[l] = &reader{wake: make(chan struct{}, 1)}
			l.readers = append(l.readers, readers[l])
			g.lives.byID[l.id] = l
		}
		pick := func(t *rapid.T) *live { return g.lives.byID[fmt.Sprint("r", rapid.IntRange(0, 1).Draw(t, "live"))] }
		worker := func(t *rapid.T) string { return fmt.Sprint("w", rapid.IntRange(0, 1).Draw(t, "worker")) }
		with := func(act func(t *rapid.T, l *live)) func(*rapid.T) {
			return func(t *rapid.T) {
				if l := pick(t); l != nil {
					act(t, l)
				}
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"admit": with(func(_ *rapid.T, l *live) {
				select {
				case <-l.admitted:
				default:
					close(l.admitted)
				}
			}),
			"token": with(func(t *rapid.T, l *live) {
				at := len(l.choices[0].tokens) + rapid.SampledFrom([]int{0, 0, 0, 1}).Draw(t, "lost")
				l.apply(worker(t), &pb.TokenEvent{Term: l.fence.term, Index: l.fence.index, First: int32(at), TokenIds: []int32{1}}, now)
			}),
			"lose": with(func(_ *rapid.T, l *live) { l.recall(l.fence) }),
			"move": with(func(_ *rapid.T, l *live) { g.movedAway(l.id) }),
			"end": with(func(_ *rapid.T, l *live) {
				g.ended(&pb.Ended{RequestId: l.id, FinishReason: pb.FinishReason_FINISH_REASON_STOP})
			}),
			"break": func(t *rapid.T) { w := worker(t); up[w] = false; g.lives.detached(w) },
			"mend":  func(t *rapid.T) { up[worker(t)] = true },
			"leave": with(func(t *rapid.T, l *live) { g.lives.leave(l, readers[l], now.Add(10*time.Second)) }),
			"return": with(func(t *rapid.T, l *live) {
				if len(l.readers) == 0 {
					g.lives.enter(l.id, readers[l], true, nil, nil)
				}
			}),
			"wait": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.SampledFrom([]int{1, 20, 100, 400, 3000}).Draw(t, "ms")) * time.Millisecond)
			},
			"look": func(t *rapid.T) {
				for _, l := range g.lives.due(nil, now) {
					ask, lingered := l.inspect(now, attached)
					if lingered {
						g.lives.expire(l, now)
					}
					if ask && rapid.Bool().Draw(t, "a place for the question") {
						l.asking(now)
						if rapid.Bool().Draw(t, "answered at once") {
							l.answered()
						}
					}
				}
			},
			"answer": with(func(t *rapid.T, l *live) {
				if !l.inquiry.asking {
					return
				}
				if rapid.Bool().Draw(t, "known") {
					l.learn(&pb.AdoptResponse{Found: true, WorkerId: worker(t), Term: l.fence.term, Index: l.fence.index}, now)
				}
				l.answered()
			}),
			"": func(t *rapid.T) {
				due := map[*live]bool{}
				for _, l := range g.lives.due(nil, now) {
					due[l] = true
				}
				for _, l := range g.lives.byID {
					if due[l] {
						continue
					}
					at := l.inspection.Load()
					if ask, lingered := l.inspect(now, attached); ask || lingered {
						t.Fatalf("%s is inspected only %v after its arrival; now, %v after it, it is to be asked after: %t, its client's time is over: %t; %+v",
							l.id, time.Duration(at), now.Sub(l.arrived), ask, lingered, &l.inquiry)
					}
					l.inspection.Store(at)
				}
			},
		})
	})
}

// TestSupervisionInspectsWhatIsDue counts inspections of 10,000 streams whose tokens come: at most one for each
// silence that could have been, whatever the number of looks.
func TestSupervisionInspectsWhatIsDue(t *testing.T) {
	const streams, seconds = 10_000, 12
	g := &Gateway{lives: table{byID: map[string]*live{}}}
	sample := testLive("", 1000, 1)
	now := time.Unix(0, 0)
	for n := range streams {
		l := newLive(&pb.Request{Id: fmt.Sprint(n), Sampling: &pb.SamplingParams{MaxTokens: 1000}}, sample.model, false, now)
		close(l.admitted)
		l.worker = "w"
		g.lives.byID[l.id] = l
	}
	inspections := 0
	for range seconds * int(time.Second/supervision) {
		now = now.Add(supervision)
		for _, l := range g.lives.byID {
			l.hear(now)
		}
		for _, l := range g.lives.due(nil, now) {
			inspections++
			if ask, lingered := l.inspect(now, func(string) bool { return true }); ask || lingered {
				t.Fatalf("%s has tokens and is asked after", l.id)
			}
		}
	}
	if most := streams * (1 + int(seconds*time.Second/silenceAttached)); inspections > most {
		t.Errorf("%d inspections in %d s; %d at most are needed", inspections, seconds, most)
	}
}
