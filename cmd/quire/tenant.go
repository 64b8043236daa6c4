package main

import (
	"context"
	"fmt"
	"strconv"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// service calls f with the leader's service for operators.
func (o *operator) service(ctx context.Context, f func(context.Context, pb.OperatorClient, ...grpc.CallOption) error) error {
	return o.onLeaderConn(ctx, func(ctx context.Context, conn grpc.ClientConnInterface, opts ...grpc.CallOption) error {
		return f(ctx, pb.NewOperatorClient(conn), opts...)
	})
}

func newTenant() *cobra.Command {
	var o operator
	cmd := &cobra.Command{
		Use:   "tenant",
		Short: "See and set the limits of tenants",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	o.flags(cmd)
	cmd.AddCommand(newTenantSet(&o), newTenantRemove(&o), newTenantList(&o))
	return cmd
}

func newTenantSet(o *operator) *cobra.Command {
	t := &pb.Tenant{}
	cmd := &cobra.Command{
		Use:   "set NAME",
		Short: "Set all limits of a tenant; one that is not named is none",
		Args:  exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			t.Name = args[0]
			return o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) error {
				_, err := c.SetTenant(ctx, &pb.SetTenantRequest{Tenant: t}, opts...)
				return err
			})
		},
	}
	f := cmd.Flags()
	f.Int64Var(&t.Weight, "weight", 1, "share of the cluster beside other tenants")
	f.Int32Var(&t.MaxRequests, "max-requests", 0, "requests that may run and wait at once, one for each choice (n); 0: any number")
	f.Int64Var(&t.RequestsPerMinute, "requests-per-minute", 0, "requests admitted a minute; 0: any number")
	f.Int64Var(&t.TokensPerMinute, "tokens-per-minute", 0, "prompt tokens and max_tokens of what is admitted a minute; 0: any number")
	return cmd
}

func newTenantRemove(o *operator) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove the limits of a tenant",
		Args:  exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			found := false
			err := o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) error {
				r, err := c.RemoveTenant(ctx, &pb.RemoveTenantRequest{Name: args[0]}, opts...)
				found = r.GetFound()
				return err
			})
			if err == nil && !found {
				return fmt.Errorf("tenant %q has no limits", args[0])
			}
			return err
		},
	}
}

// tenantRow is a tenant as JSON shows it. Limits that are 0 are none.
type tenantRow struct {
	Name              string `json:"name"`
	Weight            int64  `json:"weight"`
	Requests          int64  `json:"requests"`
	MaxRequests       int32  `json:"max_requests"`
	RequestsPerMinute int64  `json:"requests_per_minute"`
	RequestsLeft      int64  `json:"requests_left"`
	TokensPerMinute   int64  `json:"tokens_per_minute"`
	TokensLeft        int64  `json:"tokens_left"`
	Served            int64  `json:"served"`
}

func newTenantList(o *operator) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the tenants that have limits or requests",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			rows := []tenantRow{}
			err := o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) error {
				r, err := c.ListTenants(ctx, &pb.ListTenantsRequest{}, opts...)
				for _, t := range r.GetTenants() {
					rows = append(rows, tenantRow{
						Name: t.GetTenant().GetName(), Weight: max(1, t.GetTenant().GetWeight()),
						Requests: t.GetLive(), MaxRequests: t.GetTenant().GetMaxRequests(),
						RequestsPerMinute: t.GetTenant().GetRequestsPerMinute(), RequestsLeft: t.GetRequestsLeft(),
						TokensPerMinute: t.GetTenant().GetTokensPerMinute(), TokensLeft: t.GetTokensLeft(), Served: t.GetServed(),
					})
				}
				return err
			})
			if err != nil {
				return err
			}
			return out.write(cmd, rows, func() {
				of := func(have, limit int64) string {
					if limit == 0 {
						return "-"
					}
					return fmt.Sprintf("%d/%d", have, limit)
				}
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "NAME\tWEIGHT\tSEQUENCES\tLEFT/MIN\tTOKENS LEFT/MIN\tSERVED")
				for _, r := range rows {
					requests := strconv.FormatInt(r.Requests, 10)
					if r.MaxRequests > 0 {
						requests = of(r.Requests, int64(r.MaxRequests))
					}
					fmt.Fprintf(t, "%s\t%d\t%s\t%s\t%s\t%d\n", named(r.Name), r.Weight, requests,
						of(r.RequestsLeft, r.RequestsPerMinute), of(r.TokensLeft, r.TokensPerMinute), r.Served)
				}
				t.Flush()
			})
		},
	}
	out.flag(cmd)
	return cmd
}

// named is how tables show the tenant of requests that name none.
func named(tenant string) string {
	if tenant == "" {
		return "(none)"
	}
	return tenant
}
