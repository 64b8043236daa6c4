package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler"
	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/trust"
)

// nodes are control-plane nodes as processes of their own.
type nodes struct {
	t    *testing.T
	dir  string
	join string
	// args are more flags of node i.
	args func(i int) []string
	raft []string
	grpc []string
	http []string
	// control are the ports for the cluster; certificates are for those that are no nodes, nil without TLS.
	control      []string
	certificates func(role trust.Role, name string) trust.Files
	run          []*process
}

// newNodes starts size nodes that form a cluster.
func newNodes(t *testing.T, size int, args func(i int) []string) *nodes {
	t.Helper()
	c := placeNodes(t, size, args)
	for i := range size {
		c.start(i)
	}
	return c
}

// placeNodes gives nodes their folders and addresses.
func placeNodes(t *testing.T, size int, args func(i int) []string) *nodes {
	t.Helper()
	c := &nodes{t: t, dir: t.TempDir(), args: args, run: make([]*process, size)}
	for range size {
		c.control = append(c.control, freePort(t))
		c.grpc = append(c.grpc, freePort(t))
		c.http = append(c.http, freePort(t))
		c.raft = append(c.raft, freePort(t))
	}
	c.join = strings.Join(c.control, ",")
	return c
}

func (c *nodes) start(i int) {
	c.t.Helper()
	c.startWith(i, append([]string{"--raft", c.raft[i], "--join", c.join}, c.args(i)...)...)
}

func (c *nodes) startWith(i int, args ...string) {
	c.t.Helper()
	p := &process{t: c.t, http: c.http[i], grpc: c.grpc[i], control: c.control[i], done: make(chan struct{})}
	p.cmd = command(c.t, append([]string{
		"server", "--id", fmt.Sprint("n", i+1), "--model", "tiny", "--data", c.data(i), "--http", c.http[i], "--grpc", c.grpc[i], "--cluster", c.control[i],
	}, args...)...)
	p.start()
	c.run[i] = p
}

// secureNodes are nodes with TLS, whose certificates the command line has made.
func secureNodes(t *testing.T, size int) *nodes {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "certs")
	issue := []string{"tls", "issue", "--dir", dir, "operator/test", "operator/other", "worker/w=127.0.0.1", "worker/x=127.0.0.1", "gateway/g"}
	for i := range size {
		issue = append(issue, fmt.Sprintf("node/n%d=127.0.0.1,localhost", i+1))
	}
	for _, args := range [][]string{{"tls", "ca", "--dir", dir}, issue} {
		if code, _, stderr := runQuire(t, args...); code != 0 {
			t.Fatalf("quire %v: %s", args, stderr)
		}
	}
	files := func(_ trust.Role, name string) trust.Files {
		return trust.Files{Cert: filepath.Join(dir, name+".pem"), Key: filepath.Join(dir, name+"-key.pem"), CA: filepath.Join(dir, "ca.pem")}
	}
	c := placeNodes(t, size, func(i int) []string { return (&tlsFlags{files: files(trust.Node, fmt.Sprint("n", i+1))}).args() })
	c.certificates = files
	for i := range size {
		c.start(i)
	}
	return c
}

func (c *nodes) data(i int) string { return filepath.Join(c.dir, fmt.Sprint("n", i+1)) }

