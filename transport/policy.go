package transport

import (
	"context"
	"crypto/x509"
	"slices"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/peer"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	reflectionalphapb "google.golang.org/grpc/reflection/grpc_reflection_v1alpha"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/trust"
)

// rule is a row of the table: who may call an RPC.
type rule struct {
	// clients: whoever reaches a port for clients may.
	clients bool
	// roles may, on the cluster's ports.
	roles []trust.Role
	// name is in whose name a message of the caller speaks; false if it speaks in nobody's. Operators are
	// not held to it: they look after what is others'.
	name func(message any) (string, bool)
}

func clients(roles ...trust.Role) rule { return rule{clients: true, roles: roles} }

func only(roles ...trust.Role) rule { return rule{roles: roles} }

// as holds callers to their own name, which each of their messages must give.
func as[M any](name func(M) string, roles ...trust.Role) rule {
	return rule{roles: roles, name: func(message any) (string, bool) { return name(message.(M)), true }}
}

// opening is as for streams whose first message says who speaks, in a part that the others have not.
func opening[M any](name func(M) (string, bool), roles ...trust.Role) rule {
	return rule{roles: roles, name: func(message any) (string, bool) { return name(message.(M)) }}
}

// rules is the table. A control-plane node has a gateway in it, which speaks under the node's name.
var rules = map[string]rule{
	pb.Inference_Generate_FullMethodName:   clients(),
	pb.Inference_Resume_FullMethodName:     clients(),
	pb.Inference_Cancel_FullMethodName:     clients(),
	pb.Inference_Tokenize_FullMethodName:   clients(),
	pb.Inference_Detokenize_FullMethodName: clients(),
	pb.Inference_ListModels_FullMethodName: clients(),

	pb.Control_Submit_FullMethodName: as(func(m *pb.SubmitRequest) string { return m.GetRequest().GetGatewayId() }, trust.Node, trust.Gateway),
	pb.Control_Abort_FullMethodName:  as((*pb.AbortRequest).GetGatewayId, trust.Node, trust.Gateway, trust.Operator),
	pb.Control_Watch_FullMethodName:  as((*pb.WatchRequest).GetGatewayId, trust.Node, trust.Gateway),
	pb.Control_Adopt_FullMethodName:  as((*pb.AdoptRequest).GetGatewayId, trust.Node, trust.Gateway),
	pb.Control_Recall_FullMethodName: as((*pb.RecallRequest).GetGatewayId, trust.Node, trust.Gateway),
	pb.Control_Work_FullMethodName: opening(func(m *pb.WorkRequest) (string, bool) {
		return m.GetHello().GetWorker().GetId(), m.GetHello() != nil
	}, trust.Worker),

	pb.Worker_Attach_FullMethodName: opening(func(m *pb.AttachRequest) (string, bool) {
		return m.GetHello().GetGatewayId(), m.GetHello() != nil
	}, trust.Node, trust.Gateway),
	pb.Worker_FetchBlocks_FullMethodName: only(trust.Worker),

	pb.Cluster_Describe_FullMethodName:        only(trust.Node, trust.Operator),
	pb.Cluster_Join_FullMethodName:            as(func(m *pb.JoinRequest) string { return m.GetNode().GetId() }, trust.Node),
	pb.Cluster_Members_FullMethodName:         only(trust.Operator),
	pb.Cluster_Transfer_FullMethodName:        only(trust.Operator),
	pb.Cluster_Remove_FullMethodName:          only(trust.Operator),
	pb.Cluster_SaveSnapshot_FullMethodName:    only(trust.Operator),
	pb.Cluster_RestoreSnapshot_FullMethodName: only(trust.Operator),

	pb.Operator_SetTenant_FullMethodName:     only(trust.Operator),
	pb.Operator_RemoveTenant_FullMethodName:  only(trust.Operator),
	pb.Operator_ListTenants_FullMethodName:   only(trust.Operator),
	pb.Operator_Explain_FullMethodName:       only(trust.Operator),
	pb.Operator_Summary_FullMethodName:       only(trust.Operator),
	pb.Operator_ListWorkers_FullMethodName:   only(trust.Operator),
	pb.Operator_CreatePool_FullMethodName:    only(trust.Operator),
	pb.Operator_RemovePool_FullMethodName:    only(trust.Operator),
	pb.Operator_Cordon_FullMethodName:        only(trust.Operator),
	pb.Operator_ListRequests_FullMethodName:  only(trust.Operator),
	pb.Operator_AbortRequests_FullMethodName: only(trust.Operator),
	pb.Operator_ListBindings_FullMethodName:  only(trust.Operator),
	pb.Operator_BindModel_FullMethodName:     only(trust.Operator),
	pb.Operator_ReleaseModel_FullMethodName:  only(trust.Operator),
	pb.Operator_Drain_FullMethodName:         only(trust.Operator),

	healthpb.Health_Check_FullMethodName: clients(trust.Roles()...),
	healthpb.Health_List_FullMethodName:  clients(trust.Roles()...),
	healthpb.Health_Watch_FullMethodName: clients(trust.Roles()...),

	reflectionpb.ServerReflection_ServerReflectionInfo_FullMethodName:      clients(),
	reflectionalphapb.ServerReflection_ServerReflectionInfo_FullMethodName: clients(),
}

