package state

import (
	"fmt"
	"iter"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// MaxModels bounds the names that stand for something. Every node must use the same value.
const MaxModels = 1024

// Model is what a model's name stands for: a stream that goes on elsewhere, and a client that comes back,
// must find the same weights and the same arithmetic. The first worker says so, and it stays so without
// workers, until an operator changes it.
type Model struct {
	Name string
	// Identity is what the first worker registered, or an operator said; nil for a name that only requests or
	// workers that state none brought.
	Identity *pb.ModelIdentity
	// Workers that are known, and requests that have not ended. Snapshots leave these to be counted.
	Workers, Live int
}

// Identity is what a worker takes its model's name to stand for.
func Identity(w *pb.WorkerInfo) *pb.ModelIdentity {
	return &pb.ModelIdentity{Name: w.GetModel(), Digest: w.GetModelDigest(), Arithmetic: w.GetArithmetic()}
}

func sameModel(a, b *pb.ModelIdentity) bool {
	return a.GetDigest() == b.GetDigest() && a.GetArithmetic() == b.GetArithmetic()
}

// Check says why a worker that takes the name to stand for something is not let in; nil if it is. rebind lets
// it in where nobody else has the name; again says that the worker is one of those that are counted.
func (m *Model) Check(claim *pb.ModelIdentity, rebind, again bool) *Refusal {
	known := m.Identity
	if known == nil || sameModel(known, claim) || rebind && m.Live == 0 && (m.Workers == 0 || again && m.Workers == 1) {
		return nil
	}
	const advice = "or serve the model under another name; an operator can change what the name stands for with quire pool bind"
	if known.GetDigest() != claim.GetDigest() {
		return &Refusal{Reason: fmt.Sprintf("model %q: the worker's weights have digest %q, the name stands for those with %q, and streams could not go on from one to the other; start the worker with that file, %s",
			m.Name, claim.GetDigest(), known.GetDigest(), advice)}
	}
	return &Refusal{Reason: fmt.Sprintf("model %q: the worker, with digest %q as the name stands for, computes with %q, the others with %q, and streams could not go on from one to the other; start the worker with the others' --kv-type and --exact-float, %s",
		m.Name, claim.GetDigest(), claim.GetArithmetic(), known.GetArithmetic(), advice)}
}

// bind changes what a name stands for, or frees it.
func (a *application) bind(c *pb.BindCommand) Result {
	name := c.GetModel().GetName()
	m := a.model(name)
	if c.GetReleased() && m.Identity == nil || !c.GetReleased() && m.Identity != nil && sameModel(m.Identity, c.GetModel()) {
		return Result{}
	}
	if m.Identity != nil && m.Workers+m.Live > 0 {
		return Result{Refused: &Refusal{Reason: fmt.Sprintf("model %q: %d workers and %d unfinished requests have the name; drain the workers, and wait for the requests or abort them", name, m.Workers, m.Live)}}
	}
	if c.GetReleased() {
		m.Identity = nil
		return Result{Changed: true}
	}
	if refused := a.nameModel(m, c.GetModel()); refused != nil {
		return Result{Refused: refused}
	}
	return Result{Changed: true}
}

// nameModel lets a name stand for something, if there is room for one more.
func (a *application) nameModel(m *Model, identity *pb.ModelIdentity) *Refusal {
	if m.Identity == nil {
		named := 0
		for _, name := range a.modelNames() {
			if a.model(name).Identity != nil {
				named++
			}
		}
		if named >= MaxModels {
			return &Refusal{Reason: fmt.Sprintf("model %q: %d names stand for models, the limit is %d; release some with quire pool release", m.Name, named, MaxModels)}
		}
	}
	m.Identity = identity
	return nil
}

// modelNames are the models in the table and those of this entry, sorted.
func (a *application) modelNames() []string {
	names := slices.Collect(maps.Keys(a.models))
	it, err := a.txn.Get(modelsTable, "id")
	must(err)
	for raw := it.Next(); raw != nil; raw = it.Next() {
		if m, ok := raw.(*Model); ok && a.models[m.Name] == nil {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

// model is a model's working copy within the entry.
func (a *application) model(name string) *Model {
	if m := a.models[name]; m != nil {
		return m
	}
	m := &Model{Name: name}
	if known := first[*Model](a.txn, modelsTable, name); known != nil {
		*m = *known
	}
	a.models[name] = m
	return m
}

// keepModels writes the working copies down.
func (a *application) keepModels() {
	for _, name := range slices.Sorted(maps.Keys(a.models)) {
		m := a.models[name]
		if m.Identity != nil || m.Workers > 0 || m.Live > 0 {
			must(a.txn.Insert(modelsTable, m))
		} else if known := first[*Model](a.txn, modelsTable, name); known != nil {
			must(a.txn.Delete(modelsTable, known))
		}
	}
}

// worker records that a worker joined or left. Which of two workers with different weights has a
// model's name is decided here, and so alike on all nodes.
func (a *application) worker(c *pb.WorkerCommand) Result {
	w := c.GetWorker()
	known := first[*pb.WorkerInfo](a.txn, workersTable, w.GetId())
	if c.GetLeft() {
		if known == nil {
			return Result{}
		}
		a.model(known.GetModel()).Workers--
		must(a.txn.Delete(workersTable, known))
		return Result{Changed: true}
	}
	m := a.model(w.GetModel())
	if claim := c.GetModel(); claim != nil {
		again := known != nil && known.GetModel() == w.GetModel()
		if refused := m.Check(claim, c.GetRebind(), again); refused != nil {
			return Result{Refused: refused}
		}
		if refused := a.openPool(PoolOf(w)); refused != nil {
			return Result{Refused: refused}
		}
		if refused := a.nameModel(m, claim); refused != nil {
			return Result{Refused: refused}
		}
	}
	if known != nil {
		a.model(known.GetModel()).Workers--
	}
	m.Workers++
	must(a.txn.Insert(workersTable, w))
	return Result{Changed: !proto.Equal(known, w)}
}

// Model returns what the name stands for, or nil.
func (v *View) Model(name string) *Model { return first[*Model](v.db.Txn(false), modelsTable, name) }

// Models lists the names that stand for something, or have workers or unfinished requests, by name.
func (v *View) Models() iter.Seq[*Model] { return list[*Model](v.db, modelsTable, "id") }
