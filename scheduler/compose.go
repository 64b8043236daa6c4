package scheduler

import (
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/batch"
	"github.com/quire-serve/quire/scheduler/state"
)

// compose makes the next entry, nil if there is nothing to say. What it hands to workers is on its
// way when it returns.
func (l *leader) compose(now time.Time) *entry {
	l.mu.Lock()
	defer l.mu.Unlock()
	nowMS := l.clock.ms(now)
	e := &entry{pb: &pb.Entry{TimeMs: nowMS}, dispatched: map[string][]string{}}
	l.composeRegistrations(e)
	l.composeOrders(e)
	l.composeReturns(e)
	l.composeFinishes(e)
	more := l.composeCheckpoints(e, now)
	l.composeSubmits(e)
	l.composeAdopts(e, now)
	for _, late := range l.batcher.Expired(nowMS) {
		l.giveUp(l.live[late.ID], reasonDeadline, &pb.FinishCommand{
			FinishReason: pb.FinishReason_FINISH_REASON_DEADLINE,
			Error:        "the deadline passed while the request waited for a worker",
		})
	}
	l.composeAssigns(e, now)
	if l.batcher.Len() == 0 {
		l.backlog = time.Time{}
	} else if l.backlog.IsZero() {
		l.backlog = now
	}
	// Checkpoints that have to wait go with the next housekeeping.
	if more || l.submits.len+len(l.finishes)+len(l.returns)+len(l.adopts)+len(l.orders)+len(l.workerNews) > 0 {
		l.kick()
	}
	if len(e.pb.Commands) == 0 {
		return nil
	}
	return e
}

// take cuts off the front of a list what add accepts.
func take[T any](list []T, add func(T) bool) []T {
	n := 0
	for n < len(list) && add(list[n]) {
		n++
	}
	if n == len(list) {
		return nil
	}
	return list[n:]
}

func (l *leader) composeReturns(e *entry) {
	l.returns = take(l.returns, func(r *live) bool {
		if r.phase != phaseReturned {
			return true // It ended meanwhile.
		}
		// The log must know what the next worker goes on after.
		if !composeProgress(e, r) || e.bytes+commandBytes > settleBytes {
			return false
		}
		e.add(&pb.Command{Command: &pb.Command_Requeue{Requeue: &pb.RequeueCommand{
			RequestId: r.request.GetId(), WorkerId: r.worker,
		}}}, commandBytes, nil)
		r.worker = ""
		l.enqueue(r)
		return true
	})
}

func (l *leader) composeFinishes(e *entry) {
	l.finishes = take(l.finishes, func(f *ending) bool { return l.composeFinish(e, f) })
}

// composeSubmits puts new requests into the entry, those of each tenant in turn. A prompt that goes in
// parts is the first, so that it gets its part of every entry; the others go in the rest of it, also those
// behind it in its line.
func (l *leader) composeSubmits(e *entry) {
	if r := l.uploading; r != nil && l.composeSubmit(e, r) == taken {
		l.submits.remove(r)
		l.uploading = nil
	}
	l.submits.serve(func(r *live) offered {
		if r == l.uploading {
			return later
		}
		return l.composeSubmit(e, r)
	})
}

func (l *leader) composeSubmit(e *entry, r *live) offered {
	if r.size > onePieceBytes && len(r.request.GetPrompt())-r.logged > partTokens {
		return l.composePart(e, r)
	}
	size := min(r.size, onePieceBytes) + commandBytes
	if e.bytes+size > admitBytes {
		return noRoom
	}
	submit := &pb.SubmitCommand{Request: r.request, Digest: r.digest, PromptDigest: r.promptDigest, Rerun: r.rerun, Upload: r.upload, DeadlineMs: r.deadlineMS}
	if r.upload != 0 {
		submit.Request = state.WithPrompt(r.request, r.request.GetPrompt()[r.logged:])
	}
	e.add(&pb.Command{Command: &pb.Command_Submit{Submit: submit}}, size, func(result state.Result) {
		if result.Refused != nil {
			l.reject(r, result.Refused)
			return
		}
		r.submitted = result.Record.Submitted
		close(r.admitted)
		if r.phase == phaseAdmitting {
			l.enqueue(r)
			l.kick()
		}
	})
	r.phase = phaseAdmitting
	if !r.limited {
		l.enqueue(r)
	}
	return taken
}

// composePart puts the next part of a prompt into the entry. It is never the request's last. The log has
// one such prompt at a time.
func (l *leader) composePart(e *entry, r *live) offered {
	if l.uploading != nil && l.uploading != r {
		return later
	}
	if e.bytes+onePieceBytes > admitBytes {
		return noRoom
	}
	if r.upload == 0 {
		l.uploading = r
		l.uploads++
		r.upload = l.term<<32 + l.uploads
	}
	tokens := r.request.GetPrompt()[r.logged : r.logged+partTokens]
	e.add(&pb.Command{Command: &pb.Command_PromptPart{PromptPart: &pb.PromptPartCommand{
		RequestId: r.request.GetId(), Upload: r.upload, Part: r.parts, Prompt: tokens,
	}}}, partTokens*tokenBytes+commandBytes, nil)
	r.logged += partTokens
	r.parts++
	return later
}

func (l *leader) enqueue(r *live) {
	r.phase = phaseQueued
	l.batcher.Push(l.queued(r))
}

// composeAssigns lets the batcher fill the workers, and sends each its batch.
func (l *leader) composeAssigns(e *entry, now time.Time) {
	if l.batcher.Len() == 0 {
		return
	}
	nowMS := l.clock.ms(now)
	number := l.s.dispatches + 1
	assignments := l.batcher.Plan(nowMS, number, batch.Limits{
		Requests: (maxEntryBytes - e.bytes) / commandBytes, Bytes: dispatchBytes,
	})
	if len(assignments) == 0 {
		return
	}
	l.s.dispatches = number
	requests := map[string][]*pb.Request{}
	for _, a := range assignments {
		r := l.live[a.Request.ID]
		r.phase, r.worker, r.dispatched, r.redirected = phaseAssigned, a.WorkerID, state.Position{Term: l.term, Index: number}, false
		r.attempts++
		l.place(r)
		requests[a.WorkerID] = append(requests[a.WorkerID], l.toDispatch(r, nowMS))
		e.dispatched[a.WorkerID] = append(e.dispatched[a.WorkerID], a.Request.ID)
		e.add(&pb.Command{Command: &pb.Command_Assign{Assign: &pb.AssignCommand{
			RequestId: a.Request.ID, WorkerId: a.WorkerID, Term: l.term, Index: number,
		}}}, commandBytes, nil)
	}
	for worker, batch := range requests {
		l.sessions[worker].send(&pb.WorkResponse{Message: &pb.WorkResponse_Dispatch{Dispatch: &pb.Dispatch{
			Term: l.term, Index: number, Requests: batch,
		}}})
	}
	l.bindRate.add(len(assignments), now)
	if l.batcher.Len() > 0 {
		l.kick() // The plan may have stopped at a limit.
	}
}
