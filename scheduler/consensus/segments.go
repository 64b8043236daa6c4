package consensus

import (
	"errors"
	"io/fs"
	"path/filepath"

	"github.com/hashicorp/raft-wal/types"
)

// segmentTable is raft-wal's table of segments, as a file of JSON under a checksum. Its own, a bbolt
// database, falls back to the table before when the newest page is damaged, maps what may be shorter
// than it says, and panics on much else.
type segmentTable struct{ path string }

const segmentTableFile = "segments.json"

var (
	_ types.MetaStore = (*segmentTable)(nil)

	errNoValues = errors.New("the log keeps no values; they are in the hard state")
)

// Load reads the table; there is none where there are no segments.
func (t *segmentTable) Load(dir string) (state types.PersistentState, err error) {
	t.path = filepath.Join(dir, segmentTableFile)
	err = ReadChecked(t.path, &state)
	if errors.Is(err, fs.ErrNotExist) {
		if found, _ := filepath.Glob(filepath.Join(dir, "*.wal")); len(found) > 0 { // The pattern is right.
			return state, Damaged(t.path, "it is not there, but %s is", found[0])
		}
		return state, nil
	}
	return state, err
}

// CommitState writes the table.
func (t *segmentTable) CommitState(state types.PersistentState) error {
	return WriteChecked(t.path, state)
}

// GetStable is not used.
func (*segmentTable) GetStable([]byte) ([]byte, error) { return nil, errNoValues }

// SetStable is not used.
func (*segmentTable) SetStable(_, _ []byte) error { return errNoValues }

// Close does nothing.
func (*segmentTable) Close() error { return nil }
