package jinja

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// percent is Python's % of a string.
func (in *interp) percent(t Text, a args) Text {
	in.m.look(t)
	b := builder{m: &in.m}
	next := 0
	var named value
	if len(a.positional) == 1 {
		if d, ok := a.positional[0].(*dict); ok {
			named = d
		}
	}
	if len(a.names) > 0 {
		if len(a.positional) > 0 {
			fail("format with both positional and named arguments")
		}
		d := &dict{}
		in.fill(d, args{names: a.names, named: a.named})
		named = d
	}
	take := func() value {
		if next >= len(a.positional) {
			fail("too few values for the format")
		}
		next++
		return a.positional[next-1]
	}
	s := t.s
	for at := 0; at < len(s); {
		n := strings.IndexByte(s[at:], '%')
		if n < 0 {
			b.write(in.m.slice(t, at, len(s)))
			break
		}
		b.write(in.m.slice(t, at, at+n))
		at += n + 1
		var v value
		given := false
		if at < len(s) && s[at] == '(' {
			end := strings.IndexByte(s[at:], ')')
			if named == nil || end < 0 {
				fail("a format with names needs an object")
			}
			v, given = in.item(named, Own(s[at+1:at+end])), true
			at += end + 1
		}
		var f spec
		for ; at < len(s) && strings.IndexByte("-+ #0", s[at]) >= 0; at++ {
			switch s[at] {
			case '-':
				f.align = '<'
			case '0':
				f.zero = true
			case '#':
				f.alternate = true
			case '+':
				f.sign = '+'
			case ' ':
				if f.sign == 0 {
					f.sign = ' '
				}
			}
		}
		at = f.widths(s, at, func() int64 { return wantInt(take()) })
		if at == len(s) {
			fail("the format ends within a directive")
		}
		f.verb = s[at]
		at++
		if f.verb == '%' {
			b.writeOwn("%")
			continue
		}
		if !given {
			v = take()
		}
		if f.align == 0 {
			f.align = '>'
		}
		in.formatted(&b, v, f)
	}
	if named == nil && next < len(a.positional) {
		fail("too many values for the format")
	}
	return b.text()
}

// spec is how one value is formatted.
type spec struct {
	align, sign, verb byte // 0: the default
	zero, alternate   bool
	comma             bool
	fill              string
	width, precision  int
	precise           bool
}

// widths reads "8.3" or "*.*".
func (f *spec) widths(s string, at int, take func() int64) int {
	number := func() int {
		if at < len(s) && s[at] == '*' && take != nil {
			at++
			return int(max(math.MinInt32, min(math.MaxInt32, take())))
		}
		n := 0
		for ; at < len(s) && s[at] >= '0' && s[at] <= '9'; at++ {
			n = min(n*10+int(s[at]-'0'), math.MaxInt32)
		}
		return n
	}
	if f.width = number(); f.width < 0 {
		f.align, f.width = '<', -f.width
	}
	if at < len(s) && s[at] == '.' {
		at++
		f.precise, f.precision = true, max(0, number())
	}
	return at
}

const maxPrecision = 400

