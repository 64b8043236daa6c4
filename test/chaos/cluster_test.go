//go:build linux

package chaos

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/trust"
)

const (
	controlNodes = 3
	workerNodes  = 3
	// diskBytes is the size of the small disk: the log's first segment and little more. That of the disk
	// that can hang is far more than a run needs, and takes what is written.
	diskBytes, hangingBytes = 160 << 20, 4 << 30
)

// node is a control-plane node.
type node struct {
	*process
	*front
	id, data string
	// control is the port for the cluster, as an operator reaches it.
	control *grpc.ClientConn
}

// cluster is what is under test.
type cluster struct {
	t       *testing.T
	model   string
	network *network // nil: all on the loopback
	nodes   []*node
	workers []*process
	// small is the node with the small disk, hangs the one whose disk can hang; -1 if there is none.
	small, hangs int
	// without says which faults cannot be made here, and why.
	without []string
}

// startCluster starts everything and waits until it serves.
func startCluster(t *testing.T, dir, model, loopback string) *cluster {
	t.Helper()
	c := &cluster{t: t, model: model, small: -1, hangs: -1}
	if loopback != "" {
		c.without = append(c.without, "network faults, full and hanging disk: "+loopback)
	} else {
		c.network = &network{}
		if _, err := c.network.plug(); err != nil { // this process
			c.network = nil
			c.without = append(c.without, "network faults: "+err.Error())
		} else {
			t.Cleanup(c.network.close)
		}
	}
	binary := build(t)
	certificates := filepath.Join(dir, "certs")
	makeCertificates := []string{"tls", "issue", "--dir", certificates, "operator/chaos"}
	var machines []*machine
	for range controlNodes + workerNodes {
		machines = append(machines, c.machine())
	}
	var controls []string
	for i, m := range machines[:controlNodes] {
		controls = append(controls, m.listen(t, 8004))
		makeCertificates = append(makeCertificates, fmt.Sprintf("node/n%d=%s", i+1, m.host))
	}
	for i, m := range machines[controlNodes:] {
		makeCertificates = append(makeCertificates, fmt.Sprintf("worker/w%d=%s", i+1, m.host))
	}
	for _, args := range [][]string{{"tls", "ca", "--dir", certificates}, makeCertificates} {
		if out, err := exec.Command(binary, args...).CombinedOutput(); err != nil {
			t.Fatalf("quire tls: %v\n%s", err, out)
		}
	}
	files := func(id string) trust.Files {
		return trust.Files{Cert: filepath.Join(certificates, id+".pem"), Key: filepath.Join(certificates, id+"-key.pem"), CA: filepath.Join(certificates, "ca.pem")}
	}
	flags := func(id string) []string {
		f := files(id)
		return []string{"--tls-cert", f.Cert, "--tls-key", f.Key, "--tls-ca", f.CA}
	}
	operator, err := trust.Load(files("chaos"), func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	for i, m := range machines[:controlNodes] {
		n := &node{id: fmt.Sprint("n", i+1), data: filepath.Join(dir, fmt.Sprint("n", i+1))}
		if err := os.MkdirAll(n.data, 0o755); err != nil {
			t.Fatal(err)
		}
		if i == controlNodes-1 && loopback == "" {
			if err := smallDisk(t, n.data, diskBytes); err != nil {
				c.without = append(c.without, "full disk: "+err.Error())
			} else {
				c.small = i
			}
		}
		if i == 0 && loopback == "" {
			if err := hangingDisk(t, filepath.Join(dir, n.id+".disk"), n.data, hangingBytes); err != nil {
				c.without = append(c.without, "hanging disk: "+err.Error())
			} else {
				c.hangs = i
			}
		}
		web, api := m.listen(t, 8000), m.listen(t, 8001)
		n.process = &process{name: n.id, machine: m, log: filepath.Join(dir, n.id+".log"), command: append(append(uptime(i),
			binary, "server", "--id", n.id, "--model", model, "--http", web, "--grpc", api, "--cluster", controls[i], "--raft", m.listen(t, 8003),
			"--join", strings.Join(controls, ","), "--data", n.data, "--stable-after", "2s",
		), flags(n.id)...)}
		if n.front, err = newFront(n.id, web, api); err != nil {
			t.Fatal(err)
		}
		n.control, err = transport.Dial(operator, controls[i], transport.Expected{Role: trust.Node, Name: n.id},
			grpc.WithContextDialer(func(ctx context.Context, address string) (net.Conn, error) {
				return dialer.DialContext(ctx, "tcp", address)
			}))
		if err != nil {
			t.Fatal(err)
		}
		c.nodes = append(c.nodes, n)
	}
	differences := differentWorkers(model)
	for i, m := range machines[controlNodes:] {
		id := fmt.Sprint("w", i+1)
		c.workers = append(c.workers, &process{name: id, machine: m, log: filepath.Join(dir, id+".log"), command: append([]string{
			// Workers take what is left of the processors: what is measured is the cluster, not starvation.
			"nice", "-n", "5", binary, "worker", "--id", id, "--model", model, "--threads", "1", "--listen", m.listen(t, 8002),
			"--control", strings.Join(controls, ","),
		}, append(differences[i], flags(id)...)...)})
	}
	t.Cleanup(func() {
		for _, p := range c.processes() {
			if p.cmd != nil {
				p.signal(syscall.SIGCONT)
				p.kill()
			}
		}
		if t.Failed() {
			c.logs()
		}
	})
	for _, p := range c.processes() {
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	if err := c.settle(ctx); err != nil {
		t.Fatalf("the cluster does not start: %v", err)
	}
	return c
}

// differentWorkers are flags that make each worker another one: in what it holds, how much it does at once,
// and by which instructions it computes. What a request says must not depend on any of it.
func differentWorkers(model string) [workerNodes][]string {
	small := map[string]string{"tiny": "1024", "smollm2-135m": "512"}[model]
	kernels := "" // the best of this machine
	if cpu, _ := os.ReadFile("/proc/cpuinfo"); strings.Contains(string(cpu), " avx2 ") {
		kernels = "avx2"
	}
	return [workerNodes][]string{
		{"--kv-bytes", fmt.Sprint(128 << 20)},
		{"--kv-bytes", fmt.Sprint(64 << 20), "--context", small, "--cpu-path", kernels, "--speculate", "0"},
		{"--kv-bytes", fmt.Sprint(96 << 20), "--max-sequences", "24", "--max-batch-tokens", "128", "--kv-host-bytes", fmt.Sprint(32 << 20)},
	}
}

// uptime starts a node's program with a steady clock that says that its machine has been up for another
// time, as it is where each node has a machine. Where that can't be the clock is that of all.
func uptime(i int) []string {
	offset := fmt.Sprint(i * 1_000_003) // seconds
	with := []string{"unshare", "--time", "--monotonic", offset, "--boottime", offset, "--"}
	if i == 0 || exec.Command(with[0], append(with[1:], "true")...).Run() != nil {
		return nil
	}
	return with
}

func (c *cluster) machine() *machine {
	if c.network == nil {
		return &machine{host: "127.0.0.1"}
	}
	p, err := c.network.plug()
	if err != nil {
		c.t.Fatal(err)
	}
	return &machine{port: p, host: p.address.String()}
}

func (c *cluster) processes() (all []*process) {
	for _, n := range c.nodes {
		all = append(all, n.process)
	}
	return append(all, c.workers...)
}

func (c *cluster) fronts() (all []*front) {
	for _, n := range c.nodes {
		all = append(all, n.front)
	}
	return all
}

// logs shows the end of each process's log.
func (c *cluster) logs() {
	for _, p := range c.processes() {
		text, _ := os.ReadFile(p.log)
		c.t.Logf("%s said last:\n%s", p.name, text[max(0, len(text)-2000):])
	}
}

// describe asks a node about itself.
func (n *node) describe(ctx context.Context) (*pb.DescribeResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	return pb.NewClusterClient(n.control).Describe(ctx, &pb.DescribeRequest{})
}

// leader is the node that the most nodes hold to be the leader of the newest term; nil if none.
func (c *cluster) leader(ctx context.Context) *node {
	var id string
	var term uint64
	for _, n := range c.nodes {
		d, err := n.describe(ctx)
		if err == nil && d.GetLeaderId() != "" && d.GetTerm() >= term {
			id, term = d.GetLeaderId(), d.GetTerm()
		}
	}
	for _, n := range c.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// metric sums a metric's series at a node.
func (n *node) metric(ctx context.Context, name string) (float64, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, n.http+"/metrics", nil)
	if err != nil {
		return 0, err
	}
	resp, err := n.web.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return 0, err
	}
	sum, found := 0.0, false
	for line := range strings.Lines(string(text)) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if bare, _, _ := strings.Cut(series, "{"); ok && bare == name {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				return 0, fmt.Errorf("%s: metric %q: %w", n.id, line, err)
			}
			sum, found = sum+v, true
		}
	}
	if !found {
		return 0, fmt.Errorf("%s has no metric %s", n.id, name)
	}
	return sum, nil
}

