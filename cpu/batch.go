package cpu

import (
	"fmt"

	"github.com/quire-serve/quire/device"
)

// checkBatch reports what is wrong with b, in terms of its fields. A wrong batch is the engine's
// error, and memory outside the buffers would be the price of not looking. previous is the number of
// samples of the submission before.
func (p *plan) checkBatch(b *device.Batch, kv device.KVLayout, previous int) error {
	rows := len(b.Tokens)
	switch {
	case rows < 1 || rows > p.limits.Rows:
		return fmt.Errorf("cpu: batch: %d rows, want 1 to %d", rows, p.limits.Rows)
	case len(b.Positions) != rows:
		return fmt.Errorf("cpu: batch: %d positions for %d rows", len(b.Positions), rows)
	case len(b.Seqs) > p.limits.Sequences:
		return fmt.Errorf("cpu: batch: %d sequences, at most %d", len(b.Seqs), p.limits.Sequences)
	case len(b.Samples) > p.limits.Samples:
		return fmt.Errorf("cpu: batch: %d samples, at most %d", len(b.Samples), p.limits.Samples)
	}
	for i, t := range b.Tokens {
		if t < 0 && int(^t) >= previous {
			return fmt.Errorf("cpu: batch: row %d refers to sample %d of %d", i, ^t, previous)
		}
		if p.embedRows > 0 && t >= p.embedRows {
			return fmt.Errorf("cpu: batch: row %d has token %d of a vocabulary of %d", i, t, p.embedRows)
		}
	}
	next := int32(0)
	for i := range b.Seqs {
		if err := p.checkSeq(b, kv, i, next); err != nil {
			return err
		}
		next += b.Seqs[i].Rows
	}
	if int(next) != rows {
		return fmt.Errorf("cpu: batch: the sequences cover %d of %d rows", next, rows)
	}
	for i, c := range b.Copies {
		if c.Group < 0 || int(c.Group) >= kv.Groups() {
			return fmt.Errorf("cpu: batch: copy %d in group %d of %d", i, c.Group, kv.Groups())
		}
		if g := kv.Group(int(c.Group)); !pageOf(g, c.From) || !pageOf(g, c.To) {
			return fmt.Errorf("cpu: batch: copy %d from page %d to %d of %d", i, c.From, c.To, g.Pages)
		}
	}
	last := int32(0)
	for i := range b.Samples {
		if row := b.Samples[i].Row; row < last || int(row) >= rows {
			return fmt.Errorf("cpu: batch: sample %d of row %d after row %d of %d", i, row, last, rows)
		}
		last = b.Samples[i].Row
		if err := p.checkSample(b, i); err != nil {
			return err
		}
	}
	return nil
}

func pageOf(kv device.KVLayout, page int32) bool { return page >= 0 && int(page) < kv.Pages }

// checkSeq checks sequence i, which must start at row next.
func (p *plan) checkSeq(b *device.Batch, kv device.KVLayout, i int, next int32) error {
	s := b.Seqs[i]
	if s.Row != next || s.Rows < 1 || int(s.Row)+int(s.Rows) > len(b.Tokens) {
		return fmt.Errorf("cpu: batch: sequence %d has %d rows from row %d, want it to start at row %d of %d", i, s.Rows, s.Row, next, len(b.Tokens))
	}
	first := s.Context - s.Rows
	if first < 0 || p.maxPositions > 0 && s.Context > p.maxPositions {
		return fmt.Errorf("cpu: batch: sequence %d has %d rows in a context of %d, at most %d", i, s.Rows, s.Context, p.maxPositions)
	}
	for r := range s.Rows {
		if b.Positions[s.Row+r] != first+r {
			return fmt.Errorf("cpu: batch: row %d has position %d, want %d", s.Row+r, b.Positions[s.Row+r], first+r)
		}
	}
	if err := p.checkTable(b, kv.Group(0), i, s.Table, p.windows[0]); err != nil || kv.Groups() == 1 {
		return err
	}
	return p.checkTable(b, kv.Group(1), i, s.WindowTable, p.windows[1])
}

// checkTable checks the page table of sequence i in one group, whose layers all see window tokens at
// most, 0 for all.
func (p *plan) checkTable(b *device.Batch, kv device.KVLayout, i int, table, window int32) error {
	s := &b.Seqs[i]
	blocks := (int(s.Context) + kv.BlockTokens - 1) / kv.BlockTokens
	if table < 0 || int(table)+blocks > len(b.Tables) {
		return fmt.Errorf("cpu: batch: sequence %d needs %d pages from entry %d of %d", i, blocks, table, len(b.Tables))
	}
	behind := 0 // pages that no row sees
	if window > 0 {
		behind = int(max(0, s.Context-s.Rows-window+1)) / kv.BlockTokens
	}
	for _, page := range b.Tables[table:][behind:blocks] {
		if !pageOf(kv, page) {
			return fmt.Errorf("cpu: batch: sequence %d has page %d of %d", i, page, kv.Pages)
		}
	}
	return nil
}

// checkSample checks that sample i points into the batch and has numbers in range.
func (p *plan) checkSample(b *device.Batch, i int) error {
	s := &b.Samples[i]
	if s.Score >= p.vocab {
		return fmt.Errorf("cpu: batch: sample %d scores token %d of %d", i, s.Score, p.vocab)
	}
	if s.Logprobs > p.vocab || s.Logprobs < -1 {
		return fmt.Errorf("cpu: batch: sample %d wants %d log-probabilities of %d", i, s.Logprobs, p.vocab)
	}
	if !(s.Temperature >= 0) || !(s.TopP >= 0) || !(s.MinP >= 0) || s.TopK < 0 || !(s.RepetitionPenalty >= 0) {
		return fmt.Errorf("cpu: batch: sample %d: temperature %v, top-p %v, min-p %v, top-k %d, repetition penalty %v: want none below 0",
			i, s.Temperature, s.TopP, s.MinP, s.TopK, s.RepetitionPenalty)
	}
	if s.HistoryStart < 0 || s.HistoryPrompt < s.HistoryStart || s.HistoryEnd < s.HistoryPrompt || int(s.HistoryEnd) > len(b.History) {
		return fmt.Errorf("cpu: batch: sample %d: history %d, %d, %d of %d", i, s.HistoryStart, s.HistoryPrompt, s.HistoryEnd, len(b.History))
	}
	history := b.History[s.HistoryStart:s.HistoryEnd]
	if !penalised(s) {
		history = nil
	}
	for _, t := range history {
		if t < 0 || t >= p.vocab {
			return fmt.Errorf("cpu: batch: sample %d: token %d in the history, vocabulary %d", i, t, p.vocab)
		}
	}
	if s.BiasStart < 0 || s.BiasEnd < s.BiasStart || int(s.BiasEnd) > len(b.Bias) {
		return fmt.Errorf("cpu: batch: sample %d: biases %d to %d of %d", i, s.BiasStart, s.BiasEnd, len(b.Bias))
	}
	for _, t := range b.Bias[s.BiasStart:s.BiasEnd] {
		if t.Token < 0 || t.Token >= p.vocab {
			return fmt.Errorf("cpu: batch: sample %d: bias for token %d of %d", i, t.Token, p.vocab)
		}
	}
	words := (int(p.vocab) + 31) / 32
	if s.Mask < -1 || s.Mask >= 0 && int(s.Mask+1)*words > len(b.Masks) {
		return fmt.Errorf("cpu: batch: sample %d: mask %d of %d words", i, s.Mask, len(b.Masks))
	}
	return nil
}
