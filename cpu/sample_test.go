package cpu

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/quire-serve/quire/device"
	"pgregory.net/rapid"
)

// plain is a sample that changes nothing but the temperature.
func plain(temperature float32) device.Sample {
	return device.Sample{Score: -1, Mask: -1, Logprobs: -1, Temperature: temperature, TopP: 1, RepetitionPenalty: 1}
}

func newSampler() *sampler { return &sampler{kern: newGoKernels(1)} }

// drawOne draws from x as the first sample of b.
func drawOne(m *sampler, b device.Batch, x []float32) int32 {
	if b.Tokens == nil {
		b.Tokens = []int32{0}
	}
	return m.token(&slot{batch: b, tokens: b.Tokens}, 0, x)
}

func TestGreedy(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, c := range []struct {
		x    []float32
		want int32
	}{
		{[]float32{1, 3, 2}, 1},
		{[]float32{1, 3, 3}, 1},
		{[]float32{nan, -5, nan, -4}, 3},
		{[]float32{nan, nan}, 0},
		{[]float32{nan, -inf, -inf}, 1},
		{[]float32{0, inf, 3, inf}, 1},
		{[]float32{float32(math.Copysign(0, -1)), 0}, 0},
	} {
		if got := drawOne(newSampler(), device.Batch{Samples: []device.Sample{plain(0)}}, c.x); got != c.want {
			t.Errorf("greedy of %v: %d, want %d", c.x, got, c.want)
		}
	}
}

// TestDrawWithoutNumbers: rows of NaNs and infinities give some token, whatever the filters.
func TestDrawWithoutNumbers(t *testing.T) {
	nan, inf := float32(math.NaN()), float32(math.Inf(1))
	for _, c := range []struct {
		x    []float32
		want int32
	}{{[]float32{nan, nan, nan}, 0}, {[]float32{-inf, -inf}, 0}, {[]float32{0, inf, inf}, 1}, {[]float32{nan, 3, -inf}, 1}} {
		b := device.Batch{Samples: []device.Sample{plain(1)}}
		sp := &b.Samples[0]
		for range 2 {
			for range 2 {
				if got := drawOne(newSampler(), b, c.x); got != c.want {
					t.Errorf("drew %d of %v, want %d", got, c.x, c.want)
				}
				sp.TopP, sp.MinP = 0.5, 0.1
			}
			sp.TopK = 1
		}
	}
}

// expected is the distribution that a sample draws from, the slow way: in binary64, by sorting.
func expected(b *device.Batch, x []float32) []float64 {
	sp := &b.Samples[0]
	l := make([]float64, len(x))
	for i, v := range x {
		l[i] = float64(v)
	}
	for _, t := range b.Bias[sp.BiasStart:sp.BiasEnd] {
		l[t.Token] += float64(t.Bias)
	}
	prompt, generated := map[int32]bool{}, map[int32]int{}
	for i, t := range b.History[sp.HistoryStart:sp.HistoryEnd] {
		if i < int(sp.HistoryPrompt-sp.HistoryStart) {
			prompt[t] = true
		} else {
			generated[t]++
		}
	}
	for i := range l {
		n := generated[int32(i)]
		if (n > 0 || prompt[int32(i)]) && l[i] > 0 {
			l[i] /= float64(sp.RepetitionPenalty)
		} else if n > 0 || prompt[int32(i)] {
			l[i] *= float64(sp.RepetitionPenalty)
		}
		if n > 0 {
			l[i] -= float64(sp.PresencePenalty) + float64(n)*float64(sp.FrequencyPenalty)
		}
		if sp.Mask >= 0 && b.Masks[i/32]>>(i%32)&1 == 0 {
			l[i] = math.Inf(-1)
		}
	}
	order := make([]int, len(l))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int {
		if l[a] > l[b] {
			return -1
		} else if l[a] < l[b] {
			return 1
		}
		return 0
	})
	p, top := make([]float64, len(l)), l[order[0]]
	kept := order[:0:0]
	sum := 0.0
	for rank, i := range order {
		w := math.Exp((l[i] - top) / float64(sp.Temperature))
		if w == 0 || w < float64(sp.MinP) || sp.TopK > 0 && rank >= int(sp.TopK) {
			continue
		}
		p[i] = w
		sum += w
		kept = append(kept, i)
	}
	cum, total := 0.0, 0.0
	for _, i := range kept {
		if cum >= float64(sp.TopP)*sum {
			p[i] = 0
			continue
		}
		cum += p[i]
		total += p[i]
	}
	for i := range p {
		p[i] /= total
	}
	return p
}

