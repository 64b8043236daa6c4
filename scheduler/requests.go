package scheduler

import (
	"context"
	"maps"
	"slices"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/check"
	"github.com/quire-serve/quire/scheduler/rpc"
)

const (
	// A page of requests has as many as are asked for, this many at most and that many where none is said.
	mostListed, usuallyListed = 1000, 100
	// reasonOperator is why a request was aborted that an operator chose.
	reasonOperator = "aborted by an operator"
)

// phaseOf is where a request is, as operators see it.
func phaseOf(r *live) pb.ExplainResponse_Phase {
	switch r.phase {
	case phaseNew, phaseAdmitting:
		return pb.ExplainResponse_PHASE_ADMITTING
	case phaseQueued, phaseReturned:
		return pb.ExplainResponse_PHASE_QUEUED
	case phaseAssigned:
		return pb.ExplainResponse_PHASE_RUNNING
	case phaseLost:
		return pb.ExplainResponse_PHASE_LOST
	}
	return pb.ExplainResponse_PHASE_ENDING
}

// status is what an operator sees of a request. The caller holds the lock.
func (l *leader) status(r *live, nowMS int64) *pb.RequestStatus {
	out := &pb.RequestStatus{
		Id: r.request.GetId(), Tenant: r.request.GetTenant(), Model: r.request.GetModel(), GatewayId: r.request.GetGatewayId(),
		Watched: l.owners[r.request.GetGatewayId()].watches(), Phase: phaseOf(r), AgeMs: max(0, nowMS-r.arrivalMS),
		PromptTokens: int32(len(r.request.GetPrompt())), OutputTokens: int64(r.held),
	}
	if r.phase == phaseAssigned {
		out.WorkerId = r.worker
	}
	return out
}

// matches says whether a filter names a request.
func matches(f *pb.RequestFilter, r *pb.RequestStatus) bool {
	is := func(want, have string) bool { return want == "" || want == have }
	return (f.Tenant == nil || f.GetTenant() == r.GetTenant()) && is(f.GetModel(), r.GetModel()) && is(f.GetGatewayId(), r.GetGatewayId()) &&
		is(f.GetWorkerId(), r.GetWorkerId()) && (f.GetPhase() == 0 || f.GetPhase() == r.GetPhase()) && r.GetAgeMs() >= f.GetAgeMs() &&
		(!f.GetUnwatched() || !r.GetWatched())
}

// choose lists what a filter names behind an id, at most so many, and says whether there are more. The
// caller holds the lock.
func (l *leader) choose(f *pb.RequestFilter, after string, limit int) (chosen []*pb.RequestStatus, more bool) {
	if f == nil {
		f = &pb.RequestFilter{}
	}
	nowMS := l.clock.ms(l.s.settings.now())
	for _, id := range slices.Sorted(maps.Keys(l.live)) {
		if id <= after {
			continue
		}
		if s := l.status(l.live[id], nowMS); matches(f, s) {
			if len(chosen) == limit {
				return chosen, true
			}
			chosen = append(chosen, s)
		}
	}
	return chosen, false
}

// ListRequests lists requests that have not ended; see the service's definition.
func (s *Scheduler) ListRequests(ctx context.Context, in *pb.ListRequestsRequest) (*pb.ListRequestsResponse, error) {
	if err := check.Filter(in.GetFilter()); err != nil {
		return nil, err
	}
	limit := int(in.GetLimit())
	switch {
	case limit == 0:
		limit = usuallyListed
	case limit < 0 || limit > mostListed:
		return nil, rpc.Invalid("limit", "%d; it must be 1 to %d", limit, mostListed)
	case len(in.GetAfter()) > maxRequestIDBytes:
		return nil, rpc.Invalid("after", "%d bytes; the limit is %d", len(in.GetAfter()), maxRequestIDBytes)
	}
	l, err := s.leading(rpc.Trailer(ctx))
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	out := &pb.ListRequestsResponse{}
	out.Requests, out.More = l.choose(in.GetFilter(), in.GetAfter(), limit)
	return out, nil
}

// AbortRequests ends requests; see the service's definition.
func (s *Scheduler) AbortRequests(ctx context.Context, in *pb.AbortRequestsRequest) (*pb.AbortRequestsResponse, error) {
	f := in.GetFilter()
	said := f != nil && (f.Tenant != nil || f.GetModel() != "" || f.GetGatewayId() != "" || f.GetWorkerId() != "" || f.GetPhase() != 0 || f.GetAgeMs() > 0 || f.GetUnwatched())
	switch {
	case (len(in.GetRequestIds()) > 0) == said:
		return nil, rpc.Invalid("filter", "either request_ids or a filter that says something must be set")
	case len(in.GetRequestIds()) > mostListed:
		return nil, rpc.Invalid("request_ids", "%d; the limit is %d", len(in.GetRequestIds()), mostListed)
	}
	if err := check.Filter(f); err != nil {
		return nil, err
	}
	l, err := s.leading(rpc.Trailer(ctx))
	if err != nil {
		return nil, err
	}
	reason := reasonOperator
	if in.GetReason() != "" {
		reason += ": " + rpc.Cut(in.GetReason(), maxErrorBytes/2)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	out := &pb.AbortRequestsResponse{}
	ids := in.GetRequestIds()
	if said {
		var chosen []*pb.RequestStatus
		chosen, out.More = l.choose(f, "", mostListed)
		for _, r := range chosen {
			ids = append(ids, r.GetId())
		}
	}
	for _, id := range ids {
		if r := l.live[id]; r != nil && r.phase != phaseEnding {
			l.stop(r, reason)
			out.RequestIds = append(out.RequestIds, id)
		}
	}
	return out, nil
}
