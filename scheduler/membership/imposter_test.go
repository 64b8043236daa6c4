package membership

import (
	"context"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/trust"
)

// says is a node that says who it is, whoever it is.
type says struct {
	pb.UnimplementedClusterServer
	id string
}

func (s says) Describe(context.Context, *pb.DescribeRequest) (*pb.DescribeResponse, error) {
	return &pb.DescribeResponse{Node: &pb.Node{Id: s.id, StoreId: "s"}, Instance: "i"}, nil
}

// TestNodesAnswerForThemselves: what a node says of itself counts if it is of itself, by its certificate.
func TestNodesAnswerForThemselves(t *testing.T) {
	ca, err := trust.NewAuthority(filepath.Join(t.TempDir(), "ca"))
	if err != nil {
		t.Fatal(err)
	}
	certificates := func(name string) *trust.Certificates {
		files, err := ca.Issue(trust.Identity{Role: trust.Node, Name: name}, []string{"127.0.0.1"}, time.Now().Add(time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		c, err := trust.Load(files, func(err error) { t.Error(err) })
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	serve := func(as *trust.Certificates, id string) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := transport.ForCluster(as)
		pb.RegisterClusterServer(server, says{id: id})
		ended := make(chan struct{})
		go func() { defer close(ended); _ = server.Serve(l) }() // Stop ends it.
		t.Cleanup(func() { server.Stop(); <-ended })
		return l.Addr().String()
	}
	self := certificates("n")
	m := New(Settings{Logger: slog.New(slog.DiscardHandler), Dial: func(address string) (grpc.ClientConnInterface, func() error, error) {
		conn, err := transport.Dial(self, address, transport.Expected{Role: trust.Node})
		if err != nil {
			return nil, nil, err
		}
		return conn, conn.Close, nil
	}})
	honest, imposter := serve(certificates("n2"), "n2"), serve(certificates("n3"), "n2")
	answers := m.ask(t.Context(), []string{honest, imposter}, &pb.DescribeRequest{})
	if len(answers) != 1 || answers[0].address != honest || answers[0].GetNode().GetId() != "n2" {
		t.Errorf("answers are %v", answers)
	}
}
