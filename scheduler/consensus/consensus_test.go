package consensus

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// tape is a state machine that keeps what it was given.
type tape struct {
	mu       sync.Mutex
	entries  []string
	restored int
}

func (t *tape) Apply(_, _ uint64, data []byte) (any, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = append(t.entries, string(data))
	return len(t.entries), nil
}

func (t *tape) Snapshot() io.WriterTo {
	t.mu.Lock()
	defer t.mu.Unlock()
	var b bytes.Buffer
	for _, e := range t.entries {
		b.Write(binary.AppendUvarint(nil, uint64(len(e))))
		b.WriteString(e)
	}
	return &b
}

func (t *tape) Restore(r io.Reader) error {
	data, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.entries = nil
	for len(data) > 0 {
		n, w := binary.Uvarint(data)
		t.entries = append(t.entries, string(data[w:w+int(n)]))
		data = data[w+int(n):]
	}
	t.restored++
	return nil
}

func (t *tape) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(t.entries, ",")
}

var quiet = slog.New(slog.DiscardHandler)

func open(t *testing.T, settings Settings, sm StateMachine) *Node {
	t.Helper()
	settings.Logger = quiet
	n, err := Open(settings, sm)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func lead(t *testing.T, n *Node) {
	t.Helper()
	for !<-n.Leadership() {
	}
	if err := barrier(n, 10*time.Second); err != nil {
		t.Fatal(err)
	}
}

func barrier(n *Node, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return n.Barrier(ctx)
}

func propose(n *Node, data string) (any, error) {
	p, err := n.Propose(context.Background(), []byte(data))
	if err != nil {
		return nil, err
	}
	return p.Wait(context.Background())
}

func mustPropose(t *testing.T, n *Node, data string) any {
	t.Helper()
	result, err := propose(n, data)
	if err != nil {
		t.Fatal(err)
	}
	return result
}

func TestLogSurvivesReopening(t *testing.T) {
	for _, store := range []Store{WAL, BoltDB} {
		t.Run(string(store), func(t *testing.T) { logSurvivesReopening(t, store) })
	}
}

func logSurvivesReopening(t *testing.T, store Store) {
	dir := t.TempDir()
	first := &tape{}
	n := open(t, Settings{NodeID: "a", DataDir: dir, Store: store}, first)
	lead(t, n)
	for i := range 20 {
		if got := mustPropose(t, n, fmt.Sprint(i)); got != i+1 {
			t.Fatalf("entry %d: the state machine answered %v", i, got)
		}
	}
	if err := n.Snapshot(); err != nil {
		t.Fatal(err)
	}
	mustPropose(t, n, "after")
	term, last := n.Term(), n.LastIndex()
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if err := n.Close(); err != nil {
		t.Errorf("closing twice: %v", err)
	}

	second := &tape{}
	other := map[Store]Store{WAL: BoltDB, BoltDB: WAL}[store]
	if _, err := Open(Settings{NodeID: "a", DataDir: dir, Store: other, Logger: quiet}, second); err == nil || !strings.Contains(err.Error(), fmt.Sprintf("of the kind %q", store)) {
		t.Errorf("with the other kind of store: %v", err)
	}
	n = open(t, Settings{NodeID: "a", DataDir: dir, Store: store}, second)
	defer func() { _ = n.Close() }()
	lead(t, n)
	if second.String() != first.String() || second.restored != 1 {
		t.Errorf("after reopening (%d snapshots restored): %s\nwant %s", second.restored, second, first)
	}
	if n.Term() <= term || n.LastIndex() <= last {
		t.Errorf("term %d, last index %d; before %d, %d", n.Term(), n.LastIndex(), term, last)
	}
}

func TestLargeEntriesMakeASnapshotDue(t *testing.T) {
	dir := t.TempDir()
	n := open(t, Settings{NodeID: "a", DataDir: dir}, &tape{})
	defer func() { _ = n.Close() }()
	n.machine.maxBytes = 1 << 20
	lead(t, n)
	for range 4 {
		mustPropose(t, n, strings.Repeat("x", MaxEntryBytes))
	}
	for { // Until the snapshot is there; the test's own timeout bounds it.
		found, err := n.files.Snapshots.List()
		if err != nil {
			t.Fatal(err)
		}
		if len(found) > 0 {
			break
		}
		mustPropose(t, n, "more")
	}
	if _, err := propose(n, strings.Repeat("x", MaxEntryBytes+1)); !errors.Is(err, ErrEntryTooLarge) {
		t.Errorf("an entry above the limit: %v", err)
	}
}

func TestDataDirErrors(t *testing.T) {
	dir := t.TempDir()
	n := open(t, Settings{NodeID: "a", DataDir: dir}, &tape{})
	lead(t, n)
	_, err := Open(Settings{NodeID: "a", DataDir: dir, Logger: quiet}, &tape{})
	if !errors.Is(err, ErrDataDirInUse) || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("a folder in use: %v", err)
	}
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Settings{NodeID: "b", DataDir: dir, Logger: quiet}, &tape{}); err == nil || !strings.Contains(err.Error(), `belongs to node "a"`) {
		t.Errorf("another node's folder: %v", err)
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Settings{NodeID: "a", DataDir: filepath.Join(file, "data"), Logger: quiet}, &tape{}); err == nil || !strings.Contains(err.Error(), "cannot be created") {
		t.Errorf("a folder under a file: %v", err)
	}
	// The refused attempts left nothing locked.
	n = open(t, Settings{NodeID: "a", DataDir: dir}, &tape{})
	if err := n.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestLogSurvivesTruncation holds the pins of the stores: raft-wal v0.4.0 seals the cut segment
