package gateway

import (
	"context"
	"strconv"
	"strings"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Where a client has read a stream to. The text of a choice is a function of how many of its tokens
// it comes from, whatever the steps they came in, so a count a choice says it all; an event's id lists
// them in order of index:
//
//	17      the text of 17 tokens
//	17+     of 17 tokens, the last ones, with what had been held back: its finish is not told yet
//	17!     and its finish too
//	17,12!  two choices

// markedChoices bounds the choices of an answer whose events have ids: each event has all of them.
const markedChoices = maxChoices

// mark is how far a client has one choice.
type mark struct {
	tokens int
	// text: that is all of its text. ended: and its finish was told.
	text, ended bool
}

// parseMarks reads an event's id. No choice has more tokens than most.
func parseMarks(id string, choices int, most int32) ([]mark, *apiError) {
	const name = lastEvent
	if choices > markedChoices {
		return nil, invalid(name, "%s: an answer with %d choices cannot be resumed; the limit is %d", name, choices, markedChoices)
	}
	parts := strings.Split(id, ",")
	if len(parts) != choices {
		return nil, invalid(name, "%s is %q, which is not the id of an event of this answer: it has %d choices", name, clip(id, 64), choices)
	}
	marks := make([]mark, len(parts))
	for i, part := range parts {
		m := &marks[i]
		digits := strings.TrimRight(part, "+!")
		switch part[len(digits):] {
		case "":
		case "+":
			m.text = true
		case "!":
			m.text, m.ended = true, true
		default:
			digits = ""
		}
		n, err := strconv.ParseUint(digits, 10, 31)
		if err != nil || n > uint64(most) {
			return nil, invalid(name, "%s is %q, which is not the id of an event of this answer: %q is not a count of at most %d tokens", name, clip(id, 64), clip(part, 16), most)
		}
		m.tokens = int(n)
	}
	return marks, nil
}

// resume has the call's answer begin after the event that the client had last.
func (c *call) resume(last string) *apiError {
	switch {
	case c.whole:
		return invalid(lastEvent, "%s needs stream to be true", lastEvent)
	case !c.named:
		return invalid(lastEvent, "%s needs the Idempotency-Key of the request that it goes on with", lastEvent)
	}
	most := int32(0)
	for i := range c.prompts {
		most = max(most, c.prompts[i].maxTokens)
	}
	marks, e := parseMarks(last, c.choices(), most)
	if e != nil {
		return e
	}
	c.marks = marks
	c.model.meters.resumed.Inc()
	return nil
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

// pen writes the ids of a stream's events. The zero pen writes none.
type pen struct {
	marks []mark
	mute  bool
}

func newPen(choices int) *pen {
	if choices > markedChoices {
		return &pen{}
	}
	return &pen{marks: make([]mark, choices)}
}

// append notes how far the event that follows brings its choice, and writes its id.
func (p *pen) append(b []byte, choice int, m mark) []byte {
	if p.marks == nil {
		return b
	}
	p.marks[choice] = m
	if p.mute {
		return b
	}
	b = append(b, "id: "...)
	for i, m := range p.marks {
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
	return append(b, '\n')
}

// reopen makes the caller a reader of a request that was begun here or elsewhere, after the tokens
// that it has: the leader knows the rest.
func (g *Gateway) reopen(ctx context.Context, who caller, received []int32) (*answer, *apiError) {
	asked, cancel := context.WithTimeout(ctx, g.SubmitTimeout)
	defer cancel()
	request, tokens := (*pb.Request)(nil), int32(0)
	if l := g.lives.get(who.id); l != nil {
		l.mu.Lock()
		request, tokens = l.request, l.promptTokens
		l.mu.Unlock()
	} else {
		r, err := ask(asked, g.control, &pb.AdoptRequest{RequestId: who.id, GatewayId: g.NodeID, IfMine: true}, pb.ControlClient.Adopt)
		if err != nil {
			return nil, fromControl(err)
		}
		if r.Found && r.Request.GetSampling() != nil {
			request, tokens = r.Request, r.PromptTokens
		}
	}
	if request == nil || request.Tenant != who.tenant {
		return nil, forgotten(who.id)
	}
	m := g.models[request.Model]
	if m == nil {
		return nil, unknownModel(request.Model)
	}
	c := &call{caller: who, model: m, params: request.Sampling, skipSpecial: true, prompts: []prompt{{maxTokens: request.Sampling.MaxTokens}}}
	if e := c.receive(received); e != nil {
		return nil, e
	}
	if e := g.acquire(1); e != nil {
		return nil, e
	}
	a := g.newAnswer(c)
	a.places = 1
	e := g.enter(a, who.id, nil, func() *live {
		l := newLive(request, m, true, g.Now())
		l.promptTokens = tokens
		return l
	})
	if e.fresh {
		g.overtake(e.live)
	}
	if e := a.await(ctx); e != nil {
		a.close(ctx)
		return nil, e
	}
	m.meters.resumed.Inc()
	return a, nil
}

// receive has the answer begin after so many tokens a choice.
func (c *call) receive(received []int32) *apiError {
	const name = "received"
	if len(received) > c.choices() {
		return invalid(name, "%s holds %d counts; the request has %d choices", name, len(received), c.choices())
	}
	c.marks = make([]mark, len(received))
	for i, n := range received {
		if n < 0 || n > c.params.MaxTokens {
			return invalid(name, "%s[%d] must be between 0 and max_tokens, which is %d, not %d", name, i, c.params.MaxTokens, n)
		}
		c.marks[i].tokens = int(n)
	}
	return nil
}
