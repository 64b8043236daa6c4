package consensus

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"

	"github.com/quire-serve/quire/trust"
)

// OverTLS is OverTCP with mutual TLS: both sides must show a node's certificate, and the one that is
// dialled one for the dialled host.
func OverTLS(listener net.Listener, advertise string, certificates *trust.Certificates) raft.StreamLayer {
	return &tlsLayer{tcpLayer: overTCP(listener, advertise), certificates: certificates}
}

// handshakeTimeout bounds the time that an open connection may take to say who it is.
const handshakeTimeout = 5 * time.Second

type tlsLayer struct {
	*tcpLayer
	certificates *trust.Certificates
}

var _ raft.StreamLayer = (*tlsLayer)(nil)

func (l *tlsLayer) Accept() (net.Conn, error) {
	conn, err := l.tcpLayer.Accept()
	if err != nil {
		return nil, err
	}
	// The handshake comes with the first read, in the connection's own goroutine.
	return &tlsServerConn{Conn: tls.Server(conn, l.certificates.Server(trust.Node))}, nil
}

// tlsServerConn ends connections that do not finish their handshake in time.
type tlsServerConn struct {
	*tls.Conn
	shaken sync.Once
	err    error
}

func (c *tlsServerConn) Read(b []byte) (int, error) {
	c.shaken.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), handshakeTimeout)
		defer cancel()
		c.err = c.HandshakeContext(ctx)
	})
	if c.err != nil {
		return 0, c.err
	}
	return c.Conn.Read(b)
}

func (l *tlsLayer) Dial(address raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	host, _, err := net.SplitHostPort(string(address))
	if err != nil {
		return nil, fmt.Errorf("dial a peer: %w", err)
	}
	dialer := &net.Dialer{Timeout: timeout}
	return tls.DialWithDialer(dialer, "tcp", string(address), l.certificates.Client(trust.Expected{Role: trust.Node, Host: host}))
}
