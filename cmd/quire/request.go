package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func newRequest() *cobra.Command {
	var o operator
	cmd := &cobra.Command{
		Use:   "request",
		Short: "See requests and what they wait for, and end them",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	o.flags(cmd)
	cmd.AddCommand(newRequestExplain(&o), newRequestList(&o), newRequestAbort(&o))
	return cmd
}

func newRequestExplain(o *operator) *cobra.Command {
	var asJSON, summary bool
	cmd := &cobra.Command{
		Use:   "explain ID",
		Short: "Say where a request is, and why it waits",
		Long: `Say where a request is. If it waits: its place in the queue, what blocks it, how each worker scored,
and what would let it start. With --summary: the same of the whole queue, without an ID.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if summary != (len(args) == 0) {
				return usagef("takes an ID, or --summary instead")
			}
			var found proto.Message
			err := o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) (err error) {
				if summary {
					found, err = c.Summary(ctx, &pb.SummaryRequest{}, opts...)
				} else {
					found, err = c.Explain(ctx, &pb.ExplainRequest{RequestId: args[0]}, opts...)
				}
				return err
			})
			if err != nil {
				return err
			}
			if asJSON {
				text, err := protojson.MarshalOptions{Multiline: true, UseProtoNames: true, EmitUnpopulated: true}.Marshal(found)
				return errors.Join(err, printLine(cmd.OutOrStdout(), string(text)))
			}
			switch found := found.(type) {
			case *pb.SummaryResponse:
				return printSummary(cmd.OutOrStdout(), found)
			case *pb.ExplainResponse:
				return printExplanation(cmd.OutOrStdout(), found)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&summary, "summary", false, "sum the whole queue up")
	return cmd
}

func printLine(w io.Writer, line string) error {
	_, err := fmt.Fprintln(w, line)
	return err
}

// phases are the words for where a request is.
var phases = map[pb.ExplainResponse_Phase]string{
	pb.ExplainResponse_PHASE_ADMITTING: "being admitted",
	pb.ExplainResponse_PHASE_QUEUED:    "waiting",
	pb.ExplainResponse_PHASE_RUNNING:   "running",
	pb.ExplainResponse_PHASE_LOST:      "lost with its worker, about to go on elsewhere",
	pb.ExplainResponse_PHASE_ENDING:    "ending",
	pb.ExplainResponse_PHASE_ENDED:     "ended",
}

func printExplanation(w io.Writer, r *pb.ExplainResponse) error {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	line := func(name, format string, args ...any) { fmt.Fprintf(t, name+"\t"+format+"\n", args...) }
	line("state", "%s", phases[r.GetPhase()])
	line("model", "%s", r.GetModel())
	line("tenant", "%s", named(r.GetTenant()))
	line("tokens", "%d in the prompt, %d generated", r.GetPromptTokens(), r.GetOutputTokens())
	if r.GetWorkerId() != "" {
		line("worker", "%s, dispatch %d of term %d", r.GetWorkerId(), r.GetIndex(), r.GetTerm())
	}
	if r.GetPhase() == pb.ExplainResponse_PHASE_ENDED {
		line("end", "%s %s", strings.ToLower(strings.TrimPrefix(r.GetFinishReason().String(), "FINISH_REASON_")), r.GetError())
	}
	why := r.GetWaiting()
	if why == nil {
		return t.Flush()
	}
	line("waits", "%v", milliseconds(why.GetWaitMs()))
	if worker := why.GetReservedWorker(); worker != "" {
		line("reserved", "worker %s is kept for it, which has room in %v at the latest", worker, milliseconds(why.GetReservedMs()))
	}
	line("place", "%d in the model's queue, %d in its class, %d of its tenant there", why.GetPosition(), why.GetClassPosition(), why.GetTenantPosition())
	line("share", "%d tokens above the tenant served last, weight %d", why.GetTenantServed(), why.GetTenantWeight())
	if why.GetHeldMs() > 0 {
		line("held", "%v for a worker that holds its prefix", milliseconds(why.GetHeldMs()))
	}
	line("blocked by", "%s", orNothing(why.GetBlocked()))
	line("starts with", "%s", why.GetUnblock())
	if err := t.Flush(); err != nil || len(why.GetWorkers()) == 0 {
		return err
	}
	fmt.Fprintf(w, "\n")
	t = tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "WORKER\tSCORE (%s)\tFIRST TOKEN\tPREFIX DEV/HOST/DISK\tCOMPUTES\tPENDING\tTOKENS/S\tSPEED\tHEARD\tNEEDS\n", why.GetPolicy())
	for _, k := range why.GetWorkers() {
		score := "-"
		if k.GetRated() {
			score = fmt.Sprint(k.GetScore())
		}
		fmt.Fprintf(t, "%s\t%s\t%v\t%d/%d/%d\t%d\t%d\t%d\t%d%%\t%v\t%s\n", k.GetWorkerId(), score,
			(time.Duration(k.GetPredictedUs()) * time.Microsecond).Round(100*time.Microsecond),
			k.GetDeviceTokens(), k.GetHostTokens(), k.GetDiskTokens(), k.GetWorkTokens(), k.GetPendingTokens(), k.GetTokensPerS(),
			k.GetDeratePermille()/10, milliseconds(k.GetAgeMs()), orNothing([]string{k.GetUnblock()}))
	}
	return t.Flush()
}

func printSummary(w io.Writer, s *pb.SummaryResponse) error {
	fmt.Fprintf(w, "%d requests wait with %d prompt tokens in %d bytes, the oldest for %v; %d run on %d workers\n",
		s.GetAll().GetRequests(), s.GetAll().GetPromptTokens(), s.GetBytes(), milliseconds(s.GetAll().GetOldestWaitMs()), s.GetRunning(), s.GetWorkers())
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	if s.GetAll().GetRequests() > 0 {
		fmt.Fprintf(w, "%d would fit and wait for their turn, %d for a worker with their prefix; %d have no worker\n\n", s.GetReady(), s.GetHeld(), s.GetUnserved())
		fmt.Fprintln(t, "BY\tNAME\tREQUESTS\tPROMPT TOKENS\tOLDEST")
		for _, group := range []struct {
			by     string
			counts []*pb.QueueCount
		}{{"blocked by", s.GetBlocked()}, {"model", s.GetModels()}, {"tenant", s.GetTenants()}} {
			for _, c := range group.counts {
				fmt.Fprintf(t, "%s\t%s\t%d\t%d\t%v\n", group.by, named(c.GetName()), c.GetRequests(), c.GetPromptTokens(), milliseconds(c.GetOldestWaitMs()))
			}
		}
		if err := t.Flush(); err != nil {
			return err
		}
	}
	if len(s.GetRefusedByModel()) == 0 {
		return nil
	}
	fmt.Fprintln(w, "\nRefused since the leader's process started, or ended before a worker began them:")
	fmt.Fprintln(t, "BY\tNAME\tREASON\tREQUESTS")
	for _, group := range []struct {
		by     string
		counts []*pb.Refused
	}{{"model", s.GetRefusedByModel()}, {"tenant", s.GetRefusedByTenant()}} {
		for _, c := range group.counts {
			fmt.Fprintf(t, "%s\t%s\t%s\t%d\n", group.by, named(c.GetName()), c.GetReason(), c.GetRequests())
		}
	}
	return t.Flush()
}

func milliseconds(ms int64) time.Duration { return time.Duration(ms) * time.Millisecond }

func orNothing(words []string) string {
	if text := strings.Join(words, ", "); text != "" {
		return text
	}
	return "nothing"
}
