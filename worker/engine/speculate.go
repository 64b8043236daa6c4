package engine

// Speculation by prompt lookup: text that repeats itself is guessed from the sequence's own tokens
// and verified in one step. A sequence that decodes gets rows for its guesses (drafts) behind its
// own row, and a draw for each. The draws are keyed by seed and position like all others; a draft is
// right if it is what the row before it drew, and the draws count up to the first one behind a wrong
// draft. So the output is the same with and without, at any temperature.
//
// Drafts never reach sequence.tokens or sequence.computed before they are verified: nothing that is
// published, hashed or sent can hold one, and taking back the wrong ones is giving back their blocks.
// Until its drafts are verified a sequence has no next row; the others go on overlapping.

// maxSpeculate bounds Settings.Speculate.
const maxSpeculate = 16

// A drafting step costs the sequence its overlap with the next one, so it must bring more than one
// extra token on average to be worth it. A sequence starts with some credit, each drafting step adds
// what it brought less one, and who runs out of credit drafts nothing for a while.
const (
	initialCredit = 2
	maxCredit     = 4
	coolDown      = 32 // tokens without drafts
)

// draftRows bounds the drafts of a step.
func (s Settings) draftRows() int {
	if s.Speculate == 0 {
		return 0
	}
	return max(s.Speculate, s.MaxSequences)
}

// speculate adds drafts to the decodes that are scheduled, within budget, and returns how many rows
// they take. They preempt nobody, and take no block while anyone waits for blocks.
func (p *planner) speculate(st *step, budget int) (rows int) {
	budget = min(budget, p.draftRows())
	for _, s := range st.seqs {
		k := min(p.Speculate, budget-rows, s.limit-s.computed-1)
		unknown := s.computed - len(s.tokens) // a draw that has not come back
		switch {
		case k <= 0 || s.start < s.prompt || len(s.tokens) < s.quiet:
			continue
		case s.penalised && unknown > 0:
			continue // the drafts' history would lack it
		}
		s.repeats.add(s.tokens)
		s.drafts = s.repeats.propose(s.drafts[:0], s.tokens, unknown, k)
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
		rows += len(s.drafts)
	}
	return rows
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
	s.credit = min(s.credit+s.agreed-1, maxCredit)
	s.drafts, s.agreed = s.drafts[:0], 0
	if s.credit < 0 {
		s.credit, s.quiet = 0, len(s.tokens)+coolDown
	}
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
		var mask []uint32
		if s.constrained() {
			mask = s.masks[i-1]
		}
		x := p.sample(s, row+i, s.computed+i, mask)
		if s.penalised {
			x.HistoryStart, x.HistoryPrompt, x.HistoryEnd = from, prompt, to+int32(i)
		}
		b.Samples = append(b.Samples, x)
		st.draws = append(st.draws, draw{seq: s, draft: i})
	}
}

// repeats finds where a sequence's newest tokens stood before. As in LZ77, pairs of tokens with the
// same hash are chained from the newest to the oldest.
type repeats struct {
	head []int32 // by hash: end of the newest pair plus one, 0 none; a power of two long
	prev []int32 // by position: end of the next older pair plus one
}

const (
	minHeads   = 256
	maxChain   = 16 // pairs looked at
	maxMatched = 8  // tokens compared; longer matches are not told apart
)

func (r *repeats) slot(a, b int32) uint32 {
	h := (uint64(uint32(a))<<32 | uint64(uint32(b))) * 0x9E3779B97F4A7C15
	return uint32(h>>40) & uint32(len(r.head)-1)
}

// add learns the tokens that are new since the last call.
func (r *repeats) add(tokens []int32) {
	if len(tokens) > len(r.head) {
		n := max(minHeads, len(r.head))
		for n < len(tokens) {
			n *= 2
		}
		r.head, r.prev = make([]int32, n), append(make([]int32, 0, n), 0)
	}
	for i := len(r.prev); i < len(tokens); i++ {
		h := r.slot(tokens[i-1], tokens[i])
		r.prev = append(r.prev, r.head[h])
		r.head[h] = int32(i + 1)
	}
}

// propose appends to dst what followed the longest, then newest, earlier occurrence of the end of
// tokens: at most n tokens behind the first skip. Where that runs into the end it goes round.
func (r *repeats) propose(dst, tokens []int32, skip, n int) []int32 {
	last := len(tokens) - 1
	best, at := 1, -1
	c := int(r.prev[last]) - 1
	for range maxChain {
		if c < 0 {
			break
		}
		k := 0
		for k < maxMatched && k <= c && tokens[c-k] == tokens[last-k] {
			k++
		}
		if k > best {
			best, at = k, c
		}
		c = int(r.prev[c]) - 1
	}
	if at < 0 {
		return dst
	}
	period := last - at
	for i := skip; i < skip+n; i++ {
		dst = append(dst, tokens[at+1+i%period])
	}
	return dst
}
