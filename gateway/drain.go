package gateway

import (
	"context"
	"sync"
	"time"
)

// lastWords is how long clients that are told to go on elsewhere may take to read that.
const lastWords = 2 * time.Second

// answers counts the answers to clients that are under way, which a shutdown lets finish.
type answers struct {
	mu       sync.Mutex
	running  int
	draining bool
	empty    chan struct{} // closed when draining and none runs
}

// begin enters an answer, whose end must be called; while the gateway drains it refuses.
func (a *answers) begin() *apiError {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.draining {
		return shuttingDown()
	}
	a.running++
	return nil
}

func (a *answers) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.running--
	if a.draining && a.running == 0 {
		close(a.empty)
	}
}

// drain has begin refuse from now on. The channel is closed when no answer is under way.
func (a *answers) drain() (empty <-chan struct{}) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.draining {
		a.draining, a.empty = true, make(chan struct{})
		if a.running == 0 {
			close(a.empty)
		}
	}
	return a.empty
}

func (a *answers) isDraining() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.draining
}

func (a *answers) left() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.running
}

// Drain refuses new requests with 503, as health does from then on, and waits for the answers that are
// under way until ctx ends. Clients whose answers are not over by then are told where to go on: their
// requests run on, and any gateway can have them. It returns how many those were.
func (g *Gateway) Drain(ctx context.Context) (interrupted int) {
	empty := g.answers.drain()
	g.updateReady()
	select {
	case <-empty:
		return 0
	case <-ctx.Done():
	}
	interrupted = g.answers.left()
	for _, l := range g.lives.all() {
		l.fail(interruption)
		l.abandon()
	}
	limit := time.NewTimer(lastWords)
	defer limit.Stop()
	select {
	case <-empty:
	case <-limit.C:
	}
	return interrupted
}
