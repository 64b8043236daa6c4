package main

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/scheduler/batch"
)

// sample is a trace in the form of the real one: conversations whose prompts grow, each beginning with
// one of a few long system prompts.
func sample(requests int) string {
	var b strings.Builder
	next := 1000
	chains := make([][]int, 40)
	for n := range chains {
		for k := range 12 {
			chains[n] = append(chains[n], n%5*12+k)
		}
	}
	for n := range requests {
		c := (n*n + n/7) % len(chains)
		for range 1 + n%4 {
			chains[c] = append(chains[c], next)
			next++
		}
		if len(chains[c]) > 60 {
			chains[c] = chains[c][:12]
		}
		fmt.Fprintf(&b, `{"timestamp": %d, "input_length": %d, "output_length": %d, "hash_ids": %s}`+"\n",
			n*90, len(chains[c])*blockTokens-n%300, 1+n%90, strings.ReplaceAll(fmt.Sprint(chains[c]), " ", ", "))
	}
	return b.String()
}

// TestOursIsBest: on a trace with common prefixes the default policy has the lowest mean time to first
// token and finds the most, below saturation and above; and a run can be repeated.
func TestOursIsBest(t *testing.T) {
	requests, err := readTrace(strings.NewReader(sample(600)))
	if err != nil {
		t.Fatal(err)
	}
	m := defaultModel
	m.workers, m.blocks = 4, 300
	for _, load := range []float64{1, 2} {
		ours := simulate(m, requests, batch.PolicyTTFT, load)
		if again := simulate(m, requests, batch.PolicyTTFT, load); !reflect.DeepEqual(ours, again) {
			t.Errorf("load %g: two runs differ", load)
		}
		if len(ours.ttftUS) != len(requests) || ours.ttftUS[0] < m.baseUS {
			t.Errorf("load %g: %d first tokens of %d requests, the earliest after %d us", load, len(ours.ttftUS), len(requests), ours.ttftUS[0])
		}
		for _, policy := range batch.Policies()[1:] {
			theirs := simulate(m, requests, policy, load)
			if ours.meanMS() > theirs.meanMS() || ours.hitRate() < theirs.hitRate() {
				t.Errorf("load %g: ttft has a mean of %.0f ms and finds %.3f, %s %.0f ms and %.3f",
					load, ours.meanMS(), ours.hitRate(), policy, theirs.meanMS(), theirs.hitRate())
			}
		}
	}
}

// TestWorkerBooks: blocks are given back, and what the index was told is what the cache holds.
func TestWorkerBooks(t *testing.T) {
	requests, err := readTrace(strings.NewReader(sample(200)))
	if err != nil {
		t.Fatal(err)
	}
	m := defaultModel
	m.blocks = 150
	w := newWorker(&m, "w", 0)
	held := map[kvcache.Hash]bool{}
	for n := range requests {
		w.waiting = append(w.waiting, &sequence{traced: &requests[n], n: n})
		for range 1 + n%5 {
			us, end := w.step()
			if us == 0 {
				break
			}
			end()
			if w.used+w.idle.Len() > m.blocks || w.used < 0 {
				t.Fatalf("%d blocks are used and %d idle, of %d", w.used, w.idle.Len(), m.blocks)
			}
		}
		for _, n := range w.news {
			if held[n.hash] == n.stored {
				t.Fatalf("a block was held: %v, and is now: %v", held[n.hash], n.stored)
			}
			held[n.hash] = n.stored
		}
		w.news = nil
	}
	for h, b := range held {
		if b != (w.cache[h] != nil) {
			t.Fatalf("a block is told to be held: %v, and is: %v", b, !b)
		}
	}
	for {
		us, end := w.step()
		if us == 0 {
			break
		}
		end()
	}
	if w.used != 0 || len(w.waiting) != 0 || w.idle.Len() != len(w.cache) {
		t.Errorf("at the end %d blocks are used, %d requests wait, %d of %d cached blocks are idle", w.used, len(w.waiting), w.idle.Len(), len(w.cache))
	}
}

func TestCommand(t *testing.T) {
	trace := filepath.Join(t.TempDir(), "trace.jsonl")
	if err := os.WriteFile(trace, []byte(sample(50)), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := run([]string{"-trace", trace, "-out", "-", "-loads", "1", "-policies", "ttft,dynamo"}, &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "## Load 1\n") || strings.Count(out.String(), "\n| ttft |") != 1 || strings.Count(out.String(), "\n| ") != 3 {
		t.Errorf("reported\n%s", out.String())
	}
	for _, c := range []struct{ line, want string }{
		{`{"timestamp": 0, "input_length": 0}`, "line 1: input_length 0"},
		{`{`, "line 1: "},
	} {
		if _, err := readTrace(strings.NewReader(c.line)); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.line, err, c.want)
		}
	}
	if err := run([]string{"-policies", "best"}, &out); err == nil {
		t.Error("an unknown policy was accepted")
	}
}
