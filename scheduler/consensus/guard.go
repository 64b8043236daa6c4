package consensus

import (
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"syscall"

	"github.com/hashicorp/raft"
)

// guardedLogs decides what a failed write to the log means. With no room on the disk nothing was
// written: raft then steps down or refuses the entries, and goes on once there is room. After any
// other error nobody knows what the disk holds (a failed fsync may have dropped the pages that it
// should have written, and a log that could not begin its next segment takes no more), so the node
// must stop, and read its log anew when it starts. One that takes too long is told to watch.
type guardedLogs struct {
	raft.LogStore
	watch *diskWatch
	log   *slog.Logger
	fatal func(error)
	full  atomic.Bool
}

var _ raft.MonotonicLogStore = (*guardedLogs)(nil)

func (g *guardedLogs) StoreLog(entry *raft.Log) error { return g.StoreLogs([]*raft.Log{entry}) }

func (g *guardedLogs) StoreLogs(entries []*raft.Log) error {
	err := g.watch.during("write the log", hangAfter, func() error { return g.LogStore.StoreLogs(entries) })
	switch {
	case err == nil:
		if g.full.Swap(false) {
			g.log.Warn("the disk of the log has room again")
		}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		if !g.full.Swap(true) {
			g.log.Error("the disk of the log is full; this node takes no entries until there is room", "error", err)
		}
	default:
		g.fatal(fmt.Errorf("the log cannot be written, this node stops before it loses what it acknowledged; is its disk full or failing? %w", err))
	}
	return err
}

// GetLog reads an entry.
func (g *guardedLogs) GetLog(index uint64, entry *raft.Log) error {
	return g.watch.during("read the log", hangAfter, func() error { return g.LogStore.GetLog(index, entry) })
}

// DeleteRange deletes entries at either end of the log.
func (g *guardedLogs) DeleteRange(first, last uint64) error {
	return g.watch.during("cut the log", hangAfter, func() error { return g.LogStore.DeleteRange(first, last) })
}

// IsMonotonic passes the store's own.
func (g *guardedLogs) IsMonotonic() bool {
	store, ok := g.LogStore.(raft.MonotonicLogStore)
	return ok && store.IsMonotonic()
}

// guardedVotes stops the node when a vote or a term cannot be written: raft would panic.
type guardedVotes struct {
	raft.StableStore
	watch *diskWatch
	fatal func(error)
}

func (g guardedVotes) Set(key, value []byte) error {
	return g.check(func() error { return g.StableStore.Set(key, value) })
}

func (g guardedVotes) SetUint64(key []byte, value uint64) error {
	return g.check(func() error { return g.StableStore.SetUint64(key, value) })
}

func (g guardedVotes) check(write func() error) error {
	err := g.watch.during("write the vote", hangAfter, write)
	if err != nil {
		g.fatal(fmt.Errorf("this node's vote cannot be written, so it stops before it votes twice; is its disk full or failing? %w", err))
	}
	return err
}
