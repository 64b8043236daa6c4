package consensus

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hashicorp/go-hclog"
	"github.com/hashicorp/raft"
	raftboltdb "github.com/hashicorp/raft-boltdb/v2"
	wal "github.com/hashicorp/raft-wal"
	"go.etcd.io/bbolt"
	"golang.org/x/sys/unix"
)

// ErrDataDirInUse means that another process has the data folder open.
var ErrDataDirInUse = errors.New("another process uses this data folder")

// Files is where a node keeps its log, votes and snapshots.
type Files struct {
	Logs      raft.LogStore
	Stable    raft.StableStore
	Snapshots raft.SnapshotStore
	// hard is Stable where the log is on a disk.
	hard *hardState
	// Close releases what was opened. It may be nil.
	Close func() error
}

const (
	// snapshotsKept is how many snapshots stay on disk: the newest, and one in case it is damaged.
	snapshotsKept = 2
	// cachedEntries is how many of the newest log entries stay in memory for followers.
	cachedEntries = 256
)

// Store is the kind of file that the log is in.
type Store string

// The kinds of stores. A data folder keeps the one that it began with.
const (
	// WAL is hashicorp/raft-wal: segments of 64 MiB, one fsync an append.
	WAL Store = "wal"
	// BoltDB is hashicorp/raft-boltdb: one B+tree file that never shrinks, two fsyncs an append.
	BoltDB Store = "boltdb"
	// Memory keeps log, votes and snapshots in this process: a node that stops has lost them.
	Memory Store = "memory"
)

// raftDir is the part of a data folder that belongs to raft, and that is replaced when it is damaged.
const raftDir = "raft"

// OpenFiles opens or creates the files of a node under dir, after locking it. A folder that is damaged
// is an error that holds a *Damage.
func OpenFiles(dir string, store Store, logger hclog.Logger) (*Files, error) {
	return openFiles(Settings{DataDir: dir, Store: store}, logger)
}

// openFiles is OpenFiles for a node. One that has others to be repaired from puts a damaged folder aside
// and gets an empty one.
func openFiles(settings Settings, logger hclog.Logger) (files *Files, err error) {
	dir := settings.DataDir
	if settings.Store == Memory {
		log := raft.NewInmemStore()
		return &Files{Logs: log, Stable: log, Snapshots: raft.NewInmemSnapshotStore()}, settings.prepare("", false)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder %s cannot be created: %w", dir, err)
	}
	lock, err := lockDir(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, lock.Close())
		}
	}()
	files, err = openRaft(settings, false, logger)
	if damage := (*Damage)(nil); errors.As(err, &damage) {
		if !settings.Await {
			return nil, refusal(dir, damage)
		}
		aside, moved := setAside(dir)
		if moved != nil {
			return nil, fmt.Errorf("the data folder %s is damaged: %w; it cannot be put aside: %w; move it away", dir, damage, moved)
		}
		logger.Error("the log of this node is damaged and nothing of it is used; it was put aside, and the node starts over without a vote until it has caught up with the others", "damage", damage.Error(), "now", aside)
		files, err = openRaft(settings, true, logger)
	}
	if err != nil {
		return nil, err
	}
	closeLog := files.Close
	files.Close = func() error { return errors.Join(closeLog(), lock.Close()) }
	return files, nil
}

// openRaft opens what is in raftDir and reads it to its end. Its error holds a *Damage where the folder
// is not as this node wrote it. repaired says that it was, and is empty now.
func openRaft(settings Settings, repaired bool, logger hclog.Logger) (files *Files, err error) {
	dir := filepath.Join(settings.DataDir, raftDir)
	snapshots, err := openSnapshots(dir, logger)
	if err != nil {
		return nil, fmt.Errorf("data folder %s is not writable: %w", settings.DataDir, err)
	}
	if err := settings.prepare(dir, repaired); err != nil {
		return nil, err
	}
	hard, err := openHardState(dir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, hard.Close())
		}
	}()
	log, err := openStore(dir, settings, logger)
	if err != nil {
		return nil, err
	}
	files = &Files{
		Logs: log, Stable: hard, Snapshots: snapshots, hard: hard,
		Close: func() error { return errors.Join(log.Close(), hard.Close()) },
	}
	err = verify(dir, &verifiedLogs{LogStore: log, hard: hard}, &verifiedSnapshots{SnapshotStore: snapshots, hard: hard}, logger)
	if err != nil {
		return nil, errors.Join(err, protect(log.Close))
	}
	return files, nil
}

func openSnapshots(dir string, logger hclog.Logger) (raft.SnapshotStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, logger)
}

// logStore is a log that can be closed.
type logStore interface {
	raft.LogStore
	io.Closer
}

// openStore opens the log of one kind, and refuses a folder whose log is of the other.
func openStore(dir string, settings Settings, logger hclog.Logger) (logStore, error) {
	store := settings.Store
	paths := map[Store]string{WAL: filepath.Join(dir, "wal"), BoltDB: filepath.Join(dir, "log.db")}
	for kind, path := range paths {
		if _, err := os.Stat(path); kind != store && err == nil {
			return nil, fmt.Errorf("the log in %s is of the kind %q, not %q; use that, or start this node with an empty folder", dir, kind, store)
		}
	}
	var log logStore
	var open func() error
	switch store {
	case WAL:
		if err := os.MkdirAll(paths[WAL], 0o700); err != nil {
			return nil, fmt.Errorf("log in %s: %w", paths[WAL], err)
		}
		open = func() (err error) {
			log, err = wal.Open(paths[WAL], wal.WithLogger(logger), wal.WithMetaStore(&segmentTable{}), wal.WithSegmentSize(settings.segmentBytes))
			return err
		}
	case BoltDB:
		open = func() (err error) {
			log, err = raftboltdb.New(raftboltdb.Options{
				Path: paths[BoltDB], MsgpackUseNewTimeFormat: true,
				// Without a synced freelist it is made anew at every start, by a goroutine that panics where
				// a page is damaged.
				BoltOptions: &bbolt.Options{NoFreelistSync: false, FreelistType: bbolt.FreelistMapType},
			})
			return err
		}
	default:
		return nil, fmt.Errorf("there is no log store %q; there are %q, %q and %q", store, WAL, BoltDB, Memory)
	}
	if err := protect(open); err != nil {
		return nil, asDamage("the log in "+paths[store], err)
	}
	return log, nil
}

// lockDir takes an advisory lock that the kernel drops when the process ends, however it ends. The
// lock file names the holder, for the message that the next one gets.
func lockDir(dir string) (io.Closer, error) {
	path := filepath.Join(dir, "lock")
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("data folder %s is not writable: %w", dir, err)
	}
	err = unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		holder, _ := io.ReadAll(io.LimitReader(file, 32))
		_ = file.Close()
		return nil, fmt.Errorf("data folder %s: %w (process %s)", dir, ErrDataDirInUse, strings.TrimSpace(string(holder)))
	}
	if err == nil {
		err = file.Truncate(0)
	}
	if err == nil {
		_, err = fmt.Fprintf(file, "%d\n", os.Getpid())
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lock data folder %s: %w", dir, err), file.Close())
	}
	return file, nil
}
