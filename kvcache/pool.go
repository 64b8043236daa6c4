package kvcache

import (
	"errors"
	"fmt"
	"math/rand/v2"
)

var (
	// ErrNoBlocks means that too few blocks are free or cached. The refused call changed nothing.
	ErrNoBlocks = errors.New("kvcache: not enough free blocks")
	// ErrQuota means that the sequence's tenant holds as many blocks as it may. The refused call
	// changed nothing.
	ErrQuota = errors.New("kvcache: tenant holds as many blocks as it may")
	// ErrAccounting means that the books disagree. [Pool.Quarantine] mends them.
	ErrAccounting = errors.New("kvcache: accounting violation")
)

// Config is what a pool is made of.
type Config struct {
	Blocks      int  // blocks of device memory
	BlockTokens int  // tokens a block
	PrefixCache bool // name full blocks and share them

	// Window is how many tokens back the model attends, the token itself included; 0 is all. A
	// cached prefix then counts once the blocks that the window still sees are there.
	Window int

	// Events records KV events, the last EventBuffer of them (default: 4 for each block).
	Events      bool
	EventBuffer int
	// Group tells the pools of one worker apart in events and copies.
	Group int

	// ReportEvictions fills [Pool.Evicted], for tiers below.
	ReportEvictions bool

	// Tenants bounds how many blocks each tenant's sequences may hold; index 0 is the tenant of
	// sequences that name none. 0 blocks, or a tenant past the end, is no bound.
	Tenants []int
}

// maxBlocks keeps block ids, and the chains through them, within 31 bits.
const maxBlocks = 1 << 30

// maxTenants is how many tenants a block's entry can tell apart.
const maxTenants = 1 << 16

// Validate names the field that is wrong and its limit.
func (c Config) Validate() error {
	switch {
	case c.Blocks < 1 || c.Blocks > maxBlocks:
		return fmt.Errorf("kvcache: Blocks is %d, must be 1 to %d", c.Blocks, maxBlocks)
	case c.BlockTokens < 1 || c.BlockTokens > 1<<16:
		return fmt.Errorf("kvcache: BlockTokens is %d, must be 1 to %d", c.BlockTokens, 1<<16)
	case c.Window < 0:
		return fmt.Errorf("kvcache: Window is %d, must not be negative", c.Window)
	case c.EventBuffer < 0:
		return fmt.Errorf("kvcache: EventBuffer is %d, must not be negative", c.EventBuffer)
	}
	if len(c.Tenants) > maxTenants {
		return fmt.Errorf("kvcache: Tenants has %d entries, must have at most %d", len(c.Tenants), maxTenants)
	}
	for i, n := range c.Tenants {
		if n < 0 {
			return fmt.Errorf("kvcache: Tenants[%d] is %d, must not be negative", i, n)
		}
	}
	return nil
}

// Stats are a pool's figures. The first five are now, the others since the pool was made.
type Stats struct {
	Total, Free, Cached, Referenced, Quarantined int // blocks

	// Tokens that admissions asked the prefix cache for, and those it had. An admission that was
	// refused is not counted until it succeeds; one of a preempted sequence counts only below.
	QueryTokens, HitTokens             int64
	PreemptedQueryTokens, PreemptedHit int64

	Evictions int64 // cached blocks whose memory was taken for something else
	Copies    int64 // copy-on-write
}

// Copy is a copy of a whole block that the device does before the operations of the step being
// planned. Copies of one step are done in the order in which the pool gave them.
type Copy struct {
	From, To BlockID
	Group    int // Config.Group
}

// Eviction is a cached block whose memory was taken. Its content stays intact until the step being
// planned is submitted: until then it can be copied to a lower tier, if the device has finished Step.
type Eviction struct {
	Block        BlockID
	Tenant       int    // that computed it
	Step         uint64 // in which it was named: no later one computed it
	Hash, Parent Hash
}

// Pool owns the blocks. It is not safe for concurrent use: one engine loop drives it.
type Pool struct {
	cfg    Config
	blocks []block
	index  index

	free   list // without a name, reused first, last in first out
	cached list // named and unreferenced, least recently used first

	referenced  int   // blocks with at least one reference
	quarantined int   // blocks taken out of use
	refs        int64 // sum of all reference counts
	entries     int64 // sum of all live block tables' entries: must equal refs

	step    uint64 // the step being planned
	version uint64 // changes whenever the index does

	live   []*Sequence // in no order; a sequence knows its place
	idle   []*Sequence // released, for reuse
	serial uint32      // of the last sequence handed out

	held     []int // blocks that each tenant's tables hold
	stats    Stats
	journal  *journal
	evicted  []Eviction
	deferred fences
	fault    error // first violation seen since the last Quarantine
}

