package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// running are the numbers of sequences whose step is measured, and the bars: a step's CPU time in
// milliseconds, and how many times less than vLLM's it must be.
var running = []struct {
	n   int
	bar float64
}{{256, 0.10}, {1024, 0.40}}

const vllmBar = 30

// vllmStep measures the CPU time of an engine step in which every sequence decodes, prefix caching on:
// Quire's plan, batch, result and events; vLLM's schedule and update_from_output.
func vllmStep(ctx context.Context, o *options) error {
	if !o.alone {
		if err := o.needs(ctx, "vllm", "torch"); err != nil {
			return err
		}
	}
	ours, theirs := make(map[int][]float64), make(map[int][]float64)
	allocations := make(map[int][]float64)
	var lines []string
	version := ""
	for round := range o.rounds {
		fmt.Fprintf(os.Stderr, "\rengine step, round %d of %d ", round+1, o.rounds)
		measure := []func() error{
			func() error {
				runs, text, err := goBench(ctx, "./worker/engine", "^BenchmarkDecodeStep$/running=(256|1024)$", 2)
				lines = append(lines, text)
				for _, r := range running {
					units := runs["DecodeStep/running="+strconv.Itoa(r.n)]
					ours[r.n] = append(ours[r.n], units["cpu-ns/op"]...)
					allocations[r.n] = append(allocations[r.n], units["allocs/op"]...)
				}
				return err
			},
			func() (err error) {
				version, err = o.peerStep(ctx, theirs)
				return err
			},
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
	fmt.Fprintln(os.Stderr)

	p := newPage("A step of the engine, beside vLLM's scheduler")
	p.line("Every sequence decodes one token, prefix caching on, blocks of 16, prompts of 512 tokens. CPU time of the")
	p.line("process a step: Quire's `worker/engine` from plan to events (mean of a run), vLLM %s's own v1 Scheduler with", version)
	p.line("its KVCacheManager, unmodified, from `schedule` to `update_from_output` (median of 380 steps). %d rounds of", o.rounds)
	p.line("both in alternating order, on a machine that others use too; medians (min–max).")
	p.line("\n| running | Quire, ms | bar, ms | vLLM, ms | ratio | bar | Quire's allocations a step |\n|---|---|---|---|---|---|---|")
	for _, r := range running {
		q, a := middle(ours[r.n]), middle(allocations[r.n])
		peer, ratio := "–", "–"
		if len(theirs[r.n]) > 0 {
			v := middle(theirs[r.n])
			peer, ratio = fmt.Sprintf("%.2f (%.2f–%.2f)", v.Median, v.Min, v.Max), fmt.Sprintf("%.0f×", v.Median/q.Median*1e6)
		}
		p.line("| %d | %.3f (%.3f–%.3f) | %.2f | %s | %s | %d× | %.0f |", r.n, q.Median/1e6, q.Min/1e6, q.Max/1e6, r.bar, peer, ratio, vllmBar, a.Median)
	}
	p.line("\nThe runs of Quire, for benchstat: [engine.txt](engine.txt).")
	if err := os.WriteFile(filepath.Join(o.out, "engine.txt"), []byte(strings.Join(lines, "")), 0o644); err != nil {
		return err
	}
	return p.write(o.out, "vllm.md")
}

// peerStep runs vLLM's steps once and adds the medians, in milliseconds, to times.
func (o *options) peerStep(ctx context.Context, times map[int][]float64) (version string, err error) {
	cmd := exec.CommandContext(ctx, o.python, "bench/peers/vllm_step.py")
	text, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("vllm_step.py: %w", err)
	}
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	var out struct {
		VLLM string
		Rows []struct {
			Running  int
			MedianMS float64 `json:"median_ms"`
		}
	}
	if err := json.Unmarshal([]byte(lines[len(lines)-1]), &out); err != nil {
		return "", fmt.Errorf("vllm_step.py: %w", err)
	}
	for _, r := range out.Rows {
		times[r.Running] = append(times[r.Running], r.MedianMS)
	}
	return out.VLLM, nil
}
