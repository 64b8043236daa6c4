package state

import (
	"fmt"
	"iter"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// DefaultPool is where workers are that name no pool.
const DefaultPool = "default"

// How many pools and cordoned workers are remembered at most, and for how long, in the log's time, a cordon of a
// worker that is gone. Every node must use the same values.
const (
	MaxPools    = 1024
	MaxCordons  = 4096
	CordonAgeMS = 24 * 60 * 60 * 1000
)

// PoolOf is the pool that a worker is in.
func PoolOf(w *pb.WorkerInfo) string {
	if w.GetPool() == "" {
		return DefaultPool
	}
	return w.GetPool()
}

// openPool makes a pool unless it is there.
func (a *application) openPool(name string) *Refusal {
	if first[*pb.Pool](a.txn, poolsTable, name) != nil {
		return nil
	}
	return a.putPool(&pb.Pool{Name: name})
}

// putPool makes a new pool, if there is room for one.
func (a *application) putPool(p *pb.Pool) *Refusal {
	if n := count(a, poolsTable); n >= MaxPools {
		return &Refusal{Reason: fmt.Sprintf("pool %q: there are %d pools, the limit is %d; remove some that have no workers", p.GetName(), n, MaxPools)}
	}
	must(a.txn.Insert(poolsTable, p))
	return nil
}

func (a *application) pool(c *pb.PoolCommand) Result {
	name := c.GetPool().GetName()
	known := first[*pb.Pool](a.txn, poolsTable, name)
	if !c.GetRemoved() {
		if known != nil {
			return Result{Refused: &Refusal{Reason: fmt.Sprintf("pool %q is there already", name)}}
		}
		refused := a.putPool(c.GetPool())
		return Result{Changed: refused == nil, Refused: refused}
	}
	if known == nil {
		return Result{}
	}
	it, err := a.txn.Get(workersTable, "id")
	must(err)
	for raw := it.Next(); raw != nil; raw = it.Next() {
		if w, ok := raw.(*pb.WorkerInfo); ok && PoolOf(w) == name {
			return Result{Refused: &Refusal{Reason: fmt.Sprintf("pool %q has workers, %q for one; drain it first", name, w.GetId())}}
		}
	}
	must(a.txn.Delete(poolsTable, known))
	return Result{Changed: true}
}

// cordon bars a worker or a pool from new requests, or lifts that. What it names must be known.
func (a *application) cordon(c *pb.CordonCommand) Result {
	if c.GetWorkerId() == "" {
		known := first[*pb.Pool](a.txn, poolsTable, c.GetPool())
		switch {
		case known == nil:
			return Result{Refused: &Refusal{Reason: fmt.Sprintf("pool %q is unknown", c.GetPool())}}
		case known.GetCordoned() == !c.GetLifted():
			return Result{}
		}
		must(a.txn.Insert(poolsTable, &pb.Pool{Name: known.GetName(), Cordoned: !c.GetLifted()}))
		return Result{Changed: true}
	}
	id := c.GetWorkerId()
	barred := first[*cordoned](a.txn, cordonsTable, id)
	switch {
	case c.GetLifted() && barred != nil:
		must(a.txn.Delete(cordonsTable, barred))
		return Result{Changed: true}
	case barred != nil:
		return Result{}
	case first[*pb.WorkerInfo](a.txn, workersTable, id) == nil:
		return Result{Refused: &Refusal{Reason: fmt.Sprintf("worker %q is unknown", id)}}
	case c.GetLifted():
		return Result{}
	}
	if n := a.expireCordons(); n >= MaxCordons {
		return Result{Refused: &Refusal{Reason: fmt.Sprintf("worker %q: %d workers that are there are cordoned, the limit is %d; cordon their pool", id, n, MaxCordons)}}
	}
	must(a.txn.Insert(cordonsTable, &cordoned{id: id, sinceMS: a.nowMS}))
	return Result{Changed: true}
}

// expireCordons makes room for one more cordon: those of workers that are gone are dropped if they are old, and
// the oldest of them if there are too many. It returns how many are left.
func (a *application) expireCordons() int {
	var gone []*cordoned
	n := 0
	it, err := a.txn.Get(cordonsTable, "since")
	must(err)
	for raw := it.Next(); raw != nil; raw = it.Next() {
		n++
		if c, ok := raw.(*cordoned); ok && first[*pb.WorkerInfo](a.txn, workersTable, c.id) == nil {
			gone = append(gone, c)
		}
	}
	for _, c := range gone {
		if n < MaxCordons && a.nowMS-c.sinceMS <= CordonAgeMS {
			break // The others are younger.
		}
		must(a.txn.Delete(cordonsTable, c))
		n--
	}
	return n
}

// cordoned is a worker that is barred itself. It is immutable.
type cordoned struct {
	id      string
	sinceMS int64
}

func count(a *application, table string) (n int) {
	it, err := a.txn.Get(table, "id")
	must(err)
	for raw := it.Next(); raw != nil; raw = it.Next() {
		n++
	}
	return n
}

// Pools lists the pools by name.
func (v *View) Pools() iter.Seq[*pb.Pool] { return list[*pb.Pool](v.db, poolsTable, "id") }

// Pool returns the pool of this name, or nil.
func (v *View) Pool(name string) *pb.Pool { return first[*pb.Pool](v.db.Txn(false), poolsTable, name) }

// Cordoned says whether a worker is barred from new requests, itself or with its pool.
func (v *View) Cordoned(w *pb.WorkerInfo) bool {
	return v.WorkerCordoned(w.GetId()) || v.Pool(PoolOf(w)).GetCordoned()
}

// WorkerCordoned says whether the worker of this id is barred itself.
func (v *View) WorkerCordoned(id string) bool {
	return first[*cordoned](v.db.Txn(false), cordonsTable, id) != nil
}

// CordonedWorkers lists the workers that are barred themselves, by id, gone ones too.
func (v *View) CordonedWorkers() iter.Seq[string] {
	return func(yield func(string) bool) {
		for c := range list[*cordoned](v.db, cordonsTable, "id") {
			if !yield(c.id) {
				return
			}
		}
	}
}
