package cpu

import (
	"math"
	"slices"
	"sync"

	"github.com/quire-serve/quire/device"
)

// Sampling is the same Go code on every path. A token's weight is exp((logit - largest)/temperature)
// in binary32, so that the likeliest has weight 1; tokens are ordered by weight, equals by id. Each
// filter is a cut in that order: a lowest weight, and the last id that is kept among equals. Nothing
// is sorted but the run of tokens where the cut falls. A temperature below 1e-5 is taken as 0.
const coldest = 1e-5

// sampler draws tokens, one sample at a time.
type sampler struct {
	kern    rowKernels
	row     []float32 // logits after bias, penalties and mask
	weights []float32
	seen    []int32 // by token: 1 if in the history, plus 2 for each time generated; zero between samples
	touched []int32 // tokens with an entry in seen
	kept    []int32
	bucket  [buckets]float64
}

// sample draws for every sample of s, on as many goroutines as there are samplers.
func (r *runner) sample(s *slot, logits []float32) {
	b, n := &s.batch, len(s.batch.Samples)
	res := &s.result
	res.Tokens, res.Logprobs = resize(res.Tokens, n), resize(res.Logprobs, n)
	top := 0
	for i := range b.Samples {
		top += max(0, int(b.Samples[i].Logprobs))
	}
	res.Top = resize(res.Top, top)
	res.Logits = res.Logits[:0]
	if b.WantLogits {
		res.Logits = append(res.Logits, logits...)
	}
	if n == 0 {
		return
	}
	vocab := int(r.plan.vocab)
	run := func(sm *sampler, from, to int) {
		at := 0
		for i := range to {
			k := max(0, int(b.Samples[i].Logprobs))
			if i >= from {
				x := logits[i*vocab : (i+1)*vocab]
				res.Tokens[i] = sm.token(s, i, x)
				res.Logprobs[i] = sm.logprobs(res.Tokens[i], &b.Samples[i], x, res.Top[at:at+k])
			}
			at += k
		}
	}
	parts := min(len(r.samplers), n)
	if parts == 1 || !heavy(b.Samples) {
		run(&r.samplers[0], 0, n)
		return
	}
	var wg sync.WaitGroup
	for p := range parts {
		wg.Go(func() { run(&r.samplers[p], n*p/parts, n*(p+1)/parts) })
	}
	wg.Wait()
}

// heavy reports whether the samples are worth more than one goroutine.
func heavy(samples []device.Sample) bool { return len(samples) >= 4 }

func resize[T any](s []T, n int) []T { return slices.Grow(s[:0], n)[:n] }

// penalised reports whether a sample's history matters.
func penalised(s *device.Sample) bool {
	return s.RepetitionPenalty != 0 && s.RepetitionPenalty != 1 || s.PresencePenalty != 0 || s.FrequencyPenalty != 0
}

// token draws sample i from raw logits x, which stay as they are.
func (m *sampler) token(s *slot, i int, x []float32) int32 {
	b, sp := &s.batch, &s.batch.Samples[i]
	if sp.Score >= 0 {
		return sp.Score
	}
	if sp.BiasEnd > sp.BiasStart || sp.Mask >= 0 || penalised(sp) {
		m.row = append(m.row[:0], x...)
		x = m.row
		for _, t := range b.Bias[sp.BiasStart:sp.BiasEnd] {
			x[t.Token] += t.Bias
		}
		if penalised(sp) {
			m.penalise(s, sp, x)
		}
		if sp.Mask >= 0 {
			words := (len(x) + 31) / 32
			applyMask(x, b.Masks[int(sp.Mask)*words:int(sp.Mask+1)*words])
		}
	}
	best := m.kern.argmax(x)
	if sp.Temperature < coldest || math.IsInf(float64(x[best]), 0) {
		return best
	}
	return m.draw(sp, x, x[best])
}

