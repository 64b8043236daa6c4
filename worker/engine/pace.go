package engine

import "math/bits"

// Streams keep their pace beside prompts. A step that also computes prompt tokens takes longer than
// one that only decodes, and every stream waits for it. So a step with decodes carries only as many
// prompt tokens as there is device time for:
//
//   - For each decoding step, prompts may take (1-share)/share of what the step takes without them, so
//     that the streams keep Settings.DecodeShare of the rate that they have alone. Where more requests
//     wait for their first token than stream, prompts may take more: one that waits counts as much as
//     one that streams.
//
//   - Each request brings a credit, within which its prompt is computed at once: short prompts are not
//     held up to protect streams from a pause that nobody sees. A long one pays it back.
//
//   - However many short prompts come with their credits, each prompt gets an equal part of a step's prompt
//     tokens at least, so that a long one is done in about the time that an equal share of the device takes.
//
// Time is measured, not assumed: what a step of so many decodes takes, from those without prompts, and
// what so many prompt tokens add, from those with. What a step took beyond its allowance is owed by the
// next ones, so that the share holds whatever the device's costs look like.
//
// How many prompt tokens go into a step is up to what they cost there. On a device that waits for
// memory the first are free and then each costs the same; deep in a long prompt each chunk reads all
// that comes before it, and few large chunks are cheaper than many small ones; on a CPU all are alike.
// So the size is sought that adds the least time a token, the smallest of about equals, and steps
// without prompts save the time up for it, within a bound on the pause.
//
// Only how prompts are cut into steps depends on it, and that changes no token.
type pace struct {
	solo   [64]measured         // a step without prompts, by paceBucket of its decodes
	chunks [chunkSizes]measured // what a chunk adds, by chunkBucket
	// row is what a prompt's token took last.
	row float64
	// balance is the time that prompts may still take, microseconds, negative if they took too much.
	balance float64
	// accepted is when the newest step came back.
	accepted int64
	step     uint64 // being planned
}

// measured is a time in microseconds and the step in which it was last measured, 0 for never.
type measured struct {
	us   float64
	step uint64
}

func (m *measured) add(us float64, step uint64) {
	if m.step == 0 {
		m.us = us
	}
	m.us += 0.4 * (us - m.us)
	m.step = step
}

const (
	// promptCredit is the device time that each request brings for its prompt.
	promptCredit = 100_000 // µs
	// promptShare is how much of what the share leaves to prompts is given to them. Steps between chunks,
	// from which a step's own time is learned, are some percent slower than steps of streams alone (caches,
	// clock rates), so that with all of it streams on a CPU came out at 0.795 to 0.81 of their rate for 0.8.
	promptShare = 0.9
	// A step's prompts take at most so much, and so many times what it takes alone; or the least chunk.
	maxPause, maxPauseSteps = 50_000 /* µs */, 4
	// minBalance is what prompts may owe.
	minBalance = -1_000_000 // µs
	// soloSteps is for how many steps a measurement without prompts counts while prompts are computed.
	soloSteps = 64
	// chunkSteps is for how many steps a chunk's measurement counts.
	chunkSteps = 256
	// Chunks are told apart by half octaves, from leastChunk on.
	leastChunk, chunkSizes = 16, 25
	// alike is how much more a token than in the best chunk is still as good.
	alike = 1.15
	// longPrompt is the number of steps from which on a prompt leaves room for those behind it where
	// nothing decodes.
	longPrompt = 4
)

// chunkRows is the size of a chunk, by bucket.
func chunkRows(bucket int) int {
	n := leastChunk << (bucket / 2)
	return n + bucket%2*n/2
}

// chunkBucket is the bucket of the largest chunk of at most n rows.
func chunkBucket(n int) int {
	if n <= leastChunk {
		return 0
	}
	b := 2 * (bits.Len(uint(n/leastChunk)) - 1)
	if b+1 < chunkSizes && chunkRows(b+1) <= n {
		b++
	}
	return min(b, chunkSizes-1)
}

// paceBucket tells numbers of decodes apart as far as their steps differ: exactly up to 8, then by
// quarters of an octave.
func paceBucket(decodes int) int {
	if decodes < 8 {
		return decodes
	}
	n := bits.Len(uint(decodes)) // 4 and up
	return min(8+4*(n-4)+(decodes>>(n-3))&3, 63)
}

// chunk is what a chunk is expected to add, from what is known of the next smaller one or else of the
// next larger: in proportion, so that what is not known looks as good as what is, and is tried. What
// was measured long ago is not known any more.
func (t *pace) chunk(bucket int) float64 {
	rows := float64(chunkRows(bucket))
	for b := bucket; b >= 0; b-- {
		if t.fresh(b) {
			return t.chunks[b].us * rows / float64(chunkRows(b))
		}
	}
	for b := bucket + 1; b < chunkSizes; b++ {
		if t.fresh(b) {
			return t.chunks[b].us * rows / float64(chunkRows(b))
		}
	}
	return t.row * rows
}

func (t *pace) fresh(bucket int) bool {
	at := t.chunks[bucket].step
	return at > 0 && t.step <= at+chunkSteps
}

