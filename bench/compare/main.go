// Command compare measures Quire and llama.cpp in turn, on the same model file, machine and number
// of threads, and prints the medians and the ratio of each pair.
//
// Run it with `make bench`. It starts its own `quire dev` on free ports and ends it.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/quire-serve/quire/bench"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// kvBytes is Quire's KV cache: room for 16 streams and their predecessors' prefixes.
const kvBytes = 256 << 20

// row is one measured configuration: medians of the rounds, and of the ratios of the pairs.
type row struct {
	Streams int               `json:"streams"`
	Rounds  int               `json:"rounds"`
	Quire   rates             `json:"quire"`
	Peer    rates             `json:"llama_cpp"`
	Ratio   map[string]median `json:"ratio"`
}

type rates struct {
	Output  float64 `json:"output_rate"`
	Prefill float64 `json:"prefill_rate"`
	Decode  float64 `json:"decode_rate"`
	TTFT    float64 `json:"ttft_median_s"`
}

type median struct {
	Median float64 `json:"median"`
	Min    float64 `json:"min"`
	Max    float64 `json:"max"`
}

func run(ctx context.Context) error {
	binary := flag.String("quire", "bin/quire", "the quire binary")
	model := flag.String("model", "smollm2-135m", "name or path of the model")
	python := flag.String("python", "", "python with llama-cpp-python (default: .cache/bench-venv, made when missing)")
	streams := flag.String("streams", "1,4,16", "numbers of concurrent streams")
	rounds := flag.Int("rounds", 5, "rounds; each runs both, in alternating order")
	out := flag.String("out", "bench/results/llamacpp.json", "where the results go")
	alone := flag.Bool("alone", false, "measure Quire only")
	path := flag.String("path", "", "kernel path of Quire's CPU device (default: the best)")
	flag.Parse()

	file, err := modelFile(ctx, *binary, *model)
	if err != nil {
		return err
	}
	if !*alone && *python == "" {
		if *python, err = peerPython(ctx); err != nil {
			return err
		}
	}
	server, err := startQuire(ctx, *binary, *model, *path)
	if err != nil {
		return err
	}
	defer server.stop()
	fmt.Printf("%s, %d threads, kernels %s, %s\n", cpuName(), runtime.NumCPU(), server.kernels, filepath.Base(file))

	var rows []row
	for field := range strings.SplitSeq(*streams, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 {
			return fmt.Errorf("-streams: %q is not a number of streams", field)
		}
		var ours, theirs []rates
		for round := range *rounds {
			fmt.Fprintf(os.Stderr, "\r%2d streams, round %d of %d ", n, round+1, *rounds)
			measure := []func() error{
				func() error { r, err := server.burst(ctx, n, uint64(round)); ours = append(ours, r); return err },
				func() error { r, err := peerBurst(ctx, *python, file, n); theirs = append(theirs, r); return err },
			}
			if *alone {
				measure = measure[:1]
			} else if round%2 == 1 {
				slices.Reverse(measure)
			}
			for _, m := range measure {
				if err := m(); err != nil {
					return err
				}
			}
		}
		rows = append(rows, summarise(n, ours, theirs))
	}
	fmt.Fprintln(os.Stderr)
	printTable(rows)
	fmt.Printf("peak memory of quire: %.0f MB; model file × 2.5 + KV cache: %.0f MB\n", server.peakMB(), 2.5*fileMB(file)+kvBytes/1e6)
	if *alone {
		return nil
	}
	text, err := json.MarshalIndent(map[string]any{"cpu": cpuName(), "threads": runtime.NumCPU(), "kernels": server.kernels,
		"model": filepath.Base(file), "date": time.Now().UTC().Format(time.DateOnly), "peak_mb": server.peakMB(), "rows": rows}, "", "  ")
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(*out), 0o755); err != nil {
		return err
	}
	return os.WriteFile(*out, append(text, '\n'), 0o644)
}

