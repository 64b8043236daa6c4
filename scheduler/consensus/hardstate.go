package consensus

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"sync"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/raft"
	"golang.org/x/sys/unix"
)

// hardState is what a node must not forget of what it promised to others: its term and its vote, and up
// to where it has acknowledged the log. It is one small file that is overwritten in place; DESIGN.md
// says why it is not part of the log's own files.
//
// The file holds the same record twice, 4 KiB apart, and both are written at once. After a write that
// was cut short one of them is whole, the new one or the old one. A damaged one is told by its checksum
// and the other counts. Where neither is whole, the node does not know what it promised.
type hardState struct {
	file *os.File // nil: in memory
	// disk is held while the file is written.
	disk chan struct{}
	// failed is why the last write did not end well. Guarded by disk.
	failed error

	mu  sync.Mutex
	rec hardRecord
}

// hardRecord is what is in the file, as JSON.
type hardRecord struct {
	// Sequence grows with every write.
	Sequence uint64 `json:"sequence"`
	// Values are raft's: the term, and whom this node voted for in which.
	Values map[string][]byte `json:"values"`
	// Log is the newest entry that the log held when it was acknowledged, Snapshot the newest snapshot.
	// One of the two must reach as far when the node starts again.
	Log      uint64 `json:"log"`
	Snapshot uint64 `json:"snapshot"`
	// Unusable is why the folder must not be used again, found out while the node ran.
	Unusable string `json:"unusable,omitempty"`
}

const (
	hardStateFile = "hardstate"
	// hardBlock is the size of one copy: a checksum, a length and the record.
	hardBlock = 4096
	hardHead  = 12
)

var _ raft.StableStore = (*hardState)(nil)

func newHardState() *hardState {
	return &hardState{disk: make(chan struct{}, 1), rec: hardRecord{Values: map[string][]byte{}}}
}

// openHardState opens the file under dir, or makes it where dir holds nothing of a log yet.
func openHardState(dir string) (*hardState, error) {
	path := filepath.Join(dir, hardStateFile)
	h := newHardState()
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if found := logOf(dir); found != "" {
			return nil, Damaged(path, "it is not there, but %s is", found)
		}
		// A file that a stop in the middle of making it left behind would look damaged.
		if err := writeFileSync(path, make([]byte, 2*hardBlock)); err != nil {
			return nil, fmt.Errorf("write %s: %w", path, err)
		}
	case err != nil:
		return nil, &Damage{What: path, Err: err}
	default:
		if h.rec, err = newestCopy(data); err != nil {
			return nil, &Damage{What: path, Err: err}
		}
		if found := logOf(dir); h.rec.Sequence == 0 && found != "" {
			return nil, Damaged(path, "it is empty, but %s is there", found)
		}
	}
	if h.rec.Unusable != "" {
		return nil, Damaged("the log", "%s", h.rec.Unusable)
	}
	if h.file, err = os.OpenFile(path, os.O_WRONLY|unix.O_DSYNC, 0o600); err != nil {
		return nil, fmt.Errorf("open %s: %w", path, err)
	}
	// Both copies are made whole again.
	if err := h.change(func(*hardRecord) {}); err != nil {
		return nil, errors.Join(err, h.file.Close())
	}
	return h, nil
}

// InUse says whether a log was begun under dir, raft's part of a data folder.
func InUse(dir string) bool {
	_, err := os.Stat(filepath.Join(dir, hardStateFile))
	return err == nil || logOf(dir) != ""
}

// logOf returns a file of the log that is under dir, if there is one.
func logOf(dir string) string {
	for _, pattern := range []string{"wal/*", "log.db", "snapshots/*"} {
		if found, _ := filepath.Glob(filepath.Join(dir, pattern)); len(found) > 0 { // The patterns are right.
			return found[0]
		}
	}
	return ""
}

