package scheduler

import (
	"context"
	"fmt"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/quire-serve/quire/scheduler/consensus"
)

const maxEntryBytes = consensus.MaxEntryBytes

// propose hands an entry to the log.
func (l *leader) propose(ctx context.Context, e *entry) error {
	data, err := proto.Marshal(e.pb)
	if err != nil {
		return fmt.Errorf("encode a log entry: %w", err)
	}
	proposal, err := l.s.node.Propose(ctx, data)
	if err != nil {
		return err
	}
	e.wait = proposal.Wait
	return nil
}

// rate measures events a second over the last few seconds.
type rate struct {
	began time.Time
	count int
	// before is the rate of the window that ended last.
	before float64
}

const rateWindow = 5 * time.Second

func (r *rate) roll(now time.Time) {
	if r.began.IsZero() {
		r.began = now
	}
	if age := now.Sub(r.began); age >= rateWindow {
		r.before = float64(r.count) / age.Seconds()
		r.began, r.count = now, 0
	}
}

func (r *rate) add(n int, now time.Time) {
	r.roll(now)
	r.count += n
}

// perSecond weighs the current window by how much of it has passed.
func (r *rate) perSecond(now time.Time) float64 {
	r.roll(now)
	share := now.Sub(r.began).Seconds() / rateWindow.Seconds()
	return float64(r.count)/rateWindow.Seconds() + (1-share)*r.before
}
