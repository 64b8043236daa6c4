package tokenizer

import (
	"strings"
	"unicode/utf8"
)

// Bytes returns the bytes that id stands for, which need not be whole characters; nil for an id
// outside the vocabulary.
func (t *Tokenizer) Bytes(id int32) []byte {
	if id < 0 || int(id) >= len(t.pieces) {
		return nil
	}
	return []byte(t.pieces[id])
}

// Decode returns the text of ids, without control tokens if skipSpecial is set. What is not UTF-8
// becomes U+FFFD, one for each maximal part of a character, as the Unicode standard recommends.
func (t *Tokenizer) Decode(ids []int32, skipSpecial bool) string {
	s := Stream{t: t, skip: skipSpecial}
	return s.Push(ids...) + s.Flush()
}

// Stream decodes tokens as they are made. It holds back the beginning of a character until the rest
// has come, so that everything it returns is valid UTF-8.
type Stream struct {
	t    *Tokenizer
	skip bool
	held []byte // at most three bytes between calls
}

// NewStream returns a stream at the start of a text.
func (t *Tokenizer) NewStream(skipSpecial bool) *Stream { return &Stream{t: t, skip: skipSpecial} }

// Push returns the text that ids complete. Ids outside the vocabulary have no text.
func (s *Stream) Push(ids ...int32) string {
	// The usual case costs no copy: one token of whole characters.
	if len(ids) == 1 && len(s.held) == 0 && ids[0] >= 0 && int(ids[0]) < len(s.t.pieces) {
		if piece := s.t.pieces[ids[0]]; utf8.ValidString(piece) && !(s.skip && s.t.IsSpecial(ids[0])) {
			return piece
		}
	}
	for _, id := range ids {
		if id < 0 || int(id) >= len(s.t.pieces) || s.skip && s.t.IsSpecial(id) {
			continue
		}
		s.held = append(s.held, s.t.pieces[id]...)
	}
	var out strings.Builder
	p := s.held
	for len(p) > 0 && utf8.FullRune(p) {
		n := validPrefix(p)
		out.Write(p[:n])
		if p = p[n:]; len(p) > 0 && utf8.FullRune(p) {
			out.WriteRune(utf8.RuneError)
			p = p[brokenPrefix(p):]
		}
	}
	s.held = append(s.held[:0], p...)
	return out.String()
}

// Flush ends the text: the beginning of a character that never became whole is U+FFFD.
func (s *Stream) Flush() string {
	if len(s.held) == 0 {
		return ""
	}
	s.held = s.held[:0]
	return string(utf8.RuneError)
}

// validPrefix is the length of the longest prefix of p that is valid UTF-8.
func validPrefix(p []byte) int {
	for i := 0; i < len(p); {
		r, n := utf8.DecodeRune(p[i:])
		if r == utf8.RuneError && n == 1 {
			return i
		}
		i += n
	}
	return len(p)
}

// brokenPrefix is how many bytes at the start of p, which is not UTF-8, one U+FFFD stands for: as
// many as could have begun a character, at least one.
func brokenPrefix(p []byte) int {
	n := 1
	for n < 3 && n < len(p) && !utf8.FullRune(p[:n+1]) {
		n++
	}
	return n
}
