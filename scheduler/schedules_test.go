package scheduler

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

var (
	schedules = flag.Int("scheduler.schedules", 30, "how many random fault schedules TestStreamsSurvive runs")
	seedFlag  = flag.Uint64("scheduler.seed", 0, "the first schedule's seed; 0: by the clock")
)

// TestStreamsSurvive breaks a cluster at random under load: workers, gateways and nodes are killed and
// come back, the network is cut anywhere, disks become slow, snapshots are sent. Clients follow their
// streams from gateway to gateway. Named properties:
//
//   - unchanged: what a client has is always the beginning of the undisturbed output, and in the end
//     all of it;
//   - answered: every request is, unless workers were lost under it maxAttempts times without a token;
//   - ended: everything that the log admitted has ended in the log;
//   - once: a worker never gets a request that it is running, nor goes on after anything else than
//     what was generated;
//   - bounded: of a tenant with limits no more is admitted than these allow;
//   - same: all nodes hold the same log and the same state.
//
// A seed gives the same faults at the same virtual times, but not the same order of goroutines.
func TestStreamsSurvive(t *testing.T) {
	began := time.Now()
	first := *seedFlag
	if first == 0 {
		first = uint64(began.UnixNano())
	}
	for n := range *schedules {
		seed := first + uint64(n)
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { survive(t, seed) })
		})
	}
	t.Logf("%.0f schedules a minute", float64(*schedules)/time.Since(began).Minutes())
}

