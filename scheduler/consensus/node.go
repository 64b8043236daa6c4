package consensus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// MaxEntryBytes bounds one log entry.
	MaxEntryBytes = 512<<10 - 1
	// MaxUncommitted bounds the proposals in flight.
	MaxUncommitted = 64

	// entriesAtOnce bounds what one message or one write to the log holds, to 4 MiB: heartbeats wait behind
	// it. A node that is behind is sent many such messages at once.
	entriesAtOnce = 8

	// trailingLogs stay behind a snapshot for followers that are a little late: far more than
	// MaxUncommitted, and than what a snapshot's writing time adds.
	trailingLogs      = 4096
	snapshotThreshold = 4096
	snapshotInterval  = 30 * time.Second
	// snapshotBytes makes a snapshot due however few the entries are, so that large prompts do not
	// fill the disk.
	snapshotBytes = 256 << 20
	closeTimeout  = time.Second
	// restoreTimeout is how long a restore may wait for the leader's loop.
	restoreTimeout = time.Minute
)

var (
	// ErrNotLeader means that the entry was not proposed, because another node leads.
	ErrNotLeader = errors.New("this node is not the leader")
	// ErrUnknownOutcome means that the entry may or may not be committed: leadership was lost, or
	// the node stops. Commands carry ids, so proposing again is safe.
	ErrUnknownOutcome = errors.New("leadership was lost before the entry was committed; it may still be")
	// ErrEntryTooLarge means that an entry exceeds MaxEntryBytes.
	ErrEntryTooLarge = errors.New("log entry is too large")
)

// Server is a voting member of the cluster.
type Server struct {
	ID, Address string
}

// Settings is what Open takes. Zero values mean the defaults stated per field.
type Settings struct {
	// NodeID is stable over restarts. Required.
	NodeID string
	// DataDir is the node's folder. Required unless Files is set.
	DataDir string
	// Store is the kind of log. Default WAL.
	Store Store
	// Fatal hears why this node must stop at once; it must not return. Default panic.
	Fatal func(error)
	// Logger receives raft's warnings. Default slog.Default().
	Logger *slog.Logger
	// Layer carries raft between nodes. Default: none, for a cluster of one.
	Layer raft.StreamLayer
	// Peers are the first members, this node among them. Default: this node alone. Ignored once
	// there is a log.
	Peers []Server
	// Await leaves the first members open: a node without a log waits for Found, or for a leader that
	// adds it. Peers are ignored.
	Await bool

	// HeartbeatTimeout is the silence of a leader after which a follower asks for votes, and
	// LeaseTimeout the silence of a majority after which a leader steps down. Defaults: 100 ms both
	// for a cluster of one, 2 s and 1 s otherwise.
	HeartbeatTimeout, LeaseTimeout time.Duration

	// Prepare is called before the log is opened, with the folder that it is in, once that is locked.
	// repaired says that the folder was damaged and is empty now. It may return Damaged.
	Prepare func(dir string, repaired bool) error

	// Newcomer says whether the node must not vote or lead yet: it may lack what a folder that it had before
	// has acknowledged, or be a second one of its id. Default: never, once it knows members.
	Newcomer func() bool

	// Files and Transport replace what Open makes itself; tests run whole clusters in memory.
	Files     *Files
	Transport raft.Transport
	// segmentBytes is the size of the log's files; tests make it small.
	segmentBytes int
}

func (s Settings) prepare(dir string, repaired bool) error {
	if s.Prepare == nil {
		return nil
	}
	return s.Prepare(dir, repaired)
}

// Node is one member of the cluster.
type Node struct {
	id       string
	settings Settings
	raft     *raft.Raft
	inbox    *inbox
	machine  *machine
	files    *Files
	// slots holds a token for each uncommitted proposal.
	slots    chan struct{}
	leaders  chan raft.Observation // a sign that the leader has changed
	stopping chan struct{}
	// leadership is what Leadership returns; announce sends. reconsider tells it to look again.
	leadership chan bool
	reconsider chan struct{}
	watch      *diskWatch
	problem    atomic.Pointer[error]
	// shutdown stops raft, and always returns the same future.
	shutdown func() raft.Future
	closed   sync.Once
	closeErr error
	owned    sync.WaitGroup
	// heartbeat is the silence after which a follower stands for election.
	heartbeat time.Duration
	stuck     stuckTransfer
	// transferring is held while leadership is handed over.
	transferring sync.Mutex
}

