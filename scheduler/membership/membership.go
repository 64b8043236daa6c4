package membership

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/consensus"
	"github.com/quire-serve/quire/transport"
)

// Members is how this node finds the others, becomes a member, and stays one. There is no gossip:
// nodes ask each other's Cluster service.
//
//	           a founder is named in founders
//	searching ────────────────────────────────▶ member ◀─┐
//	    │  a leader is found and accepts Join      ▲  │    │ the leader knows this node as it is now
//	    └──────────────────────────────────────────┘  └────┘
//
// A new cluster is formed by one node alone, so that two can never be: the one behind the address
// that sorts first in Join. It does so once BootstrapExpect nodes without a cluster answer, writes
// down who they are, and says so in Describe; each of them starts with the same members when it reads
// that. A node whose disk was replaced, or whose log was damaged, has another store id, so it is no
// founder any more and joins as a newcomer, without a vote.
type Members struct {
	pb.UnimplementedClusterServer
	settings Settings
	node     *consensus.Node
	self     *pb.Node
	// instance tells this process from others that may use the same id.
	instance string
	identity *identity
	hashes   hashes
	// unique says that no other node has this one's id, as far as the others knew when it started.
	unique atomic.Bool

	// changing has one place, held while members change: one change at a time.
	changing chan struct{}
	// restoring has one place, held while a snapshot is uploaded and restored.
	restoring chan struct{}
	// pilot looks after the members; nil while this node does not lead.
	pilot atomic.Pointer[consensus.Pilot]

	// opened says that this node began the first election; only search touches it.
	opened bool

	mu    sync.Mutex
	conns map[string]*nodeConn
	// complaint is the last thing that kept this node from its cluster, so that it is logged once.
	complaint string
}

var _ pb.ClusterServer = (*Members)(nil)

type nodeConn struct {
	client pb.ClusterClient
	close  func() error
}

const (
	// searchEvery is how often a node that is no settled member looks for its cluster.
	searchEvery = 250 * time.Millisecond
	// askTimeout is how long another node may take to answer.
	askTimeout = time.Second
	// changeTimeout bounds a change of the members.
	changeTimeout = 15 * time.Second
)

// New prepares a node's membership. [Members.OpenIdentity], [Members.Newcomer], [Members.Applied] and
// [Members.Restored] are for the log, from when it opens; all else is usable after [Members.Attach].
func New(settings Settings) *Members {
	return &Members{
		settings: settings, instance: randomID(),
		changing: make(chan struct{}, 1), restoring: make(chan struct{}, 1), conns: map[string]*nodeConn{},
	}
}

// OpenIdentity reads or makes what the data folder knows about its node; see [consensus.Settings].
func (m *Members) OpenIdentity(dir string, repaired bool) (err error) {
	m.identity, err = openIdentity(dir, m.settings.NodeID, len(m.settings.Join) > 0, repaired)
	return err
}

// Newcomer says whether this node must not vote yet; see [consensus.Settings].
func (m *Members) Newcomer() bool {
	newcomer, _ := m.identity.standing()
	return newcomer || len(m.settings.Join) > 0 && !m.unique.Load()
}

// Attach says through which node of the log's cluster this one takes part.
func (m *Members) Attach(node *consensus.Node) {
	m.node = node
	m.self = &pb.Node{
		Id: m.settings.NodeID, RaftAddress: node.Address(), ControlAddress: m.settings.ControlAdvertise,
		Version: m.settings.Version, StoreId: m.identity.StoreID,
	}
}

// Run keeps this node a member of its cluster, and compares it with the others, until ctx ends. A node that
// is a cluster by itself has nothing to run.
func (m *Members) Run(ctx context.Context) {
	if len(m.settings.Join) == 0 {
		return
	}
	var running sync.WaitGroup
	running.Go(func() { m.stayMember(ctx) })
	running.Go(func() { m.compare(ctx) })
	running.Wait()
}

