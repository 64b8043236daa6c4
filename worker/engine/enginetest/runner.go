package enginetest

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"math"
	"slices"
	"sync"

	"github.com/quire-serve/quire/device"
)

// Config is the shape of a [Runner].
type Config struct {
	Pages, BlockTokens, Vocab int
	// WindowPages are those of the cache's second group; 0 is none.
	WindowPages int
	// Window is how many tokens a row attends to, its own included; 0 is all. With WindowPages it attends
	// to all of them in the first group and to so many in the second.
	Window int
	Limits device.Limits
	// Token, if set, replaces the drawn token: for tests that want a certain output. seen are the
	// tokens that the row attends to.
	Token func(seen []int32, s device.Sample) int32
	// Gate, if set, is called by Wait before a step is done.
	Gate func(step int)
	// Fail, if set, is called by Submit with the step's rows; an error is given to Wait. Refuse is called
	// before, and its error returned by Submit, which then takes nothing: in both, steps count from 1, those
	// that were refused too.
	Fail, Refuse func(step int, b *device.Batch) error
}

// Runner is a [device.Runner].
type Runner struct {
	config Config

	mu     sync.Mutex
	pages  [2][][]int32 // by group; -1 where nothing was written
	last   []int32      // tokens of the newest submission
	queue  []result
	room   *sync.Cond
	steps  int
	waited int
	rows   int
	errs   []error
	closed bool
	order  [][]int // rows of each sequence, by step
}

type result struct {
	device.Result
	err  error
	uses map[int32]use
}

var _ device.Runner = (*Runner)(nil)

// NewRunner returns a runner over empty pages.
func NewRunner(c Config) *Runner {
	r := &Runner{config: c}
	r.room = sync.NewCond(&r.mu)
	for g, n := range []int{c.Pages, c.WindowPages} {
		for range n {
			page := make([]int32, c.BlockTokens)
			for i := range page {
				page[i] = -1
			}
			r.pages[g] = append(r.pages[g], page)
		}
	}
	return r
}

// Err is everything that was wrong with the batches so far.
func (r *Runner) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return errors.Join(r.errs...)
}

// Rows is how many tokens were computed so far.
func (r *Runner) Rows() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.rows
}

// Steps lists, for each step so far, the rows of each of its sequences.
func (r *Runner) Steps() [][]int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([][]int(nil), r.order...)
}

// Submit computes b at once and keeps the result for Wait. It blocks while Limits.Depth steps are
// in flight.
func (r *Runner) Submit(b *device.Batch) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	for len(r.queue) >= r.config.Limits.Depth && !r.closed {
		r.room.Wait()
	}
	if r.closed {
		return device.ErrClosed
	}
	r.steps++
	if r.config.Refuse != nil {
		if err := r.config.Refuse(r.steps, b); err != nil {
			return err
		}
	}
	res := r.compute(b)
	if r.config.Fail != nil {
		res.err = r.config.Fail(r.steps, b)
	}
	r.queue = append(r.queue, res)
	r.room.Broadcast()
	return nil
}

// Wait fills out with the oldest step's result.
func (r *Runner) Wait(out *device.Result) error {
	r.mu.Lock()
	for len(r.queue) == 0 && !r.closed {
		r.room.Wait()
	}
	if len(r.queue) == 0 {
		r.mu.Unlock()
		return device.ErrClosed
	}
	r.waited++
	step := r.waited
	r.mu.Unlock()
	if r.config.Gate != nil {
		r.config.Gate(step)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.queue) == 0 {
		return device.ErrClosed // closed meanwhile
	}
	res := r.queue[0]
	r.queue = r.queue[1:]
	r.room.Broadcast()
	if res.err != nil {
		return res.err
	}
	*out = res.Result
	return nil
}

// Close makes everything after it fail.
func (r *Runner) Close() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.closed = true
	r.queue = nil
	r.room.Broadcast()
	return nil
}

