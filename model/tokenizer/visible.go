package tokenizer

// Visible reads one choice's tokens as its client does: what their text is, and where a stop string
// ends it. The engine, which must stop there, and the front door, which must show nothing behind it,
// both read so; whatever the tokens come in, one at a time or many, the text and the stop are the same.
//
// A stop string counts from its last character: it may begin before a choice's minimal length, but
// must end after it. Text that may yet become part of one is held back, as is the beginning of a
// character.
type Visible struct {
	stream *Stream
	stops  *StopMatcher // nil without stop strings
	free   int          // tokens that are still to come before a stop counts
}

// NewVisible returns the reading of a choice from its first token on. showSpecial spells control tokens
// out; they are no text otherwise. After minTokens tokens a stop counts. With keepStop it is the end of the
// text, which otherwise ends before it.
func (t *Tokenizer) NewVisible(showSpecial bool, stops []string, minTokens int, keepStop bool) *Visible {
	v := &Visible{stream: t.NewStream(!showSpecial), free: minTokens}
	if len(stops) > 0 {
		v.stops = NewStopMatcher(stops, keepStop)
	}
	return v
}

// Push takes the next token. text is what certainly is part of the answer now; stop is the index of
// the stop string that ended it, -1 if none has. Nothing follows a stop.
func (v *Visible) Push(id int32) (text string, stop int) {
	text = v.stream.Push(id)
	counts := v.free <= 0
	v.free--
	if v.stops == nil {
		return text, -1
	}
	text, _, stop = v.stops.Push(text, counts)
	return text, stop
}

// Flush ends the choice and returns the text that was held back for a stop string that did not come.
// A character of which only the beginning was generated is left out, as other servers leave it out.
func (v *Visible) Flush() string {
	if v.stops == nil {
		return ""
	}
	return v.stops.Flush()
}

// SpecialID returns the control token that text spells. A stop string that spells one acts as its id:
// the token need not be visible to end a choice.
func (t *Tokenizer) SpecialID(text string) (int32, bool) {
	id, ok := t.ids[text]
	return id, ok && t.IsSpecial(id)
}
