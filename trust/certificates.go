package trust

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"sync"
	"time"
)

// Files are PEM files that prove to others who this process is, and who others are to it.
type Files struct {
	Cert, Key, CA string
}

// checkEvery is how often the files are looked at, at most.
const checkEvery = time.Second

// Certificates are what the files hold, as of their last change. They are read again when they change:
// new connections then use the new ones. If the new ones are not usable the old ones stay.
type Certificates struct {
	files Files
	warn  func(error)

	mu      sync.Mutex
	checked time.Time
	seen    [3]fileStamp
	cert    tls.Certificate
	pool    *x509.CertPool
	self    Identity
}

type fileStamp struct {
	modified time.Time
	size     int64
}

// Load reads the files and finds at once what would otherwise fail at every peer. warn hears of later
// ones that are not usable.
func Load(files Files, warn func(error)) (*Certificates, error) {
	c := &Certificates{files: files, warn: warn}
	if err := c.load(); err != nil {
		return nil, err
	}
	c.checked = time.Now()
	return c, nil
}

// Self is who this process is.
func (c *Certificates) Self() Identity {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.self
}

func (c *Certificates) stamps() (out [3]fileStamp, err error) {
	for i, name := range []string{c.files.Cert, c.files.Key, c.files.CA} {
		info, err := os.Stat(name)
		if err != nil {
			return out, err
		}
		out[i] = fileStamp{info.ModTime(), info.Size()}
	}
	return out, nil
}

// load reads the files if they have changed.
func (c *Certificates) load() error {
	stamps, err := c.stamps()
	if err != nil {
		return fmt.Errorf("certificates: %w", err)
	}
	if stamps == c.seen {
		return nil
	}
	c.seen = stamps // What is broken is complained about once a change.
	cert, err := tls.LoadX509KeyPair(c.files.Cert, c.files.Key)
	if err != nil {
		return fmt.Errorf("certificate %s with key %s: %w", c.files.Cert, c.files.Key, err)
	}
	ca, err := os.ReadFile(c.files.CA)
	if err != nil {
		return fmt.Errorf("CA certificates: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(ca) {
		return fmt.Errorf("CA certificates: %s holds none", c.files.CA)
	}
	self, err := usable(cert, pool)
	if err != nil {
		return fmt.Errorf("certificate %s: %w", c.files.Cert, err)
	}
	if c.self.Name != "" && self != c.self {
		return fmt.Errorf("certificate %s is of %s; this process is %s", c.files.Cert, self, c.self)
	}
	c.cert, c.pool, c.self = cert, pool, self
	return nil
}

func usable(cert tls.Certificate, pool *x509.CertPool) (Identity, error) {
	chain := []*x509.Certificate{cert.Leaf}
	for _, der := range cert.Certificate[1:] {
		parsed, err := x509.ParseCertificate(der)
		if err != nil {
			return Identity{}, err
		}
		chain = append(chain, parsed)
	}
	for _, usage := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if err := verify(chain, pool, usage, ""); err != nil {
			var use x509.CertificateInvalidError
			if errors.As(err, &use) && use.Reason == x509.IncompatibleUsage {
				return Identity{}, errors.New("it must be for both server and client authentication")
			}
			return Identity{}, err
		}
	}
	return Of(cert.Leaf)
}

// verify checks a chain, the leaf first. An empty host is any.
func verify(chain []*x509.Certificate, pool *x509.CertPool, usage x509.ExtKeyUsage, host string) error {
	if len(chain) == 0 {
		return errors.New("no certificate was shown")
	}
	intermediates := x509.NewCertPool()
	for _, cert := range chain[1:] {
		intermediates.AddCert(cert)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: pool, Intermediates: intermediates, KeyUsages: []x509.ExtKeyUsage{usage}, DNSName: host})
	return err
}

func (c *Certificates) current() (tls.Certificate, *x509.CertPool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.checked) >= checkEvery {
		c.checked = now
		if err := c.load(); err != nil {
			c.warn(fmt.Errorf("the certificates that were read before stay in use: %w", err))
		}
	}
	return c.cert, c.pool
}

// Server is how to answer one connection. The other side must show a certificate of the cluster; if
// roles are given, of one of these.
func (c *Certificates) Server(roles ...Role) *tls.Config {
	cert, pool := c.current()
	config := &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, SessionTicketsDisabled: true,
		ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: pool,
	}
	if len(roles) > 0 {
		config.VerifyConnection = func(state tls.ConnectionState) error {
			id, err := Of(state.PeerCertificates[0])
			for _, r := range roles {
				if err == nil && id.Role == r {
					return nil
				}
			}
			return errors.Join(err, fmt.Errorf("%s may not connect here", id))
		}
	}
	return config
}

// Expected is who is to answer a connection.
type Expected struct {
	Role Role
	// Name is whose certificate it must be. Without one it must be valid for Host.
	Name, Host string
}

// ErrWrongPeer means that somebody else than the expected one answered a connection.
var ErrWrongPeer = errors.New("somebody else answers")

// Client is how to begin one connection.
func (c *Certificates) Client(expect Expected) *tls.Config {
	cert, pool := c.current()
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{cert}, ServerName: expect.Host,
		// VerifyConnection does all of what is skipped here, but for a host that a name makes needless.
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			host := expect.Host
			if expect.Name != "" {
				host = ""
			} else if host == "" {
				return errors.New("neither a host nor a name is expected") // Anybody's certificate would do.
			}
			if err := verify(state.PeerCertificates, pool, x509.ExtKeyUsageServerAuth, host); err != nil {
				return err
			}
			id, err := Of(state.PeerCertificates[0])
			switch {
			case err != nil:
				return err
			case id.Role != expect.Role || expect.Name != "" && id.Name != expect.Name:
				return fmt.Errorf("%w: it is %s, not %s", ErrWrongPeer, id, Identity{expect.Role, expect.Name})
			}
			return nil
		},
	}
}
