package worker

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/store/storetest"
	"github.com/quire-serve/quire/model/tiny"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine"
)

// host is a device with a model, for several workers.
type host struct {
	dev   *cpu.Device
	model *model.Model
}

func newHost(t *testing.T, open func() (*model.Spec, error)) host {
	t.Helper()
	return newHostOn(t, cpu.Paths()[0], open)
}

// newHostOn is newHost with kernels of the path given.
func newHostOn(t *testing.T, path string, open func() (*model.Spec, error)) host {
	t.Helper()
	dev, err := cpu.Open(cpu.Options{Threads: 2, Path: path})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = dev.Close() })
	spec, err := open()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = spec.Close() })
	m, err := spec.Load(dev, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return host{dev, m}
}

// real is a worker with a real model, in session with a leader of its own, and a gateway.
type real struct {
	*Worker
	leader  *leaderSession
	gateway *gateway
	ended   chan error
}

func (h host) start(t *testing.T, id string, s Settings) *real {
	t.Helper()
	l := newLeader(t, 1)
	s.ID, s.Control, s.Logger = id, []string{l.address}, slog.New(slog.DiscardHandler)
	s.Engine.PrefixCache = true
	w, err := New(s, h.dev, h.model)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &real{Worker: w, ended: make(chan error, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.ended <- w.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-done })
	r.leader = next(t, l.sessions, "session")
	r.gateway = attach(t, &node{Worker: w})
	return r
}

// handOver drains a worker once its request has so many tokens, and returns the request as the leader
// would dispatch it to the next.
func (r *real) handOver(t *testing.T, q *pb.Request, tokens int) *pb.Request {
	t.Helper()
	r.leader.dispatch(t, 1, 1, q)
	for heard := 0; heard < tokens; {
		heard += len(next(t, r.gateway.events, "event").TokenIds)
	}
	drain := &pb.WorkResponse{Message: &pb.WorkResponse_Drain{Drain: &pb.Drain{HandOver: true}}}
	if err := r.leader.stream.Send(drain); err != nil {
		t.Fatal(err)
	}
	accounts := map[int32]*account{}
	f := next(t, r.leader.finished, "report")
	if !f.Returned {
		t.Fatalf("report is %v: the request is too short for this test", f)
	}
	for len(r.leader.progress) > 0 {
		learn(t, accounts, (<-r.leader.progress).Choices)
	}
	learn(t, accounts, f.Choices)
	onward := &pb.Request{Id: q.Id, GatewayId: q.GatewayId, Prompt: q.Prompt, ArrivalMs: q.ArrivalMs, Sampling: q.Sampling, KvSource: r.Address()}
	for c := range max(1, q.Sampling.N) {
		onward.Generated = append(onward.Generated, &pb.TokenIds{Ids: accounts[c].tokens})
	}
	return onward
}

// goOn runs a request to its end and returns all the tokens of its choices.
func (r *real) goOn(t *testing.T, index uint64, q *pb.Request) map[int32][]int32 {
	t.Helper()
	r.leader.dispatch(t, 1, index, q)
	tokens, first, _ := r.gateway.collect(t, q.Id)
	for c := range tokens {
		if int(c) < len(q.Generated) {
			tokens[c] = append(slices.Clone(q.Generated[c].Ids[:first[c]]), tokens[c]...)
		}
	}
	return tokens
}

// computed is how many tokens of what was known of its request, which has ended, a worker computed.
func (r *real) computed() int64 {
	s := r.Stats()
	return s.StepTokens - (s.GeneratedTokens - 1) // the last token is not computed
}

