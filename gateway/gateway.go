package gateway

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	"github.com/quire-serve/quire/model/chat"
	"github.com/quire-serve/quire/model/tokenizer"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

const (
	// abortTimeout bounds how long a departing client's goroutine stays to tell the leader.
	abortTimeout = 5 * time.Second
	// settled is how long it must have been so that a model takes requests, or does not, to be news.
	settled = 2 * time.Second
	// Defaults of Settings.
	defaultMaxBody       = 8 << 20
	defaultMaxBodies     = 128 << 20
	defaultMaxRequests   = 1024
	defaultKeepAlive     = 5 * time.Second
	defaultSubmitTimeout = 30 * time.Second
	defaultReadTimeout   = 30 * time.Second
	defaultWriteTimeout  = 60 * time.Second
	defaultResumeGrace   = 10 * time.Second
	defaultRecover       = 60 * time.Second
)

// Model is what the gateway needs of a model: names and text, no weights.
type Model struct {
	ID        string
	Tokenizer *tokenizer.Tokenizer
	// Chat is nil for a model without a chat template, or with one that cannot be used; chat requests
	// to it are refused. NoChat says what is wrong with one that there is.
	Chat   *chat.Template
	NoChat error
	// ContextLength is the most tokens a sequence may hold; a worker may allow less.
	ContextLength int
	// Digest of the model's file; a worker whose digest differs is not used. Empty skips the check.
	Digest string
}

// Settings of a gateway. Zero limits mean the defaults stated.
type Settings struct {
	// NodeID names the gateway to leader and workers.
	NodeID string
	// Nodes lists the addresses of the control-plane nodes' ports for the cluster, this node's own first. It is
	// asked again whenever the leader has to be found, so the set may change. One of them is enough to
	// begin with: followers name the leader.
	Nodes func() []string
	// Dial connects to a node by its address; the second result closes the connection.
	Dial func(address string) (grpc.ClientConnInterface, func() error, error)
	// DialWorker connects to the worker of that id. Default: Dial, which then takes who answers for it.
	DialWorker func(id, address string) (grpc.ClientConnInterface, func() error, error)
	Models     []Model
	// Version is what GET /version says.
	Version string
	// MaxBodyBytes bounds an HTTP body; 8 MiB.
	MaxBodyBytes int64
	// MaxBodiesBytes bounds all HTTP bodies that are being read and parsed; what is above is refused with 429. 128 MiB.
	MaxBodiesBytes int64
	// MaxRequests bounds the sequences being served at once, one for each choice of each prompt; more are refused
	// with 429. 1024.
	MaxRequests int
	// SubmitTimeout bounds the wait for an admission's commit, an election included; 30 s.
	SubmitTimeout time.Duration
	// ResumeGrace is how long a request that its client has named goes on without it, so that the
	// client can come back; 10 s. Negative is not at all.
	ResumeGrace time.Duration
	// RecoverTimeout is how long a request may be silent while its worker's stream is down and no
	// leader answers, before its client is told; 60 s.
	RecoverTimeout time.Duration
	// ReadTimeout bounds the reading of a request's headers, and again of its body; 30 s.
	ReadTimeout time.Duration
	// WriteTimeout is how long a client may leave its connection full before it counts as gone; 60 s.
	WriteTimeout time.Duration
	// KeepAlive is how often a streamed answer without news gets a comment, so that neither its client nor
	// what lies between takes the connection for dead; 5 s.
	KeepAlive time.Duration
	// Collectors are reported beside the gateway's own metrics.
	Collectors []prometheus.Collector
	// Now is the clock; time.Now.
	Now func() time.Time
	// Log is slog.Default if nil.
	Log *slog.Logger
}

func (s *Settings) setDefaults() {
	s.MaxBodyBytes = orDefault(s.MaxBodyBytes, defaultMaxBody)
	s.MaxBodiesBytes = orDefault(s.MaxBodiesBytes, defaultMaxBodies)
	s.KeepAlive = orDefault(s.KeepAlive, defaultKeepAlive)
	s.MaxRequests = orDefault(s.MaxRequests, defaultMaxRequests)
	s.SubmitTimeout = orDefault(s.SubmitTimeout, defaultSubmitTimeout)
	s.ReadTimeout = orDefault(s.ReadTimeout, defaultReadTimeout)
	s.WriteTimeout = orDefault(s.WriteTimeout, defaultWriteTimeout)
	s.ResumeGrace = orDefault(s.ResumeGrace, defaultResumeGrace)
	s.RecoverTimeout = orDefault(s.RecoverTimeout, defaultRecover)
	if s.DialWorker == nil {
		s.DialWorker = func(_, address string) (grpc.ClientConnInterface, func() error, error) { return s.Dial(address) }
	}
	if s.Now == nil {
		s.Now = time.Now
	}
	if s.Log == nil {
		s.Log = slog.Default()
	}
}

