package worker

import (
	"time"

	"google.golang.org/grpc"

	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/trust"
)

// silentFor is for how long a node that did not answer is tried only if there is no other, whoever says
// that it leads: each try costs the whole patience.
const silentFor = 5 * time.Second

// nodes are the control-plane nodes as a worker tries them: the one that is said to lead, or one after
// the other.
type nodes struct {
	list         []string
	certificates *trust.Certificates

	at     int
	leads  string // said to, "" unknown
	conns  map[string]*grpc.ClientConn
	silent map[string]time.Time
}

func newNodes(list []string, certificates *trust.Certificates) *nodes {
	return &nodes{list: list, certificates: certificates, conns: map[string]*grpc.ClientConn{}, silent: map[string]time.Time{}}
}

// next is the node to try.
func (n *nodes) next(now time.Time) string {
	if leads := n.leads; leads != "" {
		n.leads = ""
		return leads
	}
	for range n.list {
		n.at++
		if address := n.list[(n.at-1)%len(n.list)]; !n.quiet(address, now) {
			return address
		}
	}
	n.at++
	return n.list[(n.at-1)%len(n.list)]
}

// suggest makes address the next one, unless it fell silent just now. It reports whether it does.
func (n *nodes) suggest(address string, now time.Time) bool {
	if n.quiet(address, now) {
		return false
	}
	n.leads = address
	return true
}

func (n *nodes) quiet(address string, now time.Time) bool {
	at, ok := n.silent[address]
	return ok && now.Sub(at) < silentFor
}

// dial returns the connection to a node, which connects on use.
func (n *nodes) dial(address string) (conn *grpc.ClientConn, err error) {
	if conn = n.conns[address]; conn == nil {
		conn, err = transport.Dial(n.certificates, address, transport.Expected{Role: trust.Node},
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(transport.MaxAnswer)))
		if err != nil {
			return nil, err
		}
		n.conns[address] = conn
	}
	conn.ResetConnectBackoff() // the pace is the caller's
	return conn, nil
}

// heard notes whether a node answered. A connection on which nothing came is given up: over a network
// that has healed, a new one is there sooner than the old one tries again.
func (n *nodes) heard(address string, answered bool, now time.Time) {
	if answered {
		delete(n.silent, address)
		return
	}
	n.silent[address] = now
	if conn := n.conns[address]; conn != nil {
		_ = conn.Close()
		delete(n.conns, address)
	}
}

func (n *nodes) close() {
	for _, conn := range n.conns {
		_ = conn.Close() // nothing is left to be said on it
	}
}
