package consensus

import (
	"errors"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

const (
	// hangAfter is how long the disk may take for one write or read of the log or of the votes. It is
	// above what a loaded disk takes for a flush, and a leader that waits longer is of no use.
	hangAfter = 3 * time.Second
	// snapshotHangAfter is the same for one piece of a snapshot, and for the flush at its end.
	snapshotHangAfter = 30 * time.Second
)

// errHangs is why a node keeps out of elections whose disk does not answer.
var errHangs = errors.New("the disk of this node's log does not answer")

// diskWatch notices a disk that does not answer. Raft cannot: its loop waits for the disk, while other
// goroutines of its keep telling the followers that their leader is well.
type diskWatch struct {
	log *slog.Logger
	// changed is called when the disk begins to hang and when it answers again.
	changed func()
	// overdue are the operations that have taken too long and not ended.
	overdue atomic.Int32
}

// hangs says whether the disk does not answer.
func (d *diskWatch) hangs() bool { return d != nil && d.overdue.Load() > 0 }

// during runs one operation on the disk.
func (d *diskWatch) during(what string, limit time.Duration, f func() error) error {
	if d == nil {
		return f()
	}
	began := time.Now()
	noticed := make(chan struct{})
	late := time.AfterFunc(limit, func() {
		defer close(noticed)
		d.overdue.Add(1)
		d.log.Error("the disk does not answer; this node gives up leadership until it does", "doing", what, "for", limit)
		d.changed()
	})
	err := f()
	if !late.Stop() {
		<-noticed
		d.overdue.Add(-1)
		d.log.Warn("the disk answers again", "doing", what, "took", time.Since(began).Round(time.Millisecond))
		d.changed()
	}
	return err
}

// watchedSnapshots is the part of a store of snapshots that writes.
type watchedSnapshots struct {
	raft.SnapshotStore
	watch *diskWatch
}

func (w watchedSnapshots) Create(version raft.SnapshotVersion, index, term uint64, members raft.Configuration, membersIndex uint64, transport raft.Transport) (sink raft.SnapshotSink, err error) {
	err = w.watch.during("begin a snapshot", snapshotHangAfter, func() (err error) {
		sink, err = w.SnapshotStore.Create(version, index, term, members, membersIndex, transport)
		return err
	})
	if err != nil {
		return nil, err
	}
	return watchedSink{sink, w.watch}, nil
}

type watchedSink struct {
	raft.SnapshotSink
	watch *diskWatch
}

func (s watchedSink) Write(data []byte) (n int, err error) {
	err = s.watch.during("write a snapshot", snapshotHangAfter, func() (err error) {
		n, err = s.SnapshotSink.Write(data)
		return err
	})
	return n, err
}

func (s watchedSink) Close() error {
	return s.watch.during("end a snapshot", snapshotHangAfter, s.SnapshotSink.Close)
}
