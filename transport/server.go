package transport

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/quire-serve/quire/trust"
)

const (
	// maxConnections bounds a port's connections: those above it are closed at once. One that is idle
	// holds less than idleBytes of memory, which a test measures.
	maxConnections = 4096
	// maxStreams bounds the calls at once on a connection; more wait at their caller.
	maxStreams = 4096
	// maxIn bounds a message to a server. A request with its prompt is the largest.
	maxIn = 4 << 20
	// maxHeader bounds a call's metadata, in bytes.
	maxHeader = 16 << 10
	// handshakeTimeout is how long a connection may take to say who it is.
	handshakeTimeout = 10 * time.Second
	// idleTimeout ends connections without calls; the next call makes a new one.
	idleTimeout = 15 * time.Minute
	// A peer that says nothing for pingAfter is asked whether it is there, and gone after pingTimeout.
	pingAfter   = 30 * time.Second
	pingTimeout = 20 * time.Second
	// pingAtMost is how often peers may ask the same; those that do it more often are cut off.
	pingAtMost = 5 * time.Second
	// bufferBytes are a connection's for reading; those for writing are shared while nothing is written.
	bufferBytes = 8 << 10
)

// ForClients returns a server for whoever reaches it. It serves what the table opens to clients.
func ForClients(options ...grpc.ServerOption) *grpc.Server {
	return newServer(guard{clients: true}, options)
}

// ForCluster returns a server for nodes, gateways, workers and operators. Without certificates whoever
// reaches it counts as all of them.
func ForCluster(certificates *trust.Certificates, options ...grpc.ServerOption) *grpc.Server {
	if certificates == nil {
		return newServer(guard{open: true}, options)
	}
	return newServer(guard{}, append(options, grpc.Creds(serverCredentials{certificates})))
}

func newServer(g guard, options []grpc.ServerOption) *grpc.Server {
	return grpc.NewServer(append([]grpc.ServerOption{
		grpc.ChainUnaryInterceptor(g.unary), grpc.ChainStreamInterceptor(g.stream),
		grpc.MaxConcurrentStreams(maxStreams), grpc.MaxRecvMsgSize(maxIn), grpc.MaxHeaderListSize(maxHeader),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.ReadBufferSize(bufferBytes), grpc.SharedWriteBuffer(true),
		grpc.KeepaliveParams(keepalive.ServerParameters{MaxConnectionIdle: idleTimeout, Time: pingAfter, Timeout: pingTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: pingAtMost, PermitWithoutStream: true}),
	}, options...)...)
}

// serverCredentials uses the certificates as they are when a connection comes.
type serverCredentials struct{ certificates *trust.Certificates }

var _ credentials.TransportCredentials = serverCredentials{}

var errServerOnly = errors.New("transport: these credentials are a server's")

func (c serverCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(c.certificates.Server()).ServerHandshake(conn)
}

func (serverCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errServerOnly
}

func (serverCredentials) Info() credentials.ProtocolInfo {
	return credentials.NewTLS(&tls.Config{}).Info()
}
func (c serverCredentials) Clone() credentials.TransportCredentials { return c }
func (serverCredentials) OverrideServerName(string) error           { return errServerOnly }

// Limit bounds the connections that a listener has at once: those above it are closed as they come, so
// that strangers cannot use the process's memory and files up.
func Limit(l net.Listener, log *slog.Logger) net.Listener {
	return limit(l, maxConnections, log)
}

func limit(l net.Listener, most int, log *slog.Logger) net.Listener {
	return &limited{Listener: l, most: most, log: log}
}

type limited struct {
	net.Listener
	most int
	log  *slog.Logger

	mu   sync.Mutex
	open int
	full bool // said in the log
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.enter() {
			return &counted{Conn: conn, leave: sync.OnceFunc(l.leave)}, nil
		}
		_ = conn.Close() // It was promised nothing.
	}
}

func (l *limited) enter() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == l.most {
		if !l.full {
			l.full = true
			l.log.Warn("a port has as many connections as it may; more are closed", "address", l.Addr().String(), "connections", l.most)
		}
		return false
	}
	l.open++
	return true
}

func (l *limited) leave() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	// One that comes and goes at the brink is not news.
	l.full = l.full && l.open > l.most/2
}

type counted struct {
	net.Conn
	leave func()
}

func (c *counted) Close() error {
	err := c.Conn.Close()
	c.leave()
	return err
}
