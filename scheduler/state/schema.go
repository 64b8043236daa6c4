package state

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/hashicorp/go-memdb"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

const (
	nodesTable    = "nodes"
	tenantsTable  = "tenants"
	uploadsTable  = "uploads"
	workersTable  = "workers"
	modelsTable   = "models"
	poolsTable    = "pools"
	cordonsTable  = "cordons"
	requestsTable = "requests"
)

// The indexes are written by hand because memdb's own find fields by reflection, which costs more
// than the insert.
func schema() *memdb.DBSchema {
	return &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tenantsTable: {
			Name: tenantsTable,
			Indexes: map[string]*memdb.IndexSchema{
				"id": {Name: "id", Unique: true, Indexer: index[*Account](func(a *Account) []byte { return stringKey(a.Name) })},
				// Tenants with requests, the one that was given the least by its weight in front.
				"share": {Name: "share", AllowMissing: true, Indexer: index[*Account](func(a *Account) []byte {
					if a.Live == 0 {
						return nil
					}
					return binary.BigEndian.AppendUint64(nil, uint64(a.share()))
				})},
			},
		},
		uploadsTable: {
			Name: uploadsTable,
			Indexes: map[string]*memdb.IndexSchema{
				"id":    {Name: "id", Unique: true, Indexer: index[*upload](func(u *upload) []byte { return stringKey(u.GetRequestId()) })},
				"began": {Name: "began", Indexer: index[*upload](func(u *upload) []byte { return timeKey(u.GetBeganMs()) })},
			},
		},
		nodesTable: {
			Name: nodesTable,
			Indexes: map[string]*memdb.IndexSchema{
				"id": {Name: "id", Unique: true, Indexer: index[*pb.Node](func(n *pb.Node) []byte {
					return stringKey(n.GetId())
				})},
			},
		},
		workersTable: {
			Name: workersTable,
			Indexes: map[string]*memdb.IndexSchema{
				"id": {Name: "id", Unique: true, Indexer: index[*pb.WorkerInfo](func(w *pb.WorkerInfo) []byte {
					return stringKey(w.GetId())
				})},
			},
		},
		modelsTable: {
			Name: modelsTable,
			Indexes: map[string]*memdb.IndexSchema{
				"id": {Name: "id", Unique: true, Indexer: index[*Model](func(m *Model) []byte { return stringKey(m.Name) })},
			},
		},
		poolsTable: {
			Name: poolsTable,
			Indexes: map[string]*memdb.IndexSchema{
				"id": {Name: "id", Unique: true, Indexer: index[*pb.Pool](func(p *pb.Pool) []byte { return stringKey(p.GetName()) })},
			},
		},
		cordonsTable: {
			Name: cordonsTable,
			Indexes: map[string]*memdb.IndexSchema{
				"id": {Name: "id", Unique: true, Indexer: index[cordoned](func(id cordoned) []byte { return stringKey(string(id)) })},
			},
		},
		requestsTable: {
			Name: requestsTable,
			Indexes: map[string]*memdb.IndexSchema{
				"id": {Name: "id", Unique: true, Indexer: index[*Record](func(r *Record) []byte {
					return stringKey(r.Request.GetId())
				})},
				// Unfinished requests in the order of their admission.
				"live": {Name: "live", AllowMissing: true, Indexer: index[*Record](func(r *Record) []byte {
					if r.Phase == Finished {
						return nil
					}
					return binary.BigEndian.AppendUint64(nil, r.Submitted.Index)
				})},
				"worker": {Name: "worker", AllowMissing: true, Indexer: index[*Record](func(r *Record) []byte {
					if r.Phase != Assigned {
						return nil
					}
					return stringKey(r.WorkerID)
				})},
				// Finished requests, the ones to forget first at the front.
				"finished": {Name: "finished", AllowMissing: true, Indexer: index[*Record](func(r *Record) []byte {
					if r.Phase != Finished {
						return nil
					}
					return timeKey(r.FinishedMS)
				})},
				// Those of them that still have something to replay.
				"kept": {Name: "kept", AllowMissing: true, Indexer: index[*Record](func(r *Record) []byte {
					if r.keptBytes() == 0 {
						return nil
					}
					return timeKey(r.FinishedMS)
				})},
			},
		},
	}}
}

// index makes an object's key with a plain function; nil leaves the object out of the index.
type index[T any] func(T) []byte

var errIndexArgument = errors.New("state: an index is looked up by one string")

func (f index[T]) FromObject(raw any) (bool, []byte, error) {
	object, ok := raw.(T)
	if !ok {
		return false, nil, fmt.Errorf("state: cannot index a %T", raw)
	}
	key := f(object)
	return key != nil, key, nil
}

func (index[T]) FromArgs(args ...any) ([]byte, error) {
	if len(args) != 1 {
		return nil, errIndexArgument
	}
	s, ok := args[0].(string)
	if !ok {
		return nil, errIndexArgument
	}
	return stringKey(s), nil
}

// timeKey sorts as the times do, those before 1970 too.
func timeKey(ms int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(ms)^(1<<63)) }

// stringKey ends with a zero byte, so that no key is another's prefix.
func stringKey(s string) []byte {
	key := make([]byte, len(s)+1)
	copy(key, s)
	return key
}
