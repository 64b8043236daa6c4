package transport

import (
	"context"
	"math/rand/v2"
	"time"

	"google.golang.org/grpc/backoff"
)

// Backoff says how long to wait between tries of what fails: First at first, twice as long with every try, up
// to Last. Half of each wait is random, so that many who lost the same peer do not come back at the same
// moment, again and again.
type Backoff struct {
	First, Last time.Duration
}

// Pause draws the wait before try n+1, where n counts those that failed in a row from 0.
func (b Backoff) Pause(n int) time.Duration {
	d := b.First
	for ; n > 0 && d < b.Last; n-- {
		d *= 2
	}
	d = min(d, b.Last)
	return d/2 + rand.N(d/2+1)
}

// Wait waits for a Pause, or until wake is closed or sent to; nil is never. It reports false if ctx ended
// before that.
func (b Backoff) Wait(ctx context.Context, n int, wake <-chan struct{}) bool {
	t := time.NewTimer(b.Pause(n))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-wake:
	case <-t.C:
	}
	return true
}

// connects is the same for gRPC's own tries to make a connection.
func (b Backoff) connects() backoff.Config {
	return backoff.Config{BaseDelay: b.First * 3 / 4, Multiplier: 2, Jitter: 1. / 3, MaxDelay: b.Last * 3 / 4}
}
