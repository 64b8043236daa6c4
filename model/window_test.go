package model

import (
	"slices"
	"strings"
	"testing"

	"github.com/quire-serve/quire/cpu"
	"github.com/quire-serve/quire/device"
)

func TestWindows(t *testing.T) {
	const window, pattern = "llama.attention.sliding_window", "llama.attention.sliding_window_pattern"
	for _, c := range []struct {
		name    string
		window  any
		pattern any
		want    []int
		layers  int // with a window of 100
	}{
		{name: "none"},
		{name: "zero", window: uint32(0)},
		{name: "all layers", window: uint32(100), want: []int{100, 100}, layers: 2},
		{name: "the whole context", window: uint32(128)},
		{name: "every second", window: uint32(100), pattern: uint32(2), want: []int{100, 0}, layers: 1},
		{name: "every first", window: uint32(100), pattern: uint32(1)},
		{name: "a period of 0", window: uint32(100), pattern: uint32(0), want: []int{100, 100}, layers: 2},
		{name: "booleans", window: uint32(100), pattern: []bool{false, true}, want: []int{0, 100}, layers: 1},
		{name: "integers", window: uint32(100), pattern: []int32{1, 0}, want: []int{100, 0}, layers: 1},
		{name: "a pattern of no window", window: uint32(0), pattern: []bool{false, true}},
	} {
		f := newFixture("llama")
		f.set(window, c.window)
		f.set(pattern, c.pattern)
		got := f.open(t).Config
		layers, widest := got.Windowed()
		if !slices.Equal(got.Windows, c.want) || layers != c.layers || widest != 100*min(1, c.layers) || got.ContextLength != 128 {
			t.Errorf("%s: windows %v, in %d layers, the widest %d, context %d", c.name, got.Windows, layers, widest, got.ContextLength)
		}
	}
	for want, change := range map[string]func(*fixture){
		`"llama.attention.sliding_window" is of type float32`:                    func(f *fixture) { f.set(window, float32(3)) },
		`"llama.attention.sliding_window_pattern" has 3 entries for 2 layers`:    func(f *fixture) { f.set(pattern, []bool{true, true, false}) },
		`"llama.attention.sliding_window_pattern" is of type string; an integer`: func(f *fixture) { f.set(pattern, "all") },
	} {
		f := newFixture("llama")
		f.set(window, uint32(100))
		change(f)
		if _, err := OpenBytes("x", f.bytes(t)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
}

// TestWindowedForward: within the window a windowed model computes what the same one without does, bit
// for bit, and beyond it something else.
func TestWindowedForward(t *testing.T) {
	const window = 20
	var sums [2][]uint64
	for i, set := range []any{nil, uint32(window)} {
		f := newFixture("llama")
		f.set("llama.attention.sliding_window", set)
		r := newRig(t, f.open(t), cpu.Options{}, device.F16, device.Limits{Rows: 64, Sequences: 1, Samples: 1}, 64)
		r.logits = true
		s := &sequence{}
		for at := range int32(2 * window) {
			s.tokens = append(s.tokens, at*7%fixtureVocab)
			r.step([]chunk{{s, 1}})
		}
		sums[i] = s.sums
	}
	for at := range sums[0] {
		if same := sums[0][at] == sums[1][at]; same != (at < window) {
			t.Errorf("position %d: the same logits with and without a window of %d: %v", at, window, same)
		}
	}
}
