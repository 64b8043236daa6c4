package chat

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/ardanlabs/jinja"
)

// maxDepth bounds how deeply a variable nests.
const maxDepth = 100

// value converts a variable. Raw JSON keeps the order of its keys; Go maps have none and are sorted.
func value(v any) (jinja.Value, error) {
	raw, ok := v.(json.RawMessage)
	if !ok {
		return jinja.FromGoValue(v), nil
	}
	d := json.NewDecoder(bytes.NewReader(raw))
	d.UseNumber()
	out, err := decode(d, 0)
	if err != nil {
		return jinja.Undefined(), err
	}
	if d.More() {
		return jinja.Undefined(), fmt.Errorf("more than one JSON value")
	}
	return out, nil
}

func decode(d *json.Decoder, depth int) (jinja.Value, error) {
	token, err := d.Token()
	if err != nil {
		return jinja.Undefined(), err
	}
	if depth > maxDepth {
		return jinja.Undefined(), fmt.Errorf("%w: JSON nests more than %d levels", ErrTooLarge, maxDepth)
	}
	switch token {
	case json.Delim('['):
		items := []jinja.Value{}
		for d.More() {
			item, err := decode(d, depth+1)
			if err != nil {
				return item, err
			}
			items = append(items, item)
		}
		_, err = d.Token()
		return jinja.NewList(items), err
	case json.Delim('{'):
		object := jinja.NewDict()
		for d.More() {
			key, err := d.Token()
			if err != nil {
				return object, err
			}
			item, err := decode(d, depth+1)
			if err != nil {
				return item, err
			}
			object.AsDict().Set(key.(string), item)
		}
		_, err = d.Token()
		return object, err
	}
	return jinja.FromGoValue(token), nil
}

// directives of Python's strftime in the C locale, as layouts of package time.
var directives = map[byte]string{
	'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM", 'B': "January",
	'b': "Jan", 'h': "Jan", 'A': "Monday", 'a': "Mon", 'j': "002", 'e': "_2", 'F': "2006-01-02", 'T': "15:04:05", 'D': "01/02/06", 'R': "15:04",
}

func strftime(t time.Time, format string) (string, error) {
	var out strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			out.WriteByte(format[i])
			continue
		}
		if i++; i == len(format) {
			return "", fmt.Errorf("chat: strftime_now: format %q ends in %%", format)
		}
		bare := format[i] == '-' && i+1 < len(format)
		if bare {
			i++
		}
		layout, ok := directives[format[i]]
		switch {
		case ok && bare:
			// glibc's flag for a number without leading zeros.
			text := strings.TrimLeft(t.Format(layout), "0 ")
			if text == "" {
				text = "0"
			}
			out.WriteString(text)
		case ok:
			out.WriteString(t.Format(layout))
		case format[i] == '%':
			out.WriteByte('%')
		default:
			return "", fmt.Errorf("chat: strftime_now: unknown directive %%%c", format[i])
		}
	}
	return out.String(), nil
}
