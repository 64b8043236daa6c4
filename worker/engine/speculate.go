package engine

import "github.com/quire-serve/quire/worker/engine/draft"

// Speculation by prompt lookup: text that repeats itself is guessed from the sequence's own tokens
// and verified in one step. A sequence that decodes gets rows for its guesses (drafts) behind its
// own row, and a draw for each. The draws are keyed by seed and position like all others; a draft is
// right if it is what the row before it drew, and the draws count up to the first one behind a wrong
// draft. So the output is the same with and without, at any temperature.
//
// A step has the drafts that give the most tokens in the least time: how likely each is right is known
// from how often the same rule was right about the sequence's tokens so far, whether they were drafted
// or not (draft.Lookup), and what rows cost is measured (draft.Costs). Only how tokens share steps depends on
// either.
//
// Drafts never reach sequence.tokens or sequence.computed before they are verified: nothing that is
// published, hashed or sent can hold one, and taking back the wrong ones is giving back their blocks.
// Nothing is planned behind a step with drafts: what would run there is only the rest of the batch, and
// from then on the two parts would take turns, each at half the rate.

// draftRows bounds the drafts of a step.
func (s Settings) draftRows() int {
	if s.Speculate == 0 {
		return 0
	}
	return min(s.Speculate*s.MaxSequences, draft.MaxPerStep)
}

// guessing reports whether the newest step is in flight with drafts.
func (p *planner) guessing() bool {
	return p.inFlight() > 0 && p.steps[p.number%uint64(len(p.steps))].drafts > 0
}

// speculate adds drafts to the decodes that are scheduled, within budget, and returns how many rows
// they take. They preempt nobody, and take no block while anyone waits for blocks.
func (p *planner) speculate(st *step, budget int) int {
	most := min(budget, p.draftRows())
	if most <= 0 || len(st.seqs) == 0 {
		return 0
	}
	curve, known := p.drafts.Curve(len(st.seqs))
	if !known || !curve.Pays(most) {
		return 0
	}
	var odds draft.Ladder
	for _, s := range st.seqs {
		p.guess(s, &odds)
	}
	choice := curve.Choose(&odds, most)
	for _, s := range st.seqs {
		if len(s.drafts) == 0 {
			continue
		}
		n := 0
		for chance := s.lookup.Chance(s.computed - len(s.tokens)); n < len(s.drafts) && choice.Take(chance.Next()); {
			n++
		}
		s.drafts = s.drafts[:n]
		p.place(st, s)
	}
	return st.drafts
}

// guess finds drafts for s and counts them by how likely they are right.
func (p *planner) guess(s *sequence, odds *draft.Ladder) {
	k := min(p.Speculate, s.limit-s.computed-1)
	unknown := s.computed - len(s.tokens) // a draw that has not come back
	switch {
	case k <= 0 || s.start < s.prompt:
		return
	case (s.penalised || s.recalls()) && unknown > 0:
		return // the drafts' history would lack it
	}
	s.lookup.Learn(s.tokens, s.prompt)
	s.drafts = s.lookup.Guess(s.drafts[:0], s.tokens, unknown, k, odds)
}

// place gives the drafts of s rows, those that its constraint allows and its blocks have room for.
func (p *planner) place(st *step, s *sequence) {
	if s.constrained() {
		s.lawful()
	}
	end := s.computed + len(s.drafts)
	if end > s.room && len(p.waiting) == 0 && s.kv.Grow(end) == nil {
		s.room = s.kv.Room()
	}
	s.drafts = s.drafts[:min(len(s.drafts), s.room-s.computed)]
	s.rows += len(s.drafts)
	st.rows += len(s.drafts)
	st.drafts += len(s.drafts)
}

// agrees reports whether the draw behind draft i (from 1) of s counts: whether all drafts up to i
// are what was drawn.
func (p *planner) agrees(s *sequence, i int) bool {
	if s.agreed != i-1 || s.tokens[len(s.tokens)-1] != s.drafts[i-1] {
		return false
	}
	s.agreed++
	p.count.agreed[i-1]++
	if s.state == stateRunning {
		s.computed++
	}
	return true
}

// settle ends the speculation of s once its step is accepted.
func (p *planner) settle(s *sequence) {
	s.drafts, s.agreed = s.drafts[:0], 0
	if s.state == stateRunning {
		s.kv.Truncate(s.computed)
		s.room = s.kv.Room()
	}
}

// drawDrafts appends the samples behind the drafts of s, whose own row is row.
func (p *planner) drawDrafts(st *step, s *sequence, row int) {
	b := &p.batch
	first := &b.Samples[len(b.Samples)-1]
	from, prompt, to := first.HistoryStart, first.HistoryPrompt, first.HistoryEnd
	if s.penalised {
		b.History = append(b.History, s.drafts...)
	}
	for i := 1; i <= len(s.drafts); i++ {
		mask := s.mask
		if s.constrained() {
			mask = s.masks[i-1]
		}
		x := p.sample(s, row+i, s.computed+i, mask, s.drafts[:i])
		if s.penalised {
			x.HistoryStart, x.HistoryPrompt, x.HistoryEnd = from, prompt, to+int32(i)
		}
		b.Samples = append(b.Samples, x)
		st.draws = append(st.draws, draw{seq: s, draft: i, logprobs: x.Logprobs})
	}
}
