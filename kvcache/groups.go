package kvcache

import (
	"errors"
	"slices"
)

// Groups keeps the books of a model whose layers fall into two groups, by what they attend to: those
// that see all tokens, and those that see a window. A block holds a block's tokens of one group's
// layers, so that blocks behind the window come back without those of the other layers. Each group has
// a [Pool]; a request has a block table in each, and both tables move together (see [Tables]).
//
// A model of one kind of layers has one group, and costs what its pool costs.
//
// The embedded pool is the first group's. What is not redefined here is of that alone: figures, tenants'
// bounds, evictions and events. An event so says that a block of the layers that see everything is there;
// whether a request finds as much of its prompt depends on the windows too, and is for Lookup to say.
type Groups struct {
	*Pool
	windowed *Pool // nil for one group
}

// NewGroups makes the pools: first the only one, or that of the layers that see everything, beside
// windowed, that of the others. windowed has no Blocks if there is one group. Of windowed, the fields
// count that say how large it is and how far it sees: the others are those of first.
func NewGroups(first, windowed Config) (*Groups, error) {
	p, err := NewPool(first)
	if err != nil || windowed.Blocks == 0 {
		return &Groups{Pool: p}, err
	}
	if first.Window > 0 || windowed.Window == 0 {
		return nil, errors.New("kvcache: of two groups the first must have no Window, the other one")
	}
	w, err := NewPool(Config{
		Blocks: windowed.Blocks, Window: windowed.Window,
		BlockTokens: first.BlockTokens, PrefixCache: first.PrefixCache, Group: first.Group + 1,
	})
	return &Groups{p, w}, err
}

// Windowed is the pool of the second group, or nil.
func (g *Groups) Windowed() *Pool { return g.windowed }

// NewSequence returns empty tables whose chain starts at root.
func (g *Groups) NewSequence(root Hash) Tables {
	t := Tables{Sequence: g.Pool.NewSequence(root)}
	if g.windowed != nil {
		t.windowed = g.windowed.NewSequence(root)
	}
	return t
}

// Fits is [Pool.Fits] in every group.
func (g *Groups) Fits(n int) bool {
	return g.Pool.Fits(n) && (g.windowed == nil || g.windowed.Fits(n))
}

// Charge is the sum over the groups of [Pool.Charge].
func (g *Groups) Charge(n, step int) int {
	blocks := g.Pool.Charge(n, step)
	if g.windowed != nil {
		blocks += g.windowed.Charge(n, step)
	}
	return blocks
}

// EndStep is [Pool.EndStep]; all groups count steps alike.
func (g *Groups) EndStep() uint64 {
	if g.windowed != nil {
		g.windowed.EndStep()
	}
	return g.Pool.EndStep()
}

// ForgetSince is [Pool.ForgetSince] of every group.
func (g *Groups) ForgetSince(step uint64) {
	g.Pool.ForgetSince(step)
	if g.windowed != nil {
		g.windowed.ForgetSince(step)
	}
}

// Completed is [Pool.Completed] of every group.
func (g *Groups) Completed(step uint64) int {
	if g.windowed != nil {
		g.windowed.Completed(step)
	}
	return g.Pool.Completed(step)
}

// ResetCache is [Pool.ResetCache] of every group. Tables hold blocks of all or of none.
func (g *Groups) ResetCache() bool {
	return g.Pool.ResetCache() && (g.windowed == nil || g.windowed.ResetCache())
}

// Check is [Pool.Check] of every group.
func (g *Groups) Check() error {
	if err := g.Pool.Check(); err != nil || g.windowed == nil {
		return err
	}
	return g.windowed.Check()
}

// Audit is [Pool.Audit] of every group.
func (g *Groups) Audit() error {
	err := g.Pool.Audit()
	if g.windowed != nil {
		err = errors.Join(err, g.windowed.Audit())
	}
	return err
}

// Quarantine is [Pool.Quarantine] of every group.
func (g *Groups) Quarantine() int {
	n := g.Pool.Quarantine()
	if g.windowed != nil {
		n += g.windowed.Quarantine()
	}
	return n
}

