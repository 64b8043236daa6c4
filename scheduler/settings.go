package scheduler

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"

	"google.golang.org/grpc"

	"github.com/quire-serve/quire/scheduler/batch"
	"github.com/quire-serve/quire/scheduler/check"
	"github.com/quire-serve/quire/scheduler/consensus"
	"github.com/quire-serve/quire/scheduler/membership"
	"github.com/quire-serve/quire/scheduler/prefix"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
	"github.com/quire-serve/quire/trust"
)

// Settings is what New takes. Zero values mean the defaults stated per field.
type Settings struct {
	// NodeID names this control-plane node; it must stay the same over restarts. Required.
	NodeID string
	// DataDir holds the Raft log and snapshots. Required.
	DataDir string
	// Store is the kind of log. Default consensus.WAL.
	Store consensus.Store
	// Fatal hears why this node must stop at once; it must not return. Default panic.
	Fatal func(error)
	// Logger receives the node's log. Default slog.Default().
	Logger *slog.Logger

	// RaftListen is the host:port for peers; empty opens none, for a cluster of one. RaftAdvertise
	// is the address that peers dial, if it is another.
	RaftListen, RaftAdvertise string
	// Certificates prove to peers who this node is, and who they are. Default: none, plain TCP.
	Certificates *trust.Certificates
	// ControlAdvertise is where this node's services for the cluster are reached. Required with RaftListen.
	ControlAdvertise string
	// Join lists where the services for the cluster of its nodes are, the same on every node and in
	// any order; it may name this node. A node that is in no cluster looks for one there. Default:
	// none; this node is a cluster by itself.
	Join []string
	// BootstrapExpect is how many nodes without a cluster form a new one. Default len(Join).
	BootstrapExpect int
	// StableAfter is how long a new member must have been healthy to get a vote. Default 10 s.
	StableAfter time.Duration
	// DeadAfter is the silence after which a member is removed, if at least three voters stay.
	// Default 10 minutes.
	DeadAfter time.Duration
	// DialNode connects to another node's services for the cluster. Required with RaftListen.
	DialNode func(address string) (grpc.ClientConnInterface, func() error, error)
	// Version is what this node says it runs.
	Version string
	// Peers are the first members of a cluster in memory, this node among them.
	Peers []Peer

	// QueueRequests bounds the requests that wait for a worker; each counts once for each of its choices.
	// Default 16,384.
	QueueRequests int
	// QueueBytes bounds the memory that they take on the leader. Default 256 MiB.
	QueueBytes int64
	// Batch sets the order of the queue and the placement.
	Batch batch.Settings
	// Keep is how much is kept of ended requests. What the leader was given counts for all nodes. Default
	// state.DefaultRetention.
	Keep state.Retention
	// Prefix bounds what is remembered of the workers' caches.
	Prefix prefix.Settings

	// HeartbeatInterval is what workers are asked for. Default 250 ms.
	HeartbeatInterval time.Duration
	// HeartbeatTimeout is the silence after which a worker in session counts as lost. Default 2 s.
	HeartbeatTimeout time.Duration
	// SessionGrace is how long a worker whose session broke may take to come back before its
	// requests go elsewhere. Default 1 s.
	SessionGrace time.Duration
	// ReconnectGrace is the same for workers that a new leader has not heard from. Default 5 s.
	ReconnectGrace time.Duration
	// ReconcileGrace is how long a worker that came back may take to say that a request which it
	// does not run any more had finished. Default 250 ms.
	ReconcileGrace time.Duration

	// CheckpointInterval is how often workers say what running requests have generated. Default 100 ms.
	CheckpointInterval time.Duration
	// RecallGrace is how long a gateway may take to say what it has of requests whose worker is lost.
	// Default 100 ms.
	RecallGrace time.Duration
	// OrphanGrace is how long requests run on whose gateway is away. Default 60 s.
	OrphanGrace time.Duration
	// Dial opens connections to workers, only to see whether their port answers. Default: the net
	// package's.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// now is the clock. Only differences between its times count: see clock. Default time.Now.
	now func() time.Time
	// consensus lets tests run clusters in memory.
	consensus func(*consensus.Settings)
}

