package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestSnapshotsOfACluster saves the state of three nodes, goes on, and goes back.
func TestSnapshotsOfACluster(t *testing.T) {
	c := newNodes(t, 3, func(int) []string { return nil })
	c.startWorker("w")
	c.leader(0, 1, 2)
	for i := range 3 {
		c.run[i].waitReady()
	}
	l := &load{nodes: c}
	dir := t.TempDir()
	snapshot := func(wantCode int, args ...string) (stdout, stderr string) {
		t.Helper()
		code, stdout, stderr := runQuire(t, append([]string{"snapshot"}, args...)...)
		if code != wantCode {
			t.Errorf("quire snapshot %s: %d, %s", strings.Join(args, " "), code, stderr)
		}
		return stdout, stderr
	}
	server := "--control=" + c.join
	saved := func(name string) (info snapshotInfo) {
		t.Helper()
		stdout, _ := snapshot(0, "save", filepath.Join(dir, name), server, "-o", "json")
		if err := json.Unmarshal([]byte(stdout), &info); err != nil {
			t.Fatal(err)
		}
		return info
	}
	// The end of a request reaches the log after its client has it.
	finished := func(name string, want int) (info snapshotInfo) {
		t.Helper()
		c.run[0].waitFor(fmt.Sprint(want, " requests ended"), func() bool {
			info = saved(name)
			return info.Finished == want
		})
		return info
	}
	for i := range 5 {
		l.one(i)
	}
	first := finished("first", 5)
	if first.Nodes != 3 || first.Workers != 1 || len(first.Members) != 3 || first.Queued+first.Assigned != 0 {
		t.Errorf("saved %+v", first)
	}
	for i := range 3 {
		l.one(i)
	}
	if later := finished("later", 8); later.Index <= first.Index {
		t.Errorf("three requests later: entry %d, before %d", later.Index, first.Index)
	}

	data, err := os.ReadFile(filepath.Join(dir, "first"))
	if err != nil {
		t.Fatal(err)
	}
	data[len(data)/2] ^= 1
	damaged := filepath.Join(dir, "damaged")
	if err := os.WriteFile(damaged, data, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"inspect", damaged}, {"restore", damaged, server}} {
		if _, stderr := snapshot(1, args...); !strings.Contains(stderr, "damaged") {
			t.Errorf("quire snapshot %s of a damaged file: %s", args[0], stderr)
		}
	}
	if stdout, _ := snapshot(0, "inspect", filepath.Join(dir, "first")); !strings.Contains(stdout, first.ChainHash) || !strings.Contains(stdout, "5 finished") {
		t.Errorf("inspect says %s", stdout)
	}

	snapshot(0, "restore", filepath.Join(dir, "first"), server)
	c.leader(0, 1, 2)
	if again := finished("again", 5); again.Nodes != 3 {
		t.Errorf("restored %+v", again)
	}
	l.one(0)
	finished("on", 6)
	c.run[0].waitFor("agreed on", func() bool {
		hashes := map[uint64]bool{}
		for i := range 3 {
			hashes[c.describe(i).GetChainHash()] = true
		}
		return len(hashes) == 1
	})
}