// Open starts a node: it restores the newest snapshot, and applies the log after it once the
// cluster has a leader.
func Open(settings Settings, sm StateMachine) (_ *Node, err error) {
	if settings.Logger == nil {
		settings.Logger = slog.Default()
	}
	if settings.Store == "" {
		settings.Store = WAL
	}
	if settings.Fatal == nil {
		settings.Fatal = func(err error) { panic(fmt.Sprintf("quire: %v", err)) }
	}
	if len(settings.Peers) == 0 {
		settings.Peers = []Server{{ID: settings.NodeID}}
	}
	alone := len(settings.Peers) == 1 && !settings.Await
	least := hclog.Warn
	if alone {
		least = hclog.Error
	}
	log := newLogger(settings.Logger, least)

	n := &Node{
		id:       settings.NodeID,
		settings: settings,
		machine:  &machine{StateMachine: sm, fatal: settings.Fatal, maxBytes: snapshotBytes, snapshotIsDue: make(chan struct{}, 1)},
		files:    settings.Files,
		slots:    make(chan struct{}, MaxUncommitted),
		leaders:  make(chan raft.Observation, 1),
		stopping: make(chan struct{}),

		leadership: make(chan bool, 1),
		reconsider: make(chan struct{}, 1),
	}
	n.watch = &diskWatch{log: settings.Logger, changed: n.standingChanged}
	transport := settings.Transport
	var layer *watchedLayer
	if transport == nil && settings.Layer != nil {
		layer = &watchedLayer{StreamLayer: settings.Layer, broken: make(chan struct{}, 1)}
		transport = newTransport(layer, log)
	}
	if transport == nil { // No peers, no port.
		_, transport = raft.NewInmemTransport(raft.ServerAddress(settings.NodeID))
	}
	n.inbox = newInbox(transport, n.barred)
	defer func() {
		if err != nil {
			err = errors.Join(err, n.release())
		}
	}()
	if n.files != nil {
		if err := settings.prepare("", false); err != nil {
			return nil, err
		}
	} else {
		if n.files, err = openFiles(settings, log); err != nil {
			return nil, err
		}
	}
	hard := n.files.hard
	if hard == nil {
		hard = newHardState()
	}
	snapshots := n.files.Snapshots
	if n.files.hard != nil {
		snapshots = &verifiedSnapshots{SnapshotStore: snapshots, hard: hard, damaged: n.damaged}
	}
	// The cache hides what kind of error it got, so the guard is below it.
	logs, err := raft.NewLogCache(cachedEntries, &guardedLogs{
		LogStore: &verifiedLogs{LogStore: n.files.Logs, hard: hard, damaged: n.damaged},
		watch:    n.watch, log: settings.Logger, fatal: settings.Fatal,
	})
	if err != nil {
		return nil, fmt.Errorf("open the log: %w", err)
	}
	votes := guardedVotes{n.files.Stable, n.watch, settings.Fatal}
	snapshots = watchedSnapshots{snapshots, n.watch}

	config := raft.DefaultConfig()
	config.LocalID = raft.ServerID(settings.NodeID)
	config.Logger = log
	config.ShutdownOnRemove = false
	config.NoLegacyTelemetry = true
	config.TrailingLogs = trailingLogs
	config.MaxAppendEntries = entriesAtOnce
	config.SnapshotThreshold = snapshotThreshold
	config.SnapshotInterval = snapshotInterval
	config.HeartbeatTimeout = or(settings.HeartbeatTimeout, alone, 100*time.Millisecond, 2*time.Second)
	config.ElectionTimeout = config.HeartbeatTimeout
	n.heartbeat = config.HeartbeatTimeout
	config.LeaderLeaseTimeout = or(settings.LeaseTimeout, alone, config.HeartbeatTimeout, config.HeartbeatTimeout/2)

	if err := n.recoverMembers(config, logs, votes, snapshots); err != nil {
		return nil, err
	}
	exists, err := raft.HasExistingState(logs, votes, snapshots)
	if err != nil {
		return nil, fmt.Errorf("read the log: %w", err)
	}
	if !exists && !settings.Await {
		if err := raft.BootstrapCluster(config, logs, votes, snapshots, n.inbox, members(settings, transport)); err != nil {
			return nil, fmt.Errorf("start the cluster: %w", err)
		}
	}
	if n.raft, err = raft.NewRaft(config, n.machine, logs, votes, snapshots, n.inbox); err != nil {
		return nil, fmt.Errorf("start raft: %w", err)
	}
	n.shutdown = sync.OnceValue(func() raft.Future { return n.raft.Shutdown() })
	n.raft.RegisterObserver(raft.NewObserver(n.leaders, false, func(o *raft.Observation) bool {
		_, ok := o.Data.(raft.LeaderObservation)
		return ok
	}))
	if err := n.checkMembership(settings.NodeID, alone); err != nil {
		return nil, errors.Join(err, n.raft.Shutdown().Error())
	}
	n.owned.Go(n.announce)
	n.owned.Go(n.snapshotWhenDue)
	n.owned.Go(func() { n.inbox.forward(n.mayVote, n.stopping) })
	if layer != nil {
		n.owned.Go(func() { n.watchLeader(layer) })
	}
	if !alone {
		n.owned.Go(n.watchSilence)
	}
	return n, nil
}

