package gatewaytest

import (
	"math"
	"slices"
	"strconv"

	"github.com/quire-serve/quire/model/tokenizer"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func (c *Cluster) newRun(req *pb.Request, worker string) *run {
	c.index++
	r := &run{req: req, worker: worker, index: c.index}
	for range max(req.Sampling.GetN(), 1) {
		r.choices = append(r.choices, &runChoice{text: c.opts.Tokenizer.NewStream(true), stops: tokenizer.NewStopMatcher(req.Sampling.GetStop())})
	}
	return r
}

// blocks is how many blocks the request holds: each choice its own.
func (r *run) blocks() int {
	n := 0
	for _, ch := range r.choices {
		n += (len(r.req.Prompt) + len(ch.tokens) + blockTokens - 1) / blockTokens
	}
	return n
}

func (r *run) end(reason pb.FinishReason, message string) {
	if r.done {
		return
	}
	r.done, r.reason, r.errorMsg = true, reason, message
	for _, ch := range r.choices {
		if ch.finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED {
			ch.finish = reason
		}
	}
}

// stepForever takes a step whenever there is something to run, leave to run it, and every session has
// passed on the step before.
func (c *Cluster) stepForever() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for !c.closed && !(c.runnable() && (!c.opts.Manual || c.credit > 0) && c.delivered()) {
			c.changed.Wait()
		}
		if c.closed {
			return
		}
		if c.opts.Manual {
			c.credit--
		}
		c.steps++
		for _, id := range c.order {
			if r := c.runs[id]; !r.done {
				c.step(r)
			}
		}
		c.changed.Broadcast()
	}
}

func (c *Cluster) runnable() bool {
	for _, r := range c.runs {
		for _, ch := range r.choices {
			if !r.done && c.moves(ch) {
				return true
			}
		}
	}
	return false
}

// moves reports whether a choice has more to say.
func (c *Cluster) moves(ch *runChoice) bool {
	stalled := c.opts.StallAt > 0 && len(ch.tokens) >= c.opts.StallAt
	return ch.finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED && !stalled
}

func (c *Cluster) delivered() bool {
	for s := range c.sessions {
		if !s.broken && s.behind() {
			return false
		}
	}
	return true
}

// step generates the next tokens of each open choice.
func (c *Cluster) step(r *run) {
	open := false
	for i, ch := range r.choices {
		for range c.opts.TokensPerStep {
			if c.moves(ch) {
				ch.take(c.opts.Tokenizer, r.req.Sampling, c.opts.Reply(r.req, i, len(ch.tokens)))
			}
		}
		open = open || ch.finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED
	}
	if !open {
		r.done, r.reason = true, r.choices[0].finish
	}
}

// take appends a token and applies the stop conditions.
func (ch *runChoice) take(vocab *tokenizer.Tokenizer, p *pb.SamplingParams, id int32) {
	position := len(ch.tokens)
	ch.tokens = append(ch.tokens, id)
	text := ch.text.Push(id)
	stop, reason := false, ""
	if position >= int(p.MinTokens) {
		if _, hit, which := ch.stops.Push(text); hit {
			stop, reason = true, p.Stop[which]
		}
		if slices.Contains(p.StopTokenIds, id) {
			stop, reason = true, strconv.Itoa(int(id))
		}
		stop = stop || !p.IgnoreEos && vocab.IsEOG(id)
	}
	switch {
	case stop:
		ch.finish, ch.stopped = pb.FinishReason_FINISH_REASON_STOP, reason
	case len(ch.tokens) >= int(p.MaxTokens):
		ch.finish = pb.FinishReason_FINISH_REASON_LENGTH
	}
}

// logprobs makes up probabilities: the chosen token is likeliest at -0.25, the next ids follow, each
// half as likely, the last one never.
func logprobs(id int32, top int) *pb.Logprobs {
	lp := &pb.Logprobs{Chosen: &pb.TokenLogprob{TokenId: id, Logprob: -0.25}}
	for k := range top {
		v := float32(-0.25 - 0.5*float64(k))
		if k > 0 && k == top-1 {
			v = float32(math.Inf(-1))
		}
		lp.Top = append(lp.Top, &pb.TokenLogprob{TokenId: (id + int32(k)) % Size, Logprob: v})
	}
	return lp
}

// maxEventTokens keeps a message that catches up below gRPC's limit.
const maxEventTokens = 256

// events lists what a session has not had of a run, at most maxEventTokens a choice, and moves its
// marks. The last event says that the request is done.
func (r *run) events(m *mark) []*pb.TokenEvent {
	var list []*pb.TokenEvent
	p := r.req.Sampling
	for i, ch := range r.choices {
		from := min(m.sent[i], len(ch.tokens))
		to := min(len(ch.tokens), from+maxEventTokens)
		ended := ch.finish != pb.FinishReason_FINISH_REASON_UNSPECIFIED && !m.ended[i] && to == len(ch.tokens)
		if from == to && !ended {
			continue
		}
		ev := &pb.TokenEvent{RequestId: r.req.Id, Choice: int32(i), First: int32(from), TokenIds: slices.Clone(ch.tokens[from:to]), Term: 1, Index: r.index}
		if p.Logprobs != nil {
			for _, id := range ev.TokenIds {
				ev.Logprobs = append(ev.Logprobs, logprobs(id, int(*p.Logprobs)))
			}
		}
		if i == 0 && from == 0 {
			queue, prefill := int64(1000), int64(2000)
			ev.QueueUs, ev.PrefillUs = &queue, &prefill
			ev.CachedTokens = int32(len(r.req.Prompt) / blockTokens * blockTokens / 2)
			if p.PromptLogprobs != nil {
				for _, id := range r.req.Prompt[1:] {
					ev.PromptLogprobs = append(ev.PromptLogprobs, logprobs(id, int(*p.PromptLogprobs)))
				}
			}
		}
		if ended {
			ev.FinishReason, ev.StopReason, ev.Error = ch.finish, ch.stopped, r.errorMsg
		}
		m.sent[i], m.ended[i] = to, m.ended[i] || ended
		list = append(list, ev)
	}
	if r.done && len(list) > 0 && !slices.Contains(m.ended, false) {
		r.delivered = true
		list[len(list)-1].RequestDone = true
	}
	return list
}
