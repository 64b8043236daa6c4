package state

import (
	"fmt"
	"iter"
	"sync/atomic"

	"github.com/hashicorp/go-memdb"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// How many finished requests are remembered, for how long after they ended, and how many bytes of
// output with them: beyond that the oldest keep their end and lose their output. A retry with the
// same id is answered from memory within this window. Every node must use the same values: they
// decide what Apply does.
const (
	FinishedKept      = 32768
	FinishedAgeMS     = 15 * 60 * 1000
	FinishedKeptBytes = 64 << 20
)

// limits are these three; tests make them small.
type limits struct {
	finished  int
	ageMS     int64
	keptBytes int64
}

// Store holds the replicated tables. Apply and Restore must be called from one goroutine at a time;
// View may be called from any.
type Store struct {
	limits limits
	db     *memdb.MemDB
	view   atomic.Pointer[View]
}

// New returns an empty store, as before the first log entry.
func New() *Store {
	return newStore(limits{FinishedKept, FinishedAgeMS, FinishedKeptBytes})
}

func newStore(limits limits) *Store {
	s := &Store{limits: limits, db: newDB()}
	s.view.Store(&View{db: s.db.Snapshot()})
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
	finished  int
	kept      int64
}

// Index is the log index of the newest entry in the view; 0 before the first.
func (v *View) Index() uint64 { return v.index }

// ChainHash covers every entry applied so far, in order. Nodes at the same index must agree on it.
func (v *View) ChainHash() uint64 { return v.chainHash }

// TimeMS is the log's time: milliseconds since the cluster began, but for those in which all of it was down.
func (v *View) TimeMS() int64 { return v.timeMS }

// Finished is the number of finished requests still remembered.
func (v *View) Finished() int { return v.finished }

// KeptBytes is what finished requests hold for replays.
func (v *View) KeptBytes() int64 { return v.kept }

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

// Ended lists finished requests, the ones that ended first at the front.
func (v *View) Ended() iter.Seq[*Record] { return list[*Record](v.db, requestsTable, "finished") }

// OnWorker lists the requests assigned to a worker, by id.
func (v *View) OnWorker(id string) iter.Seq[*Record] {
	return list[*Record](v.db, requestsTable, "worker", id)
}

func first[T any](txn *memdb.Txn, table, id string) T {
	raw, err := txn.First(table, "id", id)
	if err != nil {
		panic(fmt.Sprintf("state: read %s: %v", table, err))
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
