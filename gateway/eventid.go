package gateway

import (
	"strconv"
	"strings"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// mark is how far a client has read one choice. The text of a choice is a function of how many of its
// tokens it comes from, whatever the steps they came in, so that a count says it all.
type mark struct {
	tokens int
	// text: that is all of its text. ended: and its finish was told.
	text, ended bool
}

// marks are how far a client has read a stream: one for each choice, in order of index. The id of an
// event is the marks after it, of all choices, whoever sends it. The grammar of an id is
//
//	marks = mark *( "," mark )
//	mark  = tokens [ "+" / "!" ]    ; no leading zeros
//
//	17      the text of 17 tokens
//	17+     of 17 tokens, the last ones, with what had been held back: its finish is not told yet
//	17!     and its finish too
//	17,12!  two choices
//
// parseMarks and appendID are the only places that know it.
type marks []mark

// maxMarks bounds the choices of an answer whose events have ids: each event has all of them.
const maxMarks = maxChoices

// parseMarks reads an event's id. No choice has more tokens than most. It accepts nothing that
// appendID does not write.
func parseMarks(id string, choices int, most int32) (marks, *apiError) {
	const name = lastEvent
	if choices > maxMarks {
		return nil, invalid(name, "%s: an answer with %d choices cannot be resumed; the limit is %d", name, choices, maxMarks)
	}
	if strings.Count(id, ",") != choices-1 {
		return nil, invalid(name, "%s is %q, which is not the id of an event of this answer: it has %d choices", name, clip(id, 64), choices)
	}
	at := make(marks, 0, choices)
	for part := range strings.SplitSeq(id, ",") {
		digits, flag := part, byte(0)
		if n := len(part); n > 0 && (part[n-1] == '+' || part[n-1] == '!') {
			digits, flag = part[:n-1], part[n-1]
		}
		n, err := strconv.ParseUint(digits, 10, 31)
		if err != nil || n > uint64(most) || digits[0] == '0' && digits != "0" {
			return nil, invalid(name, "%s is %q, which is not the id of an event of this answer: %q is not a count of at most %d tokens", name, clip(id, 64), clip(part, 16), most)
		}
		at = append(at, mark{tokens: int(n), text: flag != 0, ended: flag == '!'})
	}
	return at, nil
}

// appendID writes the marks as an event's id.
func (list marks) appendID(b []byte) []byte {
	for i, m := range list {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendInt(b, m.tokens)
		switch {
		case m.ended:
			b = append(b, '!')
		case m.text:
			b = append(b, '+')
		}
	}
	return b
}

// check reports whether a choice has come to the mark, or that it never will.
func (m *mark) check(choice, tokens int, finish pb.FinishReason) (ready bool, e *apiError) {
	ended := finish != pb.FinishReason_FINISH_REASON_UNSPECIFIED
	switch {
	case ended && tokens < m.tokens:
		return false, invalid(lastEvent, "%s: choice %d has %d tokens, not %d", lastEvent, choice, tokens, m.tokens)
	case m.text && tokens > m.tokens:
		return false, invalid(lastEvent, "%s: choice %d did not end after %d tokens", lastEvent, choice, m.tokens)
	case m.text:
		return ended, nil
	}
	return tokens >= m.tokens, nil
}

// pen writes the ids of a stream's events. It begins where the client is, so that the first id of a
// stream that was resumed knows of the choices too that have not come to their mark here yet. A nil pen
// writes none, and so does one for more choices than can be resumed.
type pen struct{ at marks }

func newPen(c *call) *pen {
	if c.choices() > maxMarks {
		return nil
	}
	p := &pen{at: make(marks, c.choices())}
	copy(p.at, c.marks)
	return p
}

// append notes how far the event that follows brings its choice, and writes its id.
func (p *pen) append(b []byte, choice int, m mark) []byte {
	if p == nil {
		return b
	}
	p.at[choice] = m
	b = append(b, "id: "...)
	return append(p.at.appendID(b), '\n')
}
