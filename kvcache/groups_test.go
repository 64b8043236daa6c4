package kvcache

import (
	"errors"
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// pair is an engine in small over two groups: one machine for each, whose runs are kept alike.
type pair struct {
	groups  *Groups
	views   [2]*machine
	running []*pairRun
	waiting []*pairRun
	fenced  int
}

// pairRun is a request: runs hold its table in each group, and otherwise the same.
type pairRun struct {
	tables Tables
	runs   [2]*run
}

func (r *pairRun) GoString() string { return fmt.Sprintf("%#v %#v", r.runs[0], r.runs[1]) }

// mirror makes the second run say what the first does.
func (r *pairRun) mirror() {
	seq := r.runs[1].seq
	*r.runs[1] = *r.runs[0]
	r.runs[1].seq = seq
	r.runs[1].values = slices.Clone(r.runs[0].values)
}

func newPair(t *rapid.T) *pair {
	first := newMachine(t, false).pool.cfg
	second := Config{Blocks: rapid.IntRange(1, 24).Draw(t, "windowBlocks"), Window: rapid.IntRange(1, 9).Draw(t, "window")}
	g, err := NewGroups(first, second)
	if err != nil {
		t.Fatal(err)
	}
	g.windowed.cfg.ReportEvictions = true
	p := &pair{groups: g}
	for i, pool := range []*Pool{g.Pool, g.windowed} {
		p.views[i] = &machine{
			pool: pool, bt: first.BlockTokens, window: pool.cfg.Window,
			memory: make([]uint64, pool.cfg.Blocks*first.BlockTokens), content: map[Hash][]uint64{},
		}
	}
	return p
}

func (p *pair) fingerprint() string { return p.views[0].fingerprint() + p.views[1].fingerprint() }

// hit is the naive answer to Lookup: of all prefixes the longest of which the first group has every
// block, and the second those that its window reaches.
func (p *pair) hit(r *run) int {
	if !p.groups.cfg.PrefixCache {
		return 0
	}
	bt := p.views[0].bt
	hashes := Hashes(nil, r.root, r.tokens, bt)
	has := func(g, i int) bool {
		return slices.ContainsFunc(p.views[g].pool.blocks, func(b block) bool { return b.hash == hashes[i] })
	}
	longest := func(n int) int {
		for ; n > 0; n-- {
			ok := true
			for i := range n {
				ok = ok && has(0, i) && (i < n-(p.views[1].window+bt-1)/bt || has(1, i))
			}
			if ok {
				break
			}
		}
		return n
	}
	end := longest(len(hashes))
	if end == 0 || end*bt < len(r.tokens) {
		return end * bt
	}
	for _, m := range p.views {
		b := m.pool.blocks[m.pool.index.find(m.pool.blocks, &hashes[end-1])]
		if b.refs > 0 && b.step == m.pool.step { // computed in this step
			return longest(end-1) * bt
		}
	}
	return len(r.tokens) - 1
}

// take does an operation that takes blocks: all or nothing, the least recently used first.
func (p *pair) take(t *rapid.T, f func() error) bool {
	before := p.fingerprint()
	var orders [2][]BlockID
	for i, m := range p.views {
		orders[i] = m.pool.cached.order(m.pool.blocks)
	}
	if err := f(); err != nil {
		if !refused(err) || p.fingerprint() != before {
			t.Fatalf("AllOrNothing: refusal %v changed %s to %s", err, before, p.fingerprint())
		}
		return false
	}
	for i, m := range p.views {
		m.leastRecentlyUsed(t, orders[i])
	}
	return true
}

func (p *pair) copy(copies []Copy) {
	for _, c := range copies {
		p.views[c.Group].copies = append(p.views[c.Group].copies, c)
	}
}

func (p *pair) publish(r *pairRun, n int) {
	n = min(n, len(r.runs[0].tokens))
	r.tables.Publish(r.runs[0].tokens[:n])
	for i, m := range p.views {
		m.record(r.runs[i], n)
	}
}

func (p *pair) start(r *pairRun) {
	p.running = append(p.running, r)
	for i, m := range p.views {
		m.running = append(m.running, r.runs[i])
	}
}

func (p *pair) stop(r *pairRun) {
	p.running = slices.DeleteFunc(p.running, func(o *pairRun) bool { return o == r })
	for i, m := range p.views {
		m.running = slices.DeleteFunc(m.running, func(o *run) bool { return o == r.runs[i] })
	}
}

func (p *pair) begin(t *rapid.T, r *pairRun) bool {
	s := r.runs[0]
	cached := r.tables.Lookup(s.tokens)
	if want := p.hit(s); cached != want {
		t.Fatalf("Lookup says %d tokens of %v, the naive search %d", cached, s.tokens, want)
	}
	room := r.tables.HasRoom(s.tokens, len(s.tokens), 0, nil)
	var got int
	var copies []Copy
	ok := p.take(t, func() (err error) {
		got, copies, err = r.tables.Begin(s.tokens, nil)
		if errors.Is(err, ErrNoBlocks) && room {
			t.Fatalf("refused with room")
		}
		return err
	})
	if !ok {
		return false
	}
	if got != cached {
		t.Fatalf("Begin: %d tokens are cached, announced were %d", got, cached)
	}
	p.copy(copies)
	s.computed, s.planned, s.copied, s.drafts = got, got+1, len(copies) > 0, nil
	r.mirror()
	p.start(r)
	p.publish(r, got+1)
	return true
}

func (p *pair) admit(t *rapid.T) {
	if len(p.running) >= 8 {
		t.Skip("enough")
	}
	salt := rapid.SampledFrom([]string{"", "a"}).Draw(t, "salt")
	s := &run{root: Root([]byte(salt), nil)}
	s.push(rapid.SliceOfN(rapid.Int32Range(0, 1), 1, 20).Draw(t, "prompt")...)
	r := &pairRun{tables: p.groups.NewSequence(s.root), runs: [2]*run{s, {}}}
	r.tables.SetTenant(len(salt))
	s.seq, r.runs[1].seq = r.tables.Sequence, r.tables.windowed
	if !p.begin(t, r) {
		r.tables.Release()
	}
}

func (p *pair) resume(t *rapid.T) {
	if len(p.waiting) == 0 {
		t.Skip("none waits")
	}
	if p.begin(t, p.waiting[0]) {
		p.waiting = p.waiting[1:]
	}
}

func (p *pair) pick(t *rapid.T, ok func(*pairRun) bool) *pairRun {
	var list []*pairRun
	for _, r := range p.running {
		if ok(r) {
			list = append(list, r)
		}
	}
	if len(list) == 0 {
		t.Skip("none")
	}
	return rapid.SampledFrom(list).Draw(t, "run")
}

func (p *pair) advance(t *rapid.T) {
	r := p.pick(t, func(r *pairRun) bool { return !r.runs[0].scheduled() })
	s := r.runs[0]
	p.settle(t, r)
	if s.computed == len(s.tokens) {
		if len(s.tokens) > 40 {
			t.Skip("long enough")
		}
		s.push(rapid.Int32Range(0, 1).Draw(t, "token"))
	}
	r.mirror()
	r.tables.Slide(s.computed)
	upTo := rapid.IntRange(s.computed+1, len(s.tokens)).Draw(t, "upTo")
	var drafts []int32
	if upTo == len(s.tokens) {
		drafts = rapid.SliceOfN(rapid.Int32Range(0, 1), 0, 5).Draw(t, "drafts")
	}
	n := upTo + len(drafts)
	if !p.take(t, func() error { return r.tables.Grow(n) }) {
		return
	}
	if r.tables.Room() < n {
		t.Fatalf("room for %d tokens after Grow to %d", r.tables.Room(), n)
	}
	s.planned, s.drafts = n, drafts
	r.mirror()
	p.publish(r, upTo)
}

// settle verifies the drafts of the last step.
func (p *pair) settle(t *rapid.T, r *pairRun) {
	s := r.runs[0]
	if len(s.drafts) == 0 {
		return
	}
	accept := rapid.IntRange(0, len(s.drafts)).Draw(t, "accept")
	s.values = s.values[:len(s.tokens)]
	s.push(s.drafts[:accept]...)
	s.drafts = nil
	s.computed, s.planned = len(s.tokens), len(s.tokens)
	r.tables.Truncate(len(s.tokens))
	r.mirror()
}

func (p *pair) fork(t *rapid.T) {
	r := p.pick(t, func(r *pairRun) bool { return !r.runs[0].scheduled() && !r.runs[0].copied && len(p.running) < 8 })
	p.settle(t, r)
	s := r.runs[0]
	// The engine forks when the prompt is computed: both groups hold the same tokens then.
	if r.tables.Tokens() != s.computed || r.tables.windowed.tokens != s.computed {
		t.Skip("room was made for tokens that no step has computed")
	}
	var child Tables
	var copies []Copy
	if !p.take(t, func() (err error) { child, copies, err = r.tables.Fork(nil); return err }) {
		return
	}
	for i, id := range child.Windowed()[:s.computed/p.views[0].bt] {
		if id != r.tables.Windowed()[i] || child.Table()[i] != r.tables.Table()[i] {
			t.Fatalf("Fork does not share full block %d", i)
		}
	}
	p.copy(copies)
	c := &pairRun{tables: child, runs: [2]*run{{
		seq: child.Sequence, root: s.root, tokens: slices.Clone(s.tokens), values: slices.Clone(s.values),
		computed: s.computed, planned: s.computed, copied: len(copies) > 0,
	}, {seq: child.windowed}}}
	c.mirror()
	p.start(c)
}

func (p *pair) leave(t *rapid.T) *pairRun {
	r := p.pick(t, func(r *pairRun) bool { return !r.tables.Followed() })
	if !r.runs[0].scheduled() {
		p.settle(t, r)
	}
	p.stop(r)
	r.rewind()
	return r
}

func (r *pairRun) rewind() {
	s := r.runs[0]
	s.computed, s.planned, s.drafts, s.copied = 0, 0, nil, false
	s.values = s.values[:len(s.tokens)]
	r.mirror()
}

func (p *pair) release(t *rapid.T) {
	r := p.leave(t)
	if last := p.views[0].last; rapid.Bool().Draw(t, "fenced") && last > 0 {
		r.tables.ReleaseAfter(last)
		p.fenced++
		return
	}
	r.tables.Release()
}

func (p *pair) preempt(t *rapid.T) {
	r := p.leave(t)
	if last := p.views[0].last; rapid.Bool().Draw(t, "fenced") && last > 0 {
		r.tables.PreemptAfter(last)
		p.fenced++
	} else {
		r.tables.Preempt()
	}
	p.waiting = append(p.waiting, r)
}

func (p *pair) complete(t *rapid.T) {
	last := p.views[0].last
	if n := p.groups.Completed(last); n != p.fenced || p.groups.Deferred()+p.groups.windowed.Deferred() != 0 {
		t.Fatalf("step %d completed: %d of %d released", last, n, p.fenced)
	}
	p.fenced = 0
}

// step runs the plan in both groups, and checks each as a machine does.
func (p *pair) step(t *rapid.T) {
	for _, m := range p.views {
		m.step(t)
	}
	for _, r := range p.running {
		r.mirror()
	}
}

func (p *pair) fail(*rapid.T) {
	last := p.groups.EndStep()
	p.groups.ForgetSince(last)
	for _, m := range p.views {
		m.last, m.copies = last, m.copies[:0]
	}
	for _, r := range slices.Clone(p.running) {
		if !r.runs[0].scheduled() && !r.runs[0].copied {
			continue
		}
		p.stop(r)
		p.waiting = append(p.waiting, r)
		r.tables.Preempt()
		r.rewind()
	}
}

func (p *pair) reset(t *rapid.T) {
	idle := p.groups.Stats().Referenced == 0
	if p.groups.ResetCache() != idle {
		t.Fatalf("ResetCache with %d blocks referenced", p.groups.Stats().Referenced)
	}
	for _, m := range p.views {
		if idle && m.pool.free.n != m.pool.cfg.Blocks {
			t.Fatal("ResetCache left blocks behind")
		}
	}
}

func (p *pair) invariants(t *rapid.T) {
	if err := p.groups.Audit(); err != nil {
		t.Fatal(err)
	}
	for _, m := range p.views {
		m.invariants(t)
	}
	for _, r := range p.running {
		s, w := r.tables.Sequence, r.tables.windowed
		if w.tokens > s.tokens || len(w.table) > len(s.table) {
			t.Fatalf("Lockstep: the first group holds %d tokens in %d blocks, the second %d in %d", s.tokens, len(s.table), w.tokens, len(w.table))
		}
		if c := p.groups.windowed.Charge(w.tokens, s.tokens); len(w.table)-w.windowed > c {
			t.Fatalf("Charge: %d windowed blocks, charged %d", len(w.table)-w.windowed, c)
		}
	}
}

func (p *pair) drain(t *rapid.T) {
	p.step(t)
	for _, r := range append(p.running, p.waiting...) {
		r.tables.Release()
	}
	p.groups.Completed(p.views[0].last)
	for _, m := range p.views {
		m.invariants(t)
		if s := m.pool.Stats(); s.Referenced != 0 || len(m.pool.live) != 0 {
			t.Fatalf("NothingLeaks: %d blocks and %d sequences are left", s.Referenced, len(m.pool.live))
		}
	}
}

// TestPropGroups checks what TestPropPool and TestPropWindow do of both groups of a pair at once: what is
// found is in both, what is refused changes neither, and the second table never runs ahead of the first.
func TestPropGroups(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		p := newPair(t)
		t.Repeat(map[string]func(*rapid.T){
			"admit": p.admit, "resume": p.resume, "advance": p.advance, "fork": p.fork, "release": p.release, "preempt": p.preempt,
			"complete": p.complete, "step": p.step, "advance2": p.advance, "step2": p.step, "fail": p.fail, "reset": p.reset,
			"": p.invariants,
		})
		p.drain(t)
	})
}