// Tables is one request's block tables, one in each group. Its methods do to both what a [Sequence]'s
// do to one, to both or to neither: they hold the same tokens, of which the windowed one has given back
// what lies behind.
//
// Without a window, blocks for a whole prompt are taken when it begins. With one that would undo what
// the window saves: they are taken by Grow, as rows are planned.
//
// The embedded sequence is the first group's; hashes are computed there, once. Copies of a Tables are the
// same tables; the zero value is none.
type Tables struct {
	*Sequence
	windowed *Sequence // nil for one group
}

// None reports whether t is the zero value.
func (t *Tables) None() bool { return t.Sequence == nil }

// Reserve is [Sequence.Reserve] in both groups; hashes are the first's.
func (t *Tables) Reserve(n int) {
	t.Sequence.Reserve(n)
	if w := t.windowed; w != nil {
		w.table = slices.Grow(w.table, w.pool.ceil(n))
	}
}

// Windowed is the block table of the second group, nil if there is none.
func (t *Tables) Windowed() []BlockID {
	if t.windowed == nil {
		return nil
	}
	return t.windowed.table
}

// look is [Sequence.look] in both groups: the longest prefix that both have.
func (t *Tables) look(tokens []int32) {
	s, w := t.Sequence, t.windowed
	if w == nil {
		s.look(tokens)
		return
	}
	s.hash(tokens)
	w.hashes = s.hashes
	n := len(tokens)
	if s.knows(n) && w.knows(n) {
		return
	}
	t.find(n, n/s.pool.cfg.BlockTokens)
	if k := len(s.match); k > 0 && k*s.pool.cfg.BlockTokens == n && !(s.matchEnded() && w.matchEnded()) {
		// This step computes the last block in one of the groups: it can be followed, but not copied.
		t.find(n, k-1)
		s.matchVersion = 0 // the next step can
	}
}

// find finds a prefix of at most limit blocks. Without a window, what begins a match is a match.
func (t *Tables) find(n, limit int) {
	t.Sequence.find(n, limit)
	t.windowed.find(n, len(t.match))
	t.match = t.match[:len(t.windowed.match)]
}

// Lookup is [Sequence.Lookup]: the longest prefix that both groups have.
func (t *Tables) Lookup(tokens []int32) (cached int) {
	t.mustBeEmpty("Lookup")
	t.look(tokens)
	return t.planned(len(tokens), 0).cached
}

// HasRoom reports whether each group has the blocks that tokens take, and spare more, if no step
// computes more than step of them and the sequences of without had been preempted. It changes nothing.
func (t *Tables) HasRoom(tokens []int32, step, spare int, without []Tables) bool {
	t.look(tokens)
	n := len(tokens)
	held, heldWindowed := 0, 0
	for _, o := range without {
		held += o.Held()
		if o.windowed != nil {
			heldWindowed += o.windowed.Held()
		}
	}
	// Blocks that others hold too do not come back, and what is cached is no less for it: so much is needed
	// at least.
	if !t.hasRoom(n, step, spare-held) || t.windowed != nil && !t.windowed.hasRoom(n, step, spare-heldWindowed) {
		return false
	}
	held, heldWindowed = 0, 0
	for _, o := range without {
		held += o.reference(-1)
		if o.windowed != nil {
			heldWindowed += o.windowed.reference(-1)
		}
	}
	room := t.hasRoom(n, step, spare-held) && (t.windowed == nil || t.windowed.hasRoom(n, step, spare-heldWindowed))
	for _, o := range without {
		o.reference(1)
		if o.windowed != nil {
			o.windowed.reference(1)
		}
	}
	return room
}

// reference adds n to the references of the sequence's blocks, for a question to the pool, and returns
// how many have none left.
func (s *Sequence) reference(n int32) (unreferenced int) {
	for _, id := range s.table {
		if id == NoBlock {
			continue
		}
		b := &s.pool.blocks[id]
		if b.refs += n; b.refs == 0 {
			unreferenced++
		}
	}
	return unreferenced
}

func (s *Sequence) hasRoom(n, step, spare int) bool {
	need := s.pool.Charge(n, step)
	if s.pool.cfg.Window == 0 {
		need = s.planned(n, n).need()
	}
	return need+spare <= s.pool.Free()
}

