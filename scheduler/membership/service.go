package membership

import (
	"context"
	"errors"
	"net"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/consensus"
	"github.com/quire-serve/quire/scheduler/rpc"
)

// Problem says why this node takes no part in its cluster any more; empty while it does.
func (m *Members) Problem() string {
	if err := m.node.Problem(); err != nil {
		return err.Error()
	}
	return ""
}

// Describe says who this node is and what it knows.
func (m *Members) Describe(_ context.Context, in *pb.DescribeRequest) (*pb.DescribeResponse, error) {
	progress := m.node.Progress()
	view := m.settings.Store.View()
	leader := m.node.Leader()
	out := &pb.DescribeResponse{
		Node: m.self, Instance: m.instance,
		LeaderId: leader.ID, LeaderAddress: m.ControlAddress(leader.ID),
		Term: progress.Term, LastTerm: progress.LastTerm, LastIndex: progress.LastIndex,
		AppliedIndex: view.Index(), ChainHash: view.ChainHash(),
		LastContactMs: sinceMS(progress.LastContact), Problem: m.Problem(), ChainHashAt: m.hashes.at(in.GetAtIndex()),
	}
	_, out.Repairing = m.identity.standing()
	for _, member := range m.node.Members() {
		out.Member = true
		out.Members = append(out.Members, m.member(member, leader.ID))
	}
	if out.Member {
		out.Founders = m.identity.founders()
	}
	return out, nil
}

// sinceMS is how long ago something was; -1 for never.
func sinceMS(t time.Time) int64 {
	if t.IsZero() {
		return -1
	}
	return max(0, time.Since(t).Milliseconds())
}

func (m *Members) member(member consensus.Member, leader string) *pb.Member {
	suffrage := pb.Suffrage_SUFFRAGE_NON_VOTER
	if member.Voter {
		suffrage = pb.Suffrage_SUFFRAGE_VOTER
	}
	return &pb.Member{
		Id: member.ID, RaftAddress: member.Address, ControlAddress: m.ControlAddress(member.ID),
		Suffrage: suffrage, Leader: member.ID == leader, Version: m.settings.Store.View().Node(member.ID).GetVersion(),
	}
}

// Join takes a node in, or takes up what has changed about it.
func (m *Members) Join(ctx context.Context, in *pb.JoinRequest) (*pb.JoinResponse, error) {
	node := in.GetNode()
	if err := checkNode(node); err != nil {
		return nil, err
	}
	if err := m.settings.Leadership.Leading(rpc.Trailer(ctx)); err != nil {
		return nil, err
	}
	if m.self.GetRaftAddress() == "" {
		return nil, status.Error(codes.FailedPrecondition, "this node has no port for peers and takes in no others; start it with one")
	}
	if err := m.stillElsewhere(ctx, node, in.GetInstance()); err != nil {
		return nil, err
	}
	if err := m.enter(ctx, node); err != nil {
		return nil, changeError(err)
	}
	return &pb.JoinResponse{}, nil
}

func checkNode(n *pb.Node) error {
	switch {
	case n == nil:
		return rpc.Invalid("node", "is missing")
	case n.GetId() == "" || len(n.GetId()) > rpc.MaxIDBytes:
		return rpc.Invalid("node.id", "%d bytes; it must have 1 to %d", len(n.GetId()), rpc.MaxIDBytes)
	case n.GetStoreId() == "" || len(n.GetStoreId()) > rpc.MaxIDBytes:
		return rpc.Invalid("node.store_id", "%d bytes; it must have 1 to %d", len(n.GetStoreId()), rpc.MaxIDBytes)
	case len(n.GetVersion()) > rpc.MaxIDBytes:
		return rpc.Invalid("node.version", "%d bytes; the limit is %d", len(n.GetVersion()), rpc.MaxIDBytes)
	}
	for field, address := range map[string]string{"node.raft_address": n.GetRaftAddress(), "node.control_address": n.GetControlAddress()} {
		if _, _, err := net.SplitHostPort(address); err != nil || len(address) > rpc.MaxModelBytes {
			return rpc.Invalid(field, "%.*q is not host:port of at most %d bytes", rpc.MaxModelBytes, address, rpc.MaxModelBytes)
		}
	}
	return nil
}

// stillElsewhere refuses a node whose id another one uses that answers: one with a log of its own, or with
// a copy of the same. instance is the caller's process.
func (m *Members) stillElsewhere(ctx context.Context, node *pb.Node, instance string) error {
	known := m.settings.Store.View().Node(node.GetId())
	if node.GetId() == m.self.GetId() && instance != m.instance {
		return errIDInUse(node.GetId(), m.self.GetControlAddress())
	}
	if known == nil || known.GetStoreId() == node.GetStoreId() && known.GetControlAddress() == node.GetControlAddress() {
		return nil
	}
	for _, a := range m.ask(ctx, []string{known.GetControlAddress()}, &pb.DescribeRequest{}) {
		if a.GetNode().GetId() == known.GetId() && a.GetInstance() != instance {
			return errIDInUse(node.GetId(), known.GetControlAddress())
		}
	}
	return nil
}

