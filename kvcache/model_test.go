package kvcache

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// TestMain runs 2,000 random histories by default; -rapid.checks=100000 is the long run.
func TestMain(m *testing.M) {
	if err := flag.Set("rapid.checks", "2000"); err != nil {
		panic(err)
	}
	flag.Parse()
	os.Exit(m.Run())
}

// machine is an engine in small: it drives a pool with random requests, and a device in small, whose
// "keys and values" are numbers that depend on a token and on all before it. What a real engine
// would compute wrongly shows here as a wrong number.
type machine struct {
	pool    *Pool
	bt      int
	window  int
	memory  []uint64 // blocks × bt
	copies  []Copy
	running []*run
	waiting []*run // preempted
	fenced  int
	content map[Hash][]uint64 // what a named block must hold
	last    uint64            // last step that ended
}

// run is one request.
type run struct {
	seq      *Sequence
	root     Hash
	tokens   []int32
	values   []uint64 // of tokens, and of drafts behind them
	computed int      // tokens stored by steps that ended
	planned  int      // tokens stored once the planned step has run
	drafts   []int32  // computed in the last step, not verified yet
	copied   bool     // holds a block that the planned step copies
}

func (r *run) GoString() string {
	return fmt.Sprintf("%p %v computed %d planned %d drafts %v table %v", r, r.tokens, r.computed, r.planned, r.drafts, r.seq.table)
}

func (r *run) scheduled() bool { return r.planned > r.computed }

// value mixes a token into the number of its predecessor.
func value(before uint64, t int32) uint64 {
	return (before^uint64(uint32(t))+1)*0x100000001b3 + 0x9e3779b9
}

func (r *run) push(tokens ...int32) {
	for _, t := range tokens {
		before, _ := r.root.words()
		if n := len(r.values); n > 0 {
			before = r.values[n-1]
		}
		r.tokens = append(r.tokens, t)
		r.values = append(r.values, value(before, t))
	}
}

func newMachine(t *rapid.T, window bool) *machine {
	c := Config{
		Blocks:          rapid.IntRange(1, 24).Draw(t, "blocks"),
		BlockTokens:     rapid.SampledFrom([]int{1, 2, 3, 4}).Draw(t, "blockTokens"),
		PrefixCache:     rapid.IntRange(0, 9).Draw(t, "prefixCache") > 0,
		Events:          rapid.Bool().Draw(t, "events"),
		ReportEvictions: true,
	}
	if rapid.Bool().Draw(t, "quotas") {
		c.Tenants = []int{0, rapid.IntRange(1, 24).Draw(t, "quota")}
	}
	if window {
		c.Window = rapid.IntRange(1, 9).Draw(t, "window")
	}
	p, err := NewPool(c)
	if err != nil {
		t.Fatal(err)
	}
	return &machine{
		pool: p, bt: c.BlockTokens, window: c.Window,
		memory: make([]uint64, c.Blocks*c.BlockTokens), content: map[Hash][]uint64{},
	}
}

func (m *machine) slot(r *run, i int) *uint64 {
	return &m.memory[int(r.seq.Table()[i/m.bt])*m.bt+i%m.bt]
}

// fingerprint is everything about the pool that a refusal must not change.
func (m *machine) fingerprint() string {
	s := fmt.Sprint(m.pool.Stats(), m.pool.free.order(m.pool.blocks), m.pool.cached.order(m.pool.blocks), m.pool.held)
	for _, r := range m.running {
		s += fmt.Sprint(r.seq.Table(), r.seq.Tokens())
	}
	return s
}

// hit is the naive answer to Lookup: compare with every block.
func (m *machine) hit(r *run) int {
	c := m.pool.cfg
	if !c.PrefixCache {
		return 0
	}
	var found []bool
	var blocks []BlockID
	for _, h := range Hashes(nil, r.root, r.tokens, m.bt) {
		at := m.pool.index.find(m.pool.blocks, &h) // which of several: the pool's choice
		named := slices.ContainsFunc(m.pool.blocks, func(b block) bool { return b.hash == h })
		if named != (at != NoBlock) {
			panic("index and blocks disagree")
		}
		found, blocks = append(found, named), append(blocks, at)
	}
	end := 0
	for n := len(found); n > 0; n-- {
		from := 0
		if c.Window > 0 {
			from = max(0, n-(c.Window+m.bt-1)/m.bt)
		}
		if !slices.Contains(found[from:n], false) {
			end = n
			break
		}
	}
	if end == 0 || end*m.bt < len(r.tokens) {
		return end * m.bt
	}
	b := m.pool.blocks[blocks[end-1]]
	if b.refs == 0 || b.step < m.pool.step {
		return len(r.tokens) - 1
	}
	if c.Window > 0 && end > (c.Window+m.bt-1)/m.bt {
		return 0
	}
	return (end - 1) * m.bt
}