// newestCopy is the newer of the copies that are whole. A file of zeros is one that was never written.
func newestCopy(data []byte) (hardRecord, error) {
	newest := hardRecord{Values: map[string][]byte{}}
	if len(data) != 2*hardBlock {
		return newest, fmt.Errorf("it has %d bytes in place of %d", len(data), 2*hardBlock)
	}
	if bytes.Equal(data, make([]byte, len(data))) {
		return newest, nil
	}
	found := false
	for _, block := range [][]byte{data[:hardBlock], data[hardBlock:]} {
		length := binary.LittleEndian.Uint32(block[8:])
		if length > hardBlock-hardHead || binary.LittleEndian.Uint64(block) != xxhash.Sum64(block[8:hardHead+length]) {
			continue
		}
		rec := hardRecord{}
		if json.Unmarshal(block[hardHead:hardHead+length], &rec) == nil && rec.Sequence > newest.Sequence {
			newest, found = rec, true
		}
	}
	if !found {
		return newest, errors.New("the checksums of both copies are wrong")
	}
	if newest.Values == nil {
		newest.Values = map[string][]byte{}
	}
	return newest, nil
}

// change updates the record and returns once it is on the disk.
func (h *hardState) change(f func(*hardRecord)) error {
	h.disk <- struct{}{}
	defer func() { <-h.disk }()
	return h.write(h.update(f))
}

// acknowledge notes, after the log has been written up to last, that it has. It returns once the note
// before is on the disk, so that a note is written while the next entries are, and costs them no time
// that they would not need themselves. At any moment all but the newest write to the log are noted.
func (h *hardState) acknowledge(last uint64) error {
	h.disk <- struct{}{}
	if h.failed != nil || h.file == nil {
		defer func() { <-h.disk }()
		return h.write(h.update(func(r *hardRecord) { r.Log = last }))
	}
	rec := h.update(func(r *hardRecord) { r.Log = last })
	go func() {
		defer func() { <-h.disk }()
		_ = h.write(rec) // The next write returns it.
	}()
	return nil
}

// update changes the record in memory.
func (h *hardState) update(f func(*hardRecord)) hardRecord {
	h.mu.Lock()
	defer h.mu.Unlock()
	values := maps.Clone(h.rec.Values)
	h.rec.Values = values
	h.rec.Sequence++
	f(&h.rec)
	rec := h.rec
	rec.Values = maps.Clone(values)
	return rec
}

// write puts a record on the disk. After an error nobody knows what is there, so no write follows it.
func (h *hardState) write(rec hardRecord) error {
	if h.failed != nil || h.file == nil {
		return h.failed
	}
	data, err := json.Marshal(rec)
	if err == nil && len(data) > hardBlock-hardHead {
		err = fmt.Errorf("a record of %d bytes; the limit is %d", len(data), hardBlock-hardHead)
	}
	if err == nil {
		block := make([]byte, 2*hardBlock)
		for _, copied := range [][]byte{block[:hardBlock], block[hardBlock:]} {
			binary.LittleEndian.PutUint32(copied[8:], uint32(len(data)))
			copy(copied[hardHead:], data)
			binary.LittleEndian.PutUint64(copied, xxhash.Sum64(copied[8:hardHead+len(data)]))
		}
		_, err = h.file.WriteAt(block, 0)
	}
	if err != nil {
		// Not wrapped: a disk without room is no reason to go on here, where the log was written.
		h.failed = errors.New("write what this node promised: " + err.Error())
	}
	return h.failed
}

// record returns what the file says, or will say in a moment.
func (h *hardState) record() hardRecord {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.rec
}

// Set writes a value of raft's.
func (h *hardState) Set(key, value []byte) error {
	return h.change(func(r *hardRecord) { r.Values[string(key)] = bytes.Clone(value) })
}

// Get returns a value of raft's, nil if there is none.
func (h *hardState) Get(key []byte) ([]byte, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return bytes.Clone(h.rec.Values[string(key)]), nil
}

// SetUint64 writes a number of raft's.
func (h *hardState) SetUint64(key []byte, value uint64) error {
	return h.Set(key, binary.LittleEndian.AppendUint64(nil, value))
}

// GetUint64 returns a number of raft's, 0 if there is none.
func (h *hardState) GetUint64(key []byte) (uint64, error) {
	value, _ := h.Get(key) // It never fails.
	switch len(value) {
	case 0:
		return 0, nil
	case 8:
		return binary.LittleEndian.Uint64(value), nil
	}
	return 0, fmt.Errorf("%q is no number", key)
}

var _ io.Closer = (*hardState)(nil)

// Close waits for the last note and closes the file.
func (h *hardState) Close() error {
	if h.file == nil {
		return nil
	}
	h.disk <- struct{}{}
	defer func() { <-h.disk }()
	return errors.Join(h.failed, h.file.Close())
}
