package scheduler

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// TestFewSubmitsComputeAtOnce: a request waits for a place before anything is computed for it, as long as its
// caller does. Without that, thousands that come at once have their turn before a heartbeat has.
func TestFewSubmitsComputeAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.join(s)
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		for range cap(s.taking) {
			s.taking <- struct{}{}
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, _, _, err := s.take(ctx, nil); status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("with all places taken: %v", err)
		}
		var submitted sync.WaitGroup
		submitted.Go(func() { mustSubmit(t, s, request("r")) })
		synctest.Wait()
		if s.store.View().Request("r") != nil {
			t.Error("a request was admitted with all places taken")
		}
		for range cap(s.taking) {
			<-s.taking
		}
		submitted.Wait()
		if len(s.taking) != 0 {
			t.Errorf("%d places still taken", len(s.taking))
		}
		w.leave()
	})
}

// BenchmarkFlood submits 6,000 requests of 3,000 tokens at once to the leader of three nodes, and reports for
// how long a follower heard nothing of it at worst, and how often leadership changed.
func BenchmarkFlood(b *testing.B) {
	const flood = 6000
	nodes := startPeers(b, 3)
	leader := func() (at int) {
		for i, s := range nodes {
			if s.leader.Load() != nil {
				return i
			}
		}
		return -1
	}
	for round := range b.N {
		await(b, "a node leads", func() bool { return leader() >= 0 })
		at := leader()
		w := newWorker(b, "w")
		w.join(nodes[at])
		await(b, "the worker is in session", func() bool { return nodes[at].Stats().Workers == 1 })
		term := nodes[at].node.Term()
		ctx, stop := context.WithCancel(b.Context())
		var worst time.Duration
		var watching, submits sync.WaitGroup
		watching.Go(func() {
			for tick := time.NewTicker(5 * time.Millisecond); ctx.Err() == nil; <-tick.C {
				for i, s := range nodes {
					if i != at {
						worst = max(worst, time.Since(s.node.Progress().LastContact))
					}
				}
			}
		})
		var failed atomic.Int64
		for i := range flood {
			submits.Go(func() {
				r := request(fmt.Sprint(round, "-", i))
				r.Prompt = make([]int32, 3000)
				if _, err := submit(nodes[at], r); err != nil {
					failed.Add(1)
				}
			})
		}
		submits.Wait()
		stop()
		watching.Wait()
		w.leave()
		b.ReportMetric(float64(worst.Milliseconds()), "ms-silence")
		b.ReportMetric(float64(failed.Load()), "refused") // The queue of rounds before may be full.
		b.ReportMetric(float64(nodes[at].node.Term()-term), "elections")
	}
}
