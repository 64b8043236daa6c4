package engine

import (
	"errors"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/kvcache"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// When a step fails its tokens are lost, and those of the step behind. Whoever took part starts again from
// its tokens, and is suspect until a step has computed as much of it. Suspects run again, all together at
// first, for most failures pass; if they fail again by halves, so that few steps tell who makes the device
// fail. One that fails alone accuses itself, but only if the device can compute anything at all: a step of
// the engine's own, a single token of nobody's, is tried next. If it succeeds that counts against the
// request, and the third time the request ends with the error. If it fails three times in a row the device
// is what fails, and the engine ends with its requests handed back.
type suspicion struct {
	suspects int       // sequences that were in a step that failed, and in none since that succeeded
	together int       // how many of them may be tried at once
	accused  *sequence // failed alone; the engine's own step comes next
	cause    error     // of the newest failure
	broken   int       // of the engine's own steps failed in a row
}

// maxFaults is how often in a row a sequence may fail alone, and the engine's own step fail.
const maxFaults = 3

// errStep is reported to requests that make steps fail.
var errStep = errors.New("engine: step failed")

// gone reports that the device computes nothing any more.
func (f *suspicion) gone() bool { return f.broken >= maxFaults }

// fail drops all steps in flight, whose results are lost, with the names of blocks given since.
func (p *planner) fail(cause error) {
	f := &p.faults
	p.count.failures++
	p.pace.Settle()
	f.cause = cause
	probing, tried := f.suspects > 0, p.oldest().seqs
	good := p.accepted
	p.pool.ForgetSince(p.oldest().named)
	for p.accepted < p.number {
		st := p.oldest()
		p.accepted++
		if st.own {
			f.broken++
		}
		for _, s := range st.seqs {
			s.drafts, s.agreed = s.drafts[:0], 0
			p.suspect(s)
		}
		for _, d := range st.draws {
			d.seq.pending = 0
			d.seq.scored = d.seq.scoreFrom + len(d.seq.scores)
			if d.seq.state == stateParked {
				p.enqueue(d.seq)
			}
		}
	}
	for _, c := range p.forking {
		if c.state == stateForking {
			p.enqueue(c)
		}
	}
	clear(p.forking)
	p.forking = p.forking[:0]
	switch {
	case !probing:
		f.together = f.suspects
	case len(tried) > 1:
		f.together = (len(tried) + 1) / 2
	case len(tried) == 1 && tried[0].suspect:
		f.accused = tried[0]
	}
	for i := len(p.running) - 1; i >= 0; i-- {
		if s := p.running[i]; s.fence > good {
			p.preempt(s)
		}
	}
	p.copies, p.copiers = p.copies[:0], p.copiers[:0]
	p.pool.Completed(p.accepted)
	p.check()
}

// suspect notes that s was in a step that failed.
func (p *planner) suspect(s *sequence) {
	if s.state == stateDone {
		return
	}
	if !s.suspect {
		s.suspect = true
		p.faults.suspects++
	}
	s.proof = max(s.proof, min(s.computed, len(s.tokens)))
}

// trust ends the suspicion of s.
func (p *planner) trust(s *sequence) {
	if s.suspect {
		s.suspect, s.proof, s.failedAlone = false, 0, 0
		p.faults.suspects--
	}
	if p.faults.accused == s {
		p.faults.accused = nil
	}
}

// acquit draws the conclusions from a step that succeeded.
func (p *planner) acquit(st *step) {
	f := &p.faults
	if st.own {
		f.broken = 0
		if s := f.accused; s != nil {
			f.accused = nil
			if s.failedAlone++; s.failedAlone >= maxFaults {
				p.end(s, nil, pb.FinishReason_FINISH_REASON_ERROR, "", errStep.Error()+": "+f.cause.Error())
			}
		}
		return
	}
	if f.suspects == 0 {
		return
	}
	for _, s := range st.seqs {
		if s.computed >= s.proof {
			p.trust(s)
		}
	}
	f.together = max(1, min(2*f.together, f.suspects))
}

// probe runs suspects, at the cost of anyone who holds what they need. Nothing is in flight.
func (p *planner) probe(st *step, now int64) {
	budget := p.MaxBatchTokens
	for i := 0; i < len(p.running); i++ {
		s := p.running[i]
		if !s.suspect || s.want() == 0 {
			continue
		}
		s.kv.Slide(s.computed)
		if room, _ := p.makeRoom(s); !room {
			continue
		}
		if n := p.cover(s, p.chunk(s, s.want(), budget)); n > 0 {
			p.schedule(st, s, n)
			budget -= n
		}
	}
	for i, tried := 0, len(st.seqs); i < len(p.waiting) && tried < p.faults.together && budget > 0; {
		s := p.waiting[i]
		if !s.suspect || s.behind {
			i++
			continue
		}
		rows, _ := p.start(st, s, budget, now)
		switch {
		case s.state == stateRunning:
			budget -= rows
			tried++
		case tried > 0 || len(p.running) == 0:
			return
		default:
			p.preempt(p.running.last())
			i = 0
		}
	}
}

// ownStep plans a step of one token that belongs to nobody.
func (p *planner) ownStep(st *step) {
	kv := p.pool.NewSequence(kvcache.Root(nil, nil))
	for kv.Grow(1) != nil {
		if len(p.running) == 0 {
			break // cannot be: a pool holds a block
		}
		p.preempt(p.running.last())
	}
	st.own, st.rows = true, 1
	st.kv = kv
	kv.ReleaseAfter(st.number)
}

// buildOwn lays that step out.
func (p *planner) buildOwn(st *step) {
	b := &p.batch
	seq := device.Seq{Rows: 1, Context: 1, Table: addTable(b, st.kv.Table())}
	if w := st.kv.Windowed(); w != nil {
		seq.WindowTable = addTable(b, w)
	}
	b.Seqs = append(b.Seqs, seq)
	b.Tokens, b.Positions = append(b.Tokens, 0), append(b.Positions, 0)
	b.Samples = append(b.Samples, device.Sample{Score: -1, TopP: 1, RepetitionPenalty: 1, Mask: -1, Position: 1, Logprobs: -1})
}
