package scheduler

import (
	"bytes"
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/consensus"
	"github.com/quire-serve/quire/scheduler/state"
)

// world is a whole cluster in memory and in virtual time: control-plane nodes with the real scheduler
// and the real raft, workers with a fake engine, gateways, and the network between them, which can be
// cut, and which delays and repeats messages.
type world struct {
	t        testing.TB
	nodes    []*simNode
	workers  []*simWorker
	gateways []*simGateway
	// ctx ends when the test does; everything that runs waits for it.
	ctx    context.Context
	cancel context.CancelFunc
	owned  sync.WaitGroup

	mu     sync.Mutex
	random *rand.Rand
	cut    map[[2]string]bool
	// ended counts answers that clients got, begun anew included; reconnects how often they had to
	// look for another gateway.
	ended, reconnects, failed int
	// installs counts snapshots that went to followers.
	installs int
	// handed holds what workers handed over, by address and request; sourced counts the dispatches that
	// named such a worker.
	handed  map[[2]string]bool
	sourced int
}

func newWorld(t testing.TB, random *rand.Rand, nodes, workers, gateways int) *world {
	w := &world{t: t, random: random, cut: map[[2]string]bool{}, handed: map[[2]string]bool{}}
	w.ctx, w.cancel = context.WithCancel(context.Background())
	for i := range nodes {
		memory := raft.NewInmemStore()
		w.nodes = append(w.nodes, &simNode{
			w: w, id: fmt.Sprint("node-", i), skew: time.Duration(random.IntN(7200)-3600) * time.Second, log: &slowLog{InmemStore: memory}, snapshots: raft.NewInmemSnapshotStore(),
		})
	}
	for _, n := range w.nodes {
		n.start()
	}
	for i := range workers {
		k := newSimWorker(w, fmt.Sprint("w", i))
		w.workers = append(w.workers, k)
		k.start()
	}
	for i := range gateways {
		g := &simGateway{w: w, id: fmt.Sprint("g", i)}
		w.gateways = append(w.gateways, g)
		g.start()
	}
	return w
}

// pick is a random number below n.
func (w *world) pick(n int) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.random.IntN(n)
}

// wait passes virtual time, or false if the world ended.
func (w *world) wait(d time.Duration) bool { return pause(w.ctx, d) }

func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}

// travel is the time that a message takes: mostly short, sometimes long.
func (w *world) travel() bool {
	d := time.Duration(w.pick(3000)) * time.Microsecond
	if w.pick(20) == 0 {
		d *= 20
	}
	return w.wait(d)
}

func pairOf(a, b string) [2]string { return [2]string{min(a, b), max(a, b)} }

// linked says whether two parties can talk.
func (w *world) linked(a, b string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.cut[pairOf(a, b)]
}

func (w *world) names() (names []string) {
	for _, n := range w.nodes {
		names = append(names, n.id)
	}
	for _, k := range w.workers {
		names = append(names, k.info.GetId())
	}
	for _, g := range w.gateways {
		names = append(names, g.id)
	}
	return names
}

// isolate cuts a party off from all others, or only from those that are named.
func (w *world) isolate(name string, from ...string) {
	if len(from) == 0 {
		from = w.names()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, other := range from {
		if other != name {
			w.cut[pairOf(name, other)] = true
		}
	}
}

// handOver notes that a worker handed a request over.
func (w *world) handOver(address, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.handed[[2]string{address, id}] = true
}

// source checks that the worker which a dispatch names as having a request's KV cache handed it over.
func (w *world) source(address, id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.sourced++; !w.handed[[2]string{address, id}] {
		w.t.Errorf("request %s comes with the KV cache of %s, which has not handed it over", id, address)
	}
}

func (w *world) heal() {
	w.mu.Lock()
	defer w.mu.Unlock()
	clear(w.cut)
}

// runs says whether a node's process does: the connections of one that does not are refused.
func (w *world) runs(node string) bool {
	for _, n := range w.nodes {
		if n.id == node {
			return n.scheduler() != nil
		}
	}
	return false
}

func (w *world) leader() *simNode {
	for _, n := range w.nodes {
		if s := n.scheduler(); s != nil && s.leader.Load() != nil {
			return n
		}
	}
	return nil
}

// call runs a unary call of a party to some node, mostly the leader, as a network does: the request
// or the answer may be lost.
func (w *world) call(ctx context.Context, from string, f func(context.Context, *Scheduler) error) error {
	n := w.leader()
	if n == nil || w.pick(8) == 0 {
		n = w.nodes[w.pick(len(w.nodes))]
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	lost := status.Error(codes.Unavailable, "the network lost it")
	if !w.travel() || !w.linked(from, n.id) {
		pause(ctx, 100*time.Millisecond)
		return lost
	}
	s := n.scheduler()
	if s == nil {
		return lost
	}
	err := f(ctx, s)
	if w.pick(50) == 0 {
		err = f(ctx, s) // A retry of the transport that the caller does not see.
	}
	if !w.travel() || !w.linked(from, n.id) {
		return lost
	}
	return err
}

// until drives a call until it is answered, or ctx ends.
func (w *world) insist(ctx context.Context, from string, f func(context.Context, *Scheduler) error) error {
	for {
		err := w.call(ctx, from, f)
		switch status.Code(err) {
		case codes.Unavailable, codes.FailedPrecondition, codes.DeadlineExceeded, codes.ResourceExhausted, codes.Canceled:
		default:
			return err
		}
		if !pause(ctx, 50*time.Millisecond) {
			return ctx.Err()
		}
	}
}

// dial is what the leader's probes meet.
func (w *world) dial(node string) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		for _, k := range w.workers {
			if k.info.GetAddress() != address {
				continue
			}
			if !w.linked(node, k.info.GetId()) {
				return silent(ctx, network, address)
			}
			if k.isAlive() {
				near, far := net.Pipe()
				return near, far.Close()
			}
		}
		return nil, &net.OpError{Op: "dial", Err: os.NewSyscallError("connect", syscall.ECONNREFUSED)}
	}
}

