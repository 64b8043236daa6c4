package worker

import (
	"slices"
	"testing"
	"time"
)

// TestSilentNodesAreLeftOut: a node that did not answer is not tried while others are there, even if one
// of them says that it leads.
func TestSilentNodesAreLeftOut(t *testing.T) {
	now := time.Unix(1000, 0)
	n := newNodes([]string{"a", "b", "c"})
	take := func(k int) (got []string) {
		for range k {
			got = append(got, n.next(now))
		}
		return got
	}
	if got := take(4); !slices.Equal(got, []string{"a", "b", "c", "a"}) {
		t.Errorf("tried %v", got)
	}
	if !n.suggest("c", now) || n.next(now) != "c" {
		t.Error("the node that leads is not next")
	}
	n.heard("b", false, now)
	if n.suggest("b", now) {
		t.Error("a silent node is suggested")
	}
	if got := take(4); slices.Contains(got, "b") || !slices.Contains(got, "a") || !slices.Contains(got, "c") {
		t.Errorf("tried %v while b is silent", got)
	}
	for _, address := range n.list {
		n.heard(address, false, now)
	}
	if got := take(3); !slices.Contains(got, "a") || !slices.Contains(got, "b") || !slices.Contains(got, "c") {
		t.Errorf("tried %v while all are silent", got)
	}
	n.heard("b", true, now)
	if got := take(2); !slices.Equal(got, []string{"b", "b"}) {
		t.Errorf("tried %v once b answered", got)
	}
	now = now.Add(silentFor)
	if !n.suggest("a", now) {
		t.Error("silence lasts for ever")
	}
}
