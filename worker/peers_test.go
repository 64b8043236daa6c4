package worker

import (
	"context"
	"errors"
	"hash/crc32"
	"log/slog"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/kvcache/tier"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

// fakePeer is a worker that answers fetches as a test wants.
type fakePeer struct {
	pb.UnimplementedWorkerServer
	answer func(*pb.FetchBlocksRequest, grpc.ServerStreamingServer[pb.FetchBlocksResponse]) error
}

func (l *fakePeer) FetchBlocks(in *pb.FetchBlocksRequest, s grpc.ServerStreamingServer[pb.FetchBlocksResponse]) error {
	return l.answer(in, s)
}

func newPeer(t testing.TB, answer func(*pb.FetchBlocksRequest, grpc.ServerStreamingServer[pb.FetchBlocksResponse]) error) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterWorkerServer(server, &fakePeer{answer: answer})
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener)
	}()
	t.Cleanup(func() { server.Stop(); <-done })
	return listener.Addr().String()
}

var errStopped = errors.New("stopped in the middle")

// TestFetch: whatever another worker answers, only pages that came whole are taken for it, and a fetch ends
// in its time.
func TestFetch(t *testing.T) {
	const pageBytes = 3*pieceBytes + 17
	layout := tier.Layout{5}
	page := func(h byte) []byte { return slices.Repeat([]byte{h}, pageBytes) }
	piece := func(block int32, p []byte) *pb.FetchBlocksResponse {
		return &pb.FetchBlocksResponse{Block: block, Piece: p, Checksum: crc32.Checksum(page(byte(block)+1), castagnoli)}
	}
	type stream = grpc.ServerStreamingServer[pb.FetchBlocksResponse]
	for name, c := range map[string]struct {
		answer func(in *pb.FetchBlocksRequest, s stream) error
		whole  string // a digit a page
		failed bool
	}{
		"all of it": {func(_ *pb.FetchBlocksRequest, s stream) error {
			return errors.Join(sendPage(s, 0, page(1)), sendPage(s, 1, page(2)), sendPage(s, 2, page(3)))
		}, "111", false},
		"a part": {func(_ *pb.FetchBlocksRequest, s stream) error {
			return errors.Join(sendPage(s, 0, page(1)), sendPage(s, 2, page(3)))
		}, "101", false},
		"nothing": {func(*pb.FetchBlocksRequest, stream) error { return nil }, "000", false},
		"another layout": {func(*pb.FetchBlocksRequest, stream) error {
			return status.Error(codes.FailedPrecondition, "layout")
		}, "000", true},
		"dies in a page": {func(_ *pb.FetchBlocksRequest, s stream) error {
			return errors.Join(sendPage(s, 0, page(1)), s.Send(piece(1, page(2)[:pieceBytes])), errStopped)
		}, "100", true},
		"ends in a page": {func(_ *pb.FetchBlocksRequest, s stream) error {
			return errors.Join(sendPage(s, 0, page(1)), s.Send(piece(1, page(2)[:pieceBytes])))
		}, "100", true},
		"a damaged page": {func(_ *pb.FetchBlocksRequest, s stream) error {
			damaged := page(2)
			damaged[pageBytes/2] ^= 4
			for at := 0; at < pageBytes; at += pieceBytes {
				if err := s.Send(piece(1, damaged[at:min(at+pieceBytes, pageBytes)])); err != nil {
					return err
				}
			}
			return sendPage(s, 2, page(3))
		}, "000", true},
		"a page too long": {func(_ *pb.FetchBlocksRequest, s stream) error {
			return sendPage(s, 0, append(page(1), 1))
		}, "000", true},
		"pages in another order": {func(_ *pb.FetchBlocksRequest, s stream) error {
			return errors.Join(sendPage(s, 1, page(2)), sendPage(s, 0, page(1)))
		}, "010", true},
		"a page that nobody wanted": {func(_ *pb.FetchBlocksRequest, s stream) error { return sendPage(s, 3, page(4)) }, "000", true},
		"a page without an end": {func(_ *pb.FetchBlocksRequest, s stream) error {
			return errors.Join(s.Send(piece(0, nil)), sendPage(s, 1, page(2)))
		}, "000", true},
		"silence after a page": {func(_ *pb.FetchBlocksRequest, s stream) error {
			if err := sendPage(s, 0, page(1)); err != nil {
				return err
			}
			<-s.Context().Done()
			return s.Context().Err()
		}, "100", true},
	} {
		t.Run(name, func(t *testing.T) {
			address := newPeer(t, func(in *pb.FetchBlocksRequest, s stream) error {
				if in.RequestId != "a" || string(in.Layout) != string(layout[:]) || len(in.Hashes) != 48 || in.Hashes[16] != 2 {
					return status.Errorf(codes.InvalidArgument, "asked for %v", in)
				}
				return c.answer(in, s)
			})
			p := newPeers(layout, pageBytes, nil, slog.New(slog.DiscardHandler))
			defer p.close()
			f := engine.Fetch{Source: address, RequestID: "a", Hashes: []kvcache.Hash{{1}, {2}, {3}}, Within: time.Second}
			for range f.Hashes {
				f.Pages = append(f.Pages, make([]byte, pageBytes))
			}
			ended := make(chan []bool, 1)
			p.Fetch(f, func(whole []bool) { ended <- whole })
			got := ""
			for i, w := range next(t, ended, "end of the fetch") {
				got += map[bool]string{false: "0", true: "1"}[w]
				if w && !slices.Equal(f.Pages[i], page(byte(i)+1)) {
					t.Errorf("page %d is not what was sent", i)
				}
			}
			if got != c.whole || (p.failed.Load() == 1) != c.failed {
				t.Errorf("came %s, want %s; %d fetches failed", got, c.whole, p.failed.Load())
			}
		})
	}
}