// formatted writes v as f says.
func (in *interp) formatted(b *builder, v value, f spec) {
	var body Text
	sign := ""
	numeric := true
	if f.precise && f.precision > maxPrecision && strings.IndexByte("sra", f.verb) < 0 {
		fail("a precision of %d digits", f.precision)
	}
	switch f.verb {
	case 's', 'r', 'a':
		numeric = false
		if body = in.text(v); f.verb != 's' {
			r := builder{m: &in.m}
			in.repr(&r, v)
			body = r.text()
		}
		if f.precise {
			in.m.look(body)
			body = in.m.slice(body, 0, body.offset(f.precision))
		}
	case 'c':
		numeric = false
		if t, ok := v.(Text); ok && t.chars() == 1 {
			body = t
		} else {
			body = Data(string(rune(wantInt(v))))
		}
	case 'd', 'i', 'u', 'x', 'X', 'o', 'b':
		if x, ok := v.(float64); ok && f.verb != 'b' && math.Abs(x) < 1<<63 {
			v = int64(x)
		}
		n := wantInt(v)
		base, prefix := 10, ""
		switch f.verb {
		case 'x', 'X':
			base, prefix = 16, "0"+string(f.verb)
		case 'o':
			base, prefix = 8, "0o"
		case 'b':
			base, prefix = 2, "0b"
		}
		digits := strconv.FormatUint(magnitude(n), base)
		if f.verb == 'X' {
			digits = strings.ToUpper(digits)
		}
		if f.precise && len(digits) < f.precision {
			digits = strings.Repeat("0", f.precision-len(digits)) + digits
		}
		if n < 0 {
			sign = "-"
		}
		if f.alternate {
			sign += prefix
		}
		body = Data(digits)
	case 'e', 'E', 'f', 'F', 'g', 'G':
		x, ok := number(v)
		if !ok {
			fail("a number is wanted, not %s", kind(v))
		}
		precision := 6
		if f.precise {
			precision = f.precision
		}
		if math.Signbit(x) && !math.IsNaN(x) {
			sign = "-"
		}
		x = math.Abs(x)
		switch {
		case math.IsInf(x, 0):
			body = Data("inf")
		case math.IsNaN(x):
			body = Data("nan")
		case f.verb == 'g' || f.verb == 'G':
			body = Data(general(x, max(1, precision)))
		default:
			body = Data(strconv.FormatFloat(x, f.verb|0x20, precision, 64))
		}
		if f.verb < 'a' {
			body.s = strings.ToUpper(body.s)
		}
	default:
		fail("a format with %q", f.verb)
	}
	if f.comma {
		whole, fraction, _ := strings.Cut(body.s, ".")
		for i := len(whole) - 3; i > 0; i -= 3 {
			whole = whole[:i] + "," + whole[i:]
		}
		if fraction != "" {
			whole += "." + fraction
		}
		body = Data(whole)
	}
	if numeric && (sign == "" || sign[0] != '-') && f.sign != 0 {
		sign = string(f.sign) + sign
	}
	fill := Own(" ")
	if f.fill != "" {
		fill = Own(f.fill)
	}
	align := f.align
	if f.zero && numeric && align != '<' {
		fill, align = Own("0"), '='
	}
	n := in.padding(Text{s: sign + body.s}, int64(f.width))
	left, inner, right := 0, 0, 0
	switch align {
	case '<':
		right = n
	case '^':
		left, right = n/2, n-n/2
	case '=':
		inner = n
	default:
		left = n
	}
	b.repeat(fill, left)
	b.writeData(sign)
	b.repeat(fill, inner)
	b.write(body)
	b.repeat(fill, right)
}

// general is the format g: so many digits, without zeros at the end.
func general(x float64, precision int) string {
	e := strconv.FormatFloat(x, 'e', precision-1, 64)
	i := strings.IndexByte(e, 'e')
	exponent, _ := strconv.Atoi(e[i+1:])
	trim := func(s string) string {
		if strings.Contains(s, ".") {
			return strings.TrimRight(strings.TrimRight(s, "0"), ".")
		}
		return s
	}
	if exponent < -4 || exponent >= precision {
		return trim(e[:i]) + e[i:]
	}
	return trim(strconv.FormatFloat(x, 'f', precision-1-exponent, 64))
}

// format is Python's str.format.
func (in *interp) format(t Text, a args) Text {
	b := builder{m: &in.m}
	next := 0
	s := t.s
	for at := 0; at < len(s); {
		n := strings.IndexAny(s[at:], "{}")
		if n < 0 {
			b.write(in.m.slice(t, at, len(s)))
			break
		}
		b.write(in.m.slice(t, at, at+n))
		at += n
		if at+1 < len(s) && s[at+1] == s[at] {
			b.write(in.m.slice(t, at, at+1))
			at += 2
			continue
		}
		end := strings.IndexByte(s[at:], '}')
		if s[at] == '}' || end < 0 {
			fail("a format with a single %q", s[at])
		}
		field, form, _ := strings.Cut(s[at+1:at+end], ":")
		at += end + 1
		field, conversion, converted := strings.Cut(field, "!")
		v := in.field(field, a, &next)
		f := spec{verb: 's'}
		if converted {
			if conversion != "r" && conversion != "s" {
				fail("a format with !%s", conversion)
			}
			r := builder{m: &in.m}
			if conversion == "r" {
				in.repr(&r, v)
				v = r.text()
			} else {
				v = in.text(v)
			}
		}
		if form != "" {
			f.parse(form, v)
		}
		in.formatted(&b, v, f)
	}
	return b.text()
}