func (m *machine) publish(r *run, n int) {
	n = min(n, len(r.tokens))
	r.seq.Publish(r.tokens[:n])
	m.record(r, n)
}

// record remembers what the blocks within n tokens hold.
func (m *machine) record(r *run, n int) {
	if !m.pool.cfg.PrefixCache {
		return
	}
	for i := range n / m.bt {
		h := r.seq.Hashes()[i]
		want := r.values[i*m.bt : (i+1)*m.bt]
		if have, ok := m.content[h]; ok && !slices.Equal(have, want) {
			panic("one hash for two contents")
		}
		m.content[h] = slices.Clone(want)
	}
}

func refused(err error) bool { return errors.Is(err, ErrNoBlocks) || errors.Is(err, ErrQuota) }

// begin admits r, new or preempted, and plans its first chunk.
func (m *machine) begin(t *rapid.T, r *run) bool {
	cached := r.seq.Lookup(r.tokens)
	if want := m.hit(r); cached != want {
		t.Fatalf("Lookup says %d tokens of %v, the naive search %d", cached, r.tokens, want)
	}
	upTo := rapid.IntRange(cached+1, len(r.tokens)).Draw(t, "upTo")
	before, free, need := m.fingerprint(), m.pool.Free(), r.seq.Need(upTo)
	order := m.pool.cached.order(m.pool.blocks)
	got, cow, hasCow, err := r.seq.Begin(r.tokens, upTo)
	if err != nil {
		if !refused(err) || m.fingerprint() != before {
			t.Fatalf("AllOrNothing: refusal %v changed %s to %s", err, before, m.fingerprint())
		}
		if errors.Is(err, ErrNoBlocks) != (need > free) {
			t.Fatalf("refused %v with %d needed of %d free", err, need, free)
		}
		return false
	}
	if got != cached || free-m.pool.Free() != need {
		t.Fatalf("Begin: %d cached and %d blocks taken, announced were %d and %d", got, free-m.pool.Free(), cached, need)
	}
	m.leastRecentlyUsed(t, order)
	if hasCow {
		m.copies = append(m.copies, cow)
	}
	r.computed, r.planned, r.copied, r.drafts = got, upTo, hasCow, nil
	m.running = append(m.running, r)
	m.publish(r, upTo)
	return true
}

// leastRecentlyUsed: what was evicted had waited longest of all that was cached and not hit.
func (m *machine) leastRecentlyUsed(t *rapid.T, before []BlockID) {
	evicted := m.pool.Evicted(nil)
	for _, id := range before {
		if m.pool.blocks[id].state != stateReferenced || slices.ContainsFunc(evicted, func(e Eviction) bool { return e.Block == id }) {
			if len(evicted) == 0 {
				break
			}
			if evicted[0].Block != id {
				t.Fatalf("LeastRecentlyUsed: evicted %v, cached were %v", evicted, before)
			}
			evicted = evicted[1:]
		}
	}
	if len(evicted) > 0 {
		t.Fatalf("LeastRecentlyUsed: evicted %v out of order, cached were %v", evicted, before)
	}
}

func (m *machine) admit(t *rapid.T) {
	if len(m.running) >= 8 {
		t.Skip("enough")
	}
	salt := rapid.SampledFrom([]string{"", "a"}).Draw(t, "salt")
	r := &run{root: Root([]byte(salt), nil)}
	r.push(rapid.SliceOfN(rapid.Int32Range(0, 1), 1, 20).Draw(t, "prompt")...)
	r.seq = m.pool.NewSequence(r.root)
	r.seq.SetTenant(len(salt))
	if !m.begin(t, r) {
		r.seq.Release()
	}
}

func (m *machine) resume(t *rapid.T) {
	if len(m.waiting) == 0 {
		t.Skip("none waits")
	}
	r := m.waiting[0]
	if m.begin(t, r) {
		m.waiting = m.waiting[1:]
	}
}

func (m *machine) pick(t *rapid.T, ok func(*run) bool) *run {
	var list []*run
	for _, r := range m.running {
		if ok(r) {
			list = append(list, r)
		}
	}
	if len(list) == 0 {
		t.Skip("none")
	}
	return rapid.SampledFrom(list).Draw(t, "run")
}

