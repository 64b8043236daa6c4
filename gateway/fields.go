package gateway

import (
	"bytes"
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"unicode/utf8"
)

// fields reads the members of a JSON object one by one and remembers the first thing wrong, named by
// its path. null counts as absent.
type fields struct {
	members map[string]json.RawMessage
	path    string // "" at the top, else "messages[2]."
	err     *apiError
}

// parseBody splits a request body into its members.
func parseBody(body []byte) (*fields, *apiError) {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, malformed("the body is empty; it must be a JSON object")
	}
	if i := invalidUTF8(body); i >= 0 {
		return nil, malformed("the body is not valid UTF-8 at byte %d", i)
	}
	f := &fields{}
	if err := json.Unmarshal(body, &f.members); err != nil {
		var syntax *json.SyntaxError
		if errors.As(err, &syntax) {
			line, column := position(body, syntax.Offset)
			return nil, malformed("the body is not valid JSON: %s at line %d, column %d", syntax.Error(), line, column)
		}
		return nil, malformed("the body must be a JSON object, not %s", kindOf(bytes.TrimSpace(body)))
	}
	if f.members == nil {
		return nil, malformed("the body must be a JSON object, not null")
	}
	if name, ok := twice(body); ok {
		return nil, malformed("the body has the name %q twice", clip(name, 64))
	}
	return f, nil
}

// digest names what the body asks for, whatever the order of its members and the space between them. How the
// answer is told is not part of that: the same answer may be asked for whole after it was streamed.
func (f *fields) digest() []byte {
	var canonical bytes.Buffer
	for _, name := range f.names() {
		if name == "stream" || name == "stream_options" || string(f.members[name]) == "null" {
			continue
		}
		_ = json.Compact(&canonical, appendString(nil, name)) // both were parsed before
		_ = json.Compact(&canonical, f.members[name])
	}
	return digestOf(canonical.Bytes())
}

// twice returns a name that a valid JSON object has twice: readers differ in which of the two they take,
// so what one of them checks another may not obey.
func twice(object []byte) (name string, found bool) {
	d := json.NewDecoder(bytes.NewReader(object))
	_, _ = d.Token()
	seen := map[string]bool{}
	for d.More() {
		t, _ := d.Token()
		name, _ := t.(string)
		if seen[name] {
			return name, true
		}
		seen[name] = true
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return "", false
		}
	}
	return "", false
}

// invalidUTF8 returns the offset of the first byte that is not valid UTF-8, or -1.
func invalidUTF8(b []byte) int {
	if utf8.Valid(b) {
		return -1
	}
	for i := 0; i < len(b); {
		r, size := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && size == 1 {
			return i
		}
		i += size
	}
	return -1
}

// position turns an offset as encoding/json counts (bytes read so far) into line and column from 1.
func position(body []byte, offset int64) (line, column int) {
	read := body[:min(max(int(offset), 1), len(body))]
	line = bytes.Count(read, []byte("\n")) + 1
	column = len(read) - (bytes.LastIndexByte(read, '\n') + 1)
	return line, max(column, 1)
}

// kindOf names the type of a valid JSON value.
func kindOf(raw []byte) string {
	if len(raw) == 0 {
		return "nothing"
	}
	switch raw[0] {
	case '{':
		return "an object"
	case '[':
		return "an array"
	case '"':
		return "a string"
	case 't', 'f':
		return "a boolean"
	case 'n':
		return "null"
	default:
		return "a number"
	}
}

func (f *fields) fail(e *apiError) {
	if f.err == nil {
		f.err = e
	}
}

// get returns a member that is present and not null.
func (f *fields) get(name string) (json.RawMessage, bool) {
	raw, ok := f.members[name]
	if !ok || string(raw) == "null" {
		return nil, false
	}
	return raw, true
}

func (f *fields) wrongType(name, want string, raw []byte) {
	e := invalid(f.path+name, "%s must be %s, not %s", f.path+name, want, kindOf(raw))
	e.name = "invalid_type"
	f.fail(e)
}

func (f *fields) boolean(name string, absent bool) bool {
	raw, ok := f.get(name)
	if !ok {
		return absent
	}
	switch string(raw) {
	case "true":
		return true
	case "false":
		return false
	}
	f.wrongType(name, "a boolean", raw)
	return absent
}

func (f *fields) text(name string) (string, bool) {
	raw, ok := f.get(name)
	if !ok {
		return "", false
	}
	var s string
	if raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		f.wrongType(name, "a string", raw)
		return "", false
	}
	return s, true
}

// whole reads a number without a fraction that fits 64 bits: 5, and also 5.0 and 5e0, which clients whose
// language has one kind of number write.
func whole(raw []byte) (int64, bool) {
	v, err := strconv.ParseInt(string(raw), 10, 64)
	if err == nil {
		return v, true
	}
	x, err := strconv.ParseFloat(string(raw), 64)
	if err != nil || x != math.Trunc(x) || math.Abs(x) > 1<<53 {
		return 0, false
	}
	return int64(x), true
}

// integer reads a whole number that fits 64 bits.
func (f *fields) integer(name string) (int64, bool) {
	raw, ok := f.get(name)
	if !ok {
		return 0, false
	}
	if kindOf(raw) != "a number" {
		f.wrongType(name, "an integer", raw)
		return 0, false
	}
	v, ok := whole(raw)
	if !ok {
		f.fail(invalid(f.path+name, "%s must be an integer of at most 64 bits, not %s", f.path+name, clip(string(raw), 32)))
		return 0, false
	}
	return v, true
}

// count reads an integer that fits 32 bits.
func (f *fields) count(name string, absent int32) int32 {
	v, ok := f.integer(name)
	switch {
	case !ok:
		return absent
	case v < math.MinInt32 || v > math.MaxInt32:
		f.fail(invalid(f.path+name, "%s must be between %d and %d, not %d", f.path+name, math.MinInt32, math.MaxInt32, v))
		return absent
	}
	return int32(v)
}

func (f *fields) number(name string) (float32, bool) {
	raw, ok := f.get(name)
	if !ok {
		return 0, false
	}
	if kindOf(raw) != "a number" {
		f.wrongType(name, "a number", raw)
		return 0, false
	}
	v, err := strconv.ParseFloat(string(raw), 32)
	if err != nil {
		f.fail(invalid(f.path+name, "%s is out of range: %s", f.path+name, clip(string(raw), 32)))
		return 0, false
	}
	return float32(v), true
}

// list splits an array into its elements.
func (f *fields) list(name string) ([]json.RawMessage, bool) {
	raw, ok := f.get(name)
	if !ok {
		return nil, false
	}
	var items []json.RawMessage
	if raw[0] != '[' || json.Unmarshal(raw, &items) != nil {
		f.wrongType(name, "an array", raw)
		return nil, false
	}
	return items, true
}

// object reads a member that is itself an object; its errors carry the longer path.
func (f *fields) object(name string) (*fields, bool) {
	raw, ok := f.get(name)
	if !ok {
		return nil, false
	}
	inner, ok := f.nested(name, raw)
	return inner, ok
}

// nested reads raw, found under name, as an object.
func (f *fields) nested(name string, raw json.RawMessage) (*fields, bool) {
	inner := &fields{path: f.path + name + "."}
	if len(raw) == 0 || raw[0] != '{' || json.Unmarshal(raw, &inner.members) != nil {
		f.wrongType(name, "an object", raw)
		return nil, false
	}
	if again, ok := twice(raw); ok {
		f.fail(invalid(f.path+name, "%s has the name %q twice", f.path+name, clip(again, 64)))
		return nil, false
	}
	return inner, true
}