// field finds what "0.name[key]" means.
func (in *interp) field(field string, a args, next *int) value {
	end := strings.IndexAny(field, ".[")
	if end < 0 {
		end = len(field)
	}
	name, path := field[:end], field[end:]
	var v value
	if i, err := strconv.Atoi(name); err == nil || name == "" {
		if name == "" {
			i = *next
			*next++
		}
		if i < 0 || i >= len(a.positional) {
			fail("too few values for the format")
		}
		v = a.positional[i]
	} else if i := slices.Index(a.names, name); i >= 0 {
		v = a.named[i]
	} else {
		fail("no value %q for the format", name)
	}
	for path != "" {
		in.m.step(1)
		if path[0] == '.' {
			end := strings.IndexAny(path[1:], ".[") + 1
			if end == 0 {
				end = len(path)
			}
			v, path = in.attribute(v, path[1:end]), path[end:]
			continue
		}
		end := strings.IndexByte(path, ']')
		if path[0] != '[' || end < 0 {
			fail("a format with %q", field)
		}
		var key value = Own(path[1:end])
		if i, err := strconv.ParseInt(path[1:end], 10, 64); err == nil {
			key = i
		}
		v, path = in.item(v, key), path[end+1:]
	}
	return v
}

// parse reads a format specification for v.
func (f *spec) parse(s string, v value) {
	whole := s
	if size := len(s) - len(s[(Text{s: s}).offset(1):]); len(s) > size && strings.IndexByte("<>^=", s[size]) >= 0 {
		f.fill, f.align, s = s[:size], s[size], s[size+1:]
	} else if strings.IndexByte("<>^=", s[0]) >= 0 {
		f.align, s = s[0], s[1:]
	}
	at := 0
	for ; at < len(s) && strings.IndexByte("+- #0", s[at]) >= 0; at++ {
		switch s[at] {
		case '+', ' ':
			f.sign = s[at]
		case '#':
			f.alternate = true
		case '0':
			f.zero = f.align == 0
		}
	}
	if at < len(s) && s[at] != ',' {
		at = f.widths(s, at, nil)
	}
	if at < len(s) && s[at] == ',' {
		f.comma = true
		at++
		if at < len(s) && s[at] == '.' {
			var rest spec
			at = rest.widths(s, at, nil)
			f.precise, f.precision = rest.precise, rest.precision
		}
	}
	_, isFloat := v.(float64)
	_, isInt := v.(int64)
	switch {
	case at+1 == len(s):
		f.verb = s[at]
	case at < len(s):
		fail("the format %q", whole)
	case isInt:
		f.verb = 'd'
	case isFloat && (f.precise || f.comma):
		f.verb = 'g'
	}
	if f.align == 0 {
		if f.align = '<'; isInt || isFloat {
			f.align = '>'
		}
	}
	if f.align == '<' {
		f.zero = false
	}
}

// directives of Python's strftime in the C locale, as layouts of package time.
var directives = map[byte]string{
	'Y': "2006", 'y': "06", 'm': "01", 'd': "02", 'H': "15", 'I': "03", 'M': "04", 'S': "05", 'p': "PM", 'B': "January",
	'b': "Jan", 'h': "Jan", 'A': "Monday", 'a': "Mon", 'j': "002", 'e': "_2", 'F': "2006-01-02", 'T': "15:04:05", 'D': "01/02/06", 'R': "15:04",
}

func strftime(t time.Time, format string) string {
	var out strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			out.WriteByte(format[i])
			continue
		}
		if i++; i == len(format) {
			fail("strftime_now: the format %q ends in %%", format)
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
			fail("strftime_now: unknown directive %%%c", format[i])
		}
	}
	return out.String()
}
