package engine

import (
	"slices"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/kvcache"
)

// build lays the scheduled rows out as the arrays of p.batch, which are reused.
func (p *planner) build(st *step) {
	b := &p.batch
	b.Tokens, b.Positions, b.Seqs, b.Tables = b.Tokens[:0], b.Positions[:0], b.Seqs[:0], b.Tables[:0]
	b.Samples, b.History, b.Bias, b.Masks = b.Samples[:0], b.History[:0], b.Bias[:0], b.Masks[:0]
	b.Copies = b.Copies[:0]
	for _, c := range p.copies {
		b.Copies = append(b.Copies, device.PageCopy{From: int32(c.From), To: int32(c.To), Group: int32(c.Group)})
	}
	clear(p.copiers)
	p.copies, p.copiers = p.copies[:0], p.copiers[:0]
	if st.own {
		p.buildOwn(st)
	}
	for _, s := range st.seqs {
		row := len(b.Tokens)
		context := s.computed + len(s.drafts)
		seq := device.Seq{Row: int32(row), Rows: int32(s.rows), Context: int32(context)}
		blocks := (context + p.BlockTokens - 1) / p.BlockTokens
		seq.Table = addTable(b, s.kv.Table()[:blocks])
		if w := s.kv.Windowed(); w != nil {
			seq.WindowTable = addTable(b, w[:blocks])
		}
		b.Seqs = append(b.Seqs, seq)
		known := min(s.computed, len(s.tokens))
		if s.start < known {
			b.Tokens = append(b.Tokens, s.tokens[s.start:known]...)
		}
		if known < s.computed {
			b.Tokens = append(b.Tokens, ^s.source)
		}
		b.Tokens = append(b.Tokens, s.drafts...)
		for q := s.start; q < s.computed+len(s.drafts); q++ {
			b.Positions = append(b.Positions, int32(q))
		}
		if s.scoring() {
			from, to := s.targets()
			for q := from; q < to; q++ {
				logprobs := s.sample.Logprobs
				if q < s.prompt {
					logprobs = s.score
				}
				b.Samples = append(b.Samples, device.Sample{
					Row: int32(row + q - 1 - s.start), Score: s.tokens[q], TopP: 1, RepetitionPenalty: 1, Mask: -1,
					Position: int32(q), Logprobs: logprobs,
				})
				st.draws = append(st.draws, draw{seq: s, score: true, logprobs: logprobs})
			}
			s.scored = to
		}
		if s.computed == len(s.tokens)+s.pending {
			last := row + s.rows - len(s.drafts) - 1
			p.draw(st, s, last)
			p.drawDrafts(st, s, last)
			if s.choice == 0 && len(s.choices) > 1 && s.computed == s.prompt {
				for _, c := range s.choices[1:] {
					if c.state == stateForking {
						p.draw(st, c, last)
					}
				}
			}
		}
	}
}

// addTable copies a block table into b and returns where it lies. Tables are most of a batch: an append
// an entry would be most of the step's planning.
func addTable(b *device.Batch, table []kvcache.BlockID) int32 {
	at := len(b.Tables)
	b.Tables = slices.Grow(b.Tables, len(table))[:at+len(table)]
	for i, id := range table {
		b.Tables[at+i] = int32(id)
	}
	return int32(at)
}

// draw appends the sample of s's next token, from row.
func (p *planner) draw(st *step, s *sequence, row int) {
	b := &p.batch
	s.pending++
	x := p.sample(s, row, s.computed, s.mask, nil)
	if s.penalised {
		x.HistoryStart = int32(len(b.History))
		x.HistoryPrompt = x.HistoryStart + int32(s.prompt)
		b.History = append(b.History, s.tokens...)
		x.HistoryEnd = int32(len(b.History))
	}
	s.source = int32(len(b.Samples))
	b.Samples = append(b.Samples, x)
	st.draws = append(st.draws, draw{seq: s, logprobs: x.Logprobs})
}

// sample is how s draws its token at position, behind drafts, among those of mask if it is restricted, but
// for the history.
func (p *planner) sample(s *sequence, row, position int, mask []uint32, drafts []int32) device.Sample {
	b := &p.batch
	x := s.sample
	x.Row = int32(row)
	x.Position = int32(position)
	x.Choice = s.choice
	if len(mask) > 0 {
		at := len(b.Masks)
		x.Mask = int32(at / len(mask))
		b.Masks = append(b.Masks, mask...)
		mask = b.Masks[at:]
		if len(s.bad) > 0 {
			s.forbid(mask, drafts, position-len(s.tokens)-len(drafts))
		}
	}
	bias := s.bias
	if position-s.prompt < s.min && !s.mustEnd(mask) {
		bias = s.early
	}
	if len(bias) > 0 {
		x.BiasStart = int32(len(b.Bias))
		b.Bias = append(b.Bias, bias...)
		x.BiasEnd = int32(len(b.Bias))
	}
	return x
}
