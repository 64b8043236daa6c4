package consensus

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	autopilot "github.com/hashicorp/raft-autopilot"
)

// PilotSettings is what Pilot takes.
type PilotSettings struct {
	// Stable is how long a member must have been healthy before it gets a vote.
	Stable time.Duration
	// DeadAfter is the silence after which a member is removed, if MinVoters others stay and they are
	// a majority with room to spare.
	DeadAfter time.Duration
	MinVoters int
	// Ask returns how members are; those that do not answer are missing.
	Ask func(ctx context.Context, members []Member) map[string]Vitals
	// Removed hears of members that were removed as dead.
	Removed func(id string)
}

// Vitals is what a member says about itself.
type Vitals struct {
	// LastContact is the time since it heard of the leader.
	LastContact         time.Duration
	LastTerm, LastIndex uint64
}

// Health is the leader's judgement of a member.
type Health struct {
	Healthy bool
	// Since is when Healthy last changed.
	Since time.Time
}

const (
	pilotInterval = time.Second
	// maxBehind is how many entries a healthy member may be behind.
	maxBehind = 1024
)

// Pilot looks after the members while this node leads: it gives votes to those that have proven
// themselves and removes the dead. It wraps hashicorp/raft-autopilot.
type Pilot struct {
	node     *Node
	settings PilotSettings
	auto     *autopilot.Autopilot
	removals sync.WaitGroup

	mu sync.Mutex
	// heard is when each member last answered, or when it was first asked.
	heard map[string]time.Time
}

var _ autopilot.ApplicationIntegration = (*Pilot)(nil)

// StartPilot begins to look after the members. It must be stopped when leadership ends.
func (n *Node) StartPilot(ctx context.Context, settings PilotSettings) *Pilot {
	p := &Pilot{node: n, settings: settings, heard: map[string]time.Time{}}
	p.auto = autopilot.New(boundedRaft{n.raft, n}, p,
		autopilot.WithLogger(newLogger(n.settings.Logger, hclog.Warn)),
		autopilot.WithPromoter(&patient{}),
		autopilot.WithUpdateInterval(pilotInterval),
		autopilot.WithReconcileInterval(pilotInterval))
	p.auto.Start(ctx)
	return p
}

// Stop returns once nothing is changed any more.
func (p *Pilot) Stop() {
	<-p.auto.Stop()
	p.removals.Wait()
}

// Health returns the judgement about a member; false if there is none yet.
func (p *Pilot) Health(id string) (Health, bool) {
	h := p.auto.GetServerHealth(raft.ServerID(id))
	if h == nil {
		return Health{}, false
	}
	return Health{Healthy: h.Healthy, Since: h.StableSince}, true
}

// Tolerance is how many voters may fail before there is no majority.
func (p *Pilot) Tolerance() int { return p.auto.GetState().FailureTolerance }

// patient is autopilot's promoter, except that the stable time counts from the start: autopilot
// waives it for leaders younger than that.
type patient struct{ autopilot.StablePromoter }

func (*patient) CalculatePromotionsAndDemotions(c *autopilot.Config, s *autopilot.State) autopilot.RaftChanges {
	var changes autopilot.RaftChanges
	now := time.Now()
	for id, server := range s.Servers {
		if server.State == autopilot.RaftNonVoter && server.Health.IsStable(now, c.ServerStabilizationTime) {
			changes.Promotions = append(changes.Promotions, id)
		}
	}
	return changes
}

// boundedRaft bounds autopilot's changes of the members: it gives none a limit, and would wait for ever, and
// the end of leadership for it, on a node whose disk hangs.
type boundedRaft struct {
	*raft.Raft
	node *Node
}

// boundedFuture is a change of the members.
type boundedFuture struct {
	raft.IndexFuture
	node *Node
}

func (f boundedFuture) Error() error { return f.node.change(f.IndexFuture) }