func summarise(n int, ours, theirs []rates) row {
	pick := func(from []rates, f func(rates) float64) float64 {
		var v []float64
		for _, r := range from {
			v = append(v, f(r))
		}
		return middle(v).Median
	}
	all := func(from []rates) rates {
		if len(from) == 0 {
			return rates{}
		}
		return rates{pick(from, rates.output), pick(from, rates.prefill), pick(from, rates.decode), pick(from, rates.ttft)}
	}
	r := row{Streams: n, Rounds: len(ours), Quire: all(ours), Peer: all(theirs), Ratio: map[string]median{}}
	for name, f := range map[string]func(rates) float64{"output": rates.output, "prefill": rates.prefill, "decode": rates.decode} {
		var v []float64
		for i := range theirs {
			v = append(v, f(ours[i])/f(theirs[i]))
		}
		if len(v) > 0 {
			r.Ratio[name] = middle(v)
		}
	}
	return r
}

func (r rates) output() float64  { return r.Output }
func (r rates) prefill() float64 { return r.Prefill }
func (r rates) decode() float64  { return r.Decode }
func (r rates) ttft() float64    { return r.TTFT }

func middle(v []float64) median {
	slices.Sort(v)
	return median{(v[(len(v)-1)/2] + v[len(v)/2]) / 2, v[0], v[len(v)-1]}
}

func printTable(rows []row) {
	fmt.Println("streams  what      quire tok/s  llama.cpp tok/s  ratio (min–max)")
	for _, r := range rows {
		line := func(what string, a, b float64, m median) {
			fmt.Printf("%7d  %-8s  %11.1f  %15.1f  %.2f (%.2f–%.2f)\n", r.Streams, what, a, b, m.Median, m.Min, m.Max)
		}
		line("output", r.Quire.Output, r.Peer.Output, r.Ratio["output"])
		line("prefill", r.Quire.Prefill, r.Peer.Prefill, r.Ratio["prefill"])
		line("decode", r.Quire.Decode, r.Peer.Decode, r.Ratio["decode"])
		fmt.Printf("%7d  TTFT ms   %11.1f  %15.1f\n", r.Streams, r.Quire.TTFT*1e3, r.Peer.TTFT*1e3)
	}
}

// quire is a `quire dev` process of ours.
type quire struct {
	cmd     *exec.Cmd
	url     string
	model   string
	kernels string
	data    string
}

func startQuire(ctx context.Context, binary, model, path string) (*quire, error) {
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
	q := &quire{url: "http://" + http, model: model, data: data}
	q.cmd = exec.Command(binary, "dev", "--http", http, "--grpc", grpc, "--data", data, "--model", model, "--cpu-path", path, "--kv-bytes", strconv.Itoa(kvBytes), "--prompt", "")
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

func peerBurst(ctx context.Context, python, file string, n int) (rates, error) {
	cmd := exec.CommandContext(ctx, python, "bench/peers/llamacpp_batched.py", file, "--sequences", strconv.Itoa(n), "--threads", strconv.Itoa(runtime.NumCPU()))
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return rates{}, fmt.Errorf("llama.cpp: %w", err)
	}
	var r rates
	err = json.Unmarshal(text, &r)
	return r, err
}

// peerPython makes a virtual environment with the peer's bindings, which build for some minutes.
func peerPython(ctx context.Context) (string, error) {
	const venv = ".cache/bench-venv"
	python := venv + "/bin/python"
	if exec.CommandContext(ctx, python, "-c", "import llama_cpp, numpy").Run() == nil {
		return python, nil
	}
	fmt.Fprintln(os.Stderr, "building llama.cpp's bindings in", venv, "(some minutes, once)")
	for _, args := range [][]string{{"python3", "-m", "venv", venv}, {python, "-m", "pip", "install", "llama-cpp-python==0.3.36"}} {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if err := cmd.Run(); err != nil {
			return "", fmt.Errorf("%s: %w", strings.Join(args, " "), err)
		}
	}
	return python, nil
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

func fileMB(path string) float64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return float64(info.Size()) / 1e6
}

func cpuName() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if _, name, ok := strings.Cut(line, "model name\t: "); ok {
			return strings.TrimSpace(name)
		}
	}
	return runtime.GOARCH
}
