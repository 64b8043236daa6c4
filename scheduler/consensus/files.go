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

// OpenFiles opens or creates the files of a node under dir, after locking it.
func OpenFiles(dir string, store Store, logger hclog.Logger) (files *Files, err error) {
	if store == Memory {
		log := raft.NewInmemStore()
		return &Files{Logs: log, Stable: log, Snapshots: raft.NewInmemSnapshotStore()}, nil
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
	snapshots, err := openSnapshots(filepath.Join(dir, "raft"), logger)
	if err != nil {
		return nil, fmt.Errorf("data folder %s is not writable: %w", dir, err)
	}
	log, err := openStore(filepath.Join(dir, "raft"), store, logger)
	if err != nil {
		return nil, err
	}
	return &Files{
		Logs:      log,
		Stable:    log,
		Snapshots: snapshots,
		Close:     func() error { return errors.Join(log.Close(), lock.Close()) },
	}, nil
}

func openSnapshots(dir string, logger hclog.Logger) (raft.SnapshotStore, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	return raft.NewFileSnapshotStoreWithLogger(dir, snapshotsKept, logger)
}

// logStore is a log that holds the votes too.
type logStore interface {
	raft.LogStore
	raft.StableStore
	io.Closer
}

// openStore opens the log of one kind, and refuses a folder whose log is of the other.
func openStore(dir string, store Store, logger hclog.Logger) (logStore, error) {
	paths := map[Store]string{WAL: filepath.Join(dir, "wal"), BoltDB: filepath.Join(dir, "log.db")}
	for kind, path := range paths {
		if _, err := os.Stat(path); kind != store && err == nil {
			return nil, fmt.Errorf("the log in %s is of the kind %q, not %q; use that, or start this node with an empty folder", dir, kind, store)
		}
	}
	var log logStore
	var err error
	switch store {
	case WAL:
		if err = os.MkdirAll(paths[WAL], 0o700); err == nil {
			log, err = wal.Open(paths[WAL], wal.WithLogger(logger))
		}
	case BoltDB:
		log, err = raftboltdb.New(raftboltdb.Options{
			Path: paths[BoltDB], MsgpackUseNewTimeFormat: true,
			BoltOptions: &bbolt.Options{NoFreelistSync: true, FreelistType: bbolt.FreelistMapType},
		})
	default:
		return nil, fmt.Errorf("there is no log store %q; there are %q, %q and %q", store, WAL, BoltDB, Memory)
	}
	if err != nil {
		return nil, fmt.Errorf("log in %s: %w", paths[store], err)
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
