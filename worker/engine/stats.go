package engine

import (
	"time"

	"github.com/quire-serve/quire/worker/engine/draft"
)

// counters only grow.
type counters struct {
	steps, stepTokens, generated int64
	queryTokens, hitTokens       int64
	shortTokens                  int64
	preemptions, expired         int64
	failures, violations         int64
	swaps, returned              int64
	drafts, draftTokens          int64
	agreed                       [draft.MaxPerSequence]int64 // by place among a step's drafts
}

// loads are kept up to date as things move.
type loads struct {
	waitingTokens int64
}

// Stats is a snapshot of the engine. Counters count from its start.
type Stats struct {
	Running, Waiting   int
	FreeBlocks, Blocks int
	// PendingPrefill is how many tokens are accepted and not computed: of requests that wait, and
	// what is left of prompts in progress.
	PendingPrefill int64

	Steps, StepTokens int64
	GeneratedTokens   int64
	PrefixQueryTokens int64
	PrefixHitTokens   int64
	// PrefixShortTokens are those of the tokens looked up that no cache could have had: of prompts shorter
	// than a block.
	PrefixShortTokens    int64
	Preemptions, Expired int64
	DeviceFailures       int64
	Tiers                TierStats
	// Swaps are preemptions that count on copying the blocks back; the others compute them again.
	// Returned are preempted requests that were handed back.
	Swaps, Returned int64
	// Drafts counts the steps of sequences that guessed tokens, DraftTokens the guesses, and
	// AcceptedTokens those that were right, by their place in a step.
	Drafts, DraftTokens int64
	AcceptedTokens      [draft.MaxPerSequence]int64
	// Violations counts accounting errors of the block pool. It should stay 0.
	Violations int64
}

// TierStats are about blocks below the device. Pages is now, in host memory; hits are blocks that were
// copied up for a sequence, by where they lay when it began to wait.
type TierStats struct {
	Pages              int
	HostHits, DiskHits int64
	PeerHits           int64 // from other workers
	Stored             int64 // copied down, up from disk, or from other workers
	Failures           int64 // of copies on the device
}

// Reason says why a trace notes a sequence.
type Reason uint8

const (
	noteAdmitted Reason = iota + 1
	notePreempted
	noteStalled
	noteNoBlocks
	noteSwapped
	noteFetching
	noteSwapIn
	notePrefill
	noteReturned
	noteExpired
	noteBounded
)

// reasons are the words for each, and why it happens.
var reasons = [...]struct{ what, why string }{
	{},
	{"admitted", "there was room for all its tokens; so many of them were cached"},
	{"preempted", "one before it in the order needed its blocks; computing them again costs less than copying, or nothing is below the device"},
	{"stalled", "blocks that it can take are still being written"},
	{"no blocks", "so many tokens do not fit now"},
	{"swapped", "one before it in the order needed its blocks; copying them down and up costs less than computing them again"},
	{"fetching", "blocks of its tokens are on their way to host memory, from disk, from the worker that handed it over, or for one with the same prefix"},
	{"copying up", "so many of its blocks lie in host memory, and copying costs less than computing"},
	{"prefill", "so many tokens of its prompt are computed in this step"},
	{"returned", "preempted, and no room to go on within the bound"},
	{"expired", "its deadline passed before it could start"},
	{"bounded", "its tenant holds as many blocks as it may"},
}

func (r Reason) String() string { return reasons[r].what }

// Why is a sentence's worth of explanation.
func (r Reason) Why() string { return reasons[r].why }

// Note is what happened to one sequence in a step.
type Note struct {
	RequestID string
	Choice    int32
	Reason    Reason
	// N is a number of tokens, or of blocks that are copied up; Reason.Why says which.
	N int
	// For is the request that a preempted one made room for.
	For string
}

// StepTrace says what a step computed and why.
type StepTrace struct {
	Step             uint64
	Decodes          int // sequences that got one row
	Prefills         int // sequences that got more
	Rows             int // tokens, all together
	Drafts           int // guessed ones among them
	Running, Waiting int
	FreeBlocks       int
	// Blocks copied from lower tiers and to them while the step was planned.
	CopiedUp, CopiedDown int
	Plan                 time.Duration // to plan it
	Notes                []Note
}

// maxNotes bounds a step's notes.
const maxNotes = 64

// startTrace begins the trace of a step; what was noted by plans that came to nothing since the last
// step stays in it.
func (p *planner) startTrace(st *step) {
	p.trace = &p.ring[p.traced%uint64(len(p.ring))]
	if p.trace.Step == st.number {
		return
	}
	*p.trace = StepTrace{Step: st.number, Notes: p.trace.Notes[:0]}
}

func (p *planner) note(why Reason, s *sequence, n int) {
	if len(p.trace.Notes) < maxNotes {
		p.trace.Notes = append(p.trace.Notes, Note{RequestID: s.id, Choice: s.choice, Reason: why, N: n, For: p.cause})
	}
}

func (p *planner) endTrace(st *step) {
	t := p.trace
	for _, s := range st.seqs {
		if s.rows-len(s.drafts) == 1 {
			t.Decodes++
		} else {
			t.Prefills++
			p.note(notePrefill, s, s.rows)
		}
	}
	t.Rows, t.Drafts = st.rows, st.drafts
	t.Running, t.Waiting, t.FreeBlocks = len(p.running), len(p.waiting), p.pool.Free()
	p.traced++
}

// stats takes a snapshot without allocating.
func (p *planner) stats() Stats {
	c := &p.count
	s := Stats{
		Running: len(p.running) + len(p.forking), Waiting: len(p.waiting), FreeBlocks: p.pool.Free(), Blocks: p.Blocks,
		PendingPrefill: p.load.waitingTokens,
		Steps:          c.steps, StepTokens: c.stepTokens, GeneratedTokens: c.generated,
		PrefixQueryTokens: c.queryTokens, PrefixHitTokens: c.hitTokens, PrefixShortTokens: c.shortTokens,
		Tiers: p.lower.stats(), Swaps: c.swaps, Returned: c.returned, Preemptions: c.preemptions, Expired: c.expired, DeviceFailures: c.failures, Violations: c.violations,
		Drafts: c.drafts, DraftTokens: c.draftTokens, AcceptedTokens: c.agreed,
	}
	for _, q := range p.running {
		if w := q.want(); w > 1 {
			s.PendingPrefill += int64(w)
		}
	}
	return s
}

// traces lists the newest n steps, oldest first.
func (p *planner) traces(n int) []StepTrace {
	n = min(n, len(p.ring), int(p.traced))
	out := make([]StepTrace, 0, n)
	for i := p.traced - uint64(n); i < p.traced; i++ {
		t := p.ring[i%uint64(len(p.ring))]
		t.Notes = append([]Note(nil), t.Notes...)
		out = append(out, t)
	}
	return out
}
