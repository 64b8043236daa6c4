package consensus

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func (c *cluster) member(by int, id string) Member {
	m, _ := c.nodes[by].Member(id)
	return m
}

func TestTransfers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		old := c.leader(-1)
		to := (old + 1) % 3
		if _, err := c.nodes[to].Transfer(context.Background(), ""); !errors.Is(err, ErrNotLeader) {
			t.Errorf("a follower's transfer: %v", err)
		}
		if _, err := c.nodes[old].Transfer(context.Background(), "nobody"); !errors.Is(err, ErrNoSuchMember) {
			t.Errorf("a transfer to nobody: %v", err)
		}
		// Of many at once, one goes through and the others are refused, not queued.
		var mu sync.Mutex
		var refused, done int
		var all sync.WaitGroup
		for range 8 {
			all.Go(func() {
				next, err := c.nodes[old].Transfer(context.Background(), fmt.Sprint("node-", to))
				mu.Lock()
				defer mu.Unlock()
				switch {
				case err == nil && next.ID == fmt.Sprint("node-", to):
					done++
				case errors.Is(err, ErrTransferring), errors.Is(err, ErrNotLeader):
					refused++
				default:
					t.Errorf("transfer: %v, %v", next, err)
				}
			})
		}
		all.Wait()
		if done != 1 || refused != 7 {
			t.Errorf("%d transfers done, %d refused", done, refused)
		}
		// It leads and takes entries, again and again.
		for range 10 {
			leader := c.leader(-1)
			mustPropose(t, c.nodes[leader], "x")
			if _, err := c.nodes[leader].Transfer(context.Background(), ""); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// TestNewcomersEarnTheirVote adds an empty node: it gives no vote and has none until it has been
// healthy for a while under the pilot.
func TestNewcomersEarnTheirVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		leader := c.leader(-1)
		for i := range 20 {
			mustPropose(t, c.nodes[leader], fmt.Sprint(i))
		}
		fresh := c.add(t)
		c.heal()
		id := fmt.Sprint("node-", fresh)
		time.Sleep(30 * time.Second) // Virtual.
		if len(c.nodes[fresh].Members()) != 0 || c.nodes[fresh].Term() != 0 {
			t.Errorf("a node that nobody added knows members %v, term %d", c.nodes[fresh].Members(), c.nodes[fresh].Term())
		}
		stop := c.pilot(leader, 10*time.Second, time.Minute)
		if err := c.nodes[leader].Add(id, fmt.Sprint("address-", fresh)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(8 * time.Second) // Virtual.
		if m := c.member(leader, id); m.ID == "" || m.Voter {
			t.Errorf("after 8 s the newcomer is %+v", m)
		}
		time.Sleep(8 * time.Second) // Virtual.
		if m := c.member(leader, id); !m.Voter {
			t.Errorf("after 16 s the newcomer is %+v", m)
		}
		if got, want := c.tapes[fresh].String(), c.tapes[leader].String(); got != want {
			t.Errorf("the newcomer holds %q, want %q", got, want)
		}
		stop()
	})
}

// TestEmptyNodesGiveNoVote takes a voter's disk: the one that is behind must not win with its help.
func TestEmptyNodesGiveNoVote(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		leader := c.leader(-1)
		behind, wiped := (leader+1)%3, (leader+2)%3
		c.isolate(behind)
		mustPropose(t, c.nodes[leader], "acknowledged")
		// The leader's machine dies, and the disk of the only other one that has the entry.
		if err := c.nodes[wiped].Close(); err != nil {
			t.Fatal(err)
		}
		c.replace(t, wiped)
		c.heal()
		c.isolate(leader)
		time.Sleep(2 * time.Minute) // Virtual.
		if c.nodes[behind].Leads() {
			t.Fatal("a node without an acknowledged entry leads")
		}
		c.heal()
		next := c.leader(-1)
		if next != leader {
			t.Errorf("node %d leads, want %d", next, leader)
		}
	})
}

// TestReplacedNodesGiveNoVoteUntilTakenIn takes a voter's disk. The leader does not know that yet, and sends
// the log from its beginning: what the node finds in there, that it is a voter, must not make it one.
func TestReplacedNodesGiveNoVoteUntilTakenIn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.close()
		leader := c.leader(-1)
		mustPropose(t, c.nodes[leader], "acknowledged")
		wiped := (leader + 1) % 3
		if err := c.nodes[wiped].Close(); err != nil {
			t.Fatal(err)
		}
		c.newcomer(wiped, true)
		c.replace(t, wiped)
		c.heal()
		time.Sleep(30 * time.Second) // Virtual.
		if m := c.member(wiped, fmt.Sprint("node-", wiped)); !m.Voter {
			t.Fatalf("in the log that it was sent the node is %+v", m)
		}
		c.isolate(leader)
		time.Sleep(2 * time.Minute) // Virtual.
		for i, n := range c.nodes {
			if n.Leads() {
				t.Errorf("node %d leads by the vote of one that was not taken in", i)
			}
		}
		c.newcomer(wiped, false)
		c.leader(leader)
	})
}

// TestTheDeadAreRemoved, but never so many that the rest is no safe cluster.
func TestTheDeadAreRemoved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 5)
		defer c.close()
		leader := c.leader(-1)
		stop := c.pilot(leader, time.Second, time.Minute)
		dead := []int{(leader + 1) % 5, (leader + 2) % 5}
		for _, i := range dead {
			c.isolate(i)
		}
		time.Sleep(50 * time.Second) // Virtual.
		if n := len(c.nodes[leader].Members()); n != 5 {
			t.Errorf("%d members before the time", n)
		}
		time.Sleep(30 * time.Second) // Virtual.
		members := c.nodes[leader].Members()
		if len(members) != 3 || slices.ContainsFunc(members, func(m Member) bool {
			return m.ID == fmt.Sprint("node-", dead[0]) || m.ID == fmt.Sprint("node-", dead[1])
		}) {
			t.Errorf("after the time the members are %v", members)
		}
		last := (leader + 3) % 5
		c.isolate(last)
		time.Sleep(5 * time.Minute) // Virtual.
		if n := len(c.nodes[leader].Members()); n != 3 || !c.nodes[leader].Leads() {
			t.Errorf("%d members are left of three, one of them dead", n)
		}
		stop()
	})
}
