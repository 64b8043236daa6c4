package consensus

import (
	"context"
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

// faultyStore fails writes while err is set, and does not answer while hanging is.
type faultyStore struct {
	*raft.InmemStore
	mu      sync.Mutex
	err     error
	hanging chan struct{}
}

// hang has writes wait until answer is called.
func (f *faultyStore) hang() (answer func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.hanging = make(chan struct{})
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		close(f.hanging)
		f.hanging = nil
	}
}

func (f *faultyStore) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = err
}

func (f *faultyStore) broken() error {
	f.mu.Lock()
	hanging := f.hanging
	f.mu.Unlock()
	if hanging != nil {
		<-hanging
	}
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
	if err := f.broken(); errors.Is(err, syscall.EIO) { // A full disk still takes a vote.
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

// TestAHangingDiskGivesUpLeadership: heartbeats of a leader go on while its log waits for the disk, so that
// nobody would ever know. Its waits end with their context, and it follows once the disk answers.
func TestAHangingDiskGivesUpLeadership(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		old := c.leader(-1)
		mustPropose(t, c.nodes[old], "before")
		answer := c.stores[old].hang()
		began := time.Now()
		p, err := c.nodes[old].Propose(t.Context(), []byte("hangs"))
		if err != nil {
			t.Fatal(err)
		}
		next := c.leader(old)
		if took := time.Since(began); took > 7*time.Second {
			t.Errorf("the next one led after %v", took)
		}
		if c.nodes[old].Leads() {
			t.Error("the node whose disk hangs still leads")
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := p.Wait(ctx); !errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("the wait ended with %v", err)
		}
		if err := c.nodes[old].Barrier(ctx); err == nil {
			t.Error("a barrier went through")
		}
		if _, err := propose(c.nodes[old], "more"); err == nil {
			t.Error("an entry went through")
		}
		mustPropose(t, c.nodes[next], "after")
		answer()
		time.Sleep(20 * time.Second) // Virtual.
		if got, want := c.tapes[old].String(), c.tapes[next].String(); got != want || !strings.HasSuffix(want, "after") || strings.Contains(want, "hangs") {
			t.Errorf("with a disk that answers again the node holds %q, the leader %q", got, want)
		}
		mustPropose(t, c.nodes[c.leader(-1)], "healed")
	})
}

// TestALoneNodeLeadsAgain when its disk answers again. The slots of what hung are free then.
func TestALoneNodeLeadsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 1)
		defer c.close()
		n := c.nodes[0]
		lead(t, n)
		answer := c.stores[0].hang()
		for range 3 {
			if _, err := n.Propose(t.Context(), []byte("hangs")); err != nil && !errors.Is(err, ErrNotLeader) {
				t.Fatal(err)
			}
		}
		if leads := <-n.Leadership(); leads || n.Leads() {
			t.Error("a node whose disk hangs leads")
		}
		answer()
		if leads := <-n.Leadership(); !leads || !n.Leads() {
			t.Error("a node whose disk answers again does not lead")
		}
		mustPropose(t, n, "after")
		synctest.Wait()
		if len(n.slots) != 0 {
			t.Errorf("%d slots still taken", len(n.slots))
		}
	})
}

// TestSlowOperationsAreNoticed: each kind of operation on the disk, and none that is quick.
func TestSlowOperationsAreNoticed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		store := &faultyStore{InmemStore: raft.NewInmemStore()}
		changes := 0
		watch := &diskWatch{log: quiet, changed: func() { changes++ }}
		logs := &guardedLogs{LogStore: store, watch: watch, log: quiet}
		votes := guardedVotes{StableStore: store, watch: watch}
		for name, write := range map[string]func() error{
			"log":  func() error { return logs.StoreLog(&raft.Log{Index: 1}) },
			"vote": func() error { return votes.SetUint64([]byte("CurrentTerm"), 1) },
		} {
			for _, slow := range []bool{false, true} {
				changes = 0
				var wrote sync.WaitGroup
				answer := store.hang()
				wrote.Go(func() { _ = write() })
				took := hangAfter - time.Millisecond
				if slow {
					took += 2 * time.Millisecond
				}
				<-time.After(took) // synctest's clock
				synctest.Wait()
				if watch.hangs() != slow {
					t.Errorf("%s: after %v the disk hangs: %t", name, took, watch.hangs())
				}
				answer()
				wrote.Wait()
				if watch.hangs() || slow != (changes == 2) {
					t.Errorf("%s: afterwards it hangs: %t; %d changes", name, watch.hangs(), changes)
				}
			}
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
	votes := guardedVotes{StableStore: &faultyStore{InmemStore: raft.NewInmemStore(), err: syscall.EIO}}
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

// batches is a log that notes how many entries it was given at once.
type batches struct {
	*raft.InmemStore
	mu      sync.Mutex
	largest int
}

func (b *batches) StoreLogs(logs []*raft.Log) error {
	b.mu.Lock()
	b.largest = max(b.largest, len(logs))
	b.mu.Unlock()
	return b.InmemStore.StoreLogs(logs)
}

// TestWritesAreBounded: a node that is far behind is not sent so much at once that heartbeats wait for it.
func TestWritesAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		leader := c.leader(-1)
		behind := (leader + 1) % 3
		if err := c.nodes[behind].Close(); err != nil {
			t.Fatal(err)
		}
		for i := range 200 {
			mustPropose(t, c.nodes[leader], fmt.Sprint(i))
		}
		store := &batches{InmemStore: raft.NewInmemStore()}
		c.replaceWith(t, behind, store, store)
		c.heal()
		time.Sleep(30 * time.Second) // Virtual.
		if got, want := c.tapes[behind].String(), c.tapes[leader].String(); got != want {
			t.Errorf("the node holds %q, want %q", got, want)
		}
		if store.largest == 0 || store.largest > entriesAtOnce {
			t.Errorf("%d entries were written at once; the limit is %d", store.largest, entriesAtOnce)
		}
	})
}
