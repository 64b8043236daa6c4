package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// membershipTimeout is how long a change of the members may wait for the leader's loop.
	membershipTimeout = 10 * time.Second
	// handoverPoll is how often a transfer looks whether the next leader is there.
	handoverPoll = 5 * time.Millisecond
)

var (
	// ErrTransferring means that leadership is being handed over already.
	ErrTransferring = errors.New("leadership is being handed over already")
	// ErrNoSuchMember means that no member, or none with a vote, has the id.
	ErrNoSuchMember = errors.New("no such member")
)

// Member is a node that the log is replicated to.
type Member struct {
	ID, Address string
	// Voter is false while the node only follows.
	Voter bool
}

// Members lists the cluster in the newest configuration here, committed or not, by id. It is empty
// on a node that belongs to no cluster yet.
func (n *Node) Members() []Member {
	var out []Member
	for _, s := range n.raft.GetConfiguration().Configuration().Servers {
		out = append(out, Member{ID: string(s.ID), Address: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	slices.SortFunc(out, func(a, b Member) int { return strings.Compare(a.ID, b.ID) })
	return out
}

// Member is the one with this id, if there is.
func (n *Node) Member(id string) (Member, bool) {
	members := n.Members()
	if i := slices.IndexFunc(members, func(m Member) bool { return m.ID == id }); i >= 0 {
		return members[i], true
	}
	return Member{}, false
}

// Found starts a cluster of these voters, this node among them, on a node opened with Await. All
// founders must be given the same ones.
func (n *Node) Found(peers []Server) error {
	var configuration raft.Configuration
	for _, p := range peers {
		configuration.Servers = append(configuration.Servers, raft.Server{
			Suffrage: raft.Voter, ID: raft.ServerID(p.ID), Address: raft.ServerAddress(p.Address),
		})
	}
	slices.SortFunc(configuration.Servers, func(a, b raft.Server) int {
		return strings.Compare(string(a.ID), string(b.ID))
	})
	if err := n.raft.BootstrapCluster(configuration).Error(); err != nil {
		return fmt.Errorf("start the cluster: %w", err)
	}
	return nil
}

// Add makes a node a member without a vote, or gives a member, which keeps its vote, another
// address. Only a leader can.
func (n *Node) Add(id, address string) error {
	return n.change(n.raft.AddNonvoter(raft.ServerID(id), raft.ServerAddress(address), 0, membershipTimeout))
}

// Demote takes a member's vote. Only a leader can.
func (n *Node) Demote(id string) error {
	return n.change(n.raft.DemoteVoter(raft.ServerID(id), 0, membershipTimeout))
}

// Remove ends a membership. Only a leader can.
func (n *Node) Remove(id string) error {
	return n.change(n.raft.RemoveServer(raft.ServerID(id), 0, membershipTimeout))
}

// change waits for a change of the members.
func (n *Node) change(future raft.IndexFuture) error {
	ctx, cancel := context.WithTimeout(context.Background(), membershipTimeout)
	defer cancel()
	return n.await(ctx, future)
}

// Transfer hands leadership to a voter, the one least behind if to is empty, and returns the next
// leader once it is known. One transfer runs at a time: a second beside it can leave raft refusing
// every entry (hashicorp/raft #696).
func (n *Node) Transfer(ctx context.Context, to string) (Server, error) {
	if !n.transferring.TryLock() {
		return Server{}, ErrTransferring
	}
	defer n.transferring.Unlock()
	if !n.Leads() {
		return Server{}, ErrNotLeader
	}
	var future raft.Future
	if to == "" {
		future = n.raft.LeadershipTransfer()
	} else {
		m, ok := n.Member(to)
		if !ok || !m.Voter {
			return Server{}, fmt.Errorf("%w with a vote: %q", ErrNoSuchMember, to)
		}
		future = n.raft.LeadershipTransferToServer(raft.ServerID(m.ID), raft.ServerAddress(m.Address))
	}
	// Raft bounds the transfer with its election timeout.
	if err := n.await(ctx, future); err != nil {
		return Server{}, fmt.Errorf("hand over leadership: %w", err)
	}
	poll := time.NewTicker(handoverPoll)
	defer poll.Stop()
	for {
		if next := n.Leader(); next.ID != "" && next.ID != n.id {
			return next, nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return Server{}, fmt.Errorf("leadership was handed over, but no leader is known yet: %w", ctx.Err())
		case <-n.stopping:
			return Server{}, ErrNotLeader
		}
	}
}

// Progress is how far a node is in the log.
type Progress struct {
	Term, LastTerm, LastIndex uint64
	Commit, Applied           uint64
	// LastContact is when the leader was last heard; zero for never. The leader hears itself now.
	LastContact time.Time
}

// Progress returns the current numbers.
func (n *Node) Progress() Progress {
	p := Progress{
		Term: n.Term(), LastIndex: n.LastIndex(), LastTerm: n.lastTerm(),
		Commit: n.raft.CommitIndex(), Applied: n.raft.AppliedIndex(), LastContact: n.raft.LastContact(),
	}
	if n.Leads() {
		p.LastContact = time.Now()
	}
	return p
}
