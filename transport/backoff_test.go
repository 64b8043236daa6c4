package transport

import (
	"testing"
	"time"
)

// TestBackoffDoublesUpToItsLast: every wait is random within the upper half of what has doubled so far, however
// long it lasts.
func TestBackoffDoublesUpToItsLast(t *testing.T) {
	b := Backoff{First: 10 * time.Millisecond, Last: 100 * time.Millisecond}
	most := []time.Duration{10, 20, 40, 80, 100, 100}
	for n := range 1000 {
		limit := most[min(n, len(most)-1)] * time.Millisecond
		least, longest := limit, time.Duration(0)
		for range 200 {
			d := b.Pause(n)
			least, longest = min(least, d), max(longest, d)
		}
		if least < limit/2 || longest > limit || longest-least < limit/4 {
			t.Fatalf("try %d: waits from %v to %v; half to all of %v is wanted", n, least, longest, limit)
		}
	}
}

// TestReconnectsOfAPoolAreFew counts the tries of 1,000 workers without a leader: an election must not be
// flooded by those who wait for it, nor its winner by all at one moment.
func TestReconnectsOfAPoolAreFew(t *testing.T) {
	const workers, slice = 1000, 50 * time.Millisecond
	tries := map[time.Duration]int{}
	for range workers {
		at := time.Duration(0)
		for n := 0; at < 10*time.Second; n++ {
			at += ToLeader.Pause(n)
			tries[at/slice]++
		}
	}
	for from := time.Second / slice; from < 9*time.Second/slice; from++ {
		if tries[from] > workers/4 {
			t.Errorf("%d of %d workers try within %v, %v after their leader was lost", tries[from], workers, slice, from*slice)
		}
	}
	sum := 0
	for at, n := range tries {
		if at < 2*time.Second/slice {
			sum += n
		}
	}
	if sum > 9*workers {
		t.Errorf("%d tries of %d workers within 2 s", sum, workers)
	}
}
