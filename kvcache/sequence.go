package kvcache

import (
	"math"
	"slices"
)

// Sequence is one request's block table, and the hashes of its full blocks.
//
//	NewSequence ─▶ Lookup… ─▶ Begin ─▶ Grow, Publish, Truncate, Fork… ─▶ Release
//	                  ▲                          │
//	                  └───────── Preempt ────────┘
//
// Tokens passed to its methods are always those of the sequence from position 0; between calls they
// only grow at the end (Truncate aside), so that hashes are computed once.
type Sequence struct {
	pool   *Pool
	root   Hash
	tenant int
	serial uint32
	place  int // in pool.live, -1 when released

	table     []BlockID
	tokens    int // tokens that the last Begin, Grow or Truncate made room for
	hashes    []Hash
	published int // leading blocks that carry their hash, or did when given back
	windowed  int // leading entries that are NoBlock

	items     []Item
	key       []byte // scratch for an item key
	readable  int    // leading tokens that the cache may be read for
	preempted bool

	match        []BlockID // blocks of the cached prefix, valid while the pool's version stands
	matchFrom    int       // leading entries of match that the window does not need
	matchVersion uint64
	matchTokens  int
}

// NewSequence returns an empty sequence whose chain starts at root.
func (p *Pool) NewSequence(root Hash) *Sequence {
	var s *Sequence
	if n := len(p.idle); n > 0 {
		s, p.idle = p.idle[n-1], p.idle[:n-1]
	} else {
		s = &Sequence{pool: p}
	}
	p.serial++
	*s = Sequence{
		pool: p, root: root, serial: p.serial, place: len(p.live), readable: math.MaxInt,
		table: s.table[:0], hashes: s.hashes[:0], match: s.match[:0], key: s.key[:0],
	}
	p.live = append(p.live, s)
	return s
}

// Reserve makes room in the tables for n tokens, so that none of them is a reason to allocate later.
func (s *Sequence) Reserve(n int) {
	s.table = slices.Grow(s.table, s.pool.ceil(n))
	if s.pool.cfg.PrefixCache {
		s.hashes = slices.Grow(s.hashes, n/s.pool.cfg.BlockTokens)
	}
}

// SetTenant counts the sequence's blocks against a tenant of Config.Tenants, 0 to 65,535. Call it
// before Begin.
func (s *Sequence) SetTenant(tenant int) {
	s.mustBeEmpty("SetTenant")
	if tenant < 0 || tenant >= maxTenants {
		panic("kvcache: no such tenant")
	}
	s.tenant = tenant
}

// SetItems says what stands behind placeholder tokens. Call it before the first Lookup. items is
// not copied.
func (s *Sequence) SetItems(items []Item) { s.mustBeEmpty("SetItems"); s.items = items }

// SetHashes gives the hashes of the prompt's full blocks, computed elsewhere from the same root and
// items. Call it before the first Lookup.
func (s *Sequence) SetHashes(hashes []Hash) {
	s.mustBeEmpty("SetHashes")
	s.hashes = append(s.hashes[:0], hashes...)
}

// SetReadable makes Lookup and Begin find only whole blocks of the first n tokens, for a request that
// needs the logits of those that follow; its blocks are all published. The default is all tokens.
func (s *Sequence) SetReadable(n int) {
	if n != s.readable {
		s.readable, s.matchVersion = n, 0
	}
}

// Hashes are those of the full blocks known so far: of all tokens passed to Lookup, Begin or
// Publish. The slice aliases internal memory, valid until the next call.
func (s *Sequence) Hashes() []Hash { return s.hashes }

// Table is the block table: entry i holds tokens [i·BlockTokens, (i+1)·BlockTokens). The slice
// aliases internal memory, valid until the next call.
func (s *Sequence) Table() []BlockID { return s.table }

// Held is how many blocks the table holds.
func (s *Sequence) Held() int { return len(s.table) - s.windowed }

// Tokens is how many tokens the table has been asked to hold.
func (s *Sequence) Tokens() int { return s.tokens }

// Lookup returns how many leading tokens of a prompt are cached, at most all but one: the last
// token is always computed, for its logits. It is a multiple of BlockTokens unless every block is
// cached; then only the last token is left (Begin says how). It takes nothing.
func (s *Sequence) Lookup(tokens []int32) (cached int) {
	s.mustBeEmpty("Lookup")
	s.look(tokens)
	return s.planned(len(tokens), 0).cached
}

// Need is how many blocks Begin, of the tokens last looked up, or Grow would take from Free to
// make room for n tokens in total. Cached blocks that a Begin would revive count.
func (s *Sequence) Need(n int) int {
	if len(s.table) > 0 {
		return max(0, s.pool.ceil(n)-len(s.table))
	}
	if !s.knows(s.matchTokens) {
		s.find(s.matchTokens, s.matchTokens/s.pool.cfg.BlockTokens)
	}
	return s.planned(s.matchTokens, n).need()
}

