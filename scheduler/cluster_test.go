package scheduler

import (
	"bytes"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/consensus"
	"github.com/quire-serve/quire/scheduler/state"
	"github.com/quire-serve/quire/transport"
)

// cluster is several control-plane nodes in memory, and workers that look for the leader.
type cluster struct {
	t          testing.TB
	nodes      []*Scheduler
	transports []*raft.InmemTransport
	workers    []*fakeWorker

	mu  sync.Mutex
	cut map[int]bool
}

func newCluster(t testing.TB, size int, options ...func(*Settings)) *cluster {
	c := &cluster{t: t, cut: map[int]bool{}}
	var peers []Peer
	for i := range size {
		address := fmt.Sprint("raft-", i)
		_, transport := raft.NewInmemTransportWithTimeout(raft.ServerAddress(address), 500*time.Millisecond)
		c.transports = append(c.transports, transport)
		peers = append(peers, Peer{ID: fmt.Sprint("node-", i), Raft: address, Control: fmt.Sprint("control-", i)})
	}
	c.heal()
	for i := range size {
		memory := inMemory()
		settings := Settings{
			NodeID: peers[i].ID, Peers: peers, Logger: quiet, Dial: silent,
			consensus: func(settings *consensus.Settings) {
				memory(settings)
				settings.Transport = c.transports[i]
			},
		}
		for _, set := range options {
			set(&settings)
		}
		s, err := New(settings)
		if err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, s)
	}
	return c
}

func (c *cluster) heal() {
	for i, a := range c.transports {
		for j, b := range c.transports {
			if i != j {
				a.Connect(b.LocalAddr(), b)
			}
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	clear(c.cut)
}

func (c *cluster) isolate(i int) {
	for j, other := range c.transports {
		if j != i {
			other.Disconnect(c.transports[i].LocalAddr())
		}
	}
	c.transports[i].DisconnectAll()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut[i] = true
}

// leader is the node that leads among those that are not cut off; -1 if none does.
func (c *cluster) leader() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.nodes {
		if !c.cut[i] && s.leader.Load() != nil {
			return i
		}
	}
	return -1
}

func (c *cluster) waitLeader() int {
	c.t.Helper()
	until(c.t, "a leader is there", func() bool { return c.leader() >= 0 })
	return c.leader()
}

// attend lets a worker without a session join the leader.
func (c *cluster) attend(w *fakeWorker) {
	w.mu.Lock()
	gone := w.stream == nil || w.stream.ctx.Err() != nil
	w.mu.Unlock()
	if i := c.leader(); gone && i >= 0 {
		w.join(c.nodes[i])
	}
}

func (c *cluster) close() {
	for _, s := range c.nodes {
		if err := s.Close(); err != nil {
			c.t.Error(err)
		}
	}
	for _, w := range c.workers {
		w.stopped.Wait()
	}
}

// agree checks that all nodes applied the same log to the same effect.
func (c *cluster) agree() {
	c.t.Helper()
	var views []*state.View
	until(c.t, "all nodes applied as much", func() bool {
		views = views[:0]
		for _, s := range c.nodes {
			views = append(views, s.store.View())
		}
		return !slices.ContainsFunc(views, func(v *state.View) bool { return v.Index() != views[0].Index() })
	})
	var want bytes.Buffer
	for i, v := range views {
		var got bytes.Buffer
		if _, err := v.WriteTo(&got); err != nil {
			c.t.Fatal(err)
		}
		if i == 0 {
			want = got
		} else if v.ChainHash() != views[0].ChainHash() || !bytes.Equal(got.Bytes(), want.Bytes()) {
			c.t.Errorf("at entry %d node %d holds another state than node 0", v.Index(), i)
		}
	}
}

func TestLeaderIsCutOff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		old := c.waitLeader()
		w := newWorker(t, "w")
		c.workers = append(c.workers, w)
		c.attend(w)
		until(t, "the worker is in session", func() bool { return c.nodes[old].Stats().Workers == 1 })
		for _, id := range ids("r", 20) {
			mustSubmit(t, c.nodes[old], request(id))
		}
		until(t, "all run", func() bool { return w.count() == 20 })

		follower := (old + 1) % 3
		str := newStream()
		err := c.nodes[follower].Work(str)
		if status.Code(err) != codes.FailedPrecondition || !slices.Equal(str.trailer.Get(transport.LeaderTrailer), []string{fmt.Sprint("control-", old)}) {
			t.Errorf("a follower answered %v, trailer %v", err, str.trailer)
		}

		c.isolate(old)
		if _, err := submit(c.nodes[old], request("lost")); status.Code(err) != codes.Unavailable {
			t.Errorf("a leader without a majority answered %v", err)
		}
		if !w.has("lost") && !w.lost("lost") {
			t.Error("the request was not dispatched before its commit")
		}
		next := c.waitLeader()
		until(t, "the old leader ended its session", func() bool { return w.end() != nil })
		c.attend(w)
		until(t, "the worker is in session again", func() bool { return c.nodes[next].Stats().Workers == 1 })
		if w.has("lost") {
			t.Error("a request that was never admitted runs on")
		}
		if got := c.nodes[next].Stats().Running; got != 20 {
			t.Errorf("the new leader knows %d running requests, want 20", got)
		}
		// Nothing was started again, and the retry of the lost one is a first submit.
		if r := mustSubmit(t, c.nodes[next], request("lost")); r.GetDuplicate() {
			t.Errorf("the retry answered %v", r)
		}
		for _, id := range append(ids("r", 20), "lost") {
			until(t, id+" runs", func() bool { return w.has(id) })
			w.finish(id, pb.FinishReason_FINISH_REASON_STOP, "")
			until(t, id+" ends", finished(c.nodes[next], id))
			if want := map[bool]int{true: 2, false: 1}[id == "lost"]; w.times(id) != want {
				t.Errorf("%s was dispatched %d times, want %d", id, w.times(id), want)
			}
		}
		c.heal()
		c.agree()
		w.leave()
		c.close()
	})
}

