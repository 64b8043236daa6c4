package gateway

import (
	"context"
	"errors"
	"runtime"
	"sync"
	"time"

	"github.com/quire-serve/quire/model/grammar"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// What a client wants its output to be is compiled here too, with the code that the worker uses, so that it
// is refused before it is admitted, with the place that is wrong.

// grammars compiles for one model; made when the first constraint comes.
type grammars struct {
	gate  *grammar.Gate
	once  sync.Once
	cache *grammar.Cache
	err   error
}

// What a gateway keeps of compiled constraints, a model.
const (
	grammarsKept  = 64
	grammarsBytes = 64 << 20
)

// compilesWaiting is how many constraints wait to be compiled, for all models of a gateway: a minute's
// worth of the slowest. Beyond that clients are told to come again.
const compilesWaiting = 256

// newCompileGate lets half of the cores compile.
func newCompileGate() *grammar.Gate {
	return grammar.NewGate(max(1, runtime.GOMAXPROCS(0)/2), compilesWaiting)
}

func (m *served) compile(ctx context.Context, spec grammar.Spec) error {
	m.grammars.once.Do(func() {
		v, err := grammar.NewVocabulary(m.Tokenizer, m.Tokenizer.Size())
		if err != nil {
			m.grammars.err = err
			return
		}
		m.grammars.cache = grammar.NewCache(v, grammar.DefaultLimits(), grammarsKept, grammarsBytes, m.grammars.gate)
	})
	if m.grammars.err != nil {
		return m.grammars.err
	}
	_, err := m.grammars.cache.Compile(ctx, spec)
	return err
}

// checkConstraint refuses a constraint outside the subset. param names it in errors. The work of
// compiling is bounded, and ends when ctx does.
func (m *served) checkConstraint(ctx context.Context, c *pb.Constraint, param string) *apiError {
	if c == nil {
		return nil
	}
	var spec grammar.Spec
	switch k := c.Kind.(type) {
	case *pb.Constraint_JsonObject:
		if !k.JsonObject {
			return invalid(param, "%s: json_object must be true if it is there", param)
		}
		spec.Kind = grammar.JSONObject
	case *pb.Constraint_JsonSchema:
		spec = grammar.Spec{Kind: grammar.JSONSchema, Source: k.JsonSchema}
	case *pb.Constraint_Regex:
		spec = grammar.Spec{Kind: grammar.Regex, Source: k.Regex}
	default:
		return invalid(param, "%s must be one of json_object, json_schema and regex", param)
	}
	spec.Whitespace = c.Whitespace
	err := m.compile(ctx, spec)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, grammar.ErrBusy):
		e := overloaded(time.Second, "%s: too many schemas and expressions wait to be compiled; one that is compiled already need not wait", param)
		e.reason = "compiles"
		return e
	case ctx.Err() != nil:
		return gone()
	}
	return invalid(param, "%s: %v", param, err)
}