// randomSampling draws logits and a sample with some of every option.
func randomSampling(rng *rand.Rand, vocab int) (device.Batch, []float32) {
	x := make([]float32, vocab)
	for i := range x {
		x[i] = float32(3 * rng.NormFloat64())
	}
	sp := plain(0.2 + 2*rng.Float32())
	b := device.Batch{}
	maybe := func() bool { return rng.IntN(3) == 0 }
	if maybe() {
		sp.TopK = int32(1 + rng.IntN(vocab+2))
	}
	if maybe() {
		sp.TopP = 0.05 + 0.9*rng.Float32()
	}
	if maybe() {
		sp.MinP = 0.3 * rng.Float32()
	}
	if maybe() {
		sp.RepetitionPenalty, sp.PresencePenalty, sp.FrequencyPenalty = 0.5+rng.Float32(), rng.Float32(), rng.Float32()-0.5
		b.History = randomTokens(rng, 30, vocab)
		sp.HistoryStart, sp.HistoryPrompt, sp.HistoryEnd = 3, 10, 28
	}
	if maybe() {
		for t := range 4 {
			b.Bias = append(b.Bias, device.TokenBias{Token: int32(t * 2), Bias: float32(2 * rng.NormFloat64())})
		}
		sp.BiasStart, sp.BiasEnd = 1, 4
	}
	if maybe() {
		sp.Mask = 0
		for range (vocab + 31) / 32 {
			b.Masks = append(b.Masks, rng.Uint32()|1)
		}
	}
	b.Samples = []device.Sample{sp}
	return b, x
}

// TestDistribution draws many tokens for many mixes of options and compares their frequencies with
// the expected probabilities by a chi-squared statistic.
func TestDistribution(t *testing.T) {
	const draws = 4000
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 9))
		b, x := randomSampling(rng, 40)
		want := expected(&b, x)
		m, counts := newSampler(), make([]int, len(x))
		b.Samples[0].Seed = seed << 40
		for pos := range draws {
			b.Samples[0].Position = int32(pos)
			counts[drawOne(m, b, x)]++
		}
		chi, cells := 0.0, 0
		rare, rareWant := 0.0, 0.0
		for i, n := range counts {
			if want[i] == 0 && n > 0 {
				t.Fatalf("seed %d: token %d was drawn %d times and has no probability; %+v", seed, i, n, b.Samples[0])
			}
			if e := want[i] * draws; e >= 8 {
				chi += (float64(n) - e) * (float64(n) - e) / e
				cells++
			} else {
				rare, rareWant = rare+float64(n), rareWant+e
			}
		}
		if rareWant > 0 {
			chi += (rare - rareWant) * (rare - rareWant) / max(rareWant, 1)
			cells++
		}
		// The statistic has mean cells-1 and variance 2·(cells-1); five deviations leave room for
		// its longer tail.
		if free := float64(cells - 1); chi > free+5*math.Sqrt(2*free)+8 {
			t.Errorf("seed %d: chi² %.1f for %d cells; %+v", seed, chi, cells, b.Samples[0])
		}
	}
}

// TestFilters finds the exact set of tokens that can be drawn, by trying every draw's threshold.
func TestFilters(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		for range 40 {
			seed := rapid.Uint64().Draw(rt, "seed")
			rng := rand.New(rand.NewPCG(seed, 4))
			b, x := randomSampling(rng, 300)
			for i := range x { // many equal logits
				if rng.IntN(2) == 0 {
					x[i] = float32(math.Round(float64(x[i])))
				}
			}
			want := expected(&b, x)
			for pos := range int32(40) {
				b.Samples[0].Position = pos
				if got := drawOne(newSampler(), b, x); want[got] == 0 && !nearCut(&b, x, got) {
					rt.Fatalf("seed %d: drew %d, which the filters exclude: %+v", seed, got, b.Samples[0])
				}
			}
		}
	})
}

