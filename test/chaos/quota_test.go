//go:build linux

package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// A tenant asks for more than it may have, all the time. The admissions that clients see must fit its
// bucket in every span of time, whatever leader admitted them.
const (
	meteredTenant = "metered"
	// meteredPerMinute is also what may come at once.
	meteredPerMinute = 60
	meteredPause     = 300 * time.Millisecond
	meteredClients   = 2
)

func setQuota(ctx context.Context, leader *node) error {
	_, err := pb.NewOperatorClient(leader.control).SetTenant(ctx, &pb.SetTenantRequest{
		Tenant: &pb.Tenant{Name: meteredTenant, RequestsPerMinute: meteredPerMinute},
	})
	return err
}

// admission was made at some moment between two: when the client first asked, and when it had a token.
type admission struct{ asked, seen time.Time }

// metered is the tenant's traffic.
type metered struct {
	mu       sync.Mutex
	admitted []admission
	refused  int
	failed   []string
}

func (m *metered) start(ctx context.Context, l *load, seed uint64) (finish func()) {
	zero := float32(0)
	a := &ask{name: "metered", manner: repeats, choices: 1, tenant: meteredTenant, generate: &pb.GenerateRequest{
		Model: l.model, Input: &pb.GenerateRequest_Prompt{Prompt: "Hi"}, Sampling: &pb.SamplingParams{Temperature: &zero, MaxTokens: 1, IgnoreEos: true},
	}}
	stop := make(chan struct{})
	var done sync.WaitGroup
	for i := range meteredClients {
		random := rand.New(rand.NewPCG(seed, uint64(1000+i)))
		done.Go(func() {
			tick := time.NewTicker(meteredPause)
			defer tick.Stop()
			for {
				select {
				case <-stop:
					return
				case <-tick.C:
				}
				s := l.session(a)
				s.run(ctx, l.fronts, random.IntN(len(l.fronts)))
				m.mu.Lock()
				switch {
				case s.record.refused:
					m.refused++
				case s.record.failure != "":
					m.failed = append(m.failed, s.record.failure)
				default:
					m.admitted = append(m.admitted, admission{s.record.begin, s.record.first})
				}
				m.mu.Unlock()
			}
		})
	}
	return func() {
		close(stop)
		done.Wait()
	}
}

// excess is by how much the admissions overfill the bucket in the worst span of time: those that were
// certainly made in it, beyond a full bucket and what the time brings.
func excess(admitted []admission, perMinute int) (most int) {
	bySeen := slices.SortedFunc(slices.Values(admitted), func(a, b admission) int { return a.seen.Compare(b.seen) })
	for _, from := range admitted {
		inside := 0
		for _, a := range bySeen {
			if a.asked.Before(from.asked) {
				continue
			}
			inside++
			span := a.seen.Sub(from.asked)
			allowed := perMinute + int(float64(perMinute)*span.Minutes()) + 1
			most = max(most, inside-allowed)
		}
	}
	return most
}

// judge says in a line what came of it, and whether the quota held.
func (m *metered) judge() (line string, kept bool) {
	over := excess(m.admitted, meteredPerMinute)
	line = fmt.Sprintf("quota of %d requests a minute: %d admitted, %d refused, over-admitted %d", meteredPerMinute, len(m.admitted), m.refused, over)
	for _, f := range m.failed {
		line += "\n  failed: " + f
	}
	return line, over == 0 && len(m.failed) == 0
}

// TestExcessIsSeen makes sure that the check counts what does not fit, and only that.
func TestExcessIsSeen(t *testing.T) {
	start := time.Now()
	at := func(seconds float64) admission {
		asked := start.Add(time.Duration(seconds * float64(time.Second)))
		return admission{asked, asked.Add(10 * time.Millisecond)}
	}
	var list []admission
	for range 60 { // a full bucket at once
		list = append(list, at(0))
	}
	for i := range 120 { // then one a second
		list = append(list, at(float64(1+i)))
	}
	if got := excess(list, 60); got != 0 {
		t.Errorf("a bucket used to its end: excess %d", got)
	}
	late := append(slices.Clone(list), at(120.5), at(120.5), at(120.5))
	if got := excess(late, 60); got != 2 {
		t.Errorf("three more at the end, one of which the rounding allows: excess %d, want 2", got)
	}
}