// NewPool makes a pool of free blocks. Everything that the steady path needs is allocated here.
func NewPool(c Config) (*Pool, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	p := &Pool{
		cfg:     c,
		blocks:  make([]block, c.Blocks),
		index:   newIndex(c.Blocks, rand.Uint64(), rand.Uint64()),
		free:    newList(),
		cached:  newList(),
		step:    1,
		version: 1,
		held:    make([]int, len(c.Tenants)),
	}
	for i := range p.blocks {
		p.blocks[i] = block{prev: NoBlock, next: NoBlock, chain: NoBlock, state: stateFree}
		p.free.pushBack(p.blocks, BlockID(i))
	}
	if c.Events {
		size := c.EventBuffer
		if size == 0 {
			size = max(4*c.Blocks, 1024)
		}
		p.journal = newJournal(size)
	}
	if c.ReportEvictions {
		p.evicted = make([]Eviction, 0, c.Blocks)
	}
	return p, nil
}

// Config is what the pool was made with.
func (p *Pool) Config() Config { return p.cfg }

// Free is the number of blocks that can be taken now: free and cached ones.
func (p *Pool) Free() int { return p.free.n + p.cached.n }

// Fits reports whether a sequence of n tokens could run if it had the pool to itself. One that does
// not fit never will: refuse it at once.
func (p *Pool) Fits(n int) bool { return p.Charge(n, n) <= p.cfg.Blocks-p.quarantined }

// Charge is the largest number of blocks that a sequence of n tokens holds at any time, if no step
// computes more than step of its tokens and blocks behind the window are given back before every
// step. Without a window that is all its blocks.
func (p *Pool) Charge(n, step int) int { return p.cfg.Charge(n, step) }

// Charge is what [Pool.Charge] of a pool of this Config would be.
func (c Config) Charge(n, step int) int {
	all := c.ceil(n)
	if c.Window == 0 {
		return all
	}
	// The window reaches Window-1 tokens behind the step's first token, which may lie anywhere in
	// its block: one block more than the span needs.
	return min(all, c.ceil(c.Window-1+step)+1)
}

// Stats returns the pool's figures.
func (p *Pool) Stats() Stats {
	s := p.stats
	s.Total = p.cfg.Blocks
	s.Free, s.Cached, s.Referenced, s.Quarantined = p.free.n, p.cached.n, p.referenced, p.quarantined
	return s
}

// EndStep says that the step being planned is final: it is, or will next be, submitted to the
// device. It returns that step's number. The engine calls it once a step, after its last Begin,
// Grow, Publish and Release of the plan.
//
// The difference matters because blocks are named when they are scheduled. Until EndStep the pool
// takes names back from blocks whose sequence is released (it was preempted, so nothing computes
// them), and copies from no block that this very step computes.
func (p *Pool) EndStep() uint64 {
	step := p.step
	p.step++
	p.evicted = p.evicted[:0]
	return step
}

// Find returns a block that carries the name, or NoBlock. It takes nothing: the block is another's as
// soon as the next is planned.
func (p *Pool) Find(h Hash) BlockID { return p.index.find(p.blocks, &h) }

// Evicted appends the cached blocks evicted by the step being planned, and forgets them.
func (p *Pool) Evicted(dst []Eviction) []Eviction {
	dst = append(dst, p.evicted...)
	p.evicted = p.evicted[:0]
	return dst
}

// ForgetSince takes back the name of every block that was named in step or later: the device failed
// to compute them. Sequences keep their blocks. It walks the whole pool.
func (p *Pool) ForgetSince(step uint64) {
	for i := range p.blocks {
		b := &p.blocks[i]
		if b.hash == (Hash{}) || b.step < step {
			continue
		}
		id := BlockID(i)
		p.unname(id)
		if b.state == stateCached {
			p.cached.remove(p.blocks, id)
			b.state = stateFree
			p.free.pushFront(p.blocks, id)
		}
	}
	for _, s := range p.live {
		s.rewindPublished()
	}
}

