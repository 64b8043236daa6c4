package engine

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/model/grammar"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/enginetest"
)

const testVocab = 101

var background = context.Background()

// rig runs a planner over the fake device, one loop iteration at a time.
type rig struct {
	t        tb
	p        *planner
	turns    turner
	device   device.Runner
	runner   *enginetest.Runner // the same, where it is a fake
	waited   bool               // for the device, in this iteration
	diskless bool               // its tiers have no disk, which pins pages too
	gone     error              // of the newest iteration: the device is gone
	before   func()             // called before each plan
	model    Model
	number   uint64
	now      int64
	// cost, if set, is how long the device takes for a step, in microseconds; the clock then moves only
	// while it is waited for. ends are the times at which the steps in flight end.
	cost func(*device.Batch) int64
	ends []int64
	idle int64 // when the device has nothing more to do
	host int64 // how long an iteration of the loop takes beside the device, in microseconds

	got map[string]*heard // by request/choice
	log []string          // requests' ends in order
}

// tb is what a rig needs of a test, rapid's included.
type tb interface {
	Helper()
	Error(...any)
	Errorf(string, ...any)
	Fatal(...any)
	Fatalf(string, ...any)
}

// heard is what the sink heard of one choice.
type heard struct {
	tokens   []int32
	logprobs []*pb.Logprobs
	prompt   []*pb.Logprobs
	first    int32 // position of the first token heard
	finish   pb.FinishReason
	why      string
	message  string
	cached   int32
	opened   int
	done     bool
	returned bool
	usage    Usage
}

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func newRig(t tb, s Settings, edit ...func(*enginetest.Config, *Model)) *rig {
	s.Logger = quiet()
	if s.DecodeShare == 0 {
		s.DecodeShare = -1
	}
	s = s.WithDefaults()
	if err := s.Validate(); err != nil {
		t.Fatal(err)
	}
	c := enginetest.Config{Pages: s.Blocks, BlockTokens: s.BlockTokens, Vocab: testVocab, Limits: s.Limits()}
	m := Model{ContextLength: 4096, Vocab: testVocab, Stops: letters, Spell: spelled}
	for _, e := range edit {
		e(&c, &m)
	}
	c.Vocab, c.Window, c.WindowPages = m.Vocab, m.Window, s.WindowBlocks
	if m.Constrain == nil {
		m.Constrain = Grammars(letterTokens{m.Vocab, m.EOS}, m.Vocab)
	}
	runner := enginetest.NewRunner(c)
	m.Runner = runner
	p, err := newPlanner(s, m)
	if err != nil {
		t.Fatal(err)
	}
	if s.WindowBlocks > 0 {
		m.Window = 0 // of the output as a whole
	}
	r := &rig{t: t, device: runner, runner: runner, model: m, now: 1, got: map[string]*heard{}}
	r.drive(p)
	return r
}

// drive gives the rig its planner.
func (r *rig) drive(p *planner) {
	r.p = p
	r.turns = turner{plan: p, runner: clocked{r}, now: func() time.Time { return time.UnixMicro(r.now) }}
}

// letters finds stop strings in a text in which every token is a letter.
func letters(p *pb.SamplingParams) StopFinder { return &letterStops{p: p} }

// spelled are the sequences of the tokens 0 to 25 that are a word's letters, and of those behind a blank, which
// is the token 1.
func spelled(word string) [][]int32 {
	ids := []int32{1}
	for i := range len(word) {
		ids = append(ids, int32(word[i]-'a'))
	}
	return [][]int32{ids[1:], ids}
}

type letterStops struct {
	p    *pb.SamplingParams
	text string
}

func letter(t int32) string { return string('a' + t%26) }

func (l *letterStops) Push(t int32) (string, bool) {
	l.text += letter(t)
	for _, s := range l.p.Stop {
		if len(l.text) > int(l.p.MinTokens) && strings.HasSuffix(l.text, s) {
			return s, true
		}
	}
	return "", false
}

// prompt makes n tokens that differ from every other seed's.
func prompt(seed, n int) []int32 {
	out := make([]int32, n)
	x := uint32(seed)*2654435761 + 12345
	for i := range out {
		x = x*1664525 + 1013904223
		out[i] = int32(x>>8) % testVocab
	}
	return out
}

func ask(id string, prompt []int32, maxTokens int, edit ...func(*pb.Request)) *pb.Request {
	zero := float32(0)
	seed := uint64(7)
	r := &pb.Request{Id: id, Prompt: prompt, Sampling: &pb.SamplingParams{Temperature: &zero, Seed: &seed, MaxTokens: int32(maxTokens)}}
	for _, e := range edit {
		e(r)
	}
	return r
}

