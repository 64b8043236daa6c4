package engine

// Speculation by prompt lookup: text that repeats itself is guessed from the sequence's own tokens
// and verified in one step. A sequence that decodes gets rows for its guesses (drafts) behind its
// own row, and a draw for each. The draws are keyed by seed and position like all others; a draft is
// right if it is what the row before it drew, and the draws count up to the first one behind a wrong
// draft. So the output is the same with and without, at any temperature.
//
// A step has the drafts that give the most tokens in the least time: how likely each is right is known
// from how often the same rule was right about the sequence's tokens so far, whether they were drafted
// or not (lookup), and what rows cost is measured (draftCosts). Only how tokens share steps depends on
// either.
//
// Drafts never reach sequence.tokens or sequence.computed before they are verified: nothing that is
// published, hashed or sent can hold one, and taking back the wrong ones is giving back their blocks.
// Nothing is planned behind a step with drafts: what would run there is only the rest of the batch, and
// from then on the two parts would take turns, each at half the rate.

// maxSpeculate bounds Settings.Speculate.
const maxSpeculate = 16

// leastOdds is how likely a draft must be right where rows are free.
const leastOdds = 0.2

// draftRows bounds the drafts of a step.
func (s Settings) draftRows() int {
	if s.Speculate == 0 {
		return 0
	}
	return min(s.Speculate*s.MaxSequences, maxDraftRows)
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
	curve, known := p.drafts.curve(len(st.seqs))
	if !known || !curve.pays(most) {
		return 0
	}
	var odds ladder
	for _, s := range st.seqs {
		p.guess(s, &odds)
	}
	last, rest := curve.choose(&odds, most)
	for _, s := range st.seqs {
		if len(s.drafts) == 0 {
			continue
		}
		n := 0
		for chance := s.lookup.chance(s.computed - len(s.tokens)); n < len(s.drafts); n++ {
			level := oddsLevel(chance.next())
			if level < last || level == last && rest == 0 {
				break
			}
			if level == last {
				rest--
			}
		}
		s.drafts = s.drafts[:n]
		p.place(st, s)
	}
	return st.drafts
}

// guess finds drafts for s and counts them by how likely they are right.
func (p *planner) guess(s *sequence, odds *ladder) {
	k := min(p.Speculate, s.limit-s.computed-1)
	unknown := s.computed - len(s.tokens) // a draw that has not come back
	switch {
	case k <= 0 || s.start < s.prompt:
		return
	case (s.penalised || s.recalls()) && unknown > 0:
		return // the drafts' history would lack it
	}
	s.lookup.learn(s.tokens, s.prompt)
	s.drafts = s.lookup.propose(s.drafts[:0], s.tokens, unknown, k)
	if len(s.drafts) == 0 {
		return
	}
	chance := s.lookup.chance(unknown)
	for i := range s.drafts {
		c := chance.next()
		if c < leastOdds {
			s.drafts = s.drafts[:i]
			return
		}
		odds.add(c)
	}
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

// lookup guesses a sequence's next tokens: what followed where its newest tokens stood before. As in
// LZ77, pairs of tokens with the same hash are chained from the newest to the oldest.
//
// The rule is put to the test by every token that comes, drafted or not. How often it was right, by how
// many tokens matched, is what its next guess is worth: so a text that begins to repeat itself is
// noticed at the cost of a look into the table a token, and no row is spent on one that does not.
type lookup struct {
	head []int32 // by hash: end of the newest pair plus one, 0 none; a power of two long
	prev []int32 // by position: end of the next older pair plus one

	at      int // where the newest tokens stood before: the last of them; -1 nowhere
	matched int // how many of them
	odds    [matchClasses]float32
}

const (
	minHeads   = 256
	maxChain   = 16 // pairs looked at
	maxMatched = 8  // tokens compared; longer matches are not told apart
	// maxReplay is how many tokens the rule is tested on at once.
	maxReplay = 64
	// oddsDecay is the weight of the newest guess.
	oddsDecay = 0.125

	matchClasses = 4
)

// firstOdds are what guesses of a new sequence are worth.
var firstOdds = [matchClasses]float32{0.5, 0.6, 0.75, 0.9}

// matchClass tells matches of 2 tokens and more apart.
func matchClass(matched int) int {
	switch {
	case matched <= 3:
		return matched - 2
	case matched < maxMatched:
		return 2
	}
	return 3
}

func (r *lookup) slot(a, b int32) uint32 {
	h := (uint64(uint32(a))<<32 | uint64(uint32(b))) * 0x9E3779B97F4A7C15
	return uint32(h>>40) & uint32(len(r.head)-1)
}

// learn takes in the tokens that are new since the last call, and tests the rule on those that were
// generated.
func (r *lookup) learn(tokens []int32, prompt int) {
	known := len(r.prev)
	if known == 0 {
		r.odds, r.at = firstOdds, -1
	}
	if len(tokens) > len(r.head) {
		n := max(minHeads, len(r.head))
		for n < len(tokens) {
			n *= 2
		}
		r.head, r.prev = make([]int32, n), append(make([]int32, 0, n), 0)
	}
	from := max(prompt, len(tokens)-maxReplay)
	for i := len(r.prev); i < len(tokens); i++ {
		if i >= known && r.at >= 0 {
			right := float32(0)
			if tokens[r.at+1] == tokens[i] {
				right = 1
			}
			o := &r.odds[matchClass(r.matched)]
			*o += oddsDecay * (right - *o)
		}
		h := r.slot(tokens[i-1], tokens[i])
		r.prev = append(r.prev, r.head[h])
		r.head[h] = int32(i + 1)
		if i < known {
			continue // the table has grown
		}
		r.at = -1
		if i+1 >= from {
			r.find(tokens[:i+1])
		}
	}
}

// find looks for the longest, then newest, earlier occurrence of the end of tokens.
func (r *lookup) find(tokens []int32) {
	last := len(tokens) - 1
	r.matched = 1
	c := int(r.prev[last]) - 1
	for range maxChain {
		if c < 0 {
			break
		}
		k := 0
		for k < maxMatched && k <= c && tokens[c-k] == tokens[last-k] {
			k++
		}
		if k > r.matched {
			r.matched, r.at = k, c
		}
		c = int(r.prev[c]) - 1
	}
}

// propose appends to dst what followed the occurrence that was found of the end of tokens: at most n
// tokens behind the first skip. Where that runs into the end it goes round.
func (r *lookup) propose(dst, tokens []int32, skip, n int) []int32 {
	if r.at < 0 {
		return dst
	}
	period := len(tokens) - 1 - r.at
	for i := skip; i < skip+n; i++ {
		dst = append(dst, tokens[r.at+1+i%period])
	}
	return dst
}

// chance goes through the proposed tokens and says how likely each and all before it are right.
func (r *lookup) chance(skip int) chance {
	c := chance{lookup: r, matched: r.matched, odds: 1}
	for range skip {
		c.next()
	}
	return c
}

type chance struct {
	*lookup
	matched int
	odds    float32
}

func (c *chance) next() float32 {
	c.odds *= c.lookup.odds[matchClass(c.matched)]
	c.matched++
	return c.odds
}
