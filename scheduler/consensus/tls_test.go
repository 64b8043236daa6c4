package consensus

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// testCA signs certificates for tests.
type testCA struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	file string
}

func newCA(t *testing.T, dir, name string) *testCA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &testCA{t: t, key: key, file: filepath.Join(dir, name), cert: &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}}
	ca.write(ca.file, "CERTIFICATE", ca.sign(ca.cert, &key.PublicKey))
	return ca
}

func (ca *testCA) sign(template *x509.Certificate, public *ecdsa.PublicKey) []byte {
	ca.t.Helper()
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	return der
}

func (ca *testCA) write(file, kind string, der []byte) {
	ca.t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		ca.t.Fatal(err)
	}
}

// issue writes a certificate for 127.0.0.1; change may spoil it.
func (ca *testCA) issue(file string, serial int64, change func(*x509.Certificate)) TLSFiles {
	ca.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	if change != nil {
		change(template)
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		ca.t.Fatal(err)
	}
	files := TLSFiles{Cert: file, Key: file + ".key", CA: ca.file}
	ca.write(files.Key, "PRIVATE KEY", encoded)
	ca.write(files.Cert, "CERTIFICATE", ca.sign(template, &key.PublicKey))
	return files
}

func listenTest(t *testing.T, files TLSFiles) raft.StreamLayer {
	t.Helper()
	layer, err := ListenTLS("127.0.0.1:0", "", files, func(error) {})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = layer.Close() })
	return layer
}

// talk sends a byte from one layer to the other and says whether it came through both ways.
func talk(t *testing.T, from, to raft.StreamLayer) error {
	t.Helper()
	echoed := make(chan struct{})
	go func() {
		defer close(echoed)
		conn, err := to.Accept()
		if err != nil {
			return
		}
		_, _ = io.CopyN(conn, conn, 1)
		_ = conn.Close()
	}()
	conn, err := from.Dial(raft.ServerAddress(to.Addr().String()), time.Second)
	if err == nil {
		defer func() { _ = conn.Close() }()
		if _, err = conn.Write([]byte{7}); err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
	}
	<-echoed
	return err
}

func TestTLSVerifiesBothSides(t *testing.T) {
	dir := t.TempDir()
	ours, theirs := newCA(t, dir, "ours"), newCA(t, dir, "theirs")
	a := listenTest(t, ours.issue(filepath.Join(dir, "a"), 2, nil))
	b := listenTest(t, ours.issue(filepath.Join(dir, "b"), 3, nil))
	if err := talk(t, a, b); err != nil {
		t.Errorf("two nodes of one CA: %v", err)
	}

	stranger := theirs.issue(filepath.Join(dir, "s"), 4, nil)
	s := listenTest(t, stranger)
	if err := talk(t, a, s); err == nil {
		t.Error("a node spoke to one of another CA")
	}
	// It trusts our CA and still shows a certificate of its own.
	files := TLSFiles{Cert: stranger.Cert, Key: stranger.Key, CA: filepath.Join(dir, "both")}
	var both []byte
	for _, ca := range []*testCA{ours, theirs} {
		data, err := os.ReadFile(ca.file)
		if err != nil {
			t.Fatal(err)
		}
		both = append(both, data...)
	}
	if err := os.WriteFile(files.CA, both, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := talk(t, listenTest(t, files), b); err == nil {
		t.Error("a node listened to one of another CA")
	}
	elsewhere := ours.issue(filepath.Join(dir, "e"), 5, func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 9)} })
	if err := talk(t, a, listenTest(t, elsewhere)); err == nil || !strings.Contains(err.Error(), "127.0.0.1") {
		t.Errorf("a certificate for another host: %v", err)
	}
}

func TestTLSRefusesUnusableFiles(t *testing.T) {
	dir := t.TempDir()
	ca := newCA(t, dir, "ca")
	good := ca.issue(filepath.Join(dir, "good"), 2, nil)
	for want, files := range map[string]TLSFiles{
		"no such file":                   {Cert: filepath.Join(dir, "none"), Key: good.Key, CA: good.CA},
		"holds none":                     {Cert: good.Cert, Key: good.Key, CA: good.Key},
		"does not match":                 {Cert: good.Cert, Key: ca.issue(filepath.Join(dir, "k"), 3, nil).Key, CA: good.CA},
		"unknown authority":              {Cert: good.Cert, Key: good.Key, CA: newCA(t, dir, "other").file},
		"expired":                        ca.issue(filepath.Join(dir, "old"), 4, func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }),
		"both server and client authent": ca.issue(filepath.Join(dir, "server"), 5, func(c *x509.Certificate) { c.ExtKeyUsage = c.ExtKeyUsage[:1] }),
	} {
		layer, err := ListenTLS("127.0.0.1:0", "", files, func(error) {})
		if err == nil {
			_ = layer.Close()
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}

// TestTLSTakesUpNewFiles rotates everything while the port is open; what is broken on the way is not
// used.
func TestTLSTakesUpNewFiles(t *testing.T) {
	dir := t.TempDir()
	ca := newCA(t, dir, "ca")
	files := ca.issue(filepath.Join(dir, "a"), 2, nil)
	var warned []string
	layer, err := ListenTLS("127.0.0.1:0", "", files, func(err error) { warned = append(warned, err.Error()) })
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = layer.Close() }()
	material := layer.(*tlsLayer).material
	serial := func() int64 {
		material.checked = time.Time{} // A second has passed.
		cert, _ := material.current()
		return cert.Leaf.SerialNumber.Int64()
	}
	if err := os.WriteFile(files.Cert, []byte("half a certificate"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := serial(); got != 2 || len(warned) != 1 {
		t.Errorf("with a broken file the certificate is number %d, warnings %q", got, warned)
	}
	next := newCA(t, dir, "ca") // In the same file.
	next.issue(files.Cert, 1<<40, nil)
	if got := serial(); got != 1<<40 || len(warned) != 1 {
		t.Errorf("with new files the certificate is number %d, warnings %q", got, warned)
	}
	if config := material.client("h"); config.ServerName != "h" || config.MinVersion != tls.VersionTLS13 {
		t.Errorf("client configuration %+v", config)
	}
}
