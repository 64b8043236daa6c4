package worker

import (
	"sync"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

const (
	// reportAgain is how long a report that was sent is remembered, to be sent again if the session
	// breaks: nobody acknowledges reports, and telling an end twice changes nothing.
	reportAgain = 30 * time.Second
	// reportsKept bounds how many.
	reportsKept = 8192
	// reportsBatch is how many go into one message.
	reportsBatch = 512
)

// reports holds the ends that the leader must hear of.
type reports struct {
	mu      sync.Mutex
	pending []*pb.FinishedRequest
	sent    []sentReport
	wake    chan struct{} // capacity 1
}

type sentReport struct {
	at     time.Time
	report *pb.FinishedRequest
}

func newReports() *reports { return &reports{wake: make(chan struct{}, 1)} }

func (r *reports) add(f ...*pb.FinishedRequest) {
	if len(f) == 0 {
		return
	}
	r.mu.Lock()
	r.pending = append(r.pending, f...)
	r.mu.Unlock()
	r.poke()
}

// poke makes the session send what there is, and a heartbeat.
func (r *reports) poke() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// take returns the next reports to send, and counts them as sent.
func (r *reports) take(now time.Time) []*pb.FinishedRequest {
	r.mu.Lock()
	defer r.mu.Unlock()
	n := min(len(r.pending), reportsBatch)
	batch := r.pending[:n:n]
	r.pending = r.pending[n:]
	for _, f := range batch {
		r.sent = append(r.sent, sentReport{now, f})
	}
	old := 0
	for old < len(r.sent) && (now.Sub(r.sent[old].at) > reportAgain || len(r.sent)-old > reportsKept) {
		old++
	}
	r.sent = append(r.sent[:0], r.sent[old:]...)
	return batch
}

// rewind makes everything that a broken session may have lost pending again, and returns the ids of
// all that is.
func (r *reports) rewind(now time.Time) (ids []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var again []*pb.FinishedRequest
	for _, s := range r.sent {
		if now.Sub(s.at) <= reportAgain {
			again = append(again, s.report)
		}
	}
	r.sent = r.sent[:0]
	r.pending = append(again, r.pending...)
	for _, f := range r.pending {
		ids = append(ids, f.RequestId)
	}
	return ids
}

func (r *reports) empty() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.pending) == 0
}