// advance plans the next chunk or token of a running request, and drafts behind it at times.
func (m *machine) advance(t *rapid.T) {
	r := m.pick(t, func(r *run) bool { return !r.scheduled() })
	m.settle(t, r)
	if r.computed == len(r.tokens) {
		if len(r.tokens) > 40 {
			t.Skip("long enough")
		}
		r.push(rapid.Int32Range(0, 1).Draw(t, "token"))
	}
	if m.window > 0 {
		r.seq.ReleaseBehind(r.computed - m.window + 1)
	}
	upTo := rapid.IntRange(r.computed+1, len(r.tokens)).Draw(t, "upTo")
	var drafts []int32
	if upTo == len(r.tokens) {
		drafts = rapid.SliceOfN(rapid.Int32Range(0, 1), 0, 5).Draw(t, "drafts")
	}
	n := upTo + len(drafts)
	before, free, need := m.fingerprint(), m.pool.Free(), r.seq.Need(n)
	order := m.pool.cached.order(m.pool.blocks)
	if err := r.seq.Grow(n); err != nil {
		if !refused(err) || m.fingerprint() != before {
			t.Fatalf("AllOrNothing: refusal %v changed %s to %s", err, before, m.fingerprint())
		}
		return
	}
	if free-m.pool.Free() != need {
		t.Fatalf("Grow took %d blocks, announced were %d", free-m.pool.Free(), need)
	}
	m.leastRecentlyUsed(t, order)
	r.planned, r.drafts = n, drafts
	m.publish(r, upTo)
}

// settle verifies the drafts of the last step: some are accepted, the others rolled back.
func (m *machine) settle(t *rapid.T, r *run) {
	if len(r.drafts) == 0 {
		return
	}
	accept := rapid.IntRange(0, len(r.drafts)).Draw(t, "accept")
	r.values = r.values[:len(r.tokens)] // the model's own view of the drafts
	r.push(r.drafts[:accept]...)
	r.drafts = nil
	r.computed, r.planned = len(r.tokens), len(r.tokens)
	r.seq.Truncate(len(r.tokens))
}

func (m *machine) fork(t *rapid.T) {
	r := m.pick(t, func(r *run) bool { return !r.scheduled() && !r.copied && len(m.running) < 8 })
	m.settle(t, r)
	if r.seq.Tokens() != r.computed {
		t.Skip("room was made for tokens that no step has computed")
	}
	before, order := m.fingerprint(), m.pool.cached.order(m.pool.blocks)
	child, cow, hasCow, err := r.seq.Fork()
	if err != nil {
		if !refused(err) || m.fingerprint() != before {
			t.Fatalf("AllOrNothing: refusal %v changed %s to %s", err, before, m.fingerprint())
		}
		return
	}
	m.leastRecentlyUsed(t, order)
	for i, id := range child.Table()[:r.computed/m.bt] {
		if id != r.seq.Table()[i] {
			t.Fatalf("Fork does not share full block %d", i)
		}
	}
	if hasCow {
		m.copies = append(m.copies, cow)
	}
	m.running = append(m.running, &run{
		seq: child, root: r.root, tokens: slices.Clone(r.tokens), values: slices.Clone(r.values),
		computed: r.computed, planned: r.computed, copied: hasCow,
	})
}

// leave takes a request out of the plan. One that others follow stays.
func (m *machine) leave(t *rapid.T) *run {
	r := m.pick(t, func(r *run) bool { return !r.seq.Followed() })
	m.settleAll(t, r)
	m.running = slices.DeleteFunc(m.running, func(o *run) bool { return o == r })
	return r
}

func (m *machine) settleAll(t *rapid.T, r *run) {
	if !r.scheduled() {
		m.settle(t, r)
	}
	r.computed, r.planned, r.drafts, r.copied = 0, 0, nil, false
	r.values = r.values[:len(r.tokens)]
}

func (m *machine) release(t *rapid.T) {
	r := m.leave(t)
	if rapid.Bool().Draw(t, "fenced") && m.last > 0 {
		r.seq.ReleaseAfter(m.last)
		m.fenced++
		return
	}
	r.seq.Release()
}

func (m *machine) preempt(t *rapid.T) {
	r := m.leave(t)
	if rapid.Bool().Draw(t, "fenced") && m.last > 0 {
		r.seq.PreemptAfter(m.last)
		m.fenced++
	} else {
		r.seq.Preempt()
	}
	m.waiting = append(m.waiting, r)
}

func (m *machine) complete(t *rapid.T) {
	if n := m.pool.Completed(m.last); n != m.fenced || m.pool.Deferred() != 0 {
		t.Fatalf("step %d completed: %d of %d released, %d left", m.last, n, m.fenced, m.pool.Deferred())
	}
	m.fenced = 0
}