// without its index and loses every entry that was left.
func TestLogSurvivesTruncation(t *testing.T) {
	for _, store := range []Store{WAL, BoltDB} {
		t.Run(string(store), func(t *testing.T) { logSurvivesTruncation(t, store) })
	}
}

func logSurvivesTruncation(t *testing.T, store Store) {
	dir := t.TempDir()
	reopen := func() *Files {
		t.Helper()
		f, err := OpenFiles(dir, store, newLogger(quiet, hclog.Warn))
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	logs := func(f *Files) *verifiedLogs { return &verifiedLogs{LogStore: f.Logs, hard: f.hard} }
	write := func(f *Files, from, to uint64, data string) {
		t.Helper()
		for i := from; i <= to; i++ {
			if err := logs(f).StoreLog(&raft.Log{Index: i, Term: 1, Data: []byte(data)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	f := reopen()
	write(f, 1, 10, "old")
	if err := logs(f).DeleteRange(6, 10); err != nil {
		t.Fatal(err)
	}
	write(f, 6, 10, "new")
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	f = reopen()
	defer func() { _ = f.Close() }()
	for i := uint64(1); i <= 10; i++ {
		want := "old"
		if i >= 6 {
			want = "new"
		}
		var entry raft.Log
		if err := logs(f).GetLog(i, &entry); err != nil || string(entry.Data) != want {
			t.Errorf("entry %d: %q, %v; want %q", i, entry.Data, err, want)
		}
	}
}

// cluster is three nodes in memory, for use inside a synctest bubble.
type cluster struct {
	t          *testing.T
	nodes      []*Node
	tapes      []*tape
	stores     []*faultyStore
	transports []*raft.InmemTransport
	peers      []Server

	mu     sync.Mutex
	cut    map[int]bool
	fatals map[int]error
	// newcomers are nodes that must not vote yet.
	newcomers map[int]bool
}

func newCluster(t *testing.T, size int) *cluster {
	c := &cluster{t: t, cut: map[int]bool{}, fatals: map[int]error{}, newcomers: map[int]bool{}}
	for i := range size {
		c.peers = append(c.peers, Server{ID: fmt.Sprint("node-", i), Address: fmt.Sprint("address-", i)})
	}
	for range size {
		c.place()
	}
	c.heal()
	for i := range size {
		c.nodes[i] = c.open(t, i, false)
	}
	return c
}

// place makes room for one more node.
func (c *cluster) place() int {
	i := len(c.nodes)
	_, transport := raft.NewInmemTransportWithTimeout(raft.ServerAddress(fmt.Sprint("address-", i)), 500*time.Millisecond)
	c.transports = append(c.transports, transport)
	c.stores = append(c.stores, nil)
	c.tapes = append(c.tapes, nil)
	c.nodes = append(c.nodes, nil)
	return i
}

// open opens node i with an empty store; one that awaits its cluster knows no peers.
func (c *cluster) open(t *testing.T, i int, await bool) *Node {
	c.stores[i] = &faultyStore{InmemStore: raft.NewInmemStore()}
	return c.openWith(t, i, await, c.stores[i], c.stores[i])
}

func (c *cluster) openWith(t *testing.T, i int, await bool, logs raft.LogStore, votes raft.StableStore) *Node {
	c.tapes[i] = &tape{}
	return open(t, Settings{
		NodeID: fmt.Sprint("node-", i), Peers: c.peers, Await: await, Transport: c.transports[i],
		Files: &Files{Logs: logs, Stable: votes, Snapshots: raft.NewInmemSnapshotStore()},
		Newcomer: func() bool {
			c.mu.Lock()
			defer c.mu.Unlock()
			return c.newcomers[i]
		},
		Fatal: func(err error) {
			c.mu.Lock()
			defer c.mu.Unlock()
			c.fatals[i] = err
		},
	}, c.tapes[i])
}

// add opens one more node, which no one knows yet.
func (c *cluster) add(t *testing.T) int {
	i := c.place()
	c.nodes[i] = c.open(t, i, true)
	return i
}

// replace opens node i, which is closed, with an empty store.
func (c *cluster) replace(t *testing.T, i int) {
	_, c.transports[i] = raft.NewInmemTransportWithTimeout(raft.ServerAddress(fmt.Sprint("address-", i)), 500*time.Millisecond)
	c.nodes[i] = c.open(t, i, true)
}

func (c *cluster) replaceWith(t *testing.T, i int, logs raft.LogStore, votes raft.StableStore) {
	_, c.transports[i] = raft.NewInmemTransportWithTimeout(raft.ServerAddress(fmt.Sprint("address-", i)), 500*time.Millisecond)
	c.nodes[i] = c.openWith(t, i, true, logs, votes)
}

func (c *cluster) newcomer(i int, is bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.newcomers[i] = is
}

func (c *cluster) fatal(i int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.fatals[i]
}

// pilot looks after the members; what they answer is what is true, unless they are cut off.
func (c *cluster) pilot(leader int, stable, dead time.Duration) (stop func()) {
	p := c.nodes[leader].StartPilot(context.Background(), PilotSettings{
		Stable: stable, DeadAfter: dead, MinVoters: 3, Removed: func(string) {},
		Ask: func(_ context.Context, members []Member) map[string]Vitals {
			c.mu.Lock()
			defer c.mu.Unlock()
			out := map[string]Vitals{}
			for i, n := range c.nodes {
				id := fmt.Sprint("node-", i)
				if c.cut[i] || !slices.ContainsFunc(members, func(m Member) bool { return m.ID == id }) {
					continue
				}
				progress := n.Progress()
				out[id] = Vitals{LastContact: time.Since(progress.LastContact), LastTerm: progress.LastTerm, LastIndex: progress.LastIndex}
			}
			return out
		},
	})
	return p.Stop
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

// leader waits, in virtual time, until a majority agrees on a leader outside `but`.
func (c *cluster) leader(but int) int {
	c.t.Helper()
	for range 1000 {
		for i, n := range c.nodes {
			if i != but && n.Leads() && barrier(n, time.Second) == nil {
				return i
			}
		}
		time.Sleep(100 * time.Millisecond) // Virtual.
	}
	c.t.Fatal("no leader after 100 s")
	return -1
}

func (c *cluster) close() {
	for _, n := range c.nodes {
		if err := n.Close(); err != nil {
			c.t.Error(err)
		}
	}
}

func TestClusterLosesItsLeader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		old := c.leader(-1)
		for i := range 50 {
			mustPropose(t, c.nodes[old], fmt.Sprint("before-", i))
		}
		c.isolate(old)
		if _, err := propose(c.nodes[old], "lost"); !errors.Is(err, ErrUnknownOutcome) {
			t.Fatalf("a leader that is cut off answered %v", err)
		}
		next := c.leader(old)
		began := time.Now()
		for i := range 50 {
			mustPropose(t, c.nodes[next], fmt.Sprint("after-", i))
		}
		if c.nodes[old].Leads() {
			t.Error("the old leader still leads")
		}
		if got := c.nodes[next].Leader().ID; got != fmt.Sprint("node-", next) {
			t.Errorf("leader is %q", got)
		}
		c.heal()
		time.Sleep(30 * time.Second) // Virtual.
		mustPropose(t, c.nodes[c.leader(-1)], "healed")
		time.Sleep(10 * time.Second) // Virtual.
		want := c.tapes[next].String()
		if !strings.HasSuffix(want, "after-49,healed") || strings.Contains(want, "lost") {
			t.Errorf("the log ends wrong: …%s", want[max(0, len(want)-60):])
		}
		for i, got := range c.tapes {
			if got.String() != want {
				t.Errorf("node %d differs after %v", i, time.Since(began))
			}
		}
	})
}

// TestSilenceIsNoticed: once a leader is silent for the heartbeat timeout, the next one leads.
func TestSilenceIsNoticed(t *testing.T) {
	for _, size := range []int{3, 5} {
		for range 20 {
			synctest.Test(t, func(t *testing.T) {
				c := newCluster(t, size)
				defer c.close()
				old := c.leader(-1)
				<-time.After(rand.N(5 * time.Second)) // synctest's clock: heartbeats and raft's timer are anywhere
				c.isolate(old)
				began := time.Now()
				c.leader(old) // looks every 100 ms
				heartbeat := c.nodes[old].heartbeat
				took, limit := time.Since(began), heartbeat+heartbeat*time.Duration(size-2)/silenceSteps+150*time.Millisecond
				if took > limit {
					t.Errorf("%d nodes: the next one leads after %v, limit %v", size, took, limit)
				}
			})
		}
	}
}

func TestUncommittedProposalsAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		old := c.leader(-1)
		c.isolate(old)
		var waits sync.WaitGroup
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel()
		proposed := 0
		for {
			p, err := c.nodes[old].Propose(ctx, []byte("x"))
			if err != nil {
				break
			}
			proposed++
			waits.Go(func() { _, _ = p.Wait(context.Background()) })
		}
		barred, end := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer end()
		if err := c.nodes[old].Barrier(barred); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, ErrUnknownOutcome) {
			t.Errorf("a barrier beside as many proposals as may be: %v", err)
		}
		if proposed != MaxUncommitted {
			t.Errorf("%d proposals went in without a majority; the limit is %d", proposed, MaxUncommitted)
		}
		waits.Wait()
		// Stepping down gave the slots back.
		if n := len(c.nodes[old].slots); n != 0 {
			t.Errorf("%d slots still taken", n)
		}
	})
}

