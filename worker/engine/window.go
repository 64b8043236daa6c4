package engine

// Models whose layers all attend to a sliding window never read what lies behind the widest one. Their
// sequences hold the blocks of the window and of the rows of a step, however long they get: blocks
// behind are given back before a step, and blocks for a prompt's rows are taken as these are scheduled,
// not at admission. That asks only for as many free blocks as the sequence may come to hold; should
// others have taken them by then, it gets fewer rows, and at least one at the cost of who comes last.

// slide gives back the blocks that no row of s reads from its next one on. A step in flight may still
// read them: who gets them writes in a later one.
func (p *planner) slide(s *sequence) {
	if w := p.model.Window; w > 0 {
		s.kv.ReleaseBehind(s.computed - w + 1)
	}
}

// cover makes room for n rows of s, or as many as there are blocks for, and returns how many fit.
func (p *planner) cover(s *sequence, n int) int {
	if p.model.Window > 0 && s.kv.Grow(s.computed+n) == nil {
		s.room = len(s.kv.Table()) * p.BlockTokens
	}
	return min(n, s.room-s.computed)
}

// demand is how many free blocks s needs to begin, and for how many of its tokens it takes them at once.
func (p *planner) demand(s *sequence) (blocks, upTo int) {
	if p.model.Window > 0 {
		return p.pool.Charge(len(s.tokens), p.MaxBatchTokens), 0
	}
	return s.kv.Need(len(s.tokens)), len(s.tokens)
}