// Begin takes the cached prefix of tokens and enough new blocks that tokens[:upTo] fits, and at
// least one token more than is cached. It returns what Lookup would have. If hasCopy, the device
// must do cow before the operations of this step.
//
// When every block is cached, the last token still has to be computed, and that writes to the last
// block. If nobody holds that block, the sequence takes it as it is and writes the same bits again.
// If somebody does, it gets a copy. If the block is being computed in this same step there is
// nothing to copy yet, and the sequence computes that block itself.
//
// ErrNoBlocks and ErrQuota change nothing.
func (s *Sequence) Begin(tokens []int32, upTo int) (cached int, cow Copy, hasCopy bool, err error) {
	s.mustBeEmpty("Begin")
	s.look(tokens)
	d := s.planned(len(tokens), upTo)
	if err := s.mayTake(d.need(), d.total-d.skip); err != nil {
		return 0, Copy{}, false, err
	}
	cow, hasCopy = s.begin(d, len(tokens))
	return d.cached, cow, hasCopy, nil
}

// mayTake reports whether blocks blocks can leave Free for entries more table entries.
func (s *Sequence) mayTake(blocks, entries int) error {
	if blocks > s.pool.Free() {
		return ErrNoBlocks
	}
	if !s.pool.mayHold(s.tenant, entries) {
		return ErrQuota
	}
	return nil
}

// begin does what d says, of a prompt of n tokens.
func (s *Sequence) begin(d decision, n int) (cow Copy, hasCopy bool) {
	p := s.pool
	for range d.skip {
		s.table = append(s.table, NoBlock)
	}
	for _, id := range s.match[d.skip:d.hits] {
		p.touch(id)
		s.table = append(s.table, id)
	}
	s.published, s.windowed = d.hits, d.skip
	for len(s.table) < d.total {
		s.table = append(s.table, p.take(s.serial))
	}
	if d.copyFrom != NoBlock {
		cow, hasCopy = p.copy(d.copyFrom, s.table[d.hits]), true
	}
	p.account(s.tenant, d.total-d.skip)
	s.tokens = d.room
	p.count(s, n, d.cached)
	return cow, hasCopy
}

// Grow makes room for n tokens in total. ErrNoBlocks and ErrQuota change nothing.
func (s *Sequence) Grow(n int) error {
	if err := s.mayGrow(n); err != nil {
		return err
	}
	s.grow(n)
	return nil
}

func (s *Sequence) mayGrow(n int) error {
	if more := s.pool.ceil(n) - len(s.table); more > 0 {
		return s.mayTake(more, more)
	}
	return nil
}

func (s *Sequence) grow(n int) {
	p := s.pool
	if more := p.ceil(n) - len(s.table); more > 0 {
		for range more {
			s.table = append(s.table, p.take(s.serial))
		}
		p.account(s.tenant, more)
	}
	s.tokens = max(s.tokens, n)
}

// Publish names every block that is full within tokens, which are all the sequence's verified
// tokens: none of them may ever be taken back. A block can be named as soon as the step that
// computes it is planned, so that another request of the same step can share it.
func (s *Sequence) Publish(tokens []int32) {
	p := s.pool
	full := min(len(tokens)/p.cfg.BlockTokens, len(s.table))
	if !p.cfg.PrefixCache || full <= s.published {
		return
	}
	s.extend(tokens, full)
	for i := s.published; i < full; i++ {
		// A fork may have named a shared block already.
		if id := s.table[i]; id != NoBlock && p.blocks[id].hash != s.hashes[i] {
			p.name(id, s.hashes[i], s.parent(i), s.tenant)
		}
	}
	s.published = full
}

// Fork returns a sequence with the same tokens that shares every full block. A partial last block
// is copied: if hasCopy, the device must do cow before the next step's operations. The steps that
// compute the shared tokens must have been planned (EndStep) before. ErrNoBlocks and ErrQuota
// change nothing.
func (s *Sequence) Fork() (child *Sequence, cow Copy, hasCopy bool, err error) {
	if err := s.mayFork(); err != nil {
		return nil, Copy{}, false, err
	}
	child, cow, hasCopy = s.fork()
	return child, cow, hasCopy, nil
}

func (s *Sequence) mayFork() error {
	used := s.pool.ceil(s.tokens)
	return s.mayTake(used-s.tokens/s.pool.cfg.BlockTokens, used-min(s.windowed, used))
}

func (s *Sequence) fork() (child *Sequence, cow Copy, hasCopy bool) {
	p := s.pool
	full := s.tokens / p.cfg.BlockTokens
	used := p.ceil(s.tokens)
	child = p.NewSequence(s.root)
	child.tenant, child.items, child.readable = s.tenant, s.items, s.readable
	child.hashes = append(child.hashes, s.hashes[:min(full, len(s.hashes))]...)
	child.tokens, child.windowed = s.tokens, min(s.windowed, used)
	child.published = min(s.published, full)
	for _, id := range s.table[:full] {
		if id != NoBlock {
			p.touch(id)
		}
		child.table = append(child.table, id)
	}
	if used > full {
		id := p.take(child.serial)
		child.table = append(child.table, id)
		cow, hasCopy = p.copy(s.table[full], id), true
	}
	p.account(s.tenant, used-child.windowed)
	return child, cow, hasCopy
}