func (r *rig) add(reqs ...*pb.Request) {
	r.t.Helper()
	for _, q := range reqs {
		tenant, context := r.p.tenant(q.Tenant, r.p.context)
		n, err := newRequest(q, &r.model, context)
		if err != nil {
			r.t.Fatal(err)
		}
		n.tenant = tenant
		r.number++
		n.number, n.added = r.number, r.now
		if n.spec == nil {
			r.p.add(n)
			continue
		}
		bound, err := n.bind(background, r.model.Constrain)
		r.p.join(n, bound, err)
	}
	r.hear()
}

// context is how many tokens a sequence of q may hold.
func (r *rig) context(q *pb.Request) int {
	_, tokens := r.p.tenant(q.Tenant, r.p.context)
	return tokens
}

func (r *rig) find(id string) *request {
	for _, l := range []order{r.p.waiting, r.p.running, r.p.forking} {
		for _, s := range l {
			if s.id == id {
				return s.request
			}
		}
	}
	return nil
}

func (r *rig) abort(id string) {
	if q := r.find(id); q != nil {
		r.p.endRequest(q, pb.FinishReason_FINISH_REASON_ABORT, "")
	}
	r.hear()
}

// step is one iteration of Engine.Run. It reports whether anything was done.
func (r *rig) step() bool {
	r.t.Helper()
	if r.before != nil {
		r.before()
	}
	// Only who begins in a plan can follow, and preemptions come before that.
	for _, s := range r.p.running {
		if s.kv.Followed() {
			r.t.Errorf("%s could be preempted while others count on what it computes", s.id)
		}
	}
	r.waited = false
	did, err := r.turns.turn()
	r.gone = err
	if !did || r.waited {
		// What each iteration takes that waits for the device, unless the device says so.
		if r.cost == nil {
			r.now += 1000
		}
	}
	if len(r.p.copies) > 0 {
		r.t.Errorf("copies of pages wait for a later step, when the pages may be others'")
	}
	r.hear()
	if err != nil {
		return false
	}
	return did || r.p.lower.busy() || r.awaitsPeers() || r.awaitDisk()
}

// clocked is the rig's device, whose steps take the rig's time.
type clocked struct{ *rig }

func (c clocked) Submit(b *device.Batch) error {
	c.now += c.host
	if err := c.device.Submit(b); err != nil {
		return err
	}
	if c.cost != nil {
		c.idle = max(c.idle, c.now) + c.cost(b)
		c.ends = append(c.ends, c.idle)
	}
	return nil
}

func (c clocked) Wait(out *device.Result) error {
	c.waited = true
	if c.cost != nil {
		c.now = max(c.now, c.ends[0])
		c.ends = c.ends[1:]
	}
	return c.device.Wait(out)
}

func (c clocked) Close() error { return c.device.Close() }

// hear takes the events of the step, as a sink does.
func (r *rig) hear() {
	r.t.Helper()
	for _, e := range r.p.events {
		k := key(e.RequestID, int(e.Choice))
		h := r.got[k]
		if h == nil {
			h = &heard{first: e.First}
			r.got[k] = h
		}
		if h.finish != 0 {
			r.t.Errorf("%s: an event after its end", k)
		}
		if want := h.first + int32(len(h.tokens)); e.First != want {
			r.t.Errorf("%s: event at position %d, expected %d", k, e.First, want)
		}
		h.tokens = append(h.tokens, e.Tokens...)
		h.logprobs = append(h.logprobs, e.Logprobs...)
		if e.PromptLogprobs != nil {
			if h.prompt != nil {
				r.t.Errorf("%s: prompt log-probabilities twice", k)
			}
			h.prompt = e.PromptLogprobs
		}
		if e.Opening {
			h.opened++
		}
		h.finish, h.why, h.message, h.cached = e.Finish, e.StopReason, e.Error, e.CachedTokens
		h.returned = h.returned || e.Returned
		if e.Done {
			h.done, h.usage = true, e.Usage
			r.log = append(r.log, e.RequestID)
		}
	}
	clear(r.p.events)
	r.p.events = r.p.events[:0]
	r.p.begun, r.p.done = r.p.begun[:0], r.p.done[:0]
}

func key(id string, choice int) string { return fmt.Sprintf("%s/%d", id, choice) }