// nearCut reports whether token is kept when top-p and min-p are a hair wider, which is as much as
// binary32 weights may differ from the exact ones.
func nearCut(b *device.Batch, x []float32, token int32) bool {
	wide := *b
	wide.Samples = []device.Sample{b.Samples[0]}
	wide.Samples[0].TopP = min(1, wide.Samples[0].TopP*(1+1e-5))
	wide.Samples[0].MinP *= 1 - 1e-5
	return expected(&wide, x)[token] > 0
}

// naive draws from x with everything sorted and summed: what draw must give, for its own weights.
func naive(sp *device.Sample, x []float32, u, topP float64) int32 {
	w := make([]float32, len(x))
	kern := newGoKernels(1)
	kern.expRow(w, x, x[kern.argmax(x)], 1/sp.Temperature)
	var order []int32
	for i, v := range w {
		if v > 0 && v >= min(sp.MinP, 1) {
			order = append(order, int32(i))
		}
	}
	slices.SortStableFunc(order, byWeight(w))
	if k := int(sp.TopK); k > 0 && k < len(order) {
		order = order[:k]
	}
	sum := func() (total float64) {
		for _, i := range order {
			total += float64(w[i])
		}
		return total
	}
	if sp.TopP < 1 {
		target, cum := topP*sum(), 0.0
		for n, i := range order {
			if cum += float64(w[i]); cum >= target {
				order = order[:n+1]
				break
			}
		}
	}
	slices.Sort(order)
	target, cum := u*sum(), 0.0
	for _, i := range order {
		if cum += float64(w[i]); cum > target {
			return i
		}
	}
	return order[len(order)-1]
}

// vocabularies are logits in the shapes that models give, of the sizes that they have. leaders are the
// tokens that weigh at least unlikely at temperature 1, where that is a number to try as top-k.
func vocabularies(rng *rand.Rand) map[string]struct {
	x       []float32
	leaders int32
} {
	type shape = struct {
		x       []float32
		leaders int32
	}
	fill := func(n int, f func(i int) float64) []float32 {
		x := make([]float32, n)
		for i := range x {
			x[i] = float32(f(i))
		}
		return x
	}
	put := func(x []float32, values ...float32) []float32 {
		for _, v := range values {
			x[rng.IntN(len(x))] = v
		}
		return x
	}
	inf := float32(math.Inf(-1))
	flat := func(n int, v float64) []float32 { return fill(n, func(int) float64 { return v }) }
	return map[string]shape{
		"two leaders, flat tail":          {append([]float32{0, -1}, flat(151934, -13.9)...), 2},
		"one leader, flat tail":           {put(flat(50257, -15), 0), 1},
		"tail that is unlikely by a hair": {append([]float32{0, -2, -2}, flat(128256-3, -13.87)...), 3},
		"ties everywhere":                 {fill(65536, func(int) float64 { return math.Round(2 * rng.NormFloat64()) }), 0},
		"all equal":                       {flat(50000, 3), 0},
		"normal":                          {fill(151936, func(int) float64 { return 3 * rng.NormFloat64() }), 0},
		"peaked":                          {put(fill(128256, func(int) float64 { return -12 + 2*rng.NormFloat64() }), 8, 7.5, 7, 3), 4},
		"mostly forbidden":                {put(flat(256000, float64(inf)), 1, 1, 0.5, -20), 3},
		"one allowed":                     {put(flat(100000, float64(inf)), -5), 1},
	}
}

