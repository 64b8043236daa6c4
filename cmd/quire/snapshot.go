package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/snapshot"
	"github.com/quire-serve/quire/scheduler/state"
)

func newSnapshot() *cobra.Command {
	var o operator
	cmd := &cobra.Command{
		Use:   "snapshot",
		Short: "Save, inspect and restore the control plane's state",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	o.flags(cmd)
	cmd.AddCommand(newSnapshotSave(&o), newSnapshotInspect(), newSnapshotRestore(&o))
	return cmd
}

// snapshotInfo is what is in a snapshot file, as JSON shows it.
type snapshotInfo struct {
	Taken     time.Time `json:"taken"`
	Node      string    `json:"node"`
	Version   string    `json:"version"`
	Term      uint64    `json:"term"`
	Index     uint64    `json:"index"`
	ChainHash string    `json:"chain_hash"`
	Bytes     int64     `json:"bytes"`
	Nodes     int       `json:"nodes"`
	Workers   int       `json:"workers"`
	Queued    int       `json:"queued"`
	Assigned  int       `json:"assigned"`
	Finished  int       `json:"finished"`
	Members   []peer    `json:"members"`
}

func newSnapshotInfo(b *snapshot.File) snapshotInfo {
	h := b.Header
	info := snapshotInfo{
		Taken: time.UnixMilli(h.GetTakenUnixMs()), Node: h.GetNodeId(), Version: h.GetVersion(),
		Term: h.GetTerm(), Index: h.GetIndex(), ChainHash: fmt.Sprintf("%016x", h.GetChainHash()), Bytes: b.Bytes,
	}
	for range b.View.Nodes() {
		info.Nodes++
	}
	for range b.View.Workers() {
		info.Workers++
	}
	for r := range b.View.Requests() {
		switch r.Phase {
		case state.Queued:
			info.Queued++
		case state.Assigned:
			info.Assigned++
		case state.Finished:
			info.Finished++
		}
	}
	for _, m := range h.GetMembers() {
		info.Members = append(info.Members, newPeer(m))
	}
	return info
}

func (s snapshotInfo) table(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(t, "taken\t%s by %s, quire %s\n", s.Taken.Format(time.RFC3339), s.Node, s.Version)
	fmt.Fprintf(t, "entry\t%d, term %d\n", s.Index, s.Term)
	fmt.Fprintf(t, "chain hash\t%s\n", s.ChainHash)
	fmt.Fprintf(t, "state\t%d bytes: %d nodes, %d workers\n", s.Bytes, s.Nodes, s.Workers)
	fmt.Fprintf(t, "requests\t%d queued, %d with workers, %d finished\n", s.Queued, s.Assigned, s.Finished)
	for _, m := range s.Members {
		fmt.Fprintf(t, "member\t%s, %s, %s\n", m.ID, m.role(), m.Raft)
	}
	t.Flush()
}

// readSnapshot reads a file and checks all of it.
func readSnapshot(path string) (*snapshot.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := snapshot.Read(f)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return b, nil
}

func newSnapshotInspect() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Check a snapshot file and show what is in it",
		Args:  exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := readSnapshot(args[0])
			if err != nil {
				return err
			}
			info := newSnapshotInfo(b)
			return out.write(cmd, info, func() { info.table(cmd.OutOrStdout()) })
		},
	}
	out.flag(cmd)
	return cmd
}

func newSnapshotSave(o *operator) *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "save FILE",
		Short: "Save the state to a file, and check the file",
		Args:  exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			b, err := o.save(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			info := newSnapshotInfo(b)
			return out.write(cmd, info, func() { info.table(cmd.OutOrStdout()) })
		},
	}
	out.flag(cmd)
	return cmd
}

// save puts a snapshot in path's place once it is there whole.
func (o *operator) save(ctx context.Context, path string) (b *snapshot.File, err error) {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return nil, err
	}
	defer func() {
		_ = f.Close()
		if err != nil {
			_ = os.Remove(f.Name()) // It is of no use.
		}
	}()
	err = o.onLeader(ctx, func(ctx context.Context, c pb.ClusterClient, opts ...grpc.CallOption) error {
		if _, err := f.Seek(0, io.SeekStart); err != nil {
			return err
		}
		if err := f.Truncate(0); err != nil {
			return err
		}
		stream, err := c.SaveSnapshot(ctx, &pb.SaveSnapshotRequest{}, opts...)
		if err != nil {
			return err
		}
		for {
			r, err := stream.Recv()
			if errors.Is(err, io.EOF) {
				return nil
			}
			if err != nil {
				return err
			}
			if _, err := f.Write(r.GetData()); err != nil {
				return err
			}
		}
	})
	if err != nil {
		return nil, err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return nil, err
	}
	if b, err = readSnapshot(f.Name()); err != nil {
		return nil, err
	}
	return b, os.Rename(f.Name(), path)
}

func newSnapshotRestore(o *operator) *cobra.Command {
	return &cobra.Command{
		Use:   "restore FILE",
		Short: "Replace the state of a running cluster with a file's",
		Long: `Replace the state of a running cluster with that of a file, on all nodes. What was admitted since
is forgotten; what was unfinished runs again. Which nodes are in the cluster does not change.`,
		Args: exactArgs("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if _, err := readSnapshot(args[0]); err != nil {
				return err
			}
			var restored *pb.RestoreSnapshotResponse
			err := o.onLeader(cmd.Context(), func(ctx context.Context, c pb.ClusterClient, opts ...grpc.CallOption) (err error) {
				restored, err = upload(ctx, c, args[0], opts...)
				return err
			})
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "restored: entry %d, chain hash %016x\n", restored.GetIndex(), restored.GetChainHash())
			return nil
		},
	}
}

func upload(ctx context.Context, c pb.ClusterClient, path string, opts ...grpc.CallOption) (*pb.RestoreSnapshotResponse, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	stream, err := c.RestoreSnapshot(ctx, opts...)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	// Where this fails the answer says why.
	_ = stream.Send(&pb.RestoreSnapshotRequest{Size: info.Size()})
	piece := make([]byte, 64<<10)
	for {
		n, err := f.Read(piece)
		if n > 0 && stream.Send(&pb.RestoreSnapshotRequest{Data: piece[:n]}) != nil {
			break // The answer says why.
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
	}
	return stream.CloseAndRecv()
}
