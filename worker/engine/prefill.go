package engine

import "github.com/quire-serve/quire/worker/engine/pace"

// Prompts are computed beside decodes at the pace that streams can bear; see package pace.

// allowPrompts returns how many of at most budget rows the step may give to prompts beside its decodes.
func (p *planner) allowPrompts(st *step, decodes, budget int) int {
	return p.pace.Allow(&st.pace, decodes, p.demand(), budget, p.inFlight())
}

// demand is what the prompts that are being computed, and those that could be, ask for.
func (p *planner) demand() (d pace.Demand) {
	add := func(s *sequence, tokens int) {
		d.Requests++
		d.Credit += s.credits
		d.Tokens += tokens
	}
	for _, s := range p.running {
		if w := s.want(); w > 1 {
			add(s, w)
		}
	}
	room := 0
	if p.hold == holdNothing && p.pool.Free() > p.misfit {
		room = p.slots()
	}
	for _, s := range p.waiting[:max(0, min(len(p.waiting), room))] {
		add(s, len(s.tokens))
	}
	return d
}

// schedulePrompts shares budget among the prefills that run, and returns what is left for newcomers. They
// get it in their order, but who lags behind an equal part, counting those who could start, gets what it
// lacks whatever those before it may take.
func (p *planner) schedulePrompts(st *step, budget int) (left int) {
	part := (budget + max(st.pace.Parts, 1) - 1) / max(st.pace.Parts, 1)
	kept, behind := 0, st.pace.Parts
	for _, s := range p.running {
		if s.rows == 0 && s.want() > 1 {
			kept += min(s.want(), s.lag)
		}
	}
	for _, s := range p.running {
		want := s.want()
		if s.rows > 0 || want <= 1 {
			continue
		}
		behind--
		kept -= min(want, s.lag)
		n := max(p.chunk(s, want, st.pace.Portion(s.credits, want, budget, behind)), p.chunk(s, min(want, s.lag), budget))
		n = p.cover(s, min(n, max(part, budget-kept)))
		if s.lag = min(max(0, s.lag+part-n), p.MaxBatchTokens); n > 0 {
			p.schedule(st, s, n)
			budget -= n
		}
	}
	return budget
}

// chunk is how many of the rows that s wants it gets.
func (p *planner) chunk(s *sequence, want, budget int) int {
	n := min(want, budget)
	if p.PrefillChunk > 0 {
		n = min(n, p.PrefillChunk)
	}
	if s.scoring() {
		// Each row from the one that predicts the first unscored token on needs a sample.
		n = min(n, max(s.computed, s.scored-1)-s.computed+p.scoreRows)
	}
	return n
}

// chargePrompts notes what the planned step spends on prompts.
func (p *planner) chargePrompts(st *step) {
	for _, s := range st.seqs {
		if n := s.rows - len(s.drafts); n > 1 || s.computed <= s.prompt {
			s.credits = p.pace.Take(&st.pace, n, s.credits, s.want() > 0)
		}
	}
	p.pace.Plan(&st.pace, p.now)
}
