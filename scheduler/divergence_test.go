package scheduler

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/protobuf/encoding/protodelim"
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// startPeers starts control-plane nodes that reach each other through real ports.
func startPeers(t testing.TB, size int) []*Scheduler {
	t.Helper()
	var listeners []net.Listener
	var join []string
	for range size {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		listeners, join = append(listeners, l), append(join, l.Addr().String())
	}
	var out []*Scheduler
	for i := range size {
		s, err := New(Settings{
			NodeID: fmt.Sprint("node-", i), DataDir: t.TempDir(), Logger: quiet, RaftListen: "127.0.0.1:0",
			ControlAdvertise: join[i], Join: join, StableAfter: 100 * time.Millisecond,
			DialNode: func(address string) (grpc.ClientConnInterface, func() error, error) {
				conn, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
				if err != nil {
					return nil, nil, err
				}
				return conn, conn.Close, nil
			},
		})
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		s.Register(server)
		go func() { _ = server.Serve(listeners[i]) }() // It ends with the server.
		t.Cleanup(func() {
			server.Stop()
			if err := s.Close(); err != nil {
				t.Error(err)
			}
		})
		out = append(out, s)
	}
	return out
}

// await polls for something that other processes or goroutines bring about in real time.
func await(t testing.TB, what string, ok func() bool) {
	t.Helper()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	limit := time.After(time.Minute)
	for !ok() {
		select {
		case <-poll.C:
		case <-limit:
			t.Fatalf("not within a minute: %s", what)
		}
	}
}

// TestANodeThatDiffersTakesNoPart gives the leader of three another state than the log made. It finds out,
// another one leads, and whoever asks is told.
func TestANodeThatDiffersTakesNoPart(t *testing.T) {
	nodes := startPeers(t, 3)
	leader := func() int {
		for i, s := range nodes {
			if s.leader.Load() != nil && s.Problem() == "" {
				return i
			}
		}
		return -1
	}
	wrong := -1
	await(t, "all are there", func() bool {
		if wrong = leader(); wrong < 0 {
			return false
		}
		v := nodes[wrong].store.View()
		for _, s := range nodes {
			if s.store.View().Node(fmt.Sprint("node-", len(nodes)-1)) == nil || s.store.View().Index() != v.Index() {
				return false
			}
		}
		return true
	})
	var snapshot, other bytes.Buffer
	if _, err := nodes[wrong].store.View().WriteTo(&snapshot); err != nil {
		t.Fatal(err)
	}
	// The first record is the header.
	header := &pb.SnapshotRecord{}
	if err := protodelim.UnmarshalFrom(&snapshot, header); err != nil {
		t.Fatal(err)
	}
	header.GetHeader().ChainHash++
	if _, err := protodelim.MarshalTo(&other, header); err != nil {
		t.Fatal(err)
	}
	other.Write(snapshot.Bytes())
	if err := nodes[wrong].store.Restore(&other); err != nil {
		t.Fatal(err)
	}
	// The next entry carries it on, whoever leads by now.
	data, err := proto.Marshal(&pb.Entry{Commands: []*pb.Command{{Command: &pb.Command_Node{Node: &pb.NodeCommand{Node: &pb.Node{Id: "more", StoreId: "x"}}}}}})
	if err != nil {
		t.Fatal(err)
	}
	await(t, "there is another entry", func() bool {
		at := leader()
		if at < 0 {
			return false
		}
		proposal, err := nodes[at].node.Propose(context.Background(), data)
		if err != nil {
			return false
		}
		_, err = proposal.Wait(context.Background())
		return err == nil
	})
	await(t, "the node says that it differs", func() bool { return nodes[wrong].Problem() != "" })
	await(t, "another one leads", func() bool { return leader() >= 0 && leader() != wrong })
	if text := nodes[wrong].Problem(); !strings.Contains(text, "the state of this node has the chain hash") || nodes[wrong].Ready() || nodes[wrong].node.Leads() {
		t.Errorf("it says %q; ready %t, leads %t", text, nodes[wrong].Ready(), nodes[wrong].node.Leads())
	}
	if _, err := submit(nodes[wrong], request("r")); err == nil || !strings.Contains(err.Error(), "takes no part") {
		t.Errorf("a request to it: %v", err)
	}
	await(t, "the new leader knows", func() bool {
		at := leader()
		if at < 0 {
			return false
		}
		m, err := nodes[at].members.Members(context.Background(), nil)
		if err != nil {
			return false
		}
		for _, n := range m.GetMembers() {
			if n.GetId() == fmt.Sprint("node-", wrong) {
				return !n.GetHealthy() && n.GetProblem() == nodes[wrong].Problem()
			}
		}
		return false
	})
	for i, s := range nodes {
		if i != wrong && s.Problem() != "" {
			t.Errorf("node %d is right and says %q", i, s.Problem())
		}
	}
}
