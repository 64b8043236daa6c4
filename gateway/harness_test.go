package gateway_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/quire-serve/quire/gateway"
	"github.com/quire-serve/quire/gateway/gatewaytest"
	"github.com/quire-serve/quire/model/chat"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// created is the time that all tests' answers carry.
var created = time.Unix(1_700_000_000, 0)

// door is a gateway with its cluster behind and an HTTP server before it.
type door struct {
	*gatewaytest.Cluster
	t       testing.TB
	gateway *gateway.Gateway
	url     string
	client  *http.Client
	// quit ends the gateway's Run and waits for it.
	quit func()
}

// open starts a gateway on a fake cluster and waits until it is ready.
func open(t testing.TB, o gatewaytest.Options, change ...func(*gateway.Settings)) *door {
	t.Helper()
	return join(t, gatewaytest.Start(t, o), o, "node-1", change...)
}

// join starts one more gateway on a cluster.
func join(t testing.TB, cluster *gatewaytest.Cluster, o gatewaytest.Options, id string, change ...func(*gateway.Settings)) *door {
	t.Helper()
	template, err := chat.New(gatewaytest.ChatTemplate, chat.Settings{})
	if err != nil {
		t.Fatal(err)
	}
	context_ := o.ContextLength
	if context_ == 0 {
		context_ = 2048
	}
	s := gateway.Settings{
		NodeID: id, Nodes: cluster.Nodes, Dial: cluster.Dial, Version: "1.2.3",
		Models: []gateway.Model{{ID: "test", Tokenizer: gatewaytest.Tokenizer(), Chat: template, ContextLength: context_, Digest: "0123456789abcdef"}},
		Log:    slog.New(slog.DiscardHandler),
	}
	for _, f := range change {
		f(&s)
	}
	g, err := gateway.New(s)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { _ = g.Run(ctx) })
	server := httptest.NewUnstartedServer(nil)
	server.Config = g.Server()
	server.Start()
	d := &door{Cluster: cluster, t: t, gateway: g, url: server.URL, client: server.Client()}
	d.quit = sync.OnceFunc(func() { cancel(); running.Wait() })
	t.Cleanup(func() {
		d.quit()
		server.CloseClientConnections()
		server.Close()
		d.client.CloseIdleConnections()
	})
	await(t, g.Ready)
	return d
}

// await polls a condition that nothing signals, until the test's patience ends.
func await(t testing.TB, condition func() bool) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	limit := time.NewTimer(20 * time.Second)
	defer limit.Stop()
	for !condition() {
		select {
		case <-tick.C:
		case <-limit.C:
			t.Fatal("the condition did not come true")
		}
	}
}

type reply struct {
	status int
	header http.Header
	body   string
}

func (d *door) do(method, path, body string, headers ...string) reply {
	d.t.Helper()
	req, err := http.NewRequest(method, d.url+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := d.client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		d.t.Fatal(err)
	}
	return reply{resp.StatusCode, resp.Header, string(b)}
}

func (d *door) post(path, body string, headers ...string) reply {
	d.t.Helper()
	return d.do(http.MethodPost, path, body, headers...)
}

func events(t testing.TB, body string) []string {
	t.Helper()
	return gatewaytest.Events(t, body)
}

// stream is an open SSE answer, read event by event.
type stream struct {
	t     testing.TB
	resp  *http.Response
	lines *bufio.Scanner
	close func()
	// id is that of the newest event that had one.
	id string
}

func (d *door) stream(path, body string, headers ...string) *stream {
	d.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url+path, strings.NewReader(body))
	if err != nil {
		d.t.Fatal(err)
	}
	for i := 0; i+1 < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	resp, err := d.client.Do(req)
	if err != nil {
		d.t.Fatal(err)
	}
	s := &stream{t: d.t, resp: resp, lines: bufio.NewScanner(resp.Body)}
	s.lines.Buffer(nil, 1<<20)
	s.close = func() { cancel(); _ = resp.Body.Close() }
	d.t.Cleanup(s.close)
	return s
}

// next returns the next event's data, or "" at the end.
func (s *stream) next() string {
	s.t.Helper()
	for s.lines.Scan() {
		if id, ok := strings.CutPrefix(s.lines.Text(), "id: "); ok {
			s.id = id
		}
		if data, ok := strings.CutPrefix(s.lines.Text(), "data: "); ok {
			return data
		}
	}
	return ""
}

// decode parses JSON strictly enough for a test.
func decode[T any](t testing.TB, data string) T {
	t.Helper()
	var v T
	if err := json.NewDecoder(bytes.NewReader([]byte(data))).Decode(&v); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	return v
}
