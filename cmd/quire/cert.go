package main

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
	"strings"
	"time"

	"github.com/spf13/cobra"
)

func newRaftCert() *cobra.Command {
	var dir string
	var days int
	cmd := &cobra.Command{
		Use:   "cert NODE=HOST[,HOST…]…",
		Short: "Make certificates for the nodes' Raft ports, and a CA of their own",
		Long: `Make certificates for --raft-tls-cert, --raft-tls-key and --raft-tls-ca: one for each node, for the
hosts by which the others reach it. The CA in the folder is used if it is there and made if not; its
key, ca-key.pem, belongs on no node.`,
		Example: "  quire raft cert --dir certs n1=10.0.0.1 n2=10.0.0.2 n3=10.0.0.3,n3.example.com",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("quire raft cert needs NODE=HOST, at least once")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if days < 1 {
				return usagef("--days: %d; it must be at least 1", days)
			}
			if err := os.MkdirAll(dir, 0o700); err != nil {
				return err
			}
			ca, err := openCA(dir)
			if err != nil {
				return err
			}
			for _, arg := range args {
				node, hosts, ok := strings.Cut(arg, "=")
				if !ok || node == "" || hosts == "" || node != filepath.Base(node) || node == "ca" {
					return usagef("%q is not NODE=HOST[,HOST…]", arg)
				}
				if err := ca.issue(dir, node, strings.Split(hosts, ","), days); err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, for %s, %d days\n", node, filepath.Join(dir, node+".pem"), hosts, days)
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&dir, "dir", "certs", "folder of the certificates")
	f.IntVar(&days, "days", 365, "how long a node's certificate is valid")
	return cmd
}

// authority signs nodes' certificates.
type authority struct {
	cert *x509.Certificate
	key  any
}

// caYears is how long the CA is valid.
const caYears = 10

// openCA reads DIR/ca.pem and ca-key.pem, or makes them.
func openCA(dir string) (*authority, error) {
	certFile, keyFile := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "ca-key.pem")
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err == nil {
		return &authority{pair.Leaf, pair.PrivateKey}, nil
	}
	_, certErr := os.Stat(certFile)
	_, keyErr := os.Stat(keyFile)
	if !errors.Is(certErr, fs.ErrNotExist) || !errors.Is(keyErr, fs.ErrNotExist) {
		return nil, fmt.Errorf("the CA in %s is not usable: %w", dir, err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template, err := certTemplate("Quire control plane CA")
	if err != nil {
		return nil, err
	}
	template.NotAfter = template.NotBefore.AddDate(caYears, 0, 0)
	template.IsCA, template.BasicConstraintsValid = true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	ca := &authority{template, key}
	return ca, ca.sign(template, &key.PublicKey, key, certFile, keyFile)
}

func (ca *authority) issue(dir, node string, hosts []string, days int) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template, err := certTemplate(node)
	if err != nil {
		return err
	}
	template.NotAfter = time.Now().AddDate(0, 0, days)
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	for _, host := range hosts {
		if ip := net.ParseIP(host); ip != nil {
			template.IPAddresses = append(template.IPAddresses, ip)
		} else {
			template.DNSNames = append(template.DNSNames, host)
		}
	}
	return ca.sign(template, &key.PublicKey, key, filepath.Join(dir, node+".pem"), filepath.Join(dir, node+"-key.pem"))
}

func certTemplate(name string) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	// Clocks of nodes differ a little.
	return &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour)}, nil
}

// sign writes a certificate and its key.
func (ca *authority) sign(template *x509.Certificate, public *ecdsa.PublicKey, key *ecdsa.PrivateKey, certFile, keyFile string) error {
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, public, ca.key)
	if err != nil {
		return err
	}
	encoded, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	if err := os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: encoded}), 0o600); err != nil {
		return err
	}
	return os.WriteFile(certFile, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
}
