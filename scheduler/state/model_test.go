package state

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// serve has a worker join with a model of this digest.
func serve(id, model, digest, pool string) *pb.Command {
	w := &pb.WorkerInfo{Id: id, Model: model, ModelDigest: digest, Arithmetic: "cpu, KV f16", Pool: pool}
	return &pb.Command{Command: &pb.Command_Worker{Worker: &pb.WorkerCommand{Worker: w, Model: Identity(w)}}}
}

func pool(name string, removed bool) *pb.Command {
	return &pb.Command{Command: &pb.Command_Pool{Pool: &pb.PoolCommand{Pool: &pb.Pool{Name: name}, Removed: removed}}}
}

func cordon(worker, pool string, lifted bool) *pb.Command {
	c := &pb.CordonCommand{WorkerId: worker, Lifted: lifted}
	if worker == "" {
		c.Pool = pool
	}
	return &pb.Command{Command: &pb.Command_Cordon{Cordon: c}}
}

// checkModels compares the models' counts with the tables, and the workers with their models.
func checkModels(t interface{ Fatalf(string, ...any) }, v *View) {
	workers, live := map[string]int{}, map[string]int{}
	for w := range v.Workers() {
		workers[w.GetModel()]++
		// Workers of the property test that state no identity join unchecked.
		if m := v.Model(w.GetModel()); w.GetModelDigest() != "" && m.Identity.GetDigest() != w.GetModelDigest() {
			t.Fatalf("worker %s serves %q as %s, which is %v", w.GetId(), w.GetModelDigest(), w.GetModel(), m.Identity)
		}
		if w.GetPool() != "" && v.Pool(w.GetPool()) == nil {
			t.Fatalf("worker %s is in pool %q, which is not there", w.GetId(), w.GetPool())
		}
	}
	for r := range v.Live() {
		live[r.Request.GetModel()]++
	}
	for m := range v.Models() {
		if m.Workers != workers[m.Name] || m.Live != live[m.Name] || m.Workers+m.Live == 0 && m.Identity == nil {
			t.Fatalf("model %+v has %d workers and %d requests", m, workers[m.Name], live[m.Name])
		}
		delete(workers, m.Name)
		delete(live, m.Name)
	}
	if len(workers)+len(live) > 0 {
		t.Fatalf("workers %v and requests %v are of no model", workers, live)
	}
}

func bind(name, digest string) *pb.Command {
	return &pb.Command{Command: &pb.Command_Bind{Bind: &pb.BindCommand{Model: &pb.ModelIdentity{Name: name, Digest: digest, Arithmetic: "cpu, KV f16"}}}}
}

func release(name string) *pb.Command {
	return &pb.Command{Command: &pb.Command_Bind{Bind: &pb.BindCommand{Model: &pb.ModelIdentity{Name: name}, Released: true}}}
}

// TestNamesAreBounded: beyond the limit a new name is refused with what to do, and the others are not in the way.
func TestNamesAreBounded(t *testing.T) {
	l := &log{t: t, store: New()}
	for i := range MaxModels {
		if r := l.apply(1, bind(fmt.Sprint("m", i), "d"))[0]; r.Refused != nil {
			t.Fatal(r.Refused.Reason)
		}
	}
	if r := l.apply(1, serve("w", "more", "d", ""))[0]; r.Refused == nil || !strings.Contains(r.Refused.Reason, "quire pool release") {
		t.Errorf("one name too many: %+v", r)
	}
	if l.store.View().Model("more") != nil || l.store.View().Worker("w") != nil {
		t.Error("what was refused is in the tables")
	}
	if r := l.apply(1, serve("w", "m7", "d", ""), release("m8"), serve("v", "more", "d", "")); r[0].Refused != nil || r[2].Refused != nil {
		t.Errorf("known and freed names: %+v", r)
	}
}