func errIDInUse(id, address string) error {
	return status.Errorf(codes.AlreadyExists, "node.id: %q is the id of the node at %s; every node needs one of its own", id, address)
}

// changeError says what a client may make of a failed change of the members.
func changeError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, consensus.ErrNotLeader), errors.Is(err, consensus.ErrUnknownOutcome):
		return rpc.NotLeading("the members were being changed")
	case errors.Is(err, consensus.ErrTransferring):
		return status.Error(codes.Aborted, err.Error())
	case errors.Is(err, consensus.ErrNoSuchMember):
		return status.Error(codes.NotFound, err.Error())
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return status.FromContextError(err).Err()
	}
	return status.Error(codes.Internal, err.Error())
}

// Members lists the members with their health.
func (m *Members) Members(ctx context.Context, _ *pb.MembersRequest) (*pb.MembersResponse, error) {
	if err := m.settings.Leadership.Leading(rpc.Trailer(ctx)); err != nil {
		return nil, err
	}
	members := m.node.Members()
	// The newest change may not be committed yet, and then it may come to nothing.
	if err := m.settings.Leadership.Barrier(ctx); err != nil {
		return nil, rpc.Unsure(err)
	}
	answers := m.describe(ctx, members, &pb.DescribeRequest{})
	progress := m.node.Progress()
	out := &pb.MembersResponse{Healthy: true, Term: progress.Term, CommitIndex: progress.Commit}
	pilot := m.pilot.Load()
	if pilot != nil {
		out.FailureTolerance = int32(pilot.Tolerance())
	}
	for _, member := range members {
		entry := m.member(member, m.self.GetId())
		entry.LastContactMs = -1
		a := answers[member.ID]
		if entry.Leader {
			a, _ = m.Describe(ctx, nil) // It never fails.
			entry.Healthy = true
		}
		if a != nil {
			entry.LastContactMs, entry.LastTerm, entry.LastIndex = a.GetLastContactMs(), a.GetLastTerm(), a.GetLastIndex()
			entry.AppliedIndex, entry.ChainHash, entry.Version = a.GetAppliedIndex(), a.GetChainHash(), a.GetNode().GetVersion()
			entry.Problem = a.GetProblem()
		}
		if pilot != nil {
			if h, ok := pilot.Health(member.ID); ok {
				entry.Healthy, entry.StableSinceUnixMs = h.Healthy && a != nil && entry.Problem == "", h.Since.UnixMilli()
			}
		}
		out.Healthy = out.Healthy && entry.Healthy
		out.Members = append(out.Members, entry)
	}
	return out, nil
}

// Transfer hands leadership over.
func (m *Members) Transfer(ctx context.Context, in *pb.TransferRequest) (*pb.TransferResponse, error) {
	if err := m.settings.Leadership.Leading(rpc.Trailer(ctx)); err != nil {
		return nil, err
	}
	if in.GetTo() == m.self.GetId() {
		return &pb.TransferResponse{LeaderId: m.self.GetId()}, nil
	}
	ctx, cancel := context.WithTimeout(ctx, changeTimeout)
	defer cancel()
	next, err := m.node.Transfer(ctx, in.GetTo())
	if err != nil {
		return nil, changeError(err)
	}
	return &pb.TransferResponse{LeaderId: next.ID}, nil
}

// Remove takes a member out. One that still runs would come back by itself, so it must be stopped
// first.
func (m *Members) Remove(ctx context.Context, in *pb.RemoveRequest) (*pb.RemoveResponse, error) {
	if err := m.settings.Leadership.Leading(rpc.Trailer(ctx)); err != nil {
		return nil, err
	}
	// What is found here must still be so when the member goes: a Join may be under way.
	if err := m.change(ctx); err != nil {
		return nil, changeError(err)
	}
	defer m.changed()
	id := in.GetId()
	member, ok := m.node.Member(id)
	switch {
	case !ok && m.settings.Store.View().Node(id) == nil:
		return nil, status.Errorf(codes.NotFound, "id: no member is called %q", id)
	case id == m.self.GetId():
		return nil, status.Errorf(codes.FailedPrecondition, "id: %q is the leader; stop it first", id)
	case m.describe(ctx, []consensus.Member{member}, &pb.DescribeRequest{})[id] != nil:
		return nil, status.Errorf(codes.FailedPrecondition, "id: %q still runs and would come back; stop it first", id)
	}
	if ok {
		if err := m.node.Remove(id); err != nil {
			return nil, changeError(err)
		}
	}
	if err := m.record(ctx, &pb.NodeCommand{Node: &pb.Node{Id: id}, Removed: true}); err != nil {
		return nil, changeError(err)
	}
	return &pb.RemoveResponse{}, nil
}
