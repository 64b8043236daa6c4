package gateway

import (
	"context"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

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
	at, e := parseMarks(last, c.choices(), most)
	if e != nil {
		return e
	}
	c.marks = at
	c.model.meters.resumed.Inc()
	return nil
}

// reopen makes the caller a reader of a request that was begun here or elsewhere, after the tokens
// that it has: the leader knows the rest.
func (g *Gateway) reopen(ctx context.Context, who caller, received []int32) (*answer, *apiError) {
	if e := g.place(who); e != nil {
		return nil, e
	}
	taken := 1 // of the gateway's places, and not handed to an answer
	defer func() { g.release(taken) }()
	asked, cancel := context.WithTimeout(ctx, g.SubmitTimeout)
	defer cancel()
	request, tokens := (*pb.Request)(nil), int32(0)
	if l := g.lives.get(who.key()); l != nil {
		l.mu.Lock()
		request, tokens = l.request, l.promptTokens
		l.mu.Unlock()
	} else {
		r, err := ask(asked, g.control, &pb.AdoptRequest{RequestId: who.key(), GatewayId: g.NodeID, IfMine: true, Tenant: who.tenant}, pb.ControlClient.Adopt)
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
	c := &call{caller: who, places: taken, model: m, params: request.Sampling, prompts: []prompt{{maxTokens: request.Sampling.MaxTokens}}}
	if e := c.receive(received); e != nil {
		return nil, e
	}
	if e := g.seat(c, []string{who.key()}); e != nil {
		return nil, e
	}
	a := g.newAnswer(c)
	a.places, c.places, taken = c.places, 0, 0
	e := g.enter(a, who.key(), nil, func() *live {
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
	c.marks = make(marks, len(received))
	for i, n := range received {
		if n < 0 || n > c.params.MaxTokens {
			return invalid(name, "%s[%d] must be between 0 and max_tokens, which is %d, not %d", name, i, c.params.MaxTokens, n)
		}
		c.marks[i].tokens = int(n)
	}
	return nil
}
