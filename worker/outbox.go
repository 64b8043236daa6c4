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
	leader   reports
}

// output is one request's generation so far.
type output struct {
	id, gateway string
	term, index uint64
	arrival     int64
	revoked     bool // nobody hears anything of it any more
	returned    bool // handed back: gateways get its tokens and hear nothing of an end
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
	untold      bool // in the leader's list of news
	endTold     bool // the leader was told the end, in some session
}

// choice is the tokens of one choice from position first on, and how far its gateway's and the
// leader's sessions are.
type choice struct {
	first    int32 // tokens before it were generated elsewhere, and their log-probabilities are not wanted
	tokens   []int32
	logprobs []*pb.Logprobs
	finish   pb.FinishReason
	why      string
	message  string

	sent     int32 // position of the first token not sent
	sentLast bool  // the terminal event is sent
	told     int   // tokens that the leader was told in its session
	toldEnd  bool
}

type opening struct{ queueUS, prefillUS int64 }

func newOutbox(s Settings, evict func(id string)) *outbox {
	return &outbox{
		keep: s.KeepEnded, requests: s.OutboxRequests, bytes: s.OutboxBytes, evict: evict,
		outputs: map[string]*output{}, sessions: map[string]*session{},
		leader: reports{wake: make(chan struct{}, 1)},
	}
}

// admission is what open found.
type admission uint8

const (
	admitNew     admission = iota + 1
	admitRunning           // adopted: it runs already
	admitEnded             // it ran here to its end
	admitBusy              // an older run is still ending
)

// open makes room for a dispatched request, or finds what is known of it. What another run of the same
// id left behind gives way.
func (o *outbox) open(r *pb.Request, term, index uint64) admission {
	o.mu.Lock()
	defer o.mu.Unlock()
	if old := o.outputs[r.Id]; old != nil {
		fits := !old.revoked && !old.returned && old.arrival == r.ArrivalMs && old.continues(r.Generated)
		switch {
		case !old.done && !fits:
			// Its events would be taken for the new run's.
			return admitBusy
		case !old.done, fits && old.complete():
			old.term, old.index = term, index
			o.tellAgain(old)
			if old.gateway != r.GatewayId || old.done {
				// What ended is dispatched again because its output is wanted: the gateway has not all of it.
				o.move(old, r.GatewayId)
			}
			if !old.done {
				return admitRunning
			}
			o.tellEnd(old.end())
			return admitEnded
		}
		o.drop(old)
	}
	out := &output{id: r.Id, gateway: r.GatewayId, term: term, index: index, arrival: r.ArrivalMs}
	out.choices = make([]choice, max(1, r.GetSampling().GetN()))
	for i := range out.choices {
		if i < len(r.Generated) && !engine.Repeats(r.Sampling) {
			n := int32(len(r.Generated[i].GetIds()))
			out.choices[i].first, out.choices[i].sent = n, n
		}
	}
	out.bytes = int64(256 + 128*len(out.choices))
	o.outputs[r.Id] = out
	o.held += out.bytes
	return admitNew
}

// continues reports whether out holds everything after generated, the tokens of each choice that its
// dispatch came with.
func (out *output) continues(generated []*pb.TokenIds) bool {
	for i := range out.choices {
		n := 0
		if i < len(generated) {
			n = len(generated[i].GetIds())
		}
		if int(out.choices[i].first) > n {
			return false
		}
	}
	return true
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
	o.finish(out, now)
	o.notify(out)
}

// revoke makes everybody hear nothing more of a request.
func (o *outbox) revoke(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if out := o.outputs[id]; out != nil && !out.done {
		out.revoked = true
	}
}

// giveBack returns a request to the leader with all that it generated, which its gateway gets too.
func (o *outbox) giveBack(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	out := o.outputs[id]
	if out == nil || out.done || out.revoked || out.returned {
		return
	}
	out.returned = true
	o.tellEnd(out.end())
}

// forget drops a request as if it had never come.
func (o *outbox) forget(id string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if out := o.outputs[id]; out != nil {
		o.drop(out)
	}
}

// end is what the leader is told of the end of out. An error or an abort of one choice is the
// request's. What was revoked is not over: the leader that revoked it may not have known that its
// dispatch would be committed after all, and then it belongs back into the queue. The lock is held.
func (out *output) end() *end {
	e := &end{id: out.id, term: out.term, index: out.index, returned: out.returned || out.revoked, out: out}
	if e.returned {
		return e
	}
	e.usage = out.usage
	for i := range out.choices {
		c := &out.choices[i]
		if c.finish > e.finish && c.finish > pb.FinishReason_FINISH_REASON_LENGTH || i == 0 {
			e.finish, e.message = c.finish, c.message
		}
	}
	return e
}

// add takes the events of a step and wakes the sessions that they are for.
func (o *outbox) add(events []engine.Event, now time.Time) {
	o.mu.Lock()
	for i := range events {
		if out := o.outputs[events[i].RequestID]; out != nil {
			o.take(out, &events[i], now)
		}
	}
	over := o.trim(now)
	o.mu.Unlock()
	if over != "" {
		o.evict(over)
	}
}

// take adds an event to its output. The lock is held.
func (o *outbox) take(out *output, e *engine.Event, now time.Time) {
	if e.Returned {
		out.returned = true
		if e.Done {
			o.finish(out, now)
		}
		return
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
		o.finish(out, now)
	} else {
		o.tellNews(out)
	}
	o.notify(out)
}

// logprobsBytes is about what one token's log-probabilities occupy.
func logprobsBytes(l *pb.Logprobs) int64 { return int64(160 + 64*len(l.Top)) }

// finish marks an output as ended and tells the leader. The lock is held.
func (o *outbox) finish(out *output, now time.Time) {
	out.done, out.endedAt = true, now
	o.ended = append(o.ended, out)
	o.tellEnd(out.end())
}

// drop takes out off the books. The lock is held.
func (o *outbox) drop(out *output) {
	if o.outputs[out.id] == out {
		delete(o.outputs, out.id)
	}
	o.held -= out.bytes
	out.bytes = 0
	if !out.dirty {
		// The leader may still be told the tokens.
		out.prompt = nil
		for i := range out.choices {
			out.choices[i].logprobs = nil
		}
	}
}

// trim drops ended outputs that are old or too many, the oldest first. If what runs alone is too
// much it names the largest, to be ended. The lock is held.
func (o *outbox) trim(now time.Time) (over string) {
	n := 0
	for _, out := range o.ended {
		if o.outputs[out.id] == out && !out.endTold {
			break // without a leader nothing new comes, so that these are few
		}
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

// counts are how many gateways are attached and how many outputs of how many bytes are kept.
func (o *outbox) counts() (gateways, outputs int, bytes int64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.sessions), len(o.outputs), o.held
}