func (w *world) close() {
	w.heal()
	w.cancel()
	for _, n := range w.nodes {
		if s := n.scheduler(); s != nil {
			if err := s.Close(); err != nil {
				w.t.Error(err)
			}
		}
	}
	w.owned.Wait()
}

// agree checks that all nodes applied the same log to the same effect.
func (w *world) agree() {
	w.t.Helper()
	var views []*state.View
	var indexes []uint64
	same := func() bool { return slices.Min(indexes) == slices.Max(indexes) }
	for n := range 3000 {
		views, indexes = views[:0], indexes[:0]
		for _, n := range w.nodes {
			v := n.scheduler().store.View()
			views, indexes = append(views, v), append(indexes, v.Index())
		}
		if same() {
			break
		}
		// A follower whose log begins with a snapshot rejects what it has already, if the answer to it
		// was lost, until the leader's log does not go back so far either. Snapshots see to that.
		if n%1000 == 999 {
			w.compact()
		}
		w.wait(simStep)
	}
	if !same() {
		w.t.Fatalf("after a minute of quiet the nodes have applied %v", indexes)
	}
	var want bytes.Buffer
	for i, v := range views {
		var got bytes.Buffer
		if _, err := v.WriteTo(&got); err != nil {
			w.t.Fatal(err)
		}
		if i == 0 {
			want = got
		} else if v.ChainHash() != views[0].ChainHash() || !bytes.Equal(got.Bytes(), want.Bytes()) {
			w.t.Errorf("at entry %d node %d holds another state than node 0", v.Index(), i)
		}
	}
}

// simNode is a control-plane node that can be killed and started again on what it had written.
type simNode struct {
	w         *world
	id        string
	log       *slowLog
	snapshots *raft.InmemSnapshotStore
	// skew is how far its clock is ahead of the others' idea of what time it is.
	skew time.Duration

	mu      sync.Mutex
	s       *Scheduler
	inner   *raft.InmemTransport
	stopped sync.WaitGroup
}

func (n *simNode) scheduler() *Scheduler {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.s
}

func (n *simNode) transport() *raft.InmemTransport {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.inner
}

