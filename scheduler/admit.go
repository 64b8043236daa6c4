package scheduler

import (
	"bytes"
	"context"
	"crypto/sha256"
	"fmt"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/quire-serve/quire/kvcache"
	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/batch"
	"github.com/quire-serve/quire/scheduler/check"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

// phase is where the leader has a request; the log follows one entry behind.
//
//	new ──entry──▶ admitting ──the log has it, or its tenant has no limits──▶ queued ◀──entry──┐
//	                                                                           │               │
//	                                                                         batch             │
//	                                                                           ▼               │
//	                                   ┌───────worker gives it back──────── assigned           │
//	                                   │                                       │               │
//	                                   │                     its worker is gone, or cannot     │
//	                                   │                                       ▼               │
//	                                   ├──nobody to ask, an answer, RecallGrace─ lost          │
//	                                   ▼                                                       │
//	                                returned ──────────────────────────────────────────────────┘
//
// Every phase goes to ending: by an end from the worker, an abort, a deadline, a refusal of the log, or
// too many workers lost. What is new when it is aborted never gets to the log.
type phase uint8

const (
	phaseNew       phase = iota + 1 // Waits for its first log entry.
	phaseAdmitting                  // The log decides whether its tenant may have it.
	phaseQueued                     // In the batcher.
	phaseAssigned                   // With a worker.
	phaseLost                       // Taken back from a worker, its gateway is asked what it has.
	phaseReturned                   // Taken back from a worker, waits for a log entry to say so.
	phaseEnding                     // Its end waits for the log.
)

// live is an unfinished request in the leader's memory.
type live struct {
	request *pb.Request
	// digest names what the client sent, promptDigest the prompt that came of it.
	digest, promptDigest []byte
	// hashes name the blocks of its prompt. Without them it is placed by the load of workers alone.
	hashes []kvcache.Hash
	// size is its encoded size, bytes the memory that it takes while it waits.
	size, bytes int
	phase       phase
	// worker has it while phaseAssigned, and had it while phaseLost and phaseReturned.
	worker string
	// vocabulary is how many token ids there are, as its last worker says; 0 if that does not.
	vocabulary int32
	// dispatched is its newest dispatch; redirected says that it was adopted since.
	dispatched state.Position
	redirected bool
	// source is the session in which a worker returned it; if that worker drains, it lends the KV cache.
	source *session
	// arrivalMS is when it came, deadlineMS when it must have been started (0 is never), in the log's time.
	arrivalMS, deadlineMS int64
	// attempts counts dispatches since the output last grew.
	attempts uint32
	// limited says that its tenant has limits: it is not queued before the log has admitted it.
	limited bool
	// rerun says that it has ended before, and must run again.
	rerun bool
	// outputs, held tokens of them together, are what is known of each choice; news says that the
	// request is in leader.progressed.
	outputs []output
	held    int
	news    bool
	// grewMS is when the output last grew, in the log's time; of one that began under another leader,
	// when it came.
	grewMS int64

	// upload numbers the parts of a prompt that is too large for one entry, logged tokens of which are
	// on their way to the log, in parts.
	upload uint64
	logged int
	parts  int32

	// admitted is closed once the log has the request, at submitted, or err says why it has not.
	admitted  chan struct{}
	submitted state.Position
	err       error
	// ended is closed once the log has its end.
	ended chan struct{}
}

// tokens must be computed before the next new one, for the longest choice.
func (r *live) tokens() int {
	most := 0
	for _, o := range r.outputs {
		most = max(most, len(o.tokens))
	}
	return len(r.request.GetPrompt()) + most
}

// choices is how many sequences it has.
func (r *live) choices() int { return int(max(1, r.request.GetSampling().GetN())) }

// longest is what it may end with, prompt and output, 0 if it does not say.
func (r *live) longest() int {
	most := r.request.GetSampling().GetMaxTokens()
	if most <= 0 {
		return 0
	}
	return len(r.request.GetPrompt()) + int(most)
}

// digest names a request by what is in it, where nobody says what the client sent. Where it came from and
// when are not part of that.
func digest(r *pb.Request) ([]byte, error) {
	return digestOf(&pb.Request{
		Model: r.GetModel(), Tenant: r.GetTenant(), Prompt: r.GetPrompt(), Sampling: r.GetSampling(), CacheSalt: r.GetCacheSalt(),
	})
}

func digestOf(r *pb.Request) ([]byte, error) {
	body, err := proto.MarshalOptions{Deterministic: true}.Marshal(r)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(body)
	return sum[:16], nil
}

// Submit admits a request; see the service's definition.
func (s *Scheduler) Submit(ctx context.Context, in *pb.SubmitRequest) (*pb.SubmitResponse, error) {
	request, known, l, err := s.take(ctx, in)
	if err != nil || request == nil {
		return known, err
	}
	select {
	case <-request.admitted:
	case <-l.done:
		return nil, rpc.NotLeading("the request was being admitted")
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
	if request.err != nil {
		return nil, request.err
	}
	return l.answer(request, known != nil), nil
}

// take checks a request, hashes it and enters it at the leader. Only as many requests as there are processors
// are at it: thousands of goroutines that want to compute at once would each have their turn before the
// one that answers a heartbeat, and cost the leader its office.
func (s *Scheduler) take(ctx context.Context, in *pb.SubmitRequest) (request *live, known *pb.SubmitResponse, l *leader, err error) {
	select {
	case s.taking <- struct{}{}:
		defer func() { <-s.taking }()
	case <-ctx.Done():
		return nil, nil, nil, status.FromContextError(ctx.Err()).Err()
	}
	r := in.GetRequest()
	if err := check.Request(r); err != nil {
		return nil, nil, nil, err
	}
	if len(in.GetDigest()) > maxDigestBytes {
		return nil, nil, nil, rpc.Invalid("digest", "%d bytes; the limit is %d", len(in.GetDigest()), maxDigestBytes)
	}
	body, err := digest(r)
	if err != nil {
		return nil, nil, nil, rpc.Invalid("request", "does not encode: %v", err)
	}
	prompt, err := digestOf(&pb.Request{Prompt: r.GetPrompt()})
	if err != nil {
		return nil, nil, nil, rpc.Invalid("request", "does not encode: %v", err)
	}
	if len(in.GetDigest()) > 0 {
		body = in.GetDigest()
	}
	l, err = s.leading(rpc.Trailer(ctx))
	if err != nil {
		return nil, nil, nil, err
	}
	request, known, err = l.submit(&live{request: r, digest: body, promptDigest: prompt, hashes: l.promptHashes(r)}, in.GetRerun())
	return request, known, l, err
}

// submit finds or enters a request. It returns the live request to wait for, with a response if it
// was there before, or only the response if it has ended.
func (l *leader) submit(request *live, rerun bool) (*live, *pb.SubmitResponse, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := request.request
	if known := l.live[r.GetId()]; known != nil {
		if !bytes.Equal(known.digest, request.digest) {
			return nil, nil, errOtherBody(r.GetId())
		}
		return known, &pb.SubmitResponse{Duplicate: true}, nil
	}
	known := l.s.store.View().Request(r.GetId())
	switch {
	case known == nil:
	case !bytes.Equal(known.Digest, request.digest):
		return nil, nil, errOtherBody(r.GetId())
	case !rerun:
		return nil, &pb.SubmitResponse{
			Term: known.Submitted.Term, Index: known.Submitted.Index,
			Duplicate: true, WorkerId: known.WorkerID, FinishReason: known.FinishReason,
			MaxTokens: known.Request.GetSampling().GetMaxTokens(),
		}, nil
	case !bytes.Equal(known.PromptDigest, request.promptDigest):
		return nil, nil, status.Errorf(codes.AlreadyExists, "request.id: what is kept of %q is not enough to answer again, and its chat template gives another prompt now (it may read the date), so that running it again would give another answer; use a new id", r.GetId())
	}
	now := l.s.settings.now()
	request.size, request.bytes, request.phase, request.rerun = proto.Size(r), memoryOf(r, request.hashes), phaseNew, known != nil
	request.arrivalMS = l.clock.ms(now)
	request.admitted, request.ended = make(chan struct{}), make(chan struct{})
	if r.GetPatienceMs() > 0 {
		request.deadlineMS = request.arrivalMS + r.GetPatienceMs()
	}
	if refused := l.accepts(request, now); refused != nil {
		l.countRefusal(request, refused.reason)
		return nil, nil, refused.err
	}
	if known != nil {
		request.remember(known.Whole())
	}
	l.live[r.GetId()] = request
	l.own(request, now)
	l.submits.push(request)
	l.kick()
	return request, nil, nil
}

func errOtherBody(id string) error {
	return status.Errorf(codes.AlreadyExists, "request.id: %q was used for a request with another body", id)
}

// accepts refuses what no worker serves or could ever hold, and what the queue has no room for.
func (l *leader) accepts(r *live, now time.Time) *refusal {
	model := r.request.GetModel()
	serves, ok := l.models[model]
	since, unserved := l.unserved[model]
	switch {
	case unserved && now.Sub(since) >= unservedGrace:
		return unservedModel(model, l.noWorker(model))
	case len(l.workers) == 0:
		return unservedModel(model, "no worker has joined yet")
	case !ok && l.s.store.View().Model(model) != nil:
		return unservedModel(model, l.noWorker(model))
	case !ok:
		return refuse(reasonUnknownModel, codes.NotFound, 0, "request.model: no worker serves %q; served: %s", model, strings.Join(l.modelNames(), ", "))
	}
	room, whose := serves.room(r.request.GetTenant()), ""
	if room < serves.maxTokens {
		whose = fmt.Sprintf(" of tenant %q", r.request.GetTenant())
	}
	switch {
	case r.tokens() >= room:
		return refuse(reasonTooLong, codes.InvalidArgument, 0, "request.prompt: %d tokens leave no room for an answer; %q takes %d in all%s", r.tokens(), model, room, whose)
	case r.longest() > room:
		return refuse(reasonTooLong, codes.InvalidArgument, 0, "request.sampling.max_tokens: %d beside a prompt of %d tokens; %q takes %d in all%s", r.request.GetSampling().GetMaxTokens(), len(r.request.GetPrompt()), model, room, whose)
	}
	if account := l.s.store.View().Account(r.request.GetTenant()); account != nil && account.Limits != nil {
		// The log has the word; but what it refuses by now it will not admit in a moment.
		if refused := account.Check(l.clock.ms(now), r.request); refused != nil {
			return refusedByLog(refused)
		}
		r.limited = true
	}
	waiting := l.batcher.Len() + l.submits.len
	if sequences := l.batcher.Sequences() + l.submits.sequences; sequences+r.choices() > l.s.settings.QueueRequests {
		return refuse(reasonQueueSequences, codes.ResourceExhausted, l.retryAfter(waiting), "the queue is full: %d sequences wait, this request has %d more, the limit is %d", sequences, r.choices(), l.s.settings.QueueRequests)
	}
	if waitingBytes := l.batcher.Bytes() + l.submits.bytes; waitingBytes+int64(r.bytes) > l.s.settings.QueueBytes {
		return refuse(reasonQueueBytes, codes.ResourceExhausted, l.retryAfter(waiting), "the queue is full: its requests take %d bytes, this one has %d more, the limit is %d", waitingBytes, r.bytes, l.s.settings.QueueBytes)
	}
	return l.checkDeadline(r, now)
}

// checkDeadline refuses a request that would still wait when its deadline comes: at the rate of the
// last seconds, those alone that are placed before it whatever comes take longer. The rate says what
// workers can do only if there was always something for them to start.
func (l *leader) checkDeadline(r *live, now time.Time) *refusal {
	rate := l.bindRate.perSecond(now)
	if r.deadlineMS == 0 || rate <= 0 || l.backlog.IsZero() || now.Sub(l.backlog) < rateWindow {
		return nil
	}
	wait := func(requests int) time.Duration {
		return time.Duration(float64(requests) / rate * float64(time.Second))
	}
	left := time.Duration(r.deadlineMS-l.clock.ms(now)) * time.Millisecond
	if wait(l.batcher.Len()) <= left {
		return nil // Nobody need be counted.
	}
	ahead := l.batcher.Ahead(r.request.GetModel(), r.request.GetTenant(), r.request.GetPriority(), r.arrivalMS, r.deadlineMS)
	if wait(ahead) <= left {
		return nil
	}
	return refuse(reasonDeadline, codes.DeadlineExceeded, 0, "request.patience_ms: it is %v away, and %d requests that wait before this one take about %v",
		left, ahead, wait(ahead).Round(10*time.Millisecond))
}

// reject takes back a request that the log did not admit.
func (l *leader) reject(r *live, why *state.Refusal) {
	id := r.request.GetId()
	switch r.phase {
	case phaseQueued:
		l.batcher.Remove(id)
	case phaseAssigned:
		// It was handed out when its tenant had no limits yet.
		l.revoke(r)
		l.takeBack(r)
	}
	if r.phase != phaseEnding {
		r.phase = phaseEnding
		delete(l.live, id)
		l.disown(r)
		close(r.ended)
	}
	refused := refusedByLog(why)
	l.countRefusal(r, refused.reason)
	r.err = refused.err
	close(r.admitted)
}

// revoke tells the worker that has a request to end it.
func (l *leader) revoke(r *live) {
	if session := l.sessions[r.worker]; session != nil {
		session.send(&pb.WorkResponse{Message: &pb.WorkResponse_Revoke{Revoke: &pb.Revoke{Term: l.term, RequestIds: []string{r.request.GetId()}}}})
	}
}

// retryAfter is the time in which half of the queue should be gone at the rate of the last seconds.
func (l *leader) retryAfter(waiting int) time.Duration {
	const least, most = 200 * time.Millisecond, 30 * time.Second
	rate := l.bindRate.perSecond(l.s.settings.now())
	if rate <= 0 {
		return most
	}
	return min(max(time.Duration(float64(waiting)/2/rate*float64(time.Second)), least), most)
}

func (l *leader) answer(r *live, duplicate bool) *pb.SubmitResponse {
	l.mu.Lock()
	defer l.mu.Unlock()
	response := &pb.SubmitResponse{Term: r.submitted.Term, Index: r.submitted.Index, Duplicate: duplicate}
	if duplicate {
		response.MaxTokens = r.request.GetSampling().GetMaxTokens()
	}
	if r.phase != phaseReturned && r.phase != phaseLost {
		response.WorkerId = r.worker
	}
	return response
}

// Abort ends a request in any state. It returns once the end is in the log.
func (s *Scheduler) Abort(ctx context.Context, in *pb.AbortRequest) (*pb.AbortResponse, error) {
	l, err := s.leading(rpc.Trailer(ctx))
	if err != nil {
		return nil, err
	}
	ended := l.abort(in)
	if ended == nil {
		return &pb.AbortResponse{}, nil
	}
	select {
	case <-ended:
		return &pb.AbortResponse{Found: true}, nil
	case <-l.done:
		return nil, rpc.NotLeading("the request was being aborted")
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

// abort begins a request's end and returns the channel that tells of it; nil for one that is unknown,
// or that is not the asker's.
func (l *leader) abort(in *pb.AbortRequest) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.live[in.GetRequestId()]
	if r == nil || !owns(in, r.request) {
		return nil
	}
	l.stop(r, in.GetReason())
	return r.ended
}

// owns says whether who asks for a request's end may have it: an operator, its tenant's client, or the
// gateway that it streams to.
func owns(in *pb.AbortRequest, r *pb.Request) bool {
	if in.Tenant != nil {
		return in.GetTenant() == r.GetTenant()
	}
	return in.GetGatewayId() == "" || in.GetGatewayId() == r.GetGatewayId()
}

// stop aborts a request in any state.
func (l *leader) stop(r *live, reason string) {
	id := r.request.GetId()
	switch r.phase {
	case phaseEnding:
		return
	case phaseNew:
		// The log never hears of it.
		r.phase = phaseEnding
		l.submits.remove(r)
		if l.uploading == r {
			l.uploading = nil
		}
		delete(l.live, id)
		l.disown(r)
		r.err = status.Error(codes.Aborted, "the request was aborted before it was admitted")
		close(r.admitted)
		close(r.ended)
		return
	case phaseAssigned:
		l.revoke(r)
	}
	l.finish(r, &pb.FinishCommand{FinishReason: pb.FinishReason_FINISH_REASON_ABORT, Error: reason})
}

// queued is what the batcher must know of a request.
func (l *leader) queued(r *live) batch.Request {
	others := r.held
	for _, o := range r.outputs {
		others = min(others, r.held-len(o.tokens))
	}
	return batch.Request{
		ID: r.request.GetId(), Model: r.request.GetModel(), Tenant: r.request.GetTenant(),
		Priority: r.request.GetPriority(), ArrivalMS: r.arrivalMS, DeadlineMS: r.deadlineMS,
		Tokens: r.tokens(), OtherTokens: others, Length: r.longest(), Choices: r.choices(), Bytes: r.bytes + r.outputBytes(),
		Hashes: r.hashes, Resumed: r.held > 0, PausedMS: r.grewMS,
	}
}