func (r boundedRaft) AddVoter(id raft.ServerID, address raft.ServerAddress, after uint64, _ time.Duration) raft.IndexFuture {
	return boundedFuture{r.Raft.AddVoter(id, address, after, membershipTimeout), r.node}
}

func (r boundedRaft) DemoteVoter(id raft.ServerID, after uint64, _ time.Duration) raft.IndexFuture {
	return boundedFuture{r.Raft.DemoteVoter(id, after, membershipTimeout), r.node}
}

func (r boundedRaft) RemoveServer(id raft.ServerID, after uint64, _ time.Duration) raft.IndexFuture {
	return boundedFuture{r.Raft.RemoveServer(id, after, membershipTimeout), r.node}
}

// AutopilotConfig is part of autopilot's integration, like the methods below.
func (p *Pilot) AutopilotConfig() *autopilot.Config {
	return &autopilot.Config{
		CleanupDeadServers:      true,
		LastContactThreshold:    p.node.heartbeat,
		MaxTrailingLogs:         maxBehind,
		MinQuorum:               uint(p.settings.MinVoters),
		ServerStabilizationTime: p.settings.Stable,
	}
}

// NotifyState does nothing: the state is read when it is asked for.
func (*Pilot) NotifyState(*autopilot.State) {}

// FetchServerStats asks all members, also those that are held for dead: they may be back.
func (p *Pilot) FetchServerStats(ctx context.Context, _ map[raft.ServerID]*autopilot.Server) map[raft.ServerID]*autopilot.ServerStats {
	var others []Member
	out := map[raft.ServerID]*autopilot.ServerStats{}
	for _, m := range p.node.Members() {
		if m.ID == p.node.id {
			progress := p.node.Progress()
			out[raft.ServerID(m.ID)] = &autopilot.ServerStats{LastTerm: progress.LastTerm, LastIndex: progress.LastIndex}
			continue
		}
		others = append(others, m)
		out[raft.ServerID(m.ID)] = &autopilot.ServerStats{LastContact: -1} // Until it answers.
	}
	answers := p.settings.Ask(ctx, others)
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, v := range answers {
		p.heard[id] = now
		out[raft.ServerID(id)] = &autopilot.ServerStats{LastContact: v.LastContact, LastTerm: v.LastTerm, LastIndex: v.LastIndex}
	}
	return out
}

// KnownServers lists all members: one that is left out would be removed at once.
func (p *Pilot) KnownServers() map[raft.ServerID]*autopilot.Server {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	out := map[raft.ServerID]*autopilot.Server{}
	members := p.node.Members()
	for _, m := range members {
		s := &autopilot.Server{
			ID: raft.ServerID(m.ID), Name: m.ID, Address: raft.ServerAddress(m.Address), NodeType: autopilot.NodeVoter,
			NodeStatus: autopilot.NodeAlive, IsLeader: m.ID == p.node.id, RaftVersion: int(raft.ProtocolVersionMax),
		}
		if _, asked := p.heard[m.ID]; !asked {
			p.heard[m.ID] = now
		}
		if !s.IsLeader && now.Sub(p.heard[m.ID]) > p.settings.DeadAfter {
			s.NodeStatus = autopilot.NodeFailed
		}
		out[s.ID] = s
	}
	for id := range p.heard {
		if out[raft.ServerID(id)] == nil {
			delete(p.heard, id)
		}
	}
	return out
}

// RemoveFailedServer removes a dead member.
func (p *Pilot) RemoveFailedServer(s *autopilot.Server) {
	p.removals.Go(func() {
		if err := p.node.Remove(string(s.ID)); err != nil {
			if !errors.Is(err, ErrNotLeader) {
				p.node.settings.Logger.Warn("a dead node could not be removed", "node", s.ID, "error", err)
			}
			return
		}
		p.node.settings.Logger.Warn("removed a node that has been silent for too long", "node", s.ID, "limit", p.settings.DeadAfter)
		p.settings.Removed(string(s.ID))
	})
}
