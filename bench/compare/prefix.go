package main

import (
	"context"
	"fmt"
	"os"

	"github.com/quire-serve/quire/bench"
)

// The shape of a burst: 16 prompts of equal length. Where they share, 15 begin with the same tokens.
const (
	prefixStreams = 16
	prefixSharing = 15
	prefixTokens  = 1024
	prefixPrompt  = prefixTokens + 64
	prefixOutput  = 128
	prefixBar     = 1.5
	prefixKV      = 1 << 30 // 16 such sequences take 0.45 GB
)

// prefix measures output rates at 16 streams with prompts that have nothing in common and with prompts
// of the same lengths of which 15 share 1,024 tokens, prefix cache on in both; and the same with a KV
// cache of 8 bits.
func prefix(ctx context.Context, o *options) error {
	if _, err := modelFile(ctx, o.quire, o.model); err != nil {
		return err
	}
	arms := []struct {
		name, kv string
		sharing  int
	}{{"distinct, f16", "f16", 0}, {"shared, f16", "f16", prefixSharing}, {"distinct, int8", "int8", 0}, {"shared, int8", "int8", prefixSharing}}
	servers := map[string]*quire{}
	for _, a := range arms {
		if servers[a.kv] != nil {
			continue
		}
		s, err := startQuire(ctx, o, prefixKV, "--kv-type", a.kv)
		if err != nil {
			return err
		}
		defer s.stop()
		servers[a.kv] = s
	}
	output, decode, ttft, spent := make([][]float64, len(arms)), make([][]float64, len(arms)), make([][]float64, len(arms)), make([][]float64, len(arms))
	for round := range o.rounds {
		fmt.Fprintf(os.Stderr, "\rshared prefix, round %d of %d ", round+1, o.rounds)
		for k := range arms {
			i := (round + k) % len(arms)
			a := arms[i]
			s := servers[a.kv]
			before := s.cpuSeconds()
			r, err := bench.Load{URL: s.url, Model: s.model, Streams: prefixStreams, Prompt: prefixPrompt, Output: prefixOutput,
				Sharing: a.sharing, Prefix: prefixTokens, Vocab: 48000, Seed: uint64(round)<<8 | uint64(i)}.Run(ctx)
			if err != nil {
				return fmt.Errorf("%s: %w", a.name, err)
			}
			spent[i] = append(spent[i], s.cpuSeconds()-before)
			output[i], decode[i], ttft[i] = append(output[i], r.OutputRate), append(decode[i], r.DecodeRate), append(ttft[i], r.TTFT[len(r.TTFT)/2].Seconds())
		}
	}
	fmt.Fprintln(os.Stderr)

	p := newPage("Sharing a prefix")
	p.line("%s, kernels %s, over HTTP: %d streams at once, prompts of %d tokens, %d tokens out. Shared: %d of the", o.model, servers["f16"].kernels, prefixStreams, prefixPrompt, prefixOutput, prefixSharing)
	p.line("%d prompts begin with the same %d tokens, which no cache holds before. The prefix cache is on in every", prefixStreams, prefixTokens)
	p.line("case. %d rounds in turn on a machine that others use too; tokens a second, medians (min–max).", o.rounds)
	p.line("\n| prompts, KV cache | output rate | decode rate | median time to first token, s | CPU time of the server, s |\n|---|---|---|---|---|")
	for i, a := range arms {
		out, dec, first, cpu := middle(output[i]), middle(decode[i]), middle(ttft[i]), middle(spent[i])
		p.line("| %s | %.0f (%.0f–%.0f) | %.0f (%.0f–%.0f) | %.2f | %.1f (%.1f–%.1f) |", a.name, out.Median, out.Min, out.Max, dec.Median, dec.Min, dec.Max, first.Median, cpu.Median, cpu.Min, cpu.Max)
	}
	// middle sorts; medians are compared.
	p.line("\nOutput, shared over distinct: %.2f× with f16 (bar %.1f×), %.2f× with int8. int8 over f16: decode %.2f× with distinct prompts; output %.2f×.",
		middle(output[1]).Median/middle(output[0]).Median, prefixBar, middle(output[3]).Median/middle(output[2]).Median,
		middle(decode[2]).Median/middle(decode[0]).Median, middle(output[2]).Median/middle(output[0]).Median)
	p.line("\nCPU time is what the server takes whoever else uses the machine: distinct over shared %.2f× with f16, %.2f× with int8.",
		middle(spent[0]).Median/middle(spent[1]).Median, middle(spent[2]).Median/middle(spent[3]).Median)
	return p.write(o.out, "prefix.md")
}
