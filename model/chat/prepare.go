package chat

import (
	"errors"
	"fmt"
	"strings"
)

// prepare rewrites a template for the interpreter. What it does exactly as Jinja would, with
// trim_blocks and lstrip_blocks as Hugging Face sets them, is then no longer up to the interpreter:
//
//   - Text between tags becomes a printed string, after the trimming that the tags around it ask
//     for; comments are gone and raw blocks are text.
//   - A variable that is set in a loop is forgotten when the round ends.
//   - tojson becomes our own filter.
//   - Loops and macros count what they spend.
func prepare(source string) (string, error) {
	tags, err := scan(source)
	if err != nil {
		return "", err
	}
	forget(tags)
	var out strings.Builder
	for _, t := range tags {
		t.write(&out)
	}
	return out.String(), nil
}

// tag is a statement, a printed expression or literal text.
type tag struct {
	kind byte   // '%', '{', or 0 for text
	body string // between the delimiters, without the marks for trimming

	before, after string // statements to add around it
}

func (t *tag) write(out *strings.Builder) {
	out.WriteString(t.before)
	switch t.kind {
	case 0:
		if t.body != "" {
			out.WriteString("{{ '")
			out.WriteString(strings.NewReplacer("\\", "\\\\", "'", "\\'").Replace(t.body))
			out.WriteString("' }}")
		}
	case '{':
		out.WriteString("{{ " + t.body + " }}")
	case '%':
		out.WriteString("{% " + t.body + " %}")
	}
	out.WriteString(t.after)
}

// words returns the words of a statement.
func (t *tag) words() []string {
	if t.kind != '%' {
		return nil
	}
	return strings.Fields(t.body)
}

// keyword is the first word of a statement, empty for what is none.
func (t *tag) keyword() string {
	words := t.words()
	if len(words) == 0 {
		return ""
	}
	word, _, _ := strings.Cut(words[0], "(")
	return word
}

const blanks = " \t\n\r\v\f"

// scan cuts a template into tags and applies the rules for the space around them.
func scan(source string) ([]tag, error) {
	source = strings.NewReplacer("\r\n", "\n", "\r", "\n").Replace(source)
	source = strings.TrimSuffix(source, "\n")
	var tags []tag
	lineStart := true // what comes next is at the start of a line
	for rest := source; ; {
		start := 0
		for start < len(rest) && !(rest[start] == '{' && start+1 < len(rest) && strings.IndexByte("{%#", rest[start+1]) >= 0) {
			start++
		}
		if start == len(rest) {
			return append(tags, tag{body: rest}), nil
		}
		kind := rest[start+1]
		text, inner := rest[:start], start+2
		mark := byte(0)
		if inner < len(rest) && (rest[inner] == '-' || rest[inner] == '+') {
			mark = rest[inner]
			inner++
		}
		text = trimBefore(text, kind, mark, lineStart)
		body, end, err := tagBody(rest, inner, kind)
		if err != nil {
			return nil, err
		}
		t := tag{kind: kind, body: body}
		raw := t.keyword() == "raw"
		tags = append(tags, tag{body: text})
		if raw {
			// Text up to the end of the block, whose tags trim as others do.
			mark := rest[end-3]
			rest = rest[end:]
			if mark == '-' {
				rest = strings.TrimLeft(rest, blanks)
			}
			if text, end, err = rawBody(rest); err != nil {
				return nil, err
			}
			tags = append(tags, tag{body: text})
		} else if kind != '#' {
			tags = append(tags, t)
		}
		closing := rest[end-3]
		tail := strings.TrimLeft(rest[end:], blanks)
		switch {
		case closing == '-':
			skipped := rest[end : len(rest)-len(tail)]
			lineStart = strings.HasSuffix(skipped, "\n")
			rest = tail
		case kind != '{' && closing != '+' && strings.HasPrefix(rest[end:], "\n"):
			lineStart = true
			rest = rest[end+1:]
		default:
			lineStart = false
			rest = rest[end:]
		}
	}
}

// trimBefore trims the text before a tag: all space if the tag is marked with a minus; else, before
// a statement or comment that is first on its line, the indentation.
func trimBefore(text string, kind, mark byte, lineStart bool) string {
	if mark == '-' {
		return strings.TrimRight(text, blanks)
	}
	line := strings.LastIndexByte(text, '\n') + 1
	if kind != '{' && mark != '+' && (line > 0 || lineStart) && strings.Trim(text[line:], blanks) == "" {
		return text[:line]
	}
	return text
}

