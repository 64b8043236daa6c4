package snapshot

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"testing"

	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/state"
)

// fileOf makes a snapshot file of a store with some requests, the first of them with a long prompt.
func fileOf(t testing.TB, requests int) (file []byte, view *state.View) {
	t.Helper()
	store := state.New()
	for i := range requests {
		r := &pb.Request{Id: fmt.Sprint("r", i), Model: "m", Prompt: []int32{1, 2, 3}}
		if i == 0 {
			r.Prompt = make([]int32, 100_000)
		}
		data, err := proto.Marshal(&pb.Entry{TimeMs: 1, Commands: []*pb.Command{{Command: &pb.Command_Submit{
			Submit: &pb.SubmitCommand{Request: r, Digest: []byte("d")},
		}}}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := store.Apply(uint64(i+1), 1, data); err != nil {
			t.Fatal(err)
		}
	}
	view = store.View()
	var out bytes.Buffer
	if err := Write(&out, &pb.SnapshotFileHeader{NodeId: "n", Index: view.Index(), ChainHash: view.ChainHash()}, view); err != nil {
		t.Fatal(err)
	}
	return out.Bytes(), view
}

func TestFilesComeBackWhole(t *testing.T) {
	file, view := fileOf(t, 5)
	b, err := Read(bytes.NewReader(file))
	if err != nil {
		t.Fatal(err)
	}
	var want, got bytes.Buffer
	if _, err := view.WriteTo(&want); err != nil {
		t.Fatal(err)
	}
	if _, err := b.View.WriteTo(&got); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got.Bytes(), want.Bytes()) || b.Bytes != int64(want.Len()) || b.Header.GetNodeId() != "n" {
		t.Errorf("%d bytes of %d came back, header %v", b.Bytes, want.Len(), b.Header)
	}
}

// TestDamagedFilesAreRefused cuts and changes a file everywhere.
func TestDamagedFilesAreRefused(t *testing.T) {
	whole, _ := fileOf(t, 0)
	long, view := fileOf(t, 2)
	whole = append(whole[:0:0], whole...)
	refuse := func(what string, file []byte) {
		t.Helper()
		if _, err := Read(bytes.NewReader(file)); !errors.Is(err, ErrDamaged) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for i := range whole {
		refuse(fmt.Sprint("cut to ", i), whole[:i])
		changed := slices.Clone(whole)
		changed[i] ^= 1 << (i % 8)
		refuse(fmt.Sprint("changed at ", i), changed)
	}
	for i := 0; i < len(long); i += 997 {
		changed := slices.Clone(long)
		changed[i] ^= 4
		refuse(fmt.Sprint("the long one changed at ", i), changed)
	}
	refuse("with something after it", append(slices.Clone(whole), 0))
	refuse("empty", nil)
	var other bytes.Buffer
	if err := Write(&other, &pb.SnapshotFileHeader{Index: view.Index(), ChainHash: view.ChainHash() + 1}, view); err != nil {
		t.Fatal(err)
	}
	refuse("with another state than its header says", other.Bytes())
}

// FuzzRead: whatever a file holds, reading it ends without harm.
func FuzzRead(f *testing.F) {
	file, _ := fileOf(f, 1)
	small, _ := fileOf(f, 0)
	f.Add(file)
	f.Add(small)
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		b, err := Read(bytes.NewReader(data))
		if err == nil && b.View.Index() != b.Header.GetIndex() {
			t.Fatal("a file with another state than its header says was accepted")
		}
	})
}
