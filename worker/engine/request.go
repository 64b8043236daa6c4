package engine

import (
	"context"
	"fmt"
	"math"
	"slices"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/model/grammar"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/draft"
	"github.com/quire-serve/quire/worker/engine/pace"
)

// Limits of a request's fields.
const (
	maxChoices      = 128
	maxStops        = 16
	maxStopBytes    = 256
	maxStopTokens   = 64
	maxBias         = 1024
	maxAllowed      = 4096
	maxBadWords     = 128
	maxBadBytes     = 256
	maxLogprobs     = 20
	maxIDBytes      = 256
	tokenCapReserve = 4096
	// maxPatienceMS is above any that the API allows, a day; more counts as this.
	maxPatienceMS = 7 * 24 * 60 * 60 * 1000
)

// request is what the engine keeps of an admitted request. Everything above live is immutable.
type request struct {
	id, gateway string
	source      string // the worker that handed it over, "" none
	priority    int32
	arrival     int64  // when the control plane admitted it
	number      uint64 // order of Add
	patience    int64  // microseconds after added in which it must start, 0 none
	tenant      int    // its number, 0 without bounds
	prompt      int    // tokens
	limit       int    // a choice ends when it holds this many tokens
	min         int    // generated tokens before a stop counts
	root        kvcache.Hash
	sample      device.Sample // what all draws share
	bias        []device.TokenBias
	// early is bias with every stopping token forbidden, for draws before min.
	early     []device.TokenBias
	penalised bool
	eos       []int32
	stopIDs   []int32
	spelled   map[int32]string // those of stopIDs that a stop string spells
	bad       [][]int32        // bad words, short ones first
	spec      *grammar.Spec    // what the output must be, nil for anything
	// leave ends when nobody wants the request any more, by left; both are nil without a spec.
	leave context.Context
	left  context.CancelFunc
	score int32 // prompt log-probabilities wanted, as Sample.Logprobs

	choices []*sequence
	// fetching says that its blocks are to come from source, and it waits for them.
	fetching bool
	live     int     // choices without a terminal event
	cached   int32   // prompt tokens found in the prefix cache when it started for the first time
	resumed  bool    // it came with generated tokens
	spoke    bool    // its first event is out
	credits  float64 // device time that its prompt may still take at once, microseconds

	// When it was added, first scheduled (0 before), and gave its first token: Unix microseconds.
	added, started, first int64
}

// sequence is one choice of a request.
//
//	          ┌────────────── preempt ──────────────┐
//	          ▼                                     │
//	add ──▶ waiting ──── admit ────────────────▶ running ──▶ done
//	attached ── first sibling's prompt done ──▶ forking ┘
//
// Every state leads to done by an end of its own, an abort, an error or a deadline.
type sequence struct {
	*request
	choice int32
	state  state

	tokens   []int32 // prompt and known generated tokens
	told     int     // generated tokens that events have brought
	pending  int     // drawn tokens that have not come back
	source   int32   // which sample of the newest step draws it
	computed int     // tokens whose KV is computed or scheduled
	start    int     // computed before the step being planned
	rows     int     // rows in the step being planned
	lag      int     // rows that it got less than an equal part, while its prompt is computed

	kv        kvcache.Tables // none from a release to the next attempt to start
	room      int            // tokens that its blocks hold
	published int            // tokens in blocks that are named, a multiple of the block
	fence     uint64         // newest step that touches its blocks

	// The tokens at positions [scoreFrom, scoreTo) came with the request, and their log-probabilities are
	// wanted: scores has those that have come back, and scored is the first position that no step has yet.
	scoreFrom, scored, scoreTo int
	scores                     []*pb.Logprobs

	pinned    [][]byte // pinned pages that are still to be copied up, for the blocks from loadFirst on
	loadFirst int
	loadAfter uint64 // step after which that may be done
	fetched   int    // pages read from disk for it
	notKept   int    // blocks up to which what it generated is not copied down, 0 without any

	text    grammar.State // of a constrained sequence, after its tokens
	mask    []uint32      // what may follow them; without a constraint, what may follow anything, nil for all
	masks   [][]uint32    // what may follow each draft
	behind  bool          // a study is to say what may follow; until then it has no row
	unread  int           // newest tokens that text does not have: the study reads them
	studied int64         // operations that its studies have cost

	lookup draft.Lookup
	drafts []int32 // guesses in the newest step, not verified yet
	agreed int     // leading drafts that were right

	preemptions int
	preempted   int64 // when it was and has not run since, Unix microseconds; 0 otherwise
	// onSufferance says that one before it waits, which would not be if this one did not run.
	onSufferance bool
	suspect      bool // was in a step that failed; see suspicion
	proof        int  // tokens that are to be computed before it is trusted again
	failedAlone  int

	finder StopFinder // nil without stop strings
}

