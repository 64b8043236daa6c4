package engine

import (
	"flag"
	"os"
	"testing"
)

// TestMain runs 2,000 random cases of each property by default; `make long` runs 100,000.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "2000"); err != nil {
		panic(err)
	}
	flag.Parse()
	os.Exit(m.Run())
}

func TestOneRequest(t *testing.T) {
	for _, depth := range []int{1, 2} {
		r := newRig(t, Settings{Blocks: 16, Depth: depth, PrefixCache: true})
		q := ask("a", prompt(1, 40), 20)
		r.add(q)
		r.finish()
		r.want(q)
		if got := r.runner.Rows(); got != 40+19 {
			t.Errorf("depth %d computed %d tokens, want 59", depth, got)
		}
	}
}
