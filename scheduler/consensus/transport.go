package consensus

import (
	"net"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

const (
	// peerConnections is how many idle connections a node keeps to each peer.
	peerConnections = 3
	peerTimeout     = 10 * time.Second
)

// OverTCP makes a listener a node's port for its peers. advertise is the address that they dial; empty
// means the listener's own.
func OverTCP(listener net.Listener, advertise string) raft.StreamLayer {
	return overTCP(listener, advertise)
}

func overTCP(listener net.Listener, advertise string) *tcpLayer {
	layer := &tcpLayer{Listener: listener}
	if advertise != "" {
		layer.advertised = named(advertise)
	}
	return layer
}

// named is an address that peers resolve themselves: a name stays a name.
type named string

func (named) Network() string  { return "tcp" }
func (n named) String() string { return string(n) }

// tcpLayer is plain TCP.
type tcpLayer struct {
	net.Listener
	advertised net.Addr
}

var _ raft.StreamLayer = (*tcpLayer)(nil)

func (l *tcpLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	return net.DialTimeout("tcp", string(address), timeout)
}

func (l *tcpLayer) Addr() net.Addr {
	if l.advertised != nil {
		return l.advertised
	}
	return l.Listener.Addr()
}

// newTransport speaks to peers over layer.
func newTransport(layer raft.StreamLayer, logger hclog.Logger) raft.Transport {
	return raft.NewNetworkTransportWithConfig(&raft.NetworkTransportConfig{
		Stream:                  layer,
		MaxPool:                 peerConnections,
		Timeout:                 peerTimeout,
		Logger:                  logger,
		MsgpackUseNewTimeFormat: true,
	})
}
