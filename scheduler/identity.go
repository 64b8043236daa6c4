package scheduler

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// identity is what a data folder knows about the node that it belongs to: DIR/raft/node.json.
type identity struct {
	path string

	ID string `json:"id"`
	// StoreID is drawn when the folder is new, so that a lost log shows.
	StoreID string `json:"store_id"`
	// Founders are written by the node that formed the cluster, before it did.
	Founders []founder `json:"founders,omitempty"`
}

type founder struct {
	ID      string `json:"id"`
	StoreID string `json:"store_id"`
	Raft    string `json:"raft_address"`
	Control string `json:"control_address"`
}

// openIdentity reads or makes the identity of a data folder; without a folder it is kept in memory.
func openIdentity(dir, id string) (*identity, error) {
	i := &identity{ID: id, StoreID: randomID()}
	if dir == "" {
		return i, nil
	}
	i.path = filepath.Join(dir, "raft", "node.json")
	data, err := os.ReadFile(i.path)
	if errors.Is(err, fs.ErrNotExist) {
		return i, i.write()
	}
	if err != nil {
		return nil, fmt.Errorf("read who the data folder belongs to: %w", err)
	}
	if err := json.Unmarshal(data, i); err != nil {
		return nil, fmt.Errorf("%s is damaged: %w", i.path, err)
	}
	if i.ID != id {
		return nil, fmt.Errorf("the data folder belongs to node %q, this node is %q; use that name or another folder", i.ID, id)
	}
	return i, nil
}

// write replaces the file as a whole or not at all.
func (i *identity) write() error {
	if i.path == "" {
		return nil
	}
	data, err := json.MarshalIndent(i, "", "  ")
	if err != nil {
		return fmt.Errorf("encode %s: %w", i.path, err)
	}
	if err := writeFileSync(i.path, append(data, '\n')); err != nil {
		return fmt.Errorf("write who the data folder belongs to: %w", err)
	}
	return nil
}

// writeFileSync writes a file beside path, syncs it and puts it in path's place.
func writeFileSync(path string, data []byte) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(data)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// syncDir makes a rename in a folder last.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (i *identity) setFounders(nodes []*pb.Node) error {
	i.Founders = nil
	for _, n := range nodes {
		i.Founders = append(i.Founders, founder{ID: n.GetId(), StoreID: n.GetStoreId(), Raft: n.GetRaftAddress(), Control: n.GetControlAddress()})
	}
	return i.write()
}

func (i *identity) founders() []*pb.Node {
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