func TestNewGroupsRefuses(t *testing.T) {
	bad := Config{Blocks: 4, BlockTokens: 4}
	for name, c := range map[string][2]Config{
		"two windows": {{Blocks: 4, BlockTokens: 4, Window: 3}, {Blocks: 4, Window: 3}},
		"no window":   {bad, {Blocks: 4}},
		"no blocks":   {{BlockTokens: 4}, {Blocks: 4, Window: 3}},
		"too many":    {bad, {Blocks: maxBlocks + 1, Window: 3}},
	} {
		if _, err := NewGroups(c[0], c[1]); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
}

// TestGroupsTellOfTheFirst: events, and with them the control plane, follow the group that sees everything;
// what the windowed one gives back or loses is none of theirs.
func TestGroupsTellOfTheFirst(t *testing.T) {
	g := groups(t, Config{Blocks: 8, BlockTokens: 4, PrefixCache: true, Events: true}, Config{Blocks: 4, Window: 4})
	tokens := ids(0, 17)
	s := g.NewSequence(Hash{})
	if _, _, err := s.Begin(tokens, nil); err != nil {
		t.Fatal(err)
	}
	for n := 4; n <= 17; n++ {
		s.Slide(n - 1)
		if err := s.Grow(n); err != nil {
			t.Fatal(err)
		}
		s.Publish(tokens[:n])
		g.EndStep()
	}
	s.Release()
	events := g.Events(nil)
	if len(events) != 1 || events[0].Kind != Stored || len(events[0].Hashes) != 4 {
		t.Fatalf("%v, want one of 4 stored blocks", events)
	}
	wantInt(t, "evictions of the windowed", int(g.Windowed().Stats().Evictions), 1)
	if other := g.Windowed().Events(nil); len(other) != 0 {
		t.Fatalf("the windowed group tells %v", other)
	}
	again := g.NewSequence(Hash{})
	wantInt(t, "hit", again.Lookup(tokens), 16)
	again.Release()
}