// TestLargeVocabularies compares every filter with sorting, token by token, over logits of the sizes and
// shapes that models give: small vocabularies never have more unlikely tokens than likely ones.
func TestLargeVocabularies(t *testing.T) {
	rng := rand.New(rand.NewPCG(11, 3))
	m := newSampler()
	for name, v := range vocabularies(rng) {
		for _, topK := range []int32{0, 1, 2, v.leaders, v.leaders + 1, 50, int32(len(v.x))} {
			sp := plain([]float32{1, 1, 0.7, 1.3}[rng.IntN(4)])
			sp.TopK = topK
			for _, topP := range []float32{1, 0.7, 0.95} {
				sp.TopP = topP
				sp.MinP = []float32{0, 0, 0.05, 1e-7}[rng.IntN(4)]
				for range 2 {
					sp.Seed, sp.Choice, sp.Position = rng.Uint64(), rng.Int32N(128), rng.Int32N(1<<17)
					got := drawOne(m, device.Batch{Samples: []device.Sample{sp}}, v.x)
					u, p := uniform(sp.Seed, sp.Choice, sp.Position), float64(sp.TopP)
					// Sums in another order differ by some bits, which matter where they meet the share exactly.
					if got != naive(&sp, v.x, u, p) && got != naive(&sp, v.x, u, p*(1+1e-12)) && got != naive(&sp, v.x, u, p*(1-1e-12)) {
						t.Errorf("%s: drew %d (logit %v), want %d: %+v", name, got, v.x[got], naive(&sp, v.x, u, p), sp)
					}
				}
			}
		}
	}
}

// TestTopPAfterTopK: the tokens that top-k leaves are what top-p is a share of, also if exactly k tokens
// are not unlikely. The leader alone has 73 % of the two.
func TestTopPAfterTopK(t *testing.T) {
	x := make([]float32, 151936)
	for i := range x {
		x[i] = -13.9
	}
	x[0], x[1] = 0, -1
	b := device.Batch{Samples: []device.Sample{plain(1)}}
	b.Samples[0].TopK, b.Samples[0].TopP = 2, 0.7
	m := newSampler()
	for pos := range int32(300) {
		b.Samples[0].Position = pos
		if got := drawOne(m, b, x); got != 0 {
			t.Fatalf("position %d: drew %d, which top-p excludes", pos, got)
		}
	}
}

// TestNeighbouringDraws: neighbouring seeds, choices and positions have nothing to do with each other.
// Frequencies agree with the probabilities along each of them, draws of neighbours are independent (by
// chi-squared statistics), and no choice of one seed repeats as another's.
func TestNeighbouringDraws(t *testing.T) {
	const seeds, choices, positions, cells = 96, 64, 8, 8
	bin := func(seed uint64, choice, position int32) int {
		return int(cells * uniform(seed, choice, position))
	}
	// Of n draws into equal cells the statistic has mean cells-1 and variance 2·(cells-1).
	check := func(what string, counts []int) {
		t.Helper()
		n := 0
		for _, c := range counts {
			n += c
		}
		e, chi := float64(n)/float64(len(counts)), 0.0
		for _, c := range counts {
			chi += (float64(c) - e) * (float64(c) - e) / e
		}
		if free := float64(len(counts) - 1); chi > free+5*math.Sqrt(2*free)+8 {
			t.Errorf("%s: chi² %.1f of %.0f degrees of freedom", what, chi, free)
		}
	}
	first := map[[3]float64]string{}
	all := make([]int, cells)
	steps := map[string][]int{}
	for _, s := range []string{"next seed", "next choice", "next position", "next seed, last choice", "next choice, last position", "all next"} {
		steps[s] = make([]int, cells*cells)
	}
	for seed := range uint64(seeds) {
		bySeed := make([]int, cells)
		for c := range int32(choices) {
			name := fmt.Sprintf("choice %d of seed %d", c, seed)
			start := [3]float64{uniform(seed, c, 0), uniform(seed, c, 1), uniform(seed, c, 2)}
			if other, ok := first[start]; ok {
				t.Errorf("%s draws as %s does", name, other)
			}
			first[start] = name
			for pos := range int32(positions) {
				b := bin(seed, c, pos)
				all[b]++
				bySeed[b]++
				pair := func(step string, other int) { steps[step][b*cells+other]++ }
				pair("next seed", bin(seed+1, c, pos))
				pair("next choice", bin(seed, c+1, pos))
				pair("next position", bin(seed, c, pos+1))
				pair("next seed, last choice", bin(seed+1, c-1, pos))
				pair("next choice, last position", bin(seed, c+1, pos-1))
				pair("all next", bin(seed+1, c+1, pos+1))
			}
		}
		check(fmt.Sprintf("seed %d", seed), bySeed)
	}
	check("all draws", all)
	for step, counts := range steps {
		check("draws and those of the "+step, counts)
	}
}