// stayMember makes sure that this node is the only one of its id, and then searches until it is a settled member,
// again whenever it is not.
func (m *Members) stayMember(ctx context.Context) {
	if err := m.twin(m.ask(ctx, m.Addresses(), &pb.DescribeRequest{})); err != nil {
		m.settings.Fatal(err)
		return
	}
	m.unique.Store(true)
	tick := time.NewTicker(searchEvery)
	defer tick.Stop()
	for {
		if m.node.Problem() != nil {
			return
		}
		if !m.settled() {
			err := m.search(ctx)
			if status.Code(err) == codes.AlreadyExists {
				m.settings.Fatal(err)
				return
			}
			if err != nil && ctx.Err() == nil {
				m.complain(err)
			}
		} else if err := m.takenIn(); err != nil {
			m.complain(err)
		}
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// settled says that the cluster has a leader and knows this node as it is. A leader settles itself.
func (m *Members) settled() bool {
	if m.node.Leads() {
		return true
	}
	member, ok := m.node.Member(m.self.GetId())
	return ok && member.Address == m.self.GetRaftAddress() && m.node.Leader().ID != "" &&
		proto.Equal(m.settings.Store.View().Node(m.self.GetId()), m.self)
}

// takenIn notes that the cluster knows this node as it is, and when one that was damaged votes again. What
// it applied includes that it was taken in, and so all that it may have acknowledged before.
func (m *Members) takenIn() error {
	newcomer, repairing := m.identity.standing()
	if newcomer {
		return m.identity.settle(repairing)
	}
	if member, _ := m.node.Member(m.self.GetId()); repairing && member.Voter {
		m.settings.Logger.Warn("this node, whose log was damaged, has caught up and votes again")
		return m.identity.settle(false)
	}
	return nil
}

// answer is what one address said.
type answer struct {
	address string
	*pb.DescribeResponse
}

// search asks all known addresses and does the next step that the answers allow.
func (m *Members) search(ctx context.Context) error {
	answers := m.ask(ctx, m.Addresses(), &pb.DescribeRequest{})
	if err := m.twin(answers); err != nil {
		return err // The other one has just been started, and ends.
	}
	if leader := leaderOf(answers); leader != "" {
		ctx, cancel := context.WithTimeout(ctx, changeTimeout)
		defer cancel()
		return m.call(leader, func(c pb.ClusterClient) error {
			_, err := c.Join(ctx, &pb.JoinRequest{Node: m.self, Instance: m.instance})
			return err
		})
	}
	if len(m.node.Members()) > 0 {
		m.openElection(answers)
		return nil // An election will come to an end.
	}
	if founders := m.named(answers); founders != nil {
		return m.found(founders)
	}
	return m.form(answers)
}

// twin says that another node has this one's id. It may have a copy of its folder too, and then each would
// vote for the same member.
func (m *Members) twin(answers []answer) error {
	for _, a := range answers {
		if a.GetNode().GetId() == m.self.GetId() && a.GetInstance() != m.instance {
			return errIDInUse(m.self.GetId(), a.address)
		}
	}
	return nil
}

// Addresses are where the services of the cluster's other nodes are, as far as this node was told or knows,
// also of a node that has this one's id elsewhere.
func (m *Members) Addresses() []string {
	addresses := slices.Clone(m.settings.Join)
	for n := range m.settings.Store.View().Nodes() {
		if address := n.GetControlAddress(); address != "" && address != m.self.GetControlAddress() {
			addresses = append(addresses, n.GetControlAddress())
		}
	}
	slices.Sort(addresses)
	return slices.Compact(addresses)
}

// leaderOf is the address of the newest leader that an answer names.
func leaderOf(answers []answer) (address string) {
	var term uint64
	for _, a := range answers {
		if a.GetLeaderAddress() != "" && a.GetTerm() >= term {
			address, term = a.GetLeaderAddress(), a.GetTerm()
		}
	}
	return address
}

// named returns the founders of a cluster, if this node is one of them.
func (m *Members) named(answers []answer) []*pb.Node {
	for _, a := range answers {
		if slices.ContainsFunc(a.GetFounders(), func(n *pb.Node) bool {
			return n.GetId() == m.self.GetId() && n.GetStoreId() == m.self.GetStoreId()
		}) {
			return a.GetFounders()
		}
	}
	return nil
}

// form starts a cluster if it is this node's part and there are enough nodes. It comes after a
// restart too, if the node had written down the founders and no more.
func (m *Members) form(answers []answer) error {
	first := slices.Min(m.settings.Join)
	if !slices.ContainsFunc(answers, func(a answer) bool { return a.address == first && a.GetInstance() == m.instance }) {
		return nil
	}
	nodes := map[string]*pb.Node{}
	for _, a := range answers {
		id := a.GetNode().GetId()
		if known := nodes[id]; known != nil && known.GetStoreId() != a.GetNode().GetStoreId() {
			return fmt.Errorf("two nodes have the id %q; every node needs one of its own", id)
		}
		if a.GetMember() {
			return nil // There is a cluster; its leader will be found.
		}
		if a.GetRepairing() {
			return fmt.Errorf("the log of node %q was damaged, and there is no cluster that it could be repaired from; until one answers no new one is formed, because that would be empty", id)
		}
		nodes[id] = a.GetNode()
	}
	founders := m.identity.founders()
	if founders == nil {
		if len(nodes) < m.settings.BootstrapExpect {
			return fmt.Errorf("%d of %d nodes are there to form a cluster", len(nodes), m.settings.BootstrapExpect)
		}
		for _, n := range nodes {
			founders = append(founders, n)
		}
		slices.SortFunc(founders, func(a, b *pb.Node) int { return strings.Compare(a.GetId(), b.GetId()) })
		if err := m.identity.setFounders(founders); err != nil {
			return err
		}
	}
	return m.found(founders)
}

func (m *Members) found(founders []*pb.Node) error {
	var peers []consensus.Server
	for _, n := range founders {
		peers = append(peers, consensus.Server{ID: n.GetId(), Address: n.GetRaftAddress()})
	}
	m.settings.Logger.Info("forming a cluster", "nodes", len(peers))
	if err := m.identity.settle(false); err != nil {
		return err
	}
	return m.node.Found(peers)
}

// openElection begins the first election where nobody need be waited for: once all founders are ready,
// by the one that formed the cluster, or on a node whose vote alone decides.
func (m *Members) openElection(answers []answer) {
	if m.opened {
		return
	}
	voters := m.identity.founders()
	if m.node.Term() > 1 || voters == nil {
		voters = []*pb.Node{m.self}
		if members := m.node.Members(); len(members) != 1 || members[0].ID != m.self.GetId() {
			return
		}
	}
	for _, v := range voters {
		if !slices.ContainsFunc(answers, func(a answer) bool { return a.GetNode().GetId() == v.GetId() && a.GetMember() }) {
			return
		}
	}
	m.opened = true
	m.node.CallElection()
}

// complain logs an error that is not the last one again.
func (m *Members) complain(err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if text := err.Error(); text != m.complaint {
		m.complaint = text
		m.settings.Logger.Warn("not a member of the cluster yet", "node", m.self.GetId(), "error", err)
	}
}

// Lead is a leader's part: it enters itself and looks after the others until stop is called.
func (m *Members) Lead(ctx context.Context) (stop func()) {
	if m.self.GetControlAddress() == "" {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	var done sync.WaitGroup
	done.Go(func() {
		for m.enter(ctx, m.self) != nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(searchEvery):
			}
		}
		pilot := m.node.StartPilot(ctx, consensus.PilotSettings{
			Stable: m.settings.StableAfter, DeadAfter: m.settings.DeadAfter, MinVoters: max(3, m.settings.BootstrapExpect),
			Ask: m.vitals,
			Removed: func(id string) {
				if err := m.record(ctx, &pb.NodeCommand{Node: &pb.Node{Id: id}, Removed: true}); err != nil {
					m.settings.Logger.Warn("a removed node is still in the table", "node", id, "error", err)
				}
			},
		})
		m.pilot.Store(pilot)
		<-ctx.Done()
		m.pilot.Store(nil)
		pilot.Stop()
	})
	return func() {
		cancel()
		done.Wait()
	}
}

// change waits until no other change of the members is under way; changed ends the caller's.
func (m *Members) change(ctx context.Context) error {
	select {
	case m.changing <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (m *Members) changed() { <-m.changing }

// enter makes a node a member as it is now.
func (m *Members) enter(ctx context.Context, node *pb.Node) error {
	if err := m.change(ctx); err != nil {
		return err
	}
	defer m.changed()
	known := m.settings.Store.View().Node(node.GetId())
	member, isMember := m.node.Member(node.GetId())
	if known.GetStoreId() != "" && known.GetStoreId() != node.GetStoreId() && isMember && member.Voter {
		// Its log is gone, and with it the votes that it gave: it starts over without one.
		m.settings.Logger.Warn("a node came back without its log; it has no vote until it has caught up", "node", node.GetId())
		if err := m.node.Demote(node.GetId()); err != nil {
			return err
		}
	}
	// A leader without a port for peers is alone and stays what it is.
	if node.GetRaftAddress() != "" && (!isMember || member.Address != node.GetRaftAddress()) {
		if err := m.node.Add(node.GetId(), node.GetRaftAddress()); err != nil {
			return err
		}
	}
	if proto.Equal(known, node) {
		return nil
	}
	return m.record(ctx, &pb.NodeCommand{Node: node})
}

// record writes a change of the table of nodes to the log.
func (m *Members) record(ctx context.Context, c *pb.NodeCommand) error {
	data, err := proto.Marshal(&pb.Entry{
		Commands: []*pb.Command{{Command: &pb.Command_Node{Node: c}}},
	})
	if err != nil {
		return fmt.Errorf("encode a log entry: %w", err)
	}
	proposal, err := m.node.Propose(ctx, data)
	if err != nil {
		return err
	}
	_, err = proposal.Wait(ctx)
	return err
}

// vitals asks members how they are.
func (m *Members) vitals(ctx context.Context, members []consensus.Member) map[string]consensus.Vitals {
	out := map[string]consensus.Vitals{}
	for id, a := range m.describe(ctx, members, &pb.DescribeRequest{}) {
		out[id] = consensus.Vitals{
			LastContact: time.Duration(a.GetLastContactMs()) * time.Millisecond,
			LastTerm:    a.GetLastTerm(), LastIndex: a.GetLastIndex(),
		}
	}
	return out
}

// describe asks members who they are. Those that do not answer, or whose address another node has
// now, are missing.
func (m *Members) describe(ctx context.Context, members []consensus.Member, in *pb.DescribeRequest) map[string]*pb.DescribeResponse {
	view := m.settings.Store.View()
	var addresses []string
	for _, member := range members {
		if a := view.Node(member.ID).GetControlAddress(); a != "" {
			addresses = append(addresses, a)
		}
	}
	out := map[string]*pb.DescribeResponse{}
	for _, a := range m.ask(ctx, addresses, in) {
		if view.Node(a.GetNode().GetId()).GetControlAddress() == a.address {
			out[a.GetNode().GetId()] = a.DescribeResponse
		}
	}
	return out
}

// ask calls Describe at all addresses at once and returns the answers in their order.
func (m *Members) ask(ctx context.Context, addresses []string, in *pb.DescribeRequest) []answer {
	ctx, cancel := context.WithTimeout(ctx, askTimeout)
	defer cancel()
	responses := make([]*pb.DescribeResponse, len(addresses))
	var asked sync.WaitGroup
	for i, address := range addresses {
		asked.Go(func() {
			// A node that does not answer is simply not there.
			_ = m.call(address, func(c pb.ClusterClient) error {
				var from peer.Peer
				r, err := c.Describe(ctx, in, grpc.Peer(&from))
				if err != nil {
					return err
				}
				// A node speaks for itself here too: who is not healthy, or gone, must not be said by another.
				if who, known := transport.Answered(from); known && who.Name != r.GetNode().GetId() {
					err := fmt.Errorf("%s answers at %s as if it were node %q", who, address, r.GetNode().GetId())
					m.complain(err)
					return err
				}
				responses[i] = r
				return nil
			})
		})
	}
	asked.Wait()
	var out []answer
	for i, r := range responses {
		if r.GetNode().GetId() != "" {
			out = append(out, answer{addresses[i], r})
		}
	}
	return out
}

// call uses the connection to an address. After an error the next call dials anew, so that the kept
// connections are those of nodes that answer.
func (m *Members) call(address string, f func(pb.ClusterClient) error) error {
	m.mu.Lock()
	conn := m.conns[address]
	if conn == nil {
		cc, closeConn, err := m.settings.Dial(address)
		if err != nil {
			m.mu.Unlock()
			return fmt.Errorf("dial %s: %w", address, err)
		}
		conn = &nodeConn{client: pb.NewClusterClient(cc), close: closeConn}
		m.conns[address] = conn
	}
	m.mu.Unlock()
	err := f(conn.client)
	if err != nil {
		m.mu.Lock()
		defer m.mu.Unlock()
		if m.conns[address] == conn {
			delete(m.conns, address)
			_ = conn.close() // It is of no use any more.
		}
	}
	return err
}

// HangUp closes the connections to other nodes.
func (m *Members) HangUp() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for address, conn := range m.conns {
		delete(m.conns, address)
		_ = conn.close() // Nothing is left to be said on it.
	}
}

// ControlAddress is where a node's gRPC services are reached; empty if that is not known.
func (m *Members) ControlAddress(id string) string {
	if id == m.self.GetId() {
		return m.self.GetControlAddress()
	}
	if n := m.settings.Store.View().Node(id); n.GetControlAddress() != "" {
		return n.GetControlAddress()
	}
	for _, p := range m.settings.Peers {
		if p.ID == id {
			return p.Control
		}
	}
	return ""
}
