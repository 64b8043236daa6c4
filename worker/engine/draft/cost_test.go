package draft

import (
	"testing"

	"github.com/quire-serve/quire/worker/engine/pace"
)

// TestDraftSizes: numbers of drafts that share a bucket differ by half at most.
func TestDraftSizes(t *testing.T) {
	if n := size(sizes - 1); n != MaxPerStep {
		t.Errorf("the last bucket has %d drafts", n)
	}
	for n := 1; n <= MaxPerStep; n++ {
		b := bucket(n)
		if size(b) > n || 2*n > 3*size(b) || b+1 < sizes && size(b+1) <= n {
			t.Errorf("%d drafts have bucket %d of %d", n, b, size(b))
		}
	}
}

// TestDraftCurve: between what was measured half of the increase is expected, beyond it costs grow in
// proportion, and what was measured long ago counts no more.
func TestDraftCurve(t *testing.T) {
	d := Costs{measured: 10}
	if _, ok := d.Curve(5); ok {
		t.Error("a curve of nothing")
	}
	b := pace.Bucket(5)
	d.plain[b], d.decodes[b] = pace.Measured{US: 1000, Step: 10}, 5
	c, ok := d.Curve(5)
	if !ok || c.most != 2 || c.cost(2) != 0 || !c.Pays(8) {
		t.Errorf("nothing tried yet: %+v", c)
	}
	d.extra[b][bucket(2)] = pace.Measured{US: 100, Step: 10}
	d.extra[b][bucket(8)] = pace.Measured{US: 700, Step: 10}
	c, _ = d.Curve(5)
	for n, us := range map[int]float64{1: 25, 2: 100, 3: 150, 5: 250, 8: 700, 16: 1400} {
		if c.cost(n) != us {
			t.Errorf("%d drafts cost %v, want %v", n, c.cost(n), us)
		}
	}
	if c.most != 16 {
		t.Errorf("%d drafts are tried", c.most)
	}
	// The four that are likely right are worth 300 µs, of 1,000 for five tokens; the others not 400 more.
	var l Ladder
	for range 4 {
		l.add(0.9)
		l.add(0.4)
	}
	if got := c.Choose(&l, 8); got != (Choice{level(0.9), 4}) {
		t.Errorf("chosen are %+v", got)
	}
	// Fewer decodes learn from more, and count their own share alone.
	if c, ok = d.Curve(4); !ok || c.plain != 800 || c.cost(8) != 700 {
		t.Errorf("beside fewer: %+v", c)
	}
	if _, ok = d.Curve(6); ok {
		t.Error("more decodes learn from fewer")
	}
	d.measured += costSteps
	if _, ok = d.Curve(5); !ok {
		t.Error("forgotten too early")
	}
	d.measured++
	if _, ok = d.Curve(5); ok {
		t.Error("old measurements count")
	}
}
