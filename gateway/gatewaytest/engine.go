package gatewaytest

import (
	"math"
	"slices"
	"strconv"

	"github.com/quire-serve/quire/model/tokenizer"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// run is one request and all of its output.
type run struct {
	req    *pb.Request
	digest []byte
	// gateway is the one it streams to; worker has it, or nobody.
	gateway, worker string
	// index is the number of its newest dispatch; first is how many tokens of each choice that came with
	// and are not said again.
	index uint64
	first []int
	// logged is how many tokens of each choice the log has; lost runs wait for what gateways have.
	logged  []int
	lost    bool
	choices []*runChoice
	done    bool
	// delivered: some session has been given all of it. bare: its output is not kept.
	delivered, bare bool
	reason          pb.FinishReason
	errorMsg        string
}

type runChoice struct {
	tokens  []int32
	text    *tokenizer.Visible
	finish  pb.FinishReason
	stopped string
}

func (c *Cluster) newRun(req *pb.Request) *run {
	r := &run{req: req, gateway: req.GatewayId}
	for range max(req.Sampling.GetN(), 1) {
		r.choices = append(r.choices, c.newChoice(req))
	}
	r.first, r.logged = make([]int, len(r.choices)), make([]int, len(r.choices))
	return r
}

func (c *Cluster) newChoice(req *pb.Request) *runChoice {
	return newChoice(c.opts.Tokenizer, req.Sampling)
}

func newChoice(vocab *tokenizer.Tokenizer, p *pb.SamplingParams) *runChoice {
	return &runChoice{text: vocab.NewVisible(p.GetShowSpecialTokens(), p.GetStop(), int(p.GetMinTokens()), p.GetIncludeStop())}
}

// probabilities reports whether log-probabilities are wanted: then every dispatch says all tokens.
func (r *run) probabilities() bool {
	p := r.req.Sampling
	return p.Logprobs != nil || p.PromptLogprobs != nil
}

// cached is how many prompt tokens the made-up prefix cache had.
func (r *run) cached() int32 { return int32(len(r.req.Prompt) / blockTokens * blockTokens / 2) }

// checkpoint brings the log up to what is generated.
func (r *run) checkpoint() {
	for i, ch := range r.choices {
		r.logged[i] = max(r.logged[i], len(ch.tokens))
	}
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
	r.checkpoint()
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
			if r := c.runs[id]; r.runs() {
				c.step(r)
				if c.steps%c.opts.CheckpointSteps == 0 {
					r.checkpoint()
				}
			}
		}
		c.changed.Broadcast()
	}
}

func (c *Cluster) runnable() bool {
	for _, r := range c.runs {
		for _, ch := range r.choices {
			if r.runs() && c.moves(ch) {
				return true
			}
		}
	}
	return false
}

// runs reports whether a worker has it.
func (r *run) runs() bool { return !r.done && r.worker != "" }

// moves reports whether a choice has more to say.
func (c *Cluster) moves(ch *runChoice) bool {
	stalled := c.opts.StallAt > 0 && len(ch.tokens) >= c.opts.StallAt
	return ch.finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED && !stalled
}

func (c *Cluster) delivered() bool {
	for s := range c.sessions {
		if !s.broken && !c.mute[s.worker] && s.behind() {
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
		r.checkpoint()
	}
}

// take appends a token and applies the stop conditions.
func (ch *runChoice) take(vocab *tokenizer.Tokenizer, p *pb.SamplingParams, id int32) {
	position := len(ch.tokens)
	ch.tokens = append(ch.tokens, id)
	stop, reason := false, ""
	if position >= int(p.MinTokens) {
		stop = !p.IgnoreEos && vocab.IsEOG(id)
		if i := slices.Index(p.Stop, vocab.Text(id)); !stop && i >= 0 && vocab.IsSpecial(id) {
			stop, reason = true, p.Stop[i]
		}
		if slices.Contains(p.StopTokenIds, id) {
			stop, reason = true, strconv.Itoa(int(id))
		}
	}
	if !stop {
		if _, which := ch.text.Push(id); which >= 0 {
			stop, reason = true, p.Stop[which]
		}
	}
	switch {
	case stop:
		ch.finish, ch.stopped = pb.FinishReason_FINISH_REASON_STOP, reason
	case len(ch.tokens) >= int(p.MaxTokens):
		ch.finish = pb.FinishReason_FINISH_REASON_LENGTH
	}
}

// Answer is the whole output of a request, a choice each, as the workers give it.
func Answer(req *pb.Request, reply func(req *pb.Request, choice, position int) int32) []*pb.Output {
	var list []*pb.Output
	for i := range int(max(req.Sampling.GetN(), 1)) {
		ch := newChoice(Tokenizer(), req.Sampling)
		for ch.finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED {
			ch.take(Tokenizer(), req.Sampling, reply(req, i, len(ch.tokens)))
		}
		list = append(list, &pb.Output{TokenIds: ch.tokens, FinishReason: ch.finish, StopReason: ch.stopped})
	}
	return list
}

// Logprobs are the made-up probabilities of some tokens, with the top likeliest.
func Logprobs(ids []int32, top int) []*pb.Logprobs {
	list := make([]*pb.Logprobs, len(ids))
	for i, id := range ids {
		list[i] = logprobs(id, top)
	}
	return list
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
		ev := &pb.TokenEvent{RequestId: r.req.Id, Choice: int32(i), First: int32(from), TokenIds: slices.Clone(ch.tokens[from:to]), Term: term, Index: r.index}
		if p.Logprobs != nil {
			ev.Logprobs = Logprobs(ev.TokenIds, int(*p.Logprobs))
		}
		if i == 0 && from == 0 {
			queue, prefill := int64(1000), int64(2000)
			ev.QueueUs, ev.PrefillUs = &queue, &prefill
			ev.CachedTokens = r.cached()
			if p.PromptLogprobs != nil {
				ev.PromptLogprobs = Logprobs(r.req.Prompt[1:], int(*p.PromptLogprobs))
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
