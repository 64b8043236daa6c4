package scheduler

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/state"
)

// A model's name stands for one set of weights. The log says for which, workers are let in by it, and
// gateways say what copies they have of its tokenizer and template.

// copies are the gateways that watch: those whose copy of the model is as the identity says, those that
// have another, and those that have none. The caller holds the lock.
func (l *leader) copies(model *pb.ModelIdentity) (same, other, none []string) {
	for _, id := range slices.Sorted(maps.Keys(l.owners)) {
		for w := range l.owners[id].watchers {
			digest, known := w.models[model.GetName()]
			switch {
			case !known:
				none = append(none, id)
			case digest != "" && model.GetDigest() != "" && digest != model.GetDigest():
				other = append(other, id)
			default:
				same = append(same, id)
			}
			break // Its streams are of one process.
		}
	}
	return same, other, none
}

// otherCopies refuses a worker that would be the first of its model's name, where gateways know the name and
// none of them for what the worker serves.
func (l *leader) otherCopies(claim *pb.ModelIdentity) *state.Refusal {
	l.mu.Lock()
	defer l.mu.Unlock()
	if same, other, _ := l.copies(claim); len(same) == 0 && len(other) > 0 {
		return &state.Refusal{Reason: fmt.Sprintf("model %q: the worker's weights have digest %q, and gateways know the name for others (%s); start the worker with the file that they have, or serve the model under another name",
			claim.GetName(), claim.GetDigest(), strings.Join(other, ", "))}
	}
	return nil
}

// unusable says why gateways do not use a worker's model; empty if they all do. The caller holds the lock.
func (l *leader) unusable(w *pb.WorkerInfo) string {
	same, other, none := l.copies(state.Identity(w))
	switch {
	case len(same)+len(other)+len(none) == 0:
		return "no gateway is there"
	case len(same)+len(other) == 0:
		return fmt.Sprintf("no gateway knows model %q; start one with it", w.GetModel())
	case len(other) > 0:
		return fmt.Sprintf("gateways have another copy of model %q: %s", w.GetModel(), strings.Join(other, ", "))
	}
	return ""
}

// ListBindings lists what models' names stand for, after everything that was committed before it.
func (s *Scheduler) ListBindings(ctx context.Context, _ *pb.ListBindingsRequest) (*pb.ListBindingsResponse, error) {
	l, err := s.leading(rpc.Trailer(ctx))
	if err != nil {
		return nil, err
	}
	if err := s.barrier(ctx); err != nil {
		return nil, rpc.Unsure(err)
	}
	out := &pb.ListBindingsResponse{}
	l.mu.Lock()
	defer l.mu.Unlock()
	for m := range s.store.View().Models() {
		b := &pb.Binding{Model: m.Identity, Workers: int32(m.Workers), Requests: int32(m.Live)}
		if b.Model == nil {
			b.Model = &pb.ModelIdentity{Name: m.Name}
		}
		_, b.OtherCopies, b.NoCopies = l.copies(b.Model)
		out.Bindings = append(out.Bindings, b)
	}
	return out, nil
}

// BindModel says what a name stands for; see the service's definition.
func (s *Scheduler) BindModel(ctx context.Context, in *pb.BindModelRequest) (*pb.BindModelResponse, error) {
	m := in.GetModel()
	switch {
	case m.GetName() == "" || len(m.GetName()) > maxModelBytes:
		return nil, rpc.Invalid("model.name", "%d bytes; it must have 1 to %d", len(m.GetName()), maxModelBytes)
	case m.GetDigest() == "" || len(m.GetDigest()) > maxModelBytes:
		return nil, rpc.Invalid("model.digest", "%d bytes; it must have 1 to %d", len(m.GetDigest()), maxModelBytes)
	case len(m.GetArithmetic()) > maxErrorBytes:
		return nil, rpc.Invalid("model.arithmetic", "%d bytes; the limit is %d", len(m.GetArithmetic()), maxErrorBytes)
	}
	if _, err := s.change(ctx, &pb.Command{Command: &pb.Command_Bind{Bind: &pb.BindCommand{Model: m}}}); err != nil {
		return nil, err
	}
	return &pb.BindModelResponse{}, nil
}

// ReleaseModel frees a name; see the service's definition.
func (s *Scheduler) ReleaseModel(ctx context.Context, in *pb.ReleaseModelRequest) (*pb.ReleaseModelResponse, error) {
	if in.GetName() == "" || len(in.GetName()) > maxModelBytes {
		return nil, rpc.Invalid("name", "%d bytes; it must have 1 to %d", len(in.GetName()), maxModelBytes)
	}
	command := &pb.BindCommand{Model: &pb.ModelIdentity{Name: in.GetName()}, Released: true}
	changed, err := s.change(ctx, &pb.Command{Command: &pb.Command_Bind{Bind: command}})
	if err != nil {
		return nil, err
	}
	if !changed {
		return nil, status.Errorf(codes.NotFound, "name: %q stands for nothing", in.GetName())
	}
	return &pb.ReleaseModelResponse{}, nil
}
