package worker

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/quire-serve/quire/device"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/worker/engine"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

const patience = 20 * time.Second

// leader is a control-plane node as a worker sees it.
type leader struct {
	pb.UnimplementedControlServer
	address  string
	server   *grpc.Server
	sessions chan *leaderSession
	redirect string // names another leader instead of welcoming

	answers bool // whether heartbeats are answered; once, then it falls silent

	mu   sync.Mutex
	term uint64
	away bool // refuses sessions
}

type leaderSession struct {
	hello    *pb.Hello
	progress chan *pb.RequestProgress
	cache    chan *pb.CacheEvent
	stream   grpc.BidiStreamingServer[pb.WorkRequest, pb.WorkResponse]
	finished chan *pb.FinishedRequest
	beats    chan *pb.Heartbeat
	end      chan error // ends the session with this status
}

func newLeader(t *testing.T, term uint64) *leader {
	l := &leader{sessions: make(chan *leaderSession, 16), term: term}
	lis, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	l.address = lis.Addr().String()
	l.server = grpc.NewServer()
	pb.RegisterControlServer(l.server, l)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = l.server.Serve(lis)
	}()
	t.Cleanup(func() { l.server.Stop(); <-done })
	return l
}

func (l *leader) Work(stream grpc.BidiStreamingServer[pb.WorkRequest, pb.WorkResponse]) error {
	if l.redirect != "" {
		stream.SetTrailer(metadata.Pairs(transport.LeaderTrailer, l.redirect))
		return status.Error(codes.FailedPrecondition, "not the leader")
	}
	m, err := stream.Recv()
	if err != nil {
		return err
	}
	s := &leaderSession{
		hello: m.GetHello(), stream: stream, finished: make(chan *pb.FinishedRequest, 1024), progress: make(chan *pb.RequestProgress, 4096), cache: make(chan *pb.CacheEvent, 4096), beats: make(chan *pb.Heartbeat, 1024),
		end: make(chan error, 1),
	}
	l.mu.Lock()
	term, away := l.term, l.away
	l.mu.Unlock()
	if away {
		return status.Error(codes.Unavailable, "no quorum")
	}
	if err := stream.Send(&pb.WorkResponse{Message: &pb.WorkResponse_Welcome{Welcome: &pb.Welcome{Term: term, HeartbeatIntervalMs: 20, CheckpointIntervalMs: 5}}}); err != nil {
		return err
	}
	if l.answers {
		if err := stream.Send(&pb.WorkResponse{Message: &pb.WorkResponse_Heard{Heard: &pb.Heard{Sequence: 1}}}); err != nil {
			return err
		}
	}
	l.sessions <- s
	got := make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				got <- err
				return
			}
			for _, e := range m.GetCacheEvents().GetEvents() {
				s.cache <- e
			}
			for _, p := range m.GetProgress().GetRequests() {
				s.progress <- p
			}
			for _, f := range m.GetFinished().GetRequests() {
				s.finished <- f
			}
			if b := m.GetHeartbeat(); b != nil {
				select {
				case s.beats <- b:
				default:
				}
			}
		}
	}()
	select {
	case err := <-s.end:
		return err
	case err := <-got:
		if errors.Is(err, io.EOF) {
			return nil
		}
		return err
	}
}

func (s *leaderSession) dispatch(t *testing.T, term, index uint64, reqs ...*pb.Request) {
	t.Helper()
	if err := s.stream.Send(&pb.WorkResponse{Message: &pb.WorkResponse_Dispatch{Dispatch: &pb.Dispatch{Term: term, Index: index, Requests: reqs}}}); err != nil {
		t.Fatal(err)
	}
}

func (s *leaderSession) revoke(t *testing.T, term uint64, ids ...string) {
	t.Helper()
	if err := s.stream.Send(&pb.WorkResponse{Message: &pb.WorkResponse_Revoke{Revoke: &pb.Revoke{Term: term, RequestIds: ids}}}); err != nil {
		t.Fatal(err)
	}
}

