package consensus

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

// TestRecoveryOfALostMajority gives the log of one of three nodes to a cluster of one.
func TestRecoveryOfALostMajority(t *testing.T) {
	for _, store := range []Store{WAL, BoltDB} {
		t.Run(string(store), func(t *testing.T) { recoverOne(t, store) })
	}
}

func recoverOne(t *testing.T, store Store) {
	layers, peers := listenPeers(t, 3)
	var nodes []*Node
	var dirs []string
	tapes := []*tape{{}, {}, {}}
	for i := range 3 {
		dirs = append(dirs, t.TempDir())
		nodes = append(nodes, open(t, Settings{
			NodeID: peers[i].ID, Peers: peers, Layer: layers[i], DataDir: dirs[i], Store: store,
			HeartbeatTimeout: 500 * time.Millisecond, LeaseTimeout: 250 * time.Millisecond,
		}, tapes[i]))
	}
	for i := range 5 {
		commit(t, fmt.Sprint("entry-", i), nodes)
	}
	survivor := 0 // Any that has it all.
	for !strings.HasSuffix(tapes[survivor].String(), "entry-4") {
		survivor = (survivor + 1) % 3
	}
	term := nodes[survivor].Term()
	for _, n := range nodes {
		if err := n.Close(); err != nil {
			t.Error(err)
		}
	}

	file := filepath.Join(dirs[survivor], RecoveryFile)
	reopen := func(sm StateMachine) (*Node, error) {
		layer := OverTCP(listenLoopback(t), "")
		return Open(Settings{
			NodeID: peers[survivor].ID, Await: true, Layer: layer, DataDir: dirs[survivor], Store: store, Logger: quiet,
			HeartbeatTimeout: 500 * time.Millisecond, LeaseTimeout: 250 * time.Millisecond,
		}, sm)
	}
	if err := os.WriteFile(file, []byte("[]"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := reopen(&tape{}); err == nil || !strings.Contains(err.Error(), "peers.json") {
		t.Errorf("a recovery file without members: %v", err)
	}
	if err := os.WriteFile(file, fmt.Appendf(nil, `[{"id": %q, "address": "127.0.0.1:1"}]`, peers[survivor].ID), 0o600); err != nil {
		t.Fatal(err)
	}
	recovered := &tape{}
	n, err := reopen(recovered)
	if err != nil {
		t.Fatal(err)
	}
	n.CallElection()
	lead(t, n)
	mustPropose(t, n, "after")
	if got, want := recovered.String(), tapes[survivor].String()+",after"; got != want {
		t.Errorf("recovered %q, want %q", got, want)
	}
	// The lost nodes may have gone through many elections, and workers remember the newest term.
	if n.Term() < term+recoveryTerms {
		t.Errorf("the term went from %d to %d", term, n.Term())
	}
	if members := n.Members(); len(members) != 1 || members[0].ID != peers[survivor].ID {
		t.Errorf("recovered members %v", members)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the recovery file is still there: %v", err)
	}
	again := &tape{}
	if n, err = reopen(again); err != nil {
		t.Fatal(err)
	}
	n.CallElection()
	lead(t, n)
	if again.String() != recovered.String() {
		t.Errorf("after another start %q, want %q", again, recovered)
	}
	if err := n.Close(); err != nil {
		t.Error(err)
	}
}

func TestStuckTransferIsNoticed(t *testing.T) {
	var s stuckTransfer
	start := time.Unix(1000, 0)
	inProgress := fmt.Errorf("apply: %w", raft.ErrLeadershipTransferInProgress)
	for _, step := range []struct {
		err  error
		at   time.Duration
		want bool
	}{
		{inProgress, 0, false},
		{inProgress, 9 * time.Second, false},
		{nil, 10 * time.Second, false}, // It ended.
		{inProgress, 11 * time.Second, false},
		{inProgress, 20 * time.Second, false},
		{inProgress, 21 * time.Second, true},
	} {
		if got := s.observe(step.err, start.Add(step.at), 9*time.Second); got != step.want {
			t.Errorf("at %v with %v: stuck is %t", step.at, step.err, got)
		}
	}
}