// TestKVCacheMovesWithARequest: a request that a draining worker hands over brings its KV cache along: the
// next worker computes less than a block of it again, generates what would have come, and the first ends
// as soon as nobody needs it any more.
func TestKVCacheMovesWithARequest(t *testing.T) {
	for name, c := range map[string]struct {
		open           func() (*model.Spec, error)
		prompt, tokens int
		choices        int32
		settings       Settings
	}{
		"tiny":                   {openTiny, 300, 150, 1, Settings{costs: &engine.Costs{}}},
		"tiny, three choices":    {openTiny, 300, 150, 3, Settings{costs: &engine.Costs{}}},
		"tiny, with host memory": {openTiny, 300, 150, 1, Settings{costs: &engine.Costs{}, HostKVBytes: 16 << 20}},
		"SmolLM2":                {func() (*model.Spec, error) { return model.Open(storetest.SmolLM2(t)) }, 700, 100, 1, Settings{}},
	} {
		t.Run(name, func(t *testing.T) {
			h := newHost(t, c.open)
			c.settings.HandOverTimeout = time.Hour // it ends by itself
			q := random("a", c.prompt, c.tokens)
			q.Sampling.N = c.choices
			calm := h.start(t, "calm", c.settings)
			want := calm.goOn(t, 1, q)

			first, second := h.start(t, "first", c.settings), h.start(t, "second", c.settings)
			onward := first.handOver(t, q, 20)
			got := second.goOn(t, 1, onward)
			for c := range want {
				if !slices.Equal(got[c], want[c]) {
					t.Errorf("choice %d: %v\nundisturbed %v", c, got[c], want[c])
				}
			}
			if n := second.computed(); n < 1 || n > int64(16*c.choices) {
				t.Errorf("%d known tokens were computed again, want less than a block for each choice", n)
			}
			if s := second.Stats(); s.Tiers.PeerHits < int64(c.prompt/16) || s.Tiers.HostHits != 0 || s.FailedFetches != 0 {
				t.Errorf("stats are %+v", s)
			}
			if err := next(t, first.ended, "end of the first worker"); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestKVCacheMovesBetweenKernels: workers whose kernels give the same bits in the same order take each
// other's pages, whatever instructions compute them.
func TestKVCacheMovesBetweenKernels(t *testing.T) {
	for _, path := range cpu.Paths() {
		t.Run(path, func(t *testing.T) {
			s := Settings{costs: &engine.Costs{}, HandOverTimeout: time.Hour}
			h := newHost(t, openTiny)
			q := random("a", 200, 60)
			want := h.start(t, "calm", s).goOn(t, 1, q)
			first, second := h.start(t, "first", s), newHostOn(t, path, openTiny).start(t, "second", s)
			got := second.goOn(t, 1, first.handOver(t, q, 20))
			if !slices.Equal(got[0], want[0]) {
				t.Errorf("%v\nundisturbed %v", got[0], want[0])
			}
			if n := second.computed(); n > 16 {
				t.Errorf("%d known tokens were computed again, want less than a block", n)
			}
		})
	}
}

// TestLayoutDigest: pages are told apart by all that their bytes depend on, and by nothing else.
func TestLayoutDigest(t *testing.T) {
	info := device.Info{Name: "cuda:0", Description: "one", Path: "sm_90", Arithmetic: "a", PageFormat: "f", Threads: 1, MemoryBytes: 1}
	layout := device.KVLayout{Pages: 1, BlockTokens: 16, Layers: 2, KVHeads: 3, HeadDim: 64, Type: device.F16}
	base := layoutDigest(info, "w", layout)
	alike := func(what string, i device.Info, weights string, l device.KVLayout, want bool) {
		t.Helper()
		if got := layoutDigest(i, weights, l) == base; got != want {
			t.Errorf("another %s: alike is %t", what, got)
		}
	}
	other := device.Info{Name: "cuda:1", Description: "two", Path: "sm_90a", Arithmetic: "a", PageFormat: "f", Threads: 2, MemoryBytes: 2}
	alike("device of the same arithmetic and order", other, "w", layout, true)
	more := layout
	more.Pages = 100
	alike("number of pages", info, "w", more, true)
	exact := info
	exact.Arithmetic = "a, exact float"
	alike("arithmetic", exact, "w", layout, false)
	ordered := info
	ordered.PageFormat = "g"
	alike("order of bytes", ordered, "w", layout, false)
	alike("model", info, "v", layout, false)
	for i, change := range []func(*device.KVLayout){
		func(l *device.KVLayout) { l.BlockTokens = 32 }, func(l *device.KVLayout) { l.Layers = 3 }, func(l *device.KVLayout) { l.KVHeads = 2 },
		func(l *device.KVLayout) { l.HeadDim = 32 }, func(l *device.KVLayout) { l.Type = device.I8 },
	} {
		l := layout
		change(&l)
		alike([]string{"block size", "number of layers", "number of heads", "head size", "type"}[i], info, "w", l, false)
	}
}

// TestGoesOnWithoutTheKVCache: where the KV cache cannot move, the next worker computes it, and generates
// what would have come.
func TestGoesOnWithoutTheKVCache(t *testing.T) {
	h := newHost(t, openTiny)
	s := Settings{costs: &engine.Costs{}, HandOverTimeout: time.Hour}
	q := random("a", 300, 150)
	want := h.start(t, "calm", s).goOn(t, 1, q)
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	type stream = grpc.ServerStreamingServer[pb.FetchBlocksResponse]
	for name, source := range map[string]string{
		"it is gone": gone.Addr().String(),
		"it dies": newPeer(t, func(_ *pb.FetchBlocksRequest, s stream) error {
			return errors.Join(s.Send(&pb.FetchBlocksResponse{Piece: make([]byte, 100)}), errStopped)
		}),
		"it sends something else": newPeer(t, func(_ *pb.FetchBlocksRequest, s stream) error {
			return s.Send(&pb.FetchBlocksResponse{Piece: make([]byte, h.model.Config.KVLayout(1, 16, device.F16).PageBytes()), Checksum: 1})
		}),
		"it serves nothing": h.start(t, "busy", s).Address(),
	} {
		t.Run(name, func(t *testing.T) {
			w := h.start(t, "next", s)
			onward := &pb.Request{Id: q.Id, GatewayId: q.GatewayId, Prompt: q.Prompt, ArrivalMs: q.ArrivalMs, Sampling: q.Sampling, KvSource: source, Generated: []*pb.TokenIds{{Ids: want[0][:40]}}}
			if got := w.goOn(t, 1, onward); !slices.Equal(got[0], want[0]) {
				t.Errorf("%v\nundisturbed %v", got[0], want[0])
			}
			if s := w.Stats(); w.computed() != 340 || s.Tiers.PeerHits != 0 || s.FailedFetches != 1 {
				t.Errorf("%d tokens were computed again, want all 340; stats are %+v", w.computed(), s)
			}
		})
	}
}

func openTiny() (*model.Spec, error) { return model.OpenBytes(tiny.Name, tiny.GGUF()) }

// random is a request with a prompt of n tokens that decides each of its own.
func random(id string, n, tokens int) *pb.Request {
	rng := rand.New(rand.NewPCG(7, uint64(n)))
	p := make([]int32, n)
	for i := range p {
		p[i] = 1 + rng.Int32N(99)
	}
	seed := uint64(3)
	return &pb.Request{Id: id, GatewayId: "g1", Prompt: p, ArrivalMs: 5, Sampling: &pb.SamplingParams{MaxTokens: int32(tokens), IgnoreEos: true, Seed: &seed}}
}
