package engine

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/quire-serve/quire/device"
	"github.com/quire-serve/quire/kvcache"
	"github.com/quire-serve/quire/model/grammar"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine/draft"
)

// Settings bound the engine. Zero values of fields with a default mean the default.
type Settings struct {
	// MaxSequences run at once. Default 64.
	MaxSequences int
	// MaxBatchTokens is the token budget of a step, at least MaxSequences so that decodes always
	// fit. Default 512, or MaxSequences if that is more.
	MaxBatchTokens int
	// PrefillChunk caps the prompt tokens of one sequence in a step. 0 is no cap.
	PrefillChunk int
	// DecodeShare is the share of their rate that streams keep beside a long prompt, 0.05 to 0.95: high
	// values keep them smooth, low ones shorten the prompt's time to first token. Default 0.8; negative
	// lets prompts take whole steps.
	DecodeShare float64
	// Speculate is how many tokens a step may guess at most of each sequence that decodes, from what
	// the sequence holds already: as many as gain more than they cost. 0 (default) is none. It changes
	// no output.
	Speculate int
	// ScoreRows is how many log-probabilities of tokens that came with requests a step may compute.
	// Default 32.
	ScoreRows int

	// BlockTokens is the size of a KV block, a multiple of 16 on real devices. Default 16.
	BlockTokens int
	// Blocks is the size of the pool. Required.
	Blocks int
	// WindowBlocks is the size of a second pool, for the layers with a window of a model that has others
	// too: those are then what Blocks is for. 0 (default) keeps the blocks of all layers in one pool, those
	// behind a window too unless all layers have one.
	WindowBlocks int
	// PrefixCache shares the blocks of equal prefixes.
	PrefixCache bool

	// Tenants bounds what single tenants' sequences may hold of the pool. They are told apart by
	// Request.tenant; who is not named has no bound.
	Tenants []Tenant

	// QueueRequests and QueueTokens bound what waits to start: requests, and their prompt tokens.
	// Defaults 1,024 and 4,194,304.
	QueueRequests int
	QueueTokens   int
	// ReturnAfter is how long a preempted request may wait to go on before it is handed back. Default
	// 30 s; negative keeps it for good.
	ReturnAfter time.Duration

	// Depth is how many steps may be with the device: 2 (default) plans ahead, 1 does not.
	Depth int
	// TraceSteps is how many steps' traces are kept. Default 256.
	TraceSteps int
	// Logger gets accounting errors and device errors. Default slog.Default().
	Logger *slog.Logger
}

// Model is what the engine must know of a model, and the runner that computes it.
type Model struct {
	Runner        device.Runner
	ContextLength int // tokens a sequence may hold
	// Window is how many tokens back any layer attends, the token itself included; 0 is all. With
	// Settings.WindowBlocks it is that of the layers that have a window.
	Window int
	Vocab  int
	EOS    []int32 // tokens that end generation
	// Stops makes a finder of the stop strings of p. Without it, requests with stop strings are refused.
	Stops func(p *pb.SamplingParams) StopFinder
	// Special finds the control token that a stop string spells, which then ends a choice by its id. nil:
	// there are none.
	Special func(spelling string) (token int32, ok bool)
	// Spell lists the sequences of tokens that spell a bad word, each of 1 and up. Without it, requests with
	// bad words are refused.
	Spell func(word string) [][]int32
	// Constrain compiles what an output must be, for masks of Vocab bits. It is called beside the
	// loop, from several goroutines. Without it, constrained requests are refused.
	Constrain func(context.Context, grammar.Spec) (*grammar.Grammar, error)
	// Tiers take what the pool evicts; nil is none. They need Settings.PrefixCache, and no Window.
	Tiers *Tiers
}

// StopFinder looks for stop strings in one choice's text.
type StopFinder interface {
	// Push adds the choice's next token; found reports that stop ends the text now.
	Push(token int32) (stop string, found bool)
}

