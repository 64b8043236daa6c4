package grammar

import (
	"fmt"
	"slices"
)

// merged adds the values that a schema with allOf, or with something beside a $ref, allows: one
// schema is made that says what all of them say. It is a rule by its text, so that such schemas may
// recur; the call nests, as a reference does.
func (s *schemas) merged(from, to int32, o *object, place string, open []string) {
	text := spell(o)
	s.b.spend(len(text) / 8)
	if s.b.err != nil {
		return
	}
	start := s.b.rule("merged "+text, func(from, to int32) {
		all, open := s.flat(o, place, open)
		if s.b.err == nil {
			s.value(from, to, all, place, open)
		}
	})
	s.b.call(from, start, to, true)
}

// flat takes the members of allOf and the target of a $ref into the schema that they stand in. It
// returns it and the references followed.
func (s *schemas) flat(o *object, place string, open []string) (*object, []string) {
	all := o.without("allOf").without("$ref")
	take := func(sub any, at string, refs []string) {
		switch sub := sub.(type) {
		case bool:
			if !sub {
				s.refuse(at, "false allows nothing")
			}
		case *object:
			if s.keywords(sub, at); s.b.err != nil {
				return
			}
			inner, followed := s.flat(sub, at, refs)
			for _, pointer := range followed {
				if !slices.Contains(open, pointer) {
					open = append(slices.Clip(open), pointer)
				}
			}
			if s.b.err == nil {
				all = s.merge(all, inner, at)
			}
		default:
			s.refuse(at, "a schema is an object, true or false")
		}
	}
	if ref, ok := o.values["$ref"]; ok {
		if target, pointer, ok := s.follow(ref, place, open); ok {
			take(target, pointer, append(slices.Clip(open), pointer))
		}
	}
	if _, ok := o.values["allOf"]; ok && s.length(o, "allOf", place) > 0 {
		before := open
		for i, sub := range o.values["allOf"].([]any) {
			if s.b.err != nil {
				break
			}
			take(sub, fmt.Sprintf("%s/allOf/%d", place, i), before)
		}
	}
	return all, open
}

// merge returns a schema that allows what both allow. The properties of x come first.
func (s *schemas) merge(x, y *object, place string) *object {
	out := &object{values: map[string]any{}}
	for _, name := range x.names {
		out.set(name, x.values[name])
	}
	s.b.spend(1 + len(x.names) + len(y.names))
	for _, name := range y.names {
		v, theirs := x.values[name]
		w := y.values[name]
		switch {
		case keywords[name] == "" && !slices.Contains([]string{"type", "enum", "const", "anyOf", "oneOf"}, name):
			// An annotation, or definitions, which are found from the root.
		case name == "properties" || name == "additionalProperties":
			// Below, for they depend on each other.
		case !theirs || spell(v) == spell(w):
			out.set(name, w)
		default:
			both, ok := s.both(name, v, w)
			switch {
			case !ok && name == "type":
				s.refuse(join(place, name), "no value is of this type and of the one that is said elsewhere too")
				return out
			case !ok:
				s.refuse(join(place, name), "%s, which is said elsewhere too and otherwise, can't be merged", name)
				return out
			}
			out.set(name, both)
		}
	}
	s.mergeProperties(out, x, y, place)
	return out
}

// both is what two values of one keyword say together.
func (s *schemas) both(name string, v, w any) (any, bool) {
	switch name {
	case "minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties",
		"maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties":
		a, ok := number(v)
		b, ok2 := number(w)
		if !ok || !ok2 {
			return nil, false
		}
		lower := name[:3] == "min" || name == "exclusiveMinimum"
		if (a.Cmp(b) >= 0) == lower {
			return v, true
		}
		return w, true
	case "required":
		a, ok := v.([]any)
		b, ok2 := w.([]any)
		return slices.Concat(a, b), ok && ok2
	case "items":
		_, list := v.([]any)
		_, list2 := w.([]any)
		return together(v, w), !list && !list2
	case "uniqueItems":
		return v == true || w == true, true
	case "type":
		var out []any
		for _, t := range listOf(v) {
			for _, u := range listOf(w) {
				switch {
				case t == u || t == "integer" && u == "number":
					out = append(out, t)
				case t == "number" && u == "integer":
					out = append(out, u)
				}
			}
		}
		return out, len(out) > 0
	case "enum":
		var out []any
		for _, t := range listOf(v) {
			if slices.ContainsFunc(listOf(w), func(u any) bool { return spell(t) == spell(u) }) {
				out = append(out, t)
			}
		}
		return out, len(out) > 0
	}
	return nil, false
}

func listOf(v any) []any {
	if list, ok := v.([]any); ok {
		return list
	}
	return []any{v}
}

// together is a schema of two, true where it stands for nothing said.
func together(v, w any) any {
	switch {
	case v == false || w == false:
		return false
	case v == true:
		return w
	case w == true:
		return v
	}
	return &object{names: []string{"allOf"}, values: map[string]any{"allOf": []any{v, w}}}
}

// mergeProperties says of each property what both schemas say of it, be it by additionalProperties.
func (s *schemas) mergeProperties(out, x, y *object, place string) {
	read := func(o *object) (properties *object, additional any) {
		properties, additional = &object{}, true
		if v, ok := o.values["properties"]; ok {
			if properties, ok = v.(*object); !ok {
				s.refuse(join(place, "properties"), "not an object")
				return &object{}, true
			}
		}
		if v, ok := o.values["additionalProperties"]; ok {
			additional = v
		}
		return properties, additional
	}
	px, ax := read(x)
	py, ay := read(y)
	if len(px.names)+len(py.names) > 0 {
		all := &object{values: map[string]any{}}
		s.b.spend(len(px.names) + len(py.names))
		for _, name := range slices.Concat(px.names, py.names) {
			v, ok := px.values[name]
			if !ok {
				v = ax
			}
			w, ok := py.values[name]
			if !ok {
				w = ay
			}
			all.set(name, together(v, w))
		}
		out.set("properties", all)
	}
	_, said := x.values["additionalProperties"]
	_, said2 := y.values["additionalProperties"]
	if said || said2 {
		out.set("additionalProperties", together(ax, ay))
	}
}
