package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"

	"github.com/quire-serve/quire/bench"
)

// quire is a `quire dev` process of ours.
type quire struct {
	cmd     *exec.Cmd
	url     string
	model   string
	kernels string
	data    string
}

// startQuire starts one with a KV cache of kv bytes, and args.
func startQuire(ctx context.Context, o *options, kv int, args ...string) (*quire, error) {
	data, err := os.MkdirTemp("", "quire-bench-")
	if err != nil {
		return nil, err
	}
	http, err := freePort()
	if err != nil {
		return nil, err
	}
	grpc, err := freePort()
	if err != nil {
		return nil, err
	}
	cluster, err := freePort()
	if err != nil {
		return nil, err
	}
	q := &quire{url: "http://" + http, model: o.model, data: data}
	q.cmd = exec.Command(o.quire, append([]string{"dev", "--http", http, "--grpc", grpc, "--cluster", cluster, "--data", data, "--model", o.model, "--cpu-path", o.path, "--kv-bytes", strconv.Itoa(kv), "--prompt", ""}, args...)...)
	var log bytes.Buffer
	q.cmd.Stdout, q.cmd.Stderr = &log, &log
	if err := q.cmd.Start(); err != nil {
		return nil, err
	}
	for range 600 {
		if q.ready() {
			for line := range strings.Lines(log.String()) {
				if _, after, ok := strings.Cut(line, "kernels "); ok {
					q.kernels, _, _ = strings.Cut(strings.TrimSpace(after), ",")
				}
			}
			return q, nil
		}
		select {
		case <-ctx.Done():
			q.stop()
			return nil, ctx.Err()
		case <-time.After(100 * time.Millisecond):
		}
	}
	q.stop()
	return nil, fmt.Errorf("quire dev was not ready within a minute; it said:\n%s", log.String())
}

func (q *quire) ready() bool {
	resp, err := http.Get(q.url + "/health")
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

func (q *quire) stop() {
	_ = q.cmd.Process.Signal(os.Interrupt)
	_ = q.cmd.Wait()
	_ = os.RemoveAll(q.data)
}

func (q *quire) burst(ctx context.Context, n int, seed uint64) (rates, error) {
	r, err := bench.Load{URL: q.url, Model: q.model, Streams: n, Prompt: 128, Output: 128, Vocab: 48000, Seed: seed<<8 | uint64(n)}.Run(ctx)
	if err != nil {
		return rates{}, err
	}
	return rates{r.OutputRate, r.PrefillRate, r.DecodeRate, r.TTFT[len(r.TTFT)/2].Seconds()}, nil
}

// cpuSeconds is the processor time that the process has had.
func (q *quire) cpuSeconds() float64 {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", q.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	// Fields 14 and 15, in ticks of 10 ms; the second is a name in brackets.
	_, rest, _ := strings.Cut(string(text), ") ")
	var ticks float64
	for i, field := range strings.Fields(rest) {
		if i == 11 || i == 12 {
			n, _ := strconv.ParseFloat(field, 64)
			ticks += n
		}
	}
	return ticks / 100
}

// peakMB is the most memory the process ever had resident.
func (q *quire) peakMB() float64 {
	f, err := os.Open(fmt.Sprintf("/proc/%d/status", q.cmd.Process.Pid))
	if err != nil {
		return 0
	}
	defer f.Close()
	for s := bufio.NewScanner(f); s.Scan(); {
		var kb float64
		if _, err := fmt.Sscanf(s.Text(), "VmHWM: %f kB", &kb); err == nil {
			return kb / 1000
		}
	}
	return 0
}

// modelFile asks quire where the model lies, pulling it when it is missing.
func modelFile(ctx context.Context, binary, model string) (string, error) {
	if _, err := os.Stat(model); err == nil {
		return model, nil
	}
	pull := exec.CommandContext(ctx, binary, "model", "pull", model)
	pull.Stderr = os.Stderr
	if err := pull.Run(); err != nil {
		return "", fmt.Errorf("quire model pull %s: %w", model, err)
	}
	text, err := exec.CommandContext(ctx, binary, "model", "inspect", model, "-o", "json").Output()
	if err != nil {
		return "", fmt.Errorf("quire model inspect %s: %w", model, err)
	}
	var info struct{ Path string }
	err = json.Unmarshal(text, &info)
	return info.Path, err
}

func freePort() (string, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer l.Close()
	return l.Addr().String(), nil
}
