//go:build linux

package chaos

import (
	"fmt"
	"slices"
	"testing"
)

// answer is all that a client has of a request.
type answer struct {
	choices []choice
	// usage is of prompt and completion tokens; what came from a cache may differ from run to run.
	prompt, completion int
}

type choice struct {
	text string
	// tokens are there where the surface shows them, and so are log-probabilities, one string a token.
	tokens   []int32
	logprobs []string
	finish   string
}

// difference counts how an answer departs from the undisturbed one, in tokens; where the surface has no
// tokens, in bytes of text.
type difference struct {
	lost, duplicated, changed int
}

func (d difference) none() bool { return d == difference{} }

func (d *difference) add(o difference) {
	d.lost += o.lost
	d.duplicated += o.duplicated
	d.changed += o.changed
}

// compare finds the differences of a whole answer.
func compare(want, got *answer) (d difference) {
	if len(want.choices) != len(got.choices) {
		return difference{changed: 1}
	}
	for i, w := range want.choices {
		g := got.choices[i]
		if len(w.tokens) > 0 || len(g.tokens) > 0 {
			d.add(sequences(w.tokens, g.tokens))
		} else {
			d.add(sequences([]byte(w.text), []byte(g.text)))
		}
		if d.none() {
			d.add(sequences(w.logprobs, g.logprobs))
		}
		if d.none() && (w.text != g.text || w.finish != g.finish) {
			d.changed++
		}
	}
	if d.none() && (want.prompt != got.prompt || want.completion != got.completion) {
		d.changed++
	}
	return d
}

// begins finds the differences of an answer that broke off.
func begins(want, got *answer) (d difference) {
	cut := &answer{prompt: got.prompt, completion: got.completion}
	if len(want.choices) != len(got.choices) {
		return difference{changed: 1}
	}
	for i, w := range want.choices {
		g := got.choices[i]
		c := choice{text: w.text[:min(len(w.text), len(g.text))], finish: g.finish}
		c.tokens = w.tokens[:min(len(w.tokens), len(g.tokens))]
		c.logprobs = w.logprobs[:min(len(w.logprobs), len(g.logprobs))]
		if g.finish != "" {
			c = w
		}
		cut.choices = append(cut.choices, c)
	}
	return compare(cut, got)
}

// sequences compares what lies between the common beginning and the common end: if nothing of the
// wanted one, it came on top; if nothing of the other, it is missing.
func sequences[S ~[]E, E comparable](want, got S) difference {
	for len(want) > 0 && len(got) > 0 && want[0] == got[0] {
		want, got = want[1:], got[1:]
	}
	for len(want) > 0 && len(got) > 0 && want[len(want)-1] == got[len(got)-1] {
		want, got = want[:len(want)-1], got[:len(got)-1]
	}
	switch {
	case len(want) == 0:
		return difference{duplicated: len(got)}
	case len(got) == 0:
		return difference{lost: len(want)}
	default:
		return difference{changed: max(len(want), len(got))}
	}
}

// String shows the beginning of an answer, for messages.
func (a *answer) String() string {
	s := fmt.Sprintf("%d+%d tokens", a.prompt, a.completion)
	for _, c := range a.choices {
		s += fmt.Sprintf("; %d tokens, %d bytes, %q, finish %q", len(c.tokens), len(c.text), clip(c.text, 60), c.finish)
	}
	return s
}

func clip(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return s[:n] + "…"
}

// TestDifferencesAreSeen makes sure that every kind of damage is counted as what it is.
func TestDifferencesAreSeen(t *testing.T) {
	make := func(edit func(*answer)) *answer {
		a := &answer{prompt: 3, completion: 6, choices: []choice{
			{text: "abcdef", tokens: []int32{1, 2, 3, 4, 5, 6}, logprobs: []string{"a", "b", "c", "d", "e", "f"}, finish: "stop"},
		}}
		edit(a)
		return a
	}
	first := func(f func(*choice)) func(*answer) { return func(a *answer) { f(&a.choices[0]) } }
	for name, c := range map[string]struct {
		edit func(*answer)
		want difference
	}{
		"nothing":      {func(*answer) {}, difference{}},
		"cut off":      {first(func(c *choice) { c.tokens = c.tokens[:4] }), difference{lost: 2}},
		"hole":         {first(func(c *choice) { c.tokens = slices.Delete(c.tokens, 2, 3) }), difference{lost: 1}},
		"repeat":       {first(func(c *choice) { c.tokens = []int32{1, 2, 3, 2, 3, 4, 5, 6} }), difference{duplicated: 2}},
		"other":        {first(func(c *choice) { c.tokens[2] = 9 }), difference{changed: 1}},
		"text":         {first(func(c *choice) { c.text = "abcdeF" }), difference{changed: 1}},
		"text alone":   {first(func(c *choice) { c.tokens, c.text = nil, "" }), difference{lost: 6}},
		"probability":  {first(func(c *choice) { c.logprobs[5] = "g" }), difference{changed: 1}},
		"finish":       {first(func(c *choice) { c.finish = "length" }), difference{changed: 1}},
		"usage":        {func(a *answer) { a.completion++ }, difference{changed: 1}},
		"other choice": {func(a *answer) { a.choices = append(a.choices, choice{}) }, difference{changed: 1}},
	} {
		if got := compare(make(func(*answer) {}), make(c.edit)); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
	begun := make(first(func(c *choice) {
		c.text, c.tokens, c.logprobs, c.finish = c.text[:2], c.tokens[:2], c.logprobs[:2], ""
	}))
	whole := make(func(*answer) {})
	whole.prompt, whole.completion = 0, 0
	begun.prompt, begun.completion = 0, 0
	if got := begins(whole, begun); !got.none() {
		t.Errorf("a beginning differs: %+v", got)
	}
	begun.choices[0].tokens[1] = 9
	if got := begins(whole, begun); got.changed != 1 {
		t.Errorf("a wrong beginning: %+v", got)
	}
}
