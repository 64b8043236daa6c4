package batch

import (
	"fmt"
	"testing"

	"github.com/quire-serve/quire/scheduler/prefix"
)

// rated makes a candidate with a prompt of 1,000 tokens, of which it holds so much.
func rated(id string, load Load, found prefix.Match) candidate {
	m := &member{Worker: worker(id), load: load, known: true}
	return candidate{member: m, found: found, tokens: 1000, work: m.work(&Request{Tokens: 1000}, found)}
}

func scores(p policy, candidates []candidate) string {
	p.score(candidates)
	var out []int64
	for _, c := range candidates {
		out = append(out, c.score)
	}
	return fmt.Sprint(out)
}

// TestFormulas pins each policy's score on workers of 256 blocks of 16 tokens.
func TestFormulas(t *testing.T) {
	idle := Load{FreeBlocks: 256}
	busy := Load{Running: 4, Waiting: 2, FreeBlocks: 64, PendingPrefill: 320}
	full := prefix.Match{Device: 40, Host: 4, Disk: 8}
	three := func() []candidate {
		return []candidate{rated("a", idle, prefix.Match{}), rated("b", busy, full), rated("c", busy, prefix.Match{})}
	}
	// Requests: 0 or 6 sequences.
	if got := scores(leastRequests{}, three()); got != "[0 6 6]" {
		t.Errorf("least requests: %s", got)
	}
	// Round robin: after a, b is next, then c, then a.
	turn := &roundRobin{last: "a"}
	if got := scores(turn, three()); got != "[3 1 2]" {
		t.Errorf("round robin after a: %s", got)
	}
	turn.placed(&member{Worker: Worker{ID: "c"}})
	if got := scores(turn, three()); got != "[3 4 5]" {
		t.Errorf("round robin after c: %s", got)
	}
	// llm-d: a 2·1 + 2·1 + 3·0; b 2·0 + 2·0.25 + 3·832/1000; c 2·0 + 2·0.25 + 0.
	if got := scores(llmd{}, three()); got != "[-4000000 -2996000 -500000]" {
		t.Errorf("llm-d: %s", got)
	}
	// Dynamo, in hundredths: a 63 blocks; b 83 blocks, less 40 + 4·0.75 + 8·0.25, and 192 in use; c 83 + 192.
	if got := scores(dynamo{}, three()); got != "[6300 23000 27500]" {
		t.Errorf("dynamo: %s", got)
	}
	// Ours: b computes 168 tokens and copies 64 from the host at 0.1 and 128 from disk at 0.4.
	c := three()
	if c[1].work != 168+(4*100+8*400)*16/1000 {
		t.Errorf("work on b is %d", c[1].work)
	}
	for n := range c {
		c[n].us = int64(n)
	}
	c[2].load.Derate = 500
	if got, want := scores(ttft{}, c), fmt.Sprint([]int64{0 + 2*125_000, 1 + 2*28_125, 2 + 2*250_000}); got != want {
		t.Errorf("ttft: %s, want %s: the work's time twice, at 8,000 tokens/s", got, want)
	}
}

// TestPowerOfTwoDrawsTwo: two workers are rated by their sequences, the others are out; the draws are
// even and do not depend on how often scores are asked for.
func TestPowerOfTwoDrawsTwo(t *testing.T) {
	p := &powerOfTwo{}
	drawn := map[string]int{}
	for range 4000 {
		var c []candidate
		for n := range 5 {
			c = append(c, rated(fmt.Sprint(n), Load{Running: n}, prefix.Match{}))
		}
		first := scores(p, c)
		if again := scores(p, c); again != first {
			t.Fatalf("asked twice: %s, %s", first, again)
		}
		in := 0
		for n := range c {
			if c[n].score == int64(n) {
				in++
				drawn[c[n].ID]++
			}
		}
		if in != 2 {
			t.Fatalf("%d workers were drawn: %s", in, first)
		}
		p.placed(c[0].member)
	}
	for id, n := range drawn {
		if n < 1450 || n > 1750 {
			t.Errorf("worker %s was drawn %d times of 4,000, want about 1,600", id, n)
		}
	}
}

// TestEveryPolicyPlaces: each by its name, over workers with the same room.
func TestEveryPolicyPlaces(t *testing.T) {
	for _, policy := range Policies() {
		if err := (Settings{Policy: policy}).Validate(); err != nil {
			t.Errorf("%s: %v", policy, err)
		}
		b := New(Settings{Policy: policy})
		for n := range 3 {
			b.Join(worker(fmt.Sprint("w", n)), true, 0)
		}
		for n := range 26 {
			b.Push(request(fmt.Sprint("r", n), 10))
		}
		on := map[string]int{}
		for _, a := range b.Plan(0, 1, all) {
			on[a.WorkerID]++
		}
		if fmt.Sprint(on) != "map[w0:8 w1:8 w2:8]" || b.Len() != 2 {
			t.Errorf("%s placed %v of 26 on workers of 8", policy, on)
		}
	}
	if err := (Settings{Policy: "best"}).Validate(); err == nil {
		t.Error("an unknown policy was accepted")
	}
}
