package scheduler

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics reports a node's part in the log and, where it leads, the queue.
type metrics struct{ s *Scheduler }

var _ prometheus.Collector = metrics{}

// Metrics are the scheduler's, for the node's /metrics. docs/metrics.md lists them.
func (s *Scheduler) Metrics() prometheus.Collector { return metrics{s} }

var (
	modelLabel   = []string{"model_name"}
	descTerm     = prometheus.NewDesc("quire_raft_term", "The node's term; it grows with every election.", nil, nil)
	descLeads    = prometheus.NewDesc("quire_raft_leader", "1 on the node that leads, else 0.", nil, nil)
	descLast     = prometheus.NewDesc("quire_raft_last_index", "The newest entry in the node's log.", nil, nil)
	descCommit   = prometheus.NewDesc("quire_raft_commit_index", "The newest entry that the node knows to be committed.", nil, nil)
	descApplied  = prometheus.NewDesc("quire_raft_applied_index", "The newest entry that the node has applied.", nil, nil)
	descContact  = prometheus.NewDesc("quire_raft_last_contact_seconds", "Since the leader was last heard; 0 on the leader, -1 for never.", nil, nil)
	descProblem  = prometheus.NewDesc("quire_raft_problem", "1 if the node takes no part in the cluster any more, else 0.", nil, nil)
	descSessions = prometheus.NewDesc("quire_leader_workers", "Workers in session with the leader; 0 on other nodes.", nil, nil)
	descQueue    = prometheus.NewDesc("quire_leader_queue_sequences", "Choices of the requests in the queue, on the leader alone.", modelLabel, nil)
	descBytes    = prometheus.NewDesc("quire_leader_queue_bytes", "Memory that the queue takes, on the leader alone.", modelLabel, nil)
	descOldest   = prometheus.NewDesc("quire_leader_queue_oldest_seconds", "How long the request that came first has waited, on the leader alone.", modelLabel, nil)
	descReserved = prometheus.NewDesc("quire_leader_queue_reserved_workers", "Workers that are kept for a request that fits nowhere yet, on the leader alone.", modelLabel, nil)
)

func (metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{descTerm, descLeads, descLast, descCommit, descApplied, descContact, descProblem, descSessions, descQueue, descBytes, descOldest, descReserved} {
		ch <- d
	}
}

func (m metrics) Collect(ch chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	flag := func(on bool) float64 {
		if on {
			return 1
		}
		return 0
	}
	p := m.s.node.Progress()
	contact := -1.0
	if leads := m.s.node.Leads(); leads {
		contact = 0
	} else if !p.LastContact.IsZero() {
		contact = time.Since(p.LastContact).Seconds()
	}
	gauge(descTerm, float64(p.Term))
	gauge(descLeads, flag(m.s.leader.Load() != nil))
	gauge(descLast, float64(p.LastIndex))
	gauge(descCommit, float64(p.Commit))
	gauge(descApplied, float64(p.Applied))
	gauge(descContact, contact)
	gauge(descProblem, flag(m.s.Problem() != ""))
	stats := m.s.Stats()
	gauge(descSessions, float64(stats.Workers))
	for _, q := range stats.Queues {
		gauge(descQueue, float64(q.Sequences), q.Model)
		gauge(descBytes, float64(q.Bytes), q.Model)
		gauge(descOldest, float64(q.OldestWaitMS)/1000, q.Model)
		gauge(descReserved, float64(q.Reserved), q.Model)
	}
}
