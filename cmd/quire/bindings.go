package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// bindingRow is what a model's name stands for, as JSON shows it.
type bindingRow struct {
	Model      string `json:"model"`
	Digest     string `json:"digest"`
	Arithmetic string `json:"arithmetic"`
	Workers    int32  `json:"workers"`
	Requests   int32  `json:"requests"`
	// Gateways whose copy is another, or that have none.
	OtherCopies []string `json:"other_copies"`
	NoCopies    []string `json:"no_copies"`
}

func newPoolModels(o *operator) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "models",
		Short: "List what models' names stand for",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var r *pb.ListBindingsResponse
			err := o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) (err error) {
				r, err = c.ListBindings(ctx, &pb.ListBindingsRequest{}, opts...)
				return err
			})
			if err != nil {
				return err
			}
			rows := []bindingRow{}
			for _, b := range r.GetBindings() {
				rows = append(rows, bindingRow{
					Model: b.GetModel().GetName(), Digest: b.GetModel().GetDigest(), Arithmetic: b.GetModel().GetArithmetic(), Workers: b.GetWorkers(), Requests: b.GetRequests(),
					OtherCopies: append([]string{}, b.GetOtherCopies()...), NoCopies: append([]string{}, b.GetNoCopies()...),
				})
			}
			return out.write(cmd, rows, func() {
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "MODEL\tDIGEST\tARITHMETIC\tWORKERS\tREQUESTS\tOTHER COPIES\tNO COPIES")
				for _, b := range rows {
					fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%d\t%s\t%s\n", b.Model, b.Digest, b.Arithmetic, b.Workers, b.Requests, strings.Join(b.OtherCopies, ","), strings.Join(b.NoCopies, ","))
				}
				t.Flush()
			})
		},
	}
	out.flag(cmd)
	return cmd
}

func newPoolBind(o *operator) *cobra.Command {
	m := &pb.ModelIdentity{}
	cmd := &cobra.Command{
		Use:   "bind MODEL --digest DIGEST",
		Short: "Say what a model's name stands for, while no worker and no unfinished request has it",
		Args:  exactArgs("MODEL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if m.Digest == "" {
				return usagef("--digest is needed: what the worker that was refused says of its weights")
			}
			m.Name = args[0]
			return o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) error {
				_, err := c.BindModel(ctx, &pb.BindModelRequest{Model: m}, opts...)
				return err
			})
		},
	}
	cmd.Flags().StringVar(&m.Digest, "digest", "", "digest of the weights, as quire pool models shows it")
	cmd.Flags().StringVar(&m.Arithmetic, "arithmetic", "", "what workers compute with, as quire pool models shows it")
	return cmd
}

func newPoolRelease(o *operator) *cobra.Command {
	return &cobra.Command{
		Use:   "release MODEL",
		Short: "Free a model's name: it stands for what the next worker with it serves",
		Args:  exactArgs("MODEL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) error {
				_, err := c.ReleaseModel(ctx, &pb.ReleaseModelRequest{Name: args[0]}, opts...)
				return err
			})
		},
	}
}
