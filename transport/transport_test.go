package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionalphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"pgregory.net/rapid"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/trust"
)

// methods lists all RPCs of Quire's protos, by their full names.
func methods() map[string]protoreflect.MethodDescriptor {
	out := map[string]protoreflect.MethodDescriptor{}
	protoregistry.GlobalFiles.RangeFilesByPackage("quire.v1", func(f protoreflect.FileDescriptor) bool {
		for i := range f.Services().Len() {
			s := f.Services().Get(i)
			for j := range s.Methods().Len() {
				m := s.Methods().Get(j)
				out[fmt.Sprintf("/%s/%s", s.FullName(), m.Name())] = m
			}
		}
		return true
	})
	return out
}

// TestEveryRPCHasARow compares the table with the protos: a new RPC without a row fails, and so does a
// row for an RPC that is gone. Only Inference is for clients.
func TestEveryRPCHasARow(t *testing.T) {
	all := methods()
	if len(all) < 30 {
		t.Fatalf("only %d RPCs are registered", len(all))
	}
	for name, m := range all {
		r, ok := rules[name]
		if !ok {
			t.Errorf("%s has no row in the table of who may call it", name)
			continue
		}
		if forClients := m.Parent().Name() == "Inference"; r.clients != forClients || forClients == (len(r.roles) > 0) {
			t.Errorf("%s: clients %t, roles %v", name, r.clients, r.roles)
		}
		// Whoever may do what is another's in someone's name must be held to his own.
		for _, f := range []protoreflect.Name{"gateway_id"} {
			if m.Input().Fields().ByName(f) != nil && r.name == nil {
				t.Errorf("%s has the field %s, and whoever calls it is not held to it", name, f)
			}
		}
	}
	for name := range rules {
		if all[name] == nil && !strings.HasPrefix(name, "/grpc.") {
			t.Errorf("the table has a row for %s, which no proto has", name)
		}
	}
}

// newAuthority makes a CA.
func newAuthority(t testing.TB) *trust.Authority {
	t.Helper()
	ca, err := trust.NewAuthority(filepath.Join(t.TempDir(), "ca"))
	if err != nil {
		t.Fatal(err)
	}
	return ca
}

