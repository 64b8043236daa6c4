package gateway_test

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quire-serve/quire/gateway"
	"github.com/quire-serve/quire/gateway/gatewaytest"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// begin sends the headers of a request and a part of its body.
func (d *door) begin(announced int, part string) net.Conn {
	d.t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(d.url, "http://"))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { conn.Close() })
	if _, err := fmt.Fprintf(conn, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", textPath, announced, part); err != nil {
		d.t.Fatal(err)
	}
	return conn
}

// bodyBytes is what the bodies that have not arrived take.
func (d *door) bodyBytes() float64 {
	return metric(d.t, d.do("GET", "/metrics", "").body, "quire_gateway_body_bytes")
}

// TestAnnouncedLengthsCostNothing: connections that announce as much as they may and send little take memory
// for what they have sent, and what the metric says is what they take.
func TestAnnouncedLengthsCostNothing(t *testing.T) {
	const connections, sent = 40, 70
	d := open(t, gatewaytest.Options{})
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	for range connections {
		d.begin(8<<20, strings.Repeat(" ", sent))
	}
	await(t, func() bool { return d.bodyBytes() >= connections*sent })
	if taken := d.bodyBytes(); taken > connections*8<<10 {
		t.Errorf("%d bytes each are said to take %g together", sent, taken)
	}
	if grown := heap() - before; grown > connections*256<<10 {
		t.Errorf("%d connections of %d bytes took %d KiB", connections, sent, grown>>10)
	}
}

// TestBodiesAreBoundedTogether: bodies that do not fit beside those that are being read are refused, and
// what was taken comes back when its client leaves.
func TestBodiesAreBoundedTogether(t *testing.T) {
	d := open(t, gatewaytest.Options{}, func(s *gateway.Settings) { s.MaxBodyBytes, s.MaxBodiesBytes = 48<<10, 64<<10 })
	large := `{"model":"test","max_tokens":1,"prompt":"hi"` + strings.Repeat(" ", 40<<10) + `}`
	first := d.begin(48<<10, strings.Repeat(" ", 40<<10))
	await(t, func() bool { return d.bodyBytes() >= 40<<10 })
	r := d.post(textPath, large)
	if r.status != 429 || r.header.Get("Retry-After") != "1" || r.header.Get("X-Should-Retry") != "true" || !strings.Contains(r.body, "65536 bytes") {
		t.Errorf("%d %v %s", r.status, r.header, r.body)
	}
	if r := d.post(textPath, `{"model":"test","max_tokens":1,"prompt":"hi"}`); r.status != 200 {
		t.Errorf("a small one beside it: %d %s", r.status, r.body)
	}
	first.Close()
	await(t, func() bool { return d.bodyBytes() == 0 })
	if r := d.post(textPath, large); r.status != 200 {
		t.Errorf("after it: %d %s", r.status, r.body)
	}
	if r := d.post(textPath, strings.Repeat(" ", 48<<10+1)); r.status != 413 || !strings.Contains(r.body, "49152 bytes") {
		t.Errorf("one that is too large: %d %s", r.status, r.body)
	}
}

// TestPlacesComeFirst: a gateway without a place parses and tokenizes nothing, so that what is wrong with a
// request is not found out; over gRPC neither.
func TestPlacesComeFirst(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true}, func(s *gateway.Settings) { s.MaxRequests = 1 })
	s := d.stream(textPath, streamed)
	if r := d.post(textPath, `{"no JSON`); r.status != 429 || r.header.Get("Retry-After") == "" {
		t.Errorf("%d %s", r.status, r.body)
	}
	client := pb.NewInferenceClient(d.grpc())
	call, err := client.Generate(t.Context(), &pb.GenerateRequest{Model: "nowhere"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := call.Recv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("gRPC: %v", err)
	}
	if _, err := client.Tokenize(t.Context(), &pb.TokenizeRequest{Model: "test", Text: "hi"}); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("Tokenize: %v", err)
	}
	s.close()
	await(t, func() bool { return metric(t, d.do("GET", "/metrics", "").body, "quire_gateway_requests") == 0 })
	// Whatever is wrong gives its place back.
	for range 3 {
		if r := d.post(textPath, `{"no JSON`); r.status != 400 {
			t.Errorf("%d %s", r.status, r.body)
		}
		if r := d.post(textPath, `{"model":"test","prompt":["a","b"]}`); r.status != 400 || !strings.Contains(r.body, "the gateway serves 1 at once") {
			t.Errorf("%d %s", r.status, r.body)
		}
	}
}

// TestBodiesArriveInTime: a body that trickles ends with the time for it.
func TestBodiesArriveInTime(t *testing.T) {
	d := open(t, gatewaytest.Options{}, func(s *gateway.Settings) { s.ReadTimeout = 50 * time.Millisecond })
	answer, err := io.ReadAll(d.begin(100, "{"))
	if err != nil || !strings.HasPrefix(string(answer), "HTTP/1.1 408 ") {
		t.Errorf("%q, %v", answer, err)
	}
	await(t, func() bool { return d.bodyBytes() == 0 })
}

// TestStreamsBeginAtOnce: a streamed answer has its status and headers as soon as it is admitted, and
// comments while it waits, before the first token and between two.
func TestStreamsBeginAtOnce(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true}, func(s *gateway.Settings) { s.KeepAlive = 5 * time.Millisecond })
	s := d.stream(textPath, streamed, "Idempotency-Key", "k")
	if s.resp.StatusCode != 200 || !strings.HasPrefix(s.resp.Header.Get("Content-Type"), "text/event-stream") || s.resp.Header.Get("X-Accel-Buffering") != "no" {
		t.Errorf("%d %v", s.resp.StatusCode, s.resp.Header)
	}
	comment := func() string {
		for s.lines.Scan() {
			if text, ok := strings.CutPrefix(s.lines.Text(), ": "); ok {
				return text
			}
		}
		return ""
	}
	if got := comment(); got != "waiting for the first token, 0 s" {
		t.Errorf("before the first token: %q", got)
	}
	d.Step(1)
	if s.next() == "" {
		t.Fatal("no token came")
	}
	if got := comment(); got != "waiting for the next token, 0 s" {
		t.Errorf("after it: %q", got)
	}
	// A worker's death is told, too, until another goes on.
	d.SetWorkers(0)
	d.Requeue("k")
	for got := ""; got != "waiting for another worker to go on, 0 s"; {
		if got = comment(); got == "" {
			t.Fatal("the stream ended")
		}
	}
	// A whole answer has nothing but itself.
	d.SetWorkers(1)
	d.Step(10)
	if r := d.post(textPath, `{"model":"test","prompt":"hi","max_tokens":3}`); r.status != 200 || r.body[0] != '{' {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestCallsBeginAtOnce: a gRPC stream has its headers when it is admitted.
func TestCallsBeginAtOnce(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true})
	call, err := pb.NewInferenceClient(d.grpc()).Generate(t.Context(), &pb.GenerateRequest{Model: "test", RequestId: "g",
		Input: &pb.GenerateRequest_Prompt{Prompt: "hi"}, Sampling: &pb.SamplingParams{MaxTokens: 3}})
	if err != nil {
		t.Fatal(err)
	}
	header, err := call.Header()
	if err != nil || len(header["quire-request-id"]) != 1 || header["quire-request-id"][0] != "g" {
		t.Errorf("%v, %v", header, err)
	}
	d.Step(10)
	if _, _, err := collect(call); err != nil {
		t.Error(err)
	}
}