// penalise lowers the logits of tokens in the history.
func (m *sampler) penalise(s *slot, sp *device.Sample, x []float32) {
	b := &s.batch
	if len(m.seen) < len(x) {
		m.seen = make([]int32, len(x))
	}
	add := func(t, generated int32) {
		if m.seen[t] == 0 {
			m.touched = append(m.touched, t)
		}
		m.seen[t] = (m.seen[t] + 2*generated) | 1
	}
	for _, t := range b.History[sp.HistoryStart:sp.HistoryPrompt] {
		add(t, 0)
	}
	for _, t := range b.History[sp.HistoryPrompt:sp.HistoryEnd] {
		add(t, 1)
	}
	if b.Tokens[sp.Row] < 0 {
		add(s.tokens[sp.Row], 1)
	}
	for _, t := range m.touched {
		generated := m.seen[t] >> 1
		m.seen[t] = 0
		if p := sp.RepetitionPenalty; p != 0 && p != 1 {
			if x[t] > 0 {
				x[t] /= p
			} else {
				x[t] = float32(x[t] * p)
			}
		}
		if generated > 0 {
			x[t] -= sp.PresencePenalty
			x[t] -= float32(sp.FrequencyPenalty * float32(generated))
		}
	}
	m.touched = m.touched[:0]
}

// applyMask gives -∞ to the tokens whose bit is clear.
func applyMask(x []float32, mask []uint32) {
	for i := range x {
		if mask[i>>5]>>(i&31)&1 == 0 {
			x[i] = float32(math.Inf(-1))
		}
	}
}

// cut keeps the tokens of weight above w, and those of weight w up to id.
type cut struct {
	w  float32
	id int32
}

func (c cut) keeps(w float32, id int32) bool { return w > c.w || w == c.w && id <= c.id }

// draw filters x, whose largest logit is top, and draws.
func (m *sampler) draw(sp *device.Sample, x []float32, top float32) int32 {
	m.weights = resize(m.weights, len(x))
	w := m.weights
	total := m.kern.expRow(w, x, top, 1/sp.Temperature)
	c := cut{w: 0, id: -1}
	if sp.MinP > 0 {
		c = cut{w: min(sp.MinP, 1), id: math.MaxInt32}
	}
	if sp.TopK > 0 && int(sp.TopK) < len(x) {
		c = m.topK(w, c, int(sp.TopK))
	}
	if sp.TopP < 1 {
		c = m.topP(w, c, float64(sp.TopP))
	}
	u := uniform(sp.Seed, sp.Position)
	if c.id < 0 {
		return pick(w, float64(u*total))
	}
	m.kept, total = m.kept[:0], 0
	for i, v := range w {
		if v >= c.w && c.keeps(v, int32(i)) {
			m.kept = append(m.kept, int32(i))
			total += float64(v)
		}
	}
	target, sum := float64(u*total), 0.0
	for _, i := range m.kept {
		if sum += float64(w[i]); sum > target {
			return i
		}
	}
	return m.kept[len(m.kept)-1]
}

// pick returns the first index whose running sum of weights exceeds target.
func pick(w []float32, target float64) int32 {
	sum, last := 0.0, 0
	for i, v := range w {
		if v == 0 {
			continue
		}
		if sum += float64(v); sum > target {
			return int32(i)
		}
		last = i
	}
	return int32(last)
}

// buckets is one for each exponent and three bits of mantissa of a weight in [0, 1].
const buckets = 1<<10 - 7

func bucketOf(w float32) int { return int(math.Float32bits(w) >> 20) }

// topP narrows c to the likeliest tokens whose weights reach p of the weight that c keeps.
//
// Sorting the vocabulary would cost more than the model's last layer. Weights fall into buckets by
// their leading bits; only the bucket where the sum crosses the target is sorted.
func (m *sampler) topP(w []float32, c cut, p float64) cut {
	clear(m.bucket[:])
	for i, v := range w {
		if v >= c.w && c.keeps(v, int32(i)) {
			m.bucket[bucketOf(v)] += float64(v)
		}
	}
	total := 0.0
	for i := buckets - 1; i >= 0; i-- {
		total += m.bucket[i]
	}
	target, sum := float64(p*total), 0.0
	for i := buckets - 1; i >= 0; i-- {
		if m.bucket[i] == 0 || sum+m.bucket[i] < target {
			sum += m.bucket[i]
			continue
		}
		m.kept = m.kept[:0]
		for t, v := range w {
			if bucketOf(v) == i && c.keeps(v, int32(t)) {
				m.kept = append(m.kept, int32(t))
			}
		}
		slices.SortFunc(m.kept, byWeight(w))
		for _, t := range m.kept {
			if sum += float64(w[t]); sum >= target {
				return cut{w: w[t], id: t}
			}
		}
		last := m.kept[len(m.kept)-1]
		return cut{w: w[last], id: last}
	}
	return c
}