// fatal is an error that waiting does not mend.
type fatal struct{ error }

// until polls a condition of the world outside this process. The error is why it does not hold.
func until(ctx context.Context, condition func() error) error {
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		err := condition()
		var never fatal
		if err == nil || errors.As(err, &never) {
			return err
		}
		select {
		case <-ctx.Done():
			return err
		case <-tick.C:
		}
	}
}

// settle waits until every node votes, follows one leader closely, and serves with every worker.
func (c *cluster) settle(ctx context.Context) error {
	return until(ctx, func() error {
		if s := surprises.all(); len(s) > 0 {
			return fatal{errors.New(s[0])}
		}
		var leader string
		for _, n := range c.nodes {
			d, err := n.describe(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", n.id, err)
			}
			if d.GetLeaderId() == "" || leader != "" && d.GetLeaderId() != leader {
				return fmt.Errorf("%s follows %q, others %q", n.id, d.GetLeaderId(), leader)
			}
			leader = d.GetLeaderId()
			voters := 0
			for _, m := range d.GetMembers() {
				if m.GetSuffrage() == pb.Suffrage_SUFFRAGE_VOTER {
					voters++
				}
			}
			if voters != len(c.nodes) {
				return fmt.Errorf("%s knows %d voters", n.id, voters)
			}
			models, err := pb.NewInferenceClient(n.conn).ListModels(ctx, &pb.ListModelsRequest{})
			if err != nil {
				return fmt.Errorf("%s: %w", n.id, err)
			}
			if len(models.GetModels()) == 0 || int(models.GetModels()[0].GetReadyWorkers()) != len(c.workers) {
				return fmt.Errorf("%s serves with %v", n.id, models.GetModels())
			}
		}
		return nil
	})
}

