package grammar

import (
	"fmt"
	"slices"
	"unicode/utf8"
)

// object adds an object: its properties in the schema's order, those that are not required
// present or not, and then any number of additional ones if the schema says so. A schema that
// names properties and says nothing of additional ones gets none.
//
//	{ → E0 → E1 → … → En → }        Ei: nothing written yet, property i is next
//	     ↘    ↘         ↘
//	      S1   S2   …   Sn → }      Si: property i-1, or an earlier one, was the last
//	      ,↓   ↑
//	      K1 → K2 → … → Kn          Ki: after a comma, one of the properties from i must follow
func (s *schemas) object(from, to int32, o *object, place string) {
	names, required, ok := s.propertyNames(o, place)
	if !ok {
		return
	}
	additional, said := o.values["additionalProperties"]
	wording, value, ok := s.wording(o, names, place)
	if !ok {
		return
	}
	if value != nil {
		additional, said = value, true
	}
	if len(names) == 0 && (!said || additional == true) && wording == nil {
		s.b.anyObject(from, to)
		return
	}
	if len(names) == 0 && !said {
		additional, said = true, true
	}
	b := s.b
	open, empty, closing := b.node(), b.node(), b.node()
	b.bytes(from, open, '{', '{')
	b.space(open, empty)
	b.bytes(closing, to, '}', '}')

	var some, comma int32 = -1, -1 // S and K; there are none before the first property
	// member adds property i, or the additional ones: from E and K to the next S.
	member := func(rule, next int32) {
		b.call(empty, rule, next, false)
		if comma >= 0 {
			b.call(comma, rule, next, false)
		}
	}
	afterSome := func(next int32) {
		some = next
		comma = b.node()
		at := b.node()
		b.bytes(some, at, ',', ',')
		b.space(at, comma)
	}
	closes := func(n int32) { b.space(n, closing) }

	// ends[i]: no property from i on is required.
	ends := make([]bool, len(names)+1)
	ends[len(names)] = true
	for i := len(names) - 1; i >= 0; i-- {
		ends[i] = ends[i+1] && !required[names[i]]
	}
	if ends[0] {
		b.bytes(empty, to, '}', '}')
	}
	properties, _ := o.values["properties"].(*object)
	if properties == nil {
		properties = &object{}
	}
	for i, name := range names {
		if properties.values[name] == false {
			if required[name] {
				s.refuse(join(place+"/properties", name), "required, and false allows nothing")
				return
			}
			continue
		}
		rule := b.automaton(func(from, to int32) {
			colon, value := b.node(), b.node()
			b.literal(from, colon, quote(name))
			b.colon(colon, value)
			sub, at := additional, join(place, "additionalProperties")
			if v, ok := properties.values[name]; ok {
				sub, at = v, join(place+"/properties", name)
			} else if !said {
				sub = true
			}
			s.value(value, to, sub, at, nil)
		})
		if b.err != nil {
			return
		}
		next := b.node()
		member(rule, next)
		optional := !required[name]
		lastEmpty, lastComma := empty, comma
		empty = b.node()
		if optional {
			b.empty(lastEmpty, empty)
		}
		afterSome(next)
		if optional && lastComma >= 0 {
			b.empty(lastComma, comma)
		}
		if ends[i+1] {
			closes(some)
		}
	}
	if !said || additional == false {
		return
	}
	rule := b.automaton(func(from, to int32) {
		colon, value := b.node(), b.node()
		switch {
		case wording != nil:
			s.value(from, colon, wording, join(place, "propertyNames"), nil)
		case len(names) == 0:
			b.anyText(from, colon)
		default:
			b.otherText(from, colon, names)
		}
		b.colon(colon, value)
		s.value(value, to, additional, join(place, "additionalProperties"), nil)
	})
	if b.err != nil {
		return
	}
	next := b.node()
	member(rule, next)
	at, again := b.node(), b.node()
	b.bytes(next, at, ',', ',')
	b.space(at, again)
	b.call(again, rule, next, false)
	closes(next)
}

