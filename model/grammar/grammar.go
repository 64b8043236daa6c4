package grammar

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
)

var (
	// ErrUnsupported: the source asks for something outside the subset, or is malformed. It is
	// the client's error.
	ErrUnsupported = errors.New("grammar: unsupported")
	// ErrLimit: the source, or the text under way, needs more than a limit allows. It is the
	// client's error too: the message names the limit.
	ErrLimit = errors.New("grammar: over a limit")
	// ErrRefused: the token cannot follow.
	ErrRefused = errors.New("grammar: token refused")
)

// Kind says what a Spec's source is.
type Kind int

const (
	// JSONObject is any JSON object; there is no source.
	JSONObject Kind = iota + 1
	// JSONSchema is JSON that the source, a JSON schema, allows.
	JSONSchema
	// Regex is text that the source, a regular expression, matches from its beginning to its end.
	Regex
)

func (k Kind) String() string {
	switch k {
	case JSONObject:
		return "json_object"
	case JSONSchema:
		return "json_schema"
	case Regex:
		return "regex"
	}
	return fmt.Sprintf("Kind(%d)", int(k))
}

// A Spec is what a client asks for.
type Spec struct {
	Kind   Kind
	Source string
	// Whitespace is a regular expression of what may stand where a pretty-printer puts white space in
	// JSON; "" is at most one blank.
	Whitespace string
}

// Limits bound what a grammar may cost. Zero fields have the values of DefaultLimits.
type Limits struct {
	// SourceBytes bounds the source text.
	SourceBytes int
	// Nodes bounds the network, and Steps the operations that building it takes.
	Nodes, Steps int
	// Nesting bounds how deep JSON values nest that the source does not spell out: free-form
	// values, and references to definitions.
	Nesting int
	// Ways bounds in how many ways a text may be read at once (the size of a state), Work the
	// operations of one mask or one accepted token. Neither depends on what was worked out before.
	Ways, Work int
	// StateBytes and MaskBytes bound what is kept of states and masks, for each grammar.
	StateBytes, MaskBytes int
}

// DefaultLimits suit a worker that serves strangers.
func DefaultLimits() Limits {
	return Limits{
		SourceBytes: 128 << 10, Nodes: 1 << 17, Steps: 1 << 21, Nesting: 64,
		Ways: 2048, Work: 1 << 21, StateBytes: 16 << 20, MaskBytes: 16 << 20,
	}
}

func (l Limits) withDefaults() Limits {
	d := DefaultLimits()
	return Limits{
		SourceBytes: cmp.Or(l.SourceBytes, d.SourceBytes),
		Nodes:       cmp.Or(l.Nodes, d.Nodes), Steps: cmp.Or(l.Steps, d.Steps), Nesting: cmp.Or(l.Nesting, d.Nesting),
		Ways: cmp.Or(l.Ways, d.Ways), Work: cmp.Or(l.Work, d.Work),
		StateBytes: cmp.Or(l.StateBytes, d.StateBytes), MaskBytes: cmp.Or(l.MaskBytes, d.MaskBytes),
	}
}

// A Grammar is a compiled Spec for one vocabulary. It is safe for concurrent use; requests of the
// same Spec should share one (see Cache), for they share its masks then.
type Grammar struct {
	vocabulary *Vocabulary

	mu    sync.Mutex
	a     *automaton
	masks masks
	path  []int32
	first State
}

// Check says whether Compile would take the spec, as far as that can be told without a vocabulary:
// for a front door that refuses a request before it is admitted.
func Check(ctx context.Context, spec Spec, limits Limits) error {
	var every [256]bool
	for c := range every {
		every[c] = true
	}
	limits = limits.withDefaults()
	n, err := build(ctx, spec, &every, limits)
	if err != nil {
		return err
	}
	_, err = newAutomaton(n, limits).initial()
	return err
}

// Compile makes a grammar and its first mask. It is the slow part (milliseconds for usual schemas,
// at most what limits.Steps and limits.Work allow), so call it before the request is scheduled.
// Errors are ErrUnsupported and ErrLimit, which depend on the spec, the vocabulary and the limits
// alone, or the context's cause.
func Compile(ctx context.Context, spec Spec, v *Vocabulary, limits Limits) (*Grammar, error) {
	limits = limits.withDefaults()
	n, err := build(ctx, spec, &v.spelled, limits)
	if err != nil {
		return nil, err
	}
	g := &Grammar{vocabulary: v, a: newAutomaton(n, limits), path: make([]int32, v.all.deep+1)}
	g.masks.reset()
	id, err := g.a.initial()
	if err != nil {
		return nil, err
	}
	g.first = g.at(id)
	first := g.first
	if _, err := first.Mask(); err != nil {
		return nil, err
	}
	return g, nil
}

func build(ctx context.Context, spec Spec, spelled *[256]bool, limits Limits) (*network, error) {
	if len(spec.Source) > limits.SourceBytes {
		return nil, fmt.Errorf("%w: the %s has %d bytes, more than %d", ErrLimit, spec.Kind, len(spec.Source), limits.SourceBytes)
	}
	b := newBuilder(ctx, limits)
	b.place = spec.Kind.String()
	start, end := b.node(), b.node()
	if b.err != nil {
		return nil, b.err
	}
	b.nodes[end].end = true
	if spec.Whitespace != "" {
		if spec.Kind == Regex {
			return nil, fmt.Errorf("%w: whitespace is of JSON, and not of a regex", ErrUnsupported)
		}
		b.whitespace(spec.Whitespace)
	}
	switch spec.Kind {
	case JSONObject:
		if spec.Source != "" {
			return nil, fmt.Errorf("%w: json_object takes no source", ErrUnsupported)
		}
		b.anyObject(start, end)
	case JSONSchema:
		b.schema(start, end, spec.Source)
	case Regex:
		b.regex(start, end, spec.Source)
	default:
		return nil, fmt.Errorf("%w: %v", ErrUnsupported, spec.Kind)
	}
	return b.network(start, spelled)
}

// Vocabulary is the one that the grammar was compiled for.
func (g *Grammar) Vocabulary() *Vocabulary { return g.vocabulary }

// NewState is the state of a request that has written nothing yet.
func (g *Grammar) NewState() State { return g.first }

// Worked is how many operations were spent on states and masks so far, look-ups not counted.
func (g *Grammar) Worked() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.a.worked
}

// Bytes is about what the grammar holds in memory.
func (g *Grammar) Bytes() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.a.bytes + g.masks.count*4*g.vocabulary.Words() + len(g.a.nodes)*128
}
