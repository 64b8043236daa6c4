package scheduler

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// reading is a gateway of which only what matters here is kept: which requests somebody reads there.
type reading struct {
	id string
	s  *Scheduler

	mu    sync.Mutex
	reads map[string]bool
	stop  func()
}

// run is one process of the gateway. What an earlier one read is forgotten.
func (g *reading) run() {
	ctx, cancel := context.WithCancel(context.Background())
	var done sync.WaitGroup
	g.mu.Lock()
	g.reads = map[string]bool{}
	g.mu.Unlock()
	g.stop = func() { cancel(); done.Wait() }
	done.Go(func() {
		for ctx.Err() == nil {
			_ = g.s.Watch(&pb.WatchRequest{GatewayId: g.id}, &newsStream{ctx: ctx, send: func(m *pb.WatchResponse) error {
				g.mu.Lock()
				defer g.mu.Unlock()
				for _, id := range m.GetOwned() {
					if !g.reads[id] {
						done.Go(func() {
							_, _ = g.s.Abort(ctx, &pb.AbortRequest{RequestId: id, GatewayId: g.id, Reason: "nobody reads it"})
						})
					}
				}
				return nil
			}})
			pause(ctx, 50*time.Millisecond)
		}
	})
}

// leave has a reader go; the abort that follows may be lost.
func (g *reading) leave(random *rand.Rand, told bool) {
	g.mu.Lock()
	ids := slices.Sorted(maps.Keys(g.reads))
	id := ""
	if len(ids) > 0 {
		id = ids[random.IntN(len(ids))]
		delete(g.reads, id)
	}
	g.mu.Unlock()
	if id != "" && told {
		_, _ = g.s.Abort(context.Background(), &pb.AbortRequest{RequestId: id, GatewayId: g.id})
	}
}

// TestEveryRequestHasAReaderOrAnEnd: gateways die, come back under their names and lose aborts, and leaders
// change. After a while every request that has not ended is read by somebody, and whatever somebody reads
// has not been ended.
func TestEveryRequestHasAReaderOrAnEnd(t *testing.T) {
	for seed := range uint64(12) {
		synctest.Test(t, func(t *testing.T) { readersAndEnds(t, seed) })
	}
}

func readersAndEnds(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	s := start(t, Settings{})
	w := newWorker(t, "w")
	w.join(s)
	defer w.leave()
	until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
	gateways := []*reading{{id: "g0", s: s}, {id: "g1", s: s}, {id: "g2", s: s}}
	for _, g := range gateways {
		g.run()
		defer func() { g.stop() }()
	}
	for n := range 60 {
		g := gateways[random.IntN(len(gateways))]
		switch random.IntN(10) {
		case 0:
			g.leave(random, true)
		case 1:
			g.leave(random, false)
		case 2:
			g.stop()
			g.run()
		case 3:
			if l := s.leader.Load(); l != nil && random.IntN(3) == 0 {
				l.fail(errors.New("the test ends this leadership"))
				until(t, "the node leads again", func() bool { return s.leader.Load() != nil && s.leader.Load() != l })
				w.leave()
				w.join(s)
				until(t, "the worker is back", func() bool { return s.Stats().Workers == 1 })
			}
		default:
			r := request(fmt.Sprint("r", n))
			r.GatewayId = g.id
			g.mu.Lock()
			g.reads[r.GetId()] = true
			g.mu.Unlock()
			if _, err := submit(s, r); err != nil {
				t.Fatalf("seed %d: %v", seed, err)
			}
		}
		time.Sleep(time.Duration(random.IntN(3000)) * time.Millisecond) // Virtual.
	}
	time.Sleep(3 * ownedInterval) // Virtual.
	read := map[string]bool{}
	for _, g := range gateways {
		g.mu.Lock()
		maps.Copy(read, g.reads)
		g.mu.Unlock()
	}
	l := s.leader.Load()
	l.mu.Lock()
	defer l.mu.Unlock()
	for id := range l.live {
		if !read[id] {
			t.Errorf("seed %d: nobody reads %s, and it goes on", seed, id)
		}
	}
	for id := range read {
		if l.live[id] == nil {
			t.Errorf("seed %d: somebody reads %s, and it has been ended", seed, id)
		}
	}
}

// TestOperatorsEndRequests: requests are listed by what they have in common, a page at a time, and ended.
func TestOperatorsEndRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.info.MaxSequences = 2
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		for i, id := range ids("r", 6) {
			r := request(id)
			r.Tenant = []string{"", "a"}[i%2]
			mustSubmit(t, s, r)
			time.Sleep(time.Second) // Virtual.
		}
		list := func(f *pb.RequestFilter, after string, limit int32) (got []string, more bool) {
			t.Helper()
			r, err := s.ListRequests(t.Context(), &pb.ListRequestsRequest{Filter: f, After: after, Limit: limit})
			if err != nil {
				t.Fatal(err)
			}
			for _, q := range r.GetRequests() {
				got = append(got, q.GetId())
			}
			return got, r.GetMore()
		}
		all := ids("r", 6)
		none, a := "", "a"
		for _, c := range []struct {
			filter *pb.RequestFilter
			after  string
			limit  int32
			want   []string
			more   bool
		}{
			{nil, "", 0, all, false},
			{nil, all[1], 2, all[2:4], true},
			{nil, all[3], 2, all[4:], false},
			{&pb.RequestFilter{Tenant: &none}, "", 0, []string{all[0], all[2], all[4]}, false},
			{&pb.RequestFilter{Tenant: &a}, "", 0, []string{all[1], all[3], all[5]}, false},
			{&pb.RequestFilter{WorkerId: "w"}, "", 0, all[:2], false},
			{&pb.RequestFilter{Phase: pb.ExplainResponse_PHASE_QUEUED}, "", 0, all[2:], false},
			{&pb.RequestFilter{AgeMs: 3500}, "", 0, all[:3], false},
			{&pb.RequestFilter{GatewayId: "h"}, "", 0, nil, false},
			{&pb.RequestFilter{Unwatched: true, Model: "m"}, "", 1, all[:1], true},
		} {
			if got, more := list(c.filter, c.after, c.limit); !slices.Equal(got, c.want) || more != c.more {
				t.Errorf("%v behind %q: %q, %v; want %q, %v", c.filter, c.after, got, more, c.want, c.more)
			}
		}
		for _, wrong := range []*pb.AbortRequestsRequest{
			{}, {Filter: &pb.RequestFilter{}}, {RequestIds: all, Filter: &pb.RequestFilter{Model: "m"}}, {RequestIds: make([]string, mostListed+1)},
		} {
			if _, err := s.AbortRequests(t.Context(), wrong); status.Code(err) != codes.InvalidArgument {
				t.Errorf("%v: %v", wrong, err)
			}
		}
		r, err := s.AbortRequests(t.Context(), &pb.AbortRequestsRequest{Filter: &pb.RequestFilter{Tenant: &a}, Reason: "a test"})
		if err != nil || len(r.GetRequestIds()) != 3 || r.GetMore() {
			t.Errorf("aborted %v, %v", r, err)
		}
		until(t, "they end", finished(s, all[5]))
		if e := s.store.View().Request(all[1]); e.FinishReason != pb.FinishReason_FINISH_REASON_ABORT || e.Error != "aborted by an operator: a test" {
			t.Errorf("ended with %v %q", e.FinishReason, e.Error)
		}
		if got, _ := list(nil, "", 0); !slices.Equal(got, []string{all[0], all[2], all[4]}) {
			t.Errorf("left over: %q", got)
		}
	})
}