func orDefault[T int | int64 | time.Duration](v, absent T) T {
	if v == 0 {
		return absent
	}
	return v
}

func (s *Settings) validate() error {
	switch {
	case s.NodeID == "":
		return errors.New("gateway: NodeID is empty")
	case s.Nodes == nil:
		return errors.New("gateway: Nodes is nil")
	case s.Dial == nil:
		return errors.New("gateway: Dial is nil")
	case len(s.Models) == 0:
		return errors.New("gateway: Models is empty")
	case s.MaxBodyBytes < 0 || s.MaxBodiesBytes < s.MaxBodyBytes || s.MaxRequests < 0 || s.KeepAlive < 0 || s.SubmitTimeout < 0 || s.ReadTimeout < 0 || s.WriteTimeout < 0 || s.RecoverTimeout < 0:
		return errors.New("gateway: a limit is negative")
	}
	seen := make(map[string]bool)
	for _, m := range s.Models {
		if m.ID == "" || m.Tokenizer == nil || m.ContextLength < 2 {
			return fmt.Errorf("gateway: model %q needs an id, a tokenizer and a context of at least 2 tokens", m.ID)
		}
		if seen[m.ID] {
			return fmt.Errorf("gateway: model %q is listed twice", m.ID)
		}
		seen[m.ID] = true
	}
	return nil
}

// served is a model with what is computed from it once.
type served struct {
	Model
	meters      *meters
	fingerprint string
	grammars    grammars
	log         *slog.Logger
	// said is why requests are refused, as the log has it; it may soon be now, which it has been since.
	said, now string
	since     time.Time
}

// tell logs why requests for the model are refused once that has been so for a while, and when they are not
// any more. It belongs to one goroutine.
func (m *served) tell(reason string, at time.Time) {
	if reason != m.now {
		m.now, m.since = reason, at
	}
	if m.now == m.said || at.Sub(m.since) < settled {
		return
	}
	if m.said = m.now; reason == "" {
		m.log.Info("a model takes requests", "model", m.ID)
	} else {
		m.log.Warn("a model takes no requests", "model", m.ID, "reason", reason)
	}
}

// Gateway serves clients. Make one with New, keep Run running, and serve Handler over HTTP and
// Register's services over gRPC.
type Gateway struct {
	pb.UnimplementedInferenceServer
	Settings

	models  map[string]*served
	order   []*served
	started time.Time
	control *control
	lives   table
	workers workers
	metrics *metrics
	health  *health.Server
	ready   atomic.Bool
	// capacity is what the attached workers can do, by model; capacities orders those who count it.
	capacity   atomic.Pointer[map[string]capacity]
	capacities sync.Mutex
	// unserved are the models whose requests the leader refuses, as it said last.
	unserved atomic.Pointer[pb.Unserved]
	// queued is what waits in the leader's queue, as it said last.
	queued atomic.Pointer[pb.Queued]
	totals totals
	inUse  atomic.Int64
	bodies bodies
	// sweeping: what nobody reads is being aborted.
	sweeping atomic.Bool
	answers  answers
	// look wakes the supervisor.
	look chan struct{}

	// tasks are what Run waits for; none begins once it has stopped.
	spawning sync.Mutex
	stopped  bool
	tasks    sync.WaitGroup
}

var _ pb.InferenceServer = (*Gateway)(nil)

// New checks the settings and returns a gateway that serves nothing until Run runs.
func New(s Settings) (*Gateway, error) {
	s.setDefaults()
	if err := s.validate(); err != nil {
		return nil, err
	}
	g := &Gateway{
		Settings: s,
		models:   make(map[string]*served, len(s.Models)),
		started:  s.Now(),
		control:  newControl(s.Nodes, s.Dial),
		look:     make(chan struct{}, 1),
		lives:    table{byID: make(map[string]*live)},
		workers:  workers{byID: make(map[string]*attachment)},
		health:   health.NewServer(),
	}
	g.bodies.most = s.MaxBodiesBytes
	g.metrics = newMetrics(g)
	compiles := newCompileGate()
	for _, m := range s.Models {
		v := &served{Model: m, meters: g.metrics.of(m.ID), log: s.Log, grammars: grammars{gate: compiles}}
		if m.Digest != "" {
			v.fingerprint = "fp_" + m.Digest[:min(12, len(m.Digest))]
		}
		if m.NoChat != nil {
			s.Log.Warn("a model's chat template cannot be used: it serves everything but chats", "model", m.ID, "error", m.NoChat)
		}
		g.models[m.ID] = v
		g.order = append(g.order, v)
	}
	g.updateReady()
	return g, nil
}

