package grammar

import (
	"fmt"
	"math/big"
	"math/bits"
	"net/url"
	"slices"
	"strings"
	"unicode/utf8"
)

// A schema under compilation. Every keyword is either taken account of, or an annotation, or
// refused by its place.
type schemas struct {
	b    *builder
	root any
}

// annotations say nothing about which documents are valid. format is one by the specification's
// default, and is treated so; so is what begins with x-.
var annotations = []string{
	"title", "description", "default", "examples", "$schema", "$comment", "format", "deprecated",
	"readOnly", "writeOnly", "contentEncoding", "contentMediaType", "discriminator",
}

// keywords are those of the subset, with the one type that they speak of, if any.
var keywords = map[string]string{
	"properties": "object", "required": "object", "additionalProperties": "object",
	"propertyNames": "object", "patternProperties": "object", "minProperties": "object", "maxProperties": "object",
	"items": "array", "prefixItems": "array", "additionalItems": "array",
	"minItems": "array", "maxItems": "array", "uniqueItems": "array",
	"minLength": "string", "maxLength": "string", "pattern": "string",
	"minimum": "number", "maximum": "number", "exclusiveMinimum": "number", "exclusiveMaximum": "number",
	"multipleOf": "number",
	"type":       "", "enum": "", "const": "", "anyOf": "", "oneOf": "", "allOf": "", "$ref": "",
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
	(&schemas{b: b, root: doc}).value(from, to, doc, "", nil)
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
	has := func(name string) bool { return slices.Contains(used, name) }
	alone := len(used) == 1
	switch {
	case len(used) == 0:
		s.b.anyValue(from, to)
	case has("$ref") && alone:
		s.reference(from, to, o.values["$ref"], place, open)
	case has("allOf") && alone && s.length(o, "allOf", place) == 1:
		s.value(from, to, o.values["allOf"].([]any)[0], place+"/allOf/0", open)
	case has("$ref") || has("allOf"):
		s.merged(from, to, o, place, open)
	case has("anyOf") || has("oneOf"):
		s.choice(from, to, o, place, open)
	case has("const"):
		s.constants(from, to, []any{o.values["const"]}, o, used, place)
	case has("enum"):
		if s.length(o, "enum", place) > 0 {
			s.constants(from, to, o.values["enum"].([]any), o, used, place)
		}
	default:
		for _, name := range s.types(o, used, place) {
			s.typed(from, to, name, o, place)
		}
	}
}

// length is that of a list that must have something in it; 0 is refused.
func (s *schemas) length(o *object, name, place string) int {
	list, _ := o.values[name].([]any)
	if len(list) == 0 {
		s.refuse(join(place, name), "not a list of at least one")
	}
	return len(list)
}

// choice adds the branches of anyOf or oneOf, each with all that stands beside them.
func (s *schemas) choice(from, to int32, o *object, place string, open []string) {
	name := "anyOf"
	if _, ok := o.values["oneOf"]; ok {
		name = "oneOf"
	}
	if s.length(o, name, place) == 0 {
		return
	}
	beside := o.without(name)
	plain := len(s.keywords(beside, place)) == 0
	refused := 0
	list := o.values[name].([]any)
	for i, sub := range list {
		at := fmt.Sprintf("%s/%s/%d", place, name, i)
		switch {
		case sub == false:
			if refused++; refused == len(list) {
				s.refuse(place, "every branch is false, which allows nothing")
			}
		case plain:
			s.value(from, to, sub, at, open)
		default:
			s.value(from, to, &object{names: []string{"allOf"}, values: map[string]any{"allOf": []any{beside, sub}}}, at, open)
		}
	}
}

