package main

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/trust"
)

// TestDoorsAreLocked runs a node and a worker with certificates, which serve a client, and has hostile
// peers do what they must not: read and replace the state, move a node, take a worker's place, forge and
// steal a gateway's tokens, with certificates of other roles, of other names, and without any.
func TestDoorsAreLocked(t *testing.T) {
	c := secureNodes(t, 1)
	worker := c.startWorker("w")
	c.run[0].waitReady()
	if code, body := c.run[0].post("/v1/completions", `{"model":"tiny","prompt":"Hello","max_tokens":5,"temperature":0}`); code != http.StatusOK {
		t.Fatalf("%d %s", code, body)
	}
	as := func(role trust.Role, name, address string, expect transport.Expected) *grpc.ClientConn {
		t.Helper()
		certificates, err := c.tls(role, name).load()
		if err != nil {
			t.Fatal(err)
		}
		conn, err := transport.Dial(certificates, address, expect)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		return conn
	}
	node := transport.Expected{Role: trust.Node, Name: "n1"}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()

	list, err := pb.NewOperatorClient(as(trust.Operator, "test", c.control[0], node)).ListWorkers(ctx, &pb.ListWorkersRequest{})
	if err != nil || len(list.GetWorkers()) != 1 {
		t.Fatalf("an operator sees %v, %v", list, err)
	}
	at := list.GetWorkers()[0].GetWorker().GetAddress()

	attacks := map[string]func(*grpc.ClientConn) error{
		"read the state": func(conn *grpc.ClientConn) error {
			stream, err := pb.NewClusterClient(conn).SaveSnapshot(ctx, &pb.SaveSnapshotRequest{})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"replace the state": func(conn *grpc.ClientConn) error {
			stream, err := pb.NewClusterClient(conn).RestoreSnapshot(ctx)
			if err == nil {
				_, err = stream.CloseAndRecv()
			}
			return err
		},
		"move the node": func(conn *grpc.ClientConn) error {
			_, err := pb.NewClusterClient(conn).Join(ctx, &pb.JoinRequest{Node: &pb.Node{Id: "n1", StoreId: "x", RaftAddress: "h:1", ControlAddress: "h:2"}})
			return err
		},
		"forge tokens": func(conn *grpc.ClientConn) error {
			_, err := pb.NewControlClient(conn).Recall(ctx, &pb.RecallRequest{GatewayId: "n1"})
			return err
		},
		"end requests": func(conn *grpc.ClientConn) error {
			_, err := pb.NewControlClient(conn).Abort(ctx, &pb.AbortRequest{RequestId: "r", GatewayId: "n1"})
			return err
		},
		"end requests of any gateway": func(conn *grpc.ClientConn) error {
			_, err := pb.NewControlClient(conn).Abort(ctx, &pb.AbortRequest{RequestId: "r"})
			return err
		},
		"hear a gateway's news": func(conn *grpc.ClientConn) error {
			stream, err := pb.NewControlClient(conn).Watch(ctx, &pb.WatchRequest{GatewayId: "n1"})
			if err == nil {
				_, err = stream.Recv()
			}
			return err
		},
		"be the worker": func(conn *grpc.ClientConn) error {
			stream, err := pb.NewControlClient(conn).Work(ctx)
			if err == nil {
				_ = stream.Send(&pb.WorkRequest{Message: &pb.WorkRequest_Hello{Hello: &pb.Hello{Worker: list.GetWorkers()[0].GetWorker()}}}) // The answer says more.
				_, err = stream.Recv()
			}
			return err
		},
	}
	steal := func(conn *grpc.ClientConn) error {
		stream, err := pb.NewWorkerClient(conn).Attach(ctx)
		if err == nil {
			_ = stream.Send(&pb.AttachRequest{Message: &pb.AttachRequest_Hello{Hello: &pb.AttachHello{GatewayId: "n1"}}}) // The answer says more.
			_, err = stream.Recv()
		}
		return err
	}
	for who, conn := range map[string]*grpc.ClientConn{
		"another worker": as(trust.Worker, "x", c.control[0], node),
		"a gateway":      as(trust.Gateway, "g", c.control[0], node),
	} {
		for what, attack := range attacks {
			if err := attack(conn); status.Code(err) != codes.PermissionDenied {
				t.Errorf("%s tries to %s: %v", who, what, err)
			}
		}
	}
	theWorker := transport.Expected{Role: trust.Worker, Name: "w"}
	for who, conn := range map[string]*grpc.ClientConn{
		"another worker": as(trust.Worker, "x", at, theWorker), "a gateway": as(trust.Gateway, "g", at, theWorker), "an operator": as(trust.Operator, "test", at, theWorker),
	} {
		if err := steal(conn); status.Code(err) != codes.PermissionDenied {
			t.Errorf("%s tries to steal a gateway's streams: %v", who, err)
		}
	}
	// Without a certificate nothing is said at all, and the clients' port knows nothing of the cluster.
	for what, attack := range attacks {
		if err := attack(c.run[0].dialAt(c.control[0])); status.Code(err) != codes.Unavailable {
			t.Errorf("a stranger tries to %s: %v", what, err)
		}
		if err := attack(c.run[0].dial()); status.Code(err) != codes.Unimplemented {
			t.Errorf("a client tries to %s: %v", what, err)
		}
	}
	if err := steal(c.run[0].dialAt(at)); status.Code(err) != codes.Unavailable {
		t.Errorf("a stranger tries to steal a gateway's streams: %v", err)
	}
	reflection, err := reflectionpb.NewServerReflectionClient(c.run[0].dial()).ServerReflectionInfo(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if err := reflection.Send(&reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}); err != nil {
		t.Fatal(err)
	}
	answer, err := reflection.Recv()
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range answer.GetListServicesResponse().GetService() {
		if strings.HasPrefix(s.GetName(), "quire.") && s.GetName() != pb.Inference_ServiceDesc.ServiceName {
			t.Errorf("clients are told of %s", s.GetName())
		}
	}
	// What clients may do works through the locked doors: a long stream is cancelled.
	api := pb.NewInferenceClient(c.run[0].dial())
	stream, err := api.Generate(ctx, &pb.GenerateRequest{
		Model: "tiny", RequestId: "long", Input: &pb.GenerateRequest_Prompt{Prompt: "Once"},
		Sampling: &pb.SamplingParams{MaxTokens: 480, IgnoreEos: true},
	})
	if err == nil {
		_, err = stream.Recv()
	}
	if err == nil {
		_, err = api.Cancel(ctx, &pb.CancelRequest{RequestId: "long"})
	}
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = stream.Recv()
	}
	if status.Code(err) != codes.Aborted {
		t.Errorf("a cancelled stream ends with %v", err)
	}
	// All this while the cluster went on.
	if code, body := c.run[0].post("/v1/completions", `{"model":"tiny","prompt":"Hello","max_tokens":5,"temperature":0}`); code != http.StatusOK {
		t.Errorf("after the attacks: %d %s", code, body)
	}
	if code := worker.interrupt(); code != 0 {
		t.Errorf("the worker's exit code is %d", code)
	}
}

