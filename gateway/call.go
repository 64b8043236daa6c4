package gateway

import (
	"context"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// call is what a client asked for, on any surface: one or more prompts for one model with the same
// parameters.
type call struct {
	caller
	// digest names what the client sent: under an id of its own it may send only that again.
	digest  []byte
	model   *served
	prompts []prompt
	params  *pb.SamplingParams
	// priority is lower for what is more urgent.
	priority int32
	// constraint names the parameter that params.Constraint comes from, in errors.
	constraint string
	// whole calls are answered once, at their end.
	whole bool
	// scoreOnly calls want the prompt alone; the one token that must be generated is dropped.
	scoreOnly bool
	// tokenIDs wants the tokens' ids beside the text, usageSoFar usage in every chunk.
	tokenIDs, usageSoFar bool
	// marks are where the client has read the choices to; none is from the start.
	marks marks
	// places are what the call has of the gateway's until its answer has them.
	places int
}

// choices is how many choices an answer to the call has, all prompts together.
func (c *call) choices() int { return len(c.prompts) * int(max(c.params.N, 1)) }

// prompt is one of a call's prompts.
type prompt struct {
	ids []int32
	// text is what an echo shows.
	text string
	// maxTokens is what the context leaves of params.MaxTokens.
	maxTokens int32
}

// piece is what is new in one choice of a call since the last look.
type piece struct {
	index    int // prompt × n + choice
	prompt   int
	text     string
	ids      []int32
	logprobs []*pb.Logprobs
	// promptLogprobs come with a choice's first piece if they were asked for.
	promptLogprobs []*pb.Logprobs
	first          bool
	finish         pb.FinishReason
	stopped        string
	// tokens counts the choice's tokens up to the end of the piece, those without text too.
	tokens int
	// skip pieces are what the client has already: they are worded, so that what follows fits, and
	// not sent.
	skip bool
}

// cursor is how far one choice has been read.
type cursor struct {
	live  *live
	index int
	text  *assembler
	read  int
	began bool
	// texted: all of the text is out, but for the finish.
	texted bool
	ended  bool
	// behind is what the client has and the cursor has not passed yet; nil if that is nothing.
	behind *mark
}

// answer is a running call as its client's goroutine sees it.
type answer struct {
	reader
	g       *Gateway
	call    *call
	lives   []*live
	cursors []cursor
	pieces  []piece
	places  int
}

func (g *Gateway) newAnswer(c *call) *answer {
	return &answer{g: g, call: c, reader: reader{wake: make(chan struct{}, 1), whole: c.whole}}
}

// add makes a live, which the answer's reader is on, a part of the answer.
func (a *answer) add(l *live) {
	a.lives = append(a.lives, l)
	for k := range l.choices {
		u := cursor{live: l, index: k, text: newAssembler(a.call.model.Tokenizer, a.call.params)}
		if n := len(a.cursors); n < len(a.call.marks) && a.call.marks[n] != (mark{}) {
			u.behind = &a.call.marks[n]
		}
		a.cursors = append(a.cursors, u)
	}
}

// created is when the request arrived, here or where it was first admitted.
func (a *answer) created() time.Time {
	l := a.lives[0]
	l.mu.Lock()
	defer l.mu.Unlock()
	return time.UnixMilli(l.request.CreatedUnixMs)
}

// next waits for news and returns it, at least one piece; nil when all choices have ended. The pieces
// are valid until the next call.
func (a *answer) next(ctx context.Context) ([]piece, *apiError) { return a.nextUntil(ctx, nil) }

// nextUntil is next, but returns without any when there are no news and tick has something.
func (a *answer) nextUntil(ctx context.Context, tick <-chan time.Time) ([]piece, *apiError) {
	for {
		pieces, e := a.look()
		if e != nil || len(pieces) > 0 || a.ended() {
			return pieces, a.told(e)
		}
		select {
		case <-ctx.Done():
			return nil, gone()
		case <-tick:
			return nil, nil
		case <-a.wake:
		}
	}
}

// told is a failure in the words for this answer's client.
func (a *answer) told(e *apiError) *apiError {
	if e == interruption {
		return interrupted(a.call.id)
	}
	return e
}

// lookTokens bounds the tokens of a look at an answer that is not whole, pieceTokens those of a choice. So
// what is written at once, and kept for a client that reads slowly, is a few MB at most: a token with the
// largest log-probabilities takes some 3 KB.
const (
	lookTokens  = 1024
	pieceTokens = 256
)

// look collects what is new without waiting, as much of it as may be written at once. If that is
// anything, there may be more.
func (a *answer) look() ([]piece, *apiError) {
	a.pieces = a.pieces[:0]
	room := lookTokens
	for i := range a.cursors {
		if room == 0 {
			break
		}
		for !a.cursors[i].ended {
			from := a.cursors[i].read
			p, ok, e := a.read(i, min(room, pieceTokens))
			if e != nil {
				return nil, e
			}
			if ok {
				a.pieces = append(a.pieces, p)
				if !p.skip && !a.call.whole {
					room -= p.tokens - from
				}
			}
			if !ok || !p.skip {
				break
			}
		}
	}
	return a.pieces, nil
}

// read takes what is new in one choice, at most so many tokens unless the answer is whole; ok is false if
// that is nothing.
func (a *answer) read(i, most int) (p piece, ok bool, e *apiError) {
	c := &a.cursors[i]
	l := c.live
	l.mu.Lock()
	failure := l.failure
	if failure != nil || a.call.whole && !l.done {
		l.mu.Unlock()
		return p, false, failure
	}
	ch := &l.choices[c.index]
	to, finish := len(ch.tokens), ch.finish
	if c.behind != nil {
		ready, e := c.behind.check(i, to, finish)
		if !ready {
			l.mu.Unlock()
			return p, false, e
		}
		to = c.behind.tokens
		if !c.behind.text && !c.behind.ended {
			finish = pb.FinishReason_FINISH_REASON_UNSPECIFIED
		}
	} else if !a.call.whole && to-c.read > most {
		to, finish = c.read+most, pb.FinishReason_FINISH_REASON_UNSPECIFIED
	}
	p = piece{index: i, prompt: i * len(a.lives) / len(a.cursors), first: !c.began, skip: c.behind != nil,
		finish: finish, stopped: ch.stopped, ids: ch.tokens[c.read:to], tokens: to}
	if len(ch.logprobs) == len(ch.tokens) {
		p.logprobs = ch.logprobs[c.read:to]
	}
	if p.first {
		p.promptLogprobs = l.prompt
	}
	l.mu.Unlock()
	if len(p.ids) == 0 && p.finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED {
		return p, false, nil
	}
	c.read = to
	c.began = true
	c.ended = p.finish != pb.FinishReason_FINISH_REASON_UNSPECIFIED
	switch {
	case a.call.scoreOnly:
		p.ids, p.logprobs = nil, nil
		if c.ended {
			p.finish = pb.FinishReason_FINISH_REASON_LENGTH
		}
	case !c.texted:
		var kept int
		p.text, kept = c.text.push(p.ids, p.finish)
		p.ids = p.ids[:kept]
		if p.logprobs != nil {
			p.logprobs = p.logprobs[:kept]
		}
	}
	if c.behind != nil {
		if c.behind.text && !c.behind.ended {
			// The finish itself is still to be told.
			p.finish, c.texted, c.ended = pb.FinishReason_FINISH_REASON_UNSPECIFIED, true, false
		}
		c.behind = nil
	}
	return p, true, nil
}

func (a *answer) ended() bool {
	for i := range a.cursors {
		if !a.cursors[i].ended {
			return false
		}
	}
	return true
}

// usage adds up the call's tokens so far.
func (a *answer) usage() *pb.Usage {
	u := &pb.Usage{}
	for _, l := range a.lives {
		l.mu.Lock()
		u.PromptTokens += l.promptTokens
		u.CachedTokens += min(l.cached, l.promptTokens)
		for i := range l.choices {
			if !a.call.scoreOnly {
				u.CompletionTokens += int32(len(l.choices[i].tokens))
			}
		}
		l.mu.Unlock()
	}
	return u
}
