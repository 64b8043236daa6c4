package engine

import (
	"slices"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/kvcache"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/draft"
	"github.com/quire-serve/quire/worker/engine/pace"
)

// planner decides what each step computes. It is a pure state machine: no goroutine, no lock, no
// clock and no I/O; its owner calls plan, submits the batch, and gives the result to accept (or
// fail). At most Settings.Depth steps are planned and not accepted.
type planner struct {
	Settings
	model   Model
	context int
	pool    *kvcache.Groups

	running order
	waiting order
	forking []*sequence // drawn their first token beside their sibling; fork with the next step
	copies  []kvcache.Copy
	copiers []*sequence // whom each of copies is for
	lower   *lower      // nil without tiers below the device
	news    cacheNews
	pace    pace.Pace
	drafts  draft.Costs
	admission

	number    uint64  // of the newest step planned
	accepted  uint64  // of the newest step accepted
	steps     [3]step // a ring; number%3
	batch     device.Batch
	faults    suspicion
	hold      hold
	scoreRows int   // log-probabilities of known tokens that the step being planned may still take
	nextLine  int64 // earliest deadline among waiting sequences, Unix microseconds, 0 none
	// nextReturn is when giveBack has to look next, 0 never; now is the time of the newest plan.
	nextReturn, now int64

	events []Event
	// arrived takes the end of a fetch to arrive, on the goroutine that plans. Others call it.
	arrived func(arrival)
	// study has a study done and its outcome taken to learn, on the goroutine that plans; behind are the
	// sequences for which the step being accepted leaves something to be worked out.
	study  func(*study)
	behind []*sequence
	done   []*request // ended since the owner last looked
	begun  []*request // started since the owner last looked

	count    counters
	returned returnedHits
	trace    *StepTrace // of the step being planned
	cause    string     // request that blocks are being taken for
	ring     []StepTrace
	traced   uint64
	load     loads
}

// step remembers what a batch's samples belong to.
type step struct {
	number uint64
	named  uint64 // the same step, as the pool counts
	rows   int
	drafts int         // of them
	seqs   []*sequence // scheduled, in row order
	draws  []draw
	own    bool           // the engine's own; see suspicion
	kv     kvcache.Tables // its page

	pace pace.Step // how its prompts were held back beside decodes
}

type draw struct {
	seq      *sequence
	score    bool  // the log-probability of a known token, not a token
	draft    int   // it follows this draft, counted from 1; 0 is the sequence's own next token
	logprobs int32 // wanted, as Sample.Logprobs
}

// speculates reports whether s has drafts in the step, rather than in the one behind it.
func (st *step) speculates(s *sequence) bool { return len(s.drafts) > 0 && s.fence == st.number }

// hold is what pausing stops.
type hold uint8

const (
	holdNothing hold = iota
	holdNew          // requests that have not started
	holdAll
)

func newPlanner(s Settings, m Model) (*planner, error) {
	first, windowed := s.groups(m.Window)
	first.Tenants, first.PrefixCache, first.Events = s.tenantBlocks(), s.PrefixCache, s.PrefixCache
	first.ReportEvictions = m.Tiers != nil && !m.Tiers.Transit
	pool, err := kvcache.NewGroups(first, windowed)
	if err != nil {
		return nil, err
	}
	p := &planner{Settings: s, model: m, context: s.Context(m.ContextLength, m.Window), pool: pool, pace: pace.New(s.DecodeShare)}
	p.study = func(x *study) { x.do(); p.learn(x) } // until an engine has others do it
	p.lower = newLower(m.Tiers, s.Logger)
	p.news.scanned = s.Blocks
	p.misfit = -1
	p.ring = make([]StepTrace, s.TraceSteps)
	return p, nil
}

// inFlight is how many steps are planned and neither accepted nor failed.
func (p *planner) inFlight() int { return int(p.number - p.accepted) }

// idle reports that nothing is admitted or waiting.
func (p *planner) idle() bool {
	return len(p.running) == 0 && len(p.waiting) == 0 && len(p.forking) == 0 && p.inFlight() == 0
}

