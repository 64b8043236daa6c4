package consensus

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
)

// sumBytes is the size of the checksums of entries and of snapshots' descriptions.
const sumBytes = 8

// verifiedLogs puts a checksum into every entry, in front of its extensions, and looks at it whenever
// one is read. It keeps the hard state's note of how far the log reaches.
type verifiedLogs struct {
	raft.LogStore
	hard *hardState
	// damaged hears of damage that is found while the node runs. It does not return: raft would panic.
	damaged func(error)
}

var _ raft.MonotonicLogStore = (*verifiedLogs)(nil)

// IsMonotonic passes the store's own.
func (v *verifiedLogs) IsMonotonic() bool {
	store, ok := v.LogStore.(raft.MonotonicLogStore)
	return ok && store.IsMonotonic()
}

// StoreLog stores one entry.
func (v *verifiedLogs) StoreLog(entry *raft.Log) error { return v.StoreLogs([]*raft.Log{entry}) }

// StoreLogs stores entries. It returns once they are on the disk, and the note of all before them.
func (v *verifiedLogs) StoreLogs(entries []*raft.Log) error {
	if len(entries) == 0 {
		return nil
	}
	summed := make([]*raft.Log, len(entries))
	for i, entry := range entries {
		e := *entry
		e.Extensions = append(binary.LittleEndian.AppendUint64(nil, entrySum(entry)), entry.Extensions...)
		summed[i] = &e
	}
	if err := v.LogStore.StoreLogs(summed); err != nil {
		return err
	}
	return v.hard.acknowledge(entries[len(entries)-1].Index)
}

// entrySum covers all of an entry that matters, with the lengths of what varies.
func entrySum(e *raft.Log) uint64 {
	var head [29]byte
	binary.LittleEndian.PutUint64(head[0:], e.Index)
	binary.LittleEndian.PutUint64(head[8:], e.Term)
	head[16] = byte(e.Type)
	binary.LittleEndian.PutUint32(head[17:], uint32(len(e.Data)))
	binary.LittleEndian.PutUint64(head[21:], uint64(e.AppendedAt.UnixNano()))
	d := xxhash.New()
	_, _ = d.Write(head[:])
	_, _ = d.Write(e.Data)
	_, _ = d.Write(e.Extensions)
	return d.Sum64()
}

// GetLog reads an entry. One that is damaged ends the node.
func (v *verifiedLogs) GetLog(index uint64, entry *raft.Log) error {
	err := v.read(index, entry)
	if damage := (*Damage)(nil); errors.As(err, &damage) {
		v.damaged(err)
	}
	return err
}

// read reads an entry; its error is raft.ErrLogNotFound or a *Damage.
func (v *verifiedLogs) read(index uint64, entry *raft.Log) error {
	what := fmt.Sprintf("entry %d of the log", index)
	err := protect(func() error { return v.LogStore.GetLog(index, entry) })
	switch {
	case errors.Is(err, raft.ErrLogNotFound):
		return err
	case err != nil:
		return &Damage{What: what, Err: err}
	case len(entry.Extensions) < sumBytes:
		return Damaged(what, "it has no checksum")
	}
	sum := binary.LittleEndian.Uint64(entry.Extensions)
	if entry.Extensions = entry.Extensions[sumBytes:]; len(entry.Extensions) == 0 {
		entry.Extensions = nil
	}
	if entry.Index != index || entrySum(entry) != sum {
		return Damaged(what, "its checksum is wrong")
	}
	return nil
}

// DeleteRange deletes entries at either end of the log. The note goes first where they are the newest:
// after a stop between the two the log has more than the note says, never less.
func (v *verifiedLogs) DeleteRange(first, last uint64) error {
	if noted := v.hard.record().Log; first > 0 && first <= noted && noted <= last {
		if err := v.hard.change(func(r *hardRecord) { r.Log = first - 1 }); err != nil {
			return err
		}
	}
	return v.LogStore.DeleteRange(first, last)
}

// verifiedSnapshots adds to snapshots, whose content the store sums up, a checksum of what the store
// says about them. It is in front of the content.
type verifiedSnapshots struct {
	raft.SnapshotStore
	hard    *hardState
	damaged func(error)
}

// Create begins a snapshot.
func (v *verifiedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, members raft.Configuration, membersIndex uint64, transport raft.Transport) (raft.SnapshotSink, error) {
	sink, err := v.SnapshotStore.Create(version, index, term, members, membersIndex, transport)
	if err != nil {
		return nil, err
	}
	sum := metaSum(&raft.SnapshotMeta{Version: version, Index: index, Term: term, Configuration: members, ConfigurationIndex: membersIndex})
	if _, err := sink.Write(binary.LittleEndian.AppendUint64(nil, sum)); err != nil {
		return nil, errors.Join(err, sink.Cancel())
	}
	return &verifiedSink{SnapshotSink: sink, index: index, hard: v.hard}, nil
}

// metaSum covers what raft takes from a snapshot's description.
func metaSum(m *raft.SnapshotMeta) uint64 {
	data, err := json.Marshal(struct {
		Version      raft.SnapshotVersion
		Index, Term  uint64
		Members      raft.Configuration
		MembersIndex uint64
	}{Version: m.Version, Index: m.Index, Term: m.Term, Members: m.Configuration, MembersIndex: m.ConfigurationIndex})
	if err != nil {
		panic(fmt.Sprintf("consensus: encode a snapshot's description: %v", err))
	}
	return xxhash.Sum64(data)
}