// byWeight orders tokens by weight, largest first, then by id.
func byWeight(w []float32) func(a, b int32) int {
	return func(a, b int32) int {
		switch {
		case w[a] > w[b]:
			return -1
		case w[a] < w[b]:
			return 1
		}
		return int(a - b)
	}
}

// topK narrows c to the k likeliest tokens.
func (m *sampler) topK(w []float32, c cut, k int) cut {
	m.likeliest(w, c, k)
	if len(m.kept) < k {
		return c
	}
	return cut{w: w[m.kept[0]], id: m.kept[0]}
}

// likeliest fills kept with the k largest that c keeps, as a heap whose root is the least of them.
func (m *sampler) likeliest(w []float32, c cut, k int) {
	order := byWeight(w)
	m.kept = m.kept[:0]
	for i, v := range w {
		if v < c.w || !c.keeps(v, int32(i)) {
			continue
		}
		if len(m.kept) < k {
			m.kept = append(m.kept, int32(i))
			if len(m.kept) == k {
				for j := k/2 - 1; j >= 0; j-- {
					sink(m.kept, j, order)
				}
				c = cut{w: w[m.kept[0]], id: m.kept[0] - 1}
			}
			continue
		}
		m.kept[0] = int32(i)
		sink(m.kept, 0, order)
		c = cut{w: w[m.kept[0]], id: m.kept[0] - 1}
	}
}

// sink restores the heap at j: a parent comes after its children in order.
func sink(h []int32, j int, order func(a, b int32) int) {
	for {
		child := 2*j + 1
		if child >= len(h) {
			return
		}
		if child+1 < len(h) && order(h[child], h[child+1]) < 0 {
			child++
		}
		if order(h[j], h[child]) >= 0 {
			return
		}
		h[j], h[child] = h[child], h[j]
		j = child
	}
}

// logprobs returns the log-probability of token under raw logits x, if it was asked for or the
// token was scored, and fills out with the likeliest tokens.
func (m *sampler) logprobs(token int32, sp *device.Sample, x []float32, out []device.TokenLogprob) float32 {
	if sp.Logprobs < 0 && sp.Score < 0 {
		return 0
	}
	top := x[m.kern.argmax(x)]
	m.weights = resize(m.weights, len(x))
	norm := naturalLog(m.kern.expRow(m.weights, x, top, 1))
	of := func(t int32) float32 { return float32(float64(x[t]) - float64(top) - norm) }
	if len(out) > 0 {
		m.likeliest(x, cut{w: float32(math.Inf(-1)), id: math.MaxInt32}, len(out))
		slices.SortFunc(m.kept, byWeight(x))
		clear(out)
		for i := range m.kept {
			out[i] = device.TokenLogprob{Token: m.kept[i], Logprob: of(m.kept[i])}
		}
	}
	return of(token)
}

// naturalLog is ln x for a positive finite x, in the same bits on every architecture, which
// math.Log is not. With x = f·2^e, f near 1 and s = (f-1)/(f+1): ln f = 2(s + s³/3 + s⁵/5 + …).
func naturalLog(x float64) float64 {
	f, e := math.Frexp(x)
	if f < math.Sqrt2/2 {
		f, e = 2*f, e-1
	}
	s := (f - 1) / (f + 1)
	z := float64(s * s)
	series := 0.0
	for k := 23; k >= 1; k -= 2 {
		series = float64(series*z) + 1/float64(k)
	}
	return float64(float64(e)*math.Ln2) + float64(2*s*series)
}