func (r *Runner) wrong(format string, args ...any) {
	if len(r.errs) < 20 {
		r.errs = append(r.errs, fmt.Errorf("step %d: %s", r.steps, fmt.Sprintf(format, args...)))
	}
}

func (r *Runner) compute(b *device.Batch) (out result) {
	c := &r.config
	if len(b.Tokens) == 0 || len(b.Tokens) > c.Limits.Rows || len(b.Seqs) > c.Limits.Sequences || len(b.Samples) > c.Limits.Samples {
		r.wrong("%d rows, %d sequences, %d samples are not within %+v", len(b.Tokens), len(b.Seqs), len(b.Samples), c.Limits)
	}
	if len(b.Positions) != len(b.Tokens) {
		r.wrong("%d positions for %d rows", len(b.Positions), len(b.Tokens))
		return out
	}
	for _, cp := range b.Copies {
		if !r.page(cp.Group, cp.From) || !r.page(cp.Group, cp.To) || cp.From == cp.To {
			r.wrong("copies page %d to %d of group %d", cp.From, cp.To, cp.Group)
			continue
		}
		copy(r.pages[cp.Group][cp.To], r.pages[cp.Group][cp.From])
	}
	out.uses = map[int32]use{}
	for _, cp := range b.Copies {
		if cp.Group > 0 {
			continue // tiers know the first alone
		}
		if _, ok := out.uses[cp.From]; !ok {
			out.uses[cp.From] = use{}
		}
		out.uses[cp.To] = use{written: true}
	}
	r.rows += len(b.Tokens)
	owner := make([]int, len(b.Tokens)) // sequence of each row
	var writer [2]map[int32]int         // sequence that writes a page in this step, by group
	for g := range writer {
		writer[g] = map[int32]int{}
	}
	next := int32(0)
	var shape []int
	input := make([]int32, len(b.Tokens))
	for i, s := range b.Seqs {
		shape = append(shape, int(s.Rows))
		if s.Row != next || s.Rows < 1 || int(s.Row+s.Rows) > len(b.Tokens) {
			r.wrong("sequence %d has rows %d+%d, expected from %d", i, s.Row, s.Rows, next)
			return out
		}
		next += s.Rows
		for _, page := range b.Tables[s.Table:][:(int(s.Context)+c.BlockTokens-1)/c.BlockTokens] {
			out.uses[page] = use{written: out.uses[page].written}
		}
		if b.Positions[s.Row+s.Rows-1]+1 != s.Context {
			r.wrong("sequence %d ends at position %d with a context of %d", i, b.Positions[s.Row+s.Rows-1], s.Context)
		}
		for row := s.Row; row < s.Row+s.Rows; row++ {
			owner[row] = i
			pos := b.Positions[row]
			if row > s.Row && pos != b.Positions[row-1]+1 {
				r.wrong("sequence %d has positions %d and %d in a row", i, b.Positions[row-1], pos)
			}
			t := b.Tokens[row]
			if t < 0 {
				if int(^t) >= len(r.last) {
					r.wrong("row %d refers to sample %d of %d", row, ^t, len(r.last))
					t = 0
				} else {
					t = r.last[^t]
				}
			}
			input[row] = t
			for g := range r.groups() {
				page := r.at(b, s, g, pos)
				if !r.page(g, page) {
					r.wrong("sequence %d writes page %d of group %d", i, page, g)
					continue
				}
				if w, ok := writer[g][page]; ok && w != i {
					r.wrong("sequences %d and %d write page %d of group %d", w, i, page, g)
				}
				writer[g][page] = i
				if g == 0 {
					out.uses[page] = use{written: true}
				}
				r.pages[g][page][pos%int32(c.BlockTokens)] = t
			}
		}
	}
	for _, cp := range b.Copies {
		// Who a copy is for goes on in its page in the step: else it may be free, or another's. Where there
		// are two groups it may do so in one of them.
		if r.groups() == 1 && !slices.ContainsFunc(b.Seqs, func(s device.Seq) bool { return r.continues(b, s, cp.Group, cp.To) }) {
			r.wrong("copies page %d to %d of group %d, in which no sequence of the step goes on", cp.From, cp.To, cp.Group)
		}
	}
	if int(next) != len(b.Tokens) {
		r.wrong("sequences cover %d of %d rows", next, len(b.Tokens))
	}
	r.order = append(r.order, shape)
	var tokens []int32
	previous := int32(-1)
	for _, x := range b.Samples {
		if x.Row < previous || int(x.Row) >= len(b.Tokens) {
			r.wrong("sample of row %d after row %d", x.Row, previous)
			return out
		}
		previous = x.Row
		s := b.Seqs[owner[x.Row]]
		last := b.Positions[x.Row]
		windowed := r.read(b, s, r.groups()-1, int32(Hidden(c.Window, int(last))), last)
		seen := windowed
		if r.groups() > 1 {
			seen = r.read(b, s, 0, 0, last)
			if !slices.Equal(windowed, seen[len(seen)-len(windowed):]) {
				r.wrong("sequence %d reads %v up to position %d in the second group, %v in the first", owner[x.Row], windowed, last, seen)
			}
		}
		history := append([]int32(nil), b.History[x.HistoryStart:x.HistoryEnd]...)
		if b.Tokens[x.Row] < 0 && x.HistoryEnd > x.HistoryStart {
			history = append(history, input[x.Row])
		}
		var token int32
		switch {
		case x.Score >= 0:
			token = x.Score
		case c.Token != nil:
			token = c.Token(seen, x)
		default:
			token = Predict(seen, x, history, int(x.HistoryPrompt-x.HistoryStart), b.Bias[x.BiasStart:x.BiasEnd], r.mask(b, x), c.Vocab)
		}
		tokens = append(tokens, token)
		out.Tokens = append(out.Tokens, token)
		out.Logprobs = append(out.Logprobs, Logprob(seen, token))
		for k := range x.Logprobs {
			out.Top = append(out.Top, device.TokenLogprob{Token: k, Logprob: Logprob(seen, k)})
		}
	}
	r.last = tokens
	return out
}

