package consensus

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestEntriesAreSummedWhole: whatever part of an entry is another one when it is read, it is damage; and so
// is another entry in its place.
func TestEntriesAreSummedWhole(t *testing.T) {
	for name, change := range map[string]func(*raft.Log){
		"nothing":    func(*raft.Log) {},
		"term":       func(e *raft.Log) { e.Term++ },
		"type":       func(e *raft.Log) { e.Type = raft.LogNoop },
		"data":       func(e *raft.Log) { e.Data[2] ^= 1 },
		"shorter":    func(e *raft.Log) { e.Data = e.Data[:2] },
		"extensions": func(e *raft.Log) { e.Extensions = append(e.Extensions, 1) },
		"boundary":   func(e *raft.Log) { e.Data, e.Extensions = e.Data[:2], append(e.Extensions, e.Data[2:]...) },
		"time":       func(e *raft.Log) { e.AppendedAt = e.AppendedAt.Add(time.Nanosecond) },
		"place":      func(e *raft.Log) { e.Index++ },
		"sum":        func(e *raft.Log) { e.Extensions[0] ^= 1 },
		"no sum":     func(e *raft.Log) { e.Extensions = nil },
	} {
		store := raft.NewInmemStore()
		logs := &verifiedLogs{LogStore: store, hard: newHardState(), damaged: func(error) {}}
		if err := logs.StoreLog(&raft.Log{Index: 7, Term: 3, Type: raft.LogCommand, Data: []byte("what it says"), AppendedAt: time.Unix(5, 6)}); err != nil {
			t.Fatal(err)
		}
		var kept raft.Log
		if err := store.GetLog(7, &kept); err != nil {
			t.Fatal(err)
		}
		change(&kept)
		logs.LogStore = misplaced{store, &kept}
		var damage *Damage
		if err := logs.GetLog(7, &raft.Log{}); errors.As(err, &damage) != (name != "nothing") {
			t.Errorf("with another %s an entry is read with error %v", name, err)
		}
		if err := logs.GetLog(8, &raft.Log{}); !errors.As(err, &damage) {
			t.Errorf("with another %s an entry is read in another's place", name)
		}
	}
}

// misplaced is a store that has one entry, wherever it is asked.
type misplaced struct {
	raft.LogStore
	entry *raft.Log
}

func (m misplaced) GetLog(_ uint64, entry *raft.Log) error {
	*entry = *m.entry
	return nil
}

// TestFilesAreChecked: whatever bit of a file with a checksum is another one, it says so or holds what was
// written.
func TestFilesAreChecked(t *testing.T) {
	type content struct {
		Name string `json:"name"`
		Term uint64 `json:"term"`
	}
	path := filepath.Join(t.TempDir(), "file")
	want := content{"n1", 7}
	if err := WriteChecked(path, want); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := 0
	for bit := range 8 * len(data) {
		harmed := bytes.Clone(data)
		harmed[bit/8] ^= 1 << (bit % 8)
		if err := os.WriteFile(path, harmed, 0o600); err != nil {
			t.Fatal(err)
		}
		var got content
		var damage *Damage
		switch err := ReadChecked(path, &got); {
		case errors.As(err, &damage):
			refused++
		case err != nil || got != want:
			t.Errorf("with bit %d another it reads %+v, %v", bit, got, err)
		}
	}
	if refused == 0 {
		t.Error("nothing was refused")
	}
}

// TestSnapshotsDescriptionsAreSummedWhole: all that raft takes from one is in its checksum.
func TestSnapshotsDescriptionsAreSummedWhole(t *testing.T) {
	meta := func(change func(*raft.SnapshotMeta)) uint64 {
		m := &raft.SnapshotMeta{Version: 1, Index: 5, Term: 2, ConfigurationIndex: 3, Configuration: raft.Configuration{
			Servers: []raft.Server{{ID: "a", Address: "x", Suffrage: raft.Voter}},
		}}
		change(m)
		return metaSum(m)
	}
	was := meta(func(*raft.SnapshotMeta) {})
	for name, change := range map[string]func(*raft.SnapshotMeta){
		"version":       func(m *raft.SnapshotMeta) { m.Version++ },
		"index":         func(m *raft.SnapshotMeta) { m.Index++ },
		"term":          func(m *raft.SnapshotMeta) { m.Term++ },
		"members":       func(m *raft.SnapshotMeta) { m.Configuration.Servers[0].ID = "b" },
		"suffrage":      func(m *raft.SnapshotMeta) { m.Configuration.Servers[0].Suffrage = raft.Nonvoter },
		"members' time": func(m *raft.SnapshotMeta) { m.ConfigurationIndex++ },
	} {
		if meta(change) == was {
			t.Errorf("another %s has the same checksum", name)
		}
	}
}
