package gateway

import (
	"context"
	"fmt"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// call is what a client asked for, on any surface: one or more prompts for one model with the same
// parameters.
type call struct {
	id      string
	model   *served
	prompts []prompt
	params  *pb.SamplingParams
	// constraint names the parameter that params.Constraint comes from, in errors.
	constraint string
	// whole calls are answered once, at their end.
	whole       bool
	skipSpecial bool
	// scoreOnly calls want the prompt alone; the one token that must be generated is dropped.
	scoreOnly bool
}

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
}

// cursor is how far one choice has been read.
type cursor struct {
	live  *live
	index int
	text  *assembler
	read  int
	began bool
	ended bool
}

// answer is a running call as its client's goroutine sees it.
type answer struct {
	g       *Gateway
	call    *call
	lives   []*live
	cursors []cursor
	wake    chan struct{}
	pieces  []piece
	// admitted is set once all of it is committed.
	admitted bool
}

// start admits all prompts of a call; when it returns, every admission is committed. The caller must
// call close.
func (g *Gateway) start(ctx context.Context, c *call) (*answer, *apiError) {
	ready, _ := g.serving(c.model)
	if ready == 0 {
		return nil, unavailable("no worker for model %q is ready", c.model.ID)
	}
	if e := g.acquire(len(c.prompts)); e != nil {
		return nil, e
	}
	a := &answer{g: g, call: c, wake: make(chan struct{}, 1)}
	for i := range c.prompts {
		id := c.id
		if len(c.prompts) > 1 {
			id = fmt.Sprintf("%s.%d", c.id, i)
		}
		l := newLive(g.request(id, c, &c.prompts[i]), c.model.meters, a.wake, c.whole, g.Now())
		if !g.lives.add(l) {
			a.close(ctx)
			return nil, conflict("request_id_in_use", "a request with the id %q is running", id)
		}
		a.lives = append(a.lives, l)
		for k := range l.choices {
			a.cursors = append(a.cursors, cursor{live: l, index: k, text: newAssembler(c.model.Tokenizer, c.params, c.skipSpecial)})
		}
	}
	if e := a.submit(ctx); e != nil {
		a.close(ctx)
		return nil, e
	}
	a.admitted = true
	c.model.meters.admitted(a.lives)
	return a, nil
}

// request builds what the worker gets. The seed is always set.
func (g *Gateway) request(id string, c *call, p *prompt) *pb.Request {
	params := c.params
	if params.MaxTokens != p.maxTokens {
		params = proto.Clone(params).(*pb.SamplingParams)
		params.MaxTokens = p.maxTokens
	}
	return &pb.Request{
		Id: id, Model: c.model.ID, Prompt: p.ids, Sampling: params,
		GatewayId: g.NodeID, ArrivalUnixMs: g.Now().UnixMilli(),
	}
}

// submit sends the prompts to the leader, together, so that they share its next log entry.
func (a *answer) submit(ctx context.Context) *apiError {
	ctx, cancel := context.WithTimeout(ctx, a.g.SubmitTimeout)
	defer cancel()
	if len(a.lives) == 1 {
		return a.g.submit(ctx, a.lives[0])
	}
	errs := make([]*apiError, len(a.lives))
	var wg sync.WaitGroup
	for i, l := range a.lives {
		wg.Go(func() { errs[i] = a.g.submit(ctx, l) })
	}
	wg.Wait()
	for _, e := range errs {
		if e != nil {
			return e
		}
	}
	return nil
}

// submit sends one request. A request that the leader refuses, or knows already from someone else, is
// not ours to abort and counts as done; after any other error it may have been admitted.
func (g *Gateway) submit(ctx context.Context, l *live) *apiError {
	resp, err := g.Control.Submit(ctx, &pb.SubmitRequest{Request: l.request})
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil:
		e := fromControl(err)
		if e.code != codes.Unavailable && e.code != codes.Internal {
			l.end(e)
		}
		return e
	case resp.Duplicate && resp.FinishReason != pb.FinishReason_FINISH_REASON_UNSPECIFIED:
		l.end(conflict("request_id_used", "a request with the id %q has ended already", l.request.Id))
		return l.failure
	case resp.Duplicate:
		l.end(conflict("request_id_in_use", "a request with the id %q is running", l.request.Id))
		return l.failure
	case l.worker == "":
		l.worker = resp.WorkerId
	}
	return nil
}

// next waits for news and returns it, at least one piece; nil when all choices have ended. The pieces
// are valid until the next call.
func (a *answer) next(ctx context.Context) ([]piece, *apiError) {
	for {
		pieces, e := a.look()
		if e != nil || len(pieces) > 0 || a.ended() {
			return pieces, e
		}
		select {
		case <-ctx.Done():
			return nil, cancelled("its client has gone")
		case <-a.wake:
		}
	}
}

// look collects what is new without waiting.
func (a *answer) look() ([]piece, *apiError) {
	a.pieces = a.pieces[:0]
	n := len(a.cursors) / len(a.lives)
	for i := range a.cursors {
		c := &a.cursors[i]
		if c.ended {
			continue
		}
		l := c.live
		l.mu.Lock()
		failure := l.failure
		if failure != nil || a.call.whole && !l.done {
			l.mu.Unlock()
			if failure != nil {
				return nil, failure
			}
			continue
		}
		ch := &l.choices[c.index]
		p := piece{index: i, prompt: i / n, first: !c.began, finish: ch.finish, stopped: ch.stopped, ids: ch.tokens[c.read:]}
		if len(ch.logprobs) == len(ch.tokens) {
			p.logprobs = ch.logprobs[c.read:]
		}
		if p.first {
			p.promptLogprobs = l.prompt
		}
		l.mu.Unlock()
		if len(p.ids) == 0 && p.finish == pb.FinishReason_FINISH_REASON_UNSPECIFIED {
			continue
		}
		c.read += len(p.ids)
		c.began = true
		c.ended = p.finish != pb.FinishReason_FINISH_REASON_UNSPECIFIED
		if a.call.scoreOnly {
			p.ids, p.logprobs = nil, nil
			if c.ended {
				p.finish = pb.FinishReason_FINISH_REASON_LENGTH
			}
		} else {
			var kept int
			p.text, kept = c.text.push(p.ids, p.finish)
			p.ids = p.ids[:kept]
			if p.logprobs != nil {
				p.logprobs = p.logprobs[:kept]
			}
		}
		a.pieces = append(a.pieces, p)
	}
	return a.pieces, nil
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
		u.PromptTokens += int32(len(l.request.Prompt))
		l.mu.Lock()
		u.CachedTokens += l.cached
		for i := range l.choices {
			if !a.call.scoreOnly {
				u.CompletionTokens += int32(len(l.choices[i].tokens))
			}
		}
		l.mu.Unlock()
	}
	return u
}

// close gives the call's places back and aborts what has not ended.
func (a *answer) close(ctx context.Context) {
	for _, l := range a.lives {
		l.mu.Lock()
		running := !l.done
		if running {
			l.end(cancelled("its client has gone"))
		}
		l.mu.Unlock()
		if running {
			a.g.abort(ctx, l, "client gone")
		}
		a.g.lives.remove(l)
		if a.admitted {
			l.observe(a.g.Now())
		}
	}
	a.g.release(len(a.call.prompts))
}
