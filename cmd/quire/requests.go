package main

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// requestFilter is what requests have in common, as flags say it.
type requestFilter struct {
	tenant, model, gateway, worker, state string
	olderThan                             time.Duration
	unwatched                             bool
}

// requestStates are the words of --state.
var requestStates = map[string]pb.ExplainResponse_Phase{
	"admitting": pb.ExplainResponse_PHASE_ADMITTING, "waiting": pb.ExplainResponse_PHASE_QUEUED, "running": pb.ExplainResponse_PHASE_RUNNING,
	"lost": pb.ExplainResponse_PHASE_LOST, "ending": pb.ExplainResponse_PHASE_ENDING,
}

func (f *requestFilter) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&f.tenant, "tenant", "", "only this tenant's; --tenant '' are those without one")
	cmd.Flags().StringVar(&f.model, "model", "", "only this model's")
	cmd.Flags().StringVar(&f.gateway, "gateway", "", "only those that stream to this gateway")
	cmd.Flags().StringVar(&f.worker, "worker", "", "only those that run on this worker")
	cmd.Flags().StringVar(&f.state, "state", "", "only those that are admitting, waiting, running, lost or ending")
	cmd.Flags().DurationVar(&f.olderThan, "older-than", 0, "only those that were admitted so long ago")
	cmd.Flags().BoolVar(&f.unwatched, "unwatched", false, "only those whose gateway is away")
}

func (f *requestFilter) toProto(cmd *cobra.Command) (*pb.RequestFilter, error) {
	out := &pb.RequestFilter{Model: f.model, GatewayId: f.gateway, WorkerId: f.worker, AgeMs: f.olderThan.Milliseconds(), Unwatched: f.unwatched}
	if cmd.Flags().Changed("tenant") {
		out.Tenant = &f.tenant
	}
	if f.state != "" {
		phase, ok := requestStates[f.state]
		if !ok {
			return nil, usagef("--state: %q is not one of admitting, waiting, running, lost and ending", f.state)
		}
		out.Phase = phase
	}
	return out, nil
}

// requestRow is a request as JSON shows it.
type requestRow struct {
	ID           string `json:"id"`
	Tenant       string `json:"tenant"`
	Model        string `json:"model"`
	State        string `json:"state"`
	Gateway      string `json:"gateway"`
	Watched      bool   `json:"watched"`
	Worker       string `json:"worker"`
	AgeMS        int64  `json:"age_ms"`
	PromptTokens int32  `json:"prompt_tokens"`
	OutputTokens int64  `json:"output_tokens"`
}

func requestRows(list []*pb.RequestStatus) []requestRow {
	rows := []requestRow{}
	for _, r := range list {
		row := requestRow{
			ID: r.GetId(), Tenant: r.GetTenant(), Model: r.GetModel(), Gateway: r.GetGatewayId(), Watched: r.GetWatched(), Worker: r.GetWorkerId(),
			AgeMS: r.GetAgeMs(), PromptTokens: r.GetPromptTokens(), OutputTokens: r.GetOutputTokens(),
		}
		for word, phase := range requestStates {
			if phase == r.GetPhase() {
				row.State = word
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func newRequestList(o *operator) *cobra.Command {
	var f requestFilter
	var out output
	var after string
	var limit int32
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List requests that have not ended, by id",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			filter, err := f.toProto(cmd)
			if err != nil {
				return err
			}
			if limit < 1 || limit > 1000 {
				return usagef("--limit is %d; it must be 1 to 1000", limit)
			}
			var r *pb.ListRequestsResponse
			err = o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) (err error) {
				r, err = c.ListRequests(ctx, &pb.ListRequestsRequest{Filter: filter, After: after, Limit: limit}, opts...)
				return err
			})
			if err != nil {
				return err
			}
			rows := requestRows(r.GetRequests())
			return out.write(cmd, rows, func() {
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "REQUEST\tTENANT\tMODEL\tSTATE\tGATEWAY\tWORKER\tAGE\tPROMPT\tGENERATED")
				for _, r := range rows {
					gateway := r.Gateway
					if !r.Watched {
						gateway += " (away)"
					}
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%s\t%s\t%v\t%d\t%d\n", r.ID, named(r.Tenant), r.Model, r.State, gateway, r.Worker, milliseconds(r.AgeMS), r.PromptTokens, r.OutputTokens)
				}
				t.Flush()
				if r.GetMore() {
					fmt.Fprintf(cmd.OutOrStdout(), "more: --after %s\n", rows[len(rows)-1].ID)
				}
			})
		},
	}
	f.flags(cmd)
	out.flag(cmd)
	cmd.Flags().StringVar(&after, "after", "", "begin behind this id")
	cmd.Flags().Int32Var(&limit, "limit", 100, "list at most so many, 1 to 1000")
	return cmd
}

func newRequestAbort(o *operator) *cobra.Command {
	var f requestFilter
	var reason string
	cmd := &cobra.Command{
		Use:   "abort [ID...]",
		Short: "End requests, by id or by what they have in common",
		RunE: func(cmd *cobra.Command, args []string) error {
			filter, err := f.toProto(cmd)
			if err != nil {
				return err
			}
			chosen := slices.ContainsFunc([]string{"tenant", "model", "gateway", "worker", "state", "older-than", "unwatched"}, cmd.Flags().Changed)
			if chosen == (len(args) > 0) {
				return usagef("takes IDs, or flags that say which requests instead")
			}
			ask := &pb.AbortRequestsRequest{RequestIds: args, Reason: reason}
			if chosen {
				ask.Filter = filter
			}
			total := 0
			for {
				var r *pb.AbortRequestsResponse
				err := o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) (err error) {
					r, err = c.AbortRequests(ctx, ask, opts...)
					return err
				})
				if err != nil {
					return err
				}
				if total += len(r.GetRequestIds()); !r.GetMore() || len(r.GetRequestIds()) == 0 {
					break
				}
			}
			if len(args) > total {
				return fmt.Errorf("%d of %s have not ended", total, strings.Join(args, ", "))
			}
			return printLine(cmd.OutOrStdout(), fmt.Sprintf("%d requests aborted", total))
		},
	}
	f.flags(cmd)
	cmd.Flags().StringVar(&reason, "reason", "", "what their clients are told")
	return cmd
}
