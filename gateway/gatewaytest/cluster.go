package gatewaytest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/quire-serve/quire/model/tokenizer"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/roster"
)

// Options of a cluster. Zero values mean the defaults stated.
type Options struct {
	// Model is what the workers announce; "test".
	Model string
	// Workers is how many there are; 1. Requests go to them in turn.
	Workers int
	// ContextLength in tokens; 2048.
	ContextLength int
	// Tenants that may hold only a part of every worker.
	Tenants []*pb.TenantShare
	// TotalBlocks of 16 tokens each; 4096.
	TotalBlocks int
	// MaxLive bounds the requests admitted and not ended; 4096. Submit refuses more.
	MaxLive int
	// Tokenizer is the vocabulary for stop strings and ends; Tokenizer().
	Tokenizer *tokenizer.Tokenizer
	// Reply chooses a choice's token at a position; Babble.
	Reply func(req *pb.Request, choice, position int) int32
	// TokensPerStep is how many tokens a choice gets a step, in one event; 1.
	TokensPerStep int
	// StallAt stops a choice after so many tokens, short of its end, until it is aborted; 0 never does.
	StallAt int
	// Manual makes the workers stand still but for Step.
	Manual bool
	// Nodes is how many control-plane nodes there are; 1. The first leads.
	Nodes int
	// CheckpointSteps is how many steps lie between two moments at which the log gets all tokens; 3.
	CheckpointSteps int
}

const blockTokens = 16

// Cluster is a fake control plane with fake workers.
type Cluster struct {
	opts Options

	mu sync.Mutex
	// changed is broadcast on every change of what follows.
	changed    *sync.Cond
	closed     bool
	runs       map[string]*run
	order      []string // ids in order of admission
	sessions   map[*session]bool
	watchers   map[*watcher]bool
	workers    []*pb.WorkerInfo // in session with the leader
	rosters    []*roster.Roster // the same as each node tells of it
	leader     int              // -1 is an election
	endings    []*pb.Ended      // told to every watcher
	credit     int              // steps that may be taken, in manual mode
	steps      int
	index      uint64
	placed     int
	aborts     []string
	recalls    int
	adopted    int
	reruns     int
	wrong      []string
	refusal    error
	gate       chan struct{}
	unheard    int // Submits whose answer is to be lost
	mute       map[string]bool
	unserved   *pb.Unserved
	queued     *pb.Queued
	unanswered int

	servers map[string]*server
	running sync.WaitGroup
}

// server is what answers at one address.
type server struct {
	lis  *bufconn.Listener
	grpc *grpc.Server
}

// Start runs a cluster until the test ends.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	o.Model = orDefault(o.Model, "test")
	o.Workers = orDefault(o.Workers, 1)
	o.ContextLength = orDefault(o.ContextLength, 2048)
	o.TotalBlocks = orDefault(o.TotalBlocks, 4096)
	o.MaxLive = orDefault(o.MaxLive, 4096)
	o.TokensPerStep = orDefault(o.TokensPerStep, 1)
	if o.Tokenizer == nil {
		o.Tokenizer = Tokenizer()
	}
	if o.Reply == nil {
		o.Reply = Babble
	}
	o.Nodes = orDefault(o.Nodes, 1)
	o.CheckpointSteps = orDefault(o.CheckpointSteps, 3)
	c := &Cluster{opts: o, runs: map[string]*run{}, sessions: map[*session]bool{}, watchers: map[*watcher]bool{},
		mute: map[string]bool{}, servers: map[string]*server{}}
	c.changed = sync.NewCond(&c.mu)
	for i := range o.Nodes {
		c.serveNode(i)
		c.rosters = append(c.rosters, roster.New(uint64(i+1)))
	}
	for i := range o.Workers {
		c.serveWorker(workerID(i))
	}
	c.setWorkers(o.Workers)
	c.running.Go(c.stepForever)
	t.Cleanup(c.close)
	return c
}

func orDefault[T comparable](v, absent T) T {
	var zero T
	if v == zero {
		return absent
	}
	return v
}

func (c *Cluster) info(id string) *pb.WorkerInfo {
	return &pb.WorkerInfo{Id: id, Address: id, Model: c.opts.Model, ContextLength: int32(c.opts.ContextLength), Tenants: c.opts.Tenants,
		BlockTokens: blockTokens, TotalBlocks: int32(c.opts.TotalBlocks), MaxSequences: 256, Device: "fake"}
}

func workerID(i int) string { return fmt.Sprintf("worker-%d", i) }

func nodeID(i int) string { return fmt.Sprintf("node-%d", i) }

func (c *Cluster) serveNode(i int) {
	c.serve(nodeID(i), func(s *grpc.Server) { pb.RegisterControlServer(s, &node{c: c, place: i}) })
}

func (c *Cluster) serveWorker(id string) {
	c.serve(id, func(s *grpc.Server) { pb.RegisterWorkerServer(s, &worker{c: c, id: id}) })
}

