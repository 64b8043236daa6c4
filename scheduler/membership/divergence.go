package membership

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/consensus"
)

// Nodes that applied the same entries must have the same state. Each asks the others, all the time, for
// the chain hash that they had at an entry that it applied itself a moment ago. One that finds itself
// against a majority, or against the leader where there is none, takes no part any more: it does not lead,
// vote or apply, says why, and starts over from the others when it is started again.

const (
	// compareEvery is how often a node compares, and how old the entry is that it compares at: by then the
	// others have applied it too.
	compareEvery = time.Second
	// comparePatience is how often in a row the leader's word is not taken while a node that could decide
	// has not come as far.
	comparePatience = 10
	// hashesKept bounds the entries whose chain hash a node remembers.
	hashesKept = 8192
)

// hashes remembers the chain hash after each of the newest entries.
type hashes struct {
	mu   sync.Mutex
	ring [hashesKept]hashAt
}

type hashAt struct{ index, hash uint64 }

func (h *hashes) add(index, hash uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ring[index%hashesKept] = hashAt{index, hash}
}

// at is the hash after an entry; 0 if it is not known.
func (h *hashes) at(index uint64) uint64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	if slot := h.ring[index%hashesKept]; slot.index == index {
		return slot.hash
	}
	return 0
}

// forget drops what belongs to a state that was replaced.
func (h *hashes) forget() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ring = [hashesKept]hashAt{}
}

// Applied notes the chain hash after an entry that this node applied.
func (m *Members) Applied(index, hash uint64) { m.hashes.add(index, hash) }

// Restored forgets what was noted of a state that another one has replaced.
func (m *Members) Restored() { m.hashes.forget() }

// opinion is what voters say about the chain hash at one entry.
type opinion struct {
	self, leader string
	own          uint64
	// others are the voters that answered, with 0 where they have not come as far.
	others map[string]uint64
	voters int
}

// verdict says whether this node is wrong, and whether another one that answers may decide soon.
func (o opinion) verdict() (wrong, pending bool) {
	majority := o.voters/2 + 1
	votes := map[uint64]int{o.own: 1}
	for _, hash := range o.others {
		if hash == 0 {
			pending = true
			continue
		}
		if votes[hash]++; votes[hash] >= majority {
			return hash != o.own, false
		}
	}
	leaders := o.others[o.leader]
	return o.leader != o.self && leaders != 0 && leaders != o.own, pending
}

// compare compares this node with the others until ctx ends or the node is found to be wrong.
func (m *Members) compare(ctx context.Context) {
	tick := time.NewTicker(compareEvery)
	defer tick.Stop()
	var last hashAt
	patience := comparePatience
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		if last.index != 0 && m.hashes.at(last.index) == last.hash { // Nobody restored another state since.
			o := m.opinion(ctx, last)
			switch wrong, pending := o.verdict(); {
			case wrong && pending && patience > 0:
				patience--
			case wrong:
				m.node.Quarantine(fmt.Errorf("after entry %d the state of this node has the chain hash %016x, other nodes have %s; it serves, leads and votes no more, and repairs itself when it is started again", last.index, last.hash, o.listed()))
				return
			default:
				patience = comparePatience
			}
		}
		view := m.settings.Store.View()
		last = hashAt{view.Index(), view.ChainHash()}
	}
}

// opinion asks the other voters about an entry.
func (m *Members) opinion(ctx context.Context, at hashAt) opinion {
	o := opinion{self: m.self.GetId(), leader: m.node.Leader().ID, own: at.hash, others: map[string]uint64{}}
	var others []consensus.Member
	for _, member := range m.node.Members() {
		if member.Voter {
			o.voters++
			if member.ID != o.self {
				others = append(others, member)
			}
		}
	}
	if len(others) > 0 {
		for id, a := range m.describe(ctx, others, &pb.DescribeRequest{AtIndex: at.index}) {
			if a.GetProblem() == "" {
				o.others[id] = a.GetChainHashAt()
			}
		}
	}
	return o
}

// listed names the others' hashes.
func (o opinion) listed() string {
	var out []string
	for _, id := range slices.Sorted(maps.Keys(o.others)) {
		if hash := o.others[id]; hash != 0 {
			out = append(out, fmt.Sprintf("%016x (%s)", hash, id))
		}
	}
	return strings.Join(out, ", ")
}