// listenPeers opens the ports of real peers.
func listenPeers(t *testing.T, size int) (layers []raft.StreamLayer, peers []Server) {
	t.Helper()
	for i := range size {
		layer := OverTCP(listenLoopback(t), "")
		layers = append(layers, layer)
		peers = append(peers, Server{ID: fmt.Sprint("node-", i), Address: layer.Addr().String()})
	}
	return layers, peers
}

// commit proposes until some leader commits: elections may repeat on a slow machine.
func commit(t *testing.T, data string, among []*Node) {
	t.Helper()
	retry := time.NewTicker(20 * time.Millisecond)
	defer retry.Stop()
	for range retry.C {
		for _, n := range among {
			if _, err := propose(n, data); err == nil {
				return
			}
		}
	}
}

// TestPeersOverTCP runs the transport that real clusters use.
func TestPeersOverTCP(t *testing.T) {
	layers, peers := listenPeers(t, 3)
	var nodes []*Node
	tapes := []*tape{{}, {}, {}}
	for i := range 3 {
		n := open(t, Settings{
			NodeID: peers[i].ID, Peers: peers, Layer: layers[i], DataDir: t.TempDir(),
			HeartbeatTimeout: 500 * time.Millisecond, LeaseTimeout: 250 * time.Millisecond,
		}, tapes[i])
		defer func() { _ = n.Close() }()
		nodes = append(nodes, n)
	}
	commit(t, "three of three", nodes)
	if err := nodes[0].Close(); err != nil {
		t.Error(err)
	}
	commit(t, "two of three", nodes[1:])
	if got := tapes[1].String() + tapes[2].String(); !strings.Contains(got, "two of three") {
		t.Errorf("no survivor applied the entry: %q", got)
	}
}
