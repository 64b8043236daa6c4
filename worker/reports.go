package worker

import (
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

const (
	// endAgain is how long an end that the leader was told is remembered, to be told again if the
	// session breaks: nobody acknowledges it, and telling it twice changes nothing.
	endAgain = 30 * time.Second
	// endsKept bounds how many.
	endsKept = 8192
	// endsBatch is how many go into one message.
	endsBatch = 512
	// newsBytes is about how large a message of tokens to the leader may be.
	newsBytes = 1 << 20
	// A token, a choice and a request take about so much of it.
	tokenBytes, choiceBytes, requestBytes = 4, 24, 192
)

// reports is what the leader must hear: at every checkpoint what running requests have generated,
// and at once what ended, with the rest of its tokens. Each token is said once a session; a new
// session's leader may know nothing, so everything is said again.
type reports struct {
	ends []*end // to be said
	said []*end // within endAgain
	news []*output
	wake chan struct{} // capacity 1
}

// end is the end of a request.
type end struct {
	id          string
	term, index uint64
	returned    bool
	finish      pb.FinishReason
	message     string
	usage       *pb.Usage
	out         *output // whose tokens go with it; nil if it was never taken
	at          time.Time
}

// poke makes the session say what there is, and send a heartbeat.
func (b *reports) poke() {
	select {
	case b.wake <- struct{}{}:
	default:
	}
}

// tellEnd queues an end. The lock is held.
func (o *outbox) tellEnd(e *end) {
	o.leader.ends = append(o.leader.ends, e)
	o.leader.poke()
}

// tellNews has the next checkpoint look at out. The lock is held.
func (o *outbox) tellNews(out *output) {
	if !out.untold && !out.revoked {
		out.untold = true
		o.leader.news = append(o.leader.news, out)
	}
}

// tellAgain makes everything of out news, for another dispatch or another session. The lock is held.
func (o *outbox) tellAgain(out *output) {
	for i := range out.choices {
		out.choices[i].told, out.choices[i].toldEnd = 0, false
	}
	o.tellNews(out)
}

// turnAway tells the leader that a dispatched request was not taken, for now.
func (o *outbox) turnAway(id string, term, index uint64) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.tellEnd(&end{id: id, term: term, index: index, returned: true})
}

// resync begins a session with a leader: all that runs, and all that ended and may not have been heard,
// is news again. It returns the ids of both.
func (o *outbox) resync(now time.Time) (ids []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := &o.leader
	var again []*end
	for _, e := range b.said {
		if now.Sub(e.at) <= endAgain {
			again = append(again, e)
		}
	}
	b.said = nil
	b.ends = append(again, b.ends...)
	for _, e := range b.ends {
		ids = append(ids, e.id)
		if e.out != nil {
			o.tellAgain(e.out)
		}
	}
	for _, out := range o.outputs {
		if !out.done && !out.revoked && !out.returned {
			o.tellAgain(out)
			ids = append(ids, out.id)
		}
	}
	return ids
}

// settled reports that no end is left to be told.
func (o *outbox) settled() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.leader.ends) == 0
}

// finished returns the next ends to tell, and counts them as told. Tokens of an end that are too many
// for one message come before it as progress; one of both is nil, both are when nothing is left.
func (o *outbox) finished(now time.Time) (*pb.Finished, *pb.Progress) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := &o.leader
	var f pb.Finished
	size := 0
	for len(b.ends) > 0 && len(f.Requests) < endsBatch {
		e := b.ends[0]
		size += requestBytes
		x := &pb.FinishedRequest{
			RequestId: e.id, Returned: e.returned, Term: e.term, Index: e.index,
			FinishReason: e.finish, Error: e.message, Usage: e.usage,
		}
		// The tokens are those of the newest dispatch: an older one's end comes without.
		if out := e.out; out != nil && !out.revoked && out.index == e.index {
			n, all := 0, false
			if x.Choices, n, all = out.tell(newsBytes - size); !all {
				if len(f.Requests) > 0 && len(x.Choices) == 0 {
					break
				}
				p := &pb.Progress{Requests: []*pb.RequestProgress{out.progress(x.Choices)}}
				if len(f.Requests) == 0 {
					return nil, p
				}
				return &f, p
			}
			size += n
		}
		if e.out != nil {
			e.out.endTold = true
		}
		f.Requests = append(f.Requests, x)
		e.at = now
		b.ends[0] = nil
		b.ends = b.ends[1:]
		b.said = append(b.said, e)
	}
	old := 0
	for old < len(b.said) && (now.Sub(b.said[old].at) > endAgain || len(b.said)-old > endsKept) {
		old++
	}
	if old > 0 {
		n := copy(b.said, b.said[old:])
		clear(b.said[n:])
		b.said = b.said[:n]
	}
	if len(f.Requests) == 0 {
		return nil, nil
	}
	return &f, nil
}

// checkpoint returns what running requests have got since the leader was last told, nil if that is
// nothing; more says that there is more. What ended is left to its end.
func (o *outbox) checkpoint() (p *pb.Progress, more bool) {
	o.mu.Lock()
	defer o.mu.Unlock()
	b := &o.leader
	size, n := 0, 0
	for _, out := range b.news {
		if !out.done && !out.revoked && !out.returned {
			if size+requestBytes+choiceBytes+tokenBytes > newsBytes {
				break
			}
			news, bytes, all := out.tell(newsBytes - size - requestBytes)
			if len(news) > 0 {
				if p == nil {
					p = &pb.Progress{}
				}
				p.Requests = append(p.Requests, out.progress(news))
				size += requestBytes + bytes
			}
			if !all {
				break
			}
		}
		out.untold = false
		n++
	}
	left := copy(b.news, b.news[n:])
	clear(b.news[left:])
	b.news = b.news[:left]
	return p, left > 0
}

func (out *output) progress(choices []*pb.ChoiceProgress) *pb.RequestProgress {
	return &pb.RequestProgress{RequestId: out.id, Term: out.term, Index: out.index, Choices: choices}
}

// tell takes what the leader has not been told of out, about room bytes of it at most; all says that
// this was everything. Tokens are shared, not copied: what is appended never changes. The lock is held.
func (out *output) tell(room int) (news []*pb.ChoiceProgress, bytes int, all bool) {
	for i := range out.choices {
		c := &out.choices[i]
		rest := len(c.tokens) - c.told
		ended := c.finish != 0 && !c.toldEnd
		if rest == 0 && !ended {
			continue
		}
		n := min(rest, (room-bytes-choiceBytes)/tokenBytes)
		if n < 0 || n == 0 && rest > 0 {
			return news, bytes, false
		}
		p := &pb.ChoiceProgress{Choice: int32(i), First: c.first + int32(c.told), TokenIds: c.tokens[c.told : c.told+n : c.told+n]}
		c.told += n
		news = append(news, p)
		bytes += choiceBytes + n*tokenBytes
		if n < rest {
			return news, bytes, false
		}
		if ended {
			p.FinishReason, p.StopReason = c.finish, c.why
			c.toldEnd = true
			bytes += len(c.why)
		}
	}
	return news, bytes, true
}
