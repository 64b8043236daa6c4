package engine

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

const simVocab = 30_000

// novel is a token that nothing foretells: the n-th of a stream.
func novel(stream, n int) int32 {
	x := uint64(stream)<<32 | uint64(n)
	x = (x ^ x>>31) * 0x9E3779B97F4A7C15
	x = (x ^ x>>29) * 0xBF58476D1CE4E5B9
	return int32((x ^ x>>32) % simVocab)
}

// rarely holds for that share of the places in a stream.
func rarely(share float64, stream, n int) bool {
	return float64(novel(stream+1000, n)) < share*simVocab
}

// texts give the n-th token that a stream says.
var texts = map[string]func(stream, n int) int32{
	// A list said again and again, with a new word now and then.
	"repeats": func(stream, n int) int32 {
		if rarely(0.03, stream, n) {
			return novel(stream, n)
		}
		return novel(stream, n%23)
	},
	"half right": func(stream, n int) int32 {
		if rarely(0.4, stream, n/3) {
			return novel(stream, n)
		}
		return novel(stream, n%40)
	},
	"in turns": func(stream, n int) int32 {
		if n/80%2 == 0 {
			return novel(stream, n)
		}
		return novel(stream, n%20)
	},
	// Pairs come again, what follows them differs.
	"misleading": func(stream, n int) int32 {
		if n%4 < 2 && rarely(0.5, stream, n/4) {
			return int32(n % 4)
		}
		return novel(stream, n)
	},
	"novel": novel,
}

// speaking runs requests of so many tokens, most at a time, that say texts in turn on a device whose steps
// take what cost says, give or take noise. It returns the tokens a second, until three quarters of all are
// there: who speaks last says nothing about a batch.
func speaking(t tb, s Settings, always bool, most int, lengths []int, says []string, cost func(*device.Batch) int64) float64 {
	const promptTokens, noise = 24, 0.15
	s.MaxSequences, s.Blocks, s.PrefixCache = most, 4096, true
	r := newRig(t, s, func(c *enginetest.Config, m *Model) {
		m.Vocab, m.ContextLength = simVocab, 2048
		c.Token = func(seen []int32, _ device.Sample) int32 {
			stream := int(seen[0])
			return texts[says[stream%len(says)]](stream, len(seen))
		}
	})
	rng := rand.New(rand.NewPCG(1, 2))
	r.host = 100
	r.cost = func(b *device.Batch) int64 { return int64(float64(cost(b)) * (1 + noise*(2*rng.Float64()-1))) }
	if always {
		r.always()
	}
	all := int64(0)
	for i, n := range lengths {
		p := []int32{int32(i)}
		for len(p) < promptTokens {
			p = append(p, texts[says[i%len(says)]](i, len(p)))
		}
		r.add(ask(fmt.Sprint(i), p, n))
		all += int64(n)
	}
	for r.p.count.generated < all*3/4 {
		r.step()
	}
	return float64(r.p.count.generated) / float64(r.now) * 1e6
}

// TestAdaptiveSpeculation: whatever rows cost, however many streams there are and whatever they say,
// speculation is never noticeably slower than none, and where it helps about as good as the best fixed
// number of drafts.
func TestAdaptiveSpeculation(t *testing.T) {
	perRow := func(b *device.Batch) int64 { return 500 + 2000*int64(len(b.Tokens)) }
	tiles := func(b *device.Batch) int64 { return 1000 + 8000*int64((len(b.Tokens)+7)/8) }
	mixed := []string{"repeats", "novel", "in turns", "misleading"}
	type load struct {
		streams int
		lengths []int
		says    []string
	}
	var loads []load
	for _, n := range []int{1, 4, 16, 48} {
		lengths := slices.Repeat([]int{400}, n)
		if n > 16 {
			lengths = slices.Repeat([]int{200}, n)
		}
		for _, says := range slices.Sorted(maps.Keys(texts)) {
			loads = append(loads, load{n, lengths, []string{says}})
		}
		if n > 1 {
			loads = append(loads, load{n, lengths, mixed})
		}
	}
	rng := rand.New(rand.NewPCG(3, 4))
	var turnover []int
	for range 60 {
		turnover = append(turnover, 20+rng.IntN(400))
	}
	loads = append(loads, load{12, turnover, mixed}, load{12, turnover, []string{"repeats"}})
	helped := 0
	for _, d := range []struct {
		name string
		cost func(*device.Batch) int64
	}{{"H100", devices["H100"]}, {"a CPU", devices["a CPU"]}, {"each row its price", perRow}, {"tiles of 8 rows", tiles}} {
		for _, l := range loads {
			run := func(speculate int, always bool) float64 {
				return speaking(t, Settings{Speculate: speculate}, always, l.streams, l.lengths, l.says, d.cost)
			}
			off, got := run(0, false), run(8, false)
			best := max(run(1, true), run(4, true), run(8, true))
			if best > 1.1*off {
				helped++
			}
			if got < 0.98*off || best > off && got < 0.9*best {
				t.Errorf("%s, %d at a time of %d that say %v: %.2f of the rate without, best fixed %.2f", d.name, l.streams, len(l.lengths), l.says, got/off, best/off)
			}
			t.Logf("%s, %d at a time of %d that say %v: %.2f of the rate without, best fixed %.2f", d.name, l.streams, len(l.lengths), l.says, got/off, best/off)
		}
	}
	if helped < 20 {
		t.Errorf("drafts help under %d loads: the test measures little", helped)
	}
}