// finish steps until nothing is left to do and checks what must hold then.
func (r *rig) finish() {
	r.t.Helper()
	// A prompt that is cut into single rows and preempted after each token takes as many steps as half the
	// context's square, for each request.
	for i := 0; r.step(); i++ {
		if i > 300_000 {
			r.t.Fatalf("no end after %d steps: %s", i, r.state())
		}
	}
	if !r.p.idle() {
		r.t.Fatalf("stands still: %s", r.state())
	}
	r.clean()
}

// state tells who runs and who waits.
func (r *rig) state() string {
	out := fmt.Sprintf("%d of %d blocks free, faults %+v", r.p.pool.Free(), r.p.Blocks, r.p.faults)
	for _, l := range []order{r.p.running, r.p.waiting, r.p.forking} {
		for _, s := range l {
			out += fmt.Sprintf("\n%s/%d state %d: %d of %d tokens computed, %d pending, limit %d, room %d, wants %d, loading %v, fetching %v, suspect %v until %d",
				s.id, s.choice, s.state, s.computed, len(s.tokens), s.pending, s.limit, s.room, s.want(), s.loading(), s.fetching, s.suspect, s.proof)
		}
	}
	return out
}

// clean checks that nothing is left behind.
func (r *rig) clean() {
	r.t.Helper()
	if r.runner != nil {
		if err := r.runner.Err(); err != nil {
			r.t.Errorf("the device found: %v", err)
		}
	}
	if err := r.p.pool.Audit(); err != nil {
		r.t.Error(err)
	}
	if r.p.count.violations > 0 {
		r.t.Errorf("%d accounting violations", r.p.count.violations)
	}
	if st := r.p.pool.Stats(); st.Referenced != 0 || r.p.pool.Free() != r.p.Blocks {
		r.t.Errorf("%d blocks leaked, %d of %d free", st.Referenced, r.p.pool.Free(), r.p.Blocks)
	}
	if w := r.p.pool.Windowed(); w != nil && (w.Stats().Referenced != 0 || w.Free() != r.p.WindowBlocks) {
		r.t.Errorf("%d blocks of the second group leaked, %d of %d free", w.Stats().Referenced, w.Free(), r.p.WindowBlocks)
	}
	if l := r.p.lower; l != nil && (len(l.loading) > 0 || len(l.notKept) > 0 || l.broken > 0 || l.flying > 0 || len(l.asked) > 0) {
		r.t.Errorf("%d sequences still wait for blocks, %d blocks not to be kept, %d copies failed, %d fetches fly and %d wait", len(l.loading), len(l.notKept), l.broken, l.flying, len(l.asked))
	}
	if l := r.p.lower; l != nil && r.diskless && l.Cache.Pinned() > 0 {
		r.t.Errorf("%d pages are still pinned", l.Cache.Pinned())
	}
	if r.p.load.waitingTokens != 0 {
		r.t.Errorf("%d waiting tokens on the books of an empty engine", r.p.load.waitingTokens)
	}
	for k, h := range r.got {
		if h.finish == 0 {
			r.t.Errorf("%s has no terminal event", k)
		}
	}
}

// want checks that a choice gave exactly the undisturbed output of q.
func (r *rig) want(q *pb.Request) {
	r.t.Helper()
	n := max(1, int(q.Sampling.N))
	done := 0
	for c := range n {
		h := r.got[key(q.Id, c)]
		if h == nil {
			r.t.Errorf("%s: nothing heard", key(q.Id, c))
			continue
		}
		tokens, finish := undisturbed(q, c, &r.model, r.context(q))
		if !slices.Equal(h.tokens, tokens) || h.finish != finish {
			r.t.Errorf("%s: %v tokens %v\nundisturbed: %v tokens %v", key(q.Id, c), h.finish, h.tokens, finish, tokens)
		}
		if h.done {
			done++
		}
	}
	if done != 1 {
		r.t.Errorf("%s: %d events marked done", q.Id, done)
	}
}