// WithDefaults fills the zero values in.
func (s Settings) WithDefaults() Settings {
	set := func(v *int, d int) {
		if *v == 0 {
			*v = d
		}
	}
	set(&s.MaxSequences, 64)
	set(&s.MaxBatchTokens, max(512, s.MaxSequences))
	set(&s.ScoreRows, 32)
	set(&s.BlockTokens, 16)
	set(&s.QueueRequests, 1024)
	set(&s.QueueTokens, 4<<20)
	set(&s.Depth, 2)
	set(&s.TraceSteps, 256)
	if s.DecodeShare == 0 {
		s.DecodeShare = 0.8
	}
	if s.ReturnAfter == 0 {
		s.ReturnAfter = 30 * time.Second
	}
	if s.Logger == nil {
		s.Logger = slog.Default()
	}
	return s
}

// Validate checks settings that have their defaults.
func (s Settings) Validate() error {
	bounds := []struct {
		name      string
		v, lo, hi int
	}{
		{"max_sequences", s.MaxSequences, 1, 1 << 16},
		{"max_batch_tokens", s.MaxBatchTokens, s.MaxSequences, 1 << 20},
		{"prefill_chunk", s.PrefillChunk, 0, 1 << 20},
		{"speculate", s.Speculate, 0, draft.MaxPerSequence},
		{"score_rows", s.ScoreRows, 1, 1 << 16},
		{"block_tokens", s.BlockTokens, 1, 1 << 16},
		{"blocks", s.Blocks, 1, 1 << 30},
		{"window_blocks", s.WindowBlocks, 0, 1 << 30},
		{"queue_requests", s.QueueRequests, 1, 1 << 24},
		{"queue_tokens", s.QueueTokens, 1, 1 << 40},
		{"depth", s.Depth, 1, 2},
		{"trace_steps", s.TraceSteps, 1, 1 << 20},
	}
	for _, b := range bounds {
		if b.v < b.lo || b.v > b.hi {
			return fmt.Errorf("engine: %s is %d, must be %d to %d", b.name, b.v, b.lo, b.hi)
		}
	}
	if err := s.validateTenants(); err != nil {
		return err
	}
	if s.DecodeShare >= 0 && !(s.DecodeShare >= 0.05 && s.DecodeShare <= 0.95) {
		return fmt.Errorf("engine: decode_share is %v, must be 0.05 to 0.95, or negative", s.DecodeShare)
	}
	return nil
}

// Limits are what the runner must be compiled for.
func (s Settings) Limits() device.Limits {
	return device.Limits{
		Rows:      s.MaxBatchTokens,
		Sequences: s.MaxSequences,
		Samples:   s.MaxSequences + s.draftRows() + s.ScoreRows,
		Depth:     s.Depth,
	}
}

// Context is how many tokens a sequence may hold: the model's context or as many as each whole pool
// suffices for, so that every admitted sequence can run to its end alone.
func (s Settings) Context(model, window int) int {
	first, windowed := s.groups(window)
	for _, c := range []kvcache.Config{first, windowed} {
		if c.Blocks > 0 && c.Charge(model, s.MaxBatchTokens) > c.Blocks {
			model = min(model, c.Blocks*s.BlockTokens)
		}
	}
	return model
}

// Charge is how many blocks a sequence of tokens tokens may come to hold, in a group of layers with a
// window or, 0, without.
func (s Settings) Charge(tokens, window int) int {
	return kvcache.Config{BlockTokens: s.BlockTokens, Window: window}.Charge(tokens, s.MaxBatchTokens)
}

// groups says how large the pools are and how far they see; the second has no blocks if there is one.
func (s Settings) groups(window int) (first, windowed kvcache.Config) {
	first = kvcache.Config{Blocks: s.Blocks, BlockTokens: s.BlockTokens, Window: window}
	if s.WindowBlocks > 0 {
		windowed = first
		first.Window, windowed.Blocks = 0, s.WindowBlocks
	}
	return first, windowed
}
