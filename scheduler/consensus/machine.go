package consensus

import (
	"errors"
	"fmt"
	"io"
	"sync/atomic"

	"github.com/hashicorp/raft"
)

// StateMachine is what the log drives. Apply and Snapshot come from one goroutine; Restore comes
// while neither runs.
type StateMachine interface {
	// Apply applies a committed entry. Its result reaches the proposer. An error stops the process:
	// a node that cannot apply what the others applied must not go on.
	Apply(index, term uint64, data []byte) (any, error)
	// Snapshot captures the state at once and cheaply; it is written out while Apply goes on.
	Snapshot() io.WriterTo
	// Restore replaces the whole state.
	Restore(io.Reader) error
}

// machine adapts a StateMachine to raft and counts the bytes applied since the last snapshot.
type machine struct {
	StateMachine
	fatal         func(error)
	appliedBytes  atomic.Int64
	maxBytes      int64
	snapshotIsDue chan struct{}
}

var _ raft.FSM = (*machine)(nil)

func (m *machine) Apply(entry *raft.Log) any {
	result, err := m.StateMachine.Apply(entry.Index, entry.Term, entry.Data)
	if err != nil {
		m.fatal(fmt.Errorf("this node cannot apply the replicated log and stops before it differs from the others: %w", err))
	}
	if m.appliedBytes.Add(int64(len(entry.Data))) > m.maxBytes {
		select {
		case m.snapshotIsDue <- struct{}{}:
		default:
		}
	}
	return result
}

func (m *machine) Snapshot() (raft.FSMSnapshot, error) {
	m.appliedBytes.Store(0)
	return snapshot{m.StateMachine.Snapshot()}, nil
}

func (m *machine) Restore(r io.ReadCloser) error {
	return errors.Join(m.StateMachine.Restore(r), r.Close())
}

type snapshot struct{ io.WriterTo }

func (s snapshot) Persist(sink raft.SnapshotSink) error {
	if _, err := s.WriteTo(sink); err != nil {
		return errors.Join(err, sink.Cancel())
	}
	return sink.Close()
}

func (snapshot) Release() {}
