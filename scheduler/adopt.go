package scheduler

import (
	"context"
	"time"

	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

// adoptsWaiting bounds the adoptions that wait for the log.
const adoptsWaiting = 4096

// adoption is a gateway's wish to take a request over; without a gateway, only to know of it.
type adoption struct {
	id, gateway, tenant string
	// done is closed once the log has it, with the response.
	done     chan struct{}
	response *pb.AdoptResponse
}

// Adopt is linearizable: it goes through the log even where it changes nothing, and answers with the
// request as it is at that place; see the service's definition.
func (s *Scheduler) Adopt(ctx context.Context, in *pb.AdoptRequest) (*pb.AdoptResponse, error) {
	switch {
	case in.GetRequestId() == "" || len(in.GetRequestId()) > maxRequestIDBytes:
		return nil, rpc.Invalid("request_id", "%d bytes; it must have 1 to %d", len(in.GetRequestId()), maxRequestIDBytes)
	case in.GetGatewayId() == "" || len(in.GetGatewayId()) > maxIDBytes:
		return nil, rpc.Invalid("gateway_id", "%d bytes; it must have 1 to %d", len(in.GetGatewayId()), maxIDBytes)
	case len(in.GetTenant()) > maxIDBytes:
		return nil, rpc.Invalid("tenant", "%d bytes; the limit is %d", len(in.GetTenant()), maxIDBytes)
	}
	l, err := s.leading(rpc.Trailer(ctx))
	if err != nil {
		return nil, err
	}
	a := &adoption{id: in.GetRequestId(), gateway: in.GetGatewayId(), tenant: in.GetTenant(), done: make(chan struct{})}
	if in.GetIfMine() {
		a.gateway = ""
	}
	if err := l.adopt(a); err != nil {
		return nil, err
	}
	select {
	case <-a.done:
		return a.response, nil
	case <-l.done:
		return nil, rpc.NotLeading("the request was being adopted")
	case <-ctx.Done():
		return nil, status.FromContextError(ctx.Err()).Err()
	}
}

func (l *leader) adopt(a *adoption) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.adopts) >= adoptsWaiting {
		return rpc.Exhausted("too many adoptions wait for the log", instant)
	}
	l.adopts = append(l.adopts, a)
	l.kick()
	return nil
}

func (l *leader) composeAdopts(e *entry, now time.Time) {
	var early []*adoption // Of requests that the log does not have yet; those behind go on.
	l.adopts = take(l.adopts, func(a *adoption) bool {
		r := l.live[a.id]
		if e.bytes+commandBytes > admitBytes {
			return false
		}
		if r != nil && r.phase == phaseNew {
			early = append(early, a)
			return true
		}
		if r != nil && r.request.GetTenant() != a.tenant {
			r = nil // The log says that it is not there.
		}
		old := ""
		if r != nil {
			old = r.request.GetGatewayId()
		}
		if r != nil && a.gateway != "" && old != a.gateway {
			l.disown(r)
			r.request = state.WithGateway(r.request, a.gateway)
			l.own(r, now)
			r.redirected = r.phase == phaseAssigned
		}
		e.add(&pb.Command{Command: &pb.Command_Adopt{Adopt: &pb.AdoptCommand{RequestId: a.id, GatewayId: a.gateway, Tenant: a.tenant}}}, commandBytes, func(result state.Result) {
			a.response = adopted(result.Record)
			close(a.done)
			if !result.Changed {
				return
			}
			if r != nil && r.redirected {
				l.redirect(r)
			}
			if old != "" {
				l.news(old, &pb.WatchResponse{Adopted: []string{a.id}})
			}
		})
		return true
	})
	l.adopts = append(early, l.adopts...)
}

// redirect tells the worker that has a request which gateway owns it now. A worker that is away
// hears it when it comes back.
func (l *leader) redirect(r *live) {
	if s := l.sessions[r.worker]; s != nil {
		s.send(&pb.WorkResponse{Message: &pb.WorkResponse_Redirect{Redirect: &pb.Redirect{
			Term: l.term, RequestId: r.request.GetId(), GatewayId: r.request.GetGatewayId(),
		}}})
	}
}

// adopted is what a gateway must know of a request that it takes over.
func adopted(r *state.Record) *pb.AdoptResponse {
	if r == nil {
		return &pb.AdoptResponse{}
	}
	return &pb.AdoptResponse{
		Found: true, Request: state.Slim(r.Request), PromptTokens: r.PromptTokens, Outputs: r.Outputs,
		WorkerId: r.WorkerID, Term: r.Dispatched.Term, Index: r.Dispatched.Index,
		FinishReason: r.FinishReason, Error: r.Error, Usage: r.Usage,
	}
}
