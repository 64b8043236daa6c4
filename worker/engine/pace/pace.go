package pace

import "math/bits"

// Pace holds what was measured of the device, and the time that prompts may still take.
type Pace struct {
	share  float64              // of their rate that streams keep; negative lets prompts take whole steps
	solo   [Buckets]Measured    // a step without prompts, by Bucket of its decodes
	chunks [chunkSizes]Measured // what a chunk adds, by chunkBucket
	// row is what a prompt's token took last.
	row float64
	// balance is the time that prompts may still take, microseconds, negative if they took too much.
	balance float64
	// accepted is when the newest step came back.
	accepted int64
	step     uint64 // being planned
}

// New returns a pace at which streams keep share of their rate beside prompts, above 0 and below 1; a
// negative one lets prompts take whole steps.
func New(share float64) Pace { return Pace{share: share} }

// Measured is a time in microseconds and the step in which it was last measured, 0 for never. The newest
// measurement counts for 0.4 of it.
type Measured struct {
	US   float64
	Step uint64
}

// Add takes in that step took us microseconds.
func (m *Measured) Add(us float64, step uint64) {
	if m.Step == 0 {
		m.US = us
	}
	m.US += 0.4 * (us - m.US)
	m.Step = step
}

const (
	// Credit is the device time that each request brings for its prompt.
	Credit = 100_000 // µs
	// promptShare is how much of what the share leaves to prompts is given to them. Steps between chunks,
	// from which a step's own time is learned, are some percent slower than steps of streams alone (caches,
	// clock rates), so that with all of it streams on a CPU came out at 0.795 to 0.81 of their rate for 0.8.
	promptShare = 0.9
	// MaxPause bounds what a step's prompts take, as does maxPauseSteps times what the step takes alone: the
	// larger counts, or the least chunk if that takes longer.
	MaxPause      = 50_000 // µs
	maxPauseSteps = 4
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

// Buckets is how many numbers of decodes are told apart.
const Buckets = 64

// Bucket tells numbers of decodes apart as far as their steps differ: exactly up to 8, then by quarters of
// an octave.
func Bucket(decodes int) int {
	if decodes < 8 {
		return decodes
	}
	n := bits.Len(uint(decodes)) // 4 and up
	return min(8+4*(n-4)+(decodes>>(n-3))&3, Buckets-1)
}

// chunk is what a chunk is expected to add, from what is known of the next smaller one or else of the
// next larger: in proportion, so that what is not known looks as good as what is, and is tried. What
// was measured long ago is not known any more.
func (t *Pace) chunk(bucket int) float64 {
	rows := float64(chunkRows(bucket))
	for b := bucket; b >= 0; b-- {
		if t.fresh(b) {
			return t.chunks[b].US * rows / float64(chunkRows(b))
		}
	}
	for b := bucket + 1; b < chunkSizes; b++ {
		if t.fresh(b) {
			return t.chunks[b].US * rows / float64(chunkRows(b))
		}
	}
	return t.row * rows
}

func (t *Pace) fresh(bucket int) bool {
	at := t.chunks[bucket].Step
	return at > 0 && t.step <= at+chunkSteps
}

// pick chooses a chunk of at most most rows for which there is time, 0 rows if it is better to save.
func (t *Pace) pick(time, pause float64, most int) (rows int, cost float64) {
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

// Demand is what prompts ask for.
type Demand struct {
	Requests int     // of which a prompt is being computed or could be
	Credit   float64 // what is left of their credits, microseconds
	Tokens   int     // of their prompts, not computed yet
}

// Step is the pace's account of one step, from its plan until it is back.
type Step struct {
	Number  uint64
	Decodes int // sequences that decode
	Prompts int // rows of prompts
	Parts   int // prompts that share its rows

	// Times are in microseconds.
	planned     int64   // when
	all, common int     // the prompts' rows, and how many of them none has credit for
	alone       float64 // what it would take without prompts, 0 unknown
	grant       float64 // what prompts may add
	charged     float64 // what they are expected to add
	owed        float64 // how much of that goes beyond their credits
	row         float64 // what each of their rows is expected to add
	pause       float64 // what they may add at most
}

// Allow returns how many of at most budget rows the step may give to prompts beside so many decodes, with
// inFlight steps before it that are not back.
func (t *Pace) Allow(st *Step, decodes int, d Demand, budget, inFlight int) int {
	st.Decodes, st.Parts = decodes, d.Requests
	st.all, st.common = budget, budget
	if decodes == 0 || t.share < 0 || d.Requests == 0 || budget == 0 {
		return budget
	}
	t.step = st.Number
	alone := &t.solo[Bucket(decodes)]
	if alone.Step == 0 || st.Number > alone.Step+soloSteps {
		return 0 // this step is measured
	}
	st.alone = alone.US
	st.grant = alone.US * max(promptShare*(1/t.share-1), float64(d.Requests-1)/float64(decodes))
	st.pause = max(MaxPause, maxPauseSteps*alone.US, t.chunk(0))
	// The steps in flight have their grants too.
	time := min(t.balance+st.grant*float64(1+inFlight)+d.Credit, st.pause)
	rows, cost := t.pick(time, st.pause, min(budget, d.Tokens))
	if rows == 0 {
		return 0
	}
	st.row, st.all = cost/float64(rows), rows
	if st.row > 0 {
		st.common = int(max(0, float64(rows)-d.Credit/st.row))
	}
	return rows
}

// Portion is how many of budget rows a prompt that wants so many more and has credit left may take, with
// behind others after it: a long prompt does not make short ones wait for its end. Nor do these, whose
// credits make the step's rows what they are, leave it with less than its part of all rows.
func (st *Step) Portion(credit float64, want, budget, behind int) int {
	fair := budget
	switch {
	case behind <= 0:
	case st.alone > 0:
		fair = (st.all + st.Parts - 1) / st.Parts
		if st.row > 0 {
			fair += int(min(credit/st.row, float64(budget)))
		}
	case want > longPrompt*budget:
		fair = (budget + 1) / 2
	}
	return min(budget, max(fair, 1))
}

// Take notes that a prompt with credit left has rows of the step, and returns what is left of the credit.
// more says that the prompt does not end with them.
func (t *Pace) Take(st *Step, rows int, credit float64, more bool) (left float64) {
	st.Prompts += rows
	if st.Decodes == 0 {
		return credit
	}
	cost := float64(rows) * st.row
	own := min(cost, credit)
	st.charged += cost
	st.owed += cost - own
	left = credit - own
	if own > 0 && left <= 0 && more {
		t.balance -= Credit // it is long: what it had was lent
	}
	return left
}

// Plan ends the planning of a step, at now. What its prompts take beyond the rows that are for all was lent
// by those who have credit: it costs the streams nothing that their credits would not have.
func (t *Pace) Plan(st *Step, now int64) {
	st.planned = now
	t.balance -= min(st.owed, float64(st.common)*st.row)
}

// Measure learns from what the step took, now that it is back.
func (t *Pace) Measure(st *Step, now int64) {
	if t.share < 0 {
		return
	}
	took := float64(now - max(st.planned, t.accepted))
	t.accepted = now
	switch {
	case st.Decodes == 0:
		if st.Prompts > 0 {
			t.row = took / float64(st.Prompts)
		}
		return
	case st.Prompts == 0:
		alone := &t.solo[Bucket(st.Decodes)]
		if alone.Step > 0 && took > alone.US {
			took = min(took, 1.5*alone.US) // one hiccup of the machine says little
		}
		alone.Add(took, st.Number)
		t.balance += st.grant
	case st.alone > 0:
		extra := max(took-st.alone, 0)
		if st.Prompts >= leastChunk {
			b := chunkBucket(st.Prompts)
			t.row = extra / float64(st.Prompts)
			t.chunks[b].Add(extra*float64(chunkRows(b))/float64(st.Prompts), st.Number)
		}
		t.balance += st.grant + st.charged - extra
	}
	t.balance = min(max(t.balance, minBalance), max(MaxPause, st.pause))
	if st.Parts == 0 {
		t.balance = min(t.balance, 0) // nobody saves for prompts to come
	}
}

// Settle forgets what prompts owe or have saved: the steps that it was for have failed.
func (t *Pace) Settle() { t.balance = 0 }