// Peer is a member of a cluster in memory.
type Peer = membership.Peer

func (s *Settings) setDefaults() {
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	if s.QueueRequests == 0 {
		s.QueueRequests = 16384
	}
	if s.QueueBytes == 0 {
		s.QueueBytes = 256 << 20
	}
	set := func(field *time.Duration, value time.Duration) {
		if *field == 0 {
			*field = value
		}
	}
	if s.Keep == (state.Retention{}) {
		s.Keep = state.DefaultRetention
	}
	if s.BootstrapExpect == 0 {
		s.BootstrapExpect = len(s.Join)
	}
	set(&s.StableAfter, 10*time.Second)
	set(&s.DeadAfter, 10*time.Minute)
	set(&s.HeartbeatInterval, 250*time.Millisecond)
	set(&s.HeartbeatTimeout, 2*time.Second)
	set(&s.SessionGrace, time.Second)
	set(&s.ReconnectGrace, 5*time.Second)
	set(&s.ReconcileGrace, 250*time.Millisecond)
	set(&s.CheckpointInterval, 100*time.Millisecond)
	set(&s.RecallGrace, 100*time.Millisecond)
	set(&s.OrphanGrace, 60*time.Second)
	if s.now == nil {
		s.now = time.Now
	}
	if s.Dial == nil {
		s.Dial = (&net.Dialer{}).DialContext
	}
	if s.Batch.FreshMS == 0 {
		s.Batch.FreshMS = 3 * s.HeartbeatInterval.Milliseconds()
	}
	if s.Batch.StaleMS == 0 {
		s.Batch.StaleMS = max(s.Batch.FreshMS, s.HeartbeatTimeout.Milliseconds())
	}
}

// Validate says which field is wrong, and its limit.
func (s Settings) Validate() error {
	switch {
	case s.NodeID == "":
		return errors.New("scheduler: NodeID is empty")
	case len(s.NodeID) > maxIDBytes:
		return fmt.Errorf("scheduler: NodeID is %d bytes long; the limit is %d", len(s.NodeID), maxIDBytes)
	case s.DataDir == "" && s.Store != consensus.Memory && s.consensus == nil:
		return errors.New("scheduler: DataDir is empty")
	case s.QueueRequests < 0 || s.QueueRequests > MaxQueueRequests:
		return fmt.Errorf("scheduler: QueueRequests is %d; it must be 1 to %d", s.QueueRequests, MaxQueueRequests)
	case s.QueueBytes < 0:
		return fmt.Errorf("scheduler: QueueBytes is %d; it must be positive", s.QueueBytes)
	case len(s.Join) > 0 && s.RaftListen == "" && s.consensus == nil:
		return errors.New("scheduler: RaftListen is empty with Join; the others could not reach this node")
	case s.RaftListen != "" && (s.ControlAdvertise == "" || s.DialNode == nil):
		return errors.New("scheduler: RaftListen needs ControlAdvertise and DialNode")
	case s.BootstrapExpect < 0 || s.BootstrapExpect > len(s.Join):
		return fmt.Errorf("scheduler: BootstrapExpect is %d with %d addresses in Join; it must be between 1 and their number", s.BootstrapExpect, len(s.Join))
	case len(s.Join) > maxNodes:
		return fmt.Errorf("scheduler: Join has %d addresses; the limit is %d", len(s.Join), maxNodes)
	}
	for name, value := range map[string]time.Duration{
		"HeartbeatInterval": s.HeartbeatInterval, "HeartbeatTimeout": s.HeartbeatTimeout, "SessionGrace": s.SessionGrace,
		"ReconnectGrace": s.ReconnectGrace, "ReconcileGrace": s.ReconcileGrace,
		"CheckpointInterval": s.CheckpointInterval, "RecallGrace": s.RecallGrace, "OrphanGrace": s.OrphanGrace,
		"StableAfter": s.StableAfter, "DeadAfter": s.DeadAfter,
	} {
		if value < 0 {
			return fmt.Errorf("scheduler: %s is %v; it must be positive", name, value)
		}
	}
	return errors.Join(s.Keep.Validate(), s.Batch.Validate(), s.Prefix.Validate())
}

