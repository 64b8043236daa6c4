package engine

import (
	"context"
	"errors"
	"fmt"
	"math/bits"
	"runtime"
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
// while its token is being drawn; the others do. Nearly always state and mask are known from earlier
// texts and looked up. What has to be worked out can take many milliseconds: that is a study, done
// beside the steps by a few goroutines, and only the sequence that needs it waits for it.

// students is how many goroutines compile, and how many study. They take cores from the device where
// that is the host's.
func students() int { return min(4, max(1, runtime.GOMAXPROCS(0)/4)) }

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
		return grammar.NewCache(v, grammar.DefaultLimits(), grammarsKept, grammarsBytes, nil), nil
	})
	return func(ctx context.Context, spec grammar.Spec) (*grammar.Grammar, error) {
		c, err := cache()
		if err != nil {
			return nil, err
		}
		return c.Compile(ctx, spec)
	}
}

// compile makes the grammars of requests, and hands these to the loop with what each choice may
// write next, until ctx ends.
func (e *Engine) compile(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case r := <-e.uncompiled:
			stop := context.AfterFunc(ctx, r.left)
			bound, err := r.bind(r.leave, e.model.Constrain)
			stop()
			if ctx.Err() != nil {
				return
			}
			e.mu.Lock()
			e.compiling--
			e.compilingTokens -= int64(r.prompt)
			e.send(command{add: r, bound: bound, err: err})
			e.mu.Unlock()
		}
	}
}

// study is work on a grammar for one sequence: to read the tokens that its state has not taken in,
// and to find what may follow them.
type study struct {
	seq    *sequence
	tokens []int32
	binding
	err  error
	cost int64 // operations
}

// binding is where a choice stands in its grammar.
type binding struct {
	text grammar.State
	mask []uint32 // what may follow; nil if nothing but the end may
}

// read takes tokens in. Without an error the mask is that of what may follow.
func (b *binding) read(tokens []int32) (err error) {
	for _, t := range tokens {
		if b.text.Done() {
			break
		}
		if err := b.text.Accept(t); err != nil {
			return fmt.Errorf("engine: %w", err)
		}
	}
	if b.mask = nil; b.text.Done() {
		return nil
	}
	if b.mask, err = b.text.Mask(); err != nil {
		return fmt.Errorf("engine: %w", err)
	}
	return nil
}

func (x *study) do() {
	before := x.text.Grammar().Worked()
	x.err = x.read(x.tokens)
	x.cost = x.text.Grammar().Worked() - before
}

// studies are those that wait. Each live sequence has one at most.
type studies struct {
	mu    sync.Mutex
	some  sync.Cond
	wait  []*study
	ended bool
}

// put queues one.
func (q *studies) put(x *study) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.wait = append(q.wait, x)
	q.some.Signal()
}

// take waits for one and takes that of the request that has cost least so far, so that light
// constraints do not wait behind heavy ones. It returns nil once they have ended.
func (q *studies) take() *study {
	q.mu.Lock()
	defer q.mu.Unlock()
	for len(q.wait) == 0 && !q.ended {
		q.some.Wait()
	}
	if q.ended {
		return nil
	}
	first := 0
	for i, x := range q.wait {
		if x.cost < q.wait[first].cost {
			first = i
		}
	}
	x := q.wait[first]
	q.wait = slices.Delete(q.wait, first, first+1)
	return x
}

func (q *studies) end() {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.ended = true
	q.some.Broadcast()
}

// startCompilers runs what compiles and studies until stop is called, which waits for it.
func (e *Engine) startCompilers(ctx context.Context) (stop func()) {
	if e.model.Constrain == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for range students() {
		wg.Go(func() { e.compile(ctx) })
		wg.Go(func() {
			for x := e.studies.take(); x != nil; x = e.studies.take() {
				x.do()
				e.mu.Lock()
				e.send(command{studied: x})
				e.mu.Unlock()
			}
		})
	}
	return func() { cancel(); e.studies.end(); wg.Wait() }
}

// constrained reports whether the output of s is restricted.
func (s *sequence) constrained() bool { return s.spec != nil }

// follow takes the token that s has just got into its grammar's state, as far as that is a look-up. The
// rest is left to a study, which begins when the step is accepted.
func (p *planner) follow(s *sequence, token int32) error {
	if !s.behind {
		known, err := s.text.TryAccept(token)
		if err != nil {
			return fmt.Errorf("engine: %w", err)
		}
		if known {
			if s.text.Done() {
				return nil
			}
			if s.mask, known = s.text.TryMask(); known {
				return nil
			}
		} else {
			s.unread++
		}
		s.behind = true
		p.behind = append(p.behind, s)
		return nil
	}
	s.unread++
	return nil
}

// beginStudies hands out what the accepted step has left to be worked out.
func (p *planner) beginStudies() {
	for _, s := range p.behind {
		if s.state != stateDone {
			p.study(&study{seq: s, tokens: slices.Clone(s.tokens[len(s.tokens)-s.unread:]), binding: binding{text: s.text}, cost: s.studied})
		}
	}
	clear(p.behind)
	p.behind = p.behind[:0]
}

// learn takes a study's outcome.
func (p *planner) learn(x *study) {
	s := x.seq
	s.behind, s.unread = false, 0
	s.studied += x.cost
	switch {
	case s.state == stateDone:
	case x.err != nil:
		p.end(s, nil, failureOf(x.err), "", x.err.Error())
	case x.text.Done():
		s.text = x.text
		p.end(s, nil, pb.FinishReason_FINISH_REASON_STOP, "", "")
	default:
		s.text, s.mask = x.text, x.mask
	}
}

// failureOf is how a request ends that met err in its constraint: one that asks for more than the
// limits allow meets them everywhere.
func failureOf(err error) pb.FinishReason {
	if errors.Is(err, grammar.ErrLimit) || errors.Is(err, grammar.ErrUnsupported) {
		return pb.FinishReason_FINISH_REASON_INVALID
	}
	return pb.FinishReason_FINISH_REASON_ERROR
}

// mustEnd reports whether mask, of what may follow in a restricted sequence, holds nothing but tokens
// that end it. Then the constraint wins over min_tokens: the text is complete.
func (s *sequence) mustEnd(mask []uint32) bool {
	if len(mask) == 0 {
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

// await makes the context that ends when nobody wants r any more.
func (r *request) await() { r.leave, r.left = context.WithCancel(context.Background()) }

// bind compiles what r's output must be and gives every choice its state, after the tokens that it
// has. ctx ends when nobody wants r any more.
func (r *request) bind(ctx context.Context, compile func(context.Context, grammar.Spec) (*grammar.Grammar, error)) ([]binding, error) {
	g, err := compile(ctx, *r.spec)
	if err != nil {
		return nil, err
	}
	out := make([]binding, len(r.choices))
	for i, s := range r.choices {
		out[i].text = g.NewState()
		if err := out[i].read(s.tokens[s.prompt:]); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// lawful keeps of the drafts of s those that its grammar is known to allow one after the other, with
// the mask behind each. Drafts are no reason to work anything out.
func (s *sequence) lawful() {
	s.masks = s.masks[:0]
	text := s.text
	for i, t := range s.drafts {
		known, err := text.TryAccept(t)
		var mask []uint32
		if known && err == nil && !text.Done() {
			mask, known = text.TryMask()
		}
		if !known || err != nil || text.Done() {
			s.drafts = s.drafts[:i]
			return
		}
		s.masks = append(s.masks, mask)
	}
}
