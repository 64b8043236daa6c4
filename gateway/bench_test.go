package gateway

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/protobuf/proto"

	"github.com/quire-serve/quire/gateway/gatewaytest"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// admitAll is a connection to a leader that admits everything, as placed on worker w.
type admitAll struct{ grpc.ClientConnInterface }

func (admitAll) Invoke(_ context.Context, _ string, _, reply any, _ ...grpc.CallOption) error {
	if r, ok := reply.(*pb.SubmitResponse); ok {
		r.WorkerId = "w"
	}
	return nil
}

func dialAdmitAll(string) (grpc.ClientConnInterface, func() error, error) {
	return admitAll{}, func() error { return nil }, nil
}

// BenchmarkTokens streams to 16 HTTP clients on loopback, a token each a step, waiting for
// all of them between steps so that no two tokens share a write. It reports the CPU time a token costs the whole process: routing,
// text, JSON, the write, net/http, and the clients' reads; the worker's wire decoding is
// BenchmarkDecodeStep. The budget is 41 µs: 2,400 tokens/s in a tenth of a core.
func BenchmarkTokens(b *testing.B) {
	const streams = 16
	g, err := New(Settings{NodeID: "n", Nodes: func() []string { return []string{"n"} }, Dial: dialAdmitAll, Log: slog.New(slog.DiscardHandler),
		Models: []Model{{ID: "test", Tokenizer: gatewaytest.Tokenizer(), ContextLength: 1 << 30}}})
	if err != nil {
		b.Fatal(err)
	}
	g.workers.byID["w"] = &attachment{info: &pb.WorkerInfo{Id: "w", Model: "test"}, connected: true, cancel: func() {}, out: make(chan *pb.AttachRequest, streams)}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	server := g.Server()
	var running sync.WaitGroup
	running.Go(func() { _ = server.Serve(listener) })
	defer running.Wait()
	defer server.Close()

	var received sync.WaitGroup
	for i := range streams {
		req, _ := http.NewRequest(http.MethodPost, "http://"+listener.Addr().String()+"/v1/completions",
			strings.NewReader(`{"model":"test","prompt":"x","stream":true,"max_tokens":1000000000}`))
		req.Header.Set("Idempotency-Key", fmt.Sprint("r", i))
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			b.Fatal(err)
		}
		defer conn.Close()
		if err := req.Write(conn); err != nil {
			b.Fatal(err)
		}
		running.Go(func() { countEvents(conn, &received) })
	}
	for len(g.lives.all()) < streams {
		runtime.Gosched()
	}
	r := router{table: &g.lives, worker: "w"}
	events := make([]*pb.TokenEvent, streams)
	token := []int32{'a'}
	var before, after syscall.Rusage
	b.ReportAllocs()
	b.ResetTimer()
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
	for step := range b.N {
		for i := range events {
			events[i] = &pb.TokenEvent{RequestId: fmt.Sprint("r", i), First: int32(step), TokenIds: token}
		}
		received.Add(streams)
		r.route(events, time.Now())
		received.Wait()
	}
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
	b.StopTimer()
	used := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(used)/float64(b.N*streams)/1e3, "cpu-µs/token")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkDecodeStep is what a step of 16 tokens costs to decode from the worker's message.
func BenchmarkDecodeStep(b *testing.B) {
	resp := &pb.AttachResponse{}
	for i := range 16 {
		resp.Events = append(resp.Events, &pb.TokenEvent{RequestId: fmt.Sprintf("%032x", i), First: 1000, TokenIds: []int32{12345}, Term: 7, Index: 100000})
	}
	wire, err := proto.Marshal(resp)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		var got pb.AttachResponse
		if err := proto.Unmarshal(wire, &got); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/16/1e3, "µs/token")
}

// countEvents counts events off until the connection ends.
func countEvents(conn net.Conn, received *sync.WaitGroup) {
	buf := make([]byte, 4096)
	for {
		n, err := conn.Read(buf)
		for range bytes.Count(buf[:n], []byte("data: ")) {
			received.Done()
		}
		if err != nil {
			_, _ = io.Copy(io.Discard, conn)
			return
		}
	}
}
