package consensus

import (
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/hashicorp/raft"
)

// A leader that falls silent is replaced after the heartbeat timeout, seconds later. One whose
// process died says so, in a way: its connections break and its port refuses new ones. Then nobody
// needs to wait. A port that refuses is the only proof that counts here; anything else, a silent
// machine for one, takes the slow path.
const (
	// probes are made so far apart, because the connections of a dying process may break before its
	// port closes.
	probes       = 4
	probePause   = 50 * time.Millisecond
	probeTimeout = 500 * time.Millisecond
	// takeoverStep is how long each voter waits for the one before it by id, so that they do not
	// split the vote: writing a vote down may take a while on a busy disk, and a split vote costs
	// another election timeout.
	takeoverStep = 500 * time.Millisecond
	// silenceSteps is into how many steps a heartbeat timeout is divided: voters notice a silence one
	// step apart. A vote is asked for in vain until a majority has noticed it, so the last of these wins.
	silenceSteps = 8
)

// watchedLayer tells when a connection that a peer opened breaks.
type watchedLayer struct {
	raft.StreamLayer
	broken chan struct{}
}

func (l *watchedLayer) Accept() (net.Conn, error) {
	conn, err := l.StreamLayer.Accept()
	if err != nil {
		return nil, err
	}
	return &watchedConn{Conn: conn, broken: l.broken}, nil
}

type watchedConn struct {
	net.Conn
	broken chan struct{}
}

func (c *watchedConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		select {
		case c.broken <- struct{}{}:
		default:
		}
	}
	return n, err
}

// watchLeader calls an election when the leader's process is gone.
func (n *Node) watchLeader(layer *watchedLayer) {
	for {
		select {
		case <-n.stopping:
			return
		case <-layer.broken:
		}
		leader, term := n.Leader(), n.Term()
		if leader.ID == "" || leader.ID == n.id || !n.refuses(layer, leader.Address) {
			continue
		}
		rank, votes := n.rank(leader.ID)
		if !votes || !n.pause(time.Duration(rank)*takeoverStep) {
			continue
		}
		// Where the term has moved on, another one stands already. It is given time to win, and may
		// not be able to: its log may be too short.
		if n.Term() != term && !n.pause(takeoverStep) {
			continue
		}
		now := n.Leader()
		if (now.ID == "" || now == leader && n.Term() == term) && n.raft.State() == raft.Follower {
			n.settings.Logger.Warn("the leader's process is gone; this node stands for election", "leader", leader.ID, "term", term)
			n.CallElection()
		}
	}
}

// watchSilence calls an election when the leader has been silent for the heartbeat timeout. Raft by
// itself looks at intervals of one to two timeouts, at random, and so may need three to notice.
func (n *Node) watchSilence() {
	for {
		wait := n.heartbeat
		if leader := n.Leader(); leader.ID != "" && n.raft.State() == raft.Follower {
			if rank, votes := n.rank(leader.ID); votes {
				limit := n.heartbeat + time.Duration(rank)*n.heartbeat/silenceSteps
				if wait = limit - time.Since(n.raft.LastContact()); wait <= 0 {
					n.look()
					wait = n.heartbeat
				}
			}
		}
		if !n.pause(wait) {
			return
		}
	}
}

// look has raft look now whether the leader is silent. It does so when the timeout becomes shorter.
func (n *Node) look() {
	as := n.raft.ReloadableConfig()
	shorter := as
	shorter.HeartbeatTimeout--
	if err := errors.Join(n.raft.ReloadConfig(shorter), n.raft.ReloadConfig(as)); err != nil {
		n.settings.Logger.Error("raft's timeout", "error", err) // raft still looks at its own pace
	}
}

// CallElection makes a follower a candidate now. The others' votes do not depend on what they think
// of the leader.
func (n *Node) CallElection() {
	n.inbox.callElection(raft.RPCHeader{
		ProtocolVersion: raft.ProtocolVersionMax, ID: []byte(n.id), Addr: []byte(n.inbox.LocalAddr()),
	}, n.stopping)
}

// refuses says whether nobody listens at the address any more.
func (n *Node) refuses(layer raft.StreamLayer, address string) bool {
	for range probes {
		conn, err := layer.Dial(raft.ServerAddress(address), probeTimeout)
		if errors.Is(err, syscall.ECONNREFUSED) {
			return true
		}
		if err == nil {
			_ = conn.Close() // It was only knocking.
		}
		if !n.pause(probePause) {
			return false
		}
	}
	return false
}

// rank counts the voters before this one by id, leaving out the leader.
func (n *Node) rank(leader string) (rank int, votes bool) {
	for _, m := range n.Members() {
		switch {
		case m.ID == n.id:
			return rank, m.Voter
		case m.Voter && m.ID != leader:
			rank++
		}
	}
	return 0, false
}

// pause waits, and says whether the node still runs.
func (n *Node) pause(d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-n.stopping:
		return false
	}
}