// pick chooses a chunk of at most most rows for which there is time, 0 rows if it is better to save.
func (t *pace) pick(time, pause float64, most int) (rows int, cost float64) {
	last := chunkBucket(most)
	best := 0
	for b := 1; b <= last; b++ {
		if c := t.chunk(b); c <= pause && alike*c*float64(chunkRows(best)) < t.chunk(best)*float64(chunkRows(b)) {
			best = b
		}
	}
	if t.chunk(best) > time {
		return 0, 0
	}
	// Time that is left over is not lost.
	for best < last && t.chunk(best+1) <= min(time, pause) {
		best++
	}
	rows = min(chunkRows(best), most)
	return rows, t.chunk(best) * min(1, float64(rows)/float64(chunkRows(best)))
}

// allowPrompts returns how many of at most budget rows the step may give to prompts beside its decodes.
func (p *planner) allowPrompts(st *step, decodes, budget int) int {
	st.decodes = decodes
	waiting, credit, tokens := p.prompts()
	st.parts, st.all, st.common = waiting, budget, budget
	if decodes == 0 || p.DecodeShare < 0 || waiting == 0 || budget == 0 {
		return budget
	}
	t := &p.pace
	t.step = st.number
	alone := &t.solo[paceBucket(decodes)]
	if alone.step == 0 || st.number > alone.step+soloSteps {
		return 0 // this step is measured
	}
	st.alone = alone.us
	st.grant = alone.us * max(promptShare*(1/p.DecodeShare-1), float64(waiting-1)/float64(decodes))
	st.pause = max(maxPause, maxPauseSteps*alone.us, t.chunk(0))
	// The steps in flight have their grants too.
	time := min(t.balance+st.grant*float64(1+p.inFlight())+credit, st.pause)
	rows, cost := t.pick(time, st.pause, min(budget, tokens))
	if rows == 0 {
		return 0
	}
	st.row, st.all = cost/float64(rows), rows
	if st.row > 0 {
		st.common = int(max(0, float64(rows)-credit/st.row))
	}
	return rows
}

// portion is how many of the rows that s wants for its prompt it gets, with others behind it: a long
// prompt does not make short ones wait for its end. Nor do these, whose credits make the step's rows what
// they are, leave it with less than its part of all rows.
func (p *planner) portion(st *step, s *sequence, want, budget, behind int) int {
	fair := budget
	switch {
	case behind <= 0:
	case st.alone > 0:
		fair = (st.all + st.parts - 1) / st.parts
		if st.row > 0 {
			fair += int(min(s.credits/st.row, float64(budget)))
		}
	case want > longPrompt*budget:
		fair = (budget + 1) / 2
	}
	return p.chunk(s, want, min(budget, max(fair, 1)))
}

// prompts counts the requests of which a prompt is being computed or could be, what is left of their
// credits, and their tokens.
func (p *planner) prompts() (n int, credit float64, tokens int) {
	for _, s := range p.running {
		if w := s.want(); w > 1 {
			n++
			credit += s.credits
			tokens += w
		}
	}
	room := 0
	if p.hold == holdNothing && p.pool.Free() > p.misfit {
		room = p.slots()
	}
	for _, s := range p.waiting[:max(0, min(len(p.waiting), room))] {
		n++
		credit += s.credits
		tokens += len(s.tokens)
	}
	return n, credit, tokens
}

// chargePrompts notes what the planned step spends on prompts. What is taken beyond the rows that are for
// all was lent by those who have credit: it costs the streams nothing that their credits would not have.
func (p *planner) chargePrompts(st *step) {
	st.planned = p.now
	rest := 0.0
	for _, s := range st.seqs {
		n := s.rows - len(s.drafts)
		if n == 1 && s.computed > s.prompt {
			continue
		}
		st.prompts += n
		if st.decodes > 0 {
			cost := float64(n) * st.row
			own := min(cost, s.credits)
			st.charged += cost
			rest += cost - own
			if s.credits -= own; own > 0 && s.credits <= 0 && s.want() > 0 {
				p.pace.balance -= promptCredit // it is long: what it had was lent
			}
		}
	}
	p.pace.balance -= min(rest, float64(st.common)*st.row)
}

// measure learns from what the step took, now that it is back.
func (p *planner) measure(st *step, now int64) {
	if p.DecodeShare < 0 {
		return
	}
	t := &p.pace
	took := float64(now - max(st.planned, t.accepted))
	t.accepted = now
	switch {
	case st.decodes == 0:
		if st.prompts > 0 {
			t.row = took / float64(st.prompts)
		}
		return
	case st.prompts == 0:
		alone := &t.solo[paceBucket(st.decodes)]
		if alone.step > 0 && took > alone.us {
			took = min(took, 1.5*alone.us) // one hiccup of the machine says little
		}
		alone.add(took, st.number)
		t.balance += st.grant
	case st.alone > 0:
		extra := max(took-st.alone, 0)
		if st.prompts >= leastChunk {
			b := chunkBucket(st.prompts)
			t.row = extra / float64(st.prompts)
			t.chunks[b].add(extra*float64(chunkRows(b))/float64(st.prompts), st.number)
		}
		t.balance += st.grant + st.charged - extra
	}
	t.balance = min(max(t.balance, minBalance), max(maxPause, st.pause))
	if st.parts == 0 {
		t.balance = min(t.balance, 0) // nobody saves for prompts to come
	}
}
