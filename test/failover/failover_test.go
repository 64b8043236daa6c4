// Package failover runs real schedulers, workers and gateways in one process and cuts them off from
// each other in the middle of streams.
package failover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/gateway"
	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/tiny"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler"
	"github.com/quire-serve/quire/worker"
	"github.com/quire-serve/quire/worker/engine"
)

// wire is a TCP connection in the middle that a test can cut: as when the process behind it dies,
// its port refuses, and what was connected breaks.
type wire struct {
	listener net.Listener
	target   string

	mu    sync.Mutex
	conns map[net.Conn]bool
	cut   bool
	busy  sync.WaitGroup
}

func newWire(t *testing.T, target string) *wire {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w := &wire{listener: l, target: target, conns: map[net.Conn]bool{}}
	w.busy.Go(w.accept)
	t.Cleanup(w.sever)
	return w
}

func (w *wire) address() string { return w.listener.Addr().String() }

func (w *wire) accept() {
	for {
		in, err := w.listener.Accept()
		if err != nil {
			return
		}
		out, err := net.Dial("tcp", w.target)
		if err != nil {
			_ = in.Close()
			continue
		}
		w.mu.Lock()
		if w.cut {
			w.mu.Unlock()
			_ = errors.Join(in.Close(), out.Close())
			return
		}
		w.conns[in], w.conns[out] = true, true
		w.busy.Go(func() { w.pass(in, out) })
		w.busy.Go(func() { w.pass(out, in) })
		w.mu.Unlock()
	}
}

// pass copies one direction until either side ends.
func (w *wire) pass(from, to net.Conn) {
	_, _ = io.Copy(to, from) // an error is the end, as EOF is
	_ = errors.Join(from.Close(), to.Close())
	w.mu.Lock()
	delete(w.conns, from)
	delete(w.conns, to)
	w.mu.Unlock()
}

// sever cuts the wire for good.
func (w *wire) sever() {
	_ = w.listener.Close()
	w.mu.Lock()
	w.cut = true
	for c := range w.conns {
		_ = c.Close()
	}
	w.mu.Unlock()
	w.busy.Wait()
}

// cluster is a scheduler with workers and gateways around it.
type cluster struct {
	t       *testing.T
	control string // the scheduler's address
	workers []*workerNode
	doors   []*door
}

type workerNode struct {
	*worker.Worker
	wires []*wire
	dead  bool
	drain func()        // hands over what runs
	ended chan struct{} // closed when it has ended
}

// kill cuts a worker off from everybody.
func (w *workerNode) kill() {
	w.dead = true
	for _, x := range w.wires {
		x.sever()
	}
}

// door is a gateway with its HTTP server.
type door struct {
	url  string
	kill func()
}

func start(t *testing.T, workers, doors int) *cluster {
	t.Helper()
	spec, err := model.OpenBytes("tiny", tiny.GGUF())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = spec.Close() })
	return startWith(t, spec, workers, doors, worker.Settings{
		KVBytes: 32 << 20, Engine: engine.Settings{MaxSequences: 32, MaxBatchTokens: 256, PrefixCache: true},
	})
}

