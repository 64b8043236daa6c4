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
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/quire-serve/quire/model/tokenizer"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Options of a cluster. Zero values mean the defaults stated.
type Options struct {
	// Model is what the workers announce; "test".
	Model string
	// Workers is how many there are; 1. Requests go to them in turn.
	Workers int
	// ContextLength in tokens; 2048.
	ContextLength int
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
}

const blockTokens = 16

// Cluster is a fake leader with fake workers.
type Cluster struct {
	opts Options

	mu sync.Mutex
	// changed is broadcast on every change of what follows.
	changed  *sync.Cond
	closed   bool
	runs     map[string]*run
	order    []string // ids in order of admission
	sessions map[*session]bool
	workers  []*pb.WorkerInfo
	version  int // of the set of workers
	endings  []*pb.Ended
	credit   int // steps that may be taken, in manual mode
	steps    int
	index    uint64
	aborts   []string
	refusal  error
	gate     chan struct{}

	listeners map[string]*bufconn.Listener
	servers   []*grpc.Server
	control   *grpc.ClientConn
	stepper   sync.WaitGroup
}

// run is one request and all of its output.
type run struct {
	req     *pb.Request
	worker  string
	index   uint64
	choices []*runChoice
	done    bool
	// delivered: some session has been given all of it.
	delivered bool
	reason    pb.FinishReason
	errorMsg  string
}

type runChoice struct {
	tokens  []int32
	text    *tokenizer.Stream
	stops   *tokenizer.StopMatcher
	finish  pb.FinishReason
	stopped string
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
	c := &Cluster{opts: o, runs: map[string]*run{}, sessions: map[*session]bool{}, listeners: map[string]*bufconn.Listener{}}
	c.changed = sync.NewCond(&c.mu)
	c.serve("leader", func(s *grpc.Server) { pb.RegisterControlServer(s, &leader{c: c}) })
	for i := range o.Workers {
		id := fmt.Sprintf("worker-%d", i)
		c.serve(id, func(s *grpc.Server) { pb.RegisterWorkerServer(s, &worker{c: c, id: id}) })
		c.workers = append(c.workers, c.info(id))
	}
	conn, err := c.dial("leader")
	if err != nil {
		t.Fatal(err)
	}
	c.control = conn
	c.stepper.Go(c.stepForever)
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
	return &pb.WorkerInfo{Id: id, Address: id, Model: c.opts.Model, ContextLength: int32(c.opts.ContextLength),
		BlockTokens: blockTokens, TotalBlocks: int32(c.opts.TotalBlocks), MaxSequences: 256, Device: "fake"}
}

func (c *Cluster) serve(name string, register func(*grpc.Server)) {
	lis := bufconn.Listen(1 << 20)
	s := grpc.NewServer()
	register(s)
	c.listeners[name] = lis
	c.servers = append(c.servers, s)
	c.stepper.Go(func() { _ = s.Serve(lis) }) // it returns when close stops the server
}

func (c *Cluster) dial(name string) (*grpc.ClientConn, error) {
	lis, ok := c.listeners[name]
	if !ok {
		return nil, errors.New("gatewaytest: no such address: " + name)
	}
	return grpc.NewClient("passthrough:///"+name, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
}

func (c *Cluster) close() {
	c.mu.Lock()
	c.closed = true
	c.changed.Broadcast()
	c.mu.Unlock()
	_ = c.control.Close()
	for _, s := range c.servers {
		s.Stop()
	}
	c.stepper.Wait()
}

// Control is a client of the leader.
func (c *Cluster) Control() pb.ControlClient { return pb.NewControlClient(c.control) }

// DialWorker connects to a worker by the address that Watch gives.
func (c *Cluster) DialWorker(address string) (grpc.ClientConnInterface, func() error, error) {
	conn, err := c.dial(address)
	if err != nil {
		return nil, nil, err
	}
	return conn, conn.Close, nil
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

// Fail ends a request with an error, as a worker would.
func (c *Cluster) Fail(id, message string) {
	c.mu.Lock()
	if r := c.runs[id]; r != nil {
		r.end(pb.FinishReason_FINISH_REASON_ERROR, message)
	}
	c.changed.Broadcast()
	c.mu.Unlock()
}

// EndQueued tells gateways through Watch that a request has ended.
func (c *Cluster) EndQueued(id string, reason pb.FinishReason, message string) {
	c.mu.Lock()
	c.endings = append(c.endings, &pb.Ended{RequestId: id, FinishReason: reason, Error: message})
	c.version++
	c.changed.Broadcast()
	c.mu.Unlock()
}

// Break cuts all Attach streams; their output stays for whoever attaches next.
func (c *Cluster) Break() {
	c.mu.Lock()
	for s := range c.sessions {
		s.broken = true
	}
	c.changed.Broadcast()
	c.mu.Unlock()
}

// SetWorkers makes the first n workers the set that Watch shows.
func (c *Cluster) SetWorkers(n int) {
	c.mu.Lock()
	c.workers = c.workers[:0]
	for i := range n {
		c.workers = append(c.workers, c.info(fmt.Sprintf("worker-%d", i)))
	}
	c.version++
	c.changed.Broadcast()
	c.mu.Unlock()
}

// State is what the cluster holds at one moment.
type State struct {
	Live, Admitted, UsedBlocks, Steps, Sessions int
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
	s := State{Admitted: len(c.order), Steps: c.steps, Sessions: len(c.sessions), Aborts: slices.Clone(c.aborts)}
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

var errNotFake = grpcError(codes.Unimplemented, "gatewaytest: the fake cluster's workers are built in")