func (n *simNode) start() {
	n.stopped.Wait()
	_, inner := raft.NewInmemTransportWithTimeout(raft.ServerAddress(n.id), 500*time.Millisecond)
	n.mu.Lock()
	n.inner = inner
	n.mu.Unlock()
	var peers []Peer
	for _, other := range n.w.nodes {
		peers = append(peers, Peer{ID: other.id, Raft: other.id, Control: other.id})
		if t := other.transport(); t != nil && other != n {
			inner.Connect(t.LocalAddr(), t)
			t.Connect(inner.LocalAddr(), inner)
		}
	}
	s, err := New(Settings{
		NodeID: n.id, Peers: peers, Logger: quiet, Dial: n.w.dial(n.id),
		now: func() time.Time { return time.Now().Add(n.skew) },
		consensus: func(c *consensus.Settings) {
			c.Files = &consensus.Files{Logs: n.log, Stable: n.log.InmemStore, Snapshots: n.snapshots}
			c.Transport = &simTransport{InmemTransport: inner, w: n.w}
		},
	})
	if err != nil {
		n.w.t.Error(err)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.s = s
}

// kill ends a node without letting it say anything more.
func (n *simNode) kill() {
	n.mu.Lock()
	s := n.s
	n.s = nil
	n.mu.Unlock()
	if s == nil {
		return
	}
	n.w.isolate(n.id)
	n.stopped.Go(func() {
		if err := s.Close(); err != nil {
			n.w.t.Error(err)
		}
	})
}

// compact does so on all nodes that are up, which snapshot at about the same time in production too.
func (w *world) compact() {
	for _, n := range w.nodes {
		n.compact()
	}
}

// compact snapshots a node and drops most of the log that the snapshot covers, so that followers which
// are behind need the snapshot. As in production, more stays than a leader may have uncommitted: a
// follower with an orphan tail of that length would get the same snapshot for ever (hashicorp/raft
// #697).
func (n *simNode) compact() {
	s := n.scheduler()
	if s == nil {
		return
	}
	if err := s.node.Snapshot(); err != nil {
		return // It is on its way down.
	}
	list, err := n.snapshots.List()
	if err != nil || len(list) == 0 {
		return
	}
	first, _ := n.log.FirstIndex()
	const stays = 4 * entriesInFlight
	if index := list[0].Index; first > 0 && index > first+stays {
		if err := n.log.DeleteRange(first, index-stays); err != nil {
			n.w.t.Error(err)
		}
	}
}

// slowLog is a disk: it takes as long as it is told.
type slowLog struct {
	*raft.InmemStore
	mu    sync.Mutex
	delay time.Duration
}

func (l *slowLog) slow(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.delay = d
}

// IsMonotonic says that the log has no holes, as the one on disk: raft then empties it when it
// installs a snapshot.
func (l *slowLog) IsMonotonic() bool { return true }

func (l *slowLog) StoreLogs(logs []*raft.Log) error {
	l.mu.Lock()
	d := l.delay
	l.mu.Unlock()
	if d > 0 {
		time.Sleep(d) // Virtual.
	}
	return l.InmemStore.StoreLogs(logs)
}

// simTransport delays raft's messages, repeats some and loses those between parties that are cut off.
type simTransport struct {
	*raft.InmemTransport
	w *world
}

var errCut = fmt.Errorf("the network is cut")

func (s *simTransport) AppendEntriesPipeline(raft.ServerID, raft.ServerAddress) (raft.AppendPipeline, error) {
	return nil, raft.ErrPipelineReplicationNotSupported
}

func (s *simTransport) pass(to raft.ServerAddress) error {
	if !s.w.travel() || !s.w.linked(string(s.LocalAddr()), string(to)) {
		return errCut
	}
	return nil
}

func (s *simTransport) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := s.pass(target); err != nil {
		return err
	}
	if s.w.pick(30) == 0 {
		if err := s.InmemTransport.AppendEntries(id, target, args, &raft.AppendEntriesResponse{}); err != nil {
			return err
		}
	}
	if err := s.InmemTransport.AppendEntries(id, target, args, resp); err != nil {
		return err
	}
	return s.pass(target)
}

func (s *simTransport) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := s.pass(target); err != nil {
		return err
	}
	if err := s.InmemTransport.RequestVote(id, target, args, resp); err != nil {
		return err
	}
	return s.pass(target)
}

func (s *simTransport) InstallSnapshot(id raft.ServerID, target raft.ServerAddress, args *raft.InstallSnapshotRequest, resp *raft.InstallSnapshotResponse, data io.Reader) error {
	if err := s.pass(target); err != nil {
		return err
	}
	s.w.mu.Lock()
	s.w.installs++
	s.w.mu.Unlock()
	return s.InmemTransport.InstallSnapshot(id, target, args, resp, data)
}

// following is the token after a history: a worker that goes on after anything else than what was
// generated before generates something else.
func following(seed uint64, choice int, history []int32) int32 {
	h := fnv.New64a()
	_, _ = fmt.Fprint(h, seed, choice, len(history))
	if n := len(history); n > 0 {
		_, _ = fmt.Fprint(h, history[n-1], history[n/2])
	}
	return int32(h.Sum64() % 50000)
}

// ends says how a choice with this history ends; 0 if it does not yet.
func ends(r *pb.Request, history []int32) pb.FinishReason {
	switch n := len(history); {
	case n == 0:
		return 0
	case history[n-1]%61 == 0 && !r.GetSampling().GetIgnoreEos():
		return stopped
	case n >= int(r.GetSampling().GetMaxTokens()):
		return full
	}
	return 0
}

// undisturbed is the whole output of a request.
func undisturbed(r *pb.Request) [][]int32 {
	out := make([][]int32, max(1, r.GetSampling().GetN()))
	for c := range out {
		for ends(r, out[c]) == 0 {
			out[c] = append(out[c], following(r.GetSampling().GetSeed(), c, out[c]))
		}
	}
	return out
}
