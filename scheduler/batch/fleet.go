package batch

import (
	"math"

	"github.com/quire-serve/quire/scheduler/prefix"
)

// Worker is what a worker can hold.
type Worker struct {
	ID, Model string
	// Cache is the worker's name in the Matcher's answers; 0 if it has none.
	Cache prefix.Worker
	// ContextTokens is the longest sequence, prompt and output together.
	ContextTokens int
	BlockTokens   int
	TotalBlocks   int
	MaxSequences  int
	// MaxBatchTokens is what one step may carry.
	MaxBatchTokens int
	// TenantBlocks bounds what single tenants may hold.
	TenantBlocks map[string]int
}

// Load is what a worker says of itself in a heartbeat.
type Load struct {
	// Sequence orders heartbeats; an older one than the newest seen is ignored.
	Sequence uint64
	// Running and Waiting count sequences.
	Running, Waiting int
	FreeBlocks       int
	// PendingPrefill counts prompt tokens accepted and not computed.
	PendingPrefill int64
	// DispatchIndex is the newest dispatch that the numbers above include.
	DispatchIndex uint64
	// Unhealthy workers get no new requests.
	Unhealthy bool
	// Derate is the share of its rated speed that the worker gives, in thousandths; 0 is unknown and
	// counts as all of it.
	Derate int
}

// roomFor is the longest sequence that it can hold of a tenant.
func (w *Worker) roomFor(tenant string) int {
	if blocks, ok := w.TenantBlocks[tenant]; ok {
		return min(w.room(), blocks*w.BlockTokens)
	}
	return w.room()
}

// room is the longest sequence that it can hold.
func (w *Worker) room() int { return min(w.ContextTokens, w.TotalBlocks*w.BlockTokens) }

// charge is what a dispatch takes until a heartbeat counts it.
type charge struct {
	request           string
	index             uint64
	sequences, blocks int
	tokens            int64
}

// member is a worker in session.
type member struct {
	Worker
	load     Load
	reportMS int64
	// draining and cordoned workers get nothing new; only a cordon ends.
	draining, cordoned bool
	// known is false until a heartbeat or an idle start says what the worker holds.
	known   bool
	charges []charge
	charged charge // Sums of charges.
	// key orders workers by load, and sent those that are about as busy: the microseconds of prompts
	// that they were given to compute. at is the place among the open ones of the model.
	key, sent int64
	at        node[*member]
	// runs are the requests that it runs or was sent, as far as the leader said so; pace is how fast it
	// generates; reserved is what it is kept free for.
	runs     map[string]*run
	pace     pace
	reserved *reservation
	// gone says that the worker has left.
	gone bool
	// speed is how fast it computes prompts; found is what a prompt that is being placed would find
	// there, if asked is that prompt's; held is the work of requests that this plan lets wait for it.
	speed speed
	found prefix.Match
	asked uint64
	held  int64
}

// need is what a request takes from this worker at its start, if so many of its tokens are work.
func (m *member) need(i *item, work int64) charge {
	return m.charge(&i.need, work)
}

// charge is what a need takes of this worker: the blocks of its tokens, which the choices share as far
// as they are the prompt's, and one for each choice's first new token. Blocks that the worker holds
// already count as free until they are used, so they are needed too.
func (m *member) charge(n *need, work int64) charge {
	choices := int(n[needSequences])
	blocks := (int(n[needTokens])+m.BlockTokens-1)/m.BlockTokens + choices
	return charge{
		sequences: min(choices, m.MaxSequences),
		blocks:    min(blocks, m.TotalBlocks),
		tokens:    work,
	}
}

// free is the most that the worker could take by its last word, as a need below zero.
func (m *member) free(stepsAhead int) need {
	sequences, blocks, prompt := m.MaxSequences-m.sequences(), m.reportedBlocks()-int64(m.charged.blocks), int64(stepsAhead*m.MaxBatchTokens)-m.tokens()
	// An idle worker takes whatever its context holds.
	if m.sequences() == 0 {
		sequences = math.MaxInt32
	}
	tokens := blocks * int64(m.BlockTokens)
	if blocks >= int64(m.TotalBlocks) {
		tokens = math.MaxInt32
	}
	if m.tokens() == 0 {
		prompt = math.MaxInt32
	}
	return need{-bounded(sequences), -bounded(tokens), -bounded(prompt), -bounded(m.room())}
}