func TestTopKOfEqualsKeepsLowIDs(t *testing.T) {
	x := make([]float32, 100)
	b := device.Batch{Samples: []device.Sample{plain(1)}}
	b.Samples[0].TopK = 3
	seen := map[int32]bool{}
	for pos := range int32(200) {
		b.Samples[0].Position = pos
		seen[drawOne(newSampler(), b, x)] = true
	}
	if len(seen) != 3 || !seen[0] || !seen[1] || !seen[2] {
		t.Errorf("drew %v, want 0, 1 and 2", seen)
	}
}

func TestSmallTopPIsGreedy(t *testing.T) {
	x := []float32{0, 1, 0.999, -1}
	b := device.Batch{Samples: []device.Sample{plain(1)}}
	for _, p := range []float32{0, 1e-9, 0.3} {
		b.Samples[0].TopP = p
		for pos := range int32(50) {
			b.Samples[0].Position = pos
			if got := drawOne(newSampler(), b, x); got != 1 {
				t.Fatalf("top-p %v drew %d, want 1", p, got)
			}
		}
	}
}

// TestReferenceCountsAsGenerated: the token that a row's own input refers to is penalised although
// the history does not have it yet.
func TestReferenceCountsAsGenerated(t *testing.T) {
	x := []float32{5, 4, 3}
	b := device.Batch{Tokens: []int32{^0}, Samples: []device.Sample{plain(0)}}
	b.Samples[0].FrequencyPenalty = 1.5
	m := newSampler()
	if got := m.token(&slot{batch: b, tokens: []int32{0}}, 0, x); got != 1 {
		t.Errorf("drew %d, want 1: 5 - 1.5 is below 4", got)
	}
	b.Tokens = []int32{0}
	if got := m.token(&slot{batch: b, tokens: []int32{0}}, 0, x); got != 0 {
		t.Errorf("drew %d, want 0: a plain input is in the history already if it counts", got)
	}
}

func TestLogprobs(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	x := make([]float32, 1000)
	sum := 0.0
	for i := range x {
		x[i] = float32(math.Round(8*rng.NormFloat64()) / 2)
		sum += math.Exp(float64(x[i]))
	}
	sp := plain(0)
	sp.Logprobs = 20
	out := make([]device.TokenLogprob, 20)
	got := newSampler().logprobs(7, &sp, x, out)
	if want := float64(x[7]) - math.Log(sum); math.Abs(float64(got)-want) > 1e-5 {
		t.Errorf("log-probability %v, want %v", got, want)
	}
	order := make([]int32, len(x))
	for i := range order {
		order[i] = int32(i)
	}
	slices.SortStableFunc(order, byWeight(x))
	for i, o := range out {
		if want := float64(x[order[i]]) - math.Log(sum); o.Token != order[i] || math.Abs(float64(o.Logprob)-want) > 1e-5 {
			t.Errorf("rank %d: %+v, want token %d, %v", i, o, order[i], want)
		}
	}
	for i := range x {
		x[i] = float32(math.NaN())
	}
	newSampler().logprobs(7, &sp, x, out) // must not fail
}

