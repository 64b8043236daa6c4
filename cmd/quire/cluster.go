package main

import (
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/quire-serve/quire/scheduler"
	"github.com/quire-serve/quire/scheduler/consensus"
)

// clusterFlags are what a control-plane node needs beside others.
type clusterFlags struct {
	raft, advertiseRaft string
	advertiseGRPC       string
	join                []string
	expect              int
	stable, dead        time.Duration
	tls                 consensus.TLSFiles
	insecure            bool
}

func (c *clusterFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&c.join, "join", nil, "gRPC addresses of the control-plane nodes, the same list on every node (default: this node is alone)")
	f.IntVar(&c.expect, "bootstrap-expect", 0, "nodes that form a new cluster together; 0: as many as --join names")
	f.StringVar(&c.raft, "raft", "", "address where the other control-plane nodes reach this one's log, say 10.0.0.1:8003")
	f.StringVar(&c.advertiseRaft, "advertise-raft", "", "address that they are told to use (default: --raft)")
	f.StringVar(&c.advertiseGRPC, "advertise-grpc", "", "address that nodes, gateways and workers are told to use for --grpc (default: --grpc)")
	f.StringVar(&c.tls.Cert, "raft-tls-cert", "", "this node's certificate for --raft (PEM), read again when it changes")
	f.StringVar(&c.tls.Key, "raft-tls-key", "", "its key (PEM)")
	f.StringVar(&c.tls.CA, "raft-tls-ca", "", "certificates of the CA that signed those of all nodes (PEM)")
	f.BoolVar(&c.insecure, "raft-insecure", false, "let --raft listen beyond this machine without TLS: whoever reaches it can read and change everything")
	f.DurationVar(&c.stable, "stable-after", 10*time.Second, "how long a new node must have been healthy to get a vote")
	f.DurationVar(&c.dead, "dead-after", 10*time.Minute, "silence after which a node is removed, if at least three voters stay")
}

// apply fills in the scheduler's settings. grpcFlag is what --grpc says, bound where it listens.
func (c *clusterFlags) apply(s *scheduler.Settings, grpcFlag string, bound net.Addr) error {
	s.ControlAdvertise = dialable(bound)
	if c.raft == "" {
		for name, set := range map[string]bool{
			"join": len(c.join) > 0, "bootstrap-expect": c.expect != 0, "advertise-raft": c.advertiseRaft != "",
			"raft-tls-cert": c.tls.Cert != "", "raft-tls-key": c.tls.Key != "", "raft-tls-ca": c.tls.CA != "", "raft-insecure": c.insecure,
		} {
			if set {
				return usagef("--%s needs --raft, the address of this node's log", name)
			}
		}
		return nil
	}
	if c.expect < 0 || c.expect > len(c.join) {
		return usagef("--bootstrap-expect: %d nodes, but --join names %d", c.expect, len(c.join))
	}
	for _, address := range c.join {
		if _, _, err := net.SplitHostPort(address); err != nil {
			return usagef("--join: %q is not host:port: %w", address, err)
		}
	}
	var err error
	if s.ControlAdvertise, err = reachable("grpc", grpcFlag, c.advertiseGRPC); err != nil {
		return err
	}
	if s.RaftAdvertise, err = reachable("raft", c.raft, c.advertiseRaft); err != nil {
		return err
	}
	if err := c.checkTLS(); err != nil {
		return err
	}
	if c.tls != (consensus.TLSFiles{}) {
		s.RaftTLS = &c.tls
	}
	s.RaftListen, s.Join, s.BootstrapExpect = c.raft, c.join, c.expect
	s.StableAfter, s.DeadAfter = c.stable, c.dead
	return nil
}

// checkTLS wants all three files or none, and none only where nobody else can reach the port.
func (c *clusterFlags) checkTLS() error {
	for flag, file := range map[string]string{"cert": c.tls.Cert, "key": c.tls.Key, "ca": c.tls.CA} {
		if file == "" && c.tls != (consensus.TLSFiles{}) {
			return usagef("--raft-tls-%s is missing; --raft-tls-cert, --raft-tls-key and --raft-tls-ca go together", flag)
		}
	}
	host, _, err := net.SplitHostPort(c.raft)
	if err != nil {
		return usagef("--raft: %q is not host:port: %w", c.raft, err)
	}
	switch ip := net.ParseIP(host); {
	case c.tls != (consensus.TLSFiles{}) && c.insecure:
		return usagef("--raft-insecure contradicts --raft-tls-cert")
	case c.tls != (consensus.TLSFiles{}), c.insecure, host == "localhost", ip != nil && ip.IsLoopback():
		return nil
	}
	return usagef("--raft %s is reachable from elsewhere and has no TLS: give --raft-tls-cert, --raft-tls-key and --raft-tls-ca (quire raft cert makes them), or --raft-insecure", c.raft)
}

// reachable is the address that others use: the advertised one, or the one to listen on if that
// names a host and a port.
func reachable(flag, listen, advertise string) (string, error) {
	name, address := flag, listen
	if advertise != "" {
		name, address = "advertise-"+flag, advertise
	}
	host, port, err := net.SplitHostPort(address)
	if err != nil {
		return "", usagef("--%s: %q is not host:port: %w", name, address, err)
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() || port == "0" {
		return "", usagef("--%s: others cannot use %q; say with --advertise-%s what they can", name, address, flag)
	}
	return address, nil
}