// TestPortsAreThisMachinesByDefault wants a loopback address in every flag that says where to listen.
func TestPortsAreThisMachinesByDefault(t *testing.T) {
	found := 0
	for _, cmd := range newRoot().Commands() {
		for _, name := range []string{"http", "grpc", "cluster", "listen", "raft", "debug"} {
			f := cmd.Flags().Lookup(name)
			if f == nil || f.DefValue == "" {
				continue
			}
			found++
			if !transport.Loopback(f.DefValue) {
				t.Errorf("quire %s --%s is %s by default", cmd.Name(), name, f.DefValue)
			}
		}
	}
	if found != 7 {
		t.Errorf("%d flags say where to listen; the test knows of 7", found)
	}
}

// TestWrongAddressesAreNamed gives commands the addresses of other ports: each says what is wrong, at once,
// and a worker before it loads its model.
func TestWrongAddressesAreNamed(t *testing.T) {
	p := startDev(t, t.TempDir(), "--prompt", "")
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	gone := l.Addr().String()
	_ = l.Close()
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	worker := []string{"worker", "--model", "tiny", "--listen", "127.0.0.1:0", "--control"}
	peers := []string{"raft", "peers", "--timeout", "2s", "--control"}
	generate := []string{"generate", "Hello", "--server"}
	for _, c := range []struct {
		args    []string
		address string
		code    int
		want    string
	}{
		{worker, p.http, 2, "an HTTP server answers there, not gRPC"},
		{worker, p.grpc, 2, "that port does not serve quire.v1.Control"},
		{worker, "http://" + p.control, 2, "is a URL"},
		{worker, "node-1", 2, "the port is missing"},
		{worker, "192.0.2.1:8004", 2, "is beyond this machine"},
		{[]string{"worker", "--model", "tiny", "--insecure", "--control"}, "192.0.2.1:8004", 2, "--listen: 127.0.0.1:8002 is reached from this machine alone"},
		{[]string{"worker", "--model", "tiny", "--insecure", "--listen", "192.0.2.2:1", "--advertise", "localhost:1", "--control"}, "192.0.2.1:8004", 2, "--advertise: localhost:1 is reached from this machine alone"},
		{[]string{"worker", "--model", "tiny", "--insecure", "--listen", ":8002", "--control"}, p.control, 2, `--listen: others cannot use ":8002"`},
		{[]string{"worker", "--model", "tiny", "--advertise", "node-1", "--control"}, p.control, 2, "the port is missing"},
		{[]string{"dev", "--model", "tiny", "--cluster"}, "0.0.0.0:8004", 2, "quire dev is a cluster of this machine alone"},
		{peers, p.http, 2, "an HTTP server answers there, not gRPC"},
		{peers, p.grpc, 2, "that port does not serve quire.v1.Cluster"},
		{peers, "https://" + p.control, 2, "is a URL"},
		{peers, gone, 1, "nothing listens there"},
		{generate, p.http, 2, "an HTTP server answers there, not gRPC"},
		{generate, p.control, 2, "that port does not serve quire.v1.Inference"},
		{generate, "http://" + p.grpc, 2, "is a URL"},
		{generate, gone, 1, "nothing listens there"},
	} {
		code, _, stderr := runQuire(t, append(c.args, c.address)...)
		if code != c.code || !strings.Contains(stderr, c.want) || strings.Contains(stderr, "loading") {
			t.Errorf("quire %v %s: exit %d, %q; want %d and %q", c.args, c.address, code, stderr, c.code, c.want)
		}
	}
}