// startWith starts workers of a model with settings of their own.
func startWith(t *testing.T, spec *model.Spec, workers, doors int, settings worker.Settings) *cluster {
	t.Helper()
	quiet := slog.New(slog.DiscardHandler)
	s, err := scheduler.New(scheduler.Settings{NodeID: "node-1", DataDir: t.TempDir(), Logger: quiet})
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterControlServer(server, s)
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(l) }) // Stop ends it
	c := &cluster{t: t, control: l.Addr().String()}
	t.Cleanup(func() {
		server.Stop()
		serving.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	for i := range workers {
		c.addWorker(fmt.Sprintf("worker-%d", i+1), spec, settings, quiet)
	}
	for i := range doors {
		c.addDoor(fmt.Sprintf("gateway-%d", i+1), spec, quiet)
	}
	return c
}

func (c *cluster) addWorker(id string, spec *model.Spec, s worker.Settings, log *slog.Logger) {
	t := c.t
	dev, err := cpu.Open(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	m, err := spec.Load(dev, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	// A port of its own, so that the wire before it is known before the worker is.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	_ = l.Close()
	front, back := newWire(t, address), newWire(t, c.control)
	s.ID, s.Listen, s.Advertise, s.Control, s.DrainTimeout, s.Logger = id, address, front.address(), []string{back.address()}, -1, log
	w, err := worker.New(s, dev, m)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = w.Run(ctx) // a worker that was cut off cannot say goodbye
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		dev.Close()
	})
	c.workers = append(c.workers, &workerNode{Worker: w, wires: []*wire{front, back}, drain: cancel, ended: done})
}

func dial(address string) (grpc.ClientConnInterface, func() error, error) {
	conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return conn, conn.Close, nil
}

func (c *cluster) addDoor(id string, spec *model.Spec, log *slog.Logger) {
	t := c.t
	control := newWire(t, c.control)
	g, err := gateway.New(gateway.Settings{
		NodeID: id, Nodes: func() []string { return []string{control.address()} }, Dial: dial, Log: log,
		Models: []gateway.Model{{ID: spec.ID, Tokenizer: spec.Tokenizer, Chat: spec.Chat, ContextLength: spec.Config.ContextLength, Digest: spec.Digest}},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = g.Run(ctx) // it has no error to tell
	}()
	server := httptest.NewServer(g.Handler())
	kill := sync.OnceFunc(func() {
		// Nobody hears of it: the leader is gone before the clients are.
		control.sever()
		cancel()
		<-done
		server.CloseClientConnections()
		server.Close()
	})
	t.Cleanup(kill)
	c.doors = append(c.doors, &door{url: server.URL, kill: kill})
	for range len(c.workers) {
		// Ready is that one worker's stream is up; a request waits for others.
		await(t, g.Ready)
	}
}

func await(t *testing.T, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatal("the condition did not come true")
		}
	}
}

// request is what a client asks for, under one id.
type request struct{ key, path, body string }

// tape is what a client has of an answer.
type tape struct {
	choices map[int]*choice
	usage   string
	last    string // id of the newest event
	done    bool
	// gap is the longest wait between two events.
	gap time.Duration
}

// choice is one choice's text, with its finish, and its log-probabilities.
type choice struct{ text, probs strings.Builder }

func newTape() *tape { return &tape{choices: map[int]*choice{}} }

func (p *tape) String() string {
	var b strings.Builder
	for i := range len(p.choices) {
		fmt.Fprintf(&b, "%d: %s\n%s\n", i, &p.choices[i].text, &p.choices[i].probs)
	}
	return b.String() + p.usage
}

// differ shows where two answers part.
func differ(got, want string) string {
	i := 0
	for i < min(len(got), len(want)) && got[i] == want[i] {
		i++
	}
	part := func(s string) string { return s[max(0, i-80):min(len(s), i+80)] }
	return fmt.Sprintf("at byte %d of %d and %d\ngot  %q\nwant %q", i, len(got), len(want), part(got), part(want))
}

// record plays an answer from a door onto the tape, after what is on it already, until its end or
// until stop says so.
func (p *tape) record(ctx context.Context, d *door, r request, stop func(events int) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url+r.path, strings.NewReader(r.body))
	if err != nil {
		return err
	}
	req.Header.Set("Idempotency-Key", r.key)
	if p.last != "" {
		req.Header.Set("Last-Event-ID", p.last)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, 1<<20)
	id, at := "", time.Now()
	for n := 0; lines.Scan(); {
		line := lines.Text()
		if v, ok := strings.CutPrefix(line, "id: "); ok {
			id = v
		}
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok {
			continue
		}
		p.gap, at = max(p.gap, time.Since(at)), time.Now()
		if data == "[DONE]" {
			p.done = true
			return nil
		}
		if err := p.event(data); err != nil {
			return err
		}
		if id != "" {
			p.last = id
		}
		if n++; stop(n) {
			return nil
		}
	}
	return errors.Join(lines.Err(), errors.New("the stream broke"))
}

func (p *tape) event(data string) error {
	var e struct {
		Choices []struct {
			Index    int
			Text     string
			Delta    struct{ Content string }
			Finish   *string `json:"finish_reason"`
			Logprobs *struct {
				Content []json.RawMessage
			}
		}
		Usage json.RawMessage
		Error json.RawMessage
	}
	if err := json.Unmarshal([]byte(data), &e); err != nil {
		return err
	}
	if e.Error != nil {
		return fmt.Errorf("the stream ends with %s", data)
	}
	if string(e.Usage) != "null" && e.Usage != nil {
		// Which tokens were cached depends on where it ran.
		p.usage, _, _ = strings.Cut(string(e.Usage), `,"prompt_tokens_details"`)
	}
	for _, c := range e.Choices {
		b := p.choices[c.Index]
		if b == nil {
			b = &choice{}
			p.choices[c.Index] = b
		}
		b.text.WriteString(c.Text + c.Delta.Content)
		if c.Logprobs != nil {
			for _, lp := range c.Logprobs.Content {
				b.probs.Write(lp)
			}
		}
		if c.Finish != nil {
			fmt.Fprintf(&b.text, "[%s]", *c.Finish)
		}
	}
	return nil
}

