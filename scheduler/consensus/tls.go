package consensus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// TLSFiles are PEM files that prove to peers who a node is, and who peers are to it: both sides show
// a certificate of the CA, and the one that is dialled must show one for the dialled host.
type TLSFiles struct {
	Cert, Key, CA string
}

// ListenTLS is ListenTCP with mutual TLS. The files are read again when they change: new connections
// then use the new ones. If the new ones are not usable the old ones stay, and warn hears why.
func ListenTLS(listen, advertise string, files TLSFiles, warn func(error)) (raft.StreamLayer, error) {
	material := &tlsMaterial{files: files, warn: warn}
	if err := material.load(); err != nil {
		return nil, err
	}
	plain, err := listenTCP(listen, advertise)
	if err != nil {
		return nil, err
	}
	return &tlsLayer{tcpLayer: plain, material: material}, nil
}

const (
	// handshakeTimeout bounds the time that an open connection may take to say who it is.
	handshakeTimeout = 5 * time.Second
	// tlsCheckEvery is how often the files are looked at, at most.
	tlsCheckEvery = time.Second
)

type tlsLayer struct {
	*tcpLayer
	material *tlsMaterial
}

var _ raft.StreamLayer = (*tlsLayer)(nil)

func (l *tlsLayer) Accept() (net.Conn, error) {
	conn, err := l.tcpLayer.Accept()
	if err != nil {
		return nil, err
	}
	// The handshake comes with the first read, in the connection's own goroutine.
	return &tlsServerConn{Conn: tls.Server(conn, l.material.server())}, nil
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
	return tls.DialWithDialer(dialer, "tcp", string(address), l.material.client(host))
}

// tlsMaterial is what the files hold, as of their last change.
type tlsMaterial struct {
	files TLSFiles
	warn  func(error)

	mu      sync.Mutex
	checked time.Time
	seen    [3]fileStamp
	cert    tls.Certificate
	pool    *x509.CertPool
}

type fileStamp struct {
	modified time.Time
	size     int64
}

func (m *tlsMaterial) stamps() (out [3]fileStamp, err error) {
	for i, name := range []string{m.files.Cert, m.files.Key, m.files.CA} {
		info, err := os.Stat(name)
		if err != nil {
			return out, err
		}
		out[i] = fileStamp{info.ModTime(), info.Size()}
	}
	return out, nil
}

// load reads the files if they have changed.
func (m *tlsMaterial) load() error {
	stamps, err := m.stamps()
	if err != nil {
		return fmt.Errorf("certificates for peers: %w", err)
	}
	if stamps == m.seen {
		return nil
	}
	m.seen = stamps // What is broken is complained about once a change.
	cert, err := tls.LoadX509KeyPair(m.files.Cert, m.files.Key)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", m.files.Cert, m.files.Key, err)
	}
	ca, err := os.ReadFile(m.files.CA)
	if err != nil {
		return fmt.Errorf("CA certificates: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return fmt.Errorf("CA certificates: %s holds none", m.files.CA)
	}
	if err := usable(cert, pool); err != nil {
		return fmt.Errorf("certificate %s: %w", m.files.Cert, err)
	}
	m.cert, m.pool = cert, pool
	return nil
}

// usable finds at start what would otherwise fail at every peer.
func usable(cert tls.Certificate, pool *x509.CertPool) error {
	intermediates := x509.NewCertPool()
	for _, der := range cert.Certificate[1:] {
		c, err := x509.ParseCertificate(der)
		if err != nil {
			return err
		}
		intermediates.AddCert(c)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if _, err := cert.Leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			var use x509.CertificateInvalidError
			if errors.As(err, &use) && use.Reason == x509.IncompatibleUsage {
				return errors.New("it must be for both server and client authentication")
			}
			return err
		}
	}
	return nil
}

func (m *tlsMaterial) current() (tls.Certificate, *x509.CertPool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now := time.Now(); now.Sub(m.checked) >= tlsCheckEvery {
		m.checked = now
		if err := m.load(); err != nil {
			m.warn(fmt.Errorf("the certificates that were read before stay in use: %w", err))
		}
	}
	return m.cert, m.pool
}

func (m *tlsMaterial) server() *tls.Config {
	cert, pool := m.current()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert},
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	}
}

func (m *tlsMaterial) client(host string) *tls.Config {
	cert, pool := m.current()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, RootCAs: pool, ServerName: host,
	}
}
