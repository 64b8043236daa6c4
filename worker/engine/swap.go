package engine

import "time"

// swap reports whether blocks blocks are sooner copied down and up again than computed again.
func (c Costs) swap(blocks, blockTokens int) bool {
	return blocks > 0 && c.Step+time.Duration(2*blocks)*c.Page <= time.Duration(blocks*blockTokens)*c.Token || c == Costs{} && blocks > 0
}

// choose decides what becomes of s's blocks, which it is about to lose. Swapped out, they are copied
// down like any cached block, but only when their memory is taken, and copied up when s comes back.
// If computing them again costs less, what s generated is not copied down; its prompt is treated as
// every cached prompt is, for others may have the same.
//
// Either way s waits with its tokens alone and needs nothing below to go on, so that the choice
// cannot hold anybody up.
func (p *planner) choose(s *sequence) {
	l := p.lower
	if l == nil || l.Transit {
		p.note(notePreempted, s, len(s.tokens))
		return
	}
	n := s.published / p.BlockTokens
	if l.Costs.swap(n, p.BlockTokens) {
		p.count.swaps++
		p.note(noteSwapped, s, len(s.tokens))
		return
	}
	p.note(notePreempted, s, len(s.tokens))
	hashes := s.kv.Hashes()
	s.notKept = min(n, len(hashes))
	for i := s.prompt / p.BlockTokens; i < s.notKept; i++ {
		l.notKept[hashes[i]] = struct{}{}
	}
}

// keep ends what choose has begun: s computes again, or ends.
func (l *lower) keep(s *sequence) {
	if l == nil || s.notKept == 0 {
		return
	}
	// Those that are named again are worth as much as any.
	for _, h := range s.kv.Hashes()[:min(s.notKept, len(s.kv.Hashes()))] {
		delete(l.notKept, h)
	}
	s.notKept = 0
}