// ResetCache forgets every cached block. It returns false, having changed nothing, while any block
// is referenced.
func (p *Pool) ResetCache() bool {
	if p.referenced > 0 {
		return false
	}
	any := p.cached.n > 0
	for p.cached.n > 0 {
		id := p.cached.popFront(p.blocks)
		b := &p.blocks[id]
		if !p.index.remove(p.blocks, id) {
			p.violate(id, "cached but not in the index")
		}
		b.hash, b.parent = Hash{}, Hash{}
		b.state = stateFree
		p.free.pushBack(p.blocks, id)
	}
	p.version++
	if any && p.journal != nil {
		p.journal.add(record{kind: Cleared})
	}
	return true
}

// ceil is the number of blocks that n tokens need.
func (p *Pool) ceil(n int) int { return p.cfg.ceil(n) }

func (c Config) ceil(n int) int { return (n + c.BlockTokens - 1) / c.BlockTokens }

// take hands out a block without a name, referenced once. The caller has made sure that one is there.
func (p *Pool) take(writer uint32) BlockID {
	id := p.free.popFront(p.blocks)
	if id == NoBlock {
		id = p.cached.popFront(p.blocks)
		if p.cfg.ReportEvictions {
			b := &p.blocks[id]
			p.evicted = append(p.evicted, Eviction{id, int(b.tenant), b.step, b.hash, b.parent})
		}
		p.unname(id)
		p.stats.Evictions++
	}
	b := &p.blocks[id]
	b.state, b.refs, b.writer = stateReferenced, 1, writer
	p.referenced++
	p.refs++
	return id
}

// touch adds a reference to a block that is cached or referenced.
func (p *Pool) touch(id BlockID) {
	b := &p.blocks[id]
	if b.refs == 0 {
		p.cached.remove(p.blocks, id)
		b.state = stateReferenced
		p.referenced++
	}
	b.refs++
	p.refs++
}

// drop takes one reference away. At the last one a named block becomes cached, unless another block
// carries the same name, and any other becomes free.
func (p *Pool) drop(id BlockID) {
	b := &p.blocks[id]
	if b.refs <= 0 {
		p.violate(id, "given back without a reference")
		return
	}
	b.refs--
	p.refs--
	if b.refs > 0 {
		return
	}
	p.referenced--
	if b.hash == (Hash{}) {
		b.state = stateFree
		p.free.pushFront(p.blocks, id)
		return
	}
	if twin := p.index.other(p.blocks, id); twin != NoBlock {
		// Keeping one copy of a content is enough. The other counts as used just now.
		p.unname(id)
		b.state = stateFree
		p.free.pushFront(p.blocks, id)
		if p.blocks[twin].state == stateCached {
			p.cached.remove(p.blocks, twin)
			p.cached.pushBack(p.blocks, twin)
		}
		return
	}
	b.state = stateCached
	p.cached.pushBack(p.blocks, id)
}

// name makes a referenced block findable.
func (p *Pool) name(id BlockID, h, parent Hash, tenant int) {
	b := &p.blocks[id]
	if b.hash != (Hash{}) {
		p.violate(id, "named twice")
		return
	}
	b.hash, b.parent, b.step, b.tenant = h, parent, p.step, uint16(tenant)
	p.index.insert(p.blocks, id)
	p.version++
	if p.journal != nil {
		p.journal.add(record{kind: Stored, hash: h, parent: parent})
	}
}

// unname makes a block unfindable. Its lists and references are the caller's.
func (p *Pool) unname(id BlockID) {
	b := &p.blocks[id]
	if !p.index.remove(p.blocks, id) {
		p.violate(id, "named but not in the index")
	}
	h := b.hash
	b.hash, b.parent = Hash{}, Hash{}
	p.version++
	// A consumer's view is a set of hashes: while another block carries this one it stays.
	if p.journal != nil && p.index.find(p.blocks, &h) == NoBlock {
		p.journal.add(record{kind: Removed, hash: h})
	}
}

// copy counts a copy-on-write.
func (p *Pool) copy(from, to BlockID) Copy {
	p.stats.Copies++
	return Copy{from, to, p.cfg.Group}
}

// violate remembers the first violation, for Check. The caller goes on in the way that does least harm.
func (p *Pool) violate(id BlockID, what string) {
	if p.fault == nil {
		p.fault = fmt.Errorf("%w: block %d is %s (%s, %d references)", ErrAccounting, id, what, p.blocks[id].state, p.blocks[id].refs)
	}
}
