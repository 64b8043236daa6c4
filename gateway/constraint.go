package gateway

import (
	"encoding/json"
	"regexp"
	"strconv"
	"strings"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Structured output, in the words of OpenAI's API and of vLLM's.

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
