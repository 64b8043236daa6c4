package trust

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"
)

const (
	// caYears is how long a new CA is valid.
	caYears = 10
	// backdate allows for hosts whose clocks are behind.
	backdate = time.Hour
)

// Authority signs certificates: a CA with its key in a folder, as ca.pem and ca-key.pem.
type Authority struct {
	dir  string
	cert *x509.Certificate
	key  any
}

// NewAuthority makes a CA in a folder that has none.
func NewAuthority(dir string) (*Authority, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	for _, name := range []string{"ca.pem", "ca-key.pem"} {
		if _, err := os.Stat(filepath.Join(dir, name)); !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("%s is there already; a new CA would make every certificate of the old one worthless", filepath.Join(dir, name))
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := certTemplate("Quire cluster CA")
	if err != nil {
		return nil, err
	}
	template.NotAfter = template.NotBefore.AddDate(caYears, 0, 0)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	a := &Authority{dir, template, key}
	return a, a.sign(template, &key.PublicKey, key, "ca")
}

// OpenAuthority reads a folder's CA.
func OpenAuthority(dir string) (*Authority, error) {
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem"))
	if err != nil {
		return nil, fmt.Errorf("the CA in %s: %w", dir, err)
	}
	return &Authority{dir, pair.Leaf, pair.PrivateKey}, nil
}

// Issue writes a certificate and its key, NAME.pem and NAME-key.pem, in the place of an older one of the
// same identity. It is valid for the hosts, which are names or addresses, and until the given time.
func (a *Authority) Issue(id Identity, hosts []string, until time.Time) (Files, error) {
	if err := id.validate(); err != nil {
		return Files{}, err
	}
	if id.Name != filepath.Base(id.Name) || id.Name == "." || id.Name == ".." || id.Name == "ca" || id.Name == "ca-key" {
		return Files{}, fmt.Errorf("%q cannot be the name of a file", id.Name)
	}
	files := Files{Cert: filepath.Join(a.dir, id.Name+".pem"), Key: filepath.Join(a.dir, id.Name+"-key.pem"), CA: filepath.Join(a.dir, "ca.pem")}
	// A gateway speaks under its name, and so does a node's: two of one name would read each other's streams.
	if old, err := tls.LoadX509KeyPair(files.Cert, files.Key); err == nil {
		if was, err := Of(old.Leaf); err == nil && was != id {
			return Files{}, fmt.Errorf("%s is of %s; names are unique over all roles", files.Cert, was)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return Files{}, err
	}
	template, err := certTemplate(id.String())
	if err != nil {
		return Files{}, err
	}
	template.NotAfter = until
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	template.URIs = append(template.URIs, id.URI())
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return files, a.sign(template, &key.PublicKey, key, id.Name)
}

func certTemplate(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-backdate)}, nil
}

func (a *Authority) sign(template *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey, name string) error {
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, public, a.key)
	if err != nil {
		return err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(a.dir, name+"-key.pem"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(a.dir, name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}