// plan decides the next step and fills p.batch; false if there is nothing to compute. now is in Unix
// microseconds.
func (p *planner) plan(now int64) bool {
	p.now = now
	if p.guessing() {
		return false
	}
	st := &p.steps[(p.number+1)%uint64(len(p.steps))]
	*st = step{number: p.number + 1, seqs: st.seqs[:0], draws: st.draws[:0], pace: pace.Step{Number: p.number + 1}}
	p.scoreRows = p.ScoreRows
	p.startTrace(st)
	p.expire(now)
	p.giveBack(now)
	p.copyUp()
	p.fork(st)
	switch {
	case p.hold == holdAll || p.faults.suspects > 0 && p.inFlight() > 0:
	case p.faults.accused != nil:
		p.ownStep(st)
	case p.faults.suspects > 0:
		p.probe(st, now)
	default:
		reclaimed := p.reclaim()
		budget, preempted := p.scheduleRunning(st)
		if !preempted && !(reclaimed && p.pool.Deferred() > 0) {
			p.admit(st, budget, now)
		}
	}
	p.startFetches()
	if st.rows == 0 {
		p.undoCopies()
	}
	p.copyDown()
	if st.rows == 0 {
		return false
	}
	p.number++
	st.named = p.pool.EndStep()
	p.chargePrompts(st)
	p.build(st)
	p.endTrace(st)
	return true
}

// scheduleRunning gives a row to every sequence that decodes, then shares the rest among prefills.
// It returns what is left of the budget for newcomers, and whether anyone was preempted.
func (p *planner) scheduleRunning(st *step) (budget int, preempted bool) {
	budget = p.MaxBatchTokens
	decodes := 0
	for i := 0; i < len(p.running); i++ {
		s := p.running[i]
		s.rows = 0
		want := s.want()
		if want == 0 || want > 1 && p.model.Window == 0 {
			continue
		}
		s.kv.Slide(s.computed)
		room, cut := p.makeRoom(s)
		preempted = preempted || cut
		if room && want == 1 {
			p.schedule(st, s, 1)
			decodes++
		}
	}
	budget -= decodes
	budget -= p.speculate(st, budget)
	budget = p.allowPrompts(st, decodes, budget)
	return p.schedulePrompts(st, budget), preempted
}

// makeRoom sees to it that s can store one more token. If the pool is exhausted, the last sequence
// in the order is preempted; where its blocks are still being written, s waits for the next step
// instead of preempting another.
func (p *planner) makeRoom(s *sequence) (ok, preempted bool) {
	if s.computed < s.room {
		return true, false
	}
	for {
		err := s.kv.Grow(s.computed + 1)
		if err == nil {
			s.room = s.kv.Room()
			return true, preempted
		}
		if p.pool.Deferred() > 0 {
			p.note(noteStalled, s, 0)
			return false, preempted
		}
		victim := p.victim(s, err)
		p.cause = s.id
		p.preempt(victim)
		p.cause = ""
		preempted = true
		if victim == s {
			return false, true
		}
	}
}

// preempt takes everything from s but its tokens. A token that is being drawn still counts. Nobody
// can be counting on blocks that s computes in the step being planned: sequences begin after the
// last preemption of a plan.
func (p *planner) preempt(s *sequence) {
	p.count.preemptions++
	s.preemptions++
	if p.ReturnAfter > 0 {
		s.preempted = max(p.now, 1)
		if at := s.preempted + p.ReturnAfter.Microseconds(); p.nextReturn == 0 || at < p.nextReturn {
			p.nextReturn = at
		}
	}
	p.running.remove(s)
	p.dropCopies(s)
	p.lower.drop(s)
	p.choose(s)
	if p.writing(s.fence) {
		s.kv.PreemptAfter(s.fence)
	} else {
		s.kv.Preempt()
	}
	p.enqueue(s)
}

// enqueue puts s into the waiting order, to be computed from its first token.
func (p *planner) enqueue(s *sequence) {
	s.state, s.computed, s.rows, s.room, s.published, s.lag = stateWaiting, 0, 0, 0, 0, 0
	p.waiting.insert(s)
	p.misfit = -1
	p.load.waitingTokens += int64(len(s.tokens))
	p.fetch(s)
	if s.patience > 0 && s.started == 0 && (p.nextLine == 0 || s.deadline() < p.nextLine) {
		p.nextLine = s.deadline()
	}
}

// dequeue undoes enqueue.
func (p *planner) dequeue(s *sequence) {
	p.waiting.remove(s)
	p.load.waitingTokens -= int64(len(s.tokens))
}

// release gives the blocks of s back, once no step in flight can write them.
func (p *planner) release(s *sequence) {
	p.lower.drop(s)
	p.lower.keep(s)
	switch {
	case s.kv.None():
	case p.writing(s.fence):
		s.kv.ReleaseAfter(s.fence)
	default:
		s.kv.Release()
	}
	s.kv, s.room = kvcache.Tables{}, 0
}

// writing reports whether the step is in flight.
func (p *planner) writing(step uint64) bool { return step > p.accepted && step <= p.number }

