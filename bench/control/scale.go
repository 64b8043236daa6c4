package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// The whole load: scale divides the first two.
	scaleWorkers = 1000
	scaleRate    = 500 // requests a second
	// scaleLife is how long a stream takes: with the rate that makes 10,000 streams at a time.
	scaleLife    = 20 * time.Second
	scaleMeasure = 15 * time.Second
)

// scale measures what a pool of simulated workers costs the leader and a gateway, at parts of the whole load.
func scale(ctx context.Context, o options, out io.Writer) error {
	fmt.Fprintf(out, `
## A large pool

Two nodes, each a process; one leads, all clients are at the other one, whose gateway answers them. Workers are
simulated in a process of their own with the clients: they keep a worker's side of the protocol and compute
nothing. Streams last %v, a token every %v. Processor time of the two nodes over %v, from /proc; the gateway's
node applies the log too.

| part of the load | workers | requests/s | streams | leader, cores | gateway, cores | failed |
|---|---|---|---|---|---|---|
`, scaleLife, poolStep, scaleMeasure)
	for _, factor := range o.factors() {
		if err := scaleAt(ctx, o, factor, out); err != nil {
			return err
		}
	}
	return nil
}

// factors are by how much the load is divided.
func (o options) factors() (list []int) {
	for f := range strings.SplitSeq(o.scale, ",") {
		if n, err := strconv.Atoi(f); err == nil && n > 0 {
			list = append(list, n)
		}
	}
	return list
}

func scaleAt(ctx context.Context, o options, factor int, out io.Writer) error {
	n, err := startServers(o, fmt.Sprint("scale", factor), 2, "--max-requests", "20000", "--queue-requests", "20000")
	if err != nil {
		return err
	}
	defer n.stop()
	waiting, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	leader := 0
	if err := retry(waiting, func() (err error) { leader, err = n.leader(ctx, strings.Join(n.control, ",")); return err }); err != nil {
		return err
	}
	other := 1 - leader
	size, rate := scaleWorkers/factor, scaleRate/factor
	p, err := startPool(ctx, n.control[leader], "tiny", size)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := n.ready(ctx, other); err != nil {
		return err
	}
	load, stop := context.WithCancel(ctx)
	var streams sync.WaitGroup
	defer streams.Wait()
	defer stop()
	var running, failed atomic.Int64
	client := &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: rate * int(scaleLife/time.Second)}}
	defer client.CloseIdleConnections()
	streams.Go(func() {
		next := time.NewTicker(time.Second / time.Duration(rate))
		defer next.Stop()
		for i := 0; ; i++ {
			select {
			case <-load.Done():
				return
			case <-next.C:
			}
			streams.Go(func() {
				running.Add(1)
				defer running.Add(-1)
				if err := scaleStream(load, client, n.http[other], i); err != nil && load.Err() == nil {
					failed.Add(1)
					fmt.Fprintln(os.Stderr, "control: a stream failed:", err)
				}
			})
		}
	})
	pause := func(d time.Duration) error {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(d):
			return nil
		}
	}
	if err := pause(scaleLife + 5*time.Second); err != nil {
		return err
	}
	began := time.Now()
	var before [2]time.Duration
	for i := range before {
		before[i] = n.run[i].cpu()
	}
	if err := pause(scaleMeasure); err != nil {
		return err
	}
	took := time.Since(began).Seconds()
	cores := func(i int) float64 { return (n.run[i].cpu() - before[i]).Seconds() / took }
	fmt.Fprintf(out, "| 1/%d | %d | %d | %d | %.2f | %.2f | %d |\n", factor, size, rate, running.Load(), cores(leader), cores(other), failed.Load())
	return nil
}

// scaleStream reads one stream to its end.
func scaleStream(ctx context.Context, client *http.Client, address string, seed int) error {
	body := fmt.Sprintf(`{"model":"tiny","prompt":"request %d of many that are alike but not the same","max_tokens":%d,"stream":true,"ignore_eos":true}`,
		seed, scaleLife/poolStep)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+address+"/v1/completions", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	answer := tail{}
	if _, err := io.Copy(&answer, resp.Body); err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK || !bytes.Contains(answer.last, []byte("[DONE]")) {
		return fmt.Errorf("%s: %q", resp.Status, answer.last)
	}
	return nil
}

// tail keeps the end of what is written to it.
type tail struct{ last []byte }

func (t *tail) Write(p []byte) (int, error) {
	t.last = append(t.last, p...)
	t.last = t.last[max(0, len(t.last)-512):]
	return len(p), nil
}

// cpu is the processor time that the process has used.
func (p *process) cpu() time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.cmd.Process.Pid))
	if err != nil {
		return 0 // It has ended; its streams say so.
	}
	// Fields are counted from behind the name, which may hold anything.
	f := strings.Fields(string(data[bytes.LastIndexByte(data, ')')+1:]))
	user, _ := strconv.ParseInt(f[11], 10, 64)
	system, _ := strconv.ParseInt(f[12], 10, 64)
	return time.Duration(user+system) * (time.Second / 100)
}