// next waits for a value.
func next[T any](t *testing.T, c <-chan T, what string) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(patience):
		t.Fatalf("no %s in %v", what, patience)
		panic("unreachable")
	}
}

// node is a worker under test.
type node struct {
	*Worker
	cancel context.CancelFunc
	ended  chan error
	gate   *gate
	runner *enginetest.Runner
}

// gate lets steps through one by one, or all.
type gate struct {
	mu     sync.Mutex
	cond   *sync.Cond
	passes int
	open   bool
}

func newGate() *gate {
	g := &gate{}
	g.cond = sync.NewCond(&g.mu)
	return g
}

func (g *gate) wait(int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for !g.open && g.passes == 0 {
		g.cond.Wait()
	}
	if !g.open {
		g.passes--
	}
}

// let lets n steps pass; negative is all from now on.
func (g *gate) let(n int) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n < 0 {
		g.open = true
	} else {
		g.passes += n
	}
	g.cond.Broadcast()
}

func start(t *testing.T, edit func(*Settings), control ...string) *node {
	t.Helper()
	s := Settings{
		ID: "w1", Control: control, Logger: slog.New(slog.DiscardHandler),
		Engine: engine.Settings{Blocks: 64, MaxSequences: 8, MaxBatchTokens: 64, PrefixCache: true},
	}
	if edit != nil {
		edit(&s)
	}
	g := newGate()
	es := s.Engine.WithDefaults()
	runner := enginetest.NewRunner(enginetest.Config{
		Pages: es.Blocks, BlockTokens: es.BlockTokens, Vocab: 100, Limits: es.Limits(), Gate: g.wait,
		Token: func(seen []int32, _ device.Sample) int32 { return nextToken(seen) },
	})
	w, err := assemble(s, engine.Model{Runner: runner, ContextLength: 512, Vocab: 100}, &pb.WorkerInfo{Model: "fake"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n := &node{Worker: w, cancel: cancel, ended: make(chan error, 1), gate: g, runner: runner}
	go func() { n.ended <- w.Run(ctx) }()
	t.Cleanup(func() {
		g.let(-1)
		cancel()
		select {
		case <-n.ended:
		case <-time.After(patience):
			t.Error("Run did not return")
		}
		if err := runner.Err(); err != nil {
			t.Error(err)
		}
	})
	return n
}

func nextToken(seen []int32) int32 { return (seen[len(seen)-1]*7 + int32(len(seen))) % 100 }

// output is what a request with this prompt generates.
func outputOf(prompt []int32, n int) []int32 {
	seen := slices.Clone(prompt)
	for range n {
		seen = append(seen, nextToken(seen))
	}
	return seen[len(prompt):]
}

func ask(id string, n int) *pb.Request {
	return &pb.Request{Id: id, GatewayId: "g1", Prompt: []int32{1, 2, 3, int32(len(id))}, ArrivalMs: 5, Sampling: &pb.SamplingParams{MaxTokens: int32(n)}}
}

// gateway is one Attach stream and all that came over it.
type gateway struct {
	stream grpc.BidiStreamingClient[pb.AttachRequest, pb.AttachResponse]
	cancel context.CancelFunc
	events chan *pb.TokenEvent
	stats  chan *pb.WorkerStats
	ended  chan error
}

func attach(t *testing.T, w *node, resume ...*pb.ResumePoint) *gateway {
	return attachAs(t, w, "g1", resume...)
}

func attachAs(t *testing.T, w *node, id string, resume ...*pb.ResumePoint) *gateway {
	t.Helper()
	conn, err := grpc.NewClient(w.info.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	stream, err := pb.NewWorkerClient(conn).Attach(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := stream.Send(&pb.AttachRequest{Message: &pb.AttachRequest_Hello{Hello: &pb.AttachHello{GatewayId: id, Resume: resume}}}); err != nil {
		t.Fatal(err)
	}
	g := &gateway{stream: stream, cancel: cancel, events: make(chan *pb.TokenEvent, 4096), stats: make(chan *pb.WorkerStats, 4096), ended: make(chan error, 1)}
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				g.ended <- err
				return
			}
			if m.Stats != nil {
				select {
				case g.stats <- m.Stats:
				default:
				}
			}
			for _, e := range m.Events {
				g.events <- e
			}
		}
	}()
	t.Cleanup(func() { cancel(); _ = conn.Close() })
	next(t, g.stats, "first stats") // the session stands
	return g
}

// collect reads events of one request until its end and returns its choices' tokens.
func (g *gateway) collect(t *testing.T, id string) (tokens map[int32][]int32, first map[int32]int32, last *pb.TokenEvent) {
	t.Helper()
	tokens, first = map[int32][]int32{}, map[int32]int32{}
	for {
		e := next(t, g.events, "event of "+id)
		if e.RequestId != id {
			continue
		}
		if _, ok := first[e.Choice]; !ok {
			first[e.Choice] = e.First
		}
		if want := first[e.Choice] + int32(len(tokens[e.Choice])); e.First != want {
			t.Fatalf("%s/%d: event at %d, expected %d", id, e.Choice, e.First, want)
		}
		tokens[e.Choice] = append(tokens[e.Choice], e.TokenIds...)
		if e.RequestDone {
			return tokens, first, e
		}
	}
}

func TestServesADispatch(t *testing.T) {
	l := newLeader(t, 3)
	w := start(t, nil, l.address)
	w.gate.let(-1)
	s := next(t, l.sessions, "session")
	if h := s.hello.Worker; h.Id != "w1" || h.Address != w.info.Address || h.TotalBlocks != 64 || h.ContextLength != 512 || len(s.hello.Running) != 0 {
		t.Errorf("hello is %v", s.hello)
	}
	g := attach(t, w)
	q := ask("a", 20)
	q.Sampling.N = 2
	s.dispatch(t, 3, 7, q)
	tokens, _, last := g.collect(t, "a")
	for c := range int32(2) {
		if want := outputOf(q.Prompt, 20); !slices.Equal(tokens[c], want) {
			t.Errorf("choice %d is %v, want %v", c, tokens[c], want)
		}
	}
	if last.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH || last.Term != 3 || last.Index != 7 {
		t.Errorf("last event is %v", last)
	}
	f := next(t, s.finished, "report")
	if f.RequestId != "a" || f.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH || f.Usage.CompletionTokens != 40 || f.Usage.PromptTokens != 4 || f.Index != 7 || f.Returned {
		t.Errorf("report is %v", f)
	}
	for {
		b := next(t, s.beats, "heartbeat")
		if b.DispatchIndex == 7 && b.Running == 0 && b.FreeBlocks == 64 {
			break
		}
	}
}

// TestGatewayComesBack: a gateway that lost its stream names what it has and gets the rest, of
// requests that run and of those that ended meanwhile.
func TestGatewayComesBack(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	q := ask("a", 30)
	s.dispatch(t, 1, 1, q)
	w.gate.let(12)
	var had []int32
	for len(had) < 5 {
		had = append(had, next(t, g.events, "event").TokenIds...)
	}
	g.cancel()
	w.gate.let(-1)
	next(t, s.finished, "report")
	g = attach(t, w, &pb.ResumePoint{RequestId: "a", Received: []int32{int32(len(had))}})
	tokens, first, _ := g.collect(t, "a")
	if int(first[0]) != len(had) || !slices.Equal(append(had, tokens[0]...), outputOf(q.Prompt, 30)) {
		t.Errorf("had %v, then from %d on %v, want %v", had, first[0], tokens[0], outputOf(q.Prompt, 30))
	}
	// What it does not ask for any more is not sent again.
	g.cancel()
	g = attach(t, w)
	s.dispatch(t, 1, 2, ask("bb", 1))
	if e := next(t, g.events, "event"); e.RequestId != "bb" {
		t.Errorf("got %v of a request that the gateway is done with", e)
	}
}

// TestAbsentGatewayDelaysNobody: output waits for a gateway that attaches late.
func TestAbsentGatewayDelaysNobody(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	w.gate.let(-1)
	s := next(t, l.sessions, "session")
	q := ask("a", 50)
	s.dispatch(t, 1, 1, q)
	next(t, s.finished, "report")
	g := attach(t, w, &pb.ResumePoint{RequestId: "a", Received: []int32{0}})
	if tokens, _, _ := g.collect(t, "a"); !slices.Equal(tokens[0], outputOf(q.Prompt, 50)) {
		t.Errorf("got %v", tokens[0])
	}
}

func TestGatewayAborts(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	other := attachAs(t, w, "g2")
	s.dispatch(t, 1, 1, ask("a", 400))
	w.gate.let(4)
	next(t, g.events, "event")
	abort := func(g *gateway) {
		if err := g.stream.Send(&pb.AttachRequest{Message: &pb.AttachRequest_Abort{Abort: &pb.AbortRequest{RequestId: "a", Reason: "client is gone"}}}); err != nil {
			t.Fatal(err)
		}
	}
	abort(other) // not its request
	// The worker has read the first abort once it answers a later hello of the same gateway; then
	// the request must still run.
	attachAs(t, w, "g2")
	if live := w.engine.Live(); len(live) != 1 {
		t.Errorf("%v live after a stranger's abort", live)
	}
	abort(g)
	for len(s.finished) == 0 {
		w.gate.let(1) // slowly, so that the abort comes before the end
		next(t, s.beats, "heartbeat")
	}
	f := next(t, s.finished, "report")
	if f.FinishReason != pb.FinishReason_FINISH_REASON_ABORT {
		t.Errorf("report is %v", f)
	}
	if _, _, last := g.collect(t, "a"); last.FinishReason != pb.FinishReason_FINISH_REASON_ABORT || last.Error != "client is gone" {
		t.Errorf("last event is %v", last)
	}
}

// TestOldLeaderIsRefused: a dispatch of an older term does nothing.
func TestOldLeaderIsRefused(t *testing.T) {
	l := newLeader(t, 5)
	w := start(t, nil, l.address)
	w.gate.let(-1)
	s := next(t, l.sessions, "session")
	s.dispatch(t, 4, 9, ask("old", 3))
	s.revoke(t, 4, "new")
	s.dispatch(t, 5, 10, ask("new", 3))
	if f := next(t, s.finished, "report"); f.RequestId != "new" || f.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH {
		t.Errorf("report is %v", f)
	}
	// A node whose term is older than one seen is not a leader any more.
	l.mu.Lock()
	l.term = 4
	l.mu.Unlock()
	s.end <- status.Error(codes.Unavailable, "lost")
	s = next(t, l.sessions, "session of an old leader")
	s2 := next(t, l.sessions, "next try")
	if s2.hello.Worker.Id != "w1" || s == s2 {
		t.Errorf("hello is %v", s2.hello)
	}
}

// TestEndsAreReportedOverSessions: a report that a broken session may have lost comes again, and
// Hello names it so that the leader does not restart the request meanwhile.
func TestEndsAreReportedOverSessions(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	w.gate.let(-1)
	s := next(t, l.sessions, "session")
	s.dispatch(t, 1, 1, ask("a", 3))
	next(t, s.finished, "report")
	s.end <- status.Error(codes.Unavailable, "lost")
	s = next(t, l.sessions, "second session")
	if !slices.Equal(s.hello.Running, []string{"a"}) {
		t.Errorf("hello names %v", s.hello.Running)
	}
	if f := next(t, s.finished, "report again"); f.RequestId != "a" || f.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH {
		t.Errorf("report is %v", f)
	}
}

// TestRunsNothingTwice: dispatched again while it runs, a request goes on under the new dispatch;
// after it ended, its end is reported and its output sent again.
func TestRunsNothingTwice(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	q := ask("a", 10)
	s.dispatch(t, 1, 1, q)
	w.gate.let(3)
	next(t, g.events, "event")
	s.end <- status.Error(codes.Unavailable, "lost")
	l.mu.Lock()
	l.term = 2
	l.mu.Unlock()
	s = next(t, l.sessions, "second session")
	if !slices.Equal(s.hello.Running, []string{"a"}) {
		t.Errorf("hello names %v", s.hello.Running)
	}
	s.dispatch(t, 2, 5, q)
	for next(t, s.beats, "heartbeat").DispatchIndex != 5 {
	}
	w.gate.let(-1)
	if f := next(t, s.finished, "report"); f.Term != 2 || f.Index != 5 || f.Usage.CompletionTokens != 10 {
		t.Errorf("report is %v", f)
	}
	s.dispatch(t, 2, 6, q)
	if f := next(t, s.finished, "second report"); f.Index != 6 || f.Usage.CompletionTokens != 10 {
		t.Errorf("report is %v", f)
	}
	var sent []int32
	for done := false; !done; {
		if e := next(t, g.events, "event of the last dispatch"); e.Index == 6 {
			sent, done = append(sent[:e.First], e.TokenIds...), e.RequestDone
		}
	}
	if !slices.Equal(sent, outputOf(q.Prompt, 10)) {
		t.Errorf("the last dispatch sent %v", sent)
	}
	if got := w.Stats().GeneratedTokens; got != 10 {
		t.Errorf("%d tokens generated, want 10", got)
	}
}

// TestRevokedIsSilent: the leader takes a request back; the gateway hears nothing of its end, and the
// leader gets it back.
func TestRevokedIsSilent(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	s.dispatch(t, 1, 1, ask("a", 400), ask("bb", 5))
	w.gate.let(3)
	next(t, g.events, "event")
	s.revoke(t, 1, "a")
	for {
		next(t, s.beats, "heartbeat") // one follows each message from the leader
		w.outbox.mu.Lock()
		revoked := w.outbox.outputs["a"].revoked
		w.outbox.mu.Unlock()
		if revoked && len(s.beats) == 0 {
			break
		}
	}
	next(t, s.beats, "heartbeat after the revocation")
	w.gate.let(16) // far fewer steps than the request would take: it ends at once
	for {
		if f := next(t, s.finished, "report"); f.RequestId == "a" {
			if !f.Returned || f.FinishReason != 0 || f.Index != 1 {
				t.Errorf("report is %v", f)
			}
			break
		}
	}
	for {
		e := next(t, g.events, "event")
		if e.RequestId == "a" && e.FinishReason != 0 {
			t.Errorf("the gateway heard %v", e)
		}
		if e.RequestId == "bb" && e.RequestDone {
			break
		}
	}
}

func TestRefusedDispatchIsReported(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	q := ask("a", 3)
	q.Prompt = make([]int32, 600)
	s.dispatch(t, 1, 1, q)
	f := next(t, s.finished, "report")
	want := "engine: request can never fit: prompt has 600 tokens, a sequence may hold 512 with at least one generated"
	if f.FinishReason != pb.FinishReason_FINISH_REASON_ERROR || f.Error != want {
		t.Errorf("report is %v", f)
	}
	if _, _, last := g.collect(t, "a"); last.Error != want || last.FinishReason != pb.FinishReason_FINISH_REASON_ERROR {
		t.Errorf("last event is %v", last)
	}
}

// TestDrains: when Run's context ends, what runs is finished, what comes is given back, and the
// streams hear everything before they end.
func TestDrains(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	q := ask("a", 25)
	s.dispatch(t, 1, 1, q)
	w.gate.let(3)
	had := len(next(t, g.events, "event").TokenIds)
	w.cancel()
	for !next(t, s.beats, "heartbeat").Draining {
	}
	s.dispatch(t, 1, 2, ask("late", 3))
	if f := next(t, s.finished, "report"); f.RequestId != "late" || !f.Returned || f.FinishReason != 0 || f.Index != 2 {
		t.Errorf("report is %v", f)
	}
	w.gate.let(-1)
	if f := next(t, s.finished, "report"); f.RequestId != "a" || f.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH {
		t.Errorf("report is %v", f)
	}
	if tokens, _, _ := g.collect(t, "a"); !slices.Equal(tokens[0], outputOf(q.Prompt, 25)[had:]) {
		t.Errorf("got %v after the first %d", tokens[0], had)
	}
	if err := next(t, g.ended, "end of the stream"); status.Code(err) != codes.Unavailable {
		t.Errorf("the gateway's stream ended with %v", err)
	}
	if err := next(t, w.ended, "end of Run"); err != nil {
		t.Error(err)
	}
	w.ended <- nil // for the cleanup
}

// TestDrainIsBounded: what does not end in time is given back, for other workers to take.
func TestDrainIsBounded(t *testing.T) {
	l := newLeader(t, 1)
	late := &awaited{message: "not everything ended in time", seen: make(chan struct{})}
	w := start(t, func(s *Settings) {
		s.DrainTimeout = 10 * time.Millisecond
		s.Logger = slog.New(late)
	}, l.address)
	s := next(t, l.sessions, "session")
	s.dispatch(t, 1, 1, ask("a", 400))
	for next(t, s.beats, "heartbeat").DispatchIndex != 1 {
	}
	w.cancel()
	next(t, late.seen, "end of patience")
	w.gate.let(-1) // the steps in flight have to end; the hundreds behind them have not
	if err := next(t, w.ended, "end of Run"); err != nil {
		t.Error(err)
	}
	if f := next(t, s.finished, "report"); f.RequestId != "a" || !f.Returned || f.FinishReason != 0 {
		t.Errorf("report is %v", f)
	}
	w.ended <- nil
}

// awaited is a log handler that waits for one message.
type awaited struct {
	message string
	seen    chan struct{}
	once    sync.Once
}

func (a *awaited) Enabled(context.Context, slog.Level) bool { return true }
func (a *awaited) WithAttrs([]slog.Attr) slog.Handler       { return a }
func (a *awaited) WithGroup(string) slog.Handler            { return a }
func (a *awaited) Handle(_ context.Context, r slog.Record) error {
	if r.Message == a.message {
		a.once.Do(func() { close(a.seen) })
	}
	return nil
}

// TestDeviceGone: a worker whose device fails for good gives its requests back and ends.
func TestDeviceGone(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	s.dispatch(t, 1, 4, ask("a", 400))
	w.gate.let(3)
	next(t, g.events, "event")
	_ = w.runner.Close()
	w.gate.let(-1)
	if f := next(t, s.finished, "report"); f.RequestId != "a" || !f.Returned || f.Index != 4 {
		t.Errorf("report is %v", f)
	}
	if err := next(t, w.ended, "end of Run"); err == nil {
		t.Error("Run ended without an error")
	}
	next(t, g.ended, "end of the stream")
	for len(g.events) > 0 {
		if e := <-g.events; e.FinishReason != 0 {
			t.Errorf("the gateway heard %v", e)
		}
	}
	w.ended <- nil
}

// TestDrainEndsWithTheEngine: a drain does not outlive an engine whose device fails: what runs is given back
// at once.
func TestDrainEndsWithTheEngine(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, func(s *Settings) { s.DrainTimeout, s.HandOverTimeout = time.Hour, time.Hour }, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	s.dispatch(t, 1, 4, ask("a", 400))
	w.gate.let(3)
	next(t, g.events, "event")
	w.cancel()
	for !next(t, s.beats, "heartbeat").Draining {
	}
	_ = w.runner.Close()
	w.gate.let(-1)
	if f := next(t, s.finished, "report"); f.RequestId != "a" || !f.Returned || f.Index != 4 {
		t.Errorf("report is %v", f)
	}
	if err := next(t, w.ended, "end of Run"); err == nil {
		t.Error("Run ended without an error")
	}
	w.ended <- nil
}

// TestFollowsTheLeader: a follower names the leader, and the worker goes there.
func TestFollowsTheLeader(t *testing.T) {
	l := newLeader(t, 1)
	follower := newLeader(t, 1)
	follower.redirect = l.address
	start(t, nil, follower.address)
	next(t, l.sessions, "session with the leader")
}

// TestSecondAttachTakesOver: a gateway has one stream.
func TestSecondAttachTakesOver(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	w.gate.let(-1)
	s := next(t, l.sessions, "session")
	old := attach(t, w)
	g := attach(t, w)
	if err := next(t, old.ended, "end of the first stream"); status.Code(err) != codes.Aborted {
		t.Errorf("the first stream ended with %v", err)
	}
	s.dispatch(t, 1, 1, ask("a", 3))
	g.collect(t, "a")
}

func TestHealth(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, nil, l.address)
	next(t, l.sessions, "session")
	conn, err := grpc.NewClient(w.info.Address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	for _, service := range []string{"", "quire.v1.Worker"} {
		r, err := healthpb.NewHealthClient(conn).Check(ctx, &healthpb.HealthCheckRequest{Service: service}, grpc.WaitForReady(true))
		if err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
			t.Errorf("health of %q is %v, %v", service, r, err)
		}
	}
	if _, err := pb.NewWorkerClient(conn).Attach(ctx); err != nil {
		t.Fatal(err)
	}
}