// Truncate gives back blocks beyond n tokens: slots that speculation did not use. Published blocks
// are verified, so cutting into one is a programmer's error and panics.
func (s *Sequence) Truncate(n int) {
	if n < s.published*s.pool.cfg.BlockTokens {
		panic("kvcache: Truncate below the published tokens")
	}
	s.shrink(s.pool.ceil(n))
	s.tokens = min(s.tokens, n)
	s.hashes = s.hashes[:min(len(s.hashes), n/s.pool.cfg.BlockTokens)]
}

// ReleaseBehind gives back the blocks that hold only tokens before position n: with a window of w,
// a step whose first token is at position q needs none before q-w+1. Their entries in the table become NoBlock;
// the indices of the others stay.
func (s *Sequence) ReleaseBehind(n int) {
	p := s.pool
	end := min(n/p.cfg.BlockTokens, len(s.table))
	if end <= s.windowed {
		return
	}
	for i := end - 1; i >= s.windowed; i-- {
		p.drop(s.table[i])
		s.table[i] = NoBlock
	}
	p.account(s.tenant, s.windowed-end)
	s.windowed = end
}

// Followed reports whether another sequence counts on blocks that this one computes in the step
// being planned. Such a sequence must stay in the plan: do not preempt or release it before
// EndStep.
func (s *Sequence) Followed() bool {
	for id := range s.fresh {
		if s.pool.blocks[id].refs > 1 {
			return true
		}
	}
	return false
}

// fresh yields the blocks that the sequence computes in the step being planned, named already.
func (s *Sequence) fresh(yield func(BlockID) bool) {
	p := s.pool
	for i := s.published - 1; i >= s.windowed && p.blocks[s.table[i]].step == p.step; i-- {
		if id := s.table[i]; p.blocks[id].writer == s.serial && !yield(id) {
			return
		}
	}
}

// leave takes the sequence out of the plan: what it would have computed loses its name.
func (s *Sequence) leave() {
	p := s.pool
	for id := range s.fresh {
		if p.blocks[id].refs > 1 {
			p.violate(id, "given back by the sequence that computes it in this step while others follow it")
		}
		if p.blocks[id].hash != (Hash{}) {
			p.unname(id)
		}
	}
}

// Preempt gives back every block, tail first, but keeps the sequence and its hashes: it can Begin
// again.
func (s *Sequence) Preempt() {
	s.leave()
	s.shrink(0)
	s.reset()
	s.preempted = true
}

// Release gives back every block, tail first, and the sequence itself, which must not be used
// again. The engine calls it when no step in flight can still write the blocks.
func (s *Sequence) Release() {
	s.leave()
	s.shrink(0)
	s.retire()
}

// retire takes an empty sequence off the books.
func (s *Sequence) retire() {
	p := s.pool
	if s.place < 0 {
		panic("kvcache: sequence released twice")
	}
	last := len(p.live) - 1
	p.live[s.place] = p.live[last]
	p.live[s.place].place = s.place
	p.live[last] = nil
	p.live = p.live[:last]
	s.place = -1
	s.items = nil
	p.idle = append(p.idle, s)
}

func (s *Sequence) reset() {
	s.tokens, s.published, s.windowed, s.matchVersion = 0, 0, 0, 0
}

// shrink gives back the blocks from table entry n on, the last first: a chain's tail is evicted
// before its head, without which it is of no use.
func (s *Sequence) shrink(n int) {
	given := 0
	for i := len(s.table) - 1; i >= n; i-- {
		if s.table[i] != NoBlock {
			s.pool.drop(s.table[i])
			given++
		}
	}
	if n < len(s.table) {
		s.table = s.table[:n]
	}
	s.windowed = min(s.windowed, n)
	s.pool.account(s.tenant, -given)
}

// rewindPublished makes Publish name again the blocks that lost their name.
func (s *Sequence) rewindPublished() {
	for i := s.windowed; i < s.published; i++ {
		if s.pool.blocks[s.table[i]].hash == (Hash{}) {
			s.published = i
			return
		}
	}
}

func (s *Sequence) mustBeEmpty(method string) {
	if s.place < 0 {
		panic("kvcache: " + method + " of a released sequence")
	}
	if len(s.table) > 0 {
		panic("kvcache: " + method + " of a sequence that holds blocks")
	}
}

// parent is what block i's hash is chained on.
func (s *Sequence) parent(i int) Hash {
	if i == 0 {
		return s.root
	}
	return s.hashes[i-1]
}

// extend computes hashes up to block n.
func (s *Sequence) extend(tokens []int32, n int) {
	bt := s.pool.cfg.BlockTokens
	for i := len(s.hashes); i < n; i++ {
		key := s.key[:0]
		if len(s.items) > 0 {
			key = appendItemKey(key, s.items, i*bt, bt)
			s.key = key
		}
		s.hashes = append(s.hashes, childHash(s.parent(i), tokens[i*bt:(i+1)*bt], key))
	}
}
