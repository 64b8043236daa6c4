package membership

import (
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"sync"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/consensus"
)

// identity is what a data folder knows about the node that it belongs to: DIR/raft/node.json.
type identity struct {
	path string
	// mu guards what changes: Founders and Repairing.
	mu sync.Mutex

	ID string `json:"id"`
	// StoreID is drawn when the folder is new, so that a lost log shows.
	StoreID string `json:"store_id"`
	// Founders are written by the node that formed the cluster, before it did.
	Founders []founder `json:"founders,omitempty"`
	// Newcomer is set from when the folder is new until the node founds a cluster or its cluster has
	// taken it in as it is now. Until then it gives no vote: the folder before this one may have given
	// one, or acknowledged entries that this one does not have yet.
	Newcomer bool `json:"newcomer,omitempty"`
	// Repairing is set for a newcomer whose log was damaged, until it has its vote again. It forms no
	// cluster.
	Repairing bool `json:"repairing,omitempty"`
}

type founder struct {
	ID      string `json:"id"`
	StoreID string `json:"store_id"`
	Raft    string `json:"raft_address"`
	Control string `json:"control_address"`
}

// openIdentity reads or makes the identity in raft's part of a data folder; without a folder it is kept in
// memory. newcomer and repaired are what it says where it is new. It is the first file that a node writes there, so that one without it is damaged.
func openIdentity(dir, id string, newcomer, repaired bool) (*identity, error) {
	i := &identity{ID: id, StoreID: randomID(), Newcomer: newcomer, Repairing: repaired}
	if dir == "" {
		return i, nil
	}
	i.path = filepath.Join(dir, "node.json")
	found := &identity{path: i.path}
	err := consensus.ReadChecked(i.path, found)
	if errors.Is(err, fs.ErrNotExist) {
		if consensus.InUse(dir) {
			return nil, consensus.Damaged(i.path, "it is not there, but a log is")
		}
		return i, i.write()
	}
	if err != nil {
		return nil, fmt.Errorf("read who the data folder belongs to: %w", err)
	}
	if found.ID != id {
		return nil, fmt.Errorf("the data folder belongs to node %q, this node is %q; use that name or another folder", found.ID, id)
	}
	return found, nil
}

// write replaces the file as a whole or not at all.
func (i *identity) write() error {
	if i.path == "" {
		return nil
	}
	if err := consensus.WriteChecked(i.path, i); err != nil {
		return fmt.Errorf("write who the data folder belongs to: %w", err)
	}
	return nil
}

func (i *identity) setFounders(nodes []*pb.Node) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.Founders = nil
	for _, n := range nodes {
		i.Founders = append(i.Founders, founder{ID: n.GetId(), StoreID: n.GetStoreId(), Raft: n.GetRaftAddress(), Control: n.GetControlAddress()})
	}
	return i.write()
}

// standing is how far the node is on its way into a cluster.
func (i *identity) standing() (newcomer, repairing bool) {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.Newcomer, i.Repairing
}

// settle notes that the node is no newcomer any more, and whether it is still being repaired.
func (i *identity) settle(repairing bool) error {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.Newcomer, i.Repairing = false, repairing
	return i.write()
}

func (i *identity) founders() []*pb.Node {
	i.mu.Lock()
	defer i.mu.Unlock()
	var out []*pb.Node
	for _, f := range i.Founders {
		out = append(out, &pb.Node{Id: f.ID, StoreId: f.StoreID, RaftAddress: f.Raft, ControlAddress: f.Control})
	}
	return out
}

func randomID() string {
	var b [8]byte
	_, _ = rand.Read(b[:]) // It never fails.
	return hex.EncodeToString(b[:])
}