// Pages is the runner's cache as the tiers see it. Reading or writing a page that a step in flight
// uses is reported by [Runner.Err].
func (r *Runner) Pages() device.Pages { return (*pages)(r) }

type pages Runner

func (p *pages) Layout() device.KVLayout {
	// So that a page is BlockTokens numbers of four bytes.
	return device.KVLayout{Pages: p.config.Pages, BlockTokens: p.config.BlockTokens, Layers: 1, KVHeads: 1, HeadDim: 1, Type: device.F16}
}

func (p *pages) Close() error { return nil }

func (p *pages) Read(page int32, dst []byte) error {
	r := (*Runner)(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.free(page, len(dst), "reads", func(u use) bool { return u.written }) {
		return nil
	}
	for i, t := range r.pages[0][page] {
		binary.LittleEndian.PutUint32(dst[4*i:], uint32(t))
	}
	return nil
}

func (p *pages) Write(page int32, src []byte) error {
	r := (*Runner)(p)
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.free(page, len(src), "writes", func(use) bool { return true }) {
		return nil
	}
	for i := range r.pages[0][page] {
		r.pages[0][page][i] = int32(binary.LittleEndian.Uint32(src[4*i:]))
	}
	return nil
}

// free checks that a copy beside the steps is of a page that none in flight uses so.
func (r *Runner) free(page int32, bytes int, verb string, bad func(use) bool) bool {
	if !r.page(0, page) || bytes != 4*r.config.BlockTokens {
		r.wrong("the host %s page %d in %d bytes", verb, page, bytes)
		return false
	}
	for _, q := range r.queue {
		if u, ok := q.uses[page]; ok && bad(u) {
			r.wrong("the host %s page %d, which a step in flight uses", verb, page)
		}
	}
	return true
}

// use is what a step does with a page.
type use struct{ written bool }

// mask is the sample's, or nil.
func (r *Runner) mask(b *device.Batch, x device.Sample) []uint32 {
	if x.Mask < 0 {
		return nil
	}
	words := (r.config.Vocab + 31) / 32
	if end := (int(x.Mask) + 1) * words; end <= len(b.Masks) {
		return b.Masks[end-words : end]
	}
	r.wrong("mask %d of %d words", x.Mask, len(b.Masks))
	return nil
}

func (r *Runner) page(group, id int32) bool { return id >= 0 && int(id) < len(r.pages[group]) }

// groups is how many groups of pages there are.
func (r *Runner) groups() int32 {
	if r.config.WindowPages > 0 {
		return 2
	}
	return 1
}

// at is the page of a group in which s has position pos.
func (r *Runner) at(b *device.Batch, s device.Seq, group, pos int32) int32 {
	table := s.Table
	if group == 1 {
		table = s.WindowTable
	}
	return b.Tables[table+pos/int32(r.config.BlockTokens)]
}

// continues reports whether the first row of s is behind others in a page of a group.
func (r *Runner) continues(b *device.Batch, s device.Seq, group, page int32) bool {
	pos := b.Positions[s.Row]
	return r.at(b, s, group, pos) == page && (pos%int32(r.config.BlockTokens) > 0 || r.config.BlockTokens == 1)
}

// read are the tokens of s at positions from to last, as a group holds them.
func (r *Runner) read(b *device.Batch, s device.Seq, group, from, last int32) []int32 {
	tokens := make([]int32, 0, s.Context)
	for pos := from; pos <= last; pos++ {
		t := int32(-1)
		if page := r.at(b, s, group, pos); r.page(group, page) {
			t = r.pages[group][page][pos%int32(r.config.BlockTokens)]
		}
		if t < 0 {
			r.wrong("a sequence reads position %d in group %d, which nothing wrote", pos, group)
		}
		tokens = append(tokens, t)
	}
	return tokens
}

// Hidden is how many tokens a row at a position does not see, of those before it.
func Hidden(window, position int) int {
	if window == 0 {
		return 0
	}
	return max(0, position-window+1)
}

// Predict is the token that the fake model draws after seen: the same for the same tokens, sampling
// parameters, history (its first prompt tokens are the prompt's) and bias; among the candidates in
// their order the first that neither bias nor mask (nil allows all) forbids.
func Predict(seen []int32, s device.Sample, history []int32, prompt int, bias []device.TokenBias, mask []uint32, vocab int) int32 {
	h := fnv.New64a()
	var buf [8]byte
	add := func(v uint64) {
		binary.LittleEndian.PutUint64(buf[:], v)
		h.Write(buf[:])
	}
	for _, t := range seen {
		add(uint64(uint32(t)))
	}
	if s.Temperature > 0 {
		add(s.Seed)
		add(uint64(uint32(s.Choice)))
		add(uint64(s.Position))
	}
	if len(history) > 0 {
		add(uint64(prompt))
		for _, t := range history {
			add(uint64(uint32(t)))
		}
	}
	for k := uint64(0); ; k++ {
		t := int32((h.Sum64()>>11 + k) % uint64(vocab))
		ok := mask == nil || mask[t>>5]>>(t&31)&1 == 1
		for _, b := range bias {
			switch {
			case b.Token == t && math.IsInf(float64(b.Bias), -1):
				ok = false
			case b.Bias >= 100:
				return b.Token
			}
		}
		if ok {
			return t
		}
	}
}

// Logprob is the log-probability that the fake model gives token after seen.
func Logprob(seen []int32, token int32) float32 {
	h := fnv.New32a()
	var buf [4]byte
	for _, t := range append(append([]int32(nil), seen...), token) {
		binary.LittleEndian.PutUint32(buf[:], uint32(t))
		h.Write(buf[:])
	}
	return -float32(h.Sum32()%1000) / 100
}