// TestModelStandsForOneThing: a model's name stands for the weights and the arithmetic of its first worker,
// without workers too, until an operator changes that.
func TestModelStandsForOneThing(t *testing.T) {
	l := &log{t: t, store: New()}
	refused := func(c *pb.Command, parts ...string) {
		t.Helper()
		r := l.apply(1, c)[0]
		if r.Refused == nil {
			t.Fatalf("%v was let in", c)
		}
		for _, part := range parts {
			if !strings.Contains(r.Refused.Reason, part) {
				t.Errorf("refused because %q, without %q", r.Refused.Reason, part)
			}
		}
	}
	taken := func(c *pb.Command) {
		t.Helper()
		if r := l.apply(1, c)[0]; r.Refused != nil {
			t.Fatalf("refused: %s", r.Refused.Reason)
		}
	}
	taken(serve("v", "m", "one", ""))
	taken(serve("w", "m", "one", ""))
	refused(serve("x", "m", "two", ""), `model "m"`, `"one"`, `"two"`, "quire pool bind")
	other := serve("x", "m", "one", "")
	other.GetWorker().Worker.Arithmetic = "cpu, KV int8"
	other.GetWorker().Model = Identity(other.GetWorker().Worker)
	refused(other, `"cpu, KV int8"`, `"cpu, KV f16"`, "--kv-type")
	taken(serve("x", "n", "two", "")) // another name is free
	// What the name stands for outlasts its workers and requests, and snapshots.
	taken(leave("v"))
	taken(leave("w"))
	again := New()
	if err := again.Restore(bytes.NewReader(snapshot(t, l.store))); err != nil {
		t.Fatal(err)
	}
	l.store = again
	refused(serve("v", "m", "two", ""), `"two"`, `"one"`)
	// An operator changes it while nobody has the name.
	taken(serve("v", "m", "one", ""))
	refused(bind("m", "two"), "1 workers and 0 unfinished requests")
	refused(release("m"), "1 workers")
	taken(submit("a", 1))
	taken(leave("v"))
	refused(bind("m", "two"), "0 workers and 1 unfinished requests", "abort")
	taken(finish("a", pb.FinishReason_FINISH_REASON_STOP))
	taken(bind("m", "two"))
	refused(serve("v", "m", "one", ""), `"two"`)
	taken(serve("v", "m", "two", ""))
	taken(leave("v"))
	taken(release("m"))
	if l.store.View().Model("m") != nil {
		t.Errorf("a released name is still there: %+v", l.store.View().Model("m"))
	}
	// A worker that is alone may say so itself.
	alone := serve("v", "m", "three", "")
	alone.GetWorker().Rebind = true
	taken(serve("v", "m", "one", ""))
	taken(alone)
	taken(serve("w", "m", "three", ""))
	alone = serve("v", "m", "four", "")
	alone.GetWorker().Rebind = true
	refused(alone, `"four"`, `"three"`)
	taken(leave("v"))
	taken(leave("w"))
	taken(release("m"))
	// Of two in one entry the first one wins.
	results := l.apply(1, serve("v", "m", "one", ""), serve("w", "m", "two", ""))
	if results[0].Refused != nil || results[1].Refused == nil {
		t.Errorf("two at once: %+v", results)
	}
	checkModels(t, l.store.View())
}

