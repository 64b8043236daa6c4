// Command control measures the control plane through its clients' door, with processes of bin/quire on
// this machine: what durability costs (-only durability), how long a killed leader is missed (-only
// failover), and what a large pool costs (-only scale).
package main

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/quire-serve/quire/bench"
)

type options struct {
	binary, dir, out string
	only, scale      string
	rounds, kills    int
}

func main() {
	var o options
	flag.StringVar(&o.binary, "quire", "bin/quire", "the binary to measure")
	flag.StringVar(&o.dir, "dir", "", "folder on the disk to measure (default: the temporary folder)")
	flag.StringVar(&o.out, "out", "bench/results", "folder of the results; empty: print only")
	flag.StringVar(&o.only, "only", "", "durability, failover or scale (default: all)")
	flag.StringVar(&o.scale, "scale", "20,10,5", "by how much the load of a large pool is divided, one measurement each; 1 is 1,000 workers with 10,000 streams")
	flag.IntVar(&o.rounds, "rounds", 12, "pairs of durability")
	flag.IntVar(&o.kills, "kills", 20, "leaders to kill")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "control:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp(o.dir, "quire-bench-*")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o.dir = dir
	var report bytes.Buffer
	fmt.Fprintf(&report, "# The control plane\n\n%s, %d cores of %s. Made by `go run ./bench/control`.\n", time.Now().UTC().Format(time.DateOnly), runtime.NumCPU(), cpuName())
	parts := []struct {
		name    string
		measure func(context.Context, options, io.Writer) error
	}{{"durability", durability}, {"failover", failover}, {"scale", scale}}
	for _, part := range parts {
		if o.only != "" && o.only != part.name {
			continue
		}
		if err := part.measure(ctx, o, &report); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	fmt.Print(report.String())
	if o.out == "" || o.only != "" {
		return nil
	}
	return os.WriteFile(filepath.Join(o.out, "control.md"), report.Bytes(), 0o644)
}

func cpuName() string {
	data, _ := os.ReadFile("/proc/cpuinfo") // Elsewhere there is none, and no name.
	for line := range strings.Lines(string(data)) {
		if name, ok := strings.CutPrefix(line, "model name"); ok {
			return strings.TrimSpace(strings.TrimLeft(name, "\t :"))
		}
	}
	return "unknown processor"
}

// process is a running quire.
type process struct {
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{}
}

func start(o options, args ...string) (*process, error) {
	p := &process{cmd: exec.Command(o.binary, args...), done: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	go func() { defer close(p.done); _ = p.cmd.Wait() }()
	return p, nil
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // It may have ended.
	<-p.done
}

// nodes are control-plane nodes with a worker, all on loopback.
type nodes struct {
	o          options
	http, args []string
	grpc       []string
	control    []string // ports for the cluster
	start      []func() (*process, error)
	run        []*process
	worker     *process
}

// startServers starts nodes without a worker. They may not be ready yet.
func startServers(o options, name string, size int, args ...string) (*nodes, error) {
	n := &nodes{o: o, args: args}
	var raft []string
	for range size {
		n.http, n.grpc, raft = append(n.http, freePort()), append(n.grpc, freePort()), append(raft, freePort())
		n.control = append(n.control, freePort())
	}
	join := strings.Join(n.control, ",")
	for i := range size {
		args := append([]string{
			"server", "--id", fmt.Sprint("n", i+1), "--model", "tiny", "--data", filepath.Join(o.dir, fmt.Sprint(name, i)),
			"--http", n.http[i], "--grpc", n.grpc[i], "--cluster", n.control[i],
		}, args...)
		if size > 1 {
			args = append(args, "--raft", raft[i], "--join", join)
		}
		n.start = append(n.start, func() (*process, error) { return start(o, args...) })
		p, err := n.start[i]()
		if err != nil {
			n.stop()
			return nil, err
		}
		n.run = append(n.run, p)
	}
	return n, nil
}

func startNodes(ctx context.Context, o options, name string, size int, args ...string) (*nodes, error) {
	n, err := startServers(o, name, size, args...)
	if err != nil {
		return nil, err
	}
	join := strings.Join(n.control, ",")
	n.worker, err = start(o, "worker", "--id", "w", "--model", "tiny", "--listen", freePort(), "--control", join, "--threads", "1", "--prefix-cache=false")
	if err == nil {
		for i := range size {
			err = errors.Join(err, n.ready(ctx, i))
		}
	}
	if err != nil {
		n.stop()
		return nil, err
	}
	return n, nil
}

func (n *nodes) ready(ctx context.Context, i int) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	return retry(ctx, func() error {
		resp, err := http.Get("http://" + n.http[i] + "/health")
		if err != nil {
			return err
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return errors.New(resp.Status)
		}
		return nil
	})
}

func (n *nodes) stop() {
	for _, p := range n.run {
		p.kill()
	}
	if n.worker != nil {
		n.worker.kill()
	}
}

// retry calls f until it succeeds or ctx ends.
func retry(ctx context.Context, f func() error) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		case <-tick.C:
		}
	}
}

