package consensus

import (
	"fmt"
	"time"

	"github.com/hashicorp/raft"
)

// inbox stands between the network and raft. It does these things to raft's transport:
//
//   - It declines the fast path for heartbeats; see the package comment.
//   - It withholds the vote of a node that knows no members. Raft would give it: a node whose disk
//     was replaced could then help to elect a leader that lacks what the disk had acknowledged. Such
//     a node waits until a leader adds it, or until it founds a cluster itself.
//   - It sends nothing as a leader or a candidate while this node is barred from being one.
//   - It bounds sends into pipelines; see pipeline.
//   - It asks for votes again where a connection turns out to be an old one.
//   - It lets this node call an election at once, as if a leader had handed over to it.
type inbox struct {
	raft.Transport
	// toRaft is what raft reads in place of the transport's own channel.
	toRaft chan raft.RPC
	// barred says why this node must not lead.
	barred func() error
}

var (
	_ raft.WithPreVote = (*inbox)(nil)
	_ raft.WithClose   = (*inbox)(nil)
)

func newInbox(inner raft.Transport, barred func() error) *inbox {
	return &inbox{Transport: inner, toRaft: make(chan raft.RPC), barred: barred}
}

// forward passes messages on until stopping is closed.
func (b *inbox) forward(mayVote func() bool, stopping <-chan struct{}) {
	for {
		select {
		case <-stopping:
			return
		case rpc := <-b.Transport.Consumer():
			if !mayVote() && refuseVote(rpc) {
				continue
			}
			b.deliver(rpc, stopping)
		}
	}
}

func (b *inbox) deliver(rpc raft.RPC, stopping <-chan struct{}) {
	select {
	case b.toRaft <- rpc:
	case <-stopping:
	}
}

// refuseVote answers requests for a vote with no, and says whether it was one.
func refuseVote(rpc raft.RPC) bool {
	switch req := rpc.Command.(type) {
	case *raft.RequestVoteRequest:
		rpc.Respond(&raft.RequestVoteResponse{RPCHeader: req.RPCHeader, Term: req.Term}, nil)
	case *raft.RequestPreVoteRequest:
		rpc.Respond(&raft.RequestPreVoteResponse{RPCHeader: req.RPCHeader, Term: req.Term}, nil)
	default:
		return false
	}
	return true
}

// callElection makes this node a candidate now, whose request for votes counts although the others
// may still believe in the leader.
func (b *inbox) callElection(self raft.RPCHeader, stopping <-chan struct{}) {
	b.deliver(raft.RPC{
		Command:  &raft.TimeoutNowRequest{RPCHeader: self},
		RespChan: make(chan raft.RPCResponse, 1),
	}, stopping)
}

// Consumer is where raft reads.
func (b *inbox) Consumer() <-chan raft.RPC { return b.toRaft }

// AppendEntries passes the transport's, while this node may lead.
func (b *inbox) AppendEntries(id raft.ServerID, target raft.ServerAddress, args *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) error {
	if err := b.barred(); err != nil {
		return err
	}
	return b.Transport.AppendEntries(id, target, args, resp)
}

// AppendEntriesPipeline wraps the transport's.
func (b *inbox) AppendEntriesPipeline(id raft.ServerID, target raft.ServerAddress) (raft.AppendPipeline, error) {
	if err := b.barred(); err != nil {
		return nil, err
	}
	p, err := b.Transport.AppendEntriesPipeline(id, target)
	if err != nil {
		return nil, err // Raft knows a transport without pipelines by its error.
	}
	return &pipeline{AppendPipeline: p, stall: pipelineStall, barred: b.barred}, nil
}

// SetHeartbeatHandler does nothing, so that heartbeats arrive like every other message.
func (*inbox) SetHeartbeatHandler(func(raft.RPC)) {}

// RequestPreVote passes the embedded transport's: embedding the interface hides it.
func (b *inbox) RequestPreVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestPreVoteRequest, resp *raft.RequestPreVoteResponse) error {
	if err := b.barred(); err != nil {
		return err
	}
	inner, ok := b.Transport.(raft.WithPreVote)
	if !ok {
		return fmt.Errorf("transport %T has no pre-vote", b.Transport)
	}
	return again(func() error { return inner.RequestPreVote(id, target, args, resp) })
}

// RequestVote passes the embedded transport's.
func (b *inbox) RequestVote(id raft.ServerID, target raft.ServerAddress, args *raft.RequestVoteRequest, resp *raft.RequestVoteResponse) error {
	if err := b.barred(); err != nil {
		return err
	}
	return again(func() error { return b.Transport.RequestVote(id, target, args, resp) })
}

// again asks for a vote once more where asking failed at once: the transport keeps connections to a
// peer over the peer's restart, and each of them fails at its next use. Without that vote the election
// would be lost, and the next one is an election timeout away.
func again(ask func() error) (err error) {
	for range peerConnections + 1 {
		began := time.Now()
		if err = ask(); err == nil || time.Since(began) > probeTimeout {
			return err
		}
	}
	return err
}

// Close passes the embedded transport's.
func (b *inbox) Close() error {
	if inner, ok := b.Transport.(raft.WithClose); ok {
		return inner.Close()
	}
	return nil
}
