package scheduler

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// TestGatewaysKnowWhatWaits: gateways are told every second how much waits in the leader's queue, and the
// leader's own metrics say for how long.
func TestGatewaysKnowWhatWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		w := newWorker(t, "w")
		w.info.MaxSequences = 1
		w.join(s)
		defer w.leave()
		until(t, "it is in session", func() bool { return s.Stats().Workers == 1 })
		news, stop := watch(t, s)
		defer stop()
		for n := range 8 {
			mustSubmit(t, s, request(fmt.Sprint("r", n)))
		}
		time.Sleep(3 * watchInterval) // virtual
		waiting := int64(s.Stats().Queued)
		if waiting == 0 {
			t.Fatal("nothing waits")
		}
		if got := news.waits(w.info.Model); got != waiting {
			t.Errorf("gateways know of %d, %d wait", got, waiting)
		}
		registry := prometheus.NewRegistry()
		registry.MustRegister(s.Metrics())
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		got := map[string]float64{}
		for _, f := range families {
			got[f.GetName()] = f.Metric[0].GetGauge().GetValue()
		}
		if got["quire_leader_queue_sequences"] < float64(waiting) || got["quire_leader_queue_oldest_seconds"] < 2 || got["quire_leader_workers"] != 1 {
			t.Errorf("the leader's queue: %v", got)
		}
		if got["quire_raft_leader"] != 1 || got["quire_raft_term"] < 1 || got["quire_raft_problem"] != 0 || got["quire_raft_applied_index"] < 1 {
			t.Errorf("raft: %v", got)
		}
	})
}
