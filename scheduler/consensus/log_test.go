package consensus

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-hclog"
)

// TestRaftRepeatsItselfRarely: what raft says of a node that is away is a line when it begins, and one a minute
// with how many there were; of another node, or something else, it is said at once.
func TestRaftRepeatsItselfRarely(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		log := newLogger(slog.New(slog.NewTextHandler(&out, nil)), hclog.Warn).Named("x").With("store", "wal")
		lines := func() int { return strings.Count(out.String(), "\n") }
		for i := range 600 {
			log.Error("failed to heartbeat to", "peer", "node-2", "error", errors.New(fmt.Sprint(i)))
			time.Sleep(100 * time.Millisecond) // Virtual.
		}
		if lines() != 1 {
			t.Errorf("in a minute %d lines:\n%s", lines(), out.String())
		}
		log.Error("failed to heartbeat to", "peer", "node-2")
		if lines() != 2 || !strings.Contains(out.String(), "not_said=599") {
			t.Errorf("a minute later:\n%s", out.String())
		}
		log.Error("failed to heartbeat to", "peer", "node-3")
		log.Warn("failed to contact", "server-id", "node-2")
		log.Info("entering follower state")
		if lines() != 4 {
			t.Errorf("of others:\n%s", out.String())
		}
		for i := range 10 * repeatsKept {
			log.Error("failed to heartbeat to", "peer", i)
		}
		if n := len(log.(*logger).said.lines); n > repeatsKept {
			t.Errorf("%d lines are known, the bound is %d", n, repeatsKept)
		}
	})
}