// issue makes a certificate for the loopback.
func issue(t testing.TB, ca *trust.Authority, role trust.Role, name string) *trust.Certificates {
	t.Helper()
	files, err := ca.Issue(trust.Identity{Role: role, Name: name}, []string{"127.0.0.1"}, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	c, err := trust.Load(files, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

var errReached = status.Error(codes.DataLoss, "the handler was reached")

// registerAll has a server answer every RPC of the protos with errReached, with messages of their types.
func registerAll(s *grpc.Server) {
	for _, m := range methods() {
		service := string(m.Parent().FullName())
		if _, done := s.GetServiceInfo()[service]; done {
			continue
		}
		desc := &grpc.ServiceDesc{ServiceName: service, HandlerType: (*any)(nil)}
		list := m.Parent().(protoreflect.ServiceDescriptor).Methods()
		for i := range list.Len() {
			one := list.Get(i)
			full := fmt.Sprintf("/%s/%s", service, one.Name())
			fresh := func() proto.Message {
				kind, err := protoregistry.GlobalTypes.FindMessageByName(one.Input().FullName())
				if err != nil {
					panic(err)
				}
				return kind.New().Interface()
			}
			if one.IsStreamingClient() || one.IsStreamingServer() {
				desc.Streams = append(desc.Streams, grpc.StreamDesc{
					StreamName: string(one.Name()), ClientStreams: true, ServerStreams: true,
					Handler: func(_ any, stream grpc.ServerStream) error {
						if err := stream.RecvMsg(fresh()); err != nil {
							return err
						}
						return errReached
					},
				})
				continue
			}
			desc.Methods = append(desc.Methods, grpc.MethodDesc{
				MethodName: string(one.Name()),
				Handler: func(_ any, ctx context.Context, decode func(any) error, intercept grpc.UnaryServerInterceptor) (any, error) {
					in := fresh()
					if err := decode(in); err != nil {
						return nil, err
					}
					return intercept(ctx, in, &grpc.UnaryServerInfo{FullMethod: full}, func(context.Context, any) (any, error) { return nil, errReached })
				},
			})
		}
		s.RegisterService(desc, struct{}{})
	}
}

// serve runs a server that answers every RPC.
func serve(t testing.TB, s *grpc.Server) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	registerAll(s)
	ended := make(chan struct{})
	go func() { defer close(ended); _ = s.Serve(l) }() // Stop ends it.
	t.Cleanup(func() { s.Stop(); <-ended })
	return l.Addr().String()
}

// call makes a call of any RPC with one message.
func call(t testing.TB, conn *grpc.ClientConn, method string, in proto.Message) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	if err != nil {
		return err
	}
	if err := stream.SendMsg(in); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	_ = stream.CloseSend() // The answer says why, if it cannot be.
	return stream.RecvMsg(&healthpb.HealthCheckResponse{})
}

func dialTest(t testing.TB, c *trust.Certificates, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := Dial(c, address, Expected{Role: trust.Node, Name: "n1"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// inName is an RPC's message in which somebody speaks.
func inName(method, name string) proto.Message {
	switch method {
	case pb.Control_Submit_FullMethodName:
		return &pb.SubmitRequest{Request: &pb.Request{GatewayId: name}}
	case pb.Control_Abort_FullMethodName:
		return &pb.AbortRequest{GatewayId: name}
	case pb.Control_Watch_FullMethodName:
		return &pb.WatchRequest{GatewayId: name}
	case pb.Control_Adopt_FullMethodName:
		return &pb.AdoptRequest{GatewayId: name}
	case pb.Control_Recall_FullMethodName:
		return &pb.RecallRequest{GatewayId: name}
	case pb.Control_Work_FullMethodName:
		return &pb.WorkRequest{Message: &pb.WorkRequest_Hello{Hello: &pb.Hello{Worker: &pb.WorkerInfo{Id: name}}}}
	case pb.Worker_Attach_FullMethodName:
		return &pb.AttachRequest{Message: &pb.AttachRequest_Hello{Hello: &pb.AttachHello{GatewayId: name}}}
	case pb.Cluster_Join_FullMethodName:
		return &pb.JoinRequest{Node: &pb.Node{Id: name}}
	}
	return nil
}

// TestRolesAreHeldToTheTable calls every RPC in every role, in the caller's own name and in another's.
// What comes through is what the model says, which is written out here once more.
func TestRolesAreHeldToTheTable(t *testing.T) {
	const (
		N, G, W, O = trust.Node, trust.Gateway, trust.Worker, trust.Operator
	)
	may := map[string][]trust.Role{
		"Submit": {N, G}, "Abort": {N, G, O}, "Watch": {N, G}, "Adopt": {N, G}, "Recall": {N, G}, "Work": {W},
		"Attach": {N, G}, "FetchBlocks": {W}, "Describe": {N, O}, "Join": {N},
	}
	ca := newAuthority(t)
	node := serve(t, ForCluster(issue(t, ca, N, "n1")))
	for _, role := range trust.Roles() {
		self := "self-" + string(role)
		conn := dialTest(t, issue(t, ca, role, self), node)
		for name, m := range methods() {
			allowed := m.Parent().Name() != "Inference" && role == O
			if roles, ok := may[string(m.Name())]; ok && m.Parent().Name() != "Operator" {
				allowed = false
				for _, r := range roles {
					allowed = allowed || r == role
				}
			}
			own := inName(name, self)
			message := own
			if message == nil {
				kind, err := protoregistry.GlobalTypes.FindMessageByName(m.Input().FullName())
				if err != nil {
					t.Fatal(err)
				}
				message = kind.New().Interface()
			}
			want := codes.PermissionDenied
			if allowed {
				want = codes.DataLoss // The handler was reached.
			}
			if err := call(t, conn, name, message); status.Code(err) != want {
				t.Errorf("%s calls %s: %v; want %v", role, name, err, want)
			}
			if own == nil || role == O {
				continue
			}
			for _, other := range []string{"another", ""} {
				if err := call(t, conn, name, inName(name, other)); status.Code(err) != codes.PermissionDenied {
					t.Errorf("%s calls %s in the name of %q: %v", self, name, other, err)
				}
			}
		}
		for _, method := range []string{reflectionpb.ServerReflection_ServerReflectionInfo_FullMethodName, reflectionalphapb.ServerReflection_ServerReflectionInfo_FullMethodName} {
			if err := call(t, conn, method, &healthpb.HealthCheckRequest{}); status.Code(err) != codes.Unimplemented {
				t.Errorf("%s calls %s: %v", role, method, err)
			}
		}
	}
}

// TestClientsReachNothingOfTheCluster calls every RPC on a port for clients.
func TestClientsReachNothingOfTheCluster(t *testing.T) {
	conn, err := DialClients(serve(t, ForClients()))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for name, m := range methods() {
		want := codes.PermissionDenied
		if m.Parent().Name() == "Inference" {
			want = codes.DataLoss
		}
		if err := call(t, conn, name, &healthpb.HealthCheckRequest{}); status.Code(err) != want {
			t.Errorf("a client calls %s: %v; want %v", name, err, want)
		}
	}
}

// TestWhatHasNoRowIsRefused serves an RPC that the table does not know.
func TestWhatHasNoRowIsRefused(t *testing.T) {
	ca := newAuthority(t)
	for name, server := range map[string]*grpc.Server{
		"clients": ForClients(), "plain cluster": ForCluster(nil), "cluster": ForCluster(issue(t, ca, trust.Node, "n1")),
	} {
		server.RegisterService(&grpc.ServiceDesc{ServiceName: "quire.v1.New", HandlerType: (*any)(nil), Streams: []grpc.StreamDesc{{
			StreamName: "Thing", ClientStreams: true, ServerStreams: true, Handler: func(any, grpc.ServerStream) error { return errReached },
		}}}, struct{}{})
		var certificates *trust.Certificates
		if name == "cluster" {
			certificates = issue(t, ca, trust.Operator, "o")
		}
		err := call(t, dialTest(t, certificates, serve(t, server)), "/quire.v1.New/Thing", &healthpb.HealthCheckRequest{})
		if status.Code(err) != codes.PermissionDenied || !strings.Contains(err.Error(), "open to nobody") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestPlainPortTrustsWhoeverReachesIt is why such a port must not be reached from elsewhere.
func TestPlainPortTrustsWhoeverReachesIt(t *testing.T) {
	conn := dialTest(t, nil, serve(t, ForCluster(nil)))
	for name := range methods() {
		if err := call(t, conn, name, &healthpb.HealthCheckRequest{}); status.Code(err) != codes.DataLoss {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestStrangersAreRefused shows certificates that prove nothing, and none.
func TestStrangersAreRefused(t *testing.T) {
	ca, other := newAuthority(t), newAuthority(t)
	address := serve(t, ForCluster(issue(t, ca, trust.Node, "n1")))
	if err := call(t, dialTest(t, issue(t, ca, trust.Operator, "o"), address), pb.Cluster_Describe_FullMethodName, &pb.DescribeRequest{}); status.Code(err) != codes.DataLoss {
		t.Fatalf("an operator: %v", err)
	}
	plain, err := DialClients(address)
	if err != nil {
		t.Fatal(err)
	}
	defer plain.Close()
	for who, conn := range map[string]*grpc.ClientConn{
		"without TLS": plain,
		"another CA":  dialTest(t, issue(t, other, trust.Operator, "o"), address),
	} {
		if err := call(t, conn, pb.Cluster_Describe_FullMethodName, &pb.DescribeRequest{}); status.Code(err) != codes.Unavailable {
			t.Errorf("%s: %v", who, err)
		}
	}
}

// TestWhoAnswersIsChecked dials nodes and workers that are not who they should be.
func TestWhoAnswersIsChecked(t *testing.T) {
	ca := newAuthority(t)
	operator := issue(t, ca, trust.Operator, "o")
	node := serve(t, ForCluster(issue(t, ca, trust.Node, "n1")))
	worker := serve(t, ForCluster(issue(t, ca, trust.Worker, "w1")))
	files, err := ca.Issue(trust.Identity{Role: trust.Node, Name: "away"}, []string{"192.0.2.1"}, time.Now().Add(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	away, err := trust.Load(files, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	elsewhere := serve(t, ForCluster(away))
	for _, c := range []struct {
		address string
		expect  Expected
		want    string
	}{
		{node, Expected{Role: trust.Node}, ""},
		{node, Expected{Role: trust.Node, Name: "n1"}, ""},
		{elsewhere, Expected{Role: trust.Node, Name: "away"}, ""}, // The name makes the host needless.
		{worker, Expected{Role: trust.Node}, "somebody else answers there (it is worker/w1, not node/"},
		{node, Expected{Role: trust.Node, Name: "n2"}, "somebody else answers there (it is node/n1, not node/n2"},
		{worker, Expected{Role: trust.Worker, Name: "w2"}, "somebody else answers"},
		{elsewhere, Expected{Role: trust.Node}, "its certificate is for another host"},
	} {
		conn, err := Dial(operator, c.address, c.expect)
		if err != nil {
			t.Fatal(err)
		}
		err = call(t, conn, pb.Cluster_Describe_FullMethodName, &pb.DescribeRequest{})
		if c.want == "" && status.Code(err) != codes.DataLoss {
			t.Errorf("%+v: %v", c.expect, err)
		}
		if c.want != "" {
			if err = Explain(c.address, err); !strings.Contains(err.Error(), c.want) || !IsMistake(err) {
				t.Errorf("%+v: %v; want %q", c.expect, err, c.want)
			}
		}
		_ = conn.Close()
	}
}

// TestFailuresSayWhatIsWrong makes the mistakes that are made with addresses and certificates.
func TestFailuresSayWhatIsWrong(t *testing.T) {
	ca := newAuthority(t)
	certificates := issue(t, ca, trust.Operator, "o")
	web := httptest.NewServer(http.NotFoundHandler())
	defer web.Close()
	gone, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_ = gone.Close()
	empty := grpc.NewServer()
	plain := serve(t, ForCluster(nil))
	secure := serve(t, ForCluster(issue(t, ca, trust.Node, "n1")))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go func() { _ = empty.Serve(l) }()
	defer empty.Stop()
	for _, c := range []struct {
		name         string
		address      string
		certificates *trust.Certificates
		want         string
		mistake      bool
	}{
		{"HTTP port", web.Listener.Addr().String(), nil, "an HTTP server answers there, not gRPC", true},
		{"nobody", gone.Addr().String(), nil, "nothing listens there", false},
		{"no such name", "no-such-host.invalid:8004", nil, "the host's name is not known", false},
		{"TLS to a plain port", plain, certificates, "it answers without TLS", true},
		{"plain to a TLS port", secure, nil, "does it want TLS", false},
		{"another CA", secure, issue(t, newAuthority(t), trust.Operator, "o"), "its certificate is not of the CA that --tls-ca names", true},
		{"another service", l.Addr().String(), nil, "that port does not serve quire.v1.Cluster", true},
	} {
		conn, err := Dial(c.certificates, c.address, Expected{Role: trust.Node})
		if err != nil {
			t.Fatal(err)
		}
		err = call(t, conn, pb.Cluster_Describe_FullMethodName, &pb.DescribeRequest{})
		if got := Explain(c.address, err); got == nil || !strings.HasPrefix(got.Error(), c.address+": "+c.want) && !strings.Contains(got.Error(), c.want) || IsMistake(got) != c.mistake {
			t.Errorf("%s: %v; want %q, a mistake: %t; gRPC said %v", c.name, got, c.want, c.mistake, err)
		}
		_ = conn.Close()
	}
}

func TestAddressesSayWhatIsWrong(t *testing.T) {
	for address, want := range map[string]string{
		"10.0.0.1:8004": "", "node-1:8004": "", "[::1]:8004": "",
		"":                        "an address is empty",
		"http://10.0.0.1:8000/v1": `is a URL; leave http:// and what follows the port away: 10.0.0.1:8000`,
		"10.0.0.1":                "the port is missing",
		"::1":                     "is not host:port",
		":8004":                   "the host is missing",
		"node-1:grpc":             "the port must be 1 to 65535",
		"node-1:0":                "the port must be 1 to 65535",
		"node-1:65536":            "the port must be 1 to 65535",
	} {
		err := CheckAddress(address)
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", address, err, want)
		}
		if _, err := Dial(nil, address, Expected{Role: trust.Node}); (err == nil) != (want == "") {
			t.Errorf("dial %q: %v", address, err)
		}
	}
}

// idleBytes is what a connection may hold that says nothing, in the process's heap and stacks.
const idleBytes = 32 << 10

// TestIdleConnectionsHoldLittle opens 1,000 connections that say nothing, and 1,000 that say that they are
// gRPC and then nothing. Both together hold no more than their bound, and those above the limit are closed.
func TestIdleConnectionsHoldLittle(t *testing.T) {
	const each = 1000
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := ForClients()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = server.Serve(limit(l, 2*each, slog.New(slog.DiscardHandler))) // Stop ends it.
	}()
	defer func() { server.Stop(); <-ended }()

	used := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	before := used()
	var conns []net.Conn
	defer func() {
		for _, c := range conns {
			_ = c.Close()
		}
	}()
	open := func() net.Conn {
		c, err := net.Dial("tcp", l.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, c)
		return c
	}
	for range each {
		open()
	}
	// The preface and an empty SETTINGS frame.
	hello := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 0, 0, 0, 4, 0, 0, 0, 0, 0)
	for range each {
		c := open()
		if _, err := c.Write(hello); err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(c, make([]byte, 9)); err != nil { // The server's SETTINGS: it is set up.
			t.Fatal(err)
		}
	}
	held := used() - before
	t.Logf("%d idle connections hold %d bytes each", len(conns), held/int64(len(conns)))
	if held > 2*each*idleBytes {
		t.Errorf("%d idle connections hold %d bytes; the bound is %d", len(conns), held, 2*each*idleBytes)
	}
	// One more is closed at once.
	if _, err := open().Read(make([]byte, 1)); !errors.Is(err, io.EOF) && !strings.Contains(err.Error(), "reset") {
		t.Errorf("a connection above the limit: %v", err)
	}
	// When others go there is room again.
	for _, c := range conns[:each] {
		_ = c.Close()
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for range 1000 {
		c := open()
		_, _ = c.Write(hello)
		if _, err := io.ReadFull(c, make([]byte, 9)); err == nil {
			return
		}
		<-tick.C
	}
	t.Error("others have gone, and there is no room")
}

// pipes is a listener whose connections are in memory, so that their time is the test's.
type pipes struct{ conns chan net.Conn }

func (p pipes) Accept() (net.Conn, error) {
	c, ok := <-p.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return c, nil
}
func (p pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe", Net: "unix"} }
func (p pipes) Close() error   { return nil }

// TestSilentConnectionsEnd has peers that say nothing, half of what they must, or nothing more: each is cut
// off when its time is over, with and without TLS.
func TestSilentConnectionsEnd(t *testing.T) {
	certificates := issue(t, newAuthority(t), trust.Node, "n1")
	preface := append([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 0, 0, 0, 4, 0, 0, 0, 0, 0)
	for _, c := range []struct {
		name   string
		server func() *grpc.Server
		says   []byte
		within time.Duration
	}{
		{"nothing, to the clients' port", func() *grpc.Server { return ForClients() }, nil, handshakeTimeout},
		{"half a preface", func() *grpc.Server { return ForClients() }, preface[:10], handshakeTimeout},
		{"nothing, to the cluster's port", func() *grpc.Server { return ForCluster(nil) }, nil, handshakeTimeout},
		{"no TLS", func() *grpc.Server { return ForCluster(certificates) }, nil, handshakeTimeout},
		{"half of a TLS record", func() *grpc.Server { return ForCluster(certificates) }, []byte{22, 3, 1}, handshakeTimeout},
		{"nothing after the preface", func() *grpc.Server { return ForClients() }, preface, pingAfter + pingTimeout},
		{"nothing after the preface, to the cluster", func() *grpc.Server { return ForCluster(nil) }, preface, pingAfter + pingTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			l := pipes{make(chan net.Conn)}
			server := c.server()
			served := make(chan struct{})
			go func() { defer close(served); _ = server.Serve(l) }() // It ends with the listener.
			near, far := net.Pipe()
			l.conns <- far
			began := time.Now()
			go func() { _, _ = near.Write(c.says) }() // The end may come before all is read.
			_, _ = io.Copy(io.Discard, near)          // Until the server closes it.
			// Keepalive counts in whole intervals.
			if took := time.Since(began); took < c.within-time.Second || took > c.within+time.Second {
				t.Errorf("%s: it was cut off after %v, not %v", c.name, took, c.within)
			}
			_ = near.Close()
			close(l.conns)
			server.Stop()
			<-served
		})
	}
}

// offered is a listener with one connection at most.
type offered struct {
	net.Listener
	conn net.Conn
}

var errNobody = errors.New("nobody connects")

func (o *offered) Accept() (net.Conn, error) {
	c := o.conn
	if o.conn = nil; c == nil {
		return nil, errNobody
	}
	return c, nil
}

func (*offered) Addr() net.Addr { return &net.TCPAddr{} }

// from is a connection of a host.
type from struct {
	net.Conn
	host   string
	closed bool
}

func (f *from) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.ParseIP(f.host), Port: 5} }
func (f *from) Close() error         { f.closed = true; return nil }

// TestOneHostShutsNobodyOut opens and closes connections of several hosts in any order, and compares who is
// let in with a count: all together are bounded, each host has its share at most, this machine may have all.
func TestOneHostShutsNobodyOut(t *testing.T) {
	const most = 16
	hosts := []string{"127.0.0.1", "::1", "10.0.0.1", "10.0.0.2", "2001:db8::1"}
	rapid.Check(t, func(t *rapid.T) {
		under := &offered{}
		l := limit(under, most, slog.New(slog.DiscardHandler))
		var open []net.Conn
		of := func(host string) (n int) {
			for _, c := range open {
				if c.RemoteAddr().(*net.TCPAddr).IP.Equal(net.ParseIP(host)) {
					n++
				}
			}
			return n
		}
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			if len(open) > 0 && rapid.IntRange(0, 3).Draw(t, "what") == 0 {
				i := rapid.IntRange(0, len(open)-1).Draw(t, "which")
				_ = open[i].Close()
				_ = open[i].Close() // Twice is once.
				open = append(open[:i], open[i+1:]...)
				continue
			}
			host := rapid.SampledFrom(hosts).Draw(t, "host")
			came := &from{host: host}
			under.conn = came
			conn, err := l.Accept()
			want := len(open) < most && (Loopback(net.JoinHostPort(host, "1")) || of(host) < most/hostShare)
			if (err == nil) != want || came.closed == want {
				t.Fatalf("a connection of %s beside %d, %d of them its own: %v, closed %t", host, len(open), of(host), err, came.closed)
			}
			if err == nil {
				open = append(open, conn)
			}
		}
	})
}