// keywords returns the names that restrict, after refusing those outside the subset.
func (s *schemas) keywords(o *object, place string) []string {
	var used []string
	for _, name := range o.names {
		if slices.Contains(annotations, name) || strings.HasPrefix(name, "x-") || place == "" && name == "$id" {
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

// types returns the types that the schema allows; keywords that speak of others are without effect.
// Without the keyword type it is the types that the other keywords speak of: the values of others,
// which they do not restrict, are left out.
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
		for _, name := range used {
			if of := keywords[name]; of != "" && !slices.Contains(list, of) {
				list = append(list, of)
			}
		}
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

// constants adds the values that the rest of the schema allows.
func (s *schemas) constants(from, to int32, list []any, o *object, used []string, place string) {
	var texts []string
	for _, v := range s.allowed(list, o, used, place) {
		texts = append(texts, spell(v))
	}
	if s.b.err == nil {
		s.b.literals(from, to, texts)
	}
}

// allowed are those of some constants that what stands beside them allows, one at least.
func (s *schemas) allowed(list []any, o *object, used []string, place string) (values []any) {
	var allowed []string
	if _, ok := o.values["type"]; ok {
		if allowed = s.types(o, []string{"type"}, place); s.b.err != nil {
			return nil
		}
	}
	for _, v := range list {
		t := typeOf(v)
		if allowed != nil && !slices.Contains(allowed, t) && !(t == "integer" && slices.Contains(allowed, "number")) {
			continue
		}
		holds := true
		for _, name := range used {
			of := keywords[name]
			if of == t || of == "number" && t == "integer" {
				ok, known := s.holds(v, name, o.values[name])
				if !known {
					s.refuse(join(place, name), "%s together with enum or const", name)
					return nil
				}
				holds = holds && ok
			}
		}
		if list, ok := o.values["enum"].([]any); ok && !slices.ContainsFunc(list, func(x any) bool { return spell(x) == spell(v) }) {
			holds = false // a const that the enum beside it does not have
		}
		if holds {
			values = append(values, v)
		}
	}
	if len(values) == 0 {
		s.refuse(place, "no value is of the type, or within the bounds")
	}
	return values
}

// holds says whether a constant satisfies a keyword that speaks of its type; known is false where
// that is not looked into.
func (s *schemas) holds(v any, name string, want any) (ok, known bool) {
	x, isNumber := number(v)
	if text, isText := v.(string); isText {
		x, isNumber = new(big.Rat).SetInt64(int64(utf8.RuneCountInString(text))), true
	}
	bound, isBound := number(want)
	if !isNumber || !isBound {
		return false, false
	}
	switch name {
	case "minimum", "minLength":
		return x.Cmp(bound) >= 0, true
	case "maximum", "maxLength":
		return x.Cmp(bound) <= 0, true
	case "exclusiveMinimum":
		return x.Cmp(bound) > 0, true
	case "exclusiveMaximum":
		return x.Cmp(bound) < 0, true
	case "multipleOf":
		return bound.Sign() > 0 && new(big.Rat).Quo(x, bound).IsInt(), true
	}
	return false, false
}

// follow returns what a $ref refers to.
func (s *schemas) follow(ref any, place string, open []string) (target any, pointer string, ok bool) {
	text, _ := ref.(string)
	at := join(place, "$ref")
	pointer, local := strings.CutPrefix(text, "#")
	pointer, err := url.PathUnescape(pointer)
	if !local || err != nil || pointer != "" && pointer[0] != '/' {
		s.refuse(at, "only #, #/$defs/NAME and other pointers into the schema are supported")
		return nil, "", false
	}
	target, ok = resolve(s.root, pointer)
	if !ok {
		s.refuse(at, "%q is not in the schema", text)
		return nil, "", false
	}
	if slices.Contains(open, pointer) {
		s.refuse(at, "%q refers to itself with no object or array between", text)
		return nil, "", false
	}
	return target, pointer, true
}

// reference calls the automaton of another place of the document. The call nests: references are
// how a schema recurs.
func (s *schemas) reference(from, to int32, ref any, place string, open []string) {
	target, pointer, ok := s.follow(ref, place, open)
	if !ok {
		return
	}
	start := s.b.rule("ref "+pointer, func(from, to int32) {
		s.value(from, to, target, pointer, append(slices.Clip(open), pointer))
	})
	s.b.call(from, start, to, true)
}

// array adds an array: what prefixItems says of its first items, and items of the others. A list in
// items is prefixItems in older words, and additionalItems is items then.
func (s *schemas) array(from, to int32, o *object, place string) {
	min, max, ok := s.counts(o, "minItems", "maxItems", place)
	if !ok {
		return
	}
	if unique, ok := o.values["uniqueItems"]; ok && unique != false && (unique != true || max < 0 || max > 1) {
		if values := s.distinct(o, place); unique == true && values != nil {
			s.set(from, to, values, min, max, place)
			return
		}
		s.refuse(join(place, "uniqueItems"), "true is supported where items is an enum of up to %d texts, numbers, true, false and null, without prefixItems, or maxItems is 1; without it, check the answer", mostUnique)
		return
	}
	restName, listName := "items", "prefixItems"
	prefix, isList := o.values["items"].([]any)
	if isList {
		restName, listName = "additionalItems", "items"
	} else if list, said := o.values["prefixItems"]; said {
		if prefix, isList = list.([]any); !isList {
			s.refuse(join(place, "prefixItems"), "not a list")
			return
		}
	}
	// most is the first place at which there can be no item.
	most := max
	fewer := func(n int) {
		if most < 0 || n < most {
			most = n
		}
	}
	for i, sub := range prefix {
		if sub == false {
			fewer(i)
		}
	}
	rest, said := o.values[restName]
	if !said {
		rest = true
	}
	if rest == false {
		fewer(len(prefix))
	}
	if most >= 0 && most < min {
		s.refuse(place, "at least %d items, and at most %d", min, most)
		return
	}
	rule := func(sub any, at string) int32 {
		return s.b.automaton(func(from, to int32) { s.value(from, to, sub, at, nil) })
	}
	var others int32
	if most < 0 || most > len(prefix) {
		others = rule(rest, join(place, restName))
	}
	s.b.place = fmt.Sprintf("json_schema at %q", place)
	inside, at := s.b.node(), s.b.node()
	s.b.bytes(from, inside, '[', '[')
	s.b.space(inside, at)
	if min == 0 {
		s.b.bytes(at, to, ']', ']')
	}
	close := func(at int32) { s.closed(at, to) }
	separator := s.separator
	for i := 0; (most < 0 || i < most) && s.b.err == nil; i++ {
		if i > 0 && i >= len(prefix) {
			more := s.b.automaton(func(from, to int32) { s.b.call(separator(from), others, to, false) })
			left := most
			if most >= 0 {
				left = most - i
			}
			end := s.b.node()
			s.b.repeat(at, end, more, atLeast0(min-i), left)
			close(end)
			return
		}
		item := others
		if i < len(prefix) {
			item = rule(prefix[i], fmt.Sprintf("%s/%s/%d", place, listName, i))
		}
		if i > 0 {
			if i >= min {
				close(at)
			}
			at = separator(at)
		}
		next := s.b.node()
		s.b.call(at, item, next, false)
		at = next
	}
	if most > 0 {
		close(at)
	}
}

// closed ends an array behind an item.
func (s *schemas) closed(from, to int32) {
	last := s.b.node()
	s.b.space(from, last)
	s.b.bytes(last, to, ']', ']')
}

// separator adds what stands between two items, and returns where the next one begins.
func (s *schemas) separator(from int32) int32 {
	comma, next := s.b.node(), s.b.node()
	s.b.bytes(from, comma, ',', ',')
	s.b.space(comma, next)
	return next
}

// mostUnique bounds the values of an array's items that must differ, for the automaton knows every set of
// them.
const mostUnique = 8

// distinct are the values of an array's items where these are few and no arrays or objects; nil otherwise.
// None equals another.
func (s *schemas) distinct(o *object, place string) (values []any) {
	items, at := o.values["items"], join(place, "items")
	if _, ok := o.values["prefixItems"]; ok {
		return nil
	}
	for open := []string(nil); ; {
		sub, ok := items.(*object)
		if !ok {
			return nil
		}
		used := s.keywords(sub, at)
		if ref, ok := sub.values["$ref"]; ok && len(used) == 1 {
			if items, at, ok = s.follow(ref, at, open); !ok {
				return nil
			}
			open = append(open, at)
			continue
		}
		list, isEnum := sub.values["enum"].([]any)
		if c, isConst := sub.values["const"]; isConst && !isEnum {
			list = []any{c}
		}
		if len(list) == 0 || slices.ContainsFunc(used, func(name string) bool {
			return keywords[name] == "" && name != "enum" && name != "const" && name != "type"
		}) {
			return nil
		}
		for _, v := range s.allowed(list, sub, used, at) {
			if _, isObject := v.(*object); isObject || typeOf(v) == "array" {
				return nil
			}
			if !slices.ContainsFunc(values, func(w any) bool { return equal(v, w) }) {
				values = append(values, v)
			}
		}
		if len(values) > mostUnique {
			return nil
		}
		return values
	}
}

// equal reports whether two values that are no arrays or objects are the same: 1 and 1.0 are.
func equal(v, w any) bool {
	x, isNumber := number(v)
	y, both := number(w)
	if isNumber && both {
		return x.Cmp(y) == 0
	}
	return isNumber == both && spell(v) == spell(w)
}

// set adds arrays of min to max of some values, none twice. Its nodes are the sets that an array may hold
// so far.
func (s *schemas) set(from, to int32, values []any, min, max int, place string) {
	if max < 0 || max > len(values) {
		max = len(values)
	}
	if min > max {
		s.refuse(place, "at least %d different items, and there are %d", min, max)
		return
	}
	items := make([]int32, len(values))
	for i, v := range values {
		items[i] = s.b.automaton(func(from, to int32) { s.b.literal(from, to, spell(v)) })
	}
	inside, empty := s.b.node(), s.b.node()
	s.b.bytes(from, inside, '[', '[')
	s.b.space(inside, empty)
	holding := map[int]int32{0: empty}
	for held := range 1 << len(values) {
		at, ok := holding[held]
		n := bits.OnesCount(uint(held))
		switch {
		case !ok:
			continue // more than max
		case n == 0 && min == 0:
			s.b.bytes(at, to, ']', ']')
		case n > 0 && n >= min:
			s.closed(at, to)
		}
		if n == max {
			continue
		}
		if n > 0 {
			at = s.separator(at)
		}
		for i, item := range items {
			more := held | 1<<i
			if more == held {
				continue
			}
			if _, ok := holding[more]; !ok {
				holding[more] = s.b.node()
			}
			s.b.call(at, item, holding[more], false)
		}
	}
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
	default:
		source, ok := pattern.(string)
		if !ok {
			s.refuse(join(place, "pattern"), "not a string")
			return
		}
		inside, end := s.b.node(), s.b.node()
		s.b.bytes(from, inside, '"', '"')
		s.b.place = fmt.Sprintf("json_schema at %q", join(place, "pattern"))
		s.b.pattern(inside, end, source, min, max)
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
		n, isNumber := number(v)
		if !isNumber || !n.IsInt() || n.Sign() < 0 {
			s.refuse(join(place, name), "not a whole number from 0")
			return 0, 0, false
		}
		i := n.Num().Int64()
		if !n.Num().IsInt64() || i > int64(s.b.limits.Nodes) {
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
