package main

import (
	"context"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler"
)

// nodes are control-plane nodes as processes of their own.
type nodes struct {
	t    *testing.T
	dir  string
	join string
	// args are those of every node, beside what tells them apart.
	args []string
	raft []string
	grpc []string
	http []string
	run  []*process
}

// newNodes starts size nodes that form a cluster.
func newNodes(t *testing.T, size int, args ...string) *nodes {
	t.Helper()
	c := &nodes{t: t, dir: t.TempDir(), args: args, run: make([]*process, size)}
	for range size {
		c.grpc = append(c.grpc, freePort(t))
		c.http = append(c.http, freePort(t))
		c.raft = append(c.raft, freePort(t))
	}
	c.join = strings.Join(c.grpc, ",")
	for i := range size {
		c.start(i)
	}
	return c
}

func (c *nodes) start(i int) {
	c.t.Helper()
	p := &process{t: c.t, http: c.http[i], grpc: c.grpc[i], done: make(chan struct{})}
	p.cmd = command(c.t, append([]string{
		"server", "--id", fmt.Sprint("n", i+1), "--model", "tiny", "--data", filepath.Join(c.dir, fmt.Sprint("n", i+1)),
		"--http", c.http[i], "--grpc", c.grpc[i], "--raft", c.raft[i], "--join", c.join,
	}, c.args...)...)
	p.start()
	c.run[i] = p
}

// describe asks a node; nil if it does not answer.
func (c *nodes) describe(i int) *pb.DescribeResponse {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	conn, closeConn, err := dial(c.grpc[i])
	if err != nil {
		c.t.Fatal(err)
	}
	defer func() { _ = closeConn() }()
	r, err := pb.NewClusterClient(conn).Describe(ctx, &pb.DescribeRequest{})
	if err != nil {
		return nil
	}
	return r
}

// leader waits until the given nodes all follow the same leader among them and the log knows them
// all, and returns it.
func (c *nodes) leader(among ...int) int {
	c.t.Helper()
	leader := -1
	c.run[among[0]].waitFor(fmt.Sprint("following a leader with ", among), func() bool {
		leader = -1
		for _, i := range among {
			r := c.describe(i)
			if r == nil || r.GetLeaderAddress() == "" || r.GetLastContactMs() < 0 {
				return false
			}
			at := slices.Index(c.grpc, r.GetLeaderAddress())
			if !slices.Contains(among, at) || leader >= 0 && at != leader {
				return false
			}
			leader = at
			for _, j := range among {
				if m := memberOf(r.GetMembers(), j); m.GetControlAddress() == "" {
					return false
				}
			}
		}
		return true
	})
	return leader
}

func memberOf(members []*pb.Member, i int) *pb.Member {
	for _, m := range members {
		if m.GetId() == fmt.Sprint("n", i+1) {
			return m
		}
	}
	return nil
}

// TestClusterFormsAndLosesItsLeader starts three processes with the same flags, and kills the one
// that leads: the others notice by its connections and do not wait for a timeout.
func TestClusterFormsAndLosesItsLeader(t *testing.T) {
	c := newNodes(t, 3)
	leader := c.leader(0, 1, 2)
	for i := range 3 {
		r := c.describe(i)
		if len(r.GetMembers()) != 3 || r.GetTerm() > 3 {
			t.Errorf("node %d after forming: %v", i, r)
		}
	}
	c.run[leader].kill()
	began := time.Now()
	rest := []int{(leader + 1) % 3, (leader + 2) % 3}
	next := c.leader(rest...)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the next leader took %v; a heartbeat timeout is 3 s", took)
	}
	c.start(leader)
	if again := c.leader(0, 1, 2); again != next {
		t.Errorf("node %d led; with node %d back, %d does", next, leader, again)
	}
}

func TestClusterFlags(t *testing.T) {
	tcp := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8001}
	for _, c := range []struct {
		flags clusterFlags
		grpc  string
		want  string
	}{
		{clusterFlags{join: []string{"a:1"}}, "a:1", "--join needs --raft"},
		{clusterFlags{raft: "a:2", join: []string{"a:1"}, expect: 2}, "a:1", "--bootstrap-expect: 2 nodes, but --join names 1"},
		{clusterFlags{raft: "a:2", join: []string{"a"}}, "a:1", `--join: "a" is not host:port`},
		{clusterFlags{raft: "a:2", join: []string{"a:1"}}, ":8001", "--advertise-grpc"},
		{clusterFlags{raft: "0.0.0.0:2", join: []string{"a:1"}}, "a:1", "--advertise-raft"},
		{clusterFlags{raft: "a:2", advertiseRaft: "b", join: []string{"a:1"}}, "a:1", `--advertise-raft: "b" is not host:port`},
	} {
		err := c.flags.apply(&scheduler.Settings{}, c.grpc, tcp)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q in it", c.flags, err, c.want)
		}
	}
	var s scheduler.Settings
	if err := (&clusterFlags{raft: ":8003", advertiseRaft: "b:8003", join: []string{"a:1"}}).apply(&s, "a:1", tcp); err != nil ||
		s.RaftListen != ":8003" || s.RaftAdvertise != "b:8003" || s.ControlAdvertise != "a:1" {
		t.Errorf("settings %+v, %v", s, err)
	}
}
