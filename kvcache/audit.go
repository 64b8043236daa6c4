package kvcache

import (
	"errors"
	"fmt"
)

// Check tests the accounting invariant from the pool's counters, in constant time, for use after
// every step: free + cached + referenced + quarantined = total, and the sum of reference counts is
// the number of block table entries. It also reports the first violation met since the last
// Quarantine. The error wraps ErrAccounting and names what differs.
func (p *Pool) Check() error {
	if p.fault != nil {
		return p.fault
	}
	if sum := p.free.n + p.cached.n + p.referenced + p.quarantined; sum != p.cfg.Blocks {
		return fmt.Errorf("%w: %d free + %d cached + %d referenced + %d quarantined = %d blocks, the pool has %d",
			ErrAccounting, p.free.n, p.cached.n, p.referenced, p.quarantined, sum, p.cfg.Blocks)
	}
	if p.refs != p.entries {
		return fmt.Errorf("%w: reference counts add up to %d, block tables hold %d entries", ErrAccounting, p.refs, p.entries)
	}
	return nil
}

// Audit checks the whole of the books, block by block: each is in exactly one of them, reference
// counts are the block tables', the index holds exactly the named blocks, lists are sound. It takes
// time and memory in proportion to the pool and is meant for tests, and for after a failed Check.
// The error wraps ErrAccounting and names what differs, at most ten times.
func (p *Pool) Audit() error {
	a := p.audit()
	errs := a.errs
	if err := p.Check(); err != nil {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// Quarantine mends the books after a violation. The live block tables are the truth: every block
// whose entry contradicts them or itself is taken out of use for good, or, while tables hold it,
// loses its name. It returns how many blocks it took out of use.
func (p *Pool) Quarantine() int {
	a := p.audit()
	order := a.cachedOrder
	p.index = newIndex(p.cfg.Blocks, p.index.k0, p.index.k1)
	p.free, p.cached = newList(), newList()
	p.referenced, p.refs, p.entries = 0, 0, 0
	before := p.quarantined
	p.quarantined = 0
	var lost []Hash
	for i := range p.blocks {
		b := &p.blocks[i]
		id := BlockID(i)
		bad := a.bad[i] || b.state == stateQuarantined
		if bad && b.hash != (Hash{}) {
			lost = append(lost, b.hash)
			b.hash, b.parent = Hash{}, Hash{}
		}
		b.prev, b.next, b.chain = NoBlock, NoBlock, NoBlock
		b.refs = a.refs[i]
		switch {
		case b.refs > 0:
			b.state = stateReferenced
			p.referenced++
			p.refs += int64(b.refs)
		case bad:
			b.state = stateQuarantined
			p.quarantined++
		case b.hash != (Hash{}):
			b.state = stateCached // listed below in the order of use, or here if its list lost it
			if !a.listed[i] {
				p.cached.pushBack(p.blocks, id)
			}
		default:
			b.state = stateFree
			p.free.pushBack(p.blocks, id)
		}
		if b.hash != (Hash{}) {
			p.index.insert(p.blocks, id)
		}
	}
	for _, id := range order {
		if p.blocks[id].state == stateCached {
			p.cached.pushBack(p.blocks, id)
		}
	}
	for _, h := range lost {
		if p.journal != nil && p.index.find(p.blocks, &h) == NoBlock {
			p.journal.add(record{kind: Removed, hash: h})
		}
	}
	clear(p.held)
	for _, s := range p.live {
		n := 0
		for _, id := range s.table {
			if id != NoBlock {
				n++
			}
		}
		p.account(s.tenant, n)
		s.rewindPublished()
	}
	p.version++
	p.fault = nil
	return p.quarantined - before
}

// findings are what an audit saw.
type findings struct {
	refs        []int32 // block tables that hold each block
	bad         []bool  // the block's own entry is wrong
	listed      []bool  // the cached list holds it
	cachedOrder []BlockID
	errs        []error
}

// blame notes a block whose entry is wrong.
func (f *findings) blame(id BlockID, format string, args ...any) {
	f.bad[id] = true
	f.note(id, format, args...)
}

// note keeps the first few errors.
func (f *findings) note(id BlockID, format string, args ...any) {
	if len(f.errs) < 10 {
		f.errs = append(f.errs, fmt.Errorf("%w: block %d "+format, append([]any{ErrAccounting, id}, args...)...))
	}
}

func (p *Pool) audit() *findings {
	f := &findings{refs: make([]int32, len(p.blocks)), bad: make([]bool, len(p.blocks)), listed: make([]bool, len(p.blocks))}
	for _, s := range p.live {
		for i, id := range s.table {
			switch {
			case id == NoBlock && i < s.windowed:
			case id < 0 || int(id) >= len(p.blocks):
				f.errs = append(f.errs, fmt.Errorf("%w: entry %d of a block table is %d", ErrAccounting, i, id))
			default:
				f.refs[id]++
			}
		}
	}
	listed := make([]state, len(p.blocks))
	p.walk(f, &p.free, stateFree, listed)
	p.walk(f, &p.cached, stateCached, listed)
	named := p.walkIndex(f)
	for i := range p.blocks {
		b := &p.blocks[i]
		id := BlockID(i)
		has := b.hash != (Hash{})
		if b.refs != f.refs[i] {
			f.blame(id, "counts %d references, block tables hold %d", b.refs, f.refs[i])
		}
		if has != named[i] {
			f.blame(id, "has a hash: %t, is in the index: %t", has, named[i])
		}
		var want state // which list it must be on
		switch {
		case b.state == stateQuarantined:
		case f.refs[i] > 0:
			if b.state != stateReferenced {
				f.blame(id, "is %s but in a block table", b.state)
			}
		case has:
			want = stateCached
		default:
			want = stateFree
		}
		if want != 0 && b.state != want {
			f.blame(id, "is %s, should be %s", b.state, want)
		}
		if listed[i] != want {
			f.note(id, "is on %s, should be on %s", listName(listed[i]), listName(want))
		}
	}
	return f
}

func listName(s state) string {
	if s == 0 {
		return "no list"
	}
	return "the " + s.String() + " list"
}

// walk marks the blocks of one list, as far as its links make sense.
func (p *Pool) walk(f *findings, l *list, s state, listed []state) {
	prev, n := NoBlock, 0
	for id := l.head; id != NoBlock; id = p.blocks[id].next {
		if id < 0 || int(id) >= len(p.blocks) || listed[id] != 0 {
			f.errs = append(f.errs, fmt.Errorf("%w: the %s list runs into block %d after %d", ErrAccounting, s, id, n))
			return
		}
		if p.blocks[id].prev != prev {
			f.note(id, "is linked back to %d, not %d", p.blocks[id].prev, prev)
		}
		listed[id] = s
		if s == stateCached {
			f.cachedOrder = append(f.cachedOrder, id)
			f.listed[id] = true
		}
		prev = id
		n++
	}
	if n != l.n || l.tail != prev {
		f.errs = append(f.errs, fmt.Errorf("%w: the %s list counts %d and ends at %d, holds %d and ends at %d", ErrAccounting, s, l.n, l.tail, n, prev))
	}
}

// walkIndex marks the blocks that the index holds, each in the bucket of its hash.
func (p *Pool) walkIndex(f *findings) []bool {
	named := make([]bool, len(p.blocks))
	n := 0
	for i := range p.index.buckets {
		for id := p.index.buckets[i]; id != NoBlock; id = p.blocks[id].chain {
			if id < 0 || int(id) >= len(p.blocks) || named[id] {
				f.errs = append(f.errs, fmt.Errorf("%w: index bucket %d runs into block %d", ErrAccounting, i, id))
				break
			}
			named[id] = true
			n++
			if p.index.bucket(&p.blocks[id].hash) != &p.index.buckets[i] {
				f.note(id, "is in the index bucket of another hash")
			}
		}
	}
	if n != p.index.n {
		f.errs = append(f.errs, fmt.Errorf("%w: the index counts %d blocks and holds %d", ErrAccounting, p.index.n, n))
	}
	return named
}
