package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// newestSegment is the file that the log of a data folder is written to.
func newestSegment(t *testing.T, data string) string {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(data, "raft", "wal", "*.wal"))
	if err != nil || len(found) == 0 {
		t.Fatalf("segments %v, %v", found, err)
	}
	slices.Sort(found)
	return found[len(found)-1]
}

// flipBit changes the last place in a file where a text is.
func flipBit(t *testing.T, path, where string) {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.LastIndex(data, []byte(where))
	if at < 0 {
		t.Fatalf("%s does not have %q in it", path, where)
	}
	data[at] ^= 4
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestADamagedNodeIsRepaired damages the log of one node of three after another: each starts over
// without a vote and gets all from the others. When all are damaged, none of them makes a new cluster.
func TestADamagedNodeIsRepaired(t *testing.T) {
	c := newNodes(t, 3, func(int) []string { return []string{"--stable-after", "100ms"} })
	for i, damage := range []func(data string){
		func(data string) { flipBit(t, newestSegment(t, data), c.control[0]) },
		func(data string) {
			if err := os.Remove(newestSegment(t, data)); err != nil {
				t.Fatal(err)
			}
		},
		func(data string) { flipBit(t, filepath.Join(data, "raft", "node.json"), "n3") },
	} {
		c.leader(0, 1, 2)
		c.run[i].kill()
		damage(c.data(i))
		c.start(i)
		c.run[i].waitFor("repaired", func() bool {
			return strings.Contains(c.run[i].out.String(), "has caught up and votes again")
		})
		if text := c.run[i].out.String(); !strings.Contains(text, "the log of this node is damaged and nothing of it is used") {
			t.Errorf("node %d says %s", i, text)
		}
		if aside, _ := filepath.Glob(filepath.Join(c.data(i), "raft.damaged-*")); len(aside) != 1 {
			t.Errorf("node %d put aside %v", i, aside)
		}
		leader := c.leader(0, 1, 2)
		c.run[i].waitFor("the same as the others", func() bool {
			a, b := c.describe(i), c.describe(leader)
			return a.GetAppliedIndex() == b.GetAppliedIndex() && a.GetChainHash() == b.GetChainHash() &&
				memberOf(b.GetMembers(), i).GetSuffrage() == pb.Suffrage_SUFFRAGE_VOTER
		})
	}
	for i := range c.run {
		c.run[i].kill()
		if err := os.Remove(newestSegment(t, c.data(i))); err != nil {
			t.Fatal(err)
		}
	}
	for i := range c.run {
		c.start(i)
	}
	founder := slices.Index(c.control, slices.Min(c.control))
	c.run[founder].waitFor("waiting", func() bool {
		return strings.Contains(c.run[founder].out.String(), "there is no cluster that it could be repaired from")
	})
	for i := range c.run {
		if r := c.describe(i); r.GetMember() {
			t.Errorf("node %d of a cluster without a whole log is in one: %v", i, r)
		}
	}
}

// TestADamagedNodeAloneSaysSo: there is nobody to repair it, so it says what is damaged and what to do.
func TestADamagedNodeAloneSaysSo(t *testing.T) {
	c := placeNodes(t, 1, nil)
	c.startWith(0)
	c.leader(0)
	c.run[0].interrupt()
	for name, want := range map[string]string{
		"hardstate": "hardstate: the checksums of both copies are wrong", "node.json": "node.json: its checksum is wrong",
		"wal/segments.json": "segments.json: its checksum is wrong",
	} {
		path := filepath.Join(c.data(0), "raft", name)
		whole, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, bytes.ReplaceAll(whole, []byte("1"), []byte("2")), 0o600); err != nil {
			t.Fatal(err)
		}
		code, _, stderr := runQuire(t, "server", "--id", "n1", "--model", "tiny", "--data", c.data(0), "--http", c.http[0], "--grpc", c.grpc[0], "--cluster", c.control[0])
		if code != 1 || !strings.Contains(stderr, want) || !strings.Contains(stderr, "quire snapshot restore") || strings.Contains(stderr, "goroutine") {
			t.Errorf("with another %s: %d, %s", name, code, stderr)
		}
		if err := os.WriteFile(path, whole, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	c.startWith(0)
	if got := c.leader(0); got != 0 {
		t.Errorf("with all files as they were, node %d leads", got)
	}
}

// TestACopiedNodeIsRefused starts a second node with a copy of a running one's folder, and one with an empty
// folder under the same id: both end with the reason, and the first goes on undisturbed.
func TestACopiedNodeIsRefused(t *testing.T) {
	c := newNodes(t, 3, func(int) []string { return []string{"--stable-after", "100ms"} })
	leader := c.leader(0, 1, 2)
	for _, original := range []int{leader, (leader + 1) % 3} {
		first, data := c.run[original], c.data(original)
		control, raft := c.control[original], c.raft[original]
		for _, copied := range []bool{true, false} {
			dir := filepath.Join(t.TempDir(), "copy")
			if copied {
				if err := os.CopyFS(dir, os.DirFS(data)); err != nil {
					t.Fatal(err)
				}
			}
			code, _, stderr := runQuire(t, "server", "--id", fmt.Sprint("n", original+1), "--model", "tiny", "--data", dir,
				"--http", freePort(t), "--grpc", freePort(t), "--cluster", freePort(t), "--raft", freePort(t), "--join", c.join)
			if code != 1 || !strings.Contains(stderr, "is the id of the node at "+control) {
				t.Errorf("a second node %d, with a copy of the folder: %t: %d, %s", original, copied, code, stderr)
			}
		}
		select {
		case <-first.done:
			t.Errorf("the first node of the id ended: %s", first.out.String())
		default:
		}
		m := memberOf(c.describe(c.leader(0, 1, 2)).GetMembers(), original)
		if m.GetRaftAddress() != raft || m.GetControlAddress() != control || m.GetSuffrage() != pb.Suffrage_SUFFRAGE_VOTER {
			t.Errorf("afterwards the first one is %v", m)
		}
	}
	if now := c.leader(0, 1, 2); now != leader {
		t.Errorf("node %d leads in place of %d", now, leader)
	}
}
