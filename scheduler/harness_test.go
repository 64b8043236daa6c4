package scheduler

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/raft"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/roster"
	"github.com/quire-serve/quire/scheduler/consensus"
)

var quiet = slog.New(slog.DiscardHandler)

// inMemory keeps a node's log in memory, so that it can run in a synctest bubble.
func inMemory() func(*consensus.Settings) {
	store := raft.NewInmemStore()
	snapshots := raft.NewInmemSnapshotStore()
	return func(s *consensus.Settings) {
		s.Files = &consensus.Files{Logs: store, Stable: store, Snapshots: snapshots}
	}
}

// start opens a node of one and waits until it leads. It is closed with the test.
func start(t testing.TB, settings Settings) *Scheduler {
	t.Helper()
	if settings.NodeID == "" {
		settings.NodeID = "node"
	}
	if settings.DataDir == "" && settings.consensus == nil {
		settings.consensus = inMemory()
	}
	settings.Logger = quiet
	if settings.Dial == nil {
		settings.Dial = silent
	}
	s, err := New(settings)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	until(t, "the node leads", s.Ready)
	return s
}

// silent is a network in which nobody answers.
func silent(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// until waits for a condition, in virtual time where there is a bubble.
func until(t testing.TB, what string, condition func() bool) {
	t.Helper()
	poll := time.NewTicker(2 * time.Millisecond)
	defer poll.Stop()
	deadline := time.Now().Add(60 * time.Second)
	for !condition() {
		<-poll.C
		if time.Now().After(deadline) {
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// stream is a server's end of a bidirectional stream without a network.
type stream struct {
	grpc.ServerStream
	ctx     context.Context
	cancel  context.CancelFunc
	up      chan *pb.WorkRequest
	down    chan *pb.WorkResponse
	trailer metadata.MD
}

func newStream() *stream {
	ctx, cancel := context.WithCancel(context.Background())
	return &stream{ctx: ctx, cancel: cancel, up: make(chan *pb.WorkRequest, 64), down: make(chan *pb.WorkResponse, 64)}
}

func (s *stream) Context() context.Context  { return s.ctx }
func (s *stream) SetTrailer(md metadata.MD) { s.trailer = md }
func (s *stream) Recv() (*pb.WorkRequest, error) {
	select {
	case m, ok := <-s.up:
		if !ok {
			return nil, io.EOF
		}
		return m, nil
	case <-s.ctx.Done():
		return nil, s.ctx.Err()
	}
}

func (s *stream) Send(m *pb.WorkResponse) error {
	select {
	case s.down <- m:
		return nil
	case <-s.ctx.Done():
		return s.ctx.Err()
	}
}

// fakeWorker keeps a worker's side of the protocol: it takes what it is given, fences by term, sends
// heartbeats, and finishes requests when told to, or by itself after hold.
type fakeWorker struct {
	t    testing.TB
	info *pb.WorkerInfo
	// hold is how long a request runs; 0 is until finish is called.
	hold time.Duration

	mu         sync.Mutex
	running    map[string]*pb.Request
	dispatched []string
	fences     map[string][2]uint64
	revoked    []string
	redirected map[string]string
	term       uint64
	index      uint64
	sequence   uint64
	drained    bool
	drains     bool
	bye        bool
	stream     *stream
	ended      error
	stopped    sync.WaitGroup
}

func newWorker(t testing.TB, id string) *fakeWorker {
	return &fakeWorker{
		t: t, running: map[string]*pb.Request{}, fences: map[string][2]uint64{}, redirected: map[string]string{},
		info: &pb.WorkerInfo{
			Id: id, Address: id + ":1", Model: "m", ContextLength: 4096, BlockTokens: 16, TotalBlocks: 4096,
			MaxSequences: 64, MaxBatchTokens: 2048,
		},
	}
}

// join opens a session and serves it until the stream ends or leave is called.
func (w *fakeWorker) join(s *Scheduler) {
	str := newStream()
	w.mu.Lock()
	w.stream = str
	w.ended = nil
	hello := &pb.Hello{Worker: w.info}
	for id := range w.running {
		hello.Running = append(hello.Running, id)
	}
	slices.Sort(hello.Running)
	w.mu.Unlock()
	str.up <- &pb.WorkRequest{Message: &pb.WorkRequest_Hello{Hello: hello}}
	w.stopped.Go(func() {
		err := s.Work(str)
		str.cancel()
		w.mu.Lock()
		if w.stream == str {
			w.ended = err
			if err == nil {
				w.ended = io.EOF
			}
		}
		w.mu.Unlock()
	})
	w.stopped.Go(func() { w.serve(str) })
}

func (w *fakeWorker) serve(str *stream) {
	beat := time.NewTicker(100 * time.Millisecond)
	defer beat.Stop()
	for {
		select {
		case <-str.ctx.Done():
			for len(str.down) > 0 { // What was sent before the end arrives.
				w.take(<-str.down)
			}
			return
		case <-beat.C:
		case m := <-str.down:
			if m.GetHeard() != nil {
				continue
			}
			w.take(m)
		}
		if str.ctx.Err() == nil && !w.gone() {
			w.heartbeat(str)
		}
	}
}

// gone says that the session has ended or that the worker said goodbye.
func (w *fakeWorker) gone() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.bye
}

func (w *fakeWorker) take(m *pb.WorkResponse) {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch m := m.GetMessage().(type) {
	case *pb.WorkResponse_Welcome:
		w.term = max(w.term, m.Welcome.GetTerm())
	case *pb.WorkResponse_Dispatch:
		d := m.Dispatch
		if d.GetTerm() < w.term {
			return
		}
		if d.GetIndex() <= w.index {
			w.t.Errorf("worker %s: dispatch (%d, %d) came after number %d", w.info.GetId(), d.GetTerm(), d.GetIndex(), w.index)
		}
		w.term, w.index = d.GetTerm(), d.GetIndex()
		for _, r := range d.GetRequests() {
			if w.running[r.GetId()] != nil {
				w.t.Errorf("worker %s: request %s came twice", w.info.GetId(), r.GetId())
			}
			w.running[r.GetId()] = r
			w.fences[r.GetId()] = [2]uint64{d.GetTerm(), d.GetIndex()}
			w.dispatched = append(w.dispatched, r.GetId())
			if w.hold > 0 {
				id := r.GetId()
				w.stopped.Go(func() {
					hold := time.NewTimer(w.hold)
					defer hold.Stop()
					<-hold.C
					w.finish(id, pb.FinishReason_FINISH_REASON_STOP, "")
				})
			}
		}
	case *pb.WorkResponse_Revoke:
		for _, id := range m.Revoke.GetRequestIds() {
			delete(w.running, id)
			w.revoked = append(w.revoked, id)
		}
	case *pb.WorkResponse_Redirect:
		w.redirected[m.Redirect.GetRequestId()] = m.Redirect.GetGatewayId()
	case *pb.WorkResponse_Drain:
		w.drained = true
	}
}

func (w *fakeWorker) heartbeat(str *stream) {
	w.mu.Lock()
	w.sequence++
	h := &pb.Heartbeat{
		Sequence: w.sequence, Draining: w.drains, Running: int32(len(w.running)), DispatchIndex: w.index,
		FreeBlocks: w.info.GetTotalBlocks() - int32(8*len(w.running)),
	}
	w.mu.Unlock()
	select {
	case str.up <- &pb.WorkRequest{Message: &pb.WorkRequest_Heartbeat{Heartbeat: h}}:
	case <-str.ctx.Done():
	}
}

// finish ends a running request and says so.
func (w *fakeWorker) finish(id string, reason pb.FinishReason, text string) {
	w.mu.Lock()
	_, running := w.running[id]
	delete(w.running, id)
	str := w.stream
	w.mu.Unlock()
	if !running {
		return
	}
	select {
	case str.up <- &pb.WorkRequest{Message: &pb.WorkRequest_Finished{Finished: &pb.Finished{Requests: []*pb.FinishedRequest{{
		RequestId: id, FinishReason: reason, Error: text, Usage: &pb.Usage{PromptTokens: 3, CompletionTokens: 5},
	}}}}}:
	case <-str.ctx.Done():
	}
}

// say sends a message, unless the session is over.
func (w *fakeWorker) say(m *pb.WorkRequest) {
	w.mu.Lock()
	str := w.stream
	w.mu.Unlock()
	select {
	case str.up <- m:
	case <-str.ctx.Done():
	}
}

// progress tells the leader of a running request's output.
func (w *fakeWorker) progress(id string, choices ...*pb.ChoiceProgress) {
	w.mu.Lock()
	fence := w.fences[id]
	w.mu.Unlock()
	w.say(&pb.WorkRequest{Message: &pb.WorkRequest_Progress{Progress: &pb.Progress{Requests: []*pb.RequestProgress{
		{RequestId: id, Term: fence[0], Index: fence[1], Choices: choices},
	}}}})
}

// got is a running request as it was dispatched.
func (w *fakeWorker) got(id string) *pb.Request {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[id]
}

// redirectedTo is the gateway that the worker was told to send a request's output to.
func (w *fakeWorker) redirectedTo(id string) string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.redirected[id]
}

// leave breaks the stream, as a crash of the connection does.
func (w *fakeWorker) leave() {
	w.mu.Lock()
	str := w.stream
	w.mu.Unlock()
	str.cancel()
	w.stopped.Wait()
}

// handOver drains the worker and returns all that it runs; it says that it drains before or after.
func (w *fakeWorker) handOver(saysFirst bool) {
	w.mu.Lock()
	w.drains = saysFirst
	f := &pb.Finished{}
	for id := range w.running {
		f.Requests = append(f.Requests, &pb.FinishedRequest{RequestId: id, Returned: true})
	}
	clear(w.running)
	str := w.stream
	w.mu.Unlock()
	w.heartbeat(str)
	w.say(&pb.WorkRequest{Message: &pb.WorkRequest_Finished{Finished: f}})
	w.mu.Lock()
	w.drains = true
	w.mu.Unlock()
	w.heartbeat(str)
}

// goodbye closes the worker's side of the stream.
func (w *fakeWorker) goodbye() {
	w.mu.Lock()
	w.bye = true
	w.mu.Unlock()
	synctest.Wait() // Nobody is writing to the channel any more.
	close(w.stream.up)
}

// crash forgets everything that ran, too.
func (w *fakeWorker) crash() {
	w.leave()
	w.mu.Lock()
	clear(w.running)
	w.mu.Unlock()
}

func (w *fakeWorker) has(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.running[id] != nil
}

func (w *fakeWorker) count() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.running)
}

