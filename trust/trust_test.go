package trust

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func newAuthority(t *testing.T) *Authority {
	t.Helper()
	a, err := NewAuthority(filepath.Join(t.TempDir(), "ca"))
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// issue makes a certificate for the loopback.
func issue(t *testing.T, a *Authority, id Identity) Files {
	t.Helper()
	return issueUntil(t, a, id, time.Now().Add(time.Hour))
}

func issueUntil(t *testing.T, a *Authority, id Identity, until time.Time) Files {
	t.Helper()
	files, err := a.Issue(id, []string{"127.0.0.1"}, until)
	if err != nil {
		t.Fatal(err)
	}
	return files
}

// spoil signs a node's certificate again, changed.
func spoil(t *testing.T, a *Authority, name string, change func(*x509.Certificate)) Files {
	t.Helper()
	files := issue(t, a, Identity{Node, name})
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	key := pair.PrivateKey.(*ecdsa.PrivateKey)
	change(pair.Leaf)
	if err := a.sign(pair.Leaf, &key.PublicKey, key, name); err != nil {
		t.Fatal(err)
	}
	return files
}

func load(t *testing.T, files Files) *Certificates {
	t.Helper()
	c, err := Load(files, func(err error) { t.Error(err) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// talk sends a byte there and back over a connection that b answers, and returns the first error of a,
// who dials.
func talk(t *testing.T, client, server *tls.Config) error {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		secure := tls.Server(conn, server)
		_, _ = io.CopyN(secure, secure, 1) // The other side sees what fails.
		_ = secure.Close()
	}()
	defer func() { <-done }()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	secure := tls.Client(conn, client)
	if _, err := secure.Write([]byte{7}); err != nil {
		return err
	}
	_, err = io.ReadFull(secure, make([]byte, 1))
	return err
}

// TestBothSidesProveWhoTheyAre tries every way in which a side is not who it should be.
func TestBothSidesProveWhoTheyAre(t *testing.T) {
	ours, theirs := newAuthority(t), newAuthority(t)
	n1, n2 := load(t, issue(t, ours, Identity{Node, "n1"})), load(t, issue(t, ours, Identity{Node, "n2"}))
	w := load(t, issue(t, ours, Identity{Worker, "w"}))
	stranger := load(t, issue(t, theirs, Identity{Node, "n1"}))
	// It trusts our CA, and shows a certificate of its own.
	both := issue(t, theirs, Identity{Node, "both"})
	bundle, err := os.ReadFile(filepath.Join(ours.dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	own, err := os.ReadFile(both.CA)
	if err != nil {
		t.Fatal(err)
	}
	both.CA = filepath.Join(t.TempDir(), "both.pem")
	if err := os.WriteFile(both.CA, append(own, bundle...), 0o600); err != nil {
		t.Fatal(err)
	}
	sly := load(t, both)
	host := Expected{Role: Node, Host: "127.0.0.1"}
	nobody := n1.Client(host)
	nobody.Certificates = nil
	for _, c := range []struct {
		name           string
		client, server *tls.Config
		ok             bool
	}{
		{"two nodes", n1.Client(host), n2.Server(Node), true},
		{"by name", n1.Client(Expected{Role: Node, Name: "n2"}), n2.Server(Node), true},
		{"by name, whatever the host", n1.Client(Expected{Role: Node, Name: "n2", Host: "elsewhere"}), n2.Server(Node), true},
		{"a worker where any role may come", w.Client(host), n2.Server(), true},
		{"a worker where only nodes may", w.Client(host), n2.Server(Node), false},
		{"no certificate", nobody, n2.Server(), false},
		{"another CA's server", n1.Client(host), stranger.Server(), false},
		{"another CA's client that trusts ours", sly.Client(host), n2.Server(), false},
		{"another CA's server that trusts ours", n1.Client(host), sly.Server(), false},
		{"another host", n1.Client(Expected{Role: Node, Host: "127.0.0.9"}), n2.Server(), false},
		{"another role", n1.Client(Expected{Role: Worker, Host: "127.0.0.1"}), n2.Server(), false},
		{"another name", n1.Client(Expected{Role: Node, Name: "n3"}), n2.Server(), false},
		{"neither host nor name", n1.Client(Expected{Role: Node}), n2.Server(), false},
	} {
		if err := talk(t, c.client, c.server); (err == nil) != c.ok {
			t.Errorf("%s: %v", c.name, err)
		}
	}
	old := n1.Client(host)
	old.MaxVersion, old.MinVersion = tls.VersionTLS12, tls.VersionTLS12
	if err := talk(t, old, n2.Server()); err == nil {
		t.Error("TLS 1.2 was spoken")
	}
}

// TestExpiredIsNobody lets a certificate expire in use: the next connection fails on either side.
func TestExpiredIsNobody(t *testing.T) {
	ours := newAuthority(t)
	good, late := load(t, issue(t, ours, Identity{Node, "n1"})), load(t, issue(t, ours, Identity{Node, "late"}))
	expired := late.Client(Expected{Role: Node, Host: "127.0.0.1"})
	expired.Certificates = []tls.Certificate{pairOf(t, issueUntil(t, ours, Identity{Node, "late"}, time.Now().Add(-time.Minute)))}
	if err := talk(t, expired, good.Server()); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired client: %v", err)
	}
	server := late.Server()
	server.Certificates = expired.Certificates
	if err := talk(t, good.Client(Expected{Role: Node, Host: "127.0.0.1"}), server); err == nil || !strings.Contains(err.Error(), "expired") {
		t.Errorf("an expired server: %v", err)
	}
}

func TestUnusableFilesAreRefused(t *testing.T) {
	ours := newAuthority(t)
	good := issue(t, ours, Identity{Node, "good"})
	uris := func(texts ...string) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			c.URIs = nil
			for _, text := range texts {
				u, err := url.Parse(text)
				if err != nil {
					t.Fatal(err)
				}
				c.URIs = append(c.URIs, u)
			}
		}
	}
	for _, c := range []struct {
		files Files
		want  string
	}{
		{Files{Cert: filepath.Join(ours.dir, "none"), Key: good.Key, CA: good.CA}, "no such file"},
		{Files{Cert: good.Cert, Key: good.Key, CA: good.Key}, "holds none"},
		{Files{Cert: good.Cert, Key: issue(t, ours, Identity{Node, "k"}).Key, CA: good.CA}, "does not match"},
		{Files{Cert: good.Cert, Key: good.Key, CA: filepath.Join(newAuthority(t).dir, "ca.pem")}, "unknown authority"},
		{issueUntil(t, ours, Identity{Node, "old"}, time.Now().Add(-time.Minute)), "expired"},
		{spoil(t, ours, "server", func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }), "both server and client"},
		{spoil(t, ours, "none", uris()), "names no role"},
		{spoil(t, ours, "two", uris("quire://cluster/node/a", "quire://cluster/operator/a")), "names no role"},
		{spoil(t, ours, "realm", uris("quire://other/node/a")), "names no role"},
		{spoil(t, ours, "web", uris("https://cluster/node/a")), "names no role"},
		{spoil(t, ours, "role", uris("quire://cluster/king/a")), `"king" is not a role`},
		{spoil(t, ours, "nameless", uris("quire://cluster/node/")), "0 bytes"},
	} {
		if _, err := Load(c.files, func(error) {}); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v; want %q in it", err, c.want)
		}
	}
	if _, err := Load(spoil(t, ours, "foreign", uris("quire://cluster/node/a%2Fb", "https://example.com/x")), func(error) {}); err != nil {
		t.Errorf("beside a URI of somebody else's: %v", err)
	}
}