// TestPoolsAndCordons: a pool comes with its first worker or before, goes when it is empty, and bars its
// workers; a worker's own cordon outlasts it.
func TestPoolsAndCordons(t *testing.T) {
	l := &log{t: t, store: New()}
	do := func(c *pb.Command, changed bool, refused string) {
		t.Helper()
		r := l.apply(1, c)[0]
		switch {
		case r.Changed != changed:
			t.Errorf("%v: changed %t", c, r.Changed)
		case (r.Refused != nil) != (refused != "") || r.Refused != nil && !strings.Contains(r.Refused.Reason, refused):
			t.Errorf("%v: refused %v, want %q", c, r.Refused, refused)
		}
	}
	barred := func(id string) bool {
		v := l.store.View()
		w := v.Worker(id)
		if w == nil {
			w = &pb.WorkerInfo{Id: id}
		}
		return v.Cordoned(w)
	}
	do(serve("v", "m", "one", "east"), true, "")
	do(serve("w", "m", "one", ""), true, "")
	do(pool("west", false), true, "")
	do(pool("east", false), false, "is there already")
	names := []string{}
	for p := range l.store.View().Pools() {
		names = append(names, p.GetName())
	}
	if want := []string{"default", "east", "west"}; !slices.Equal(names, want) {
		t.Errorf("pools %v, want %v", names, want)
	}
	do(cordon("", "north", false), false, "unknown")
	do(cordon("", "east", false), true, "")
	do(cordon("", "east", false), false, "")
	if !barred("v") || barred("w") {
		t.Errorf("v barred %t, w %t", barred("v"), barred("w"))
	}
	do(cordon("w", "", false), true, "")
	do(cordon("nobody", "", false), false, "unknown")
	do(leave("w"), true, "")
	if !barred("w") {
		t.Error("a worker's cordon is gone with its session")
	}
	do(cordon("w", "", true), true, "")
	do(cordon("", "east", true), true, "")
	if barred("v") || barred("w") {
		t.Error("a lifted cordon still bars")
	}
	do(pool("east", true), false, `has workers, "v" for one`)
	do(leave("v"), true, "")
	do(pool("east", true), true, "")
	do(pool("east", true), false, "")
}

// TestCordonsOfWorkersThatAreGone: every drained pod leaves a cordon, and however many there were, the next one
// can be drained; those of workers that are there stay.
func TestCordonsOfWorkersThatAreGone(t *testing.T) {
	l := &log{t: t, store: New()}
	l.apply(1, serve("stays", "m", "d", ""), cordon("stays", "", false))
	for i := range MaxCordons + 200 {
		id := fmt.Sprint("pod-", i)
		if r := l.apply(int64(2+i), serve(id, "m", "d", ""), cordon(id, "", false), leave(id)); r[1].Refused != nil || !r[1].Changed {
			t.Fatalf("pod %d: %+v", i, r[1])
		}
	}
	cordons := func() (n int) {
		for range l.store.View().CordonedWorkers() {
			n++
		}
		return n
	}
	v := l.store.View()
	if n := cordons(); n > MaxCordons || !v.WorkerCordoned("stays") || !v.WorkerCordoned(fmt.Sprint("pod-", MaxCordons+199)) || v.WorkerCordoned("pod-0") {
		t.Errorf("%d cordons are kept; want those of workers that are there, and the newest", n)
	}
	again := New()
	if err := again.Restore(bytes.NewReader(snapshot(t, l.store))); err != nil {
		t.Fatal(err)
	}
	l.store = again
	l.apply(2*CordonAgeMS, serve("last", "m", "d", ""), cordon("last", "", false))
	if n := cordons(); n != 2 || !l.store.View().WorkerCordoned("stays") {
		t.Errorf("%d cordons are kept after two days, want 2", n)
	}
}

// TestTenantsAreBounded: so many tenants can have limits of their own, and one that has none leaves nothing.
func TestTenantsAreBounded(t *testing.T) {
	l := &log{t: t, store: New()}
	for i := range MaxTenants {
		if r := l.apply(1, limit(&pb.Tenant{Name: fmt.Sprint("t", i), Weight: 2}))[0]; r.Refused != nil {
			t.Fatal(r.Refused.Reason)
		}
	}
	if r := l.apply(1, limit(&pb.Tenant{Name: "more", Weight: 2}))[0]; r.Refused == nil || !strings.Contains(r.Refused.Reason, "remove some") {
		t.Errorf("one too many: %+v", r)
	}
	if r := l.apply(1, limit(&pb.Tenant{Name: "t7", Weight: 3}))[0]; r.Refused != nil {
		t.Errorf("one that is known: %+v", r)
	}
	for i := range 1000 {
		l.apply(2, ended(fmt.Sprint("passing", i), fmt.Sprint("r", i), 1)...)
	}
	n := 0
	for range l.store.View().Accounts() {
		n++
	}
	if n != MaxTenants {
		t.Errorf("%d accounts are kept, %d have limits", n, MaxTenants)
	}
}