// TestRowKernels: every path's argmax and expRow give the reference's bits.
func TestRowKernels(t *testing.T) {
	ref := newGoKernels(1)
	special := []float32{float32(math.NaN()), float32(math.Inf(-1)), float32(math.Inf(1)), 0, float32(math.Copysign(0, -1))}
	for _, path := range Paths() {
		d := openPathFor(t, Options{Path: path, Threads: 1})
		rng := rand.New(rand.NewPCG(8, 8))
		for n := 1; n < 200; n++ {
			x := make([]float32, n)
			for i := range x {
				x[i] = float32(math.Round(40*rng.NormFloat64())) / 4
				if rng.IntN(20) == 0 {
					x[i] = special[rng.IntN(2+rng.IntN(4))]
				}
			}
			at := ref.argmax(x)
			if got := d.kern.argmax(x); got != at {
				t.Fatalf("%s: argmax %d, want %d of %v", path, got, at, x)
			}
			if math.IsInf(float64(x[at]), 0) || x[at] != x[at] {
				continue
			}
			scale := 0.1 + 3*rng.Float32()
			want, got := make([]float32, n), make([]float32, n)
			a, b := ref.expRow(want, x, x[at], scale), d.kern.expRow(got, x, x[at], scale)
			if a != b || !slices.Equal(want, got) {
				t.Fatalf("%s: exponentials of %v: %v, %v; want %v, %v", path, x, got, b, want, a)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(fmt.Errorf("%s: %w", path, err))
		}
	}
}

// TestUnlikelyTail: tokens too unlikely for a first look are kept where together they matter.
func TestUnlikelyTail(t *testing.T) {
	x := make([]float32, 49152)
	for i := range x {
		x[i] = -14 // weight 8.3e-7 each, 0.041 together
	}
	x[100] = 0
	b := device.Batch{Samples: []device.Sample{plain(1)}}
	b.Samples[0].TopP = 0.98
	d := openPathFor(t, Options{Threads: 1})
	defer d.Close()
	m, tail, beyond := &sampler{kern: d.kern}, 0, false
	for pos := range int32(400) {
		b.Samples[0].Position = pos
		if got := drawOne(m, b, x); got != 100 {
			tail++
			beyond = beyond || got > 30000 // top-p leaves out half of the tail, by id
		}
	}
	if tail < 1 || tail > 20 || beyond { // 0.0196 of 400 is 8
		t.Errorf("%d of 400 draws fell in the tail, beyond top-p: %v", tail, beyond)
	}
	b.Samples[0].TopP, b.Samples[0].TopK = 1, 3
	for pos := range int32(100) {
		b.Samples[0].Position = pos
		if got := drawOne(m, b, x); got != 100 && got > 1 {
			t.Fatalf("top-k 3 drew %d, want 100, 0 or 1", got)
		}
	}
}

// TestSamplesTogether: what a sample draws and reports does not depend on the others of its step.
func TestSamplesTogether(t *testing.T) {
	for _, path := range Paths() {
		d, m, p := smallModel(t, Options{Path: path, Threads: 3})
		kv, err := d.NewPages(m.kv(1, 16, device.F32))
		if err != nil {
			t.Fatal(err)
		}
		r, err := d.Compile(p, kv, device.Limits{Rows: 9, Sequences: 1, Samples: 20, Depth: 1})
		if err != nil {
			t.Fatal(err)
		}
		rng := rand.New(rand.NewPCG(6, 6))
		b := device.Batch{Tokens: randomTokens(rng, 9, m.vocab), Seqs: []device.Seq{{Rows: 9, Context: 9}}, Tables: []int32{0}}
		for i := range b.Tokens {
			b.Positions = append(b.Positions, int32(i))
		}
		b.History = randomTokens(rng, 40, m.vocab)
		for i := range 20 {
			one, _ := randomSampling(rng, m.vocab)
			sp := one.Samples[0]
			sp.BiasStart, sp.BiasEnd, sp.Mask = 0, 0, -1
			sp.Row, sp.Seed, sp.Position, sp.Logprobs = int32(i*9/20), rng.Uint64(), int32(i), int32(i%4)-1
			if i%5 == 4 {
				sp.Score = int32(i)
			}
			b.Samples = append(b.Samples, sp)
		}
		run := func(b *device.Batch) device.Result {
			var res device.Result
			if err := r.Submit(b); err != nil {
				t.Fatal(err)
			}
			if err := r.Wait(&res); err != nil {
				t.Fatal(err)
			}
			return res
		}
		all := run(&b)
		at := 0
		for i, sp := range b.Samples {
			alone := b
			alone.Samples = []device.Sample{sp}
			one := run(&alone)
			n := max(0, int(sp.Logprobs))
			if one.Tokens[0] != all.Tokens[i] || one.Logprobs[0] != all.Logprobs[i] || !slices.Equal(one.Top, all.Top[at:at+n]) {
				t.Errorf("%s: sample %d alone: %+v; among others: token %d, %v, %v", path, i, one, all.Tokens[i], all.Logprobs[i], all.Top[at:at+n])
			}
			if sp.Score >= 0 && (one.Tokens[0] != sp.Score || one.Logprobs[0] >= 0) {
				t.Errorf("%s: score of token %d: %+v", path, sp.Score, one)
			}
			at += n
		}
		r.Close()
		kv.Close()
		d.Close()
	}
}
