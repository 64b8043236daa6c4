package consensus

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
)

// faultyStore fails writes while err is set.
type faultyStore struct {
	*raft.InmemStore
	mu  sync.Mutex
	err error
}

func (f *faultyStore) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *faultyStore) broken() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.err
}

func (f *faultyStore) StoreLogs(logs []*raft.Log) error {
	if err := f.broken(); err != nil {
		return err
	}
	return f.InmemStore.StoreLogs(logs)
}

func (f *faultyStore) StoreLog(log *raft.Log) error { return f.StoreLogs([]*raft.Log{log}) }

func (f *faultyStore) SetUint64(key []byte, value uint64) error {
	if err := f.broken(); errors.Is(err, syscall.EIO) {
		return err
	}
	return f.InmemStore.SetUint64(key, value)
}

// TestFullDiskOfTheLeader lets another node lead while the disk is full, and the node follow again
// once there is room.
func TestFullDiskOfTheLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		old := c.leader(-1)
		mustPropose(t, c.nodes[old], "before")
		c.stores[old].fail(fmt.Errorf("write: %w", syscall.ENOSPC))
		if _, err := propose(c.nodes[old], "lost"); err == nil {
			t.Error("an entry was accepted with a full disk")
		}
		next := c.leader(old)
		for i := range 10 {
			mustPropose(t, c.nodes[next], fmt.Sprint("after-", i))
		}
		if c.fatal(old) != nil {
			t.Errorf("a full disk stopped the node: %v", c.fatal(old))
		}
		c.stores[old].fail(nil)
		time.Sleep(20 * time.Second) // Virtual.
		if got, want := c.tapes[old].String(), c.tapes[next].String(); got != want || !strings.HasSuffix(want, "after-9") || strings.Contains(want, "lost") {
			t.Errorf("with room again the node holds %q, the leader %q", got, want)
		}
	})
}

// TestFailingDiskStopsTheNode: after an error of which nobody knows what it did to the disk, the node
// says so and stops, be it of the log or of the votes.
func TestFailingDiskStopsTheNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		leader := c.leader(-1)
		c.stores[leader].fail(fmt.Errorf("fsync: %w", syscall.EIO))
		_, _ = propose(c.nodes[leader], "x")
		if err := c.fatal(leader); !errors.Is(err, syscall.EIO) || !strings.Contains(err.Error(), "the log cannot be written") {
			t.Errorf("a failing fsync of the log: %v", err)
		}
	})
	votes := guardedVotes{&faultyStore{InmemStore: raft.NewInmemStore(), err: syscall.EIO}, nil}
	var fatal error
	votes.fatal = func(err error) { fatal = err }
	if err := votes.SetUint64([]byte("CurrentTerm"), 3); !errors.Is(err, syscall.EIO) || !errors.Is(fatal, syscall.EIO) {
		t.Errorf("a failing write of the vote: %v, stopped with %v", err, fatal)
	}
}

// TestGuardKeepsTheLogMonotonic: raft must hear that raft-wal allows no gaps, or snapshots that it
// installs leave some.
func TestGuardKeepsTheLogMonotonic(t *testing.T) {
	for store, want := range map[Store]bool{WAL: true, BoltDB: false} {
		n := open(t, Settings{NodeID: "a", DataDir: t.TempDir(), Store: store}, &tape{})
		if got := (&guardedLogs{LogStore: n.files.Logs}).IsMonotonic(); got != want {
			t.Errorf("%s: monotonic is %t", store, got)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}
}