func freePort() string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err) // A machine without loopback measures nothing.
	}
	defer l.Close()
	return l.Addr().String()
}

func median[T cmp.Ordered](values []T) T {
	values = slices.Sorted(slices.Values(values))
	return values[len(values)/2]
}

// durability alternates between a node that writes its log to the disk and one that keeps it in memory.
func durability(ctx context.Context, o options, out io.Writer) error {
	disk, err := startNodes(ctx, o, "disk", 1, "--durability", "disk")
	if err != nil {
		return err
	}
	defer disk.stop()
	local, err := startNodes(ctx, o, "local", 1, "--durability", "local")
	if err != nil {
		return err
	}
	defer local.stop()
	sides := []*nodes{disk, local}
	var first [2][]time.Duration
	var rates [2][]float64
	var firstPairs []time.Duration
	var ratePairs []float64
	for round := range o.rounds {
		var ttft [2]time.Duration
		var rate [2]float64
		for k := range 2 {
			side := (round + k) % 2
			load := bench.Load{URL: "http://" + sides[side].http[0], Model: "tiny", Prompt: 32, Output: 2, Vocab: 250, Streams: 1}
			var each []time.Duration
			for i := range 30 { // One at a time: nothing but the admission is waited for.
				load.Seed = uint64(round*1000 + i)
				r, err := load.Run(ctx)
				if err != nil {
					return err
				}
				each = append(each, r.TTFT...)
			}
			ttft[side] = median(each)
			load.Streams, load.Output, load.Seed = 16, 480, uint64(round)
			r, err := load.Run(ctx)
			if err != nil {
				return err
			}
			rate[side] = r.OutputRate
		}
		for side := range 2 {
			first[side] = append(first[side], ttft[side])
			rates[side] = append(rates[side], rate[side])
		}
		firstPairs = append(firstPairs, ttft[0]-ttft[1])
		ratePairs = append(ratePairs, 100*(rate[0]/rate[1]-1))
	}
	fmt.Fprintf(out, `
## What durability costs

One node and one worker with the tiny model; medians of %d alternating rounds. Time to first token: 30
streams a round, one at a time. Output: 16 streams of 480 tokens at once.

| | disk | local | disk beside local, in pairs |
|---|---|---|---|
| time to first token, ms | %.2f | %.2f | %+.2f |
| output, tokens/s | %.0f | %.0f | %+.1f %% |
`, o.rounds, ms(median(first[0])), ms(median(first[1])), ms(median(firstPairs)),
		median(rates[0]), median(rates[1]), median(ratePairs))
	return nil
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// failover kills the leader of three nodes again and again.
func failover(ctx context.Context, o options, out io.Writer) error {
	n, err := startNodes(ctx, o, "node", 3)
	if err != nil {
		return err
	}
	defer n.stop()
	var led, admitted []time.Duration
	for range o.kills {
		leader, err := n.leader(ctx, strings.Join(n.control, ","))
		if err != nil {
			return err
		}
		other := (leader + 1) % 3
		n.run[leader].kill()
		began := time.Now()
		answered := make(chan error, 1)
		var took time.Duration
		go func() {
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			load := bench.Load{URL: "http://" + n.http[other], Model: "tiny", Prompt: 8, Output: 1, Vocab: 250, Streams: 1}
			err := retry(ctx, func() error { _, err := load.Run(ctx); return err })
			took = time.Since(began)
			answered <- err
		}()
		if _, err := n.leader(ctx, n.control[other]); err != nil {
			return err
		}
		led = append(led, time.Since(began))
		if err := <-answered; err != nil {
			return err
		}
		admitted = append(admitted, took)
		if n.run[leader], err = n.start[leader](); err != nil {
			return err
		}
		if err := n.ready(ctx, leader); err != nil {
			return err
		}
	}
	fmt.Fprintf(out, `
## A leader is killed

Three nodes and a worker, %d times kill -9 of the leader. A request is sent to another node at once; its
answer takes an admission by the next leader. The time to the next leader includes that of a
`+"`quire raft peers`"+` that asks for it.

| s | median | worst |
|---|---|---|
| next leader known | %.2f | %.2f |
| request answered | %.2f | %.2f |
`, o.kills, median(led).Seconds(), worst(led).Seconds(), median(admitted).Seconds(), worst(admitted).Seconds())
	return nil
}

func worst(d []time.Duration) time.Duration { return slices.Max(append(d, math.MinInt64)) }

// leader asks the cluster who leads; it waits until someone does.
func (n *nodes) leader(ctx context.Context, servers string) (int, error) {
	out, err := exec.CommandContext(ctx, n.o.binary, "raft", "peers", "--control", servers).CombinedOutput()
	if err != nil {
		return 0, fmt.Errorf("%w: %s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		if len(f) > 1 && f[1] == "leader" {
			return int(f[0][1] - '1'), nil
		}
	}
	return 0, fmt.Errorf("no leader in %s", out)
}
