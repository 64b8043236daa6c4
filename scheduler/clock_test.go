package scheduler

import (
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestLeadersThatDisagreeAboutTheTime: nodes whose clocks are an hour apart lead one after the other. No
// limit opens or locks, nothing that is kept is wiped, and a deadline of seconds stays one of seconds,
// whoever leads.
func TestLeadersThatDisagreeAboutTheTime(t *testing.T) {
	for name, skew := range map[string]func(i int) time.Duration{
		"the first is fast":       func(i int) time.Duration { return -time.Duration(i) * time.Hour },
		"the first is slow":       func(i int) time.Duration { return time.Duration(i) * time.Hour },
		"the first is 60 s ahead": func(i int) time.Duration { return -time.Duration(i) * time.Minute },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				began := 0
				c := newCluster(t, 3, func(s *Settings) {
					ahead := skew(began)
					began++
					s.now = func() time.Time { return time.Now().Add(ahead) }
				})
				defer c.close()
				w := newWorker(t, "w")
				w.info.MaxSequences = 1
				// lead makes a node the leader and returns it once the worker is there.
				lead := func(i int) *Scheduler {
					s := c.nodes[i]
					if old := c.nodes[c.waitLeader()]; old != s {
						if _, err := old.node.Transfer(t.Context(), s.settings.NodeID); err != nil {
							t.Fatal(err)
						}
					}
					until(t, "the worker is in session", func() bool {
						c.attend(w)
						return s.Stats().Workers == 1
					})
					return s
				}
				s := lead(0)
				setTenant(t, s, &pb.Tenant{Name: "t", RequestsPerMinute: 2})
				mustSubmit(t, s, request("first"))
				mustSubmit(t, s, request("second"))
				w.finish("first", stopped, "")
				until(t, "it ends", finished(s, "first"))
				for i := range 3 {
					s = lead(i)
					_, err := submit(s, request("more"))
					if status.Code(err) != codes.ResourceExhausted || retryAfter(err) > 30*time.Second {
						t.Fatalf("node %d: %v, again after %v; the limit of 2 a minute opens within 30 s", i, err, retryAfter(err))
					}
					if s.store.View().Request("first") == nil {
						t.Fatalf("node %d has forgotten what ended a moment ago", i)
					}
				}
				// The second one runs on the only place, so that this one waits.
				late := request("late")
				late.Tenant, late.PatienceMs = "", 5000
				asked := time.Now()
				mustSubmit(t, s, late)
				time.Sleep(2 * time.Second) // Virtual.
				s = lead(0)
				until(t, "its time is up", finished(s, "late"))
				if took := time.Since(asked); took < 5*time.Second || took > 6*time.Second {
					t.Errorf("patience of 5 s was at its end after %v", took)
				}
				time.Sleep(time.Until(asked.Add(31 * time.Second))) // Virtual.
				mustSubmit(t, s, request("more"))
			})
		})
	}
}

// TestPatienceIsPassedOn: a worker is told how long a request may still wait, not until when by somebody
// else's clock.
func TestPatienceIsPassedOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{now: func() time.Time { return time.Now().Add(-time.Hour) }})
		w := newWorker(t, "w")
		w.info.MaxSequences = 1
		w.join(s)
		defer w.leave()
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("first"))
		until(t, "it runs", func() bool { return w.has("first") })
		r := request("second")
		r.PatienceMs = 5000
		mustSubmit(t, s, r)
		time.Sleep(3 * time.Second) // Virtual.
		w.finish("first", stopped, "")
		until(t, "it runs", func() bool { return w.has("second") })
		if left := w.got("second").GetPatienceMs(); left < 1900 || left > 2000 {
			t.Errorf("the worker hears of %d ms of patience; of 5 s, 3 are gone", left)
		}
	})
}