// TestNewFilesAreTakenUp rotates everything while the process runs; what is broken on the way, or
// another's, is not used.
func TestNewFilesAreTakenUp(t *testing.T) {
	ours := newAuthority(t)
	files := issue(t, ours, Identity{Node, "n1"})
	first := pairOf(t, files).Leaf.SerialNumber
	var warned []string
	c, err := Load(files, func(err error) { warned = append(warned, err.Error()) })
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		c.checked = time.Time{} // A second has passed.
		cert, _ := c.current()
		return cert.Leaf.SerialNumber.String()
	}
	if err := os.WriteFile(files.Cert, []byte("half a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != first.String() || len(warned) != 1 {
		t.Errorf("with a broken file the certificate is number %s, not %v; warnings %q", got, first, warned)
	}
	other := issue(t, newAuthority(t), Identity{Operator, "n1"})
	for from, to := range map[string]string{other.Cert: files.Cert, other.Key: files.Key, other.CA: files.CA} {
		copyFile(t, from, to)
	}
	if got := serial(); got != first.String() || len(warned) != 2 || !strings.Contains(warned[1], "this process is node/n1") {
		t.Errorf("with another's certificate it is number %s, not %v; warnings %q", got, first, warned)
	}
	next := newAuthority(t)
	fresh := issue(t, next, Identity{Node, "n1"})
	for from, to := range map[string]string{fresh.Cert: files.Cert, fresh.Key: files.Key, fresh.CA: files.CA} {
		copyFile(t, from, to)
	}
	if got := serial(); got != pairOf(t, fresh).Leaf.SerialNumber.String() || len(warned) != 2 {
		t.Errorf("with new files the certificate is number %s; warnings %q", got, warned)
	}
}

