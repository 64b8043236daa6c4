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
	// maxStreams bounds the calls at once on a connection of the cluster, maxClientStreams on a client's;
	// more wait at their caller.
	maxStreams       = 4096
	maxClientStreams = 1024
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
	// bufferBytes are what a connection holds for reading; for writing it holds none while nothing is written.
	bufferBytes = 8 << 10
)

// ForClients returns a server for whoever reaches it. It serves what the table opens to clients.
func ForClients(options ...grpc.ServerOption) *grpc.Server {
	return newServer(guard{clients: true}, append(options, grpc.MaxConcurrentStreams(maxClientStreams)))
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
		grpc.ReadBufferSize(bufferBytes),
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
// that strangers cannot use the process's memory and files up. One host may have a share of them, so that
// it cannot shut the others out; this machine itself may have all.
func Limit(l net.Listener, log *slog.Logger) net.Listener {
	return limit(l, maxConnections, log)
}

// hostShare is the part of a port's connections that one host may have.
const hostShare = 4

func limit(l net.Listener, most int, log *slog.Logger) net.Listener {
	return &limited{Listener: l, most: most, log: log, hosts: map[string]int{}}
}

type limited struct {
	net.Listener
	most int
	log  *slog.Logger

	mu    sync.Mutex
	open  int
	hosts map[string]int
	full  bool // said in the log
}

func (l *limited) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		remote := conn.RemoteAddr().String()
		host, _, _ := net.SplitHostPort(remote)
		if Loopback(remote) {
			host = "" // Not counted.
		}
		if l.enter(host) {
			return &counted{Conn: conn, leave: sync.OnceFunc(func() { l.leave(host) })}, nil
		}
		_ = conn.Close() // It was promised nothing.
	}
}

func (l *limited) enter(host string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open == l.most || host != "" && l.hosts[host] == l.most/hostShare {
		if !l.full {
			l.full = true
			l.log.Warn("a port, or a host at it, has as many connections as it may; more are closed", "address", l.Addr().String(), "connections", l.open, "host", host, "of the host", l.hosts[host])
		}
		return false
	}
	l.open++
	if host != "" {
		l.hosts[host]++
	}
	return true
}

func (l *limited) leave(host string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if host != "" {
		if l.hosts[host]--; l.hosts[host] == 0 {
			delete(l.hosts, host)
		}
	}
	// One that comes and goes at the brink is not news.
	l.full = l.full && l.open > l.most/(2*hostShare)
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