type state uint8

const (
	stateWaiting  state = iota + 1 // in planner.waiting
	stateRunning                   // in planner.running
	stateAttached                  // waits for its sibling's prompt
	stateForking                   // its first token is being drawn beside its sibling's
	stateParked                    // needs no further step; its last token is in flight
	stateDone
)

// deadline is when a request with patience must have started, Unix microseconds of this worker's own.
func (r *request) deadline() int64 { return r.added + r.patience }

// before is the one order of everything: who runs first, and who is preempted last.
func (s *sequence) before(o *sequence) bool {
	switch {
	case s.priority != o.priority:
		return s.priority < o.priority
	case s.arrival != o.arrival:
		return s.arrival < o.arrival
	case s.number != o.number:
		return s.number < o.number
	}
	return s.choice < o.choice
}

func compare(s, o *sequence) int {
	switch {
	case s == o:
		return 0
	case s.before(o):
		return -1
	}
	return 1
}

// generated is how many tokens of its own are known.
func (s *sequence) generated() int { return len(s.tokens) - s.prompt }

// want is how many rows it needs to draw its next token; 0 if it needs none, or can use none yet:
// its pages are under way, or the result of a step in flight must say first which token is next.
func (s *sequence) want() int {
	n := len(s.tokens) + s.pending
	if n >= s.limit || s.loading() || s.constrained() && (s.pending > 0 || s.behind) || s.undecided() {
		return 0
	}
	return n - s.computed
}

// scoring reports whether log-probabilities of known tokens are still to be computed.
func (s *sequence) scoring() bool { return s.scored < s.scoreTo }

// readable is how many tokens the cache may be read for: the row before a token that is to be scored
// must be computed.
func (s *sequence) readable() int {
	if s.scoring() {
		return s.scored - 1
	}
	return len(s.tokens)
}

// targets are the known tokens, by position, whose log-probability the scheduled rows report.
func (s *sequence) targets() (from, to int) {
	from = max(s.scored, s.start+1)
	return from, max(from, min(s.computed+1, s.scoreTo))
}

// Repeats reports whether the events of a request with these parameters begin with the tokens that it
// came with (Request.Generated), because log-probabilities are wanted, which did not come with them.
func Repeats(sp *pb.SamplingParams) bool {
	return sp != nil && (sp.Logprobs != nil || sp.PromptLogprobs != nil)
}

