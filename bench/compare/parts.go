package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/quire-serve/quire/kvcache/replay"
)

// parts measures the KV cache: the CPU's time for its books, decoding over each type of cache, and the
// replays of traces that are given.
func parts(ctx context.Context, o *options) error {
	p := newPage("The KV cache's parts")
	p.line("`go test -bench`, %d runs of each on a machine that others use too; medians (min–max).", 6)
	p.line("\n| what | time | bar | allocations |\n|---|---|---|---|")
	books, text, err := goBench(ctx, "./kvcache", "^Benchmark(Hash8k|AdmitHit8k|AdmitMiss8k|Lookup8k|DecodeStep256|Check)$", 6)
	if err != nil {
		return err
	}
	for _, b := range []struct{ name, what, bar string }{
		{"Hash8k", "hash 8,192 tokens into blocks of 16", "100 µs"},
		{"AdmitHit8k", "admit and release 8,192 tokens, all cached", "50 µs"},
		{"AdmitMiss8k", "admit and release 8,192 tokens, none cached, 512 evictions", "100 µs"},
		{"Lookup8k", "look up 512 blocks", ""},
		{"DecodeStep256", "the pool's part of a step of 256 decodes", ""},
		{"Check", "the accounting check of a step", ""},
	} {
		m := middle(books[b.name]["ns/op"])
		p.line("| %s | %.4g µs (%.4g–%.4g) | %s | %.0f |", b.what, m.Median/1e3, m.Min/1e3, m.Max/1e3, b.bar, middle(books[b.name]["allocs/op"]).Median)
	}

	decode, more, err := goBench(ctx, "./cpu", "^BenchmarkDecodeKV$", 6)
	if err != nil {
		return err
	}
	p.line("\nDecoding 16 streams with a model of SmolLM2-135M's shape, CPU device alone, by the KV cache's type; the")
	p.line("ratio is the median of the pairs' (min–max):")
	p.line("\n| context | f16, tokens/s | int8, tokens/s | ratio |\n|---|---|---|---|")
	for _, context := range []int{192, 1024} {
		half := decode[fmt.Sprintf("DecodeKV/context=%d/kv=F16", context)]["tok/s"]
		bytes := decode[fmt.Sprintf("DecodeKV/context=%d/kv=I8", context)]["tok/s"]
		var pairs []float64
		for i := range half {
			pairs = append(pairs, bytes[i]/half[i])
		}
		f, i, r := middle(half), middle(bytes), middle(pairs)
		p.line("| %d | %.0f (%.0f–%.0f) | %.0f (%.0f–%.0f) | %.2f (%.2f–%.2f) |", context, f.Median, f.Min, f.Max, i.Median, i.Min, i.Max, r.Median, r.Min, r.Max)
	}
	if err := os.WriteFile(filepath.Join(o.out, "parts.txt"), []byte(text+more), 0o644); err != nil {
		return err
	}
	if err := o.replays(p); err != nil {
		return err
	}
	p.line("\nThe runs, for benchstat: [parts.txt](parts.txt).")
	return p.write(o.out, "parts.md")
}

// replays adds what the traces say.
func (o *options) replays(p *page) error {
	if o.azure != "" {
		list, err := readTrace(o.azure, replay.Azure)
		if err != nil {
			return err
		}
		w, err := replay.Waste(list, 16)
		if err != nil {
			return err
		}
		p.line("\nKV memory held and not filled, replaying the lengths of the Azure conversation trace (%d requests) with blocks of", w.Requests)
		p.line("16: %.2f %% over all steps (bar 1.6 %%); of single requests p50 %.2f %%, p90 %.2f %%, p99 %.2f %%, most %.1f %%. Never more", 100*w.Overall, 100*w.P50, 100*w.P90, 100*w.P99, 100*w.Max)
		p.line("than %d blocks beyond the one being filled.", w.BlocksBeyond)
	}
	if o.mooncake != "" {
		list, err := readTrace(o.mooncake, replay.Mooncake)
		if err != nil {
			return err
		}
		p.line("\nBlocks of the Mooncake trace found in a cache (%d requests, blocks of 512). Quire evicts the tail of a chain", len(list))
		p.line("before its head; a block LRU that touches a request's first block first is how the trace's own figures were made:")
		p.line("\n| blocks | Quire | block LRU, tails first | block LRU, heads first |\n|---|---|---|---|")
		for _, blocks := range []int{1000, 5000, 10_000, 30_000} {
			rate, err := replay.HitRate(list, blocks)
			if err != nil {
				return err
			}
			p.line("| %d | %.2f %% | %.2f %% | %.2f %% |", blocks, 100*rate, 100*replay.BlockLRU(list, blocks, true), 100*replay.BlockLRU(list, blocks, false))
		}
	}
	return nil
}

func readTrace(name string, read func(io.Reader) ([]replay.Request, error)) ([]replay.Request, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	list, err := read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return list, nil
}
