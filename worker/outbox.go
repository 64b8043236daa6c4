package worker

import (
	"sync"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/worker/engine"
)

// outbox keeps what requests generated until their gateway has it, and a while longer.
type outbox struct {
	keep     time.Duration
	requests int
	bytes    int64
	// evict ends a running request whose output there is no more room for.
	evict func(id string)

	mu       sync.Mutex
	outputs  map[string]*output
	ended    []*output // in the order in which they ended
	held     int64     // bytes, estimated
	sessions map[string]*session
}

// output is one request's generation so far.
type output struct {
	id, gateway string
	term, index uint64
	arrival     int64
	revoked     bool // gateways hear nothing of it any more
	returned    bool // because the engine handed it back
	choices     []choice
	prompt      []*pb.Logprobs
	cached      int32
	opening     *opening
	bytes       int64
	done        bool
	delivered   bool // a session took the end
	usage       *pb.Usage
	endedAt     time.Time
	dirty       bool // in its session's list of news
}

// choice is the tokens of one choice from position first on, and how far its gateway's session is.
type choice struct {
	first    int32 // tokens before it were generated elsewhere
	tokens   []int32
	logprobs []*pb.Logprobs
	finish   pb.FinishReason
	why      string
	message  string

	sent     int32 // position of the first token not sent
	sentLast bool  // the terminal event is sent
}

type opening struct{ queueUS, prefillUS int64 }

// session is the stream of one gateway.
type session struct {
	gateway string
	news    []*output
	wake    chan struct{} // capacity 1
	gone    chan struct{} // closed when another session took its place
}

func newOutbox(s Settings, evict func(id string)) *outbox {
	return &outbox{
		keep: s.KeepEnded, requests: s.OutboxRequests, bytes: s.OutboxBytes, evict: evict,
		outputs: map[string]*output{}, sessions: map[string]*session{},
	}
}

// admission is what open found.
type admission uint8

const (
	admitNew     admission = iota + 1
	admitRunning           // adopted: it runs already
	admitEnded             // it ran here to its end
)

// open makes room for a dispatched request, or finds what is known of it. An output that another run
// of the same id left behind gives way.
func (o *outbox) open(r *pb.Request, term, index uint64) admission {
	o.mu.Lock()
	defer o.mu.Unlock()
	if old := o.outputs[r.Id]; old != nil {
		if !old.done && !old.revoked {
			old.term, old.index = term, index
			return admitRunning
		}
		if old.done && !old.revoked && old.arrival == r.ArrivalUnixMs && old.complete() {
			old.term, old.index = term, index
			return admitEnded
		}
		o.drop(old)
	}
	out := &output{id: r.Id, gateway: r.GatewayId, term: term, index: index, arrival: r.ArrivalUnixMs}
	out.choices = make([]choice, max(1, r.GetSampling().GetN()))
	for i := range out.choices {
		if i < len(r.Generated) {
			n := int32(len(r.Generated[i].GetIds()))
			out.choices[i].first, out.choices[i].sent = n, n
		}
	}
	out.bytes = int64(256 + 128*len(out.choices))
	o.outputs[r.Id] = out
	o.held += out.bytes
	return admitNew
}

// complete reports that every choice ended of itself.
func (out *output) complete() bool {
	for i := range out.choices {
		if f := out.choices[i].finish; f != pb.FinishReason_FINISH_REASON_STOP && f != pb.FinishReason_FINISH_REASON_LENGTH {
			return false
		}
	}
	return true
}

// refuse ends a request that the engine did not take.
func (o *outbox) refuse(id string, message string, now time.Time) {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.outputs[id]
	if out == nil {
		return
	}
	for i := range out.choices {
		out.choices[i].finish, out.choices[i].message = pb.FinishReason_FINISH_REASON_ERROR, message
	}
	o.end(out, now)
	o.notify(out)
}

// revoke makes gateways hear nothing more of a request.
func (o *outbox) revoke(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if out := o.outputs[id]; out != nil && !out.done {
		out.revoked = true
	}
}

// giveBack is revoke, and what to tell the leader of it.
func (o *outbox) giveBack(id string) *pb.FinishedRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.outputs[id]
	if out == nil || out.done || out.revoked {
		return nil
	}
	out.revoked = true
	return &pb.FinishedRequest{RequestId: id, Returned: true, Term: out.term, Index: out.index}
}

// forget drops a request as if it had never come.
func (o *outbox) forget(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if out := o.outputs[id]; out != nil {
		o.drop(out)
	}
}

// owns reports whether gateway is the one that id streams to.
func (o *outbox) owns(gateway, id string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.outputs[id]
	return out != nil && out.gateway == gateway
}

// report is what the leader is told of an ended request, nil if there is none.
func (o *outbox) report(id string) *pb.FinishedRequest {
	o.mu.Lock()
	defer o.mu.Unlock()
	if out := o.outputs[id]; out != nil && out.done {
		return out.report()
	}
	return nil
}

// report sums the choices up: an error or an abort of one is the request's. The lock is held.
func (out *output) report() *pb.FinishedRequest {
	f := &pb.FinishedRequest{RequestId: out.id, Usage: out.usage, Term: out.term, Index: out.index}
	for i := range out.choices {
		c := &out.choices[i]
		if c.finish > f.FinishReason && c.finish > pb.FinishReason_FINISH_REASON_LENGTH || i == 0 {
			f.FinishReason, f.Error = c.finish, c.message
		}
	}
	return f
}

