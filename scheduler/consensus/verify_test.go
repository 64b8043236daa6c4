package consensus

import (
	"errors"
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