// schedule gives s n rows of the step and names the blocks that these fill.
func (p *planner) schedule(st *step, s *sequence, n int) {
	s.start, s.rows, s.fence = s.computed, n, st.number
	s.computed += n
	st.rows += n
	st.seqs = append(st.seqs, s)
	if s.scoring() {
		from, to := s.targets()
		p.scoreRows -= to - from
	}
	// A token that is not known yet cannot be part of a name.
	if known := min(s.computed, len(s.tokens)); known >= s.published+p.BlockTokens {
		s.kv.Publish(s.tokens[:known])
		s.published = known - known%p.BlockTokens
	}
	if s.choice == 0 && len(s.choices) > 1 && s.computed == s.prompt && s.choices[1].state == stateAttached {
		p.branch(st, s)
	}
}

// branch lets the siblings of s draw their first token from the row that ends the prompt, as many
// as there is room for; the others wait like anyone else and find the prompt in the prefix cache.
func (p *planner) branch(st *step, s *sequence) {
	for _, c := range s.choices[1:] {
		if c.state != stateAttached {
			continue
		}
		if len(p.running)+len(p.forking) >= p.MaxSequences {
			p.enqueue(c)
			continue
		}
		c.state, c.computed, c.fence = stateForking, s.prompt, st.number
		p.forking = append(p.forking, c)
	}
}

// fork gives the sequences that drew beside their sibling a share of its blocks, in a plan in which
// they get a row: a copy must not wait for a later step, when its blocks may have gone to others.
func (p *planner) fork(st *step) {
	if len(p.forking) == 0 || p.hold == holdAll {
		return
	}
	kept := p.forking[:0]
	for _, c := range p.forking {
		parent := c.choices[0]
		switch {
		case c.state != stateForking:
		case c.pending > 0 && (c.constrained() || c.undecided()), c.behind && parent.computed == c.computed:
			kept = append(kept, c)
		case len(c.tokens)+c.pending >= c.limit:
			c.state = stateParked
		case p.faults.suspects > 0:
			p.enqueue(c) // it is no suspect, and has no row before the last of them is trusted
		case parent.kv.None() || parent.state != stateRunning || parent.computed != c.computed:
			// Once its parent has gone on without it there is no sharing: blocks that the parent has
			// filled since are not the child's.
			p.enqueue(c)
		default:
			// The books may not have heard of the newest tokens that its blocks hold, and would have a block
			// that these fill copied.
			if err := parent.kv.Grow(parent.computed); err != nil {
				p.enqueue(c)
				continue
			}
			kv, copies, err := parent.kv.Fork(p.copies)
			if err != nil {
				p.enqueue(c)
				continue
			}
			p.copy(c, copies)
			c.kv, c.state, c.rows, c.fence = kv, stateRunning, 0, st.number
			c.room = kv.Room()
			c.published = c.computed - c.computed%p.BlockTokens
			p.running.insert(c)
		}
	}
	clear(p.forking[len(kept):])
	p.forking = kept
}

// copy has the next step do copies, of which those that are new are for s, before anything else.
func (p *planner) copy(s *sequence, copies []kvcache.Copy) {
	p.copies = copies
	for len(p.copiers) < len(copies) {
		p.copiers = append(p.copiers, s)
	}
}

// dropCopies forgets the copies for s, whose pages it gives up: they may soon be others'.
func (p *planner) dropCopies(s *sequence) {
	for i := len(p.copiers) - 1; i >= 0; i-- {
		if p.copiers[i] == s {
			p.copies, p.copiers = slices.Delete(p.copies, i, i+1), slices.Delete(p.copiers, i, i+1)
		}
	}
}

// undoCopies ends a plan without rows, which carries no copies. Were they to wait for a later step,
// the pages they read could be others' by then: who needs one starts over.
func (p *planner) undoCopies() {
	for len(p.copiers) > 0 {
		s := p.copiers[0]
		if s.state == stateRunning {
			p.preempt(s)
		}
		p.dropCopies(s)
	}
}

// expire ends requests that are past their deadline and have not started.
func (p *planner) expire(now int64) {
	if p.nextLine == 0 || now < p.nextLine {
		return
	}
	p.nextLine = 0
	for i := 0; i < len(p.waiting); {
		s := p.waiting[i]
		if s.patience == 0 || s.started != 0 {
			i++
			continue
		}
		if now >= s.deadline() {
			p.note(noteExpired, s, len(s.tokens))
			// Its siblings stand behind it and leave the queue with it.
			p.endRequest(s.request, pb.FinishReason_FINISH_REASON_DEADLINE, "deadline passed before the request could start")
			p.count.expired++
			continue
		}
		if p.nextLine == 0 || s.deadline() < p.nextLine {
			p.nextLine = s.deadline()
		}
		i++
	}
}
