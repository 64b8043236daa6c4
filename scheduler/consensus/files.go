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
	wal "github.com/hashicorp/raft-wal"
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

// OpenFiles opens or creates the files of a node under dir, after locking it.
func OpenFiles(dir string, logger hclog.Logger) (files *Files, err error) {
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

	walDir := filepath.Join(dir, "raft", "wal")
	if err := os.MkdirAll(walDir, 0o700); err != nil {
		return nil, fmt.Errorf("data folder %s is not writable: %w", dir, err)
	}
	snapshots, err := raft.NewFileSnapshotStoreWithLogger(filepath.Join(dir, "raft"), snapshotsKept, logger)
	if err != nil {
		return nil, fmt.Errorf("snapshots in %s: %w", dir, err)
	}
	log, err := wal.Open(walDir, wal.WithLogger(logger))
	if err != nil {
		return nil, fmt.Errorf("log in %s: %w", walDir, err)
	}
	cache, err := raft.NewLogCache(cachedEntries, log)
	if err != nil {
		return nil, errors.Join(err, log.Close())
	}
	return &Files{
		Logs:      cache,
		Stable:    log,
		Snapshots: snapshots,
		Close:     func() error { return errors.Join(log.Close(), lock.Close()) },
	}, nil
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