// MaxQueueRequests bounds Settings.QueueRequests.
const MaxQueueRequests = 1_000_000

const (
	// maxNodes bounds the addresses to find a cluster at.
	maxNodes = 32
	// These are check's to say, and used here for what is made of requests.
	maxIDBytes        = rpc.MaxIDBytes
	maxModelBytes     = rpc.MaxModelBytes
	maxRequestIDBytes = check.MaxRequestIDBytes
	maxRequestBytes   = check.MaxRequestBytes
	onePieceBytes     = check.OnePieceBytes
	bodyBytes         = check.BodyBytes
	// maxDigestBytes bounds what names a body.
	maxDigestBytes = 32
	// maxErrorBytes bounds the text of an error in the log.
	maxErrorBytes = 1024
	// partTokens are in each part of a prompt that is too large for one entry.
	partTokens = (onePieceBytes - bodyBytes) / tokenBytes

	// A log entry takes finishes, requeues and progress up to settleBytes, then submits up to admitBytes (a
	// piece of onePieceBytes always fits behind the former), then assignments.
	settleBytes = 4 * check.MaxWorkerBytes
	admitBytes  = settleBytes + onePieceBytes + 4<<10
	// commandBytes is the most that a command without a prompt takes.
	commandBytes = maxRequestIDBytes + maxIDBytes + 64
	// dispatchBytes bounds the requests that one instant hands to workers, in memory: encoded, they take
	// less than half.
	dispatchBytes = 4 << 20

	// instant is the least time between two log entries: what arrives within it goes together.
	instant = time.Millisecond
	// housekeeping is how often silence and deadlines are looked at.
	housekeeping = 50 * time.Millisecond
	// entriesInFlight is how many entries may be on their way to the log. More would only wait in
	// raft for the same fsync; the next entry grows meanwhile instead.
	entriesInFlight = 4
	// maxAttempts is how often a request is given to a worker, without a new token coming of it,
	// before it is held to be the reason that workers die.
	maxAttempts = 5
	// returnPause is how long a request that a worker gave back stays away from the queue.
	returnPause = housekeeping
	// inheritedTokens are the prompt tokens of earlier leaders' requests that a new one hashes before it
	// serves, some 20 ms; what is beyond is placed without regard to what workers hold of it.
	inheritedTokens = 2 << 20
	// retryLeading is the pause before a leader that failed starts again.
	retryLeading   = 100 * time.Millisecond
	barrierTimeout = 30 * time.Second
	// settleTimeout is how long a leader that leaves waits for the fate of its last entries.
	settleTimeout = time.Second
	// streamsTimeout is how long Close waits for workers' streams to end.
	streamsTimeout = 2 * time.Second
	// sessionMessages bounds the messages that wait for a worker to read them.
	sessionMessages = 1024
	// watchInterval is how often gateways are told at least what there is.
	watchInterval = time.Second
	// unservedGrace is how long a request waits at most for a model of which no worker takes any.
	unservedGrace = 10 * time.Second
	// ownedInterval is how often gateways are told what they own.
	ownedInterval = 5 * time.Second
	// newsPerMessage, of each kind, and newsWaiting bound the news to a gateway.
	newsPerMessage = 1000
	newsWaiting    = 65536
	// endsRepeated is how far back the ends go that a gateway hears of when it begins to watch. It asks
	// after whatever is silent, so that this spares it a question only.
	endsRepeated = 2 * time.Minute
)
