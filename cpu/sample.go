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
	kept    []int32 // tokens that the filters keep, by id
	ranked  []int32 // some of them, by weight
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
	if sp.Temperature < coldest || !(math.Abs(float64(x[best])) <= math.MaxFloat32) { // infinite, or nothing but NaNs
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

// unlikely is a weight below which filters seldom look.
const unlikely = 0x1p-20

// draw filters x, whose largest logit is top, and draws.
func (m *sampler) draw(sp *device.Sample, x []float32, top float32) int32 {
	m.weights = resize(m.weights, len(x))
	w := m.weights
	total := m.kern.expRow(w, x, top, 1/sp.Temperature)
	u := uniform(sp.Seed, sp.Choice, sp.Position)
	k := int(sp.TopK)
	if k >= len(x) {
		k = 0
	}
	if k == 0 && sp.TopP >= 1 && sp.MinP == 0 {
		return pick(w, float64(u*total))
	}
	total = m.candidates(w, total, sp, k)
	if k > 0 && k < len(m.kept) {
		total = m.narrow(w, m.topK(w, k))
	}
	if sp.TopP < 1 {
		total = m.narrow(w, m.topP(w, float64(float64(sp.TopP)*total)))
	}
	target, sum := float64(u*total), 0.0
	for _, i := range m.kept {
		if sum += float64(w[i]); sum > target {
			return i
		}
	}
	return m.kept[len(m.kept)-1]
}

// candidates sets kept to the tokens that the filters may keep, in order of id, and returns the weight
// of what is kept: by min-p, and, if that leaves k tokens or fewer, by top-k. Top-p is a share of it, so
// without top-k it includes the unlikely tokens that were left out of kept.
//
// Nearly all of a vocabulary is unlikely, so a first look leaves that out; a second is needed if
// the k likeliest, or the likeliest that reach top-p, might be beyond.
func (m *sampler) candidates(w []float32, total float64, sp *device.Sample, k int) float64 {
	floor := min(sp.MinP, 1)
	if floor == 0 {
		sum := m.collect(w, unlikely)
		if k > 0 && len(m.kept) >= k {
			return sum
		}
		if k == 0 && sum >= float64(float64(sp.TopP)*total) {
			return total
		}
		floor = math.SmallestNonzeroFloat32
	}
	return m.collect(w, floor)
}

// collect sets kept to the tokens of weight floor or more and returns the sum of their weights.
func (m *sampler) collect(w []float32, floor float32) float64 {
	m.kept = m.kept[:0]
	sum := 0.0
	for i, v := range w {
		if v >= floor {
			m.kept = append(m.kept, int32(i))
			sum += float64(v)
		}
	}
	return sum
}

// narrow drops what c does not keep and returns the sum of the weights of the rest.
func (m *sampler) narrow(w []float32, c cut) float64 {
	n, sum := 0, 0.0
	for _, i := range m.kept {
		if c.keeps(w[i], i) {
			m.kept[n] = i
			n++
			sum += float64(w[i])
		}
	}
	m.kept = m.kept[:n]
	return sum
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

// topP cuts kept after the likeliest tokens whose weights reach target.
//
// There may be as many as the vocabulary, and sorting that would cost more than the model's last
// layer. Weights fall into buckets by their leading bits; only the bucket where the sum reaches the
// target is sorted.
func (m *sampler) topP(w []float32, target float64) cut {
	clear(m.bucket[:])
	for _, i := range m.kept {
		m.bucket[bucketOf(w[i])] += float64(w[i])
	}
	sum := 0.0
	for b := buckets - 1; b >= 0; b-- {
		if m.bucket[b] == 0 || sum+m.bucket[b] < target {
			sum += m.bucket[b]
			continue
		}
		m.ranked = m.ranked[:0]
		for _, i := range m.kept {
			if bucketOf(w[i]) == b {
				m.ranked = append(m.ranked, i)
			}
		}
		slices.SortFunc(m.ranked, byWeight(w))
		for _, i := range m.ranked {
			if sum += float64(w[i]); sum >= target {
				return cut{w: w[i], id: i}
			}
		}
		last := m.ranked[len(m.ranked)-1]
		return cut{w: w[last], id: last}
	}
	return cut{w: 0, id: math.MaxInt32}
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

// topK cuts kept after the k likeliest, which are fewer.
func (m *sampler) topK(w []float32, k int) cut {
	m.ranked = append(m.ranked[:0], m.kept[:k]...)
	c := m.heapify(w)
	for _, i := range m.kept[k:] {
		if w[i] >= c.w && c.keeps(w[i], i) {
			c = m.replace(w, i)
		}
	}
	return c
}

// likeliest sets ranked to the n likeliest of the whole row, or fewer if NaNs leave fewer.
func (m *sampler) likeliest(w []float32, n int) {
	m.ranked = m.ranked[:0]
	var c cut
	for i, v := range w {
		switch {
		case v != v:
		case len(m.ranked) < n:
			if m.ranked = append(m.ranked, int32(i)); len(m.ranked) == n {
				c = m.heapify(w)
			}
		case v > c.w: // of equals the first are kept
			c = m.replace(w, int32(i))
		}
	}
	slices.SortFunc(m.ranked, byWeight(w))
}

// heapify orders ranked as a heap whose root is the least likely, and returns the cut there.
func (m *sampler) heapify(w []float32) cut {
	order := byWeight(w)
	for j := len(m.ranked)/2 - 1; j >= 0; j-- {
		sink(m.ranked, j, order)
	}
	return cut{w: w[m.ranked[0]], id: m.ranked[0]}
}

// replace puts token i in the root's place.
func (m *sampler) replace(w []float32, i int32) cut {
	m.ranked[0] = i
	sink(m.ranked, 0, byWeight(w))
	return cut{w: w[m.ranked[0]], id: m.ranked[0]}
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
		m.likeliest(x, len(out))
		clear(out)
		for i, t := range m.ranked {
			out[i] = device.TokenLogprob{Token: t, Logprob: of(t)}
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