const (
	chat = "/v1/chat/completions"
	text = "/v1/completions"
)

// requests are streams of every kind, long enough to be caught in the middle.
func requests(round string) []request {
	tail := `"stream":true,"stream_options":{"include_usage":true},"seed":11,"max_tokens":400,"ignore_eos":true`
	return []request{
		{round + "-plain", text, `{"model":"tiny","prompt":"Once upon a time",` + tail + `}`},
		{round + "-choices", text, `{"model":"tiny","prompt":["The sea","The hill"],"n":2,` + tail + `}`},
		{round + "-chat", chat, `{"model":"tiny","messages":[{"role":"user","content":"Tell me a story."}],` + tail + `}`},
		{round + "-stop", text, `{"model":"tiny","prompt":"A list:","stop":["zzzz"],` + tail + `}`},
		{round + "-logprobs", chat, `{"model":"tiny","messages":[{"role":"user","content":"Say more."}],"logprobs":true,"top_logprobs":1,` + tail + `}`},
		{round + "-regex", text, `{"model":"tiny","prompt":"Letters:","guided_regex":"[a-f ]{500}",` + tail + `}`},
	}
}

// undisturbed plays all requests to their end.
func (c *cluster) undisturbed() []string {
	c.t.Helper()
	var want []string
	for _, r := range requests("calm") {
		p := newTape()
		if err := p.record(c.t.Context(), c.doors[0], r, func(int) bool { return false }); err != nil {
			c.t.Fatalf("%s: %v", r.key, err)
		}
		want = append(want, p.String())
	}
	return want
}

// storm plays all requests at once at a door, has strike happen when each has had some events,
// and plays what broke on at the last door, until all is there.
func (c *cluster) storm(round string, d *door, want []string, leave bool, strike func()) {
	t := c.t
	t.Helper()
	list := requests(round)
	var flowing, clients sync.WaitGroup
	flowing.Add(len(list))
	struck := make(chan struct{})
	gaps := make([]time.Duration, len(list))
	for i, r := range list {
		clients.Go(func() {
			p := newTape()
			begun := sync.OnceFunc(flowing.Done)
			defer begun()
			err := p.record(t.Context(), d, r, func(n int) bool {
				if n < 12 {
					return false
				}
				begun()
				if leave {
					<-struck
				}
				return leave
			})
			for try := 0; !p.done && leave && try < 50; try++ {
				err = p.record(t.Context(), c.doors[len(c.doors)-1], r, func(int) bool { return false })
			}
			if err != nil || !p.done {
				t.Errorf("%s: %v", r.key, err)
				return
			}
			if got := p.String(); got != want[i] {
				t.Errorf("%s %s", r.key, differ(got, want[i]))
			}
			gaps[i] = p.gap
		})
	}
	flowing.Wait()
	strike()
	close(struck)
	clients.Wait()
	t.Logf("%s: longest waits %v", round, gaps)
}

// busiest is the living worker with the most requests; it must have some.
func (c *cluster) busiest() *workerNode {
	best, most := c.workers[0], 0
	for _, w := range c.workers {
		if n := w.Stats().Running; n > most && !w.dead {
			best, most = w, n
		}
	}
	if most == 0 {
		c.t.Error("nothing runs any more: the streams are too short for this test")
	}
	return best
}

// TestStreamsOutliveAll kills a worker in the middle of streams, then a gateway, whose clients go on
// elsewhere, then both at once. Every stream is the undisturbed one.
func TestStreamsOutliveAll(t *testing.T) {
	c := start(t, 3, 3)
	want := c.undisturbed()
	c.storm("worker", c.doors[0], want, false, func() { c.busiest().kill() })
	c.storm("gateway", c.doors[0], want, true, c.doors[0].kill)
	c.storm("both", c.doors[1], want, true, func() {
		c.busiest().kill()
		c.doors[1].kill()
	})
}
