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
	if len(names) == 0 && (!said || additional == true) {
		s.b.anyObject(from, to)
		return
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
	for i, name := range names {
		rule := b.automaton(func(from, to int32) {
			colon, value := b.node(), b.node()
			b.literal(from, colon, quote(name))
			b.colon(colon, value)
			s.value(value, to, properties.values[name], join(place+"/properties", name), nil)
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
		if len(names) == 0 {
			b.anyText(from, colon)
		} else {
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
			if _, known := required[name]; !isText || !known {
				s.refuse(fmt.Sprintf("%s/required/%d", place, i), "not one of the properties")
				return nil, nil, false
			}
			required[name] = true
		}
	}
	return names, required, true
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
