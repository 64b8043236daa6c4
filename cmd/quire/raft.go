package main

import (
	"context"
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func newRaft() *cobra.Command {
	var o operator
	cmd := &cobra.Command{
		Use:   "raft",
		Short: "See and change the control-plane nodes",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	o.flags(cmd)
	cmd.AddCommand(newRaftPeers(&o), newRaftHealth(&o), newRaftTransfer(&o), newRaftRemove(&o))
	return cmd
}

// peer is a member as JSON shows it.
type peer struct {
	ID      string `json:"id"`
	Raft    string `json:"raft_address"`
	Control string `json:"control_address"`
	Voter   bool   `json:"voter"`
	Leader  bool   `json:"leader"`
	Version string `json:"version"`
}

func newPeer(m *pb.Member) peer {
	return peer{
		ID: m.GetId(), Raft: m.GetRaftAddress(), Control: m.GetControlAddress(),
		Voter: m.GetSuffrage() == pb.Suffrage_SUFFRAGE_VOTER, Leader: m.GetLeader(), Version: m.GetVersion(),
	}
}

func (p peer) role() string {
	switch {
	case p.Leader:
		return "leader"
	case p.Voter:
		return "voter"
	}
	return "non-voter"
}

func newRaftPeers(o *operator) *cobra.Command {
	var out output
	var local bool
	cmd := &cobra.Command{
		Use:   "peers",
		Short: "List the control-plane nodes",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var members []*pb.Member
			if local {
				d, err := o.describeAny(cmd.Context())
				if err != nil {
					return err
				}
				members = d.GetMembers()
			} else {
				m, err := o.members(cmd.Context())
				if err != nil {
					return fmt.Errorf("%w (--local shows what one node knows)", err)
				}
				members = m.GetMembers()
			}
			rows := []peer{}
			for _, m := range members {
				rows = append(rows, newPeer(m))
			}
			return out.write(cmd, rows, func() {
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "ID\tROLE\tRAFT\tCLUSTER\tVERSION")
				for _, r := range rows {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\n", r.ID, r.role(), r.Raft, r.Control, r.Version)
				}
				t.Flush()
			})
		},
	}
	cmd.Flags().BoolVar(&local, "local", false, "what the asked node knows, be it out of date; needs no leader")
	out.flag(cmd)
	return cmd
}

func (o *operator) members(ctx context.Context) (out *pb.MembersResponse, err error) {
	err = o.onLeader(ctx, func(ctx context.Context, c pb.ClusterClient, opts ...grpc.CallOption) (err error) {
		out, err = c.Members(ctx, &pb.MembersRequest{}, opts...)
		return err
	})
	return out, err
}

// vitals is a member's health as JSON shows it.
type vitals struct {
	peer
	Healthy bool `json:"healthy"`
	// SinceSeconds is how long Healthy has been so, ContactMS how long ago the node heard of the
	// leader; -1: it does not answer.
	SinceSeconds float64 `json:"since_seconds"`
	ContactMS    int64   `json:"last_contact_ms"`
	LastTerm     uint64  `json:"last_term"`
	LastIndex    uint64  `json:"last_index"`
	AppliedIndex uint64  `json:"applied_index"`
	ChainHash    string  `json:"chain_hash"`
	// Problem is why the node takes no part any more.
	Problem string `json:"problem,omitempty"`
}

var errUnhealthy = errors.New("the cluster is not healthy")

func newRaftHealth(o *operator) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "health",
		Short: "Show how the control-plane nodes are; fails if one is not healthy",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			m, err := o.members(cmd.Context())
			if err != nil {
				return err
			}
			all := struct {
				Healthy   bool     `json:"healthy"`
				Tolerance int32    `json:"failure_tolerance"`
				Term      uint64   `json:"term"`
				Commit    uint64   `json:"commit_index"`
				Nodes     []vitals `json:"nodes"`
			}{m.GetHealthy(), m.GetFailureTolerance(), m.GetTerm(), m.GetCommitIndex(), nil}
			for _, n := range m.GetMembers() {
				v := vitals{
					peer: newPeer(n), Healthy: n.GetHealthy(), ContactMS: n.GetLastContactMs(), LastTerm: n.GetLastTerm(),
					LastIndex: n.GetLastIndex(), AppliedIndex: n.GetAppliedIndex(), ChainHash: fmt.Sprintf("%016x", n.GetChainHash()),
					Problem: n.GetProblem(),
				}
				if ms := n.GetStableSinceUnixMs(); ms != 0 {
					v.SinceSeconds = max(0, time.Since(time.UnixMilli(ms)).Seconds())
				}
				all.Nodes = append(all.Nodes, v)
			}
			err = out.write(cmd, all, func() {
				fmt.Fprintf(cmd.OutOrStdout(), "term %d, committed %d, may lose %d voters\n\n", all.Term, all.Commit, all.Tolerance)
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "ID\tROLE\tHEALTHY\tFOR\tCONTACT\tLAST\tAPPLIED\tCHAIN HASH")
				for _, v := range all.Nodes {
					contact := "never"
					if v.ContactMS >= 0 {
						contact = (time.Duration(v.ContactMS) * time.Millisecond).String()
					}
					fmt.Fprintf(t, "%s\t%s\t%t\t%v\t%s\t%d\t%d\t%s\n", v.ID, v.role(), v.Healthy,
						time.Duration(v.SinceSeconds*float64(time.Second)).Round(time.Second), contact, v.LastIndex, v.AppliedIndex, v.ChainHash)
				}
				t.Flush()
				for _, v := range all.Nodes {
					if v.Problem != "" {
						fmt.Fprintf(cmd.OutOrStdout(), "\n%s takes no part any more: %s\n", v.ID, v.Problem)
					}
				}
			})
			if err == nil && !all.Healthy {
				return errUnhealthy
			}
			return err
		},
	}
	out.flag(cmd)
	return cmd
}

func newRaftTransfer(o *operator) *cobra.Command {
	var to string
	cmd := &cobra.Command{
		Use:   "transfer",
		Short: "Let another control-plane node lead",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var leader string
			err := o.onLeader(cmd.Context(), func(ctx context.Context, c pb.ClusterClient, opts ...grpc.CallOption) error {
				r, err := c.Transfer(ctx, &pb.TransferRequest{To: to}, opts...)
				leader = r.GetLeaderId()
				return err
			})
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s leads\n", leader)
			}
			return err
		},
	}
	cmd.Flags().StringVar(&to, "to", "", "node that shall lead (default: the one least behind)")
	return cmd
}

func newRaftRemove(o *operator) *cobra.Command {
	return &cobra.Command{
		Use:   "remove ID",
		Short: "Take a stopped control-plane node out of the cluster",
		Args:  exactArgs("ID"),
		RunE: func(cmd *cobra.Command, args []string) error {
			err := o.onLeader(cmd.Context(), func(ctx context.Context, c pb.ClusterClient, opts ...grpc.CallOption) error {
				_, err := c.Remove(ctx, &pb.RemoveRequest{Id: args[0]}, opts...)
				return err
			})
			if err == nil {
				fmt.Fprintf(cmd.OutOrStdout(), "%s is no member any more\n", args[0])
			}
			return err
		},
	}
}
