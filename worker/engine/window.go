package engine

// Layers that attend to a sliding window never read what lies behind it. In their group of a model's
// layers, which may be all, sequences hold the blocks of the window and of the rows of a step, however
// long they get: blocks behind are given back before a step, and blocks for a prompt's rows are taken as
// these are scheduled, not at admission. That asks only for as many free blocks as the sequence may come
// to hold; should others have taken them by then, it gets fewer rows, and at least one at the cost of who
// comes last. A step in flight may still read what was given back: who gets it writes in a later one.

// cover makes room for n rows of s, or as many as there are blocks for, and returns how many fit.
func (p *planner) cover(s *sequence, n int) int {
	if p.model.Window > 0 && s.kv.Grow(s.computed+n) == nil {
		s.room = s.kv.Room()
	}
	return min(n, s.room-s.computed)
}
