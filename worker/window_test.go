package worker

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/tiny"
	"github.com/quire-serve/quire/worker/engine"
)

// TestWindowedModel: a model of windows alone gets a cache for what its sequences can hold, and no tiers
// below, which it could not use.
func TestWindowedModel(t *testing.T) {
	dev, err := cpu.Open(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	spec, err := model.OpenBytes(tiny.Name, tiny.GGUF())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = spec.Close() }()
	spec.Config.Windows = slices.Repeat([]int{32}, spec.Config.Layers)
	m, err := spec.Load(dev, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s := Settings{ID: "w", Control: []string{"127.0.0.1:1"}, Logger: slog.New(slog.DiscardHandler), Engine: engine.Settings{MaxSequences: 3, MaxBatchTokens: 64, PrefixCache: true}}
	w, err := New(s, dev, m)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := w.engine.ContextLength(), m.Context; got != want {
		t.Errorf("a sequence may hold %d tokens, want %d", got, want)
	}
	if got, want := w.Stats().Blocks, 3*7; got != want { // 3·(⌈(32-1+64)/16⌉+1)
		t.Errorf("%d blocks, want %d", got, want)
	}
	_ = w.listener.Close()
	for _, c := range w.closers {
		if err := c(); err != nil {
			t.Error(err)
		}
	}
	s.HostKVBytes = 1 << 20
	if _, err := New(s, dev, m); err == nil || !strings.Contains(err.Error(), "kv_host_bytes is 1048576, must be 0 for tiny: all its layers have a sliding window") {
		t.Errorf("with tiers: %v", err)
	}
}

// TestMixedModel: a model with windows in some of its layers gets a group of blocks for these, no larger
// than its sequences can come to hold; with tiers below, which know one group, it keeps all blocks in one.
func TestMixedModel(t *testing.T) {
	dev, err := cpu.Open(cpu.Options{Threads: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	spec, err := model.OpenBytes(tiny.Name, tiny.GGUF())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = spec.Close() }()
	spec.Config.Windows = make([]int, spec.Config.Layers)
	spec.Config.Windows[0] = 32
	m, err := spec.Load(dev, model.LoadOptions{})
	if err != nil {
		t.Fatal(err)
	}
	s := Settings{ID: "w", Control: []string{"127.0.0.1:1"}, Logger: slog.New(slog.DiscardHandler), costs: &engine.Costs{}, Engine: engine.Settings{MaxSequences: 3, MaxBatchTokens: 64, PrefixCache: true}}
	full := (m.Context + 15) / 16
	for name, c := range map[string]struct {
		host            int64
		blocks, windows int
	}{"two groups": {0, 3 * full, 3 * 7}, "with tiers": {1 << 20, 3 * full, 0}} {
		s.HostKVBytes = c.host
		w, err := New(s, dev, m)
		if err != nil {
			t.Fatal(err)
		}
		if es := w.engine.Settings(); es.Blocks != c.blocks || es.WindowBlocks != c.windows || w.engine.ContextLength() != m.Context {
			t.Errorf("%s: %d and %d blocks for %d tokens, want %d and %d for %d", name, es.Blocks, es.WindowBlocks, w.engine.ContextLength(), c.blocks, c.windows, m.Context)
		}
		_ = w.listener.Close()
		for _, c := range w.closers {
			if err := c(); err != nil {
				t.Error(err)
			}
		}
	}
}

// TestGroupSizing: the windowed group gets what all sequences can come to hold in it, or as many blocks as
// the other group gets; that one gets the rest.
func TestGroupSizing(t *testing.T) {
	s := Settings{Engine: engine.Settings{MaxSequences: 8, MaxBatchTokens: 64, BlockTokens: 16}}
	// Pages of 1 KiB and of 3; a sequence at its largest holds 64 and 7 blocks.
	l := device.KVLayout{BlockTokens: 16, Layers: 1, WindowLayers: 3, KVHeads: 1, HeadDim: 16, Type: device.F16}
	for _, c := range []struct {
		budget                 int64
		given                  int // blocks
		pages, windows, tokens int
	}{
		{budget: 1 << 20, pages: 512, windows: 56, tokens: 1024},          // enough for all
		{budget: 400 << 10, pages: 400 - 3*56, windows: 56, tokens: 1024}, // the windowed group has all it can use
		{budget: 100 << 10, pages: 25, windows: 25, tokens: 400},          // neither has
		{budget: 16 << 10, pages: 4, windows: 4, tokens: 64},              // not a sequence's window, as asked for
		{given: 300, pages: 300, windows: 56, tokens: 1024},
		{given: 20, pages: 20, windows: 20, tokens: 320},
	} {
		s.KVBytes = c.budget
		got := l
		got.Pages = c.given
		if err := s.sizeKV(&got, nil, 1024, 32); err != nil {
			t.Fatal(err)
		}
		if got.Pages != c.pages || got.WindowPages != c.windows || c.given == 0 && got.Bytes() > c.budget {
			t.Errorf("%d bytes, %d blocks: %d and %d blocks of %d bytes, want %d and %d", c.budget, c.given, got.Pages, got.WindowPages, got.Bytes(), c.pages, c.windows)
		}
		es := s.Engine
		es.Blocks, es.WindowBlocks = got.Pages, got.WindowPages
		if n := es.Context(1024, 32); n != c.tokens {
			t.Errorf("%d bytes, %d blocks: a sequence may hold %d tokens, want %d", c.budget, c.given, n, c.tokens)
		}
	}
	s.KVBytes = 4095
	if err := s.sizeKV(&l, nil, 1024, 32); err == nil || err.Error() != "worker: kv_bytes is 4095, must be at least 4096: one block of 16 tokens of each group of layers" {
		t.Errorf("got %v", err)
	}
}
