package main

import (
	"net"
	"time"

	"github.com/spf13/cobra"

	"github.com/quire-serve/quire/scheduler"
	"github.com/quire-serve/quire/transport"
)

// clusterFlags are what a control-plane node needs beside others.
type clusterFlags struct {
	raft, advertiseRaft string
	advertise           string
	join                []string
	expect              int
	stable, dead        time.Duration
	tls                 tlsFlags
}

func (c *clusterFlags) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&c.join, "join", nil, "addresses of the control-plane nodes' ports for the cluster, the same list on every node (default: this node is alone)")
	f.IntVar(&c.expect, "bootstrap-expect", 0, "nodes that form a new cluster together; 0: as many as --join names")
	f.StringVar(&c.raft, "raft", "", "address where the other control-plane nodes reach this one's log, say 10.0.0.1:8003")
	f.StringVar(&c.advertiseRaft, "advertise-raft", "", "address that they are told to use (default: --raft)")
	f.StringVar(&c.advertise, "advertise-cluster", "", "address that nodes, gateways and workers are told to use for --cluster (default: --cluster)")
	f.DurationVar(&c.stable, "stable-after", 10*time.Second, "how long a new node must have been healthy to get a vote")
	f.DurationVar(&c.dead, "dead-after", 10*time.Minute, "silence after which a node is removed, if at least three voters stay")
	c.tls.listenFlags(f)
}

// check finds what is wrong with the flags before anything is opened.
func (c *clusterFlags) check(cluster string) error {
	if err := c.tls.guard("cluster", cluster); err != nil {
		return err
	}
	if c.raft == "" {
		for name, set := range map[string]bool{
			"join": len(c.join) > 0, "bootstrap-expect": c.expect != 0, "advertise-raft": c.advertiseRaft != "",
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
		if err := transport.CheckAddress(address); err != nil {
			return usagef("--join: %w", err)
		}
	}
	if _, _, err := net.SplitHostPort(c.raft); err != nil {
		return usagef("--raft: %q is not host:port: %w", c.raft, err)
	}
	if err := c.tls.guard("raft", c.raft); err != nil {
		return err
	}
	return c.tls.guard("join", c.join...)
}

// apply fills in the scheduler's settings. cluster is what --cluster says, bound where it listens.
func (c *clusterFlags) apply(s *scheduler.Settings, cluster string, bound net.Addr) (err error) {
	s.ControlAdvertise = dialable(bound)
	if c.raft == "" {
		if c.advertise != "" {
			s.ControlAdvertise, err = reachable("cluster", cluster, c.advertise)
		}
		return err
	}
	if s.ControlAdvertise, err = reachable("cluster", cluster, c.advertise); err != nil {
		return err
	}
	if s.RaftAdvertise, err = reachable("raft", c.raft, c.advertiseRaft); err != nil {
		return err
	}
	s.RaftListen, s.Join, s.BootstrapExpect = c.raft, c.join, c.expect
	s.StableAfter, s.DeadAfter = c.stable, c.dead
	return nil
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