func (w *fakeWorker) times(id string) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, d := range w.dispatched {
		if d == id {
			n++
		}
	}
	return n
}

func (w *fakeWorker) lost(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.revoked, id)
}

func (w *fakeWorker) end() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended
}

// watchStream collects what a gateway is told.
type watchStream struct {
	grpc.ServerStream
	ctx     context.Context
	mu      sync.Mutex
	roster  roster.View
	workers []string
	ended   map[string]*pb.Ended
	lost    map[string]*pb.Lost
	adopted []string
	// refusing is why each model's requests are refused.
	refusing map[string]string
	queued   map[string]int64
}

func (w *watchStream) Context() context.Context { return w.ctx }
func (w *watchStream) SetTrailer(metadata.MD)   {}
func (w *watchStream) Send(m *pb.WatchResponse) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, _, err := w.roster.Apply(m.GetWorkers()); err != nil {
		return err
	}
	w.workers = nil
	for _, worker := range w.roster.Workers() {
		w.workers = append(w.workers, worker.GetId())
	}
	if q := m.GetQueued(); q != nil {
		w.queued = map[string]int64{}
		for _, model := range q.GetModels() {
			w.queued[model.GetName()] = model.GetRequests()
		}
	}
	for _, e := range m.GetEnded() {
		w.ended[e.GetRequestId()] = e
	}
	for _, l := range m.GetLost() {
		w.lost[l.GetRequestId()] = l
	}
	w.adopted = append(w.adopted, m.GetAdopted()...)
	if m.GetUnserved() != nil {
		w.refusing = map[string]string{}
		for _, u := range m.GetUnserved().GetModels() {
			w.refusing[u.GetName()] = u.GetReason()
		}
	}
	return nil
}