func survive(t *testing.T, seed uint64) {
	random := rand.New(rand.NewPCG(seed, 1))
	w := newWorld(t, rand.New(rand.NewPCG(seed, 2)), 3, 3, 3)
	defer w.close()
	until(t, "a leader is there", func() bool { return w.leader() != nil })
	until(t, "a worker is there", func() bool { return w.leader() != nil && w.leader().scheduler().Stats().Workers > 0 })

	limits := &pb.Tenant{Name: "limited", RequestsPerMinute: 10, MaxRequests: 3, Weight: 2}
	if err := w.insist(w.ctx, "operator", func(ctx context.Context, s *Scheduler) error {
		_, err := s.SetTenant(ctx, &pb.SetTenantRequest{Tenant: limits})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	began := time.Now()

	var clients sync.WaitGroup
	requests := 0
	faults := map[string]int{}
	down := (*simNode)(nil)
	back := func() { // One node at a time: without two of three nothing goes on.
		w.heal()
		if down != nil {
			down.start()
			down = nil
		}
	}
	for range 12 {
		for range random.IntN(4) {
			r := request(fmt.Sprint("r", requests))
			requests++
			n, draw := int32(1+random.IntN(2)), random.Uint64()
			r.Sampling = &pb.SamplingParams{Seed: &draw, MaxTokens: int32(1 + random.IntN(120)), N: n}
			if random.IntN(6) == 0 {
				r.Sampling.Logprobs = new(int32)
			}
			if random.IntN(3) == 0 {
				r.Tenant = limits.GetName()
			}
			clients.Go(func() { w.client(r) })
		}
		fault := [...]string{
			"worker killed", "worker killed", "worker quits", "worker cut off", "worker and gateway cut off",
			"gateway killed", "gateway killed", "gateway cut off from nodes", "node killed", "leader killed", "leader cut off",
			"node cut off", "slow disk", "compaction", "heal", "transfer",
		}[random.IntN(16)]
		faults[fault]++
		node, worker, gateway := w.nodes[random.IntN(3)], w.workers[random.IntN(3)], w.gateways[random.IntN(3)]
		switch fault {
		case "worker killed":
			worker.kill()
		case "worker quits":
			worker.quit(w.pick(50))
		case "worker cut off":
			w.isolate(worker.info.GetId())
		case "worker and gateway cut off":
			w.isolate(worker.info.GetId(), gateway.id)
		case "gateway killed":
			gateway.kill()
		case "gateway cut off from nodes":
			w.isolate(gateway.id, "node-0", "node-1", "node-2")
		case "leader killed", "node killed":
			back()
			if lead := w.leader(); lead != nil && fault == "leader killed" {
				node = lead
			}
			node.kill()
			down = node
		case "leader cut off", "node cut off":
			back()
			if lead := w.leader(); lead != nil && fault == "leader cut off" {
				node = lead
			}
			w.isolate(node.id)
		case "slow disk":
			node.log.slow(time.Duration(random.IntN(300)) * time.Millisecond)
		case "compaction":
			w.compact()
		case "heal":
			back()
		case "transfer":
			if lead := w.leader(); lead != nil {
				s := lead.scheduler()
				w.owned.Go(func() {
					ctx, cancel := context.WithTimeout(w.ctx, 5*time.Second)
					defer cancel()
					_, _ = s.node.Transfer(ctx, "") // It may fail, as operators know.
				})
			}
		}
		time.Sleep(time.Duration(random.IntN(1500)) * time.Millisecond) // Virtual.
		// Workers and gateways are started again where they run.
		for _, k := range w.workers {
			if !k.isAlive() && random.IntN(2) == 0 {
				k.start()
			}
		}
		for _, g := range w.gateways {
			if !g.isAlive() && random.IntN(2) == 0 {
				g.start()
			}
		}
		node.log.slow(0)
		for _, n := range w.nodes {
			if s := n.scheduler(); s != nil {
				atOnce := 0
				for r := range s.store.View().Live() {
					if r.Request.GetTenant() == limits.GetName() {
						atOnce++
					}
				}
				if atOnce > int(limits.GetMaxRequests()) {
					t.Errorf("%s: %d requests of a tenant at once, the limit is %d", n.id, atOnce, limits.GetMaxRequests())
				}
			}
		}
	}
	back()
	for _, k := range w.workers {
		k.kill() // It may be about to quit.
		k.start()
	}
	for _, g := range w.gateways {
		if !g.isAlive() {
			g.start()
		}
	}
	clients.Wait()
	until(t, "everything admitted has ended", func() bool {
		n := w.leader()
		if n == nil {
			return false
		}
		for range n.scheduler().store.View().Live() {
			return false
		}
		return true
	})
	w.agree()
	admitted := int64(0)
	for r := range w.leader().scheduler().store.View().Requests() {
		if r.Request.GetTenant() == limits.GetName() {
			admitted++
		}
	}
	if most := limits.GetRequestsPerMinute() + int64(time.Since(began)*time.Duration(limits.GetRequestsPerMinute())/time.Minute) + 1; admitted > most {
		t.Errorf("%d requests of a tenant were admitted in %v, the limit is %d", admitted, time.Since(began), most)
	}
	if w.ended+w.failed != requests {
		t.Errorf("%d of %d requests were answered, %d failed", w.ended, requests, w.failed)
	}
	t.Logf("%d requests, %d failed, %d reconnects, %d snapshots sent, faults %v, term %d", requests, w.failed, w.reconnects, w.installs, faults, w.leader().scheduler().node.Term())
}

// client follows a request's stream until it has the whole, from gateway to gateway.
func (w *world) client(r *pb.Request) {
	want := undisturbed(r)
	var err error
	for tries := 0; ; tries++ {
		if tries > 100 {
			w.t.Errorf("%s has no answer after %d tries: %v", r.GetId(), tries, err)
			return
		}
		g := w.gateways[w.pick(len(w.gateways))]
		own := request(r.GetId())
		own.Sampling, own.Tenant, own.GatewayId = r.GetSampling(), r.GetTenant(), g.id
		var l *simLive
		l, err = g.open(own)
		if err == nil {
			// An impatient client looks for another gateway now and then.
			patience := time.NewTimer(time.Duration(w.pick(30)+1) * time.Second)
			select {
			case <-l.over:
				err = l.err
			case <-patience.C:
				err = errAdopted
			}
			patience.Stop()
			have := g.read(l)
			for c := range have {
				if len(have[c]) > len(want[c]) || !slices.Equal(have[c], want[c][:len(have[c])]) {
					w.t.Errorf("%s, choice %d: the client has %v of %v", r.GetId(), c, have[c], want[c])
					return
				}
			}
			if err == nil {
				if !slices.EqualFunc(have, want, slices.Equal[[]int32]) {
					w.t.Errorf("%s ended with %v, want %v", r.GetId(), have, want)
				}
				w.count(&w.ended)
				return
			}
		}
		if strings.Contains(err.Error(), "lost with its worker") {
			w.count(&w.failed)
			return
		}
		if strings.Contains(err.Error(), "generation") || strings.Contains(err.Error(), "InvalidArgument") {
			w.t.Errorf("%s: %v", r.GetId(), err)
			return
		}
		w.count(&w.reconnects)
		if !w.wait(100 * time.Millisecond) {
			return
		}
	}
}

// pauseUnless waits for a channel to be closed, false if that takes too long.
func pauseUnless(over <-chan struct{}, most time.Duration) bool {
	timer := time.NewTimer(most)
	defer timer.Stop()
	select {
	case <-over:
		return true
	case <-timer.C:
		return false
	}
}

func (w *world) count(n *int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	*n++
}

// TestGaps holds the longest pause that any of 8 streams, half of them with log-probabilities, sees
// against what is promised, without the time that computing takes: a token comes every 20 ms here, and a message takes 60 ms at most. Workers
// have room for the streams of those that fail.
func TestGaps(t *testing.T) {
	const handsOver = "a worker hands over"
	for _, c := range []struct {
		fault string
		most  time.Duration
		fails func(w *world)
	}{
		{"nothing", 200 * time.Millisecond, func(*world) {}},
		{"a worker is killed", 600 * time.Millisecond, func(w *world) { w.workers[0].kill() }},
		{"two workers are killed", 900 * time.Millisecond, func(w *world) {
			w.workers[0].kill()
			w.wait(50 * time.Millisecond)
			w.workers[1].kill()
		}},
		{"a worker is killed and starts again at once", 600 * time.Millisecond, func(w *world) {
			w.workers[0].kill()
			w.workers[0].start()
		}},
		{"a worker and the leader are killed", 10 * time.Second, func(w *world) {
			w.leader().kill()
			w.workers[0].kill()
		}},
		{handsOver, 400 * time.Millisecond, func(w *world) { w.workers[0].quit(50) }},
		{"a worker is cut off", 3500 * time.Millisecond, func(w *world) { w.isolate(w.workers[0].info.GetId()) }},
		{"the leader is killed", 200 * time.Millisecond, func(w *world) { w.leader().kill() }},
		{"the leader is cut off", 200 * time.Millisecond, func(w *world) { w.isolate(w.leader().id) }},
		{"the leader hands over", 200 * time.Millisecond, func(w *world) {
			s := w.leader().scheduler()
			w.owned.Go(func() { _, _ = s.node.Transfer(w.ctx, "") }) // The gaps tell.
		}},
	} {
		t.Run(c.fault, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, rand.New(rand.NewPCG(1, 2)), 3, 3, 3)
				defer w.close()
				until(t, "a leader is there", func() bool { return w.leader() != nil })
				until(t, "the workers are there", func() bool { return w.leader() != nil && w.leader().scheduler().Stats().Workers == 3 })
				var lives []*simLive
				for n := range 8 {
					g := w.gateways[n%3]
					r := request(fmt.Sprint("r", n))
					r.GatewayId = g.id
					seed := uint64(n)
					r.Sampling = &pb.SamplingParams{Seed: &seed, MaxTokens: 400, IgnoreEos: true}
					if n%2 == 1 {
						r.Sampling.Logprobs = new(int32)
					}
					l, err := g.open(r)
					if err != nil {
						t.Fatal(err)
					}
					lives = append(lives, l)
				}
				time.Sleep(2 * time.Second) // Virtual.
				c.fails(w)
				longest := time.Duration(0)
				for n, l := range lives {
					if !pauseUnless(l.over, time.Minute) {
						k := w.leader().scheduler().leader.Load().explain(l.request.GetId(), time.Now())
						t.Fatalf("%s has not ended after a minute; the leader says %v", l.request.GetId(), k)
					}
					if l.err != nil {
						t.Errorf("%s ended with %v", l.request.GetId(), l.err)
					}
					g := w.gateways[n%3]
					if got, want := g.read(l), undisturbed(l.request); !slices.EqualFunc(got, want, slices.Equal[[]int32]) {
						t.Errorf("%s has another output", l.request.GetId())
					}
					longest = max(longest, l.gap)
				}
				t.Logf("the longest pause is %v", longest)
				if w.sourced > 0 != (c.fault == handsOver) {
					t.Errorf("%d requests came with another worker's KV cache", w.sourced)
				}
				if longest > c.most {
					t.Errorf("the longest pause is %v, want %v at most", longest, c.most)
				}
			})
		})
	}
}
