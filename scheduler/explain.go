package scheduler

import (
	"context"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/batch"
	"github.com/quire-serve/quire/scheduler/rpc"
)

// Explain says where a request is and why it waits; see the service's definition.
func (s *Scheduler) Explain(ctx context.Context, in *pb.ExplainRequest) (*pb.ExplainResponse, error) {
	l, err := s.leading(rpc.Trailer(ctx))
	if err != nil {
		return nil, err
	}
	if out := l.explain(in.GetRequestId(), s.settings.now()); out != nil {
		return out, nil
	}
	r := s.store.View().Request(in.GetRequestId())
	if r == nil {
		return nil, status.Errorf(codes.NotFound, "request_id: %q is unknown, or its end has been forgotten", in.GetRequestId())
	}
	out := &pb.ExplainResponse{
		Phase: pb.ExplainResponse_PHASE_ENDED, Model: r.Request.GetModel(), Tenant: r.Request.GetTenant(), GatewayId: r.Request.GetGatewayId(),
		WorkerId: r.WorkerID, Term: r.Dispatched.Term, Index: r.Dispatched.Index, Attempts: r.Attempts, PromptTokens: r.PromptTokens,
		FinishReason: r.FinishReason, Error: r.Error,
	}
	for _, o := range r.Outputs {
		out.OutputTokens += int64(len(o.GetTokenIds()))
	}
	return out, nil
}

// explain is what the leader knows of a request that has not ended, nil if it has.
func (l *leader) explain(id string, now time.Time) *pb.ExplainResponse {
	l.mu.Lock()
	defer l.mu.Unlock()
	r := l.live[id]
	if r == nil {
		return nil
	}
	out := &pb.ExplainResponse{
		Model: r.request.GetModel(), Tenant: r.request.GetTenant(), GatewayId: r.request.GetGatewayId(),
		Term: r.dispatched.Term, Index: r.dispatched.Index, Attempts: r.attempts,
		PromptTokens: int32(len(r.request.GetPrompt())), OutputTokens: int64(r.held),
	}
	if out.Phase = phaseOf(r); r.phase == phaseAssigned {
		out.WorkerId = r.worker
	}
	if why, ok := l.batcher.Explain(id, l.clock.ms(now)); ok {
		out.Waiting = waiting(why)
	}
	return out
}

func waiting(why batch.Explanation) *pb.Waiting {
	out := &pb.Waiting{
		Policy: string(why.Policy), WaitMs: why.WaitMS, Position: int32(why.Position),
		ClassPosition: int32(why.ClassPosition), TenantPosition: int32(why.TenantPosition), ReservedWorker: why.ReservedWorker, ReservedMs: why.ReservedMS,
		TenantServed: why.TenantServed, TenantWeight: why.TenantWeight, HeldMs: why.HeldMS,
		Blocked: why.Blocked.Names(), Unblock: why.Unblock,
	}
	for _, w := range why.Workers {
		out.Workers = append(out.Workers, &pb.WorkerScore{
			WorkerId: w.WorkerID, Score: w.Score, Rated: w.Rated, PredictedUs: w.PredictedUS,
			DeviceTokens: int64(w.DeviceTokens), HostTokens: int64(w.HostTokens), DiskTokens: int64(w.DiskTokens),
			WorkTokens: w.WorkTokens, PendingTokens: w.PendingTokens, TokensPerS: w.TokensPerS, Sequences: int32(w.Sequences),
			DeratePermille: w.DeratePermille, TrustPermille: w.TrustPermille, AgeMs: w.AgeMS,
			Blocked: w.Blocked.Names(), Unblock: w.Unblock,
		})
	}
	return out
}

// Summary sums the queue up; see the service's definition.
func (s *Scheduler) Summary(ctx context.Context, _ *pb.SummaryRequest) (*pb.SummaryResponse, error) {
	l, err := s.leading(rpc.Trailer(ctx))
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	sum := l.batcher.Summary(l.clock.ms(s.settings.now()))
	l.mu.Unlock()
	stats := s.Stats()
	out := &pb.SummaryResponse{
		All: queueCount(sum.Count), Bytes: sum.Bytes, Tenants: queueCounts(sum.Tenants), Models: queueCounts(sum.Models),
		Blocked: queueCounts(sum.Blocked), Ready: int64(sum.Ready), Held: int64(sum.Held), Unserved: int64(sum.Unserved),
		Running: int64(stats.Running), Workers: int32(stats.Workers),
		RefusedByModel: refusedCounts(stats.RefusedByModel), RefusedByTenant: refusedCounts(stats.RefusedByTenant),
	}
	for _, q := range stats.Queues {
		figures := &pb.QueueFigures{
			Model: q.Model, Requests: int64(q.Requests), Sequences: int64(q.Sequences), Bytes: q.Bytes,
			OldestWaitMs: q.OldestWaitMS, Reserved: int32(q.Reserved),
		}
		for _, n := range q.Classes {
			figures.Classes = append(figures.Classes, int64(n))
		}
		out.Queues = append(out.Queues, figures)
	}
	return out, nil
}

func refusedCounts(counts []Refused) (out []*pb.Refused) {
	for _, c := range counts {
		out = append(out, &pb.Refused{Name: c.Name, Reason: c.Reason, Requests: c.Requests})
	}
	return out
}

func queueCount(c batch.Count) *pb.QueueCount {
	return &pb.QueueCount{Name: c.Name, Requests: int64(c.Requests), PromptTokens: c.Tokens, OldestWaitMs: c.OldestWaitMS}
}

func queueCounts(counts []batch.Count) (out []*pb.QueueCount) {
	for _, c := range counts {
		out = append(out, queueCount(c))
	}
	return out
}