func (w *watchStream) sees(workers ...string) func() bool {
	return func() bool {
		w.mu.Lock()
		defer w.mu.Unlock()
		return slices.Equal(w.workers, workers)
	}
}

// waits is how many requests wait for a model's workers, as the leader said last.
func (w *watchStream) waits(model string) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queued[model]
}

func (w *watchStream) end(id string) *pb.Ended {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.ended[id]
}

// refuses says whether the gateway was told that a model's requests are refused, and why.
func (w *watchStream) refuses(model string) (why string, refused bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	why, refused = w.refusing[model]
	return why, refused
}

// told is the newest loss that the gateway heard of.
func (w *watchStream) told(id string) *pb.Lost {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.lost[id]
}

func (w *watchStream) gaveUp(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.Contains(w.adopted, id)
}

// watch follows the scheduler's news for gateway "g" until stop is called.
func watch(t testing.TB, s *Scheduler) (w *watchStream, stop func()) {
	return watchAs(t, s, "g")
}

func watchAs(t testing.TB, s *Scheduler, gateway string) (w *watchStream, stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	w = &watchStream{ctx: ctx, ended: map[string]*pb.Ended{}, lost: map[string]*pb.Lost{}}
	var done sync.WaitGroup
	done.Go(func() {
		if err := s.Watch(&pb.WatchRequest{GatewayId: gateway}, w); err != nil && ctx.Err() == nil && s.leader.Load() != nil {
			t.Errorf("watch: %v", err)
		}
	})
	return w, func() {
		cancel()
		done.Wait()
	}
}

func request(id string) *pb.Request {
	seed := uint64(1)
	return &pb.Request{
		Id: id, Model: "m", Tenant: "t", Prompt: []int32{1, 2, 3}, GatewayId: "g",
		Sampling: &pb.SamplingParams{Seed: &seed, MaxTokens: 16}, CreatedUnixMs: time.Now().UnixMilli(),
	}
}

func submit(s *Scheduler, r *pb.Request) (*pb.SubmitResponse, error) {
	return s.Submit(context.Background(), &pb.SubmitRequest{Request: r})
}

func mustSubmit(t testing.TB, s *Scheduler, r *pb.Request) *pb.SubmitResponse {
	t.Helper()
	response, err := submit(s, r)
	if err != nil {
		t.Fatalf("submit %s: %v", r.GetId(), err)
	}
	return response
}

// finished says whether the log has a request's end.
func finished(s *Scheduler, id string) func() bool {
	return func() bool {
		r := s.store.View().Request(id)
		return r != nil && r.FinishReason != 0
	}
}

func ids(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprint(prefix, i)
	}
	return out
}