// serve answers at an address until kill.
func (c *Cluster) serve(name string, register func(*grpc.Server)) {
	s := &server{lis: bufconn.Listen(1 << 20), grpc: grpc.NewServer()}
	register(s.grpc)
	c.mu.Lock()
	c.servers[name] = s
	c.mu.Unlock()
	c.running.Go(func() { _ = s.grpc.Serve(s.lis) }) // it returns when kill stops the server
}

// kill cuts an address off, as when its process dies.
func (c *Cluster) kill(name string) {
	c.mu.Lock()
	s := c.servers[name]
	delete(c.servers, name)
	c.changed.Broadcast()
	c.mu.Unlock()
	if s != nil {
		s.grpc.Stop()
	}
}

// Dial connects to a node or worker by its address.
func (c *Cluster) Dial(address string) (grpc.ClientConnInterface, func() error, error) {
	reach := func(ctx context.Context, _ string) (net.Conn, error) {
		c.mu.Lock()
		s := c.servers[address]
		c.mu.Unlock()
		if s == nil {
			return nil, errors.New("gatewaytest: nothing answers at " + address)
		}
		return s.lis.DialContext(ctx)
	}
	conn, err := grpc.NewClient("passthrough:///"+address, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithContextDialer(reach))
	if err != nil {
		return nil, nil, err
	}
	return conn, conn.Close, nil
}

// Nodes are the addresses of the control-plane nodes.
func (c *Cluster) Nodes() []string {
	list := make([]string, c.opts.Nodes)
	for i := range list {
		list[i] = nodeID(i)
	}
	return list
}

func (c *Cluster) close() {
	c.mu.Lock()
	c.closed = true
	servers := c.servers
	c.servers = map[string]*server{}
	c.changed.Broadcast()
	c.mu.Unlock()
	for _, s := range servers {
		s.grpc.Stop()
	}
	c.running.Wait()
}

// Babble is a reply of lower-case letters and spaces that depends on the prompt, the seed, the choice
// and the position alone.
func Babble(req *pb.Request, choice, position int) int32 {
	const letters = "abcdefghijklmnopqrstuvwxyz      "
	h := uint64(14695981039346656037)
	mix := func(v uint64) { h = (h ^ v) * 1099511628211 }
	for _, id := range req.Prompt {
		mix(uint64(id))
	}
	mix(req.Sampling.GetSeed() + uint64(choice))
	mix(uint64(position))
	h ^= h >> 29
	return int32(letters[h%uint64(len(letters))])
}

// Say is a reply of fixed text, and then the end of the turn.
func Say(text string) func(*pb.Request, int, int) int32 {
	return func(_ *pb.Request, _, position int) int32 {
		if position < len(text) {
			return int32(text[position])
		}
		return TurnEnd
	}
}

// Step lets the workers take n steps, in manual mode.
func (c *Cluster) Step(n int) {
	c.mu.Lock()
	c.credit += n
	c.changed.Broadcast()
	c.mu.Unlock()
}

// Refuse makes Submit answer with err; nil ends it.
func (c *Cluster) Refuse(err error) {
	c.mu.Lock()
	c.refusal = err
	c.mu.Unlock()
}

// HoldSubmit makes Submit admit and dispatch but not answer until the returned function is called.
func (c *Cluster) HoldSubmit() (release func()) {
	gate := make(chan struct{})
	c.mu.Lock()
	c.gate = gate
	c.mu.Unlock()
	return sync.OnceFunc(func() {
		c.mu.Lock()
		c.gate = nil
		c.mu.Unlock()
		close(gate)
	})
}

// State is what the cluster holds at one moment.
type State struct {
	Live, Admitted, UsedBlocks, Steps, Sessions int
	// Recalls and Adoptions count requests whose output a gateway gave back, and that changed gateway;
	// Reruns those that ran again after their end.
	Recalls, Adoptions, Reruns int
	// Unanswered calls wait at nodes that are mute.
	Unanswered int
	// Wrong is what a gateway gave back that was never generated.
	Wrong []string
	// Aborts are the ids of aborted requests that were live.
	Aborts []string
	// Requests are all requests in order of admission.
	Requests []*pb.Request
}

// Await waits until a condition holds; the test's own deadline bounds it.
func (c *Cluster) Await(condition func(State) bool) State {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		if s := c.state(); condition(s) {
			return s
		} else if c.closed {
			panic("gatewaytest: the cluster closed before the condition held")
		}
		c.changed.Wait()
	}
}

// State returns the state now.
func (c *Cluster) State() State {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.state()
}

func (c *Cluster) state() State {
	s := State{Admitted: len(c.order), Steps: c.steps, Sessions: len(c.sessions), Aborts: slices.Clone(c.aborts),
		Recalls: c.recalls, Adoptions: c.adopted, Reruns: c.reruns, Unanswered: c.unanswered, Wrong: slices.Clone(c.wrong)}
	for _, id := range c.order {
		r := c.runs[id]
		s.Requests = append(s.Requests, r.req)
		if !r.done {
			s.Live++
			s.UsedBlocks += r.blocks()
		}
	}
	return s
}
