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
	talliesTable  = "tallies"
)

// The indexes are written by hand because memdb's own find fields by reflection, which costs more
// than the insert.
func schema() *memdb.DBSchema {
	return &memdb.DBSchema{Tables: map[string]*memdb.TableSchema{
		tenantsTable: {
			Name: tenantsTable,
			Indexes: map[string]*memdb.IndexSchema{
				"id": {Name: "id", Unique: true, Indexer: index[*Account](func(a *Account) []byte { return stringKey(a.Name) })},
				// Tenants with limits of their own.
				"limited": {Name: "limited", AllowMissing: true, Indexer: index[*Account](func(a *Account) []byte {
					if a.Limits == nil {
						return nil
					}
					return stringKey("")
				})},
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
				"id":    {Name: "id", Unique: true, Indexer: index[*cordoned](func(c *cordoned) []byte { return stringKey(c.id) })},
				"since": {Name: "since", Indexer: index[*cordoned](func(c *cordoned) []byte { return timeKey(c.sinceMS) })},
			},
		},
		talliesTable: {
			Name: talliesTable,
			Indexes: map[string]*memdb.IndexSchema{
				"id": {Name: "id", Unique: true, Indexer: index[*tally](func(t *tally) []byte { return stringKey(t.tenant) })},
				// The tenant with the most in front, and the one with the oldest end.
				"bytes":   {Name: "bytes", Indexer: index[*tally](func(t *tally) []byte { return timeKey(-t.bytes) })},
				"answers": {Name: "answers", Indexer: index[*tally](func(t *tally) []byte { return timeKey(-t.answers) })},
				"oldest":  {Name: "oldest", Indexer: index[*tally](func(t *tally) []byte { return timeKey(t.oldestMS) })},
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
				// Finished requests by tenant, the ones to forget first at the front of each.
				"ended": {Name: "ended", AllowMissing: true, Indexer: index[*Record](func(r *Record) []byte {
					if r.Phase != Finished {
						return nil
					}
					return append(stringKey(r.Request.GetTenant()), timeKey(r.FinishedMS)...)
				})},
				// Those of them that still have an answer.
				"answered": {Name: "answered", AllowMissing: true, Indexer: index[*Record](func(r *Record) []byte {
					if r.answerBytes() == 0 {
						return nil
					}
					return append(stringKey(r.Request.GetTenant()), timeKey(r.FinishedMS)...)
				})},
			},
		},
	}}
}

// index makes an object's key with a plain function; nil leaves the object out of the index.
type index[T any] func(T) []byte

var errIndexArgument = errors.New("state: an index is looked up by a string, or a string and a time")

func (f index[T]) FromObject(raw any) (bool, []byte, error) {
	object, ok := raw.(T)
	if !ok {
		return false, nil, fmt.Errorf("state: cannot index a %T", raw)
	}
	key := f(object)
	return key != nil, key, nil
}

func (index[T]) FromArgs(args ...any) ([]byte, error) {
	if len(args) == 0 || len(args) > 2 {
		return nil, errIndexArgument
	}
	s, ok := args[0].(string)
	if !ok {
		return nil, errIndexArgument
	}
	if len(args) == 1 {
		return stringKey(s), nil
	}
	ms, ok := args[1].(int64)
	if !ok {
		return nil, errIndexArgument
	}
	return append(stringKey(s), timeKey(ms)...), nil
}

// timeKey sorts as the times do, those before 1970 too.
func timeKey(ms int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(ms)^(1<<63)) }

// stringKey sorts as the strings do, and no key is another's prefix, whatever bytes they hold: lookups in
// an index that is not unique take prefixes.
func stringKey(s string) []byte {
	key := make([]byte, 0, len(s)+2)
	for i := range len(s) {
		if key = append(key, s[i]); s[i] == 0 {
			key = append(key, 0xff)
		}
	}
	return append(key, 0, 1)
}
