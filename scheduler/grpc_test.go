package scheduler

import (
	"context"
	"net"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/batch"
)

// TestOverTheWire runs a session, a watch and submits through a real gRPC server: statuses, details
// and the largest request pass, and stopping the node lets the server stop gracefully.
func TestOverTheWire(t *testing.T) {
	// The worker sends no heartbeats, so that none has to come in time.
	s := start(t, Settings{
		DataDir: t.TempDir(), QueueRequests: 1, HeartbeatTimeout: time.Hour, Batch: batch.Settings{FreshMS: time.Hour.Milliseconds()},
	})
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := grpc.NewServer()
	pb.RegisterControlServer(server, s)
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }()
	conn, err := grpc.NewClient(listener.Addr().String(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	client := pb.NewControlClient(conn)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()

	work, err := client.Work(ctx)
	if err != nil {
		t.Fatal(err)
	}
	info := newWorker(t, "w").info
	info.ContextLength, info.TotalBlocks, info.MaxSequences = 1<<20, 1<<17, 1
	if err := work.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Hello{Hello: &pb.Hello{Worker: info}}}); err != nil {
		t.Fatal(err)
	}
	welcome, err := work.Recv()
	if err != nil || welcome.GetWelcome().GetTerm() == 0 || welcome.GetWelcome().GetHeartbeatIntervalMs() != 250 {
		t.Fatalf("welcome %v, %v", welcome, err)
	}
	news, err := client.Watch(ctx, &pb.WatchRequest{GatewayId: "g"})
	if err != nil {
		t.Fatal(err)
	}
	// News come as they gather, and at least every second.
	hear := func(what string, said func(*pb.WatchResponse) bool) {
		t.Helper()
		for {
			n, err := news.Recv()
			if err != nil {
				t.Fatalf("before it heard %s: %v", what, err)
			}
			if said(n) {
				return
			}
		}
	}
	hear("of the worker", func(n *pb.WatchResponse) bool {
		workers := n.GetWorkers().GetWorkers()
		return len(workers) == 1 && workers[0].GetModel() == "m"
	})

	large := request("large")
	large.Prompt = make([]int32, 128<<10)
	for i := range large.Prompt {
		large.Prompt[i] = 1<<21 - 1
	}
	if r, err := client.Submit(ctx, &pb.SubmitRequest{Request: large}); err != nil || r.GetWorkerId() != "w" {
		t.Fatalf("submit %v, %v", r, err)
	}
	if d, err := work.Recv(); err != nil || len(d.GetDispatch().GetRequests()[0].GetPrompt()) != 128<<10 {
		t.Fatalf("dispatch %v", err)
	}
	if _, err := client.Submit(ctx, &pb.SubmitRequest{Request: request("waits")}); err != nil {
		t.Fatal(err)
	}
	_, err = client.Submit(ctx, &pb.SubmitRequest{Request: request("too many")})
	if status.Code(err) != codes.ResourceExhausted || retryAfter(err) <= 0 || reasonIn(err) != reasonQueueSequences {
		t.Fatalf("a full queue: %v, again after %v, for %q", err, retryAfter(err), reasonIn(err))
	}
	if r, err := client.Abort(ctx, &pb.AbortRequest{RequestId: "waits"}); err != nil || !r.GetFound() {
		t.Errorf("abort %v, %v", r, err)
	}
	hear("of the end", func(n *pb.WatchResponse) bool {
		return len(n.GetEnded()) == 1 && n.GetEnded()[0].GetRequestId() == "waits"
	})

	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	if _, err := work.Recv(); status.Code(err) != codes.Unavailable {
		t.Errorf("the session ended with %v", err)
	}
	for {
		if _, err = news.Recv(); err != nil {
			break
		}
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("the watch ended with %v", err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
	server.GracefulStop()
	if err := <-served; err != nil {
		t.Error(err)
	}
}