// Run follows the leader's set of workers and keeps a stream to each until ctx ends. Requests that
// are still live then are ended: serve them out first.
func (g *Gateway) Run(ctx context.Context) error {
	g.spawn(func() { g.supervise(ctx) })
	g.watch(ctx)
	g.spawning.Lock()
	g.stopped = true
	g.spawning.Unlock()
	for _, a := range g.workers.list() {
		a.cancel()
	}
	g.workers.wg.Wait()
	for _, l := range g.lives.all() {
		l.fail(interruption)
		l.abandon()
		g.expire(ctx, l, g.Now().Add(max(g.ResumeGrace, 0)))
	}
	g.tasks.Wait()
	g.control.close()
	g.updateReady()
	return nil
}

// LeaderAt tells the gateway where the leader is, from whoever learns of it at once. Calls that wait for
// another node go to that one.
func (g *Gateway) LeaderAt(address string) { g.control.lead(address) }

// spawn runs f in a goroutine that Run waits for, unless Run has ended.
func (g *Gateway) spawn(f func()) bool {
	g.spawning.Lock()
	defer g.spawning.Unlock()
	if g.stopped {
		return false
	}
	g.tasks.Go(f)
	return true
}

func (g *Gateway) stopping() bool {
	g.spawning.Lock()
	defer g.spawning.Unlock()
	return g.stopped
}

// Ready reports whether a request could be served now: some model has a worker that we are attached to, and
// the leader does not refuse its requests.
func (g *Gateway) Ready() bool { return g.ready.Load() }

// notReady says why not; empty if it is.
func (g *Gateway) notReady() string {
	if g.Ready() {
		return ""
	}
	var why []string
	for _, m := range g.order {
		why = append(why, fmt.Sprintf("model %q takes no requests: %s", m.ID, g.refused(m)))
	}
	return clip(strings.Join(why, "; "), 1024)
}

// refused says why requests for a model are refused; empty if they are not.
func (g *Gateway) refused(m *served) string {
	if g.serving(m).ready == 0 {
		return noReadyWorker
	}
	for _, u := range g.unserved.Load().GetModels() {
		if u.Name == m.ID {
			return u.Reason
		}
	}
	return ""
}

const noReadyWorker = "it has no ready worker"

func (g *Gateway) updateReady() {
	g.capacities.Lock()
	defer g.capacities.Unlock()
	serves := g.workers.capacities(g.models)
	g.capacity.Store(&serves)
	taken := slices.ContainsFunc(g.order, func(m *served) bool { return g.refused(m) == "" })
	ready := taken && !g.stopping() && !g.answers.isDraining()
	g.ready.Store(ready)
	status := healthpb.HealthCheckResponse_NOT_SERVING
	if ready {
		status = healthpb.HealthCheckResponse_SERVING
	}
	g.health.SetServingStatus("", status)
	g.health.SetServingStatus(pb.Inference_ServiceDesc.ServiceName, status)
}

// serving is what the attached workers of a model can do by now.
func (g *Gateway) serving(m *served) capacity {
	if serves := g.capacity.Load(); serves != nil {
		return (*serves)[m.ID]
	}
	return capacity{}
}

// acquire takes n places, or reports that there are not so many.
func (g *Gateway) acquire(n int) *apiError {
	if now := g.inUse.Add(int64(n)); n > 0 && now > int64(g.MaxRequests) {
		g.inUse.Add(-int64(n))
		return overloaded(time.Second, "the gateway serves %d sequences at once and has no place for %d more", g.MaxRequests, n)
	}
	return nil
}

// seat takes places for all sequences of a call, one for each choice of each prompt, beside those that it
// has already. What waits for its client has places of its own, which it gives up when it is entered.
func (g *Gateway) seat(c *call, ids []string) *apiError {
	all, each := c.choices(), c.choices()/len(ids)
	if all > g.MaxRequests {
		param := "prompt"
		if len(ids) == 1 {
			param = "n"
		}
		return invalid(param, "%d prompts with n %d are %d sequences; the gateway serves %d at once", len(ids), each, all, g.MaxRequests)
	}
	more := 0
	for i, id := range ids {
		if g.lives.lingers(id) {
			continue
		}
		if more += each; i == 0 {
			more -= c.places
		}
	}
	if e := g.acquire(more); e != nil {
		return e
	}
	g.inUse.Add(int64(all - c.places - more))
	c.places = all
	return nil
}

func (g *Gateway) release(n int) { g.inUse.Add(-int64(n)) }

// newID returns 128 random bits in hexadecimal.
func newID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // it never fails: the runtime ends the program instead
	return hex.EncodeToString(b[:])
}