func or(set time.Duration, alone bool, ifAlone, ifNot time.Duration) time.Duration {
	switch {
	case set != 0:
		return set
	case alone:
		return ifAlone
	}
	return ifNot
}

func members(settings Settings, transport raft.Transport) raft.Configuration {
	var configuration raft.Configuration
	for _, peer := range settings.Peers {
		address := raft.ServerAddress(peer.Address)
		if peer.ID == settings.NodeID {
			address = transport.LocalAddr()
		}
		configuration.Servers = append(configuration.Servers, raft.Server{
			Suffrage: raft.Voter, ID: raft.ServerID(peer.ID), Address: address,
		})
	}
	return configuration
}

// checkMembership refuses a lone node whose data folder belongs to another one: it would wait for
// ever for votes that nobody can give.
func (n *Node) checkMembership(id string, alone bool) error {
	future := n.raft.GetConfiguration()
	if err := future.Error(); err != nil {
		return fmt.Errorf("read the cluster's members: %w", err)
	}
	servers := future.Configuration().Servers
	for _, server := range servers {
		if string(server.ID) == id {
			return nil
		}
	}
	if !alone || len(servers) == 0 {
		return nil
	}
	return fmt.Errorf("the data folder belongs to node %q, this node is %q; use that name or another folder", servers[0].ID, id)
}

// damaged stops the node over damage that it has found while running. Before raft starts the next time
// the folder is looked through, and put aside; that is noted, for damage that can't be seen then.
func (n *Node) damaged(err error) {
	if noting := n.markUnusable(fmt.Errorf("found when it was used: %w", err)); noting != nil {
		err = errors.Join(err, noting)
	}
	n.settings.Fatal(fmt.Errorf("the log of this node is damaged, and it stops before it applies or sends any of that: %w", err))
}

// snapshotWhenDue adds snapshots for bytes to those that raft takes for entries.
func (n *Node) snapshotWhenDue() {
	for {
		select {
		case <-n.stopping:
			return
		case <-n.machine.snapshotIsDue:
			// Raft logs why a snapshot failed; the next entry makes it due again.
			_ = n.raft.Snapshot().Error()
		}
	}
}

// Proposal is an entry on its way.
type Proposal struct {
	node   *Node
	future raft.ApplyFuture
	// done is closed once raft has answered.
	done chan struct{}
}

// Propose hands an entry to raft, blocking while MaxUncommitted others are in flight.
func (n *Node) Propose(ctx context.Context, data []byte) (*Proposal, error) {
	if len(data) > MaxEntryBytes {
		return nil, fmt.Errorf("%w: %d bytes; the limit is %d", ErrEntryTooLarge, len(data), MaxEntryBytes)
	}
	select {
	case n.slots <- struct{}{}:
	case <-n.stopping:
		return nil, ErrNotLeader
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	p := &Proposal{node: n, future: n.raft.Apply(data, hangAfter), done: make(chan struct{})}
	go func() {
		_ = p.future.Error() // Wait reads it.
		<-n.slots
		close(p.done)
	}()
	return p, nil
}

// Wait returns what the state machine answered, once the entry is committed and applied here, or why
// that cannot be known. Where the disk hangs raft does not answer, and only ctx ends the wait.
func (p *Proposal) Wait(ctx context.Context) (any, error) {
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	}
	err := p.future.Error()
	if p.node.stuck.observe(err, time.Now(), stuckAfter*p.node.heartbeat) && p.node.Leads() {
		p.node.settings.Fatal(errors.New("a transfer of leadership does not end and this node takes no entries; it stops so that another one leads"))
	}
	if err != nil {
		return nil, explain(err)
	}
	return p.future.Response(), nil
}

// await waits for raft's answer, as long as ctx lasts: while the disk hangs raft gives none.
func (n *Node) await(ctx context.Context, future raft.Future) error {
	answer := make(chan error, 1)
	go func() { answer <- future.Error() }()
	select {
	case err := <-answer:
		return explain(err)
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	}
}

