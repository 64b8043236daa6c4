package scheduler

import (
	"io"
	"time"

	"github.com/quire-serve/quire/scheduler/consensus"
)

// clock counts the log's time on, by this node's own steady clock, from an entry that it applied. Nodes
// never compare what time it is, so none of them can be wrong about it. A node that applies late is behind
// the one that wrote the entry, never ahead of it.
type clock struct {
	began   time.Time
	beganMS int64
}

// ms is the log's time, in milliseconds, at a time of this node's.
func (c clock) ms(now time.Time) int64 { return c.beganMS + now.Sub(c.began).Milliseconds() }

// machine drives the tables with the log, and the node's clock with the tables. It notes what came of each
// entry.
type machine struct{ s *Scheduler }

var _ consensus.StateMachine = machine{}

func (m machine) Apply(index, term uint64, data []byte) (any, error) {
	before := m.s.store.View().TimeMS()
	results, err := m.s.store.Apply(index, term, data)
	if err == nil {
		m.s.members.Applied(index, m.s.store.View().ChainHash())
	}
	if after := m.s.store.View().TimeMS(); after != before {
		now := m.s.settings.now()
		m.s.clock.Store(&clock{now, max(after, m.s.clock.Load().ms(now))})
	}
	return results, err
}

func (m machine) Snapshot() io.WriterTo { return m.s.store.View() }

func (m machine) Restore(r io.Reader) error {
	m.s.members.Restored()
	err := m.s.store.Restore(r)
	m.s.clock.Store(&clock{m.s.settings.now(), m.s.store.View().TimeMS()})
	return err
}

// timeMS is the log's time now, as far as this node can tell.
func (s *Scheduler) timeMS() int64 { return s.clock.Load().ms(s.settings.now()) }
