package state

import (
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Position is a place in the log or a dispatch: the Raft term, then a number that grows within it.
type Position struct {
	Term, Index uint64
}

// Phase is where a request stands.
type Phase uint8

// The phases of a request's life; see the package comment for the arrows between them.
const (
	Queued   = Phase(pb.RequestState_REQUEST_STATE_QUEUED)
	Assigned = Phase(pb.RequestState_REQUEST_STATE_ASSIGNED)
	Finished = Phase(pb.RequestState_REQUEST_STATE_FINISHED)
)

// Record is one request as the log knows it. Records are immutable: a change makes a new one.
type Record struct {
	// Request has no prompt and salt once the request has finished, and no sampling once its outputs
	// are dropped.
	Request *pb.Request
	// PromptTokens is the prompt's length.
	PromptTokens int32
	// Digest names the body that a retry must repeat.
	Digest []byte
	// PromptDigest names the prompt that it had: a body may be rendered to another one later, by a template
	// that reads the date.
	PromptDigest []byte
	Phase        Phase
	// WorkerID is the worker that runs or ran it; empty while queued.
	WorkerID string
	// Submitted is the entry that admitted the request.
	Submitted Position
	// Dispatched is the dispatch that carries it: the fencing token of its output.
	Dispatched Position
	// Redirected says that another gateway adopted the request since its dispatch.
	Redirected bool
	// Attempts counts how often the request was bound to a worker since its output last grew.
	Attempts uint32
	// Outputs is what the log knows of the output, a choice each; none before the first news, and
	// when an ended request's are no longer kept. Token slices may have more capacity than length:
	// readers must not append to them.
	Outputs []*pb.Output

	FinishReason pb.FinishReason
	Error        string
	Usage        *pb.Usage
	// ArrivalMS is when it was admitted, DeadlineMS when it must have been started (0 is never), FinishedMS
	// when it ended, all in the log's time.
	ArrivalMS, DeadlineMS, FinishedMS int64
}

// WithGateway is the request as another gateway would have submitted it. The two share all else.
func WithGateway(r *pb.Request, gateway string) *pb.Request {
	out := Slim(r)
	out.GatewayId = gateway
	out.Prompt, out.CacheSalt = r.GetPrompt(), r.GetCacheSalt()
	return out
}

// WithPrompt is the request with another prompt. The two share all else.
func WithPrompt(r *pb.Request, prompt []int32) *pb.Request {
	out := WithGateway(r, r.GetGatewayId())
	out.Prompt = prompt
	return out
}

// Slim keeps of a request what a finished record needs.
func Slim(r *pb.Request) *pb.Request {
	return &pb.Request{
		Id:            r.GetId(),
		Model:         r.GetModel(),
		Tenant:        r.GetTenant(),
		Sampling:      r.GetSampling(),
		GatewayId:     r.GetGatewayId(),
		Priority:      r.GetPriority(),
		CreatedUnixMs: r.GetCreatedUnixMs(),
	}
}

func (r *Record) toProto() *pb.RequestRecord {
	return &pb.RequestRecord{
		Request:        r.Request,
		Digest:         r.Digest,
		PromptDigest:   r.PromptDigest,
		State:          pb.RequestState(r.Phase),
		WorkerId:       r.WorkerID,
		AssignedTerm:   r.Dispatched.Term,
		AssignedIndex:  r.Dispatched.Index,
		Redirected:     r.Redirected,
		SubmittedTerm:  r.Submitted.Term,
		SubmittedIndex: r.Submitted.Index,
		Attempts:       r.Attempts,
		PromptTokens:   r.PromptTokens,
		Outputs:        r.Outputs,
		FinishReason:   r.FinishReason,
		Error:          r.Error,
		Usage:          r.Usage,
		FinishedMs:     r.FinishedMS,
		ArrivalMs:      r.ArrivalMS,
		DeadlineMs:     r.DeadlineMS,
	}
}

func fromProto(p *pb.RequestRecord) *Record {
	return &Record{
		Request:      p.GetRequest(),
		Digest:       p.GetDigest(),
		PromptDigest: p.GetPromptDigest(),
		Phase:        Phase(p.GetState()),
		WorkerID:     p.GetWorkerId(),
		Dispatched:   Position{p.GetAssignedTerm(), p.GetAssignedIndex()},
		Submitted:    Position{p.GetSubmittedTerm(), p.GetSubmittedIndex()},
		Redirected:   p.GetRedirected(),
		Attempts:     p.GetAttempts(),
		PromptTokens: p.GetPromptTokens(),
		Outputs:      p.GetOutputs(),
		FinishReason: p.GetFinishReason(),
		Error:        p.GetError(),
		Usage:        p.GetUsage(),
		FinishedMS:   p.GetFinishedMs(),
		ArrivalMS:    p.GetArrivalMs(),
		DeadlineMS:   p.GetDeadlineMs(),
	}
}