// Begin is [Sequence.Begin], for all of tokens in a group without a window, for the next one in a group
// with one. It appends the copies that the device must do to copies.
func (t *Tables) Begin(tokens []int32, copies []Copy) (cached int, _ []Copy, err error) {
	t.mustBeEmpty("Begin")
	t.look(tokens)
	n, upTo := len(tokens), len(tokens)
	if t.pool.cfg.Window > 0 {
		upTo = 0
	}
	d := t.planned(n, upTo)
	if err := t.mayTake(d.need(), d.total-d.skip); err != nil {
		return 0, copies, err
	}
	if w := t.windowed; w != nil {
		d := w.planned(n, 0)
		if err := w.mayTake(d.need(), d.total-d.skip); err != nil {
			return 0, copies, err
		}
		if cow, has := w.begin(d, n); has {
			copies = append(copies, cow)
		}
	}
	if cow, has := t.begin(d, n); has {
		copies = append(copies, cow)
	}
	return d.cached, copies, nil
}

// Room is how many tokens, from the first on, both tables have blocks for, or had.
func (t *Tables) Room() int {
	blocks := len(t.table)
	if t.windowed != nil {
		blocks = min(blocks, len(t.windowed.table))
	}
	return blocks * t.pool.cfg.BlockTokens
}

// Grow is [Sequence.Grow].
func (t *Tables) Grow(n int) error {
	if err := t.mayGrow(n); err != nil {
		return err
	}
	if w := t.windowed; w != nil {
		if err := w.mayGrow(n); err != nil {
			return err
		}
		w.grow(n)
	}
	t.grow(n)
	return nil
}

// Publish is [Sequence.Publish].
func (t *Tables) Publish(tokens []int32) {
	t.Sequence.Publish(tokens)
	if w := t.windowed; w != nil {
		w.hashes = t.hashes
		w.Publish(tokens)
	}
}

// Fork is [Sequence.Fork]. It appends the copies that the device must do to copies.
func (t *Tables) Fork(copies []Copy) (child Tables, _ []Copy, err error) {
	if err := t.mayFork(); err != nil {
		return Tables{}, copies, err
	}
	var cow Copy
	var has bool
	if w := t.windowed; w != nil {
		if err := w.mayFork(); err != nil {
			return Tables{}, copies, err
		}
		if child.windowed, cow, has = w.fork(); has {
			copies = append(copies, cow)
		}
	}
	if child.Sequence, cow, has = t.fork(); has {
		copies = append(copies, cow)
	}
	return child, copies, nil
}

// Truncate is [Sequence.Truncate].
func (t *Tables) Truncate(n int) {
	t.Sequence.Truncate(n)
	if t.windowed != nil {
		t.windowed.Truncate(n)
	}
}

// Slide gives back the blocks behind the windows of a step whose first token is at position q; see
// [Sequence.ReleaseBehind].
func (t *Tables) Slide(q int) {
	t.slide(q)
	if t.windowed != nil {
		t.windowed.slide(q)
	}
}

func (s *Sequence) slide(q int) {
	if w := s.pool.cfg.Window; w > 0 {
		s.ReleaseBehind(q - w + 1)
	}
}

// Followed is [Sequence.Followed] in any group.
func (t *Tables) Followed() bool {
	return t.Sequence.Followed() || t.windowed != nil && t.windowed.Followed()
}

// Preempt is [Sequence.Preempt].
func (t *Tables) Preempt() {
	t.Sequence.Preempt()
	if t.windowed != nil {
		t.windowed.Preempt()
	}
}

// PreemptAfter is [Sequence.PreemptAfter].
func (t *Tables) PreemptAfter(step uint64) {
	t.Sequence.PreemptAfter(step)
	if t.windowed != nil {
		t.windowed.PreemptAfter(step)
	}
}

// Release is [Sequence.Release].
func (t *Tables) Release() {
	t.Sequence.Release()
	if w := t.windowed; w != nil {
		w.hashes = nil // the first group's memory
		w.Release()
	}
}

// ReleaseAfter is [Sequence.ReleaseAfter].
func (t *Tables) ReleaseAfter(step uint64) {
	t.Sequence.ReleaseAfter(step)
	if w := t.windowed; w != nil {
		w.hashes = nil
		w.ReleaseAfter(step)
	}
}
