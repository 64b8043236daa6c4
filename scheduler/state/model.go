package state

import (
	"fmt"
	"iter"
	"maps"
	"slices"

	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Model is what a model's name stands for, as long as there is a worker or an unfinished request of
// it: a stream that goes on elsewhere must go on with the same weights and the same arithmetic.
type Model struct {
	Name string
	// Identity is what the first worker registered; nil for a name that only requests or workers of
	// older versions brought.
	Identity *pb.ModelIdentity
	// Workers that are known, and requests that have not ended. Snapshots leave these to be counted.
	Workers, Live int
}

// Identity is what a worker takes its model's name to stand for.
func Identity(w *pb.WorkerInfo) *pb.ModelIdentity {
	return &pb.ModelIdentity{Name: w.GetModel(), Digest: w.GetModelDigest(), Arithmetic: w.GetArithmetic()}
}

// Check says why a worker that takes the name to stand for something is not let in; nil if it is. The
// worker itself, if it is known, is no reason: again says that it is.
func (m *Model) Check(claim *pb.ModelIdentity, again bool) *Refusal {
	others := m.Workers
	if again {
		others--
	}
	known := m.Identity
	if known == nil || known.GetDigest() == claim.GetDigest() && known.GetArithmetic() == claim.GetArithmetic() || others == 0 && m.Live == 0 {
		return nil
	}
	const advice = "or serve the model under another name, or wait until no other worker and no unfinished request of it is left"
	held := fmt.Sprintf("%d other workers and %d unfinished requests", others, m.Live)
	if known.GetDigest() != claim.GetDigest() {
		return &Refusal{Reason: fmt.Sprintf("model %q: the worker's weights have digest %q, those of the cluster %q (%s), and streams could not go on from one to the other; start the worker with the file that the others have, %s",
			m.Name, claim.GetDigest(), known.GetDigest(), held, advice)}
	}
	return &Refusal{Reason: fmt.Sprintf("model %q: the worker, with digest %q as the cluster has it, computes with %q, the cluster with %q (%s), and streams could not go on from one to the other; start the worker with the others' --kv-type and --exact-float, %s",
		m.Name, claim.GetDigest(), claim.GetArithmetic(), known.GetArithmetic(), held, advice)}
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
		if m.Workers > 0 || m.Live > 0 {
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
	again := known != nil && known.GetModel() == w.GetModel()
	if claim := c.GetModel(); claim != nil {
		if refused := m.Check(claim, again); refused != nil {
			return Result{Refused: refused}
		}
		if refused := a.openPool(PoolOf(w)); refused != nil {
			return Result{Refused: refused}
		}
		m.Identity = claim
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

// Models lists the models that have workers or unfinished requests, by name.
func (v *View) Models() iter.Seq[*Model] { return list[*Model](v.db, modelsTable, "id") }