// TestFetchFromNobody: a port that refuses is known at once, and what is under way ends with the worker.
func TestFetchFromNobody(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := listener.Addr().String()
	_ = listener.Close()
	p := newPeers(tier.Layout{}, 16, nil, slog.New(slog.DiscardHandler))
	ended := make(chan []bool, 1)
	f := engine.Fetch{Source: nobody, RequestID: "a", Hashes: []kvcache.Hash{{1}}, Pages: [][]byte{make([]byte, 16)}}
	began := time.Now()
	p.Fetch(f, func(whole []bool) { ended <- whole })
	if whole := next(t, ended, "end of the fetch"); whole[0] || time.Since(began) > fetchTimeout/2 {
		t.Errorf("%v after %v", whole, time.Since(began))
	}
	reached := make(chan struct{})
	f.Source = newPeer(t, func(_ *pb.FetchBlocksRequest, s grpc.ServerStreamingServer[pb.FetchBlocksResponse]) error {
		close(reached)
		<-s.Context().Done()
		return s.Context().Err()
	})
	p.Fetch(f, func(whole []bool) { ended <- whole })
	next(t, reached, "fetch")
	p.close()
	if whole := <-ended; whole[0] || p.failed.Load() != 2 {
		t.Errorf("%v, %d fetches failed", whole, p.failed.Load())
	}
}

