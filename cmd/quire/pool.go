package main

import (
	"context"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/state"
)

func newPool() *cobra.Command {
	var o operator
	cmd := &cobra.Command{
		Use:   "pool",
		Short: "See pools of workers, and keep work from them",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	o.flags(cmd)
	cmd.AddCommand(newPoolList(&o), newPoolWorkers(&o), newPoolCreate(&o), newPoolRemove(&o), newPoolCordon(&o, false), newPoolCordon(&o, true), newPoolDrain(&o), newPoolModels(&o), newPoolBind(&o), newPoolRelease(&o))
	return cmd
}

// target is a pool, or one worker.
type target struct{ pool, worker string }

func (t *target) flag(cmd *cobra.Command) {
	cmd.Flags().StringVar(&t.worker, "worker", "", "one worker, by its id, in the place of a pool")
}

// take reads the pool's name, unless a worker is named.
func (t *target) take(cmd *cobra.Command, args []string) error {
	if len(args) > 1 || (len(args) == 1) == (t.worker != "") {
		return usagef("%s needs the NAME of a pool or --worker ID, got %d argument(s)", cmd.CommandPath(), len(args))
	}
	if len(args) == 1 {
		t.pool = args[0]
	}
	return nil
}

func newPoolCreate(o *operator) *cobra.Command {
	p := &pb.Pool{}
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a pool before its first worker does",
		Args:  exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			p.Name = args[0]
			return o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) error {
				_, err := c.CreatePool(ctx, &pb.CreatePoolRequest{Pool: p}, opts...)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&p.Cordoned, "cordoned", false, "its workers get nothing until quire pool uncordon")
	return cmd
}

func newPoolRemove(o *operator) *cobra.Command {
	return &cobra.Command{
		Use:   "remove NAME",
		Short: "Remove a pool that has no workers",
		Args:  exactArgs("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) error {
				_, err := c.RemovePool(ctx, &pb.RemovePoolRequest{Name: args[0]}, opts...)
				return err
			})
		},
	}
}

func newPoolCordon(o *operator, lifted bool) *cobra.Command {
	var t target
	cmd := &cobra.Command{Use: "cordon [NAME]", Short: "Give workers nothing new; what runs there goes on", Args: t.take}
	if lifted {
		cmd.Use, cmd.Short = "uncordon [NAME]", "Let new requests come again"
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		return o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) error {
			_, err := c.Cordon(ctx, &pb.CordonRequest{Pool: t.pool, WorkerId: t.worker, Lifted: lifted}, opts...)
			return err
		})
	}
	t.flag(cmd)
	return cmd
}

// drainPoll is how often a drain is looked after.
const drainPoll = 200 * time.Millisecond

func newPoolDrain(o *operator) *cobra.Command {
	var t target
	var force, wait bool
	cmd := &cobra.Command{
		Use:   "drain [NAME]",
		Short: "Cordon workers, and have them hand over what runs and end",
		Args:  t.take,
		RunE: func(cmd *cobra.Command, _ []string) error {
			told := ""
			for {
				var r *pb.DrainResponse
				err := o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) (err error) {
					r, err = c.Drain(ctx, &pb.DrainRequest{Pool: t.pool, WorkerId: t.worker, Force: force}, opts...)
					return err
				})
				if err != nil {
					return err
				}
				force = true // what it would keep from beginning has begun
				if now := fmt.Sprintf("%d workers, %d requests left", r.GetWorkers(), r.GetRequests()); now != told {
					fmt.Fprintln(cmd.OutOrStdout(), now)
					told = now
				}
				if r.GetWorkers() == 0 || !wait {
					return nil
				}
				select {
				case <-cmd.Context().Done():
					return cmd.Context().Err()
				case <-time.After(drainPoll):
				}
			}
		},
	}
	t.flag(cmd)
	cmd.Flags().BoolVar(&force, "force", false, "even if no other worker takes what runs there: it waits for one then")
	cmd.Flags().BoolVar(&wait, "wait", true, "until the workers have ended")
	return cmd
}

// poolRow is a pool as JSON shows it.
type poolRow struct {
	Name        string   `json:"name"`
	Cordoned    bool     `json:"cordoned"`
	Models      []string `json:"models"`
	Workers     int      `json:"workers"`
	InSession   int      `json:"in_session"`
	Running     int32    `json:"running"`
	Waiting     int32    `json:"waiting"`
	FreeBlocks  int32    `json:"free_blocks"`
	TotalBlocks int32    `json:"total_blocks"`
	Devices     int32    `json:"devices"`
	Unhealthy   []string `json:"unhealthy"`
}

// workerRow is a worker as JSON shows it.
type workerRow struct {
	ID          string   `json:"id"`
	Pool        string   `json:"pool"`
	Model       string   `json:"model"`
	Address     string   `json:"address"`
	Device      string   `json:"device"`
	State       string   `json:"state"`
	Running     int32    `json:"running"`
	Waiting     int32    `json:"waiting"`
	FreeBlocks  int32    `json:"free_blocks"`
	TotalBlocks int32    `json:"total_blocks"`
	Requests    int32    `json:"requests"`
	Unhealthy   []string `json:"unhealthy"`
}

