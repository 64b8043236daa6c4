package state

import (
	"fmt"
	"iter"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Store holds the replicated tables. Apply and Restore must be called from one goroutine at a time;
// View may be called from any.
type Store struct {
	db   *memdb.MemDB
	view atomic.Pointer[View]
}

// New returns an empty store, as before the first log entry.
func New() *Store {
	return newStore(DefaultRetention)
}

func newStore(keep Retention) *Store {
	s := &Store{db: newDB()}
	s.view.Store(&View{db: s.db.Snapshot(), keep: keep})
	return s
}

func newDB() *memdb.MemDB {
	db, err := memdb.NewMemDB(schema())
	if err != nil {
		panic(fmt.Sprintf("state: the schema is wrong: %v", err))
	}
	return db
}

// View returns the state after the newest applied entry. It never changes.
func (s *Store) View() *View { return s.view.Load() }

// View is an immutable picture of the store. Records and worker infos read from it are shared:
// nobody may change them.
type View struct {
	db        *memdb.MemDB
	index     uint64
	chainHash uint64
	timeMS    int64
	kept      tally
	keep      Retention
}

// Index is the log index of the newest entry in the view; 0 before the first.
func (v *View) Index() uint64 { return v.index }

// ChainHash covers every entry applied so far, in order, and what it changed. Nodes at the same index must
// agree on it.
func (v *View) ChainHash() uint64 { return v.chainHash }

// TimeMS is the log's time: milliseconds since the cluster began, but for those in which all of it was down.
func (v *View) TimeMS() int64 { return v.timeMS }

// Request returns the request of this id, or nil.
func (v *View) Request(id string) *Record {
	return first[*Record](v.db.Txn(false), requestsTable, id)
}

// Worker returns the worker of this id, or nil.
func (v *View) Worker(id string) *pb.WorkerInfo {
	return first[*pb.WorkerInfo](v.db.Txn(false), workersTable, id)
}

// Workers lists the workers by id.
func (v *View) Workers() iter.Seq[*pb.WorkerInfo] {
	return list[*pb.WorkerInfo](v.db, workersTable, "id")
}

// Requests lists all requests by id.
func (v *View) Requests() iter.Seq[*Record] { return list[*Record](v.db, requestsTable, "id") }

// Live lists queued and assigned requests in the order of their admission.
func (v *View) Live() iter.Seq[*Record] { return list[*Record](v.db, requestsTable, "live") }

// OnWorker lists the requests assigned to a worker, by id.
func (v *View) OnWorker(id string) iter.Seq[*Record] {
	return list[*Record](v.db, requestsTable, "worker", id)
}

func first[T any](txn *memdb.Txn, table, id string) T {
	return foremost[T](txn, table, "id", id)
}

// foremost is what an index has in front; nil if that is nothing.
func foremost[T any](txn *memdb.Txn, table, index string, args ...any) T {
	raw, err := txn.First(table, index, args...)
	if err != nil {
		panic(fmt.Sprintf("state: read %s by %s: %v", table, index, err))
	}
	object, _ := raw.(T)
	return object
}

func list[T any](db *memdb.MemDB, table, index string, args ...any) iter.Seq[T] {
	return func(yield func(T) bool) {
		it, err := db.Txn(false).Get(table, index, args...)
		if err != nil {
			panic(fmt.Sprintf("state: read %s by %s: %v", table, index, err))
		}
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if object, ok := raw.(T); !ok || !yield(object) {
				return
			}
		}
	}
}
