package scheduler

import (
	"slices"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

const (
	// What a progress command takes in the log at most: for itself beside the id, for a choice beside
	// the stop reason, and for a token.
	progressBytes = 32
	choiceBytes   = 32
	tokenBytes    = 5
	// checkpointsPerSecond bounds the requests whose progress goes into the log, and checkpointBurst is for how
	// long it may be saved up.
	checkpointsPerSecond = 10_000
	checkpointBurst      = 2 * housekeeping
	// maxStopBytes bounds the text of a stop reason; stop strings are shorter.
	maxStopBytes = 512
)

// output is what is known of a choice. The log has, or is being told, the first logged tokens.
type output struct {
	tokens       []int32
	finish       pb.FinishReason
	stop         string
	logged       int
	finishLogged bool
}

// remember takes over what the log knows of a request's output.
func (r *live) remember(outputs []*pb.Output) {
	for _, o := range outputs {
		// Clipped, because the record's array is the store's to append to.
		r.outputs = append(r.outputs, output{
			tokens: slices.Clip(o.GetTokenIds()), logged: len(o.GetTokenIds()),
			finish: o.GetFinishReason(), stop: o.GetStopReason(), finishLogged: o.GetFinishReason() != 0,
		})
		r.held += len(o.GetTokenIds())
	}
}

// learn takes in news of a request's output: what follows what is known, and nothing else. It goes
// into one of the next entries. An output that grows shows that the request is not what workers die
// of.
func (l *leader) learn(r *live, news []*pb.ChoiceProgress) {
	sampling := r.request.GetSampling()
	changed := false
	for _, n := range news {
		if n.GetChoice() < 0 || n.GetChoice() >= max(1, sampling.GetN()) || n.GetFirst() < 0 {
			continue
		}
		if r.outputs == nil {
			r.outputs = make([]output, max(1, sampling.GetN()))
		}
		o := &r.outputs[n.GetChoice()]
		known := len(o.tokens) - int(n.GetFirst())
		if o.finish != 0 || known < 0 {
			continue
		}
		fresh := n.GetTokenIds()[min(known, len(n.GetTokenIds())):]
		most := int(sampling.GetMaxTokens())
		if most > 0 && len(o.tokens)+len(fresh) > most || r.held+len(fresh) > state.MaxOutputTokens ||
			slices.ContainsFunc(fresh, func(id int32) bool { return id < 0 || r.vocabulary > 0 && id >= r.vocabulary }) {
			continue
		}
		if len(fresh) > 0 {
			o.tokens = append(o.tokens, fresh...)
			r.held += len(fresh)
			l.grew(r, len(fresh))
			changed = true
		}
		if n.GetFinishReason() != 0 {
			o.finish, o.stop = n.GetFinishReason(), rpc.Cut(n.GetStopReason(), maxStopBytes)
			changed = true
		}
	}
	if changed && !r.news {
		r.news = true
		l.progressed = append(l.progressed, r)
	}
}

// grew books what a request's output grew by.
func (l *leader) grew(r *live, tokens int) {
	r.attempts, r.grewMS = 0, l.clock.ms(l.s.settings.now())
	l.batcher.Served(r.request.GetModel(), r.request.GetTenant(), r.request.GetPriority(), 2*int64(tokens))
	if r.phase == phaseAssigned {
		l.batcher.Grew(r.worker, r.request.GetId(), r.tokens(), r.grewMS)
	}
}

// progress takes in a checkpoint. It waits for the next entry or the next housekeeping, whichever
// comes first: an entry of its own would cost a write to the disk for tokens that the gateway has
// anyway.
func (l *leader) progress(s *session, p *pb.Progress, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions[s.info.GetId()] != s {
		return
	}
	s.heard = now
	for _, news := range p.GetRequests() {
		r := l.live[news.GetRequestId()]
		if r != nil && r.phase == phaseAssigned && r.worker == s.info.GetId() && r.dispatched == (state.Position{Term: news.GetTerm(), Index: news.GetIndex()}) {
			l.learn(r, news.GetChoices())
		}
	}
}

// unlogged is the output that no entry has yet, as far as it takes at most room bytes; it counts as
// logged from now on. all says that nothing is left.
func (r *live) unlogged(room int) (news []*pb.ChoiceProgress, size int, all bool) {
	for i := range r.outputs {
		o := &r.outputs[i]
		if o.logged == len(o.tokens) && (o.finish == 0 || o.finishLogged) {
			continue
		}
		left := room - size - choiceBytes - len(o.stop)
		n := min(len(o.tokens)-o.logged, left/tokenBytes)
		if left < 0 || n == 0 && o.logged < len(o.tokens) {
			return news, size, false
		}
		part := &pb.ChoiceProgress{Choice: int32(i), First: int32(o.logged), TokenIds: o.tokens[o.logged : o.logged+n : o.logged+n]}
		news = append(news, part)
		size += choiceBytes + len(o.stop) + n*tokenBytes
		o.logged += n
		if o.logged < len(o.tokens) {
			return news, size, false
		}
		part.FinishReason, part.StopReason = o.finish, o.stop
		o.finishLogged = o.finish != 0
	}
	return news, size, true
}

// composeFinish puts a request's end into the entry, with the news that come before it. false says
// that there is no more room for it.
func (l *leader) composeFinish(e *entry, f *ending) bool {
	own := commandBytes + len(f.command.GetError())
	if e.bytes+own > settleBytes {
		return false
	}
	news, size, all := f.request.unlogged(settleBytes - e.bytes - own)
	if !all {
		addProgress(e, f.request, news, size)
		return false
	}
	f.command.Choices = news
	e.add(&pb.Command{Command: &pb.Command_Finish{Finish: f.command}}, own+size, func(result state.Result) { l.ended(f, result) })
	return true
}

// composeProgress puts a request's news into the entry, and says whether that was all of it.
func composeProgress(e *entry, r *live) bool {
	news, size, all := r.unlogged(settleBytes - e.bytes - progressBytes - maxRequestIDBytes)
	addProgress(e, r, news, size)
	return all
}

func addProgress(e *entry, r *live, news []*pb.ChoiceProgress, size int) {
	if len(news) > 0 {
		e.add(&pb.Command{Command: &pb.Command_Progress{Progress: &pb.ProgressCommand{
			RequestId: r.request.GetId(), Choices: news,
		}}}, progressBytes+len(r.request.GetId())+size, nil)
	}
}

// composeCheckpoints puts the news of running requests into the entry, those that have waited for the longest
// first. It reports whether there was no room for all that may go into the log by now.
//
// Every node applies every checkpoint, some microseconds each, ten a second for each stream. All of them would
// take more than a core at 10,000 streams, so there are checkpointsPerSecond at most, and more streams have
// theirs less often: what only the leader and the worker know by then is computed again if both are lost, and
// the gateway too.
func (l *leader) composeCheckpoints(e *entry, now time.Time) (full bool) {
	l.checkpoints.refill(now)
	l.progressed = take(l.progressed, func(r *live) bool {
		// A request that ends takes its news along.
		if r.phase != phaseEnding {
			if l.checkpoints.left < 1 {
				return false
			}
			l.checkpoints.left--
			if !composeProgress(e, r) {
				full = true
				return false
			}
		}
		r.news = false
		return true
	})
	return full
}

// allowance is how many checkpoints may go into the log by now: those of burst at most.
type allowance struct {
	left float64
	at   time.Time
}

func (a *allowance) refill(now time.Time) {
	most := checkpointsPerSecond * checkpointBurst.Seconds()
	if a.at.IsZero() {
		a.left = most
	} else {
		a.left = min(most, a.left+checkpointsPerSecond*now.Sub(a.at).Seconds())
	}
	a.at = now
}

// toDispatch is the request as a worker gets it: one that goes on after what is known of the output, with
// the KV cache of the worker that handed it over as long as that is there.
func (l *leader) toDispatch(r *live, nowMS int64) *pb.Request {
	if r.source != nil && l.sessions[r.source.info.GetId()] != r.source {
		r.source = nil
	}
	lent := r.source != nil && r.source.draining
	out := state.WithGateway(r.request, r.request.GetGatewayId())
	out.ArrivalMs = r.arrivalMS
	if r.deadlineMS != 0 {
		out.PatienceMs = max(1, r.deadlineMS-nowMS)
	}
	if lent {
		out.KvSource = r.source.info.GetAddress()
	}
	if r.held > 0 {
		for _, o := range r.outputs {
			out.Generated = append(out.Generated, &pb.TokenIds{Ids: slices.Clip(o.tokens)})
		}
	}
	return out
}