func TestSettingsAreChecked(t *testing.T) {
	ok := Settings{ID: "w", Control: []string{"x:1"}}.withDefaults()
	for want, edit := range map[string]func(*Settings){
		"worker: id has 0 bytes, must have 1 to 128":                          func(s *Settings) { s.ID = "" },
		"worker: control names no control-plane node":                         func(s *Settings) { s.Control = nil },
		"worker: kv_bytes is -1, must not be negative":                        func(s *Settings) { s.KVBytes = -1 },
		"worker: outbox_bytes is 5, must be at least 1048576":                 func(s *Settings) { s.OutboxBytes = 5 },
		"worker: outbox_requests is -2, must be at least 1":                   func(s *Settings) { s.OutboxRequests = -2 },
		"worker: tenant_kv is map[a:2], shares must be above 0 and at most 1": func(s *Settings) { s.TenantKV = map[string]float64{"a": 2} },
		"worker: keep_ended is -1s, must not be negative":                     func(s *Settings) { s.KeepEnded = -time.Second },
		"worker: kv_type is Q4_0, must be F32, F16 or I8":                     func(s *Settings) { s.KVType = device.Q4_0 },
	} {
		s := ok
		edit(&s)
		if err := s.validate(); err == nil || err.Error() != want {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	if err := ok.validate(); err != nil {
		t.Error(err)
	}
}

// TestPreemptedGoesBack: a request that the engine preempts and cannot go on with is reported as
// returned, the gateway hears nothing of an end, and it can be dispatched again.
func TestPreemptedGoesBack(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, func(s *Settings) {
		s.Engine.Blocks, s.Engine.ReturnAfter = 4, 1 // a nanosecond
	}, l.address)
	s := next(t, l.sessions, "session")
	g := attach(t, w)
	first, second := ask("a", 56), ask("bb", 50)
	second.ArrivalMs++
	s.dispatch(t, 1, 1, first, second)
	w.gate.let(-1)
	var returned, ended bool
	for !returned || !ended {
		switch f := next(t, s.finished, "report"); {
		case f.RequestId == "bb" && f.Returned && f.FinishReason == 0 && f.Index == 1 && !returned:
			returned = true
		case f.RequestId == "a" && f.FinishReason == pb.FinishReason_FINISH_REASON_LENGTH && !ended:
			ended = true
		default:
			t.Fatalf("report is %v", f)
		}
	}
	s.dispatch(t, 1, 2, second)
	if f := next(t, s.finished, "report"); f.RequestId != "bb" || f.Returned || f.Index != 2 || f.Usage.GetCompletionTokens() != 50 {
		t.Errorf("report is %v", f)
	}
	var got []int32
	for done := false; !done; {
		e := next(t, g.events, "event")
		if e.RequestId != "bb" {
			continue
		}
		if e.FinishReason == pb.FinishReason_FINISH_REASON_ABORT {
			t.Fatalf("the gateway heard %v", e)
		}
		got = append(got[:e.First], e.TokenIds...)
		done = e.RequestDone
	}
	if want := outputOf(second.Prompt, 50); !slices.Equal(got, want) {
		t.Errorf("tokens are %v, want %v", got, want)
	}
	if n := w.Stats().Returned; n != 1 {
		t.Errorf("%d returned, want 1", n)
	}
}
