//go:build linux

package chaos

import (
	"context"
	"flag"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

var (
	seedFlag     = flag.Uint64("chaos.seed", 0, "decides which faults come in which order, and who asks for what; 0: a new one each time")
	durationFlag = flag.Duration("chaos.duration", 60*time.Second, "how long faults are made")
	modelFlag    = flag.String("chaos.model", "tiny", "model to serve: tiny or smollm2-135m")
	kindsFlag    = flag.String("chaos.faults", "", "make only faults whose kind contains this")
	binaryFlag   = flag.String("chaos.binary", "", "the quire to test (default: it is built)")
	dirFlag      = flag.String("chaos.dir", "", "folder for data and logs (default: one that is removed)")
)

// TestChaos breaks a cluster of real processes under load. Every answer must be the one that an
// undisturbed cluster gave.
func TestChaos(t *testing.T) {
	done, loopback := sandboxed(t)
	if done {
		return
	}
	if _, ok := sizes[*modelFlag]; !ok {
		t.Fatalf("-chaos.model %s: it is not tiny or smollm2-135m", *modelFlag)
	}
	dir := *dirFlag
	if dir == "" {
		dir = t.TempDir()
	} else if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	seed := *seedFlag
	for seed == 0 {
		seed = rand.Uint64N(1_000_000)
	}
	t.Logf("-chaos.seed %d repeats this order of faults and requests", seed)
	ctx := t.Context()
	c := startCluster(t, dir, *modelFlag, loopback)
	l := &load{model: c.model, fronts: c.fronts(), asks: asks(c.model), run: time.Now().Unix()}
	begun := time.Now()
	if err := l.undisturbed(ctx); err != nil {
		t.Fatalf("before any fault: %v", err)
	}
	t.Logf("%d undisturbed answers in %v", len(l.wanted), time.Since(begun).Round(time.Second))

	f := &trouble{c: c, load: l, random: rand.New(rand.NewPCG(seed, 0))}
	begun = time.Now()
	if err := setQuota(ctx, f.leader()); err != nil {
		t.Fatal(err)
	}
	quota := &metered{}
	finishQuota := quota.start(ctx, l, seed)
	odd := &strangers{}
	finishStrangers := odd.start(ctx, l, seed)
	finish := l.start(ctx, sizes[c.model].clients, seed)
	if err := f.run(ctx, *durationFlag, *kindsFlag); err != nil {
		t.Error(err)
	}
	finishStrangers()
	finishQuota()
	finish()
	r := &report{seed: seed, model: c.model, duration: time.Since(begun), records: l.records, strikes: f.strikes, without: c.without}

	after, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	for what, check := range map[string]func(context.Context) error{
		"all nodes hold the same log and state": c.agree,
		"no block or request is held":           c.free,
		"every request has ended":               c.ended,
	} {
		if err := check(after); err != nil {
			t.Errorf("after the run, not so: %s: %v", what, err)
			r.notes = append(r.notes, "NOT so: "+what)
		} else {
			r.notes = append(r.notes, "after the run "+what)
		}
	}
	r.notes = append(r.notes, odd.count())
	odd.close()
	line, held := quota.judge()
	if r.notes = append(r.notes, line); !held {
		t.Error("the quota did not hold")
	}
	for _, s := range surprises.all() {
		t.Error(s)
	}
	var out strings.Builder
	if !r.print(&out) {
		t.Error("the promise was not kept")
	}
	t.Log(out.String())
	if len(r.strikes) == 0 || len(r.records) < 10 {
		t.Errorf("%d faults and %d requests prove nothing", len(r.strikes), len(r.records))
	}
}
