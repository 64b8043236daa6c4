package main

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/quire-serve/quire/transport"
	"github.com/quire-serve/quire/trust"
)

// tlsFlags say by which certificates a process knows the others of its cluster, and they it.
type tlsFlags struct {
	files trust.Files
	// insecure allows ports of the cluster that can be reached from elsewhere without certificates.
	insecure bool
}

func (t *tlsFlags) flags(f *pflag.FlagSet) {
	f.StringVar(&t.files.Cert, "tls-cert", "", "certificate of this process within the cluster (PEM; quire tls issue makes them), read again when it changes")
	f.StringVar(&t.files.Key, "tls-key", "", "its key (PEM)")
	f.StringVar(&t.files.CA, "tls-ca", "", "certificates of the CA that signed those of the whole cluster (PEM)")
}

// listenFlags are for processes that have a port of the cluster.
func (t *tlsFlags) listenFlags(f *pflag.FlagSet) {
	t.flags(f)
	f.BoolVar(&t.insecure, "insecure", false, "DANGEROUS: let the cluster's ports be reached from elsewhere, and reach others, without TLS; whoever is on that network can read and change everything")
}

// load reads the certificates; nil without any.
func (t *tlsFlags) load() (*trust.Certificates, error) {
	if t.files == (trust.Files{}) {
		if t.insecure {
			slog.Warn("--insecure: the cluster's ports have no TLS; whoever reaches them can read every prompt and change everything")
		}
		return nil, nil
	}
	for _, f := range []struct{ name, file string }{{"cert", t.files.Cert}, {"key", t.files.Key}, {"ca", t.files.CA}} {
		if f.file == "" {
			return nil, usagef("--tls-%s is missing; --tls-cert, --tls-key and --tls-ca go together", f.name)
		}
	}
	if t.insecure {
		return nil, usagef("--insecure contradicts --tls-cert")
	}
	c, err := trust.Load(t.files, func(err error) { slog.Warn("TLS within the cluster", "error", err) })
	if err != nil {
		return nil, usagef("--tls-cert: %w", err)
	}
	return c, nil
}

// loadAs is load, for a process that must be somebody.
func (t *tlsFlags) loadAs(id trust.Identity) (*trust.Certificates, error) {
	c, err := t.load()
	if err == nil && c != nil && c.Self() != id {
		return nil, usagef("--tls-cert is of %s; this is %s (--id)", c.Self(), id)
	}
	return c, err
}

// guard refuses addresses beyond this machine without certificates.
func (t *tlsFlags) guard(flag string, addresses ...string) error {
	for _, address := range addresses {
		if t.files == (trust.Files{}) && !t.insecure && !transport.Loopback(address) {
			return usagef("--%s: %s is beyond this machine, and without TLS whoever is on the way can read and change everything: give --tls-cert, --tls-key and --tls-ca (quire tls issue makes them), or --insecure on a network where nobody else is", flag, address)
		}
	}
	return nil
}

func newTLS() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:   "tls",
		Short: "Make the certificates by which a cluster's processes know each other",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", "certs", "folder of the CA and the certificates")
	cmd.AddCommand(newTLSCA(&dir), newTLSIssue(&dir))
	return cmd
}

func newTLSCA(dir *string) *cobra.Command {
	return &cobra.Command{
		Use:   "ca",
		Short: "Make a CA for a cluster",
		Long: `Make a CA for a cluster: ca.pem, which every process gets, and ca-key.pem, which signs certificates
and belongs on none of them.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if _, err := trust.NewAuthority(*dir); err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "CA: %s; keep %s where no process of the cluster runs\n", filepath.Join(*dir, "ca.pem"), filepath.Join(*dir, "ca-key.pem"))
			return nil
		},
	}
}

func newTLSIssue(dir *string) *cobra.Command {
	var days int
	cmd := &cobra.Command{
		Use:   "issue ROLE/NAME[=HOST,…]…",
		Short: "Sign certificates with the CA",
		Long: `Sign certificates with the CA of quire tls ca: NAME.pem and NAME-key.pem, for --tls-cert and --tls-key.
ROLE is node, gateway, worker or operator; NAME is the process's --id, an operator's is free. Nodes and
workers need the hosts by which others reach them. A certificate lets its owner do what the role may, in
its own name alone; an operator may do everything.`,
		Example: "  quire tls issue node/n1=10.0.0.1 worker/w1=10.0.0.5,w1.example.com operator/alice",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s needs ROLE/NAME, at least once", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if days < 1 {
				return usagef("--days: %d; it must be at least 1", days)
			}
			ca, err := trust.OpenAuthority(*dir)
			if err != nil {
				return fmt.Errorf("%w (quire tls ca makes one)", err)
			}
			for _, arg := range args {
				who, at, _ := strings.Cut(arg, "=")
				id, err := trust.ParseIdentity(who)
				if err != nil {
					return usagef("%q: %w", arg, err)
				}
				hosts := strings.FieldsFunc(at, func(r rune) bool { return r == ',' })
				if len(hosts) == 0 && (id.Role == trust.Node || id.Role == trust.Worker) {
					return usagef("%q: others reach a %s by its host: %s=HOST[,HOST…]", arg, id.Role, who)
				}
				files, err := ca.Issue(id, hosts, time.Now().AddDate(0, 0, days))
				if err != nil {
					return err
				}
				fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %d days\n", id, files.Cert, days)
			}
			return nil
		},
	}
	cmd.Flags().IntVar(&days, "days", 365, "how long the certificates are valid")
	return cmd
}
