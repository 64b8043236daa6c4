package gateway

import (
	"net/http"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// writer puts an answer into one API's words.
type writer interface {
	// event appends the server-sent events for a piece, those that bring a client further with an id. All
	// that is new to the client in the piece goes in one of them, and the finish in it or after it: an id
	// says that everything up to it has come.
	event(b []byte, p *piece, ids *pen) []byte
	// last appends what follows all pieces: the usage chunk, if asked for, and [DONE].
	last(b []byte, u *pb.Usage) []byte
	// whole appends the body of an answer that is not streamed; pieces are in order of index.
	whole(b []byte, pieces []piece, u *pb.Usage) []byte
}

// opener makes the writer of an answer to a request that arrived then.
type opener func(created time.Time) writer

// respond runs a call and writes its answer, or what the client does not have of it yet.
func (g *Gateway) respond(w http.ResponseWriter, r *http.Request, c *call, open opener) {
	if last := r.Header.Get(lastEvent); last != "" {
		if e := c.resume(last); e != nil {
			g.refuse(w, r, e)
			return
		}
	}
	if e := g.answers.begin(); e != nil {
		g.refuse(w, r, e)
		return
	}
	defer g.answers.end()
	a, e := g.start(r.Context(), c)
	if e != nil {
		g.refuse(w, r, e)
		return
	}
	defer a.close(r.Context())
	recordOf(r.Context()).running(a)
	out := open(a.created())
	if c.whole {
		g.respondWhole(w, r, a, out)
	} else {
		g.respondStream(w, r, a, out)
	}
}

func (g *Gateway) respondWhole(w http.ResponseWriter, r *http.Request, a *answer, out writer) {
	all := make([]piece, len(a.cursors))
	for !a.ended() {
		pieces, e := a.next(r.Context())
		if e != nil {
			g.refuse(w, r, e)
			return
		}
		for _, p := range pieces {
			all[p.index] = p
		}
	}
	_ = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(g.WriteTimeout))
	writeJSON(w, append(out.whole(nil, all, a.usage()), '\n'))
}

// respondStream writes one buffer and flushes once a step. The status goes out as soon as there is nothing to
// tell yet: the request is admitted then, so that what fails later is told by an event. While there are no news
// comments say what is waited for, so that nobody on the way takes the connection for dead.
func (g *Gateway) respondStream(w http.ResponseWriter, r *http.Request, a *answer, out writer) {
	rc := http.NewResponseController(w)
	now := make(chan time.Time)
	close(now)
	alive := time.NewTicker(g.KeepAlive)
	defer alive.Stop()
	var buf []byte
	var deadline time.Time
	begun, quiet := false, true
	ids := newPen(a.call)
	for done := false; !done; {
		tick := alive.C
		if !begun {
			tick = now
		}
		pieces, e := a.nextUntil(r.Context(), tick)
		buf = buf[:0]
		switch waits := len(pieces) == 0 && !a.ended(); {
		case e != nil && (!begun || e.status == statusGone):
			g.refuse(w, r, e)
			return
		case e != nil:
			recordOf(r.Context()).fail(e)
			g.metrics.refused(e)
			buf = append(e.appendBody(append(buf, "data: "...)), "\n\n"...)
			done = true
		case waits && begun && quiet:
			buf = append(a.waiting(append(buf, ": "...), g.Now()), "\n\n"...)
		case waits && begun:
			quiet = true // news came since the last tick
		case !waits:
			buf = a.word(buf, pieces, out, ids)
			done = a.ended()
			quiet = quiet && len(buf) == 0
		}
		if begun && len(buf) == 0 {
			continue // the text so far may be part of a character or of a stop string
		}
		if !begun {
			begun = true
			h := w.Header()
			h.Set("Content-Type", "text/event-stream; charset=utf-8")
			h.Set("Cache-Control", "no-cache")
			h.Set("X-Accel-Buffering", "no")
			w.WriteHeader(http.StatusOK)
		}
		// Moving the deadline costs a timer; once in half its length is enough.
		if now := time.Now(); deadline.Sub(now) < g.WriteTimeout/2 {
			deadline = now.Add(g.WriteTimeout)
			_ = rc.SetWriteDeadline(deadline)
		}
		_, err := w.Write(buf)
		if err == nil {
			err = rc.Flush()
		}
		if err != nil {
			recordOf(r.Context()).fail(gone())
			return
		}
	}
}

// waiting appends what an answer without news waits for, and for how long it has.
func (a *answer) waiting(b []byte, now time.Time) []byte {
	what, since := "", time.Time{}
	for i := 0; i < len(a.lives) && what == ""; i++ {
		what, since = a.lives[i].waiting()
	}
	b = append(b, "waiting for "...)
	b = append(b, what...)
	b = append(b, ", "...)
	b = appendInt(b, int(now.Sub(since).Seconds()))
	return append(b, " s"...)
}

