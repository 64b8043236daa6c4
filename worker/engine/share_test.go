package engine

import (
	"slices"
	"testing"
)

// TestSharedPrefixIsComputedOnce: of prompts that arrive together and begin alike, the beginning is
// computed once, under the default settings.
func TestSharedPrefixIsComputedOnce(t *testing.T) {
	const streams, sharing, prefix, own, output = 16, 15, 1024, 64, 128
	r := newRig(t, Settings{Blocks: 2048, PrefixCache: true, DecodeShare: 0.8})
	common := prompt(1, prefix)
	for i := range streams {
		p := append(slices.Clone(common), prompt(10+i, own)...)
		if i >= sharing {
			p = prompt(100+i, prefix+own)
		}
		r.add(ask(string(rune('a'+i)), p, output))
	}
	r.finish()
	generated := 0
	for _, h := range r.got {
		generated += len(h.tokens)
	}
	want := 2*prefix + streams*own + generated - streams // the last token of each needs no row
	if got := r.runner.Rows(); got != want {
		t.Errorf("%d rows computed, want %d", got, want)
	}
}
