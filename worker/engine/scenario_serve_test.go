package engine

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// TestScenarioN9: who can never fit is refused alone, and the engine goes on.
func TestScenarioN9(t *testing.T) {
	r := newRig(t, Settings{Blocks: 4})
	if _, err := newRequest(ask("big", prompt(1, 64), 1), &r.model, r.p.context); !errors.Is(err, ErrTooLong) {
		t.Errorf("a prompt of the whole pool: %v", err)
	}
	// It fits as long as it is alone, so its output ends where the pool does.
	last, other := ask("last", prompt(2, 60), 0), ask("other", prompt(3, 20), 8)
	last.Sampling.IgnoreEos = true
	r.add(last, other)
	r.finish()
	r.want(last)
	r.want(other)
	if h := r.got["last/0"]; h.finish != pb.FinishReason_FINISH_REASON_LENGTH || len(h.tokens) != 4 {
		t.Errorf("%v after %d tokens", h.finish, len(h.tokens))
	}
}

// TestScenarioN10: in talks of many rounds the cached part grows with the history.
func TestScenarioN10(t *testing.T) {
	const clients, rounds, own, output = 8, 6, 289, 367
	r := newRig(t, Settings{Blocks: 2400, PrefixCache: true}, func(_ *enginetest.Config, m *Model) { m.ContextLength = 8192 })
	history := make([][]int32, clients)
	for round := range rounds {
		var asked []*pb.Request
		for c := range clients {
			history[c] = append(history[c], prompt(100*round+c, own)...)
			q := ask(fmt.Sprintf("%d-%d", round, c), slices.Clone(history[c]), output)
			q.Sampling.IgnoreEos = true
			asked = append(asked, q)
		}
		r.add(asked...)
		r.finish()
		for c, q := range asked {
			h := r.got[key(q.Id, 0)]
			// All of the last round but its last token, which no step has stored, in whole blocks.
			want := 0
			if round > 0 {
				want = (round*(own+output) - 1) / 16 * 16
			}
			if int(h.cached) != want {
				t.Errorf("round %d, client %d: %d tokens cached, want %d", round, c, h.cached, want)
			}
			history[c] = append(history[c], h.tokens...)
		}
	}
}

// TestScenarioO2: of m requests at n slots all succeed, and as many run at once as can.
func TestScenarioO2(t *testing.T) {
	for _, c := range []struct{ slots, requests int }{{1, 3}, {2, 2}, {2, 4}, {4, 2}, {4, 6}} {
		r := newRig(t, Settings{Blocks: 64, MaxSequences: c.slots})
		var asked []*pb.Request
		for i := range c.requests {
			asked = append(asked, ask(fmt.Sprint(i), prompt(i, 10), 12, func(q *pb.Request) { q.Sampling.IgnoreEos = true }))
		}
		r.add(asked...)
		busy := 0
		for r.step() {
			busy = max(busy, len(r.p.running))
		}
		r.clean()
		for _, q := range asked {
			r.want(q)
		}
		if want := min(c.slots, c.requests); busy != want {
			t.Errorf("%d slots, %d requests: %d ran at once", c.slots, c.requests, busy)
		}
	}
}

// TestScenarioO3: outputs that together overflow 256 tokens of cache all succeed, by preemption.
func TestScenarioO3(t *testing.T) {
	for _, c := range []struct {
		outputs  []int
		overflow bool
	}{{[]int{80, 40, 80, 80}, false}, {[]int{90, 90, 40, 75}, false}, {[]int{70, 70, 70, 70}, true}, {[]int{90, 90, 40, 90}, true}} {
		outputs := c.outputs
		r := newRig(t, Settings{Blocks: 16, MaxSequences: 4})
		var asked []*pb.Request
		for i, n := range outputs {
			asked = append(asked, ask(fmt.Sprint(i), prompt(i, 1), n, func(q *pb.Request) { q.Sampling.IgnoreEos = true }))
		}
		r.add(asked...)
		r.finish()
		for i, q := range asked {
			r.want(q)
			if got := len(r.tokens(q.Id)); got != outputs[i] {
				t.Errorf("%v: %s has %d tokens", outputs, q.Id, got)
			}
		}
		if preempted := r.p.count.preemptions > 0; preempted != c.overflow {
			t.Errorf("%v: somebody was preempted: %v", outputs, preempted)
		}
	}
}

// TestScenarioO5: a prompt that differs from an earlier one at its end computes its end.
func TestScenarioO5(t *testing.T) {
	r := newRig(t, Settings{Blocks: 64, PrefixCache: true})
	rows := func(q *pb.Request) int {
		before := r.runner.Rows()
		r.add(q)
		r.finish()
		r.want(q)
		return r.runner.Rows() - before
	}
	first := prompt(1, 21)
	second := slices.Clone(first)
	second[20] = (second[20] + 1) % testVocab
	if a, b := rows(ask("a", first, 1)), rows(ask("b", second, 1)); a != 21 || b != 5 {
		t.Errorf("%d and %d tokens computed, want 21, and those after the first block", a, b)
	}
	if !r.p.pool.ResetCache() {
		t.Fatal("the cache of an idle engine cannot be reset")
	}
	if n := rows(ask("c", first, 1)); n != 21 {
		t.Errorf("%d tokens computed with an empty cache", n)
	}
}