// waiting says what a live waits for since when; empty if for nothing.
func (l *live) waiting() (what string, since time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.done:
		return "", since
	case l.firstToken.IsZero():
		return "the first token", l.arrived
	case l.moved:
		what = "another worker to go on"
	default:
		what = "the next token"
	}
	for i := range l.choices {
		if last := l.choices[i].last; last.After(since) {
			since = last
		}
	}
	return what, since
}

// word appends what the client is sent for a look's pieces. Pieces that it has are worded too, because
// writers count on (the offsets of log-probabilities), and are not sent.
func (a *answer) word(b []byte, pieces []piece, out writer, ids *pen) []byte {
	for i := range pieces {
		if p := &pieces[i]; p.skip {
			b = out.event(b, p, nil)[:len(b)]
		} else {
			b = out.event(b, p, ids)
		}
	}
	if a.ended() {
		b = out.last(b, a.usage())
	}
	return b
}

// wording is what all chunks and bodies of one OpenAI answer share.
type wording struct {
	// head goes from "{" to the opening of choices; tail from behind choices to the end of event.
	head, tail []byte
	usage      bool
	// counts are the tokens of each choice so far, where every chunk says what was used; prompt is that
	// of all prompts.
	counts []int
	prompt int
}

// newWording prepares the parts for a stream, or for a whole body, of the given object type.
func newWording(c *call, prefix, object string, created time.Time, usage bool) wording {
	head := []byte(nil)
	if !c.whole {
		head = append(head, "data: "...)
	}
	head = append(head, `{"id":`...)
	head = appendString(head, prefix+c.id)
	head = append(head, `,"object":"`...)
	head = append(head, object...)
	head = append(head, `","created":`...)
	head = appendInt(head, int(created.Unix()))
	head = append(head, `,"model":`...)
	head = appendString(head, c.model.ID)
	head = fingerprintField(head, c.model.fingerprint)
	head = append(head, `,"choices":[`...)
	w := wording{head: head, tail: []byte("}\n\n"), usage: usage}
	if usage {
		w.tail = []byte(`,"usage":null}` + "\n\n")
	}
	if c.usageSoFar {
		w.counts = make([]int, c.choices())
		for i := range c.prompts {
			w.prompt += len(c.prompts[i].ids)
		}
	}
	return w
}

// close ends a chunk with p behind its choices.
func (w *wording) close(b []byte, p *piece) []byte {
	if w.counts == nil {
		return append(b, w.tail...)
	}
	w.counts[p.index] = p.tokens
	drawn := 0
	for _, n := range w.counts {
		drawn += n
	}
	b = append(b, `,"usage":{"prompt_tokens":`...)
	b = appendInt(b, w.prompt)
	b = append(b, `,"completion_tokens":`...)
	b = appendInt(b, drawn)
	b = append(b, `,"total_tokens":`...)
	b = appendInt(b, w.prompt+drawn)
	return append(b, "}}\n\n"...)
}

// appendIDs writes a member that is a list of token ids, with its comma.
func appendIDs(b []byte, name string, ids []int32) []byte {
	b = append(b, `,"`...)
	b = append(b, name...)
	b = append(b, `":[`...)
	for i, id := range ids {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendInt(b, int(id))
	}
	return append(b, ']')
}

// last appends the usage chunk, if asked for, and the end of the stream.
func (w *wording) last(b []byte, u *pb.Usage) []byte {
	if w.usage {
		b = append(b, w.head...)
		b = append(b, ']')
		b = appendUsage(b, u)
		b = append(b, "}\n\n"...)
	}
	return append(b, "data: [DONE]\n\n"...)
}

// appendUsage writes the usage member, with its comma.
func appendUsage(b []byte, u *pb.Usage) []byte {
	b = append(b, `,"usage":{"prompt_tokens":`...)
	b = appendInt(b, int(u.PromptTokens))
	b = append(b, `,"completion_tokens":`...)
	b = appendInt(b, int(u.CompletionTokens))
	b = append(b, `,"total_tokens":`...)
	b = appendInt(b, int(u.PromptTokens+u.CompletionTokens))
	b = append(b, `,"prompt_tokens_details":{"cached_tokens":`...)
	b = appendInt(b, int(u.CachedTokens))
	return append(b, "}}"...)
}

// appendFinish writes why a choice ended, or null.
func appendFinish(b []byte, reason pb.FinishReason) []byte {
	switch reason {
	case pb.FinishReason_FINISH_REASON_STOP:
		return append(b, `"stop"`...)
	case pb.FinishReason_FINISH_REASON_LENGTH:
		return append(b, `"length"`...)
	default:
		return append(b, "null"...)
	}
}
