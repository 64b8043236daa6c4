package worker

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/quire-serve/quire/cpu"
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