// step ends the plan and runs it: copies, then all stores, then every read.
func (m *machine) step(t *rapid.T) {
	m.last = m.pool.EndStep()
	for _, c := range m.copies {
		copy(m.memory[int(c.To)*m.bt:(int(c.To)+1)*m.bt], m.memory[int(c.From)*m.bt:(int(c.From)+1)*m.bt])
	}
	m.copies = m.copies[:0]
	written := map[*uint64]bool{}
	for _, r := range m.running {
		values := r.values[:len(r.tokens)]
		for _, d := range r.drafts {
			before := values[len(values)-1]
			values = append(values, value(before, d))
		}
		for i := r.computed; i < r.planned; i++ {
			cell := m.slot(r, i)
			if written[cell] {
				t.Fatalf("SingleWriter: two sequences write token %d to block %d", i, r.seq.Table()[i/m.bt])
			}
			written[cell] = true
			// What somebody already reads may only be written as it is.
			for _, o := range m.running {
				if o != r && i/m.bt < len(o.seq.Table()) && o.seq.Table()[i/m.bt] == r.seq.Table()[i/m.bt] && i < o.computed && values[i] != o.values[i] {
					t.Fatalf("SharedBlockUnwritten: token %d of block %d changes under a reader", i, r.seq.Table()[i/m.bt])
				}
			}
			*cell = values[i]
		}
		r.values = values
	}
	for _, r := range m.running {
		from := 0
		if m.window > 0 {
			from = max(0, r.computed-m.window+1)
		}
		for i := from; i < r.planned; i++ {
			if *m.slot(r, i) != r.values[i] {
				t.Fatalf("RightContent: token %d of %v is wrong in block %d (computed %d, planned %d)", i, r.tokens, r.seq.Table()[i/m.bt], r.computed, r.planned)
			}
		}
		r.computed, r.copied = r.planned, false
		if len(r.drafts) == 0 {
			r.values = r.values[:len(r.tokens)]
		}
	}
	for i := range m.pool.blocks {
		if h := m.pool.blocks[i].hash; h != (Hash{}) && !slices.Equal(m.content[h], m.memory[i*m.bt:(i+1)*m.bt]) {
			t.Fatalf("HashImpliesContent: block %d", i)
		}
	}
}

// fail ends the plan on a device that loses the step: it copies and stores nothing.
func (m *machine) fail(*rapid.T) {
	m.last = m.pool.EndStep()
	m.copies = m.copies[:0]
	m.pool.ForgetSince(m.last)
	for _, r := range slices.Clone(m.running) {
		if !r.scheduled() && !r.copied {
			continue
		}
		m.running = slices.DeleteFunc(m.running, func(o *run) bool { return o == r })
		m.waiting = append(m.waiting, r)
		r.seq.Preempt()
		r.computed, r.planned, r.drafts, r.copied = 0, 0, nil, false
		r.values = r.values[:len(r.tokens)]
	}
}

func (m *machine) reset(t *rapid.T) {
	idle := m.pool.Stats().Referenced == 0
	if m.pool.ResetCache() != idle {
		t.Fatalf("ResetCache with %d blocks referenced", m.pool.Stats().Referenced)
	}
	if idle && m.pool.free.n != m.pool.cfg.Blocks {
		t.Fatal("ResetCache left blocks behind")
	}
}

// invariants hold between any two operations.
func (m *machine) invariants(t *rapid.T) {
	if err := m.pool.Audit(); err != nil {
		t.Fatal(err)
	}
	if m.pool.cfg.Tenants != nil {
		held := 0
		for _, s := range m.pool.live {
			if s.tenant == 1 {
				held += len(s.table) - s.windowed
			}
		}
		if held != m.pool.held[1] || held > m.pool.cfg.Tenants[1] {
			t.Fatalf("Quota: tenant holds %d blocks, booked %d, may %d", held, m.pool.held[1], m.pool.cfg.Tenants[1])
		}
	}
}

func (m *machine) actions() map[string]func(*rapid.T) {
	return map[string]func(*rapid.T){
		"admit": m.admit, "resume": m.resume, "advance": m.advance, "fork": m.fork, "release": m.release, "preempt": m.preempt,
		"complete": m.complete, "step": m.step, "advance2": m.advance, "step2": m.step, "fail": m.fail, "reset": m.reset,
		"": m.invariants,
	}
}

// drain ends everything: every block must come back.
func (m *machine) drain(t *rapid.T) {
	m.step(t)
	for _, r := range append(m.running, m.waiting...) {
		r.seq.Release()
	}
	m.pool.Completed(m.last)
	m.invariants(t)
	if s := m.pool.Stats(); s.Referenced != 0 || len(m.pool.live) != 0 {
		t.Fatalf("NothingLeaks: %d blocks and %d sequences are left", s.Referenced, len(m.pool.live))
	}
}

// TestPropPool checks the safety properties SingleWriter, SharedBlockUnwritten, RightContent,
// HashImpliesContent, AllOrNothing, LeastRecentlyUsed, Quota, NothingLeaks and the whole audit (one
// owner for every block, exact reference counts, an exact index) over random histories.
func TestPropPool(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t, false)
		t.Repeat(m.actions())
		m.drain(t)
	})
}

// TestPropWindow is TestPropPool with a sliding window: only what the window sees need be right.
func TestPropWindow(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		m := newMachine(t, true)
		t.Repeat(m.actions())
		m.drain(t)
	})
}