// describe asks a node; nil if it does not answer.
func (c *nodes) describe(i int) *pb.DescribeResponse {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	certificates, err := c.tls(trust.Operator, "test").load()
	if err != nil {
		c.t.Fatal(err)
	}
	conn, closeConn, err := dialCluster(certificates, c.control[i], transport.Expected{Role: trust.Node})
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
			at := slices.Index(c.control, r.GetLeaderAddress())
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
// that leads: the others notice by its connections and do not wait for a timeout. The operators'
// commands see and change it all.
func TestClusterFormsAndLosesItsLeader(t *testing.T) {
	c := secureNodes(t, 3)
	old := c.leader(0, 1, 2)
	for i := range 3 {
		r := c.describe(i)
		if len(r.GetMembers()) != 3 || r.GetTerm() > 3 {
			t.Errorf("node %d after forming: %v", i, r)
		}
	}
	leader := (old + 1) % 3
	c.raftCommand(0, fmt.Sprintf("n%d leads", leader+1), "transfer", "--to", fmt.Sprint("n", leader+1))
	if got := c.leader(0, 1, 2); got != leader {
		t.Fatalf("node %d leads after the transfer, want %d", got, leader)
	}
	c.raftCommand(0, fmt.Sprintf("n%d leads", leader+1), "transfer", "--to", fmt.Sprint("n", leader+1))
	c.raftCommand(1, "no such member", "transfer", "--to", "n7")
	c.raftCommand(1, "still runs", "remove", fmt.Sprint("n", old+1))
	c.raftCommand(1, fmt.Sprintf(`"n%d" is the leader`, leader+1), "remove", fmt.Sprint("n", leader+1))
	c.raftCommand(1, `no member is called "n7"`, "remove", "n7")
	for i := range 3 {
		role := map[bool]string{true: "leader", false: "voter"}[i == leader]
		c.raftCommand(2, fmt.Sprintf("n%d  %-6s  %s", i+1, role, c.raft[i]), "peers")
	}
	c.run[0].waitFor("healthy", func() bool {
		code, stdout, _ := c.raftRun(0, "health")
		return code == 0 && strings.Contains(stdout, "may lose 1 voters")
	})

	c.run[leader].kill()
	began := time.Now()
	rest := []int{old, 3 - old - leader}
	next := c.leader(rest...)
	if took := time.Since(began); took > 3*time.Second {
		t.Errorf("the next leader took %v; a heartbeat timeout is 3 s", took)
	}
	if code, stdout, stderr := c.raftRun(next, "health"); code != 1 || !strings.Contains(stderr, "not healthy") || !strings.Contains(stdout, "never") {
		t.Errorf("health with a dead node: %d, %s%s", code, stdout, stderr)
	}
	c.raftCommand(next, "no member any more", "remove", fmt.Sprint("n", leader+1))
	if members := c.describe(next).GetMembers(); len(members) != 2 {
		t.Errorf("after removing one of three: %v", members)
	}
	c.start(leader)
	if again := c.leader(0, 1, 2); again != next {
		t.Errorf("node %d led; with node %d back, %d does", next, leader, again)
	}
	if m := memberOf(c.describe(next).GetMembers(), leader); m.GetSuffrage() != pb.Suffrage_SUFFRAGE_NON_VOTER {
		t.Errorf("a node that joined just now is %v", m)
	}
}

// TestClusterGrowsAndIsRepaired makes three nodes of one, gives a node other addresses, and another one
// an empty disk.
func TestClusterGrowsAndIsRepaired(t *testing.T) {
	c := placeNodes(t, 3, func(int) []string { return []string{"--stable-after", "100ms"} })
	votes := func(i int) func() bool {
		return func() bool {
			return memberOf(c.describe(c.leader(0, 1, 2)).GetMembers(), i).GetSuffrage() == pb.Suffrage_SUFFRAGE_VOTER
		}
	}
	c.startWith(0)
	c.leader(0)
	before := c.describe(0)
	c.run[0].interrupt()
	c.startWith(0, "--raft", c.raft[0], "--join", c.control[0], "--stable-after", "100ms")
	c.leader(0)
	c.start(1)
	c.start(2)
	for i := range 3 {
		c.run[i].waitFor("voting", votes(i))
	}
	if after := c.describe(2); after.GetAppliedIndex() <= before.GetAppliedIndex() || after.GetChainHash() != c.describe(0).GetChainHash() {
		t.Errorf("the new node knows %v, the old one knew %v when it was alone", after, before)
	}

	moved := 1
	c.run[moved].interrupt()
	c.control[moved], c.raft[moved] = freePort(t), freePort(t)
	c.start(moved)
	leader := c.leader(0, 1, 2)
	if m := memberOf(c.describe(leader).GetMembers(), moved); m.GetRaftAddress() != c.raft[moved] || m.GetControlAddress() != c.control[moved] ||
		m.GetSuffrage() != pb.Suffrage_SUFFRAGE_VOTER {
		t.Errorf("a node with new addresses is known as %v", m)
	}

	wiped := (leader + 1) % 3
	c.run[wiped].kill()
	if err := os.RemoveAll(c.data(wiped)); err != nil {
		t.Fatal(err)
	}
	c.start(wiped)
	c.run[leader].waitFor("told that the disk is new", func() bool {
		return strings.Contains(c.run[leader].out.String(), "came back without its log")
	})
	c.run[wiped].waitFor("voting again", votes(wiped))
	if _, stdout, _ := c.raftRun(wiped, "health"); strings.Count(stdout, fmt.Sprintf("%016x", c.describe(wiped).GetChainHash())) != 3 {
		t.Errorf("the nodes' chain hashes differ:\n%s", stdout)
	}

	// A second node with a name that is taken is told so, and changes nothing.
	c.control[wiped], c.grpc[wiped], c.raft[wiped], c.http[wiped] = freePort(t), freePort(t), freePort(t), freePort(t)
	first := c.run[wiped]
	c.dir = t.TempDir()
	c.start(wiped)
	<-c.run[wiped].done
	if text := c.run[wiped].out.String(); !strings.Contains(text, "is the id of the node at") {
		t.Errorf("a second node of the same name: %s", text)
	}
	select {
	case <-first.done:
		t.Error("the first node of that name ended")
	default:
	}
}

// raftRun runs `quire raft` against node i.
func (c *nodes) raftRun(i int, args ...string) (code int, stdout, stderr string) {
	c.t.Helper()
	return runQuire(c.t, slices.Concat([]string{"raft", "--control", c.control[i]}, c.tls(trust.Operator, "test").args(), args)...)
}

// tls are the flags of somebody in the cluster.
func (c *nodes) tls(role trust.Role, name string) *tlsFlags {
	if c.certificates == nil {
		return &tlsFlags{}
	}
	return &tlsFlags{files: c.certificates(role, name)}
}

// args are the flags as on a command line.
func (t *tlsFlags) args() []string {
	if t.files == (trust.Files{}) {
		return nil
	}
	return []string{"--tls-cert", t.files.Cert, "--tls-key", t.files.Key, "--tls-ca", t.files.CA}
}

// raftCommand wants a text in what `quire raft` says.
func (c *nodes) raftCommand(i int, want string, args ...string) {
	c.t.Helper()
	if code, stdout, stderr := c.raftRun(i, args...); !strings.Contains(stdout+stderr, want) {
		c.t.Errorf("quire raft %s: %d, %s%s; want %q in it", strings.Join(args, " "), code, stdout, stderr, want)
	}
}

func TestClusterFlags(t *testing.T) {
	tcp := &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 8004}
	with := tlsFlags{files: trust.Files{Cert: "c", Key: "k", CA: "a"}}
	open := tlsFlags{insecure: true}
	for _, c := range []struct {
		flags   clusterFlags
		cluster string
		want    string
	}{
		{clusterFlags{join: []string{"a:1"}}, "localhost:1", "--join needs --raft"},
		{clusterFlags{tls: with, raft: "a:2", join: []string{"a:1"}, expect: 2}, "a:1", "--bootstrap-expect: 2 nodes, but --join names 1"},
		{clusterFlags{tls: with, raft: "a:2", join: []string{"a"}}, "a:1", `--join: "a" is not host:port: the port is missing`},
		{clusterFlags{tls: with, raft: "a:2", join: []string{"http://a:1"}}, "a:1", `--join: "http://a:1" is a URL`},
		{clusterFlags{tls: with, raft: "a:2", join: []string{"a:1"}}, ":8004", "--advertise-cluster"},
		{clusterFlags{tls: with, raft: "0.0.0.0:2", join: []string{"a:1"}}, "a:1", "--advertise-raft"},
		{clusterFlags{tls: with, raft: "a:2", advertiseRaft: "b", join: []string{"a:1"}}, "a:1", `--advertise-raft: "b" is not host:port`},
		// Beyond this machine only with TLS, or where the operator says that he knows.
		{clusterFlags{}, "10.0.0.1:8004", "--cluster: 10.0.0.1:8004 is beyond this machine"},
		{clusterFlags{}, ":8004", "--cluster: :8004 is beyond this machine"},
		{clusterFlags{}, "0.0.0.0:8004", "--cluster: 0.0.0.0:8004 is beyond this machine"},
		{clusterFlags{raft: "10.0.0.1:2", join: []string{"localhost:1"}}, "localhost:1", "--raft: 10.0.0.1:2 is beyond this machine"},
		{clusterFlags{raft: "localhost:2", join: []string{"localhost:1", "10.0.0.2:1"}}, "localhost:1", "--join: 10.0.0.2:1 is beyond this machine"},
	} {
		err := c.flags.check(c.cluster)
		if err == nil {
			err = c.flags.apply(&scheduler.Settings{}, c.cluster, tcp)
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q in it", c.flags, err, c.want)
		}
	}
	for _, loopback := range []string{"127.0.0.1:8004", "localhost:8004", "[::1]:8004", "127.1.2.3:1"} {
		if err := (&clusterFlags{}).check(loopback); err != nil {
			t.Errorf("%s: %v", loopback, err)
		}
	}
	var s scheduler.Settings
	c := clusterFlags{raft: ":8003", advertiseRaft: "b:8003", tls: open, join: []string{"a:1"}}
	if err := errors.Join(c.check("a:1"), c.apply(&s, "a:1", tcp)); err != nil || s.RaftListen != ":8003" || s.RaftAdvertise != "b:8003" || s.ControlAdvertise != "a:1" {
		t.Errorf("settings %+v, %v", s, err)
	}
	for _, c := range []struct {
		flags tlsFlags
		want  string
	}{
		{tlsFlags{files: trust.Files{Cert: "c", Key: "k"}}, "--tls-ca is missing"},
		{tlsFlags{files: trust.Files{CA: "a"}}, "--tls-cert is missing"},
		{tlsFlags{files: with.files, insecure: true}, "contradicts"},
		{with, "--tls-cert: "},
	} {
		if _, err := c.flags.load(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%+v: %v, want %q in it", c.flags, err, c.want)
		}
	}
}
