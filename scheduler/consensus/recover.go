package consensus

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/hashicorp/raft"
)

// RecoveryFile is where, in a data folder, a file replaces the members of a cluster that has lost its majority for
// good: a JSON list of {"id", "address", "non_voter"}. It is renamed once it has been used.
const RecoveryFile = "raft/peers.json"

// recoverMembers acts on the recovery file, if there is one.
func (n *Node) recoverMembers(config *raft.Config, logs raft.LogStore, votes raft.StableStore, snapshots raft.SnapshotStore) error {
	if n.settings.DataDir == "" {
		return nil
	}
	path := filepath.Join(n.settings.DataDir, RecoveryFile)
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	members, err := raft.ReadConfigJSON(path)
	if err == nil && n.settings.Store == Memory {
		err = errors.New("there is no log to recover")
	}
	if err == nil {
		err = raft.RecoverCluster(config, n.machine, logs, votes, snapshots, n.inbox, members)
	}
	if err == nil {
		err = n.leapTerm(votes)
	}
	if err == nil {
		err = os.Rename(path, path+".used")
	}
	if err != nil {
		return fmt.Errorf("recover with %s: %w", path, err)
	}
	n.settings.Logger.Warn("the members of the cluster were replaced", "file", path, "members", len(members.Servers))
	return nil
}

// recoveryTerms is how far the term leaps when the members are replaced. The lost nodes may have held
// elections that this one never heard of, and workers refuse leaders of terms older than they have seen. At an
// election every two seconds the lost nodes would have needed 24 days to come as far; terms have room for
// two thousand such leaps.
const recoveryTerms = 1 << 20

// leapTerm moves the term above any that the cluster before can have used.
func (n *Node) leapTerm(votes raft.StableStore) error {
	key := []byte("CurrentTerm") // raft's own key
	term, err := votes.GetUint64(key)
	if err != nil && err.Error() != "not found" { // The store in memory says so; raft compares the text too.
		return err
	}
	return votes.SetUint64(key, term+recoveryTerms)
}

// stuckTransfer notices a leader that refuses every entry because a transfer of its leadership seems
// never to end (hashicorp/raft #696). Only a restart of the process helps then.
type stuckTransfer struct {
	// since is when the first of an unbroken run of refusals came, in Unix nanoseconds.
	since atomic.Int64
}

// stuckAfter is how many election timeouts a transfer may last: raft gives it up after one.
const stuckAfter = 3

// observe takes the outcome of a proposal and says whether refusals have lasted for longer than limit.
func (s *stuckTransfer) observe(err error, now time.Time, limit time.Duration) bool {
	if !errors.Is(err, raft.ErrLeadershipTransferInProgress) {
		s.since.Store(0)
		return false
	}
	if s.since.CompareAndSwap(0, now.UnixNano()) {
		return false
	}
	return now.UnixNano()-s.since.Load() > int64(limit)
}