// might says whether one of the workers whose rooms were summed up could have room for one of the
// requests whose needs were.
func might(free, n *need, prompt bool) bool {
	return n[needSequences] <= -free[0] && n[needTokens] <= -free[1] && (!prompt || n[needTokens] <= -free[2]) && n[needLength] <= -free[3]
}

// sequences and tokens are in use or promised.
func (m *member) sequences() int { return m.load.Running + m.load.Waiting + m.charged.sequences }

func (m *member) tokens() int64 { return m.load.PendingPrefill + m.charged.tokens }

// reportedBlocks are the free blocks of the newest heartbeat, less those that accepted prompts will
// take when they are computed.
func (m *member) reportedBlocks() int64 {
	promised := (m.load.PendingPrefill + int64(m.BlockTokens) - 1) / int64(m.BlockTokens)
	return int64(m.load.FreeBlocks) - promised - int64(m.load.Waiting)
}

// Shortage is what a worker lacks for a request, by dimension.
type Shortage struct {
	Sequences, Blocks, PromptTokens int64
}

// shortage is how far the worker is from room for what is needed. trust scales the room that it
// reported, in thousandths.
func (m *member) shortage(need charge, trust int64, stepsAhead int) Shortage {
	missing := func(need, reported, charged int64) int64 {
		return max(0, need-(reported*trust/1000-charged))
	}
	short := Shortage{
		Sequences: missing(int64(need.sequences), int64(m.MaxSequences-m.load.Running-m.load.Waiting), int64(m.charged.sequences)),
		Blocks:    missing(int64(need.blocks), m.reportedBlocks(), int64(m.charged.blocks)),
	}
	if m.tokens() > 0 { // A long prompt may start alone, however long.
		short.PromptTokens = missing(need.tokens, int64(stepsAhead*m.MaxBatchTokens)-m.load.PendingPrefill, m.charged.tokens)
	}
	return short
}

// size is the shortage as one number: the sum over the dimensions in thousandths of the worker's
// whole. 0 is room.
func (m *member) size(short Shortage, stepsAhead int) int64 {
	part := func(missing, whole int64) int64 {
		if missing == 0 {
			return 0
		}
		return max(1, missing*1000/max(1, whole))
	}
	return part(short.Sequences, int64(m.MaxSequences)) + part(short.Blocks, int64(m.TotalBlocks)) +
		part(short.PromptTokens, int64(stepsAhead*m.MaxBatchTokens))
}

// welcomes says whether the worker takes new requests, if it has room.
func (m *member) welcomes() bool { return !m.draining && !m.cordoned && !m.load.Unhealthy }

// starts says whether there is a sequence and a block left for anything at all.
func (m *member) starts() bool {
	return m.known && m.welcomes() &&
		m.sequences() < m.MaxSequences && m.reportedBlocks() > int64(m.charged.blocks)
}

// open says whether there is room for anything at all.
func (m *member) open(stepsAhead int) bool {
	return m.starts() && (m.tokens() == 0 || m.tokens() < int64(stepsAhead*m.MaxBatchTokens))
}

func (m *member) take(c charge) {
	m.charges = append(m.charges, c)
	m.charged.sequences += c.sequences
	m.charged.blocks += c.blocks
	m.charged.tokens += c.tokens
}

// drop undoes the charges that gone picks.
func (m *member) drop(gone func(charge) bool) {
	kept := m.charges[:0]
	for _, c := range m.charges {
		if !gone(c) {
			kept = append(kept, c)
			continue
		}
		m.charged.sequences -= c.sequences
		m.charged.blocks -= c.blocks
		m.charged.tokens -= c.tokens
	}
	clear(m.charges[len(kept):])
	m.charges = kept
}
