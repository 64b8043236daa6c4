package grammar

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
)

// An object is a JSON object with its members in the order of the text: properties are written in
// the order in which the schema names them.
type object struct {
	names  []string
	values map[string]any
}

// without is the object without one member.
func (o *object) without(name string) *object {
	out := &object{values: make(map[string]any, len(o.values))}
	for _, n := range o.names {
		if n != name {
			out.set(n, o.values[n])
		}
	}
	return out
}

// set adds a member, or gives it another value.
func (o *object) set(name string, v any) {
	if _, ok := o.values[name]; !ok {
		o.names = append(o.names, name)
	}
	o.values[name] = v
}

// maxSchemaDepth bounds how deep a schema's own text nests.
const maxSchemaDepth = 100

// parseJSON reads one JSON document as nil, bool, string, json.Number, []any and *object.
func parseJSON(source string) (any, error) {
	d := json.NewDecoder(strings.NewReader(source))
	d.UseNumber()
	v, err := parseValue(d, 0)
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("not JSON: %w, at offset %d", err, d.InputOffset())
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("not JSON: text after the document, at offset %d", d.InputOffset())
	}
	return v, nil
}

func parseValue(d *json.Decoder, depth int) (any, error) {
	if depth > maxSchemaDepth {
		return nil, fmt.Errorf("nested deeper than %d", maxSchemaDepth)
	}
	t, err := d.Token()
	if err != nil {
		return nil, err
	}
	switch t {
	case json.Delim('['):
		list := []any{}
		for d.More() {
			v, err := parseValue(d, depth+1)
			if err != nil {
				return nil, err
			}
			list = append(list, v)
		}
		_, err = d.Token()
		return list, err
	case json.Delim('{'):
		o := &object{values: map[string]any{}}
		for d.More() {
			name, err := d.Token()
			if err != nil {
				return nil, err
			}
			key := name.(string) // the decoder takes nothing else for a name
			if _, ok := o.values[key]; ok {
				return nil, fmt.Errorf("the name %q twice in one object", key)
			}
			if o.values[key], err = parseValue(d, depth+1); err != nil {
				return nil, err
			}
			o.names = append(o.names, key)
		}
		_, err = d.Token()
		return o, err
	}
	return t, nil
}

// spell writes a value without white space, the only way that a mask lets enum and const be
// written.
func spell(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return strconv.FormatBool(v)
	case json.Number:
		return v.String()
	case string:
		return quote(v)
	case []any:
		parts := make([]string, len(v))
		for i := range v {
			parts[i] = spell(v[i])
		}
		return "[" + strings.Join(parts, ",") + "]"
	case *object:
		parts := make([]string, len(v.names))
		for i, name := range v.names {
			parts[i] = quote(name) + ":" + spell(v.values[name])
		}
		return "{" + strings.Join(parts, ",") + "}"
	}
	panic(fmt.Sprintf("grammar: %T is no JSON value", v))
}

// typeOf names a value's type as the keyword type does; a number without fraction is an integer,
// 5.0 too.
func typeOf(v any) string {
	switch v := v.(type) {
	case nil:
		return "null"
	case bool:
		return "boolean"
	case json.Number:
		if x, ok := number(v); strings.ContainsAny(v.String(), ".eE") && (!ok || !x.IsInt()) {
			return "number"
		}
		return "integer"
	case string:
		return "string"
	case []any:
		return "array"
	}
	return "object"
}

// resolve follows a JSON pointer in the document.
func resolve(doc any, pointer string) (any, bool) {
	if pointer == "" {
		return doc, true
	}
	for part := range strings.SplitSeq(pointer[1:], "/") {
		part = strings.NewReplacer("~1", "/", "~0", "~").Replace(part)
		switch at := doc.(type) {
		case *object:
			v, ok := at.values[part]
			if !ok {
				return nil, false
			}
			doc = v
		case []any:
			i, err := strconv.Atoi(part)
			if err != nil || i < 0 || i >= len(at) {
				return nil, false
			}
			doc = at[i]
		default:
			return nil, false
		}
	}
	return doc, true
}

func join(pointer, name string) string {
	return pointer + "/" + strings.NewReplacer("~", "~0", "/", "~1").Replace(name)
}
