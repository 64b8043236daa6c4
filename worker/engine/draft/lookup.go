package draft

const (
	// MaxPerSequence bounds the drafts of a sequence in a step.
	MaxPerSequence = 16
	// leastOdds is how likely a draft must be right where rows are free.
	leastOdds = 0.2
)

// Lookup guesses a sequence's next tokens: what followed where its newest tokens stood before. As in
// LZ77, pairs of tokens with the same hash are chained from the newest to the oldest.
//
// The rule is put to the test by every token that comes, drafted or not. How often it was right, by how
// many tokens matched, is what its next guess is worth: so a text that begins to repeat itself is
// noticed at the cost of a look into the table a token, and no row is spent on one that does not.
type Lookup struct {
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

func (r *Lookup) slot(a, b int32) uint32 {
	h := (uint64(uint32(a))<<32 | uint64(uint32(b))) * 0x9E3779B97F4A7C15
	return uint32(h>>40) & uint32(len(r.head)-1)
}

// Learn takes in the tokens that are new since the last call, and tests the rule on those that were
// generated.
func (r *Lookup) Learn(tokens []int32, prompt int) {
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
func (r *Lookup) find(tokens []int32) {
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
func (r *Lookup) propose(dst, tokens []int32, skip, n int) []int32 {
	if r.at < 0 {
		return dst
	}
	period := len(tokens) - 1 - r.at
	for i := skip; i < skip+n; i++ {
		dst = append(dst, tokens[r.at+1+i%period])
	}
	return dst
}

// Chance goes through the proposed tokens and says how likely each and all before it are right.
func (r *Lookup) Chance(skip int) Chance {
	c := Chance{lookup: r, matched: r.matched, odds: 1}
	for range skip {
		c.Next()
	}
	return c
}

// Chance says of one proposed token after the other how likely it is right.
type Chance struct {
	lookup  *Lookup
	matched int
	odds    float32
}

// Next is how likely the next token and all before it are right.
func (c *Chance) Next() float32 {
	c.odds *= c.lookup.odds[matchClass(c.matched)]
	c.matched++
	return c.odds
}

// Guess appends to dst, which is empty, the drafts behind the first skip, at most n, that are likely enough to be right, and
// counts them in l.
func (r *Lookup) Guess(dst, tokens []int32, skip, n int, l *Ladder) []int32 {
	if dst = r.propose(dst, tokens, skip, n); len(dst) == 0 {
		return dst
	}
	chance := r.Chance(skip)
	for i := range dst {
		odds := chance.Next()
		if odds < leastOdds {
			return dst[:i]
		}
		l.add(odds)
	}
	return dst
}

// Suppose takes it that every guess is right, until tokens say otherwise: for who knows better than to
// count, as tests do.
func (r *Lookup) Suppose() {
	for i := range r.odds {
		r.odds[i] = 1
	}
}
