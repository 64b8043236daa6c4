package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/quire-serve/quire/model/grammar"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Structured output. What a client asks for is compiled here too, with the code that the worker uses,
// so that it is refused before it is admitted, with the place that is wrong.

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

// constrained reads what the output must be into p, in OpenAI's words or in vLLM's; param is where it
// stands. Two at once are refused.
func (f *fields) constrained(p *pb.SamplingParams) (param string) {
	param = f.responseFormat(p)
	read := func(f *fields, prefix string, kinds ...string) {
		for _, kind := range kinds {
			raw, ok := f.get(prefix + kind)
			if !ok || kind == "json_object" && string(raw) == "false" {
				continue
			}
			at := f.path + prefix + kind
			if p.Constraint != nil {
				f.fail(invalid(at, "%s: the output is restricted already, by %s", at, param))
				return
			}
			param, p.Constraint = at, f.restriction(prefix+kind, kind, raw)
		}
	}
	read(f, "guided_", "json", "regex", "choice")
	read(f, "", "json_schema", "regex")
	if pattern, ok := f.text("guided_whitespace_pattern"); ok && pattern != "" {
		f.whitespace(p, "guided_whitespace_pattern", pattern)
	}
	if inner, ok := f.object("structured_outputs"); ok {
		inner.refuse("grammar", "; use a schema or an expression")
		inner.refuse("structural_tag", "")
		inner.only("json", "regex", "choice", "json_object", "grammar", "structural_tag", "whitespace_pattern",
			"disable_any_whitespace", "disable_fallback", "disable_additional_properties") // the last two are so here
		read(inner, "", "json", "regex", "choice", "json_object")
		if pattern, ok := inner.text("whitespace_pattern"); ok && pattern != "" {
			f.whitespace(p, inner.path+"whitespace_pattern", pattern)
		}
		if inner.boolean("disable_any_whitespace", false) {
			f.whitespace(p, inner.path+"disable_any_whitespace", "(|)")
		}
		if inner.err != nil {
			f.fail(inner.err)
		}
	}
	return param
}

// whitespace sets what may stand between the tokens of the JSON that the output must be.
func (f *fields) whitespace(p *pb.SamplingParams, param, pattern string) {
	switch {
	case p.Constraint == nil || p.Constraint.GetRegex() != "":
		f.fail(invalid(param, "%s needs an output that is restricted to JSON", param))
	case p.Constraint.Whitespace != "":
		f.fail(invalid(param, "%s: white space is restricted already", param))
	default:
		p.Constraint.Whitespace = pattern
	}
}

// restriction reads one of vLLM's kinds, found under name.
func (f *fields) restriction(name, kind string, raw json.RawMessage) *pb.Constraint {
	switch kind {
	case "json", "json_schema": // A schema, or its text.
		schema := string(raw)
		if raw[0] == '"' {
			schema, _ = f.text(name)
		}
		return &pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: schema}}
	case "regex":
		expression, _ := f.text(name)
		return &pb.Constraint{Kind: &pb.Constraint_Regex{Regex: expression}}
	case "choice":
		items, ok := f.list(name)
		if ok && len(items) == 0 {
			f.fail(invalid(f.path+name, "%s is empty; it needs at least one text", f.path+name))
		}
		texts := make([]string, len(items))
		for i, item := range items {
			if item[0] != '"' || json.Unmarshal(item, &texts[i]) != nil {
				f.wrongType(name+"["+strconv.Itoa(i)+"]", "a string", item)
				return nil
			}
			texts[i] = regexp.QuoteMeta(texts[i])
		}
		return &pb.Constraint{Kind: &pb.Constraint_Regex{Regex: strings.Join(texts, "|")}}
	default: // json_object
		return &pb.Constraint{Kind: &pb.Constraint_JsonObject{JsonObject: f.boolean(name, false)}}
	}
}

// responseFormat reads OpenAI's "response_format" into p; param is where the constraint stands.
func (f *fields) responseFormat(p *pb.SamplingParams) (param string) {
	format, ok := f.object("response_format")
	if !ok {
		return ""
	}
	format.only("type", "json_schema", "schema")
	kind, _ := format.text("type")
	schema, given := format.get("schema")
	if _, isObject := format.object("schema"); given && (!isObject || kind != "json_object") {
		f.fail(invalid("response_format.schema", "response_format.schema is a JSON schema beside the type \"json_object\"; that of the type \"json_schema\" is in response_format.json_schema.schema"))
	}
	switch kind {
	case "text":
	case "json_object":
		if given {
			p.Constraint, param = &pb.Constraint{Kind: &pb.Constraint_JsonSchema{JsonSchema: string(schema)}}, "response_format.schema"
			break
		}
		p.Constraint = &pb.Constraint{Kind: &pb.Constraint_JsonObject{JsonObject: true}}
		param = "response_format"
	case "json_schema":
		param = "response_format.json_schema.schema"
		inner, ok := format.object("json_schema")
		if !ok {
			format.missing("json_schema")
			break
		}
		inner.only("name", "description", "strict", "schema")
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
