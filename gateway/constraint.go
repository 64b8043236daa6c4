package gateway

import (
	"context"
	"sync"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/grammar"
)

// Structured output. What a client asks for is compiled here too, with the code that the worker uses,
// so that it is refused before it is admitted, with the place that is wrong.

// grammars compiles for one model; made when the first constraint comes.
type grammars struct {
	once  sync.Once
	cache *grammar.Cache
	err   error
}

// What a gateway keeps of compiled constraints, a model.
const (
	grammarsKept  = 64
	grammarsBytes = 64 << 20
)

func (m *served) compile(ctx context.Context, spec grammar.Spec) error {
	m.grammars.once.Do(func() {
		v, err := grammar.NewVocabulary(m.Tokenizer, m.Tokenizer.Size())
		if err != nil {
			m.grammars.err = err
			return
		}
		m.grammars.cache = grammar.NewCache(v, grammar.DefaultLimits(), grammarsKept, grammarsBytes)
	})
	if m.grammars.err != nil {
		return m.grammars.err
	}
	_, err := m.grammars.cache.Compile(ctx, spec)
	return err
}

// checkConstraint refuses a constraint outside the subset. param names it in errors.
func (m *served) checkConstraint(c *pb.Constraint, param string) *apiError {
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
	// The limits of grammars bound how long this takes.
	if err := m.compile(context.Background(), spec); err != nil {
		return invalid(param, "%s: %v", param, err)
	}
	return nil
}

// responseFormat reads OpenAI's "response_format" into p; param is where the constraint stands.
func (f *fields) responseFormat(p *pb.SamplingParams) (param string) {
	format, ok := f.object("response_format")
	if !ok {
		return ""
	}
	kind, _ := format.text("type")
	switch kind {
	case "text":
	case "json_object":
		p.Constraint = &pb.Constraint{Kind: &pb.Constraint_JsonObject{JsonObject: true}}
		param = "response_format"
	case "json_schema":
		param = "response_format.json_schema.schema"
		inner, ok := format.object("json_schema")
		if !ok {
			format.missing("json_schema")
			break
		}
		schema, ok := inner.get("schema")
		if !ok {
			inner.missing("schema")
		}
		if _, isObject := inner.object("schema"); ok && !isObject {
			inner.wrongType("schema", "an object", schema)
		}
		if inner.err != nil {
			f.fail(inner.err)
		}
		p.Constraint = &pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: string(schema)}}
	default:
		f.fail(unsupported("response_format", "response_format of type %q is not supported; \"text\", \"json_object\" and \"json_schema\" are", clip(kind, 32)))
	}
	if format.err != nil {
		f.fail(format.err)
	}
	return param
}