// startBlockServer is start with an engine whose blocks can be fetched.
func startBlockServer(t *testing.T, s Settings, layout tier.Layout, control string) *node {
	t.Helper()
	s.ID, s.Control, s.Logger = "w1", []string{control}, slog.New(slog.DiscardHandler)
	s.Engine = engine.Settings{Blocks: 64, MaxSequences: 8, MaxBatchTokens: 64, PrefixCache: true}.WithDefaults()
	cache, err := tier.New(tier.Settings{PageBytes: 64, Pages: 64})
	if err != nil {
		t.Fatal(err)
	}
	g := newGate()
	runner := enginetest.NewRunner(enginetest.Config{Pages: 64, BlockTokens: 16, Vocab: 100, Limits: s.Engine.Limits(), Gate: g.wait})
	peers := newPeers(layout, 64, nil, s.Logger)
	w, err := assemble(s, engine.Model{
		Runner: runner, ContextLength: 512, Vocab: 100,
		Tiers: &engine.Tiers{Cache: cache, Transit: true, Pages: runner.Pages(), Peers: peers},
	}, &pb.WorkerInfo{Model: "fake"})
	if err != nil {
		t.Fatal(err)
	}
	w.blockServer, w.peers = newBlockServer(layout, 64), peers
	ctx, cancel := context.WithCancel(context.Background())
	n := &node{Worker: w, cancel: cancel, ended: make(chan error, 1), gate: g, runner: runner}
	done := make(chan struct{})
	go func() {
		defer close(done)
		n.ended <- w.Run(ctx)
	}()
	t.Cleanup(func() { g.let(-1); cancel(); <-done })
	return n
}

// handsOver lets steps pass until the worker, which is to drain, has handed a request over. Few at a time,
// so that none comes to its end before the worker knows.
func handsOver(t *testing.T, w *node, s *leaderSession) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.After(patience); ; {
		select {
		case f := <-s.finished:
			if !f.Returned {
				t.Fatalf("report is %v", f)
			}
			return
		case <-tick.C:
			if w.Stats().Draining {
				w.gate.let(1)
			}
		case <-end:
			t.Fatalf("no report in %v", patience)
		}
	}
}

