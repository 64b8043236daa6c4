package membership

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

func TestVerdict(t *testing.T) {
	for name, c := range map[string]struct {
		leader  string
		voters  int
		others  map[string]uint64
		wrong   bool
		pending bool
	}{
		"all agree":                              {"b", 3, map[string]uint64{"b": 1, "c": 1}, false, false},
		"against the rest":                       {"b", 3, map[string]uint64{"b": 2, "c": 2}, true, false},
		"the leader against the rest":            {"a", 3, map[string]uint64{"b": 2, "c": 2}, true, false},
		"with another against the leader":        {"b", 3, map[string]uint64{"b": 2, "c": 1}, false, false},
		"against the leader, a third is dead":    {"b", 3, map[string]uint64{"b": 2}, true, false},
		"against the leader, a third may decide": {"b", 3, map[string]uint64{"b": 2, "c": 0}, true, true},
		"the leader of two":                      {"a", 2, map[string]uint64{"b": 2}, false, false},
		"the other of two":                       {"b", 2, map[string]uint64{"b": 2}, true, false},
		"no leader, no majority":                 {"", 5, map[string]uint64{"b": 2, "c": 3}, false, false},
		"nobody answers":                         {"b", 3, nil, false, false},
	} {
		wrong, pending := opinion{self: "a", leader: c.leader, own: 1, others: c.others, voters: c.voters}.verdict()
		if wrong != c.wrong || pending != c.pending {
			t.Errorf("%s: wrong is %t, pending %t", name, wrong, pending)
		}
	}
}

// TestAMajorityThatAgreesStays, whoever leads and whoever answers: a wrong node never talks the right ones
// out of serving, and of those that stay none differs from the majority.
func TestAMajorityThatAgreesStays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		voters := rapid.IntRange(1, 7).Draw(t, "voters")
		hash := make([]uint64, voters)
		right := map[uint64]int{}
		for i := range hash {
			hash[i] = rapid.Uint64Range(1, 3).Draw(t, "hash")
			right[hash[i]]++
		}
		name := func(i int) string { return fmt.Sprint(i) }
		leader := name(rapid.IntRange(0, voters-1).Draw(t, "leader"))
		for i := range hash {
			others := map[string]uint64{}
			for j := range hash {
				if j != i {
					others[name(j)] = hash[j]
				}
			}
			wrong, _ := opinion{self: name(i), leader: leader, own: hash[i], others: others, voters: voters}.verdict()
			for of, n := range right {
				if n > voters/2 && wrong != (hash[i] != of) {
					t.Fatalf("node %d of %v is wrong: %t", i, hash, wrong)
				}
			}
		}
	})
}