// rawBody finds the end of a raw block and returns its text and where the closing tag ends.
func rawBody(source string) (string, int, error) {
	for i := 0; ; {
		n := strings.Index(source[i:], "{%")
		if n < 0 {
			return "", 0, errors.New("chat: the template does not compile: a raw block without its end")
		}
		start := i + n
		i = start + 2
		mark := byte(0)
		if i < len(source) && (source[i] == '-' || source[i] == '+') {
			mark = source[i]
			i++
		}
		length := strings.Index(source[i:], "%}")
		if length < 0 {
			continue
		}
		if strings.Trim(source[i:i+length], blanks+"-+") == "endraw" {
			return trimBefore(source[:start], '%', mark, false), i + length + 2, nil
		}
	}
}

// tagBody returns the inside of the tag that goes on at source[i], and where the tag ends. Quoted
// strings and brackets may hold what looks like the end.
func tagBody(source string, i int, kind byte) (string, int, error) {
	closer := map[byte]string{'{': "}}", '%': "%}", '#': "#}"}[kind]
	if kind == '#' {
		n := strings.Index(source[i:], closer)
		if n < 0 {
			return "", 0, errors.New("chat: the template does not compile: a comment without its end")
		}
		return "", i + n + 2, nil
	}
	var body strings.Builder
	for depth := 0; i < len(source); {
		end := i + 1
		switch c := source[i]; {
		case depth == 0 && strings.HasPrefix(source[i:], closer):
			return body.String(), i + 2, nil
		case depth == 0 && (c == '-' || c == '+') && strings.HasPrefix(source[i+1:], closer):
			return body.String(), i + 3, nil
		case c == '\'' || c == '"':
			for end < len(source) && source[end] != c {
				if source[end] == '\\' {
					end++
				}
				end++
			}
			end = min(end+1, len(source))
		case c == '|' && strings.TrimLeft(source[end:], blanks) != "":
			// A filter. Only tojson is replaced.
			name := end + len(source[end:]) - len(strings.TrimLeft(source[end:], blanks))
			if after := name + len("tojson"); strings.HasPrefix(source[name:], "tojson") && !isName(source, after) {
				body.WriteString("|" + jsonName)
				i = after
				continue
			}
		case c == '(' || c == '[' || c == '{':
			if depth++; depth > maxNesting {
				return "", 0, fmt.Errorf("chat: the template nests more than %d brackets", maxNesting)
			}
		case c == ')' || c == ']' || c == '}':
			depth--
		}
		body.WriteString(source[i:end])
		if source[i] == '}' {
			body.WriteByte(' ') // the interpreter would take two of them for the end of the tag
		}
		i = end
	}
	return "", 0, fmt.Errorf("chat: the template does not compile: a tag without %q", closer)
}

// isName reports whether source[i] would go on a name.
func isName(source string, i int) bool {
	if i >= len(source) {
		return false
	}
	c := source[i]
	return c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// forget adds what counts rounds and calls, and what makes each round of a loop begin with the
// variables that were there before the loop: the interpreter keeps those that the last round set.
func forget(tags []tag) {
	type loop struct {
		tag  int
		sets []string
	}
	var open []loop // a macro is a loop without a tag: its variables are its own
	for i := range tags {
		t := &tags[i]
		switch t.keyword() {
		case "for":
			t.after = fmt.Sprintf("{%% set %s_ = %s() %%}", roundName, roundName)
			open = append(open, loop{tag: i})
		case "macro", "call":
			t.after = fmt.Sprintf("{%% set %s_ = %s() %%}", callName, callName)
			open = append(open, loop{tag: -1})
		case "set":
			if len(open) == 0 {
				break
			}
			inner := &open[len(open)-1]
			names, _, _ := strings.Cut(strings.TrimSpace(t.body)[len("set"):], "=")
			for name := range strings.SplitSeq(names, ",") {
				name = strings.TrimSpace(name)
				if name != "" && !strings.ContainsAny(name, ". |()") {
					inner.sets = append(inner.sets, name)
				}
			}
		case "endfor", "endmacro", "endcall":
			if len(open) == 0 {
				break
			}
			last := open[len(open)-1]
			open = open[:len(open)-1]
			if last.tag < 0 {
				break
			}
			for n, name := range last.sets {
				kept := fmt.Sprintf("quire_%d_%d_", last.tag, n)
				tags[last.tag].before += fmt.Sprintf("{%% set %s = %s %%}", kept, name)
				tags[last.tag].after += fmt.Sprintf("{%% set %s = %s %%}", name, kept)
			}
		}
	}
}