// add takes the events of a step, wakes the sessions that they are for, and returns reports of the
// requests that ended.
func (o *outbox) add(events []engine.Event, now time.Time) (ended []*pb.FinishedRequest) {
	o.mu.Lock()
	for i := range events {
		e := &events[i]
		out := o.outputs[e.RequestID]
		if out == nil {
			continue
		}
		if e.Returned && (out.returned || !out.revoked) {
			// As if it had never come: gateways hear nothing of its end.
			out.revoked, out.returned = true, true
			if e.Done {
				o.end(out, now)
				ended = append(ended, &pb.FinishedRequest{RequestId: out.id, Returned: true, Term: out.term, Index: out.index})
			}
			continue
		}
		c := &out.choices[e.Choice]
		c.tokens = append(c.tokens, e.Tokens...)
		c.logprobs = append(c.logprobs, e.Logprobs...)
		size := int64(4 * len(e.Tokens))
		for _, l := range e.Logprobs {
			size += logprobsBytes(l)
		}
		if e.PromptLogprobs != nil {
			out.prompt = e.PromptLogprobs
			for _, l := range e.PromptLogprobs {
				size += logprobsBytes(l)
			}
		}
		out.bytes += size
		o.held += size
		out.cached = e.CachedTokens
		if e.Opening && e.QueueUS >= 0 && e.PrefillUS >= 0 {
			out.opening = &opening{e.QueueUS, e.PrefillUS}
		}
		if e.Finish != 0 {
			c.finish, c.why, c.message = e.Finish, e.StopReason, e.Error
		}
		if e.Done {
			out.usage = &pb.Usage{PromptTokens: e.Usage.PromptTokens, CompletionTokens: e.Usage.CompletionTokens, CachedTokens: e.Usage.CachedTokens}
			o.end(out, now)
			ended = append(ended, out.report())
		}
		o.notify(out)
	}
	over := o.trim(now)
	o.mu.Unlock()
	if over != "" {
		o.evict(over)
	}
	return ended
}

// logprobsBytes is about what one token's log-probabilities occupy.
func logprobsBytes(l *pb.Logprobs) int64 { return int64(160 + 64*len(l.Top)) }

// end marks an output as ended. The lock is held.
func (o *outbox) end(out *output, now time.Time) {
	out.done, out.endedAt = true, now
	o.ended = append(o.ended, out)
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

// drop takes out off the books. The lock is held.
func (o *outbox) drop(out *output) {
	if o.outputs[out.id] == out {
		delete(o.outputs, out.id)
	}
	o.held -= out.bytes
	out.bytes = 0
}

// trim drops ended outputs that are old or too many, the oldest first. If what runs alone is too
// much it names the largest, to be ended. The lock is held.
func (o *outbox) trim(now time.Time) (over string) {
	n := 0
	for _, out := range o.ended {
		if o.outputs[out.id] == out && now.Sub(out.endedAt) < o.keep && len(o.outputs) <= o.requests && o.held <= o.bytes {
			break
		}
		o.drop(out)
		n++
	}
	if n > 0 {
		clear(o.ended[:n])
		o.ended = append(o.ended[:0], o.ended[n:]...)
	}
	if o.held <= o.bytes {
		return ""
	}
	var largest *output
	for _, out := range o.outputs {
		if !out.done && (largest == nil || out.bytes > largest.bytes) {
			largest = out
		}
	}
	if largest == nil {
		return ""
	}
	return largest.id
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
		for i := range out.choices {
			c := &out.choices[i]
			c.sent, c.sentLast = c.first, over
			if i < len(have) {
				c.sent = max(c.sent, have[i])
			}
		}
		if !over {
			o.notify(out)
		}
	}
	return s
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

// counts are how many gateways are attached and how many outputs of how many bytes are kept.
func (o *outbox) counts() (gateways, outputs int, bytes int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.sessions), len(o.outputs), o.held
}

// collect appends everything that is new for s, at most about limit bytes of it; more says that
// there is more.
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
		n++
		out.dirty = false
		if out.revoked {
			continue
		}
		before := len(dst)
		for i := range out.choices {
			e, bytes := out.event(i)
			if e != nil {
				dst = append(dst, e)
				size += bytes
			}
		}
		if out.done && len(dst) > before {
			dst[len(dst)-1].RequestDone = true
			out.delivered = true
		}
	}
	left := copy(s.news, s.news[n:])
	clear(s.news[left:])
	s.news = s.news[:left]
	return dst, left > 0
}

// event is what the session has not sent of a choice, nil if that is nothing.
func (out *output) event(i int) (e *pb.TokenEvent, bytes int64) {
	c := &out.choices[i]
	end := c.first + int32(len(c.tokens))
	last := c.finish != 0 && !c.sentLast
	if c.sent >= end && !last {
		return nil, 0
	}
	e = &pb.TokenEvent{
		RequestId: out.id, Choice: int32(i), First: c.sent, CachedTokens: out.cached, Term: out.term, Index: out.index,
	}
	bytes = 64
	if c.sent < end {
		from := c.sent - c.first
		// Shared, not copied: what is appended never changes, so it can be encoded without the lock.
		e.TokenIds = c.tokens[from:len(c.tokens):len(c.tokens)]
		bytes += int64(5 * len(e.TokenIds))
		if len(c.logprobs) > 0 {
			e.Logprobs = c.logprobs[from:len(c.logprobs):len(c.logprobs)]
			bytes += int64(len(e.Logprobs)) * logprobsBytes(e.Logprobs[0])
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
	c.sent = max(c.sent, end)
	return e, bytes
}