// fetchFrom is what a worker answers to a fetch.
func fetchFrom(t *testing.T, w *node, in *pb.FetchBlocksRequest) (blocks []int32, err error) {
	t.Helper()
	conn, err := grpc.NewClient(w.Address(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	stream, err := pb.NewWorkerClient(conn).FetchBlocks(t.Context(), in)
	if err != nil {
		return nil, err
	}
	for {
		m, err := stream.Recv()
		if err != nil {
			return blocks, err
		}
		blocks = append(blocks, m.Block)
	}
}

// TestServesBlocks: a worker serves nothing while it computes and nothing of another layout; once it has handed
// over it stays until each request was asked for, or its time is over.
func TestServesBlocks(t *testing.T) {
	layout := tier.Layout{9}
	l := newLeader(t, 1)
	w := startBlockServer(t, Settings{DrainTimeout: time.Hour, HandOverTimeout: time.Hour}, layout, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	a, b := random("a", 40, 300), random("b", 50, 300)
	s.dispatch(t, 1, 1, a, b)
	for first := map[string]bool{}; len(first) < 2; {
		w.gate.let(1)
		first[next(t, g.events, "event").RequestId] = true
	}
	hashes := kvcache.Hashes(nil, kvcache.Root(nil, nil), a.Prompt, 16)
	of := func(id string, layout tier.Layout, hashes ...kvcache.Hash) *pb.FetchBlocksRequest {
		in := &pb.FetchBlocksRequest{RequestId: id, Layout: layout[:]}
		for _, h := range hashes {
			in.Hashes = append(in.Hashes, h[:]...)
		}
		return in
	}
	refused := func(in *pb.FetchBlocksRequest, code codes.Code, why string) {
		t.Helper()
		if blocks, err := fetchFrom(t, w, in); len(blocks) > 0 || status.Code(err) != code || !strings.Contains(err.Error(), why) {
			t.Errorf("sent %v, %v; want %v: %s", blocks, err, code, why)
		}
	}
	refused(of("a", layout, hashes...), codes.FailedPrecondition, "has handed nothing over")
	if err := s.stream.Send(&pb.WorkResponse{Message: &pb.WorkResponse_Drain{Drain: &pb.Drain{HandOver: true}}}); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		handsOver(t, w, s)
	}
	refused(of("other", tier.Layout{8}, hashes...), codes.FailedPrecondition, "this worker's is 0900")
	refused(&pb.FetchBlocksRequest{RequestId: "other", Layout: layout[:], Hashes: make([]byte, 17)}, codes.InvalidArgument, "17 bytes")
	asked := append(slices.Clone(hashes), kvcache.Hash{1})
	slices.Reverse(asked)
	if blocks, err := fetchFrom(t, w, of("a", layout, asked...)); err.Error() != "EOF" || !slices.Equal(blocks, []int32{1, 2}) {
		t.Errorf("sent %v, %v; want both blocks of the prompt and not the unknown one", blocks, err)
	}
	// A request that it never had, and one that was asked for before, end nothing.
	for _, id := range []string{"other", "a"} {
		if _, err := fetchFrom(t, w, of(id, layout)); err.Error() != "EOF" {
			t.Error(err)
		}
	}
	select {
	case err := <-w.ended:
		t.Fatalf("it ended before it was asked for the other request: %v", err)
	default:
	}
	if !w.Stats().InSession {
		t.Error("it left the leader while it serves blocks")
	}
	if _, err := fetchFrom(t, w, of("b", layout)); err.Error() != "EOF" {
		t.Error(err)
	}
	if err := next(t, w.ended, "end of Run"); err != nil {
		t.Error(err)
	}
}

// TestRefusedFetchEndsServing: a worker that cannot use the blocks of a request, because its pages mean
// something else, is the one that has the request now: nobody is waited for any more.
func TestRefusedFetchEndsServing(t *testing.T) {
	layout := tier.Layout{9}
	l := newLeader(t, 1)
	w := startBlockServer(t, Settings{DrainTimeout: time.Hour, HandOverTimeout: time.Hour}, layout, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	a := random("a", 40, 300)
	s.dispatch(t, 1, 1, a)
	w.gate.let(1)
	next(t, g.events, "event")
	if err := s.stream.Send(&pb.WorkResponse{Message: &pb.WorkResponse_Drain{Drain: &pb.Drain{HandOver: true}}}); err != nil {
		t.Fatal(err)
	}
	handsOver(t, w, s)
	other := tier.Layout{8}
	if _, err := fetchFrom(t, w, &pb.FetchBlocksRequest{RequestId: "a", Layout: other[:]}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("another layout: %v", err)
	}
	if err := next(t, w.ended, "end of Run"); err != nil {
		t.Error(err)
	}
}

// TestServesBlocksForAWhile: a worker that nobody asks ends all the same.
func TestServesBlocksForAWhile(t *testing.T) {
	layout := tier.Layout{9}
	l := newLeader(t, 1)
	w := startBlockServer(t, Settings{DrainTimeout: -1, HandOverTimeout: 50 * time.Millisecond}, layout, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	s.dispatch(t, 1, 1, random("a", 40, 400))
	w.gate.let(2)
	next(t, g.events, "event")
	w.cancel()
	handsOver(t, w, s)
	if err := next(t, w.ended, "end of Run"); err != nil {
		t.Error(err)
	}
}

// BenchmarkFetch measures what a fetch over the loopback brings in a second: 94 pages of SmolLM2, the KV
// cache of 1,504 tokens.
func BenchmarkFetch(b *testing.B) {
	const pages, pageBytes = 94, 368640
	page := make([]byte, pageBytes)
	address := newPeer(b, func(in *pb.FetchBlocksRequest, s grpc.ServerStreamingServer[pb.FetchBlocksResponse]) error {
		for i := range int32(len(in.Hashes) / 16) {
			if err := sendPage(s, i, page); err != nil {
				return err
			}
		}
		return nil
	})
	p := newPeers(tier.Layout{}, pageBytes, nil, slog.New(slog.DiscardHandler))
	defer p.close()
	f := engine.Fetch{Source: address, RequestID: "a", Hashes: make([]kvcache.Hash, pages)}
	for range pages {
		f.Pages = append(f.Pages, make([]byte, pageBytes))
	}
	b.SetBytes(pages * pageBytes)
	for b.Loop() {
		ended := make(chan []bool)
		p.Fetch(f, func(whole []bool) { ended <- whole })
		if whole := <-ended; !whole[pages-1] {
			b.Fatal("not all came")
		}
	}
}
