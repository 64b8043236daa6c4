package engine

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/quire-serve/quire/device"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// TestHiccupsEndNobody: however many steps fail while streams run, at Submit or at Wait, each stream gives
// what it would have given, as long as steps succeed in between.
func TestHiccupsEndNobody(t *testing.T) {
	for _, depth := range []int{1, 2} {
		for _, submit := range []bool{false, true} {
			failures := 0
			fail := func(step int, _ *device.Batch) error {
				if step%50 != 0 {
					return nil
				}
				failures++
				return errors.New("a hiccup")
			}
			r := newRig(t, Settings{Blocks: 400, PrefixCache: true, Depth: depth}, func(c *enginetest.Config, _ *Model) {
				if submit {
					c.Refuse = fail
				} else {
					c.Fail = fail
				}
			})
			var asked []*pb.Request
			for i := range 4 {
				asked = append(asked, ask(fmt.Sprint(i), prompt(i, 40), 900))
			}
			r.add(asked...)
			r.finish()
			for _, q := range asked {
				r.want(q)
			}
			if failures < 15 {
				t.Errorf("only %d steps failed", failures)
			}
		}
	}
}

// TestWhoMakesStepsFailEndsAlone: a request that makes each step fail that reaches a certain token of it, in
// the prompt or of its output, ends with the error, with all that came before; every other one goes on, and
// few steps are spent on finding it.
func TestWhoMakesStepsFailEndsAlone(t *testing.T) {
	for name, position := range map[string]int32{"its first token": 0, "deep in the prompt": 250, "its output": 310} {
		t.Run(name, func(t *testing.T) {
			failures := 0
			const marked = 77 // no other prompt begins so
			r := newRig(t, Settings{Blocks: 600, MaxSequences: 64, MaxBatchTokens: 64}, func(c *enginetest.Config, _ *Model) {
				c.Fail = func(_ int, b *device.Batch) error {
					for _, s := range b.Seqs {
						for row := s.Row; row < s.Row+s.Rows; row++ {
							if b.Positions[row] == position && (position > 0 || b.Tokens[row] == marked) {
								failures++
								return errors.New("poisoned")
							}
						}
					}
					return nil
				}
			})
			poison := ask("poison", append([]int32{marked}, prompt(99, 299)...), 20)
			var asked []*pb.Request
			for i := range 40 {
				asked = append(asked, ask(fmt.Sprint(i), append([]int32{int32(i)}, prompt(i, 19)...), 100))
			}
			r.add(asked...)
			for range 60 {
				r.step()
			}
			r.add(poison)
			r.finish()
			for _, q := range asked {
				r.want(q)
			}
			h := r.got["poison/0"]
			if h.finish != failed || h.message != "engine: step failed: wait: poisoned" {
				t.Errorf("the poisoned request ended with %v %q", h.finish, h.message)
			}
			r.wantPrefix(poison)
			if want := max(0, int(position)-299); len(h.tokens) != want {
				t.Errorf("%d tokens before the error, want %d", len(h.tokens), want)
			}
			if failures > 12 {
				t.Errorf("%d steps failed until it was found", failures)
			}
		})
	}
}

// TestABrokenDeviceHandsEverybodyBack: once no step succeeds any more Run ends, whether there is one request
// or many; nobody is blamed, and every token that was computed is out.
func TestABrokenDeviceHandsEverybodyBack(t *testing.T) {
	for _, n := range []int{1, 2, 5} {
		for _, submit := range []bool{false, true} {
			synctest.Test(t, func(t *testing.T) {
				steps := 0
				fail := func(step int, _ *device.Batch) error {
					steps = step
					if step > 12 {
						return errors.New("the device is broken")
					}
					return nil
				}
				r := run(t, Settings{MaxSequences: 4}, func(c *enginetest.Config, _ *Model) {
					if submit {
						c.Refuse = fail
					} else {
						c.Fail = fail
					}
				})
				var asked []*pb.Request
				for i := range n {
					q := ask(fmt.Sprint(i), prompt(i, 20), 30)
					asked = append(asked, q)
					r.ok(q)
				}
				// A drain does not outlive the engine.
				if err := r.Drain(t.Context()); !errors.Is(err, ErrGone) {
					t.Errorf("Drain: %v", err)
				}
				if err := <-r.ended; err == nil || !strings.Contains(err.Error(), "the device is broken") {
					t.Fatalf("Run: %v", err)
				}
				for _, q := range asked {
					if e := r.end(q.Id); e.Finish != 0 || !slices.Contains(r.Live(), q.Id) {
						t.Errorf("%s ended with %v %q", q.Id, e.Finish, e.Error)
					}
					want, _ := undisturbed(q, 0, &r.model, r.ContextLength())
					got := r.tokens[key(q.Id, 0)]
					if len(got) > len(want) || !slices.Equal(got, want[:len(got)]) {
						t.Errorf("%s: %v, want a part of %v", q.Id, got, want)
					}
				}
				if int64(len(r.at)) == 0 || r.Stats().GeneratedTokens == 0 {
					t.Error("nothing was computed before")
				}
				if steps > 12+2+2*maxFaults+3 {
					t.Errorf("%d more steps were tried", steps-12)
				}
				// Nor does anything else wait for it.
				if _, err := r.Traces(t.Context(), 1); !errors.Is(err, ErrGone) {
					t.Errorf("Traces: %v", err)
				}
				if err := r.Pause(t.Context(), PauseWait); !errors.Is(err, ErrGone) {
					t.Errorf("Pause: %v", err)
				}
			})
		}
	}
}
