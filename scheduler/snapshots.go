package scheduler

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/state"
)

// maxBackupBytes bounds an uploaded snapshot file.
const maxBackupBytes = 16 << 30

var errRestored = errors.New("a snapshot was restored")

// SaveSnapshot streams a snapshot file of all that was admitted before the call.
func (m *membership) SaveSnapshot(_ *pb.SaveSnapshotRequest, stream pb.Cluster_SaveSnapshotServer) error {
	if _, err := m.s.leading(stream.SetTrailer); err != nil {
		return err
	}
	// Whoever leads now applied everything.
	if err := m.s.node.Barrier(barrierTimeout); err != nil {
		return changeError(err)
	}
	view := m.s.store.View()
	header := &pb.SnapshotFileHeader{
		TakenUnixMs: time.Now().UnixMilli(), NodeId: m.self.GetId(), Version: m.self.GetVersion(),
		Term: m.s.node.Term(), Index: view.Index(), ChainHash: view.ChainHash(),
	}
	for _, member := range m.s.node.Members() {
		header.Members = append(header.Members, m.member(member, m.self.GetId()))
	}
	out := bufio.NewWriterSize(sendWriter{stream}, backupPiece)
	if err := writeBackup(out, header, view); err != nil {
		return err
	}
	return out.Flush()
}

type sendWriter struct{ stream pb.Cluster_SaveSnapshotServer }

func (w sendWriter) Write(data []byte) (int, error) {
	if err := w.stream.Send(&pb.SaveSnapshotResponse{Data: data}); err != nil {
		return 0, err
	}
	return len(data), nil
}

// RestoreSnapshot makes a snapshot file's state the state of all nodes. Who the nodes are stays as it
// is: the file may be another cluster's.
func (m *membership) RestoreSnapshot(stream pb.Cluster_RestoreSnapshotServer) error {
	if _, err := m.s.leading(stream.SetTrailer); err != nil {
		return err
	}
	spool, err := os.CreateTemp("", "quire-restore-*")
	if err != nil {
		return status.Errorf(codes.Internal, "no room for the file: %v", err)
	}
	defer func() {
		_ = spool.Close()
		_ = os.Remove(spool.Name()) // It is in the folder for what may be removed at any time.
	}()
	if err := receive(stream, spool); err != nil {
		return err
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return status.Errorf(codes.Internal, "read the file: %v", err)
	}
	backup, err := ReadBackup(spool)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return status.Errorf(codes.Internal, "read the file: %v", err)
	}
	if err := m.restore(stream.Context(), spool, backup); err != nil {
		return changeError(err)
	}
	view := m.s.store.View()
	return stream.SendAndClose(&pb.RestoreSnapshotResponse{Index: view.Index(), ChainHash: view.ChainHash()})
}

func receive(stream pb.Cluster_RestoreSnapshotServer, to io.Writer) error {
	var total int64
	for {
		in, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if total += int64(len(in.GetData())); total > maxBackupBytes {
			return invalid("data", "the file is larger than %d bytes", int64(maxBackupBytes))
		}
		if _, err := to.Write(in.GetData()); err != nil {
			return status.Errorf(codes.ResourceExhausted, "no room for the file: %v", err)
		}
	}
}

// restore replaces the state. What the leader holds in memory is of the old one, so it begins anew.
func (m *membership) restore(ctx context.Context, file io.Reader, b *Backup) error {
	if err := m.change(ctx); err != nil {
		return err
	}
	defer m.changed()
	// Once begun it goes to its end, whether or not the caller is still there.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	before := m.s.store.View()
	m.dropLeader()
	err := readBackup(file, b, func(data io.Reader) error {
		return m.s.node.Restore(b.Header.GetIndex(), b.Bytes, data)
	})
	m.dropLeader()
	if err != nil {
		return err
	}
	m.s.settings.Logger.Warn("a snapshot was restored", "taken", time.UnixMilli(b.Header.GetTakenUnixMs()), "index", b.Header.GetIndex())
	return m.keepNodes(ctx, before)
}

func (m *membership) dropLeader() {
	if l := m.s.leader.Load(); l != nil {
		l.fail(errRestored)
	}
}

// keepNodes writes the nodes of before into the restored state.
func (m *membership) keepNodes(ctx context.Context, before *state.View) error {
	var commands []*pb.NodeCommand
	for n := range m.s.store.View().Nodes() {
		if before.Node(n.GetId()) == nil {
			commands = append(commands, &pb.NodeCommand{Node: n, Removed: true})
		}
	}
	for n := range before.Nodes() {
		commands = append(commands, &pb.NodeCommand{Node: n})
	}
	for _, c := range commands {
		if err := m.record(ctx, c); err != nil {
			return fmt.Errorf("the snapshot is restored, but node %q is not in its table: %w", c.GetNode().GetId(), err)
		}
	}
	return nil
}
