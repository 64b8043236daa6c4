package engine

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"slices"
	"sync"

	"github.com/quire-serve/quire/model/grammar"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Structured output. A constrained request is compiled beside the loop and joins the queue, at the
// place that its arrival gives it, once that is done. Each of its choices then carries the grammar's
// state after its tokens and the mask of what may follow; both are a function of the tokens, so a
// preempted or moved request goes on as if nothing had been.
//
// The next mask needs the last token, so a constrained sequence has no row in a step that is planned
// while its token is being drawn; the others do.

// compilers is how many constraints are compiled at once, so that a slow one does not hold up all.
const compilers = 4

// SpecOf is a constraint as grammar.Compile takes it.
func SpecOf(c *pb.Constraint) (grammar.Spec, error) {
	switch k := c.GetKind().(type) {
	case *pb.Constraint_JsonObject:
		if k.JsonObject {
			return grammar.Spec{Kind: grammar.JSONObject, Whitespace: c.Whitespace}, nil
		}
	case *pb.Constraint_JsonSchema:
		return grammar.Spec{Kind: grammar.JSONSchema, Source: k.JsonSchema, Whitespace: c.Whitespace}, nil
	case *pb.Constraint_Regex:
		return grammar.Spec{Kind: grammar.Regex, Source: k.Regex, Whitespace: c.Whitespace}, nil
	}
	return grammar.Spec{}, errors.New("constraint is none of json_object, json_schema and regex")
}

// What the compiled grammars of a worker may hold.
const (
	grammarsKept  = 64
	grammarsBytes = 256 << 20
)

// Grammars returns a Model.Constrain for a tokenizer's tokens and the model's vocabulary. The tokens
// are laid out when the first constraint comes.
func Grammars(t grammar.Tokens, vocab int) func(context.Context, grammar.Spec) (*grammar.Grammar, error) {
	cache := sync.OnceValues(func() (*grammar.Cache, error) {
		v, err := grammar.NewVocabulary(t, vocab)
		if err != nil {
			return nil, err
		}
		return grammar.NewCache(v, grammar.DefaultLimits(), grammarsKept, grammarsBytes), nil
	})
	return func(ctx context.Context, spec grammar.Spec) (*grammar.Grammar, error) {
		c, err := cache()
		if err != nil {
			return nil, err
		}
		return c.Compile(ctx, spec)
	}
}

// compile makes the grammars of requests and hands these to the loop, until ctx ends.
func (e *Engine) compile(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-e.uncompiled:
			g, err := e.model.Constrain(ctx, *r.spec)
			if ctx.Err() != nil {
				return
			}
			e.mu.Lock()
			e.compiling--
			e.compilingTokens -= int64(r.prompt)
			e.send(command{add: r, grammar: g, err: err})
			e.mu.Unlock()
		}
	}
}

// startCompilers runs the compilers until stop is called, which waits for them.
func (e *Engine) startCompilers(ctx context.Context) (stop func()) {
	if e.model.Constrain == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for range compilers {
		wg.Go(func() { e.compile(ctx) })
	}
	return func() { cancel(); wg.Wait() }
}

// constrained reports whether the output of s is restricted.
func (s *sequence) constrained() bool { return s.spec != nil }

// follow takes token into the state of s's grammar and finds what may come next.
func (s *sequence) follow(token int32) error {
	if err := s.text.Accept(token); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	if s.text.Done() {
		return nil
	}
	return s.allow()
}

// allow finds what may come next.
func (s *sequence) allow() (err error) {
	if s.mask, err = s.text.Mask(); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	return nil
}

// mustEnd reports whether mask, of what may follow in a constrained sequence, holds nothing but tokens
// that end it. Then the constraint wins over min_tokens: the text is complete.
func (s *sequence) mustEnd(mask []uint32) bool {
	if !s.constrained() {
		return false
	}
	for i, word := range mask {
		for ; word != 0; word &= word - 1 {
			if t := int32(32*i + bits.TrailingZeros32(word)); !slices.Contains(s.eos, t) && !slices.Contains(s.stopIDs, t) {
				return false
			}
		}
	}
	return true
}

// bind gives every choice of r its state in g, after the tokens that it has.
func (r *request) bind(g *grammar.Grammar) error {
	for _, s := range r.choices {
		s.text = g.NewState()
		if err := s.allow(); err != nil {
			return err
		}
		for _, t := range s.tokens[s.prompt:] {
			if s.text.Done() {
				break
			}
			if err := s.follow(t); err != nil {
				return err
			}
		}
	}
	return nil
}

// lawful keeps of the drafts of s those that its grammar allows one after the other, with the mask
// behind each.
func (s *sequence) lawful() {
	s.masks = s.masks[:0]
	text := s.text
	for i, t := range s.drafts {
		err := text.Accept(t)
		var mask []uint32
		if err == nil && !text.Done() {
			mask, err = text.Mask()
		}
		if err != nil || text.Done() {
			s.drafts = s.drafts[:i]
			return
		}
		s.masks = append(s.masks, mask)
	}
}
