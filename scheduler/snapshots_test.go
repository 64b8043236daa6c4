package scheduler

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/membership"
	"github.com/quire-serve/quire/scheduler/snapshot"
	"github.com/quire-serve/quire/scheduler/state"
)

// uploading is an operator's upload, without a network.
type uploading struct {
	grpc.ServerStream
	ctx    context.Context
	cancel context.CancelFunc
	size   int64
	file   io.Reader
	// hangs: it says nothing more once the file is through.
	hangs bool

	begun bool
	read  int
	said  *pb.RestoreSnapshotResponse
}

func newUploading(size int, file io.Reader) *uploading {
	ctx, cancel := context.WithCancel(context.Background())
	return &uploading{ctx: ctx, cancel: cancel, size: int64(size), file: file}
}

func (u *uploading) Context() context.Context { return u.ctx }
func (u *uploading) SetTrailer(metadata.MD)   {}
func (u *uploading) SendAndClose(m *pb.RestoreSnapshotResponse) error {
	u.said = m
	return nil
}

func (u *uploading) Recv() (*pb.RestoreSnapshotRequest, error) {
	if !u.begun {
		u.begun = true
		return &pb.RestoreSnapshotRequest{Size: u.size}, nil
	}
	data := make([]byte, 4<<10)
	n, err := u.file.Read(data)
	u.read += n
	if err != nil && u.hangs {
		<-u.ctx.Done()
		return nil, u.ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return &pb.RestoreSnapshotRequest{Data: data[:n]}, nil
}

// endless is what a hostile operator sends.
type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// snapshotOf makes a snapshot file of a store with some requests, the first of them with a long prompt.
func snapshotOf(t testing.TB, requests int) (file []byte, view *state.View) {
	t.Helper()
	store := state.New()
	entry := &pb.Entry{TimeMs: 1}
	for i := range requests {
		r := request(fmt.Sprint("r", i))
		if i == 0 {
			r.Prompt = make([]int32, 100_000)
		}
		entry.Commands = append(entry.Commands, &pb.Command{Command: &pb.Command_Submit{Submit: &pb.SubmitCommand{Request: r, Digest: []byte("d")}}})
	}
	data, err := proto.Marshal(entry)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := store.Apply(1, 1, data); err != nil {
		t.Fatal(err)
	}
	view = store.View()
	var out bytes.Buffer
	if err := snapshot.Write(&out, &pb.SnapshotFileHeader{Index: view.Index(), ChainHash: view.ChainHash()}, view); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), view
}

// TestRestoreTakesNothingOnTrust uploads what is no snapshot, is damaged, of another version, too large, or
// never ends: it is refused as soon as that shows, nothing of it is kept, and the state is what it was. What
// is whole is restored, one at a time.
func TestRestoreTakesNothingOnTrust(t *testing.T) {
	spools := t.TempDir()
	t.Setenv("TMPDIR", spools)
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		until(t, "it leads", s.Ready)
		if _, err := s.CreatePool(t.Context(), &pb.CreatePoolRequest{Pool: &pb.Pool{Name: "before"}}); err != nil {
			t.Fatal(err)
		}
		file, _ := snapshotOf(t, 3)
		restore := func(u *uploading) error {
			defer u.cancel()
			return s.members.RestoreSnapshot(u)
		}
		changed := func(at int) io.Reader {
			other := bytes.Clone(file)
			other[at] ^= 4
			return bytes.NewReader(other)
		}
		version := bytes.IndexByte(file, '1') // The first line ends with it.
		whole := func() io.Reader { return bytes.NewReader(file) }
		forged, view := snapshotOf(t, 3)
		var lie bytes.Buffer
		if err := snapshot.Write(&lie, &pb.SnapshotFileHeader{Index: view.Index() + 1, ChainHash: view.ChainHash()}, view); err != nil {
			t.Fatal(err)
		}
		for _, c := range []struct {
			name string
			up   *uploading
			code codes.Code
			want string
			// most is how much may be taken before it is refused.
			most int
		}{
			{"no size", newUploading(0, whole()), codes.InvalidArgument, "size: 0 bytes", 4 << 10},
			{"too large", newUploading(membership.MaxUploadBytes+1, endless{}), codes.InvalidArgument, "a snapshot file has 1 to", 4 << 10},
			{"more than it said", newUploading(len(file)-1, whole()), codes.InvalidArgument, "more of it comes than size said", len(file)},
			{"no snapshot", newUploading(1<<30, endless{}), codes.InvalidArgument, "it does not begin with", 2 * snapshot.PieceBytes},
			{"another version", newUploading(len(file), changed(version)), codes.InvalidArgument, "of another version", 2 * snapshot.PieceBytes},
			{"damaged", newUploading(len(file), changed(len(file)/2)), codes.InvalidArgument, "damaged", len(file)},
			{"cut off", newUploading(len(file), bytes.NewReader(file[:len(file)-1])), codes.InvalidArgument, "damaged", len(file)},
			{"something follows", newUploading(2*len(file), bytes.NewReader(append(bytes.Clone(file), 7))), codes.InvalidArgument, "something follows", len(file) + 1},
			{"whole but not what it says", newUploading(lie.Len(), &lie), codes.InvalidArgument, "the header names entry", len(forged) + 100},
		} {
			err := restore(c.up)
			if status.Code(err) != c.code || !strings.Contains(err.Error(), c.want) || c.up.read > c.most || c.up.said != nil {
				t.Errorf("%s: %v after %d bytes; want %v with %q after at most %d", c.name, err, c.up.read, c.code, c.want, c.most)
			}
			if s.store.View().Pool("before") == nil || s.store.View().Request("r1") != nil {
				t.Fatalf("%s: the state has changed", c.name)
			}
		}

		silent := newUploading(len(file), bytes.NewReader(file[:100]))
		silent.hangs = true
		ended := make(chan error, 1)
		began := time.Now()
		go func() { ended <- restore(silent) }()
		synctest.Wait()
		if err := restore(newUploading(len(file), whole())); status.Code(err) != codes.Aborted {
			t.Errorf("beside another upload: %v", err)
		}
		if err := <-ended; status.Code(err) != codes.DeadlineExceeded || time.Since(began) != membership.UploadSilence {
			t.Errorf("an upload that says nothing more ends after %v with %v", time.Since(began), err)
		}

		if err := restore(newUploading(len(file), whole())); err != nil {
			t.Fatalf("a whole file: %v", err)
		}
		if s.store.View().Pool("before") != nil || s.store.View().Request("r1") == nil {
			t.Error("the state is not the file's")
		}
		if left, err := os.ReadDir(spools); err != nil || len(left) > 0 {
			t.Errorf("%v are left in the spool, %v", left, err)
		}
	})
}
