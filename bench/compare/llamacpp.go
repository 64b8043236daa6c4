package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
)

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

// llamaCPP measures Quire and llama.cpp's batched decode in turn.
func llamaCPP(ctx context.Context, o *options) error {
	file, err := modelFile(ctx, o.quire, o.model)
	if err != nil {
		return err
	}
	if !o.alone {
		if err := o.needs(ctx, "llama_cpp", "numpy"); err != nil {
			return err
		}
	}
	server, err := startQuire(ctx, o, kvBytes)
	if err != nil {
		return err
	}
	defer server.stop()
	fmt.Printf("%s, %d threads, kernels %s, %s\n", cpuName(), runtime.NumCPU(), server.kernels, filepath.Base(file))

	var rows []row
	for field := range strings.SplitSeq(o.streams, ",") {
		n, err := strconv.Atoi(field)
		if err != nil || n < 1 {
			return fmt.Errorf("-streams: %q is not a number of streams", field)
		}
		var ours, theirs []rates
		for round := range o.rounds {
			fmt.Fprintf(os.Stderr, "\r%2d streams, round %d of %d ", n, round+1, o.rounds)
			measure := []func() error{
				func() error { r, err := server.burst(ctx, n, uint64(round)); ours = append(ours, r); return err },
				func() error { r, err := peerBurst(ctx, o.python, file, n); theirs = append(theirs, r); return err },
			}
			if o.alone {
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
	if o.alone {
		return nil
	}
	return writeJSON(filepath.Join(o.out, "llamacpp.json"), map[string]any{"cpu": cpuName(), "threads": runtime.NumCPU(), "kernels": server.kernels,
		"model": filepath.Base(file), "date": today(), "peak_mb": server.peakMB(), "rows": rows})
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
