package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

// TestPools: workers are in the pools that they name, one that would give other tokens is not let in, and
// the command line keeps work from a pool, lets it come again, and empties it.
func TestPools(t *testing.T) {
	c := newNodes(t, 1, func(int) []string { return nil })
	c.run[0].waitFor("leading", func() bool { return c.describe(0).GetLeaderAddress() != "" })
	run := func(want int, args ...string) string {
		t.Helper()
		args = append(args, "--control", c.control[0])
		code, out, stderr := runQuire(t, args...)
		if code != want {
			t.Fatalf("quire %v: exit %d, want %d: %s%s", args, code, want, out, stderr)
		}
		return out + stderr
	}
	worker := func(id string, args ...string) *process {
		p := &process{t: t, done: make(chan struct{})}
		p.cmd = command(t, append([]string{"worker", "--id", id, "--model", "tiny", "--threads", "1", "--listen", "127.0.0.1:0", "--control", c.control[0]}, args...)...)
		p.start()
		return p
	}
	states := func() map[string]string {
		var rows []workerRow
		if err := json.Unmarshal([]byte(run(0, "pool", "workers", "-o", "json")), &rows); err != nil {
			t.Fatal(err)
		}
		out := map[string]string{}
		for _, w := range rows {
			out[w.ID] = w.Pool + " " + w.State
		}
		return out
	}
	a := worker("a", "--pool", "east")
	a.waitFor("a in session", func() bool { return states()["a"] == "east ready" })
	worker("b").waitFor("b in session", func() bool { return states()["b"] == "default ready" })
	odd := worker("odd", "--kv-type", "int8")
	odd.waitFor("the odd one is told why", func() bool { return strings.Contains(odd.out.String(), `start the worker with the others' --kv-type`) })
	if s := states(); s["odd"] != "" {
		t.Errorf("workers are %v", s)
	}
	run(0, "pool", "cordon", "east")
	if s := states(); s["a"] != "east cordoned" || s["b"] != "default ready" {
		t.Errorf("workers are %v", s)
	}
	if out := run(0, "pool", "list"); !strings.Contains(out, "cordoned") || !strings.Contains(out, "tiny") {
		t.Errorf("the list is %s", out)
	}
	run(0, "pool", "uncordon", "east")
	run(0, "pool", "cordon", "--worker", "a")
	if s := states(); s["a"] != "east cordoned" {
		t.Errorf("workers are %v", s)
	}
	run(2, "pool", "cordon")
	run(2, "pool", "cordon", "east", "--worker", "a")
	run(1, "pool", "remove", "east") // it has a worker
	run(1, "pool", "remove", "north")
	run(1, "pool", "cordon", "north")
	run(0, "pool", "create", "west", "--cordoned")
	run(0, "pool", "remove", "west")
	if said := strings.Count(odd.out.String(), "the others' --kv-type"); said != 1 {
		t.Errorf("the odd one was told why once and says so %d times", said)
	}
	run(0, "pool", "drain", "east")
	select {
	case <-a.done:
	case <-time.After(time.Minute):
		t.Error("a drained worker did not end")
	}
	if s := states(); s["a"] != "default gone, cordoned" {
		t.Errorf("workers are %v", s)
	}
}