func (o *operator) workers(cmd *cobra.Command) (r *pb.ListWorkersResponse, err error) {
	err = o.service(cmd.Context(), func(ctx context.Context, c pb.OperatorClient, opts ...grpc.CallOption) (err error) {
		r, err = c.ListWorkers(ctx, &pb.ListWorkersRequest{}, opts...)
		return err
	})
	return r, err
}

func newPoolList(o *operator) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the pools with what their workers do",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := o.workers(cmd)
			if err != nil {
				return err
			}
			rows := poolRows(r)
			return out.write(cmd, rows, func() {
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "POOL\tWORKERS\tMODELS\tRUNNING\tWAITING\tFREE BLOCKS\tDEVICES\tSTATE")
				for _, p := range rows {
					var condition []string
					if p.Cordoned {
						condition = append(condition, "cordoned")
					}
					if n := len(p.Unhealthy); n > 0 {
						condition = append(condition, fmt.Sprintf("%d unhealthy", n))
					}
					fmt.Fprintf(t, "%s\t%d/%d\t%s\t%d\t%d\t%d/%d\t%d\t%s\n", p.Name, p.InSession, p.Workers, strings.Join(p.Models, ","), p.Running, p.Waiting, p.FreeBlocks, p.TotalBlocks, p.Devices, strings.Join(condition, ", "))
				}
				t.Flush()
			})
		},
	}
	out.flag(cmd)
	return cmd
}

// poolRows sums up the workers of each pool.
func poolRows(r *pb.ListWorkersResponse) []poolRow {
	rows := []poolRow{}
	for _, p := range r.GetPools() {
		row := poolRow{Name: p.GetName(), Cordoned: p.GetCordoned(), Models: []string{}, Unhealthy: []string{}}
		models := map[string]bool{}
		for _, w := range r.GetWorkers() {
			if state.PoolOf(w.GetWorker()) != row.Name || w.GetWorker().GetModel() == "" {
				continue // gone, and only cordoned
			}
			row.Workers++
			if w.GetInSession() {
				row.InSession++
			}
			if m := w.GetWorker().GetModel(); !models[m] {
				models[m] = true
				row.Models = append(row.Models, m)
			}
			row.Running += w.GetRunning()
			row.Waiting += w.GetWaiting()
			row.FreeBlocks += w.GetFreeBlocks()
			row.TotalBlocks += w.GetWorker().GetTotalBlocks()
			row.Devices += w.GetDevices()
			for _, why := range w.GetUnhealthy() {
				row.Unhealthy = append(row.Unhealthy, w.GetWorker().GetId()+": "+why)
			}
		}
		rows = append(rows, row)
	}
	return rows
}

func newPoolWorkers(o *operator) *cobra.Command {
	var out output
	var pool string
	cmd := &cobra.Command{
		Use:   "workers",
		Short: "List the workers",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			r, err := o.workers(cmd)
			if err != nil {
				return err
			}
			rows := workerRows(r, pool)
			return out.write(cmd, rows, func() {
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "WORKER\tPOOL\tMODEL\tADDRESS\tRUNNING\tWAITING\tFREE BLOCKS\tSTATE")
				for _, w := range rows {
					fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\t%d/%d\t%s\n", w.ID, w.Pool, w.Model, w.Address, w.Running, w.Waiting, w.FreeBlocks, w.TotalBlocks, strings.Join(append([]string{w.State}, w.Unhealthy...), ", "))
				}
				t.Flush()
			})
		},
	}
	out.flag(cmd)
	cmd.Flags().StringVar(&pool, "pool", "", "only those of this pool")
	return cmd
}

func workerRows(r *pb.ListWorkersResponse, pool string) []workerRow {
	cordoned := map[string]bool{}
	for _, p := range r.GetPools() {
		cordoned[p.GetName()] = p.GetCordoned()
	}
	rows := []workerRow{}
	for _, w := range r.GetWorkers() {
		if pool != "" && state.PoolOf(w.GetWorker()) != pool {
			continue
		}
		i := w.GetWorker()
		condition := "ready"
		switch {
		case i.GetModel() == "":
			condition = "gone, cordoned"
		case !w.GetInSession():
			condition = "not in session"
		case w.GetDraining():
			condition = "draining"
		case w.GetCordoned(), cordoned[state.PoolOf(w.GetWorker())]:
			condition = "cordoned"
		case w.GetUnusable() != "":
			condition = "not used: " + w.GetUnusable()
		}
		rows = append(rows, workerRow{
			ID: i.GetId(), Pool: state.PoolOf(w.GetWorker()), Model: i.GetModel(), Address: i.GetAddress(), Device: i.GetDevice(), State: condition,
			Running: w.GetRunning(), Waiting: w.GetWaiting(), FreeBlocks: w.GetFreeBlocks(), TotalBlocks: i.GetTotalBlocks(),
			Requests: w.GetRequests(), Unhealthy: append([]string{}, w.GetUnhealthy()...),
		})
	}
	return rows
}
