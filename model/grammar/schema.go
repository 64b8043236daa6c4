package grammar

import (
	"encoding/json"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// A schema under compilation. Every keyword is either taken account of, or an annotation, or
// refused by its place.
type schemas struct {
	b    *builder
	root any
	// building is the set of referenced places whose automaton is not finished.
	building map[string]bool
}

// annotations say nothing about which documents are valid. format is one by the specification's
// default, and is treated so.
var annotations = []string{
	"title", "description", "default", "examples", "$schema", "$comment", "format", "deprecated",
	"readOnly", "writeOnly", "contentEncoding", "contentMediaType",
}

// keywords are those of the subset, with the one type that they speak of, if any.
var keywords = map[string]string{
	"properties": "object", "required": "object", "additionalProperties": "object",
	"items": "array", "minItems": "array", "maxItems": "array", "uniqueItems": "array",
	"minLength": "string", "maxLength": "string", "pattern": "string",
	"minimum": "number", "maximum": "number", "exclusiveMinimum": "number", "exclusiveMaximum": "number",
	"type": "", "enum": "", "const": "", "anyOf": "", "oneOf": "", "allOf": "", "$ref": "",
	"$defs": "", "definitions": "",
}

var types = []string{"object", "array", "string", "integer", "number", "boolean", "null"}

// schema adds the JSON that the schema allows.
func (b *builder) schema(from, to int32, source string) {
	doc, err := parseJSON(source)
	if err != nil {
		b.fail(fmt.Errorf("%w: json_schema: %w", ErrUnsupported, err))
		return
	}
	(&schemas{b: b, root: doc, building: map[string]bool{}}).value(from, to, doc, "", nil)
}

func (s *schemas) refuse(place, format string, args ...any) {
	s.b.fail(fmt.Errorf("%w: json_schema at %q: %s", ErrUnsupported, place, fmt.Sprintf(format, args...)))
}

// value adds the values that one schema allows. place is its JSON pointer; open are the references
// followed since the last bracket or brace, which must not recur.
func (s *schemas) value(from, to int32, schema any, place string, open []string) {
	if s.b.err != nil {
		return
	}
	s.b.place = fmt.Sprintf("json_schema at %q", place)
	switch schema {
	case true:
		s.b.anyValue(from, to)
		return
	case false:
		s.refuse(place, "false allows nothing")
		return
	}
	o, ok := schema.(*object)
	if !ok {
		s.refuse(place, "a schema is an object, true or false")
		return
	}
	used := s.keywords(o, place)
	if s.b.err != nil {
		return
	}
	only := func(allowed ...string) bool {
		for _, name := range used {
			if !slices.Contains(allowed, name) {
				s.refuse(join(place, name), "%s together with %s", name, allowed[0])
				return false
			}
		}
		return true
	}
	has := func(name string) bool { _, ok := o.values[name]; return ok }
	switch {
	case len(used) == 0:
		s.b.anyValue(from, to)
	case has("$ref"):
		if only("$ref") {
			s.reference(from, to, o.values["$ref"], place, open)
		}
	case has("const"):
		if only("const", "type") {
			s.constants(from, to, []any{o.values["const"]}, o, place)
		}
	case has("enum"):
		list, _ := o.values["enum"].([]any)
		if len(list) == 0 {
			s.refuse(join(place, "enum"), "not a list of at least one value")
		} else if only("enum", "type") {
			s.constants(from, to, list, o, place)
		}
	case has("anyOf") || has("oneOf"):
		name := "anyOf"
		if has("oneOf") {
			name = "oneOf"
		}
		list, _ := o.values[name].([]any)
		if len(list) == 0 {
			s.refuse(join(place, name), "not a list of at least one schema")
		} else if only(name) {
			for i, sub := range list {
				s.value(from, to, sub, fmt.Sprintf("%s/%s/%d", place, name, i), open)
			}
		}
	case has("allOf"):
		list, _ := o.values["allOf"].([]any)
		if len(list) != 1 {
			s.refuse(join(place, "allOf"), "only a list of one schema is supported")
		} else if only("allOf") {
			s.value(from, to, list[0], place+"/allOf/0", open)
		}
	default:
		for _, name := range s.types(o, used, place) {
			s.typed(from, to, name, o, place)
		}
	}
}

// keywords returns the names that restrict, after refusing those outside the subset.
func (s *schemas) keywords(o *object, place string) []string {
	var used []string
	for _, name := range o.names {
		if slices.Contains(annotations, name) || place == "" && name == "$id" {
			continue
		}
		if _, ok := keywords[name]; !ok {
			s.refuse(join(place, name), "the keyword %q is not supported", name)
			return nil
		}
		if name == "$defs" || name == "definitions" {
			if _, ok := o.values[name].(*object); !ok {
				s.refuse(join(place, name), "not an object")
				return nil
			}
			continue
		}
		used = append(used, name)
	}
	return used
}

// types returns the types that the schema allows. Without the keyword type it is the one type that
// the other keywords speak of: the values of other types, which they do not restrict, are left
// out.
func (s *schemas) types(o *object, used []string, place string) []string {
	var list []string
	switch t := o.values["type"].(type) {
	case string:
		list = []string{t}
	case []any:
		for _, v := range t {
			name, _ := v.(string)
			list = append(list, name)
		}
	case nil:
		if slices.Contains(used, "type") {
			s.refuse(join(place, "type"), "not a type")
			return nil
		}
		list = []string{keywords[used[0]]}
	default:
		s.refuse(join(place, "type"), "neither a type nor a list of types")
		return nil
	}
	if len(list) == 0 {
		s.refuse(join(place, "type"), "an empty list")
	}
	for _, name := range list {
		if !slices.Contains(types, name) {
			s.refuse(join(place, "type"), "%q is no type", name)
			return nil
		}
	}
	if slices.Contains(list, "number") { // an integer is a number
		list = slices.DeleteFunc(list, func(t string) bool { return t == "integer" })
	}
	for _, name := range used {
		of := keywords[name]
		if of != "" && !slices.Contains(list, of) && !(of == "number" && slices.Contains(list, "integer")) {
			s.refuse(join(place, name), "the keyword does not apply to %s", strings.Join(list, " or "))
			return nil
		}
	}
	return list
}

func (s *schemas) typed(from, to int32, name string, o *object, place string) {
	switch name {
	case "object":
		s.object(from, to, o, place)
	case "array":
		s.array(from, to, o, place)
	case "string":
		s.text(from, to, o, place)
	case "integer":
		s.integer(from, to, o, place)
	case "number":
		s.number(from, to, o, place)
	case "boolean":
		s.b.literals(from, to, []string{"true", "false"})
	case "null":
		s.b.literal(from, to, "null")
	}
}

// constants adds the values that are of the schema's type, if it names one.
func (s *schemas) constants(from, to int32, list []any, o *object, place string) {
	var allowed []string
	if _, ok := o.values["type"]; ok {
		if allowed = s.types(o, []string{"type"}, place); s.b.err != nil {
			return
		}
	}
	var texts []string
	for _, v := range list {
		t := typeOf(v)
		if allowed == nil || slices.Contains(allowed, t) || t == "integer" && slices.Contains(allowed, "number") {
			texts = append(texts, spell(v))
		}
	}
	if len(texts) == 0 {
		s.refuse(place, "no value is of the type")
		return
	}
	s.b.literals(from, to, texts)
}

// reference calls the automaton of another place of the document. The call nests: references are
// how a schema recurs.
func (s *schemas) reference(from, to int32, ref any, place string, open []string) {
	text, _ := ref.(string)
	at := join(place, "$ref")
	pointer, local := strings.CutPrefix(text, "#")
	pointer, err := url.PathUnescape(pointer)
	if !local || err != nil || pointer != "" && pointer[0] != '/' {
		s.refuse(at, "only #, #/$defs/NAME and other pointers into the schema are supported")
		return
	}
	target, ok := resolve(s.root, pointer)
	if !ok {
		s.refuse(at, "%q is not in the schema", text)
		return
	}
	if slices.Contains(open, pointer) {
		s.refuse(at, "%q refers to itself with no object or array between", text)
		return
	}
	start := s.b.rule("ref "+pointer, func(from, to int32) {
		s.value(from, to, target, pointer, append(slices.Clip(open), pointer))
	})
	s.b.call(from, start, to, true)
}

func (s *schemas) array(from, to int32, o *object, place string) {
	if unique, ok := o.values["uniqueItems"]; ok && unique != false {
		s.refuse(join(place, "uniqueItems"), "only false is supported")
		return
	}
	min, max, ok := s.counts(o, "minItems", "maxItems", place)
	if !ok {
		return
	}
	items := s.b.automaton(func(from, to int32) {
		if sub, ok := o.values["items"]; ok {
			s.value(from, to, sub, join(place, "items"), nil)
		} else {
			s.b.anyValue(from, to)
		}
	})
	item := func(from, to int32) { s.b.call(from, items, to, false) }
	s.b.place = fmt.Sprintf("json_schema at %q", place)
	if min == 0 && max < 0 {
		s.b.list(from, to, '[', ']', item)
		return
	}
	inside, first := s.b.node(), s.b.node()
	s.b.bytes(from, inside, '[', '[')
	s.b.space(inside, first)
	if min == 0 {
		s.b.bytes(first, to, ']', ']')
	}
	if max == 0 {
		return
	}
	after, rest, last := s.b.node(), s.b.node(), s.b.node()
	item(first, after)
	more := s.b.automaton(func(from, to int32) {
		comma, next := s.b.node(), s.b.node()
		s.b.bytes(from, comma, ',', ',')
		s.b.space(comma, next)
		item(next, to)
	})
	if max > 0 {
		max--
	}
	s.b.repeat(after, rest, more, atLeast0(min-1), max)
	s.b.space(rest, last)
	s.b.bytes(last, to, ']', ']')
}

func atLeast0(n int) int { return max(n, 0) }

func (s *schemas) text(from, to int32, o *object, place string) {
	min, max, ok := s.counts(o, "minLength", "maxLength", place)
	if !ok {
		return
	}
	pattern, ok := o.values["pattern"]
	switch {
	case !ok && min == 0 && max < 0:
		s.b.anyText(from, to)
	case !ok:
		s.b.text(from, to, min, max)
	case min != 0 || max >= 0:
		s.refuse(join(place, "pattern"), "pattern together with minLength or maxLength: count in the pattern, as in ^[a-z]{2,8}$")
	default:
		source, ok := pattern.(string)
		if !ok {
			s.refuse(join(place, "pattern"), "not a string")
			return
		}
		inside, end := s.b.node(), s.b.node()
		s.b.bytes(from, inside, '"', '"')
		s.b.place = fmt.Sprintf("json_schema at %q", join(place, "pattern"))
		s.b.pattern(inside, end, source)
		s.b.bytes(end, to, '"', '"')
	}
}

// counts reads two keywords that bound a number of things; max is -1 without a bound.
func (s *schemas) counts(o *object, minName, maxName, place string) (min, max int, ok bool) {
	max = -1
	for name, to := range map[string]*int{minName: &min, maxName: &max} {
		v, ok := o.values[name]
		if !ok {
			continue
		}
		n, isNumber := v.(json.Number)
		i, err := n.Int64()
		if !isNumber || err != nil || i < 0 {
			s.refuse(join(place, name), "not a whole number from 0")
			return 0, 0, false
		}
		if i > int64(s.b.limits.Nodes) {
			s.b.fail(fmt.Errorf("%w: json_schema at %q: more than %d", ErrLimit, join(place, name), s.b.limits.Nodes))
			return 0, 0, false
		}
		*to = int(i)
	}
	if max >= 0 && max < min {
		s.refuse(join(place, maxName), "less than %s", minName)
		return 0, 0, false
	}
	return min, max, true
}