// agree waits until all nodes have applied the same log, and compares their hashes over it.
func (c *cluster) agree(ctx context.Context) error {
	return until(ctx, func() error {
		var index, hash uint64
		for i, n := range c.nodes {
			d, err := n.describe(ctx)
			switch {
			case err != nil:
				return fmt.Errorf("%s: %w", n.id, err)
			case i == 0:
				index, hash = d.GetAppliedIndex(), d.GetChainHash()
			case d.GetAppliedIndex() != index:
				return fmt.Errorf("%s has applied %d entries, %s %d", n.id, d.GetAppliedIndex(), c.nodes[0].id, index)
			case d.GetChainHash() != hash:
				return fmt.Errorf("at entry %d %s has chain hash %016x, %s %016x", index, n.id, d.GetChainHash(), c.nodes[0].id, hash)
			}
		}
		return nil
	})
}

// ended waits until every request that was admitted has ended, whoever sent it.
func (c *cluster) ended(ctx context.Context) error {
	return until(ctx, func() error {
		leader := c.leader(ctx)
		if leader == nil {
			return errors.New("nobody leads")
		}
		call, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		r, err := pb.NewOperatorClient(leader.control).ListRequests(call, &pb.ListRequestsRequest{})
		if err != nil {
			return err
		}
		if left := r.GetRequests(); len(left) > 0 {
			return fmt.Errorf("%d requests have not ended, one of them %v", len(left), left[0])
		}
		return nil
	})
}

// free waits until no block, sequence or request is held anywhere.
func (c *cluster) free(ctx context.Context) error {
	return until(ctx, func() error {
		var all []error
		for _, n := range c.nodes {
			for _, name := range []string{"quire_requests_running", "quire_requests_waiting", "quire_kv_cache_usage_ratio"} {
				if v, err := n.metric(ctx, name); err != nil {
					all = append(all, fmt.Errorf("%s: %w", n.id, err))
				} else if v != 0 {
					all = append(all, fmt.Errorf("%s: %s is %v", n.id, name, v))
				}
			}
		}
		return errors.Join(all...)
	})
}