// faultyLog fails to write while broken is set, as a full disk does, and does not answer while hanging is
// held.
type faultyLog struct {
	*raft.InmemStore
	broken  atomic.Bool
	hanging chan struct{}
}

func (f *faultyLog) StoreLogs(logs []*raft.Log) error {
	if f.hanging != nil {
		f.hanging <- struct{}{}
		defer func() { <-f.hanging }()
	}
	if f.broken.Load() {
		return fmt.Errorf("write: %w", syscall.ENOSPC)
	}
	return f.InmemStore.StoreLogs(logs)
}

func (f *faultyLog) StoreLog(log *raft.Log) error { return f.StoreLogs([]*raft.Log{log}) }

// TestHangingDisk: a node whose disk does not answer stops serving within seconds, and nothing that it does
// as the leader holds it up. It serves again when the disk answers.
func TestHangingDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &faultyLog{InmemStore: raft.NewInmemStore(), hanging: make(chan struct{}, 1)}
		s := start(t, Settings{consensus: func(c *consensus.Settings) {
			c.Files = &consensus.Files{Logs: log, Stable: log.InmemStore, Snapshots: raft.NewInmemSnapshotStore()}
		}})
		w := newWorker(t, "w")
		w.join(s)
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("before"))
		log.hanging <- struct{}{}
		began := time.Now()
		if _, err := submit(s, request("during")); status.Code(err) != codes.Unavailable {
			t.Errorf("submit on a disk that hangs: %v", err)
		}
		until(t, "it does not lead", func() bool { return s.leader.Load() == nil && !s.Ready() })
		if took := time.Since(began); took > 6*time.Second {
			t.Errorf("it gave up after %v", took)
		}
		<-log.hanging
		until(t, "it leads again", func() bool { return s.leader.Load() != nil })
		mustSubmit(t, s, request("during"))
		w.leave()
	})
}

// TestFullDisk refuses what it cannot write down, takes back what it handed out for it, lets running
// requests go on, and serves again when there is room.
func TestFullDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		log := &faultyLog{InmemStore: raft.NewInmemStore()}
		s := start(t, Settings{consensus: func(c *consensus.Settings) {
			c.Files = &consensus.Files{Logs: log, Stable: log.InmemStore, Snapshots: raft.NewInmemSnapshotStore()}
		}})
		w := newWorker(t, "w")
		w.join(s)
		until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
		mustSubmit(t, s, request("before"))
		until(t, "it runs", func() bool { return w.has("before") })

		log.broken.Store(true)
		if _, err := submit(s, request("during")); status.Code(err) != codes.Unavailable {
			t.Errorf("submit on a full disk: %v", err)
		}
		until(t, "the session has ended", func() bool { return w.end() != nil })
		until(t, "what was handed out is taken back", func() bool { return w.lost("during") })
		if w.times("during") != 1 || w.has("during") || !w.has("before") {
			t.Errorf("dispatched %d times, runs %v, the one before runs %v", w.times("during"), w.has("during"), w.has("before"))
		}
		time.Sleep(10 * time.Second) // Virtual: it must neither serve nor give up.
		if _, err := submit(s, request("still")); status.Code(err) != codes.Unavailable {
			t.Errorf("submit on a disk that is still full: %v", err)
		}

		log.broken.Store(false)
		until(t, "the node leads again", func() bool { return s.leader.Load() != nil })
		w.join(s)
		until(t, "the worker is back", func() bool { return s.Stats().Workers == 1 })
		if r := mustSubmit(t, s, request("during")); r.GetDuplicate() {
			t.Errorf("the retry answered %v", r)
		}
		for _, id := range []string{"before", "during"} {
			until(t, id+" runs", func() bool { return w.has(id) })
			w.finish(id, pb.FinishReason_FINISH_REASON_STOP, "")
			until(t, id+" ends", finished(s, id))
		}
		if w.times("before") != 1 {
			t.Errorf("the running request was dispatched %d times", w.times("before"))
		}
		w.leave()
	})
}