func TestAuthorityGuardsWhatItHas(t *testing.T) {
	a := newAuthority(t)
	if _, err := NewAuthority(a.dir); err == nil || !strings.Contains(err.Error(), "worthless") {
		t.Errorf("a second CA in a folder: %v", err)
	}
	issue(t, a, Identity{Node, "n1"})
	issue(t, a, Identity{Node, "n1"}) // Renewed.
	if _, err := a.Issue(Identity{Gateway, "n1"}, nil, time.Now().Add(time.Hour)); err == nil || !strings.Contains(err.Error(), "unique") {
		t.Errorf("a gateway with a node's name: %v", err)
	}
	for _, id := range []Identity{{Node, ""}, {Node, "ca"}, {Node, "ca-key"}, {Node, "../x"}, {Node, ".."}, {"king", "a"}, {Node, strings.Repeat("n", 129)}} {
		if _, err := a.Issue(id, nil, time.Now().Add(time.Hour)); err == nil {
			t.Errorf("%v was issued", id)
		}
	}
	again, err := OpenAuthority(a.dir)
	if err != nil {
		t.Fatal(err)
	}
	one, two := load(t, issue(t, a, Identity{Node, "one"})), load(t, issue(t, again, Identity{Worker, "two"}))
	if err := talk(t, two.Client(Expected{Role: Node, Name: "one"}), one.Server(Worker)); err != nil {
		t.Errorf("certificates of a CA that was read again: %v", err)
	}
	if _, err := OpenAuthority(t.TempDir()); err == nil || !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a folder without a CA: %v", err)
	}
}

func FuzzIdentity(f *testing.F) {
	for _, text := range []string{"node/n1", "worker/a b/c%", "operator/", "king/x", "/", "gateway/ü"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		id, err := ParseIdentity(text)
		if err != nil {
			return
		}
		u, err := url.Parse(id.URI().String())
		if err != nil {
			t.Fatalf("%v has the URI %s: %v", id, id.URI(), err)
		}
		if back, err := Of(&x509.Certificate{URIs: []*url.URL{u}}); err != nil || back != id {
			t.Errorf("%q, written and read, is %q: %v", id, back, err)
		}
	})
}

func pairOf(t *testing.T, files Files) tls.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	return pair
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o600); err != nil {
		t.Fatal(err)
	}
}