// propertyNames returns the properties in order, and whether each is required.
func (s *schemas) propertyNames(o *object, place string) (names []string, required map[string]bool, ok bool) {
	required = map[string]bool{}
	if v, said := o.values["properties"]; said {
		properties, isObject := v.(*object)
		if !isObject {
			s.refuse(join(place, "properties"), "not an object")
			return nil, nil, false
		}
		names = properties.names
		for _, name := range names {
			required[name] = false
		}
	}
	if v, said := o.values["required"]; said {
		list, isList := v.([]any)
		if !isList {
			s.refuse(join(place, "required"), "not a list")
			return nil, nil, false
		}
		for i, v := range list {
			name, isText := v.(string)
			at := fmt.Sprintf("%s/required/%d", place, i)
			if !isText {
				s.refuse(at, "not a name")
				return nil, nil, false
			}
			if _, known := required[name]; !known {
				if o.values["additionalProperties"] == false {
					s.refuse(at, "%q is not one of the properties, and there are no others", name)
					return nil, nil, false
				}
				names = append(slices.Clip(names), name)
			}
			required[name] = true
		}
	}
	least, most, ok := s.counts(o, "minProperties", "maxProperties", place)
	if !ok {
		return nil, nil, false
	}
	sure := 0
	for _, name := range names {
		if required[name] {
			sure++
		}
	}
	_, open := o.values["additionalProperties"]
	open = open && o.values["additionalProperties"] != false || len(names) == 0
	switch {
	case least > sure:
		s.refuse(join(place, "minProperties"), "%d, and %d are required; only as many as are required are supported", least, sure)
		return nil, nil, false
	case most >= 0 && (open || most < len(names)):
		s.refuse(join(place, "maxProperties"), "supported only where no more are named, and no others allowed")
		return nil, nil, false
	}
	return names, required, true
}

// wording returns the schema of additional properties' names, nil if any will do: that is what
// propertyNames says, or the expression of patternProperties, with the schema of such values. Both
// are supported where no property is named.
func (s *schemas) wording(o *object, names []string, place string) (name, value any, ok bool) {
	text := &object{names: []string{"type"}, values: map[string]any{"type": "string"}}
	if v, said := o.values["patternProperties"]; said {
		list, isObject := v.(*object)
		if !isObject || len(list.names) != 1 || len(names) > 0 || o.values["propertyNames"] != nil {
			s.refuse(join(place, "patternProperties"), "only one expression, and nothing beside it that names properties, is supported")
			return nil, nil, false
		}
		text.set("pattern", list.names[0])
		value = list.values[list.names[0]]
		if more, said := o.values["additionalProperties"]; said && more != false && more != true {
			s.refuse(join(place, "additionalProperties"), "a schema together with patternProperties")
			return nil, nil, false
		}
		return text, value, true
	}
	switch v := o.values["propertyNames"].(type) {
	case nil:
		return nil, nil, true
	case bool:
		if v {
			return nil, nil, true
		}
	case *object:
		used := s.keywords(v, join(place, "propertyNames"))
		if s.b.err != nil {
			return nil, nil, false
		}
		if len(used) == 0 || len(used) == 1 && v.values["type"] == "string" {
			return nil, nil, true
		}
		if len(names) == 0 {
			return s.merge(text, v, join(place, "propertyNames")), nil, s.b.err == nil
		}
	}
	s.refuse(join(place, "propertyNames"), "only where no property is named, or as {\"type\":\"string\"}, is it supported")
	return nil, nil, false
}

// otherText adds the strings that are none of the names, each character in its shortest spelling:
// with others, a name could be written past the test.
func (b *builder) otherText(from, to int32, names []string) {
	inside, end, free := b.node(), b.node(), b.node()
	b.bytes(from, inside, '"', '"')
	b.bytes(end, to, '"', '"')
	char := b.automaton(func(from, to int32) { b.chars(from, to, without(nil), quoted) })
	b.call(free, char, free, false)
	b.empty(free, end)
	// at reads the names that begin with what was read so far.
	var at func(n int32, names []string)
	at = func(n int32, names []string) {
		if b.err != nil {
			return
		}
		if !slices.Contains(names, "") {
			b.empty(n, end)
		}
		rests := map[rune][]string{}
		var firsts []rune
		for _, name := range names {
			c, n := utf8.DecodeRuneInString(name)
			if n == 0 {
				continue
			}
			if rests[c] == nil {
				firsts = append(firsts, c)
			}
			rests[c] = append(rests[c], name[n:])
		}
		b.chars(n, free, without(firsts), quoted)
		for _, c := range firsts {
			next := b.node()
			b.chars(n, next, []rune{c, c}, quoted)
			at(next, rests[c])
		}
	}
	at(inside, names)
}