// newRequest checks r and lays out its state. context and vocab are the model's.
func newRequest(r *pb.Request, m *Model, context int) (*request, error) {
	invalid := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrInvalid, fmt.Sprintf(format, args...))
	}
	sp := r.GetSampling()
	if sp == nil {
		sp = &pb.SamplingParams{}
	}
	n := int(max(1, sp.N))
	temperature, topP, repetition := float32(1), float32(1), float32(1)
	if sp.Temperature != nil {
		temperature = *sp.Temperature
	}
	if sp.TopP != nil {
		topP = *sp.TopP
	}
	if sp.RepetitionPenalty != nil {
		repetition = *sp.RepetitionPenalty
	}
	in := func(v, lo, hi float32) bool { return v >= lo && v <= hi } // false for NaN
	logprobs := func(v *int32) int32 {
		if v == nil {
			return -1
		}
		return *v
	}
	switch {
	case r.Id == "" || len(r.Id) > maxIDBytes:
		return nil, invalid("id has %d bytes, must have 1 to %d", len(r.Id), maxIDBytes)
	case len(r.Prompt) == 0:
		return nil, invalid("prompt is empty")
	case len(r.Prompt) >= context:
		return nil, fmt.Errorf("%w: prompt has %d tokens, a sequence may hold %d with at least one generated", ErrTooLong, len(r.Prompt), context)
	case sp.N < 0 || n > maxChoices:
		return nil, invalid("n is %d, must be 1 to %d", sp.N, maxChoices)
	case !in(temperature, 0, 2):
		return nil, invalid("temperature is %v, must be 0 to 2", temperature)
	case sp.TopK < 0:
		return nil, invalid("top_k is %d, must be at least 0", sp.TopK)
	case !in(topP, 0, 1) || topP == 0:
		return nil, invalid("top_p is %v, must be above 0 and at most 1", topP)
	case !in(sp.MinP, 0, 1):
		return nil, invalid("min_p is %v, must be 0 to 1", sp.MinP)
	case !in(repetition, 0, 2) || repetition == 0:
		return nil, invalid("repetition_penalty is %v, must be above 0 and at most 2", repetition)
	case !in(sp.PresencePenalty, -2, 2):
		return nil, invalid("presence_penalty is %v, must be -2 to 2", sp.PresencePenalty)
	case !in(sp.FrequencyPenalty, -2, 2):
		return nil, invalid("frequency_penalty is %v, must be -2 to 2", sp.FrequencyPenalty)
	case sp.MaxTokens < 0:
		return nil, invalid("max_tokens is %d, must be at least 0", sp.MaxTokens)
	case sp.MinTokens < 0 || sp.MaxTokens > 0 && sp.MinTokens > sp.MaxTokens:
		return nil, invalid("min_tokens is %d, must be 0 to max_tokens", sp.MinTokens)
	case len(sp.Stop) > maxStops:
		return nil, invalid("stop has %d entries, at most %d are allowed", len(sp.Stop), maxStops)
	case len(sp.Stop) > 0 && m.Stops == nil:
		return nil, invalid("stop strings need a tokenizer, and the model has none")
	case len(sp.StopTokenIds) > maxStopTokens:
		return nil, invalid("stop_token_ids has %d entries, at most %d are allowed", len(sp.StopTokenIds), maxStopTokens)
	case len(sp.AllowedTokenIds) > maxAllowed:
		return nil, invalid("allowed_token_ids has %d entries, at most %d are allowed", len(sp.AllowedTokenIds), maxAllowed)
	case len(sp.AllowedTokenIds) > 0 && sp.Constraint != nil:
		return nil, invalid("allowed_token_ids together with a constraint")
	case len(sp.BadWords) > maxBadWords:
		return nil, invalid("bad_words has %d entries, at most %d are allowed", len(sp.BadWords), maxBadWords)
	case len(sp.BadWords) > 0 && m.Spell == nil:
		return nil, invalid("bad_words need a tokenizer, and the model has none")
	case len(sp.LogitBias) > maxBias:
		return nil, invalid("logit_bias has %d entries, at most %d are allowed", len(sp.LogitBias), maxBias)
	case logprobs(sp.Logprobs) < -1 || logprobs(sp.Logprobs) > maxLogprobs:
		return nil, invalid("logprobs is %d, must be 0 to %d", *sp.Logprobs, maxLogprobs)
	case logprobs(sp.PromptLogprobs) < -1 || logprobs(sp.PromptLogprobs) > maxLogprobs:
		return nil, invalid("prompt_logprobs is %d, must be 0 to %d", *sp.PromptLogprobs, maxLogprobs)
	case sp.Constraint != nil && m.Constrain == nil:
		return nil, invalid("constraint needs a tokenizer, and the model has none")
	case len(r.Generated) > n:
		return nil, invalid("generated has %d lists for n = %d", len(r.Generated), n)
	}
	for _, s := range sp.Stop {
		if s == "" || len(s) > maxStopBytes {
			return nil, invalid("stop has an entry of %d bytes, must have 1 to %d", len(s), maxStopBytes)
		}
	}
	for _, w := range sp.BadWords {
		if w == "" || len(w) > maxBadBytes {
			return nil, invalid("bad_words has an entry of %d bytes, must have 1 to %d", len(w), maxBadBytes)
		}
	}
	for token, bias := range sp.LogitBias {
		if token < 0 || int(token) >= m.Vocab || !in(bias, -100, 100) {
			return nil, invalid("logit_bias for token %d is %v, tokens are 0 to %d and biases -100 to 100", token, bias, m.Vocab-1)
		}
	}
	known := func(field string, ids []int32) error {
		for _, t := range ids {
			if t < 0 || int(t) >= m.Vocab {
				return invalid("%s holds token %d, must be 0 to %d", field, t, m.Vocab-1)
			}
		}
		return nil
	}
	if err := known("prompt", r.Prompt); err != nil {
		return nil, err
	}
	if err := known("stop_token_ids", sp.StopTokenIds); err != nil {
		return nil, err
	}
	if err := known("allowed_token_ids", sp.AllowedTokenIds); err != nil {
		return nil, err
	}

	limit := context
	if sp.MaxTokens > 0 && int64(len(r.Prompt))+int64(sp.MaxTokens) < int64(context) {
		limit = len(r.Prompt) + int(sp.MaxTokens)
	}
	q := &request{
		id: r.Id, gateway: r.GatewayId, source: r.KvSource, priority: r.Priority, arrival: r.ArrivalMs, patience: min(max(0, r.PatienceMs), maxPatienceMS) * 1000,
		prompt: len(r.Prompt), limit: limit, min: int(sp.MinTokens),
		root:      kvcache.Root(r.CacheSalt, nil),
		penalised: repetition != 1 || sp.PresencePenalty != 0 || sp.FrequencyPenalty != 0,
		stopIDs:   sp.StopTokenIds,
		score:     logprobs(sp.PromptLogprobs), live: n, credits: pace.Credit,
		sample: device.Sample{
			Score: -1, Temperature: temperature, TopK: sp.TopK, TopP: topP, MinP: sp.MinP,
			RepetitionPenalty: repetition, PresencePenalty: sp.PresencePenalty, FrequencyPenalty: sp.FrequencyPenalty,
			Mask: -1, Seed: sp.GetSeed(), Logprobs: logprobs(sp.Logprobs),
		},
	}
	if sp.Constraint != nil {
		spec, err := SpecOf(sp.Constraint)
		if err != nil {
			return nil, invalid("%v", err)
		}
		q.spec = &spec
	}
	if !sp.IgnoreEos {
		q.eos = m.EOS
	}
	for _, stop := range sp.Stop {
		if m.Special == nil {
			break
		}
		if id, ok := m.Special(stop); ok && !slices.Contains(q.stopIDs, id) {
			if q.spelled == nil {
				q.spelled = map[int32]string{}
			}
			q.stopIDs, q.spelled[id] = append(slices.Clip(q.stopIDs), id), stop
		}
	}
	q.sample.Logprobs = min(q.sample.Logprobs, int32(m.Vocab))
	q.score = min(q.score, int32(m.Vocab))
	q.bias = biases(sp.LogitBias, nil)
	if q.min > 0 {
		q.early = biases(sp.LogitBias, slices.Concat(q.eos, q.stopIDs))
	}
	var allowed []uint32
	if len(sp.AllowedTokenIds)+len(sp.BadWords) > 0 {
		q.bad = badWords(sp.BadWords, m.Spell)
		allowed = maskOf(sp.AllowedTokenIds, m.Vocab)
	}
	for c := range n {
		s := &sequence{request: q, choice: int32(c), mask: allowed}
		var generated []int32
		if c < len(r.Generated) {
			generated = r.Generated[c].GetIds()
		}
		if err := known("generated", generated); err != nil {
			return nil, err
		}
		q.resumed = q.resumed || len(generated) > 0
		have := q.prompt + len(generated)
		if have > limit {
			return nil, fmt.Errorf("%w: prompt and generated hold %d tokens, a choice may hold %d", ErrTooLong, have, limit)
		}
		if Repeats(sp) {
			// The last one is drawn again: with it a choice that had ended ends again.
			generated = generated[:max(0, len(generated)-1)]
		} else {
			s.told = len(generated)
		}
		s.tokens = make([]int32, q.prompt+len(generated), min(limit, have+tokenCapReserve))
		copy(s.tokens, r.Prompt)
		copy(s.tokens[q.prompt:], generated)
		s.scoreFrom, s.scoreTo = q.prompt, q.prompt
		if c == 0 && q.score >= 0 {
			s.scoreFrom = 1
		}
		if q.sample.Logprobs >= 0 {
			s.scoreTo = len(s.tokens)
		}
		s.scored = s.scoreFrom
		if len(sp.Stop) > 0 {
			s.finder = m.Stops(sp)
		}
		q.choices = append(q.choices, s)
	}
	return q, nil
}

// biases lists logit biases by token, so that equal requests give equal batches, with the forbidden
// tokens at minus infinity.
func biases(logit map[int32]float32, forbidden []int32) []device.TokenBias {
	if len(logit) == 0 && len(forbidden) == 0 {
		return nil
	}
	out := make([]device.TokenBias, 0, len(logit)+len(forbidden))
	for t, b := range logit {
		if !slices.Contains(forbidden, t) {
			out = append(out, device.TokenBias{Token: t, Bias: b})
		}
	}
	slices.SortFunc(out, func(a, b device.TokenBias) int { return int(a.Token - b.Token) })
	for _, t := range forbidden {
		if !slices.ContainsFunc(out, func(b device.TokenBias) bool { return b.Token == t }) {
			out = append(out, device.TokenBias{Token: t, Bias: float32(math.Inf(-1))})
		}
	}
	return out
}
