package membership

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
	"github.com/quire-serve/quire/scheduler/rpc"
	"github.com/quire-serve/quire/scheduler/snapshot"
	"github.com/quire-serve/quire/scheduler/state"
)

const (
	// MaxUploadBytes bounds a snapshot file that is uploaded.
	MaxUploadBytes = 4 << 30
	// UploadSilence is how long one that is being uploaded may bring nothing.
	UploadSilence = 30 * time.Second
)

var errRestored = errors.New("a snapshot was restored")

// SaveSnapshot streams a snapshot file of all that was admitted before the call.
func (m *Members) SaveSnapshot(_ *pb.SaveSnapshotRequest, stream pb.Cluster_SaveSnapshotServer) error {
	if err := m.settings.Leadership.Leading(stream.SetTrailer); err != nil {
		return err
	}
	// Whoever leads now applied everything.
	if err := m.settings.Leadership.Barrier(stream.Context()); err != nil {
		return changeError(err)
	}
	view := m.settings.Store.View()
	header := &pb.SnapshotFileHeader{
		TakenUnixMs: time.Now().UnixMilli(), NodeId: m.self.GetId(), Version: m.self.GetVersion(),
		Term: m.node.Term(), Index: view.Index(), ChainHash: view.ChainHash(),
	}
	for _, member := range m.node.Members() {
		header.Members = append(header.Members, m.member(member, m.self.GetId()))
	}
	out := bufio.NewWriterSize(sendWriter{stream}, snapshot.PieceBytes)
	if err := snapshot.Write(out, header, view); err != nil {
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
// is: the file may be another cluster's. The file is checked as it comes, so that what is none is not kept,
// and all of it again before anything changes.
func (m *Members) RestoreSnapshot(stream pb.Cluster_RestoreSnapshotServer) error {
	if err := m.settings.Leadership.Leading(stream.SetTrailer); err != nil {
		return err
	}
	select {
	case m.restoring <- struct{}{}:
		defer func() { <-m.restoring }()
	default:
		return status.Error(codes.Aborted, "another snapshot is being restored")
	}
	up, err := openUpload(stream)
	if err != nil {
		return err
	}
	file, err := os.CreateTemp("", "quire-restore-*")
	if err != nil {
		return status.Errorf(codes.ResourceExhausted, "no room for the file: %v", err)
	}
	spool := &spool{File: file}
	defer func() {
		_ = spool.Close()
		_ = os.Remove(spool.Name()) // It is in the folder for what may be removed at any time.
	}()
	err = snapshot.ReadState(io.TeeReader(up, spool), &snapshot.File{}, func(state io.Reader) error {
		_, err := io.Copy(io.Discard, state)
		return err
	})
	switch {
	case up.err != nil:
		return up.err
	case spool.err != nil:
		return status.Errorf(codes.ResourceExhausted, "no room for the file: %v", spool.err)
	case err != nil:
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return status.Errorf(codes.Internal, "read the file: %v", err)
	}
	backup, err := snapshot.Read(spool)
	if err != nil {
		return status.Error(codes.InvalidArgument, err.Error())
	}
	if _, err := spool.Seek(0, io.SeekStart); err != nil {
		return status.Errorf(codes.Internal, "read the file: %v", err)
	}
	if err := m.restore(stream.Context(), spool, backup); err != nil {
		return changeError(err)
	}
	view := m.settings.Store.View()
	return stream.SendAndClose(&pb.RestoreSnapshotResponse{Index: view.Index(), ChainHash: view.ChainHash()})
}

// spool is where a file is kept while it comes. err says that the disk is at fault, and not the file.
type spool struct {
	*os.File
	err error
}

func (s *spool) Write(p []byte) (n int, err error) {
	n, s.err = s.File.Write(p)
	return n, s.err
}

// upload reads a file as its pieces come. err is what went wrong with the stream, a status; what is
// wrong with the file shows when it is read.
type upload struct {
	pieces <-chan piece
	rest   []byte
	left   int64 // of the announced size
	err    error
}

type piece struct {
	*pb.RestoreSnapshotRequest
	err error
}

// openUpload takes the first message, with the size. The goroutine that it starts ends with the stream.
func openUpload(stream pb.Cluster_RestoreSnapshotServer) (*upload, error) {
	pieces := make(chan piece)
	go func() {
		for {
			in, err := stream.Recv()
			select {
			case pieces <- piece{in, err}:
			case <-stream.Context().Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	u := &upload{pieces: pieces}
	first, err := u.next()
	switch {
	case errors.Is(err, io.EOF):
		return nil, rpc.Invalid("size", "is missing; the first message says how large the file is")
	case err != nil:
		return nil, err
	case first.GetSize() < 1 || first.GetSize() > MaxUploadBytes:
		return nil, rpc.Invalid("size", "%d bytes; a snapshot file has 1 to %d", first.GetSize(), int64(MaxUploadBytes))
	}
	u.left, u.rest = first.GetSize(), first.GetData()
	return u, nil
}

func (u *upload) next() (*pb.RestoreSnapshotRequest, error) {
	patience := time.NewTimer(UploadSilence)
	defer patience.Stop()
	select {
	case p := <-u.pieces:
		return p.RestoreSnapshotRequest, p.err
	case <-patience.C:
		return nil, status.Errorf(codes.DeadlineExceeded, "nothing of the file came for %v", UploadSilence)
	}
}

func (u *upload) Read(p []byte) (int, error) {
	for u.err == nil && len(u.rest) == 0 {
		in, err := u.next()
		if errors.Is(err, io.EOF) {
			return 0, io.EOF
		}
		u.rest, u.err = in.GetData(), err
	}
	if u.err == nil && int64(len(u.rest)) > u.left {
		u.err = rpc.Invalid("data", "more of it comes than size said")
	}
	if u.err != nil {
		return 0, u.err
	}
	n := copy(p, u.rest)
	u.rest, u.left = u.rest[n:], u.left-int64(n)
	return n, nil
}

// restore replaces the state. What the leader holds in memory is of the old one, so it begins anew.
func (m *Members) restore(ctx context.Context, file io.Reader, b *snapshot.File) error {
	if err := m.change(ctx); err != nil {
		return err
	}
	defer m.changed()
	// Once begun it goes to its end, whether or not the caller is still there.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), changeTimeout)
	defer cancel()
	before := m.settings.Store.View()
	m.settings.Leadership.Restart(errRestored)
	err := snapshot.ReadState(file, b, func(data io.Reader) error {
		return m.node.Restore(b.Header.GetIndex(), b.Bytes, data)
	})
	m.settings.Leadership.Restart(errRestored)
	if err != nil {
		return err
	}
	m.settings.Logger.Warn("a snapshot was restored", "taken", time.UnixMilli(b.Header.GetTakenUnixMs()), "index", b.Header.GetIndex())
	return m.keepNodes(ctx, before)
}

// keepNodes writes the nodes of before into the restored state.
func (m *Members) keepNodes(ctx context.Context, before *state.View) error {
	var commands []*pb.NodeCommand
	for n := range m.settings.Store.View().Nodes() {
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