// guard decides at a server's door.
type guard struct {
	// clients: the port is for clients.
	clients bool
	// open: the port is the cluster's, and whoever reaches it is trusted as any of it.
	open bool
}

// admit returns what a call must keep to, or refuses it.
func (g guard) admit(ctx context.Context, method string) (*caller, error) {
	r, known := rules[method]
	switch {
	case !known:
		return nil, status.Errorf(codes.PermissionDenied, "%s is open to nobody", method)
	case g.clients && r.clients:
		return &caller{}, nil
	case g.clients:
		return nil, status.Errorf(codes.PermissionDenied, "%s is not for clients; it is served on the cluster's port", method)
	case g.open:
		return &caller{}, nil
	}
	cert := certificateOf(ctx)
	if cert == nil {
		return nil, status.Error(codes.Unauthenticated, "no certificate was shown")
	}
	id, err := trust.Of(cert)
	if err != nil {
		return nil, status.Error(codes.PermissionDenied, err.Error())
	}
	if !slices.Contains(r.roles, id.Role) {
		return nil, status.Errorf(codes.PermissionDenied, "%s may not call %s", id, method)
	}
	if id.Role == trust.Operator {
		return &caller{}, nil
	}
	return &caller{id: id, name: r.name}, nil
}

// certificateOf is what the other side of a call's connection has shown, verified in the handshake.
func certificateOf(ctx context.Context) *x509.Certificate {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return nil
	}
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.VerifiedChains) == 0 {
		return nil
	}
	return info.State.VerifiedChains[0][0]
}

// caller is who made a call.
type caller struct {
	id trust.Identity
	// name is the rule that its messages are held to; nil is none.
	name func(message any) (string, bool)
}

// speaks refuses a message in somebody else's name.
func (c *caller) speaks(message any) error {
	if c.name == nil {
		return nil
	}
	if name, speaks := c.name(message); speaks && name != c.id.Name {
		return status.Errorf(codes.PermissionDenied, "%s may not speak for %q", c.id, name)
	}
	return nil
}

func (g guard) unary(ctx context.Context, in any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	c, err := g.admit(ctx, info.FullMethod)
	if err != nil {
		return nil, err
	}
	if err := c.speaks(in); err != nil {
		return nil, err
	}
	return handler(ctx, in)
}

func (g guard) stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) error {
	c, err := g.admit(stream.Context(), info.FullMethod)
	if err != nil {
		return err
	}
	if c.name != nil {
		stream = heldStream{stream, c}
	}
	return handler(srv, stream)
}

// heldStream holds what its caller says to the caller's name.
type heldStream struct {
	grpc.ServerStream
	caller *caller
}

func (s heldStream) RecvMsg(m any) error {
	if err := s.ServerStream.RecvMsg(m); err != nil {
		return err
	}
	return s.caller.speaks(m)
}