// verifiedSink notes the snapshot once it is on the disk.
type verifiedSink struct {
	raft.SnapshotSink
	index uint64
	hard  *hardState
}

func (s *verifiedSink) Close() error {
	if err := s.SnapshotSink.Close(); err != nil {
		return err
	}
	return s.hard.change(func(r *hardRecord) { r.Snapshot = max(r.Snapshot, s.index) })
}

// List lists the snapshots, the newest first.
func (v *verifiedSnapshots) List() ([]*raft.SnapshotMeta, error) {
	metas, err := v.SnapshotStore.List()
	for _, m := range metas {
		m.Size -= sumBytes
	}
	return metas, err
}

// Open opens a snapshot. One that is damaged ends the node.
func (v *verifiedSnapshots) Open(id string) (*raft.SnapshotMeta, io.ReadCloser, error) {
	meta, data, err := v.open(id)
	if damage := (*Damage)(nil); errors.As(err, &damage) {
		v.damaged(err)
	}
	return meta, data, err
}

func (v *verifiedSnapshots) open(id string) (meta *raft.SnapshotMeta, data io.ReadCloser, err error) {
	what := "snapshot " + id
	meta, data, err = v.SnapshotStore.Open(id)
	switch {
	case errors.Is(err, fs.ErrNotExist): // It has been replaced by newer ones.
		return nil, nil, err
	case err != nil:
		return nil, nil, &Damage{What: what, Err: err}
	}
	var sum [sumBytes]byte
	if _, err := io.ReadFull(data, sum[:]); err != nil || binary.LittleEndian.Uint64(sum[:]) != metaSum(meta) {
		return nil, nil, errors.Join(Damaged(what, "the checksum of its description is wrong"), data.Close())
	}
	meta.Size -= sumBytes
	return meta, data, nil
}

// check reads a snapshot to its end.
func (v *verifiedSnapshots) check(id string) error {
	meta, data, err := v.open(id)
	if err != nil {
		return asDamage("snapshot "+id, err)
	}
	n, err := io.Copy(io.Discard, data)
	if err = errors.Join(err, data.Close()); err == nil && n != meta.Size {
		err = fmt.Errorf("it has %d bytes in place of %d", n, meta.Size)
	}
	return asDamage("snapshot "+id, err)
}

// verify reads the whole folder before raft does, so that nothing is applied of a damaged one. It
// returns a *Damage where something is missing that this node has acknowledged. Where a snapshot makes
// up for damage, that is all: older entries and other snapshots that are damaged are removed.
func verify(dir string, logs *verifiedLogs, snapshots *verifiedSnapshots, logger hclog.Logger) error {
	metas, err := snapshots.List()
	if err != nil {
		return &Damage{What: "the list of snapshots", Err: err}
	}
	var snapshot *raft.SnapshotMeta // the newest that is whole
	var lost error                  // what may be missing
	for _, m := range metas {
		if err := snapshots.check(m.ID); err != nil {
			lost = errors.Join(lost, err)
			continue
		}
		snapshot = m
		break
	}
	covered := uint64(0)
	if snapshot != nil {
		covered = snapshot.Index
	}
	var first, last uint64
	err = protect(func() (err error) {
		if first, err = logs.FirstIndex(); err == nil {
			last, err = logs.LastIndex()
		}
		return err
	})
	if err != nil {
		return asDamage("the log", err)
	}
	noted := logs.hard.record()
	switch reach := max(covered, last); {
	case reach < max(noted.Log, noted.Snapshot):
		return errors.Join(lost, Damaged("the log", "it ends at entry %d; this node has acknowledged entries up to %d", reach, max(noted.Log, noted.Snapshot)))
	case last > covered && first > covered+1:
		return errors.Join(lost, Damaged("the log", "it begins at entry %d, and the newest snapshot that is whole ends at %d", first, covered))
	}
	var superseded uint64
	for index := max(first, 1); index <= last; index++ {
		err := logs.read(index, &raft.Log{})
		switch {
		case err == nil, index <= covered && errors.Is(err, raft.ErrLogNotFound):
		case index <= covered:
			superseded = index
		default:
			return asDamage(fmt.Sprintf("entry %d of the log", index), err)
		}
	}
	if superseded > 0 {
		logger.Warn("entries of the log are damaged; a snapshot holds what they did, and they are removed", "first", first, "last", superseded)
		if err := logs.DeleteRange(first, superseded); err != nil {
			return asDamage("the log", err)
		}
	}
	return removeOtherSnapshots(dir, metas, snapshot, snapshots, logger)
}

// removeOtherSnapshots removes what is no whole snapshot: the store would find it again and again.
func removeOtherSnapshots(dir string, metas []*raft.SnapshotMeta, newest *raft.SnapshotMeta, snapshots *verifiedSnapshots, logger hclog.Logger) error {
	whole := map[string]bool{}
	for _, m := range metas {
		whole[m.ID] = newest != nil && (m.ID == newest.ID || m.Index <= newest.Index && snapshots.check(m.ID) == nil)
	}
	found, err := os.ReadDir(filepath.Join(dir, "snapshots"))
	if err != nil {
		return &Damage{What: "the folder of snapshots", Err: err}
	}
	for _, f := range found {
		if whole[f.Name()] {
			continue
		}
		logger.Warn("a snapshot is damaged or unfinished, and not needed; it is removed", "snapshot", f.Name())
		if err := os.RemoveAll(filepath.Join(dir, "snapshots", f.Name())); err != nil {
			return fmt.Errorf("remove a damaged snapshot: %w", err)
		}
	}
	return nil
}
