package transport

import (
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/peer"

	"github.com/quire-serve/quire/trust"
)

// Expected is who is to answer at an address.
type Expected struct {
	// Role and, if it is known, the name of who is there. Without a name it must prove that the host is
	// its own.
	Role trust.Role
	Name string
}

// connectTimeout is how long one try to connect may take.
const connectTimeout = 2 * time.Second

// How often those who have lost a peer try again.
var (
	// ToLeader is for who looks for the leader. An election takes a second or two, and a thousand workers and
	// gateways may wait for it.
	ToLeader = Backoff{First: 50 * time.Millisecond, Last: 500 * time.Millisecond}
	// ToPeer is for one process that is gone and may be back.
	ToPeer = Backoff{First: 20 * time.Millisecond, Last: 500 * time.Millisecond}
)

// Dial makes a connection within the cluster, which connects on use. Without certificates it is plain.
func Dial(certificates *trust.Certificates, address string, expect Expected, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	if err := CheckAddress(address); err != nil {
		return nil, err
	}
	creds := insecure.NewCredentials()
	if certificates != nil {
		host, _, _ := net.SplitHostPort(address)
		creds = clientCredentials{certificates, trust.Expected{Role: expect.Role, Name: expect.Name, Host: host}}
	}
	return newClient(address, creds, append([]grpc.DialOption{grpc.WithNoProxy(), grpc.WithDisableServiceConfig()}, options...))
}

// DialClients connects to a port for clients.
func DialClients(address string, options ...grpc.DialOption) (*grpc.ClientConn, error) {
	if err := CheckAddress(address); err != nil {
		return nil, err
	}
	return newClient(address, insecure.NewCredentials(), options)
}

func newClient(address string, creds credentials.TransportCredentials, options []grpc.DialOption) (*grpc.ClientConn, error) {
	return grpc.NewClient(address, append([]grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: ToPeer.connects(), MinConnectTimeout: connectTimeout}),
	}, options...)...)
}

// Answered says who answered a call, by the certificate that was checked when the connection was made;
// false on a plain one.
func Answered(p peer.Peer) (trust.Identity, bool) {
	info, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok || len(info.State.PeerCertificates) == 0 {
		return trust.Identity{}, false
	}
	id, err := trust.Of(info.State.PeerCertificates[0])
	return id, err == nil
}

// clientCredentials uses the certificates as they are when a connection is made.
type clientCredentials struct {
	certificates *trust.Certificates
	expect       trust.Expected
}

var _ credentials.TransportCredentials = clientCredentials{}

func (c clientCredentials) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return credentials.NewTLS(c.certificates.Client(c.expect)).ClientHandshake(ctx, authority, conn)
}

func (clientCredentials) ServerHandshake(net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, fmt.Errorf("transport: these credentials are a client's")
}

func (clientCredentials) Info() credentials.ProtocolInfo {
	return credentials.NewTLS(&tls.Config{}).Info()
}
func (c clientCredentials) Clone() credentials.TransportCredentials { return c }
func (clientCredentials) OverrideServerName(string) error           { return nil }

// CheckAddress says what is wrong with an address that is not host:port.
func CheckAddress(address string) error {
	if scheme, rest, ok := strings.Cut(address, "://"); ok {
		return fmt.Errorf("%q is a URL; leave %s:// and what follows the port away: %s", address, scheme, strings.Split(rest, "/")[0])
	}
	host, port, err := net.SplitHostPort(address)
	switch {
	case address == "":
		return fmt.Errorf("an address is empty; it must be host:port")
	case err != nil && !strings.Contains(address, ":"):
		return fmt.Errorf("%q is not host:port: the port is missing", address)
	case err != nil:
		return fmt.Errorf("%q is not host:port: %w", address, err)
	case host == "":
		return fmt.Errorf("%q is not host:port: the host is missing", address)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return fmt.Errorf("%q is not host:port: the port must be 1 to 65535", address)
	}
	return nil
}

// Loopback says whether an address can be reached from this machine alone.
func Loopback(address string) bool {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return false
	}
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// Unspecified says whether an address names no host: one to listen on, which nobody can dial.
func Unspecified(address string) bool {
	host, _, err := net.SplitHostPort(address)
	ip := net.ParseIP(host)
	return err == nil && (host == "" || ip != nil && ip.IsUnspecified())
}
