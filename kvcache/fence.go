package kvcache

// fences holds sequences whose blocks something in flight may still touch, oldest first.
type fences struct {
	queue []fenced
	head  int
}

type fenced struct {
	step uint64
	seq  *Sequence
}

// ReleaseAfter releases the sequence once [Pool.Completed] is told of step, which is the newest
// step in flight. On an in-order stream later steps cannot meet an earlier one's writes, and plain
// Release will do; the fence is for transfers beside the stream. Until then the blocks count as
// referenced.
func (s *Sequence) ReleaseAfter(step uint64) {
	s.leave()
	q := &s.pool.deferred
	if n := len(q.queue); n > q.head {
		step = max(step, q.queue[n-1].step)
	}
	q.queue = append(q.queue, fenced{step, s})
}

// PreemptAfter is [Sequence.Preempt] whose blocks come back once step is completed. The sequence
// itself is empty at once.
func (s *Sequence) PreemptAfter(step uint64) {
	p := s.pool
	shadow := p.NewSequence(s.root)
	shadow.tenant, shadow.serial = s.tenant, s.serial
	shadow.table, s.table = s.table, shadow.table
	shadow.tokens, shadow.published, shadow.windowed = s.tokens, s.published, s.windowed
	shadow.ReleaseAfter(step)
	s.reset()
	s.preempted = true
}

// Completed says that the device has finished step, and every one before it. It releases what
// waited for that and returns how many sequences it released.
func (p *Pool) Completed(step uint64) int {
	q := &p.deferred
	n := 0
	for ; q.head < len(q.queue) && q.queue[q.head].step <= step; n++ {
		q.queue[q.head].seq.Release()
		q.queue[q.head].seq = nil
		q.head++
	}
	if q.head == len(q.queue) {
		q.queue, q.head = q.queue[:0], 0
	} else if q.head > len(q.queue)/2 {
		q.queue = q.queue[:copy(q.queue, q.queue[q.head:])]
		q.head = 0
	}
	return n
}

// Deferred is the number of sequences that wait for a step to complete.
func (p *Pool) Deferred() int { return len(p.deferred.queue) - p.deferred.head }
