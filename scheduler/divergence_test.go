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
	"pgregory.net/rapid"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func TestVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		leader  string
		voters  int
		others  map[string]uint64
		wrong   bool
		pending bool
	}{
		"all agree":                              {"b", 3, map[string]uint64{"b": 1, "c": 1}, false, false},
		"against the rest":                       {"b", 3, map[string]uint64{"b": 2, "c": 2}, true, false},
		"the leader against the rest":            {"a", 3, map[string]uint64{"b": 2, "c": 2}, true, false},
		"with another against the leader":        {"b", 3, map[string]uint64{"b": 2, "c": 1}, false, false},
		"against the leader, a third is dead":    {"b", 3, map[string]uint64{"b": 2}, true, false},
		"against the leader, a third may decide": {"b", 3, map[string]uint64{"b": 2, "c": 0}, true, true},
		"the leader of two":                      {"a", 2, map[string]uint64{"b": 2}, false, false},
		"the other of two":                       {"b", 2, map[string]uint64{"b": 2}, true, false},
		"no leader, no majority":                 {"", 5, map[string]uint64{"b": 2, "c": 3}, false, false},
		"nobody answers":                         {"b", 3, nil, false, false},
	} {
		wrong, pending := opinion{self: "a", leader: c.leader, own: 1, others: c.others, voters: c.voters}.verdict()
		if wrong != c.wrong || pending != c.pending {
			t.Errorf("%s: wrong is %t, pending %t", name, wrong, pending)
		}
	}
}

// TestAMajorityThatAgreesStays, whoever leads and whoever answers: a wrong node never talks the right ones
// out of serving, and of those that stay none differs from the majority.
func TestAMajorityThatAgreesStays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		voters := rapid.IntRange(1, 7).Draw(t, "voters")
		hash := make([]uint64, voters)
		right := map[uint64]int{}
		for i := range hash {
			hash[i] = rapid.Uint64Range(1, 3).Draw(t, "hash")
			right[hash[i]]++
		}
		name := func(i int) string { return fmt.Sprint(i) }
		leader := name(rapid.IntRange(0, voters-1).Draw(t, "leader"))
		for i := range hash {
			others := map[string]uint64{}
			for j := range hash {
				if j != i {
					others[name(j)] = hash[j]
				}
			}
			wrong, _ := opinion{self: name(i), leader: leader, own: hash[i], others: others, voters: voters}.verdict()
			for of, n := range right {
				if n > voters/2 && wrong != (hash[i] != of) {
					t.Fatalf("node %d of %v is wrong: %t", i, hash, wrong)
				}
			}
		}
	})
}

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
	settled := func() bool {
		if leader() < 0 {
			return false
		}
		for _, s := range nodes {
			v := nodes[leader()].store.View()
			if s.store.View().Node(fmt.Sprint("node-", len(nodes)-1)) == nil || s.store.View().Index() != v.Index() {
				return false
			}
		}
		return true
	}
	await(t, "all are there", settled)
	wrong := leader()
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
	// The next entry carries it on.
	if err := nodes[wrong].members.record(context.Background(), &pb.NodeCommand{Node: &pb.Node{Id: "more", StoreId: "x"}}); err != nil {
		t.Fatal(err)
	}
	await(t, "the node says that it differs", func() bool { return nodes[wrong].Problem() != "" })
	await(t, "another one leads", func() bool { return leader() >= 0 && leader() != wrong })
	if text := nodes[wrong].Problem(); !strings.Contains(text, "the state of this node has the chain hash") || nodes[wrong].Ready() || nodes[wrong].node.Leads() {
		t.Errorf("it says %q; ready %t, leads %t", text, nodes[wrong].Ready(), nodes[wrong].node.Leads())
	}
	if _, err := submit(nodes[wrong], request("r")); err == nil || !strings.Contains(err.Error(), "takes no part") {
		t.Errorf("a request to it: %v", err)
	}
	await(t, "the new leader knows", func() bool {
		m, err := nodes[leader()].members.Members(context.Background(), nil)
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
