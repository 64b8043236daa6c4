package engine

import (
	"log/slog"
	"slices"
	"strconv"

	"github.com/quire-serve/quire/device"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// join takes a request that Engine.Add has checked, and if it is constrained where its choices stand
// in its grammar, or why they stand nowhere.
func (p *planner) join(r *request, bound []binding, err error) {
	if r.live == 0 {
		return // ended while it was compiled
	}
	if err != nil {
		p.endRequest(r, failureOf(err), err.Error())
		return
	}
	for i := range bound {
		r.choices[i].text, r.choices[i].mask = bound[i].text, bound[i].mask
	}
	p.add(r)
}

// add queues the choices of r.
func (p *planner) add(r *request) {
	for _, s := range r.choices {
		// Tokens from elsewhere may have been the last ones.
		reason, why := p.replay(s)
		if reason != 0 {
			p.end(s, nil, reason, why, "")
			continue
		}
		if s.choice > 0 && r.alike() {
			s.state = stateAttached
			continue
		}
		p.enqueue(s)
	}
	p.ask(r)
}

// alike reports that all choices start from the prompt alone, so that the others can branch off the
// first.
func (r *request) alike() bool {
	for _, s := range r.choices {
		if s.generated() > 0 {
			return false
		}
	}
	return true
}

// replay feeds tokens generated elsewhere to the stop conditions.
func (p *planner) replay(s *sequence) (reason pb.FinishReason, why string) {
	for i := s.prompt; i < len(s.tokens); i++ {
		if reason, why = s.stop(i, s.tokens[i]); reason != 0 {
			s.tokens = s.tokens[:i+1]
			s.told = min(s.told, s.generated())
			return reason, why
		}
	}
	if s.constrained() && s.text.Done() {
		return pb.FinishReason_FINISH_REASON_STOP, ""
	}
	return 0, ""
}

// stop reports why s ends with token at position i, if it does.
func (s *sequence) stop(i int, token int32) (reason pb.FinishReason, why string) {
	// A token that ends the choice by its id is no part of the text.
	if count := i - s.prompt + 1; count > s.min {
		if slices.Contains(s.eos, token) {
			return pb.FinishReason_FINISH_REASON_STOP, ""
		}
		if slices.Contains(s.stopIDs, token) {
			if stop, spelled := s.spelled[token]; spelled {
				return pb.FinishReason_FINISH_REASON_STOP, stop
			}
			return pb.FinishReason_FINISH_REASON_STOP, strconv.Itoa(int(token))
		}
	}
	if s.finder != nil {
		if stop, found := s.finder.Push(token); found {
			return pb.FinishReason_FINISH_REASON_STOP, stop
		}
	}
	if i+1 >= s.limit {
		return pb.FinishReason_FINISH_REASON_LENGTH, ""
	}
	return 0, ""
}

// accept takes the result of the oldest step that is in flight. now is in Unix microseconds.
func (p *planner) accept(r *device.Result, now int64) {
	st := p.oldest()
	p.accepted++
	if p.lower != nil {
		p.lower.finished = st.named
	}
	p.count.steps++
	p.pace.Measure(&st.pace, now)
	if p.Speculate > 0 {
		p.drafts.Measure(st.pace.Decodes, st.pace.Prompts, st.drafts, now)
	}
	p.count.stepTokens += int64(st.rows)
	top := 0
	for i, d := range st.draws {
		s := d.seq
		var logprobs *pb.Logprobs
		if x := d.logprobs; x >= 0 {
			logprobs = &pb.Logprobs{Chosen: &pb.TokenLogprob{TokenId: r.Tokens[i], Logprob: r.Logprobs[i]}}
			for _, t := range r.Top[top : top+int(x)] {
				logprobs.Top = append(logprobs.Top, &pb.TokenLogprob{TokenId: t.Token, Logprob: t.Logprob})
			}
			top += int(x)
		}
		switch {
		case s.state == stateDone:
		case d.score:
			s.scores = append(s.scores, logprobs)
		case d.draft == 0:
			s.pending--
			if st.speculates(s) {
				p.count.drafts++
				p.count.draftTokens += int64(len(s.drafts))
			}
			p.take(s, r.Tokens[i], logprobs, now)
		case p.agrees(s, d.draft):
			p.take(s, r.Tokens[i], logprobs, now)
		}
	}
	for _, s := range st.seqs {
		if st.speculates(s) {
			p.settle(s)
		}
	}
	p.beginStudies()
	p.acquit(st)
	p.pool.Completed(p.accepted)
	p.check()
}

func (p *planner) oldest() *step { return &p.steps[(p.accepted+1)%uint64(len(p.steps))] }

// take appends a drawn token to s and ends it if it must.
func (p *planner) take(s *sequence, token int32, logprobs *pb.Logprobs, now int64) {
	s.tokens = append(s.tokens, token)
	if s.state == stateWaiting {
		p.load.waitingTokens++
	}
	p.count.generated++
	if s.first == 0 {
		s.first = now
	}
	i := len(s.tokens) - 1
	e := p.growing(s)
	if e == nil {
		e = p.event(s)
	}
	e.Tokens = s.tokens[s.prompt+int(e.First) : len(s.tokens) : len(s.tokens)]
	s.told = s.generated()
	if len(s.scores) > 0 {
		// The prompt's come before those of generated tokens.
		n := max(0, s.prompt-s.scoreFrom)
		if n > 0 {
			e.PromptLogprobs = s.scores[:n:n]
		}
		e.Logprobs, s.scores, s.scoreFrom = s.scores[n:], nil, s.scoreTo
	}
	if logprobs != nil {
		e.Logprobs = append(e.Logprobs, logprobs)
	}
	reason, why := s.stop(i, token)
	if s.constrained() && reason == 0 {
		if err := p.follow(s, token); err != nil {
			p.end(s, e, failureOf(err), "", err.Error())
			return
		}
		if !s.behind && s.text.Done() {
			reason = pb.FinishReason_FINISH_REASON_STOP
		}
	}
	if reason != 0 {
		p.end(s, e, reason, why, "")
	}
}

// growing is the newest event if it holds tokens that s drew just before, so that a step's tokens
// make one event.
func (p *planner) growing(s *sequence) *Event {
	if s.agreed == 0 || len(p.events) == 0 {
		return nil
	}
	e := &p.events[len(p.events)-1]
	if e.RequestID != s.id || e.Choice != s.choice || len(e.Tokens) == 0 {
		return nil
	}
	return e
}

// event appends an event of s.
func (p *planner) event(s *sequence) *Event {
	p.events = append(p.events, Event{
		RequestID: s.id, GatewayID: s.gateway, Choice: s.choice, First: int32(s.told),
		CachedTokens: s.cached, QueueUS: -1, PrefillUS: -1,
	})
	e := &p.events[len(p.events)-1]
	if !s.spoke {
		s.spoke, e.Opening = true, true
		if s.started > 0 {
			e.QueueUS = s.started - s.added
		}
		if s.first > 0 {
			e.PrefillUS = s.first - s.started
		}
	}
	return e
}

// end finishes s for good. e is its last event if it has one already.
func (p *planner) end(s *sequence, e *Event, reason pb.FinishReason, why, message string) {
	if s.state == stateDone {
		return
	}
	switch s.state {
	case stateRunning:
		p.running.remove(s)
	case stateWaiting:
		p.dequeue(s)
	}
	attached := s.choice == 0
	s.state = stateDone
	p.release(s)
	p.trust(s)
	s.live--
	if e == nil {
		e = p.event(s)
	}
	e.Finish, e.StopReason, e.Error = reason, why, message
	if s.live == 0 {
		e.Done = true
		e.Usage = Usage{PromptTokens: int32(s.prompt), CachedTokens: s.cached}
		for _, c := range s.choices {
			e.Usage.CompletionTokens += int32(c.generated())
		}
		p.done = append(p.done, s.request)
		return
	}
	// Siblings that hung on its prompt have to go their own way.
	if attached {
		for _, c := range s.choices[1:] {
			if c.state == stateAttached {
				p.enqueue(c)
			}
		}
	}
}

// endRequest ends every choice that still lives.
func (p *planner) endRequest(r *request, reason pb.FinishReason, message string) {
	for i := len(r.choices) - 1; i >= 0; i-- {
		p.end(r.choices[i], nil, reason, "", message)
	}
}

// check verifies the books. A violation is logged, counted and mended; serving goes on.
func (p *planner) check() {
	err := p.pool.Check()
	if err == nil {
		return
	}
	p.count.violations++
	p.Logger.Error("block accounting violated", slog.Any("error", err), slog.Uint64("step", p.accepted), slog.Int("quarantined", p.pool.Quarantine()))
}