func explain(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, raft.ErrNotLeader), errors.Is(err, raft.ErrEnqueueTimeout), errors.Is(err, raft.ErrLeadershipTransferInProgress):
		return ErrNotLeader
	case errors.Is(err, raft.ErrLeadershipLost), errors.Is(err, raft.ErrRaftShutdown), errors.Is(err, raft.ErrAbortedByRestore):
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, err)
	}
	return err
}

// Barrier returns once everything committed by earlier leaders is applied here. Only a leader can. It is an
// entry, and counts as one of the MaxUncommitted.
func (n *Node) Barrier(ctx context.Context) error {
	select {
	case n.slots <- struct{}{}:
	case <-ctx.Done():
		return ctx.Err()
	}
	future := n.raft.Barrier(hangAfter)
	done := make(chan struct{})
	go func() {
		_ = future.Error() // It is read below.
		<-n.slots
		close(done)
	}()
	select {
	case <-done:
		return explain(future.Error())
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", ErrUnknownOutcome, ctx.Err())
	}
}

// Leadership tells when this node gains or loses leadership; a value not yet read is replaced by
// a newer one. One reader only.
func (n *Node) Leadership() <-chan bool { return n.leadership }

// Leads says whether this node believes that it is the leader.
func (n *Node) Leads() bool { return n.raft.State() == raft.Leader && n.barred() == nil }

// Leader names the current leader, as far as known here.
func (n *Node) Leader() Server {
	if n.Problem() != nil {
		return Server{} // Raft keeps the last one that it knew.
	}
	address, id := n.raft.LeaderWithID()
	return Server{ID: string(id), Address: string(address)}
}

// NextLeader waits until what this node knows of the leader changes and returns what it knows then. It
// reports false if ctx ended. One caller only.
func (n *Node) NextLeader(ctx context.Context) (leader Server, ok bool) {
	select {
	case <-ctx.Done():
		return Server{}, false
	case <-n.leaders:
		return n.Leader(), true
	}
}

// Address is where peers reach this node; empty if it has no port for them.
func (n *Node) Address() string {
	if n.settings.Layer == nil && n.settings.Transport == nil {
		return ""
	}
	return string(n.inbox.LocalAddr())
}

// Term is the newest term that this node has seen.
func (n *Node) Term() uint64 { return n.raft.CurrentTerm() }

// lastTerm is the term of the newest entry in this node's log.
func (n *Node) lastTerm() uint64 {
	term, _ := strconv.ParseUint(n.raft.Stats()["last_log_term"], 10, 64) // Raft writes a number.
	return term
}

// LastIndex is the newest entry in this node's log, committed or not.
func (n *Node) LastIndex() uint64 { return n.raft.LastIndex() }

// Snapshot writes a snapshot now. With nothing new since the last one it does nothing.
func (n *Node) Snapshot() error {
	if err := n.raft.Snapshot().Error(); err != nil && !errors.Is(err, raft.ErrNothingNewToSnapshot) {
		return fmt.Errorf("take a snapshot: %w", err)
	}
	return nil
}

// Restore replaces the state machine's state, on all nodes, with what its Snapshot once wrote: size
// bytes, captured at an entry of this index. Entries that follow have larger indexes. Proposals in
// flight end with ErrUnknownOutcome. Only a leader can.
func (n *Node) Restore(index uint64, size int64, data io.Reader) error {
	meta := &raft.SnapshotMeta{Version: raft.SnapshotVersionMax, Index: index, Size: size}
	if err := n.raft.Restore(meta, data, restoreTimeout); err != nil {
		return fmt.Errorf("restore a snapshot: %w", explain(err))
	}
	return nil
}

// Close stops the node and releases its files. Proposals in flight end, committed or with
// ErrUnknownOutcome. Nothing may be proposed any more. Where the disk hangs the files stay as they are.
func (n *Node) Close() error {
	n.closed.Do(func() {
		if n.Leads() {
			// Raft never answers entries that are committed but not applied when it shuts down, so
			// they are applied first. Without a majority there are none, and this fails.
			ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
			_ = n.Barrier(ctx)
			cancel()
		}
		close(n.stopping)
		ended := make(chan error, 1)
		go func() { ended <- n.shutdown().Error() }()
		for waiting := true; waiting; {
			select {
			case err := <-ended:
				n.closeErr, waiting = err, false
			case <-time.After(hangAfter):
				if n.watch.hangs() {
					n.closeErr = errHangs
					return
				}
			}
		}
		n.owned.Wait()
		n.closeErr = errors.Join(n.closeErr, n.release())
	})
	return n.closeErr
}

// release closes what Open opened.
func (n *Node) release() error {
	err := n.inbox.Close()
	if n.files != nil && n.files.Close != nil {
		err = errors.Join(err, n.files.Close())
	}
	return err
}
