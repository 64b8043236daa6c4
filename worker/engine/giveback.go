package engine

import pb "github.com/quire-serve/quire/proto/quire/v1"

// giveBack hands requests that were preempted Settings.ReturnAfter ago, and have not been able to go
// on since, back to whoever sent them: another worker may have room. A request of which a choice
// still runs, or waits for a token in flight, stays.
func (p *planner) giveBack(now int64) {
	if p.nextReturn == 0 || now < p.nextReturn || p.hold != holdNothing || p.faults.suspects > 0 {
		return
	}
	p.nextReturn = 0
	bound := p.ReturnAfter.Microseconds()
	for i := 0; i < len(p.waiting); {
		s := p.waiting[i]
		at := s.preempted + bound
		switch {
		case s.preempted == 0:
		case len(p.running) > 0 && now >= at && s.stuck():
			p.note(noteReturned, s, len(s.tokens))
			// Its choices leave the queue with it; those before s are behind us.
			p.endReturned(s.request)
			i = 0
			continue
		case p.nextReturn == 0 || at < p.nextReturn:
			// One that is due and cannot go yet is looked at again in the next plan.
			p.nextReturn = at
		}
		i++
	}
}

// stuck reports that no choice of s's request runs or has a token in flight.
func (s *sequence) stuck() bool {
	for _, c := range s.choices {
		switch c.state {
		case stateDone, stateAttached:
		case stateWaiting:
			if c.pending > 0 {
				return false
			}
		default:
			return false
		}
	}
	return true
}

// endReturned ends every choice that still lives with events that say so.
func (p *planner) endReturned(r *request) {
	p.count.returned++
	p.returned.remember(r)
	before := len(p.events)
	p.endRequest(r, pb.FinishReason_FINISH_REASON_ABORT, "given back: preempted, and no room since")
	for i := before; i < len(p.events); i++ {
		p.events[i].Returned = true
	}
}
