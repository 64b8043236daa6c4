package main

import (
	"fmt"
	"io"
	"strings"
)

func (r *result) meanMS() float64 {
	var sum int64
	for _, us := range r.ttftUS {
		sum += us
	}
	return float64(sum) / float64(len(r.ttftUS)) / 1000
}

func (r *result) quantileMS(q float64) float64 {
	return float64(r.ttftUS[min(len(r.ttftUS)-1, int(q*float64(len(r.ttftUS))))]) / 1000
}

func (r *result) hitRate() float64 { return float64(r.hit) / float64(r.asked) }

func report(w io.Writer, m model, requests []traced, results []result) error {
	var tokens int
	for _, r := range requests {
		tokens += r.input
	}
	var b strings.Builder
	fmt.Fprintf(&b, `# Placement policies compared

Written by `+"`go run ./bench/placement`"+`: the scheduler's batcher and prefix index over simulated workers,
in virtual time. All policies choose among the workers that have room at that instant; only the choice
differs. Requests: %d of the Mooncake synthetic trace, %d tokens of input in %.0f s at load 1.
Workers: %d, each with %d blocks of %d tokens, %d prompt tokens/s, steps of at most %d tokens.

hit: share of prompt tokens found in caches. spread: prompt tokens computed by the busiest worker, of
those by the idlest.
`, len(requests), tokens, float64(requests[len(requests)-1].arrivalUS)/1e6, m.workers, m.blocks, blockTokens, m.tokensPerS, m.maxBatchTokens)
	load := 0.0
	for _, r := range results {
		if r.load != load {
			load = r.load
			fmt.Fprintf(&b, "\n## Load %g\n\n| policy | TTFT mean ms | p50 | p99 | max | hit | spread |\n|---|---:|---:|---:|---:|---:|---:|\n", load)
		}
		fmt.Fprintf(&b, "| %s | %.0f | %.0f | %.0f | %.0f | %.1f %% | %.2f |\n", r.policy, r.meanMS(), r.quantileMS(0.5), r.quantileMS(0.99),
			float64(r.ttftUS[len(r.ttftUS)-1])/1000, 100*r.hitRate(), float64(r.most)/float64(max(1, r.least)))
	}
	_, err := io.WriteString(w, b.String())
	return err
}
