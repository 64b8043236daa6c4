package worker

import (
	"slices"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// session is the stream of one gateway.
type session struct {
	gateway string
	news    []*output
	wake    chan struct{} // capacity 1
	gone    chan struct{} // closed when another session took its place
}

// owns reports whether gateway is the one that id streams to.
func (o *outbox) owns(gateway, id string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.outputs[id]
	return out != nil && out.gateway == gateway
}

// notify puts out on its session's list. The lock is held.
func (o *outbox) notify(out *output) {
	s := o.sessions[out.gateway]
	if s == nil || out.dirty || out.revoked {
		return
	}
	out.dirty = true
	s.news = append(s.news, out)
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// attach starts a session for a gateway, in the place of an older one. What the gateway says it has
// is not sent again; what a session was told the end of and it does not ask for, neither.
func (o *outbox) attach(h *pb.AttachHello) *session {
	s := &session{gateway: h.GatewayId, wake: make(chan struct{}, 1), gone: make(chan struct{})}
	received := make(map[string][]int32, len(h.Resume))
	for _, p := range h.Resume {
		received[p.RequestId] = p.Received
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if old := o.sessions[h.GatewayId]; old != nil {
		close(old.gone)
		old.news = nil
	}
	o.sessions[h.GatewayId] = s
	for id, out := range o.outputs {
		if out.gateway != h.GatewayId {
			continue
		}
		have, known := received[id]
		// What ended while no session had taken its end may be a request that the gateway submitted
		// after it wrote this hello: it does not know to ask for it.
		over := out.delivered && !known
		out.dirty = false
		out.rewind(have, over)
		if !over {
			o.notify(out)
		}
	}
	return s
}

// resume makes a session send one request again from where p says that its gateway is.
func (o *outbox) resume(s *session, p *pb.ResumePoint) {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.outputs[p.GetRequestId()]
	if out == nil || o.sessions[s.gateway] != s || out.gateway != s.gateway {
		return
	}
	out.rewind(p.GetReceived(), false)
	o.notify(out)
}

// rewind moves the session's cursors to have, a count of tokens a choice. over is that even the end
// needs no repeating. The lock is held.
func (out *output) rewind(have []int32, over bool) {
	for i := range out.choices {
		c := &out.choices[i]
		c.sent, c.sentLast = c.first, over
		if i < len(have) {
			c.sent = max(c.sent, have[i])
		}
	}
}

// redirect makes another gateway the one that a request streams to, from the first token on that is
// here. The one before gets nothing more.
func (o *outbox) redirect(id, gateway string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if out := o.outputs[id]; out != nil && out.gateway != gateway {
		o.move(out, gateway)
	}
}

// move does what redirect says. The lock is held.
func (o *outbox) move(out *output, gateway string) {
	if s := o.sessions[out.gateway]; s != nil && out.dirty {
		s.news = slices.DeleteFunc(s.news, func(x *output) bool { return x == out })
	}
	out.gateway, out.delivered, out.dirty = gateway, false, false
	out.rewind(nil, false)
	o.notify(out)
}

// detach ends a session, unless another has taken its place.
func (o *outbox) detach(s *session) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sessions[s.gateway] == s {
		delete(o.sessions, s.gateway)
		for _, out := range s.news {
			out.dirty = false
		}
	}
}

// collect appends everything that is new for s, at most about limit bytes of it; more says that
// there is more. What does not fit stays the first of the news.
func (o *outbox) collect(dst []*pb.TokenEvent, s *session, limit int64) (events []*pb.TokenEvent, more bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.sessions[s.gateway] != s {
		return dst, false
	}
	size := int64(0)
	n := 0
	for _, out := range s.news {
		if size >= limit {
			break
		}
		if out.revoked {
			n++
			out.dirty = false
			continue
		}
		before, all := len(dst), true
		for i := range out.choices {
			e, bytes := out.event(i, limit-size)
			if e != nil {
				dst = append(dst, e)
				size += bytes
			}
			all = all && out.choices[i].rest() == 0
		}
		if !all {
			break
		}
		n++
		out.dirty = false
		if out.done && !out.returned && len(dst) > before {
			dst[len(dst)-1].RequestDone = true
			out.delivered = true
		}
	}
	left := copy(s.news, s.news[n:])
	clear(s.news[left:])
	s.news = s.news[:left]
	return dst, left > 0
}

// rest is how many tokens the session has not sent.
func (c *choice) rest() int32 { return max(0, c.first+int32(len(c.tokens))-c.sent) }

// event is what the session has not sent of a choice, nil if that is nothing: a token at least, and no
// more of them than about room bytes hold.
func (out *output) event(i int, room int64) (e *pb.TokenEvent, bytes int64) {
	c := &out.choices[i]
	each := int64(5)
	if len(c.logprobs) > 0 {
		each += logprobsBytes(c.logprobs[0])
	}
	n := int32(min(int64(c.rest()), max(1, room/each)))
	last := c.finish != 0 && !c.sentLast && !out.returned && n == c.rest()
	if n == 0 && !last {
		return nil, 0
	}
	e = &pb.TokenEvent{
		RequestId: out.id, Choice: int32(i), First: c.sent, CachedTokens: out.cached, Term: out.term, Index: out.index,
	}
	bytes = 64
	if n > 0 {
		from := c.sent - c.first
		to := from + n
		// Shared, not copied: what is appended never changes, so it can be encoded without the lock.
		e.TokenIds = c.tokens[from:to:to]
		bytes += int64(n) * each
		if len(c.logprobs) > 0 {
			e.Logprobs = c.logprobs[from:to:to]
		}
		if i == 0 && c.sent == c.first {
			e.PromptLogprobs = out.prompt
		}
	}
	if out.opening != nil {
		e.QueueUs, e.PrefillUs = &out.opening.queueUS, &out.opening.prefillUS
		out.opening = nil
	}
	if last {
		e.FinishReason, e.StopReason, e.Error = c.finish, c.why, c.message
		c.sentLast = true
	}
	c.sent += n
	return e, bytes
}