// undisturbed computes what choice c of q must give, without any engine.
func undisturbed(q *pb.Request, c int, m *Model, context int) (out []int32, finish pb.FinishReason) {
	sp := q.Sampling
	tokens := slices.Clone(q.Prompt)
	given := 0
	if c < len(q.Generated) && !Repeats(sp) {
		tokens = append(tokens, q.Generated[c].Ids...)
		given = len(q.Generated[c].Ids)
	}
	limit := context
	if sp.MaxTokens > 0 {
		limit = min(limit, len(q.Prompt)+int(sp.MaxTokens))
	}
	eos := m.EOS
	if sp.IgnoreEos {
		eos = nil
	}
	var finder StopFinder
	if len(sp.Stop) > 0 {
		finder = m.Stops(sp)
	}
	var bias []device.TokenBias
	for t, b := range sp.LogitBias {
		bias = append(bias, device.TokenBias{Token: t, Bias: b})
	}
	stops := func(i int) pb.FinishReason {
		count := i - len(q.Prompt) + 1
		if finder != nil {
			if _, found := finder.Push(tokens[i]); found {
				return pb.FinishReason_FINISH_REASON_STOP
			}
		}
		if count > int(sp.MinTokens) && (slices.Contains(eos, tokens[i]) || slices.Contains(sp.StopTokenIds, tokens[i])) {
			return pb.FinishReason_FINISH_REASON_STOP
		}
		if i+1 >= limit {
			return pb.FinishReason_FINISH_REASON_LENGTH
		}
		return 0
	}
	var text grammar.State
	if sp.Constraint != nil {
		spec, err := SpecOf(sp.Constraint)
		if err != nil {
			panic(err)
		}
		g, err := m.Constrain(background, spec)
		if err != nil {
			panic(err)
		}
		text = g.NewState()
		unconstrained := stops
		stops = func(i int) pb.FinishReason {
			if err := text.Accept(tokens[i]); err != nil {
				panic(err)
			}
			if f := unconstrained(i); f != 0 {
				return f
			}
			if text.Done() {
				return pb.FinishReason_FINISH_REASON_STOP
			}
			return 0
		}
	}
	for i := len(q.Prompt); i < len(tokens); i++ {
		if f := stops(i); f != 0 {
			return nil, f
		}
	}
	for {
		x := device.Sample{Temperature: *sp.Temperature, Seed: sp.GetSeed(), Choice: int32(c), Position: int32(len(tokens))}
		b := bias
		var mask []uint32
		if sp.Constraint != nil {
			var err error
			if mask, err = text.Mask(); err != nil {
				panic(err)
			}
		}
		for _, t := range sp.AllowedTokenIds {
			if mask == nil {
				mask = make([]uint32, (m.Vocab+31)/32)
			}
			mask[t/32] |= 1 << (t % 32)
		}
		mask = withoutBadWords(q, tokens, mask, m.Vocab)
		ends := slices.Concat(eos, sp.StopTokenIds)
		if len(tokens)-len(q.Prompt) < int(sp.MinTokens) && !(mask != nil && only(mask, ends)) {
			b = slices.Clone(b)
			for _, t := range ends {
				b = append(b, device.TokenBias{Token: t, Bias: float32(math.Inf(-1))})
			}
		}
		var history []int32
		if sp.PresencePenalty != 0 || sp.FrequencyPenalty != 0 {
			history = tokens
		}
		seen := tokens[enginetest.Hidden(m.Window, len(tokens)-1):]
		tokens = append(tokens, enginetest.Predict(seen, x, history, len(q.Prompt), b, mask, cmp.Or(m.Vocab, testVocab)))
		if f := stops(len(tokens) - 1); f != 0 {
			return tokens[len(q.Prompt)+given:], f
		}
	}
}

// withoutBadWords is the definition of what bad words leave of mask, of what may follow tokens: all tokens
// that do not complete a word among the generated ones, unless there are none.
func withoutBadWords(q *pb.Request, tokens []int32, mask []uint32, vocab int) []uint32 {
	if len(q.Sampling.BadWords) == 0 {
		return mask
	}
	out, some := make([]uint32, (vocab+31)/32), false
	for t := range int32(vocab) {
		if mask != nil && mask[t/32]>>(t%32)&1 == 0 {
			continue
		}
		generated := fmt.Sprint(append(slices.Clone(tokens[len(q.Prompt):]), t))
		bad := slices.ContainsFunc(q.Sampling.BadWords, func(word string) bool {
			return slices.ContainsFunc(spelled(word), func(ids []int32) bool {
				list := strings.Trim(fmt.Sprint(ids), "[]")
				return strings.HasSuffix(generated, " "+list+"]") || generated == "["+list+"]"
			})
		})
		if !bad {
			out[t/32] |= 1 << (t % 32)
			some = true
		}
	}
	if !some {
		return mask
	}
	return out
}

// only reports whether mask holds no token but those of allowed.
func only(mask []uint32, allowed []int32) bool {
	for t := range int32(32 * len(mask)) {
		if mask[t/32]>>(t%32)&1 == 1 && !slices.Contains(allowed, t) {
			return false
		}
	}
	return true
}
