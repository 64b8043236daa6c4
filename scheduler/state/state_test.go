package state

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func submit(id string, prompt ...int32) *pb.Command {
	return &pb.Command{Command: &pb.Command_Submit{Submit: &pb.SubmitCommand{
		Request: &pb.Request{Id: id, Model: "m", Tenant: "t", Prompt: prompt, GatewayId: "g", CacheSalt: []byte("salt")},
		Digest:  []byte("digest-" + id),
	}}}
}

func assign(id, worker string, term, index uint64) *pb.Command {
	return &pb.Command{Command: &pb.Command_Assign{Assign: &pb.AssignCommand{RequestId: id, WorkerId: worker, Term: term, Index: index}}}
}

func requeue(id, worker string) *pb.Command {
	return &pb.Command{Command: &pb.Command_Requeue{Requeue: &pb.RequeueCommand{RequestId: id, WorkerId: worker}}}
}

func finish(id string, reason pb.FinishReason) *pb.Command {
	return &pb.Command{Command: &pb.Command_Finish{Finish: &pb.FinishCommand{
		RequestId: id, FinishReason: reason, Usage: &pb.Usage{CompletionTokens: 7},
	}}}
}

func join(id string) *pb.Command {
	return &pb.Command{Command: &pb.Command_Worker{Worker: &pb.WorkerCommand{Worker: &pb.WorkerInfo{Id: id, Model: "m"}}}}
}

func leave(id string) *pb.Command {
	return &pb.Command{Command: &pb.Command_Worker{Worker: &pb.WorkerCommand{Worker: &pb.WorkerInfo{Id: id}, Left: true}}}
}

func encode(t rapid.TB, ms int64, commands ...*pb.Command) []byte {
	t.Helper()
	data, err := proto.Marshal(&pb.Entry{ProposedUnixMs: ms, Commands: commands})
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// log applies entries at growing indexes of term 3.
type log struct {
	t     rapid.TB
	store *Store
	index uint64
}

func (l *log) apply(ms int64, commands ...*pb.Command) []Result {
	l.t.Helper()
	l.index++
	results, err := l.store.Apply(l.index, 3, encode(l.t, ms, commands...))
	if err != nil {
		l.t.Fatal(err)
	}
	return results
}

func ids(records func(func(*Record) bool)) string {
	var out []string
	for r := range records {
		out = append(out, r.Request.GetId())
	}
	return strings.Join(out, " ")
}

func snapshot(t rapid.TB, s *Store) []byte {
	t.Helper()
	var b bytes.Buffer
	if _, err := s.View().WriteTo(&b); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestLifeOfARequest(t *testing.T) {
	l := &log{t: t, store: New()}
	l.apply(1000, join("w"), submit("a", 1, 2, 3), submit("b", 4), assign("a", "w", 3, 9))

	a := l.store.View().Request("a")
	if a.Phase != Assigned || a.WorkerID != "w" || a.Dispatched != (Position{3, 9}) || a.Submitted != (Position{3, 1}) || a.Attempts != 1 {
		t.Fatalf("after assign: %+v", a)
	}
	if got := ids(l.store.View().OnWorker("w")); got != "a" {
		t.Errorf("on worker w: %q, want a", got)
	}

	l.apply(1001, requeue("a", "w"))
	a = l.store.View().Request("a")
	if a.Phase != Queued || a.WorkerID != "" || len(a.Request.GetPrompt()) != 3 {
		t.Fatalf("after requeue: %+v", a)
	}
	if got := ids(l.store.View().OnWorker("w")); got != "" {
		t.Errorf("on worker w after requeue: %q, want none", got)
	}

	l.apply(1002, assign("a", "w", 3, 11), finish("a", pb.FinishReason_FINISH_REASON_STOP))
	a = l.store.View().Request("a")
	switch {
	case a.Phase != Finished, a.FinishReason != pb.FinishReason_FINISH_REASON_STOP, a.FinishedMS != 1002:
		t.Fatalf("after finish: %+v", a)
	case a.Attempts != 2:
		t.Errorf("attempts %d, want 2", a.Attempts)
	case len(a.Request.GetPrompt()) != 0 || len(a.Request.GetCacheSalt()) != 0:
		t.Errorf("a finished request kept its prompt or salt: %v", a.Request)
	case string(a.Digest) != "digest-a" || a.Request.GetGatewayId() != "g":
		t.Errorf("a finished request lost its digest or gateway: %+v", a)
	case a.Usage.GetCompletionTokens() != 7:
		t.Errorf("usage %v", a.Usage)
	}
	if live, ended := ids(l.store.View().Live()), ids(l.store.View().Ended()); live != "b" || ended != "a" {
		t.Errorf("live %q, ended %q; want b, a", live, ended)
	}
}

func TestRepeatsChangeNothing(t *testing.T) {
	l := &log{t: t, store: New()}
	l.apply(1, join("w"), submit("a", 1), assign("a", "w", 3, 1))
	for name, command := range map[string]*pb.Command{
		"submit of a known id":         submit("a", 9, 9),
		"assign of an assigned one":    assign("a", "x", 4, 2),
		"assign of an unknown one":     assign("z", "w", 3, 1),
		"requeue from another worker":  requeue("a", "x"),
		"finish of an unknown one":     finish("z", pb.FinishReason_FINISH_REASON_STOP),
		"leave of an unknown worker":   leave("x"),
		"join of the very same worker": join("w"),
	} {
		view := l.store.View()
		before := view.Request("a")
		if result := l.apply(2, command)[0]; result.Changed {
			t.Errorf("%s: changed", name)
		}
		if after := l.store.View().Request("a"); after != before {
			t.Errorf("%s: the request became %+v", name, after)
		}
	}
	l.apply(3, finish("a", pb.FinishReason_FINISH_REASON_LENGTH))
	if r := l.apply(4, finish("a", pb.FinishReason_FINISH_REASON_ABORT))[0]; r.Changed || r.Record.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH {
		t.Errorf("the second finish won: %+v", r)
	}
}

func TestFinishedRequestsAreBounded(t *testing.T) {
	l := &log{t: t, store: newStore(3, 1000)}
	for i := range 5 {
		id := fmt.Sprint("r", i)
		l.apply(int64(100+i), submit(id, 1), finish(id, pb.FinishReason_FINISH_REASON_STOP))
	}
	if got := ids(l.store.View().Ended()); got != "r2 r3 r4" {
		t.Errorf("kept by count: %q, want r2 r3 r4", got)
	}
	l.apply(1103, submit("live", 1))
	if got := ids(l.store.View().Requests()); got != "live r3 r4" {
		t.Errorf("kept by age at 1103: %q, want live r3 r4", got)
	}
	if got := l.store.View().Finished(); got != 2 {
		t.Errorf("finished count %d, want 2", got)
	}
}

func TestUnknownCommandsAreRefused(t *testing.T) {
	known := encode(t, 5, submit("a", 1))
	newCommand := append(slices.Clone(known), encode(t, 0)...)
	newCommand = append(newCommand, 0x12, 0x03, 0xa2, 0x06, 0x00)                           // commands: field 100
	newField := append(slices.Clone(known), 0x12, 0x06, 0x12, 0x04, 0x0a, 0x00, 0x78, 0x01) // assign: field 15
	newEntryField := append(slices.Clone(known), 0x78, 0x01)                                // entry: field 15
	for name, data := range map[string][]byte{"command": newCommand, "field of a command": newField, "field of an entry": newEntryField} {
		s := New()
		if _, err := s.Apply(1, 1, data); !errors.Is(err, ErrUnknownCommand) {
			t.Errorf("unknown %s: error %v", name, err)
		}
		if s.View().Request("a") != nil || s.View().Index() != 0 {
			t.Errorf("unknown %s: the entry was applied in part", name)
		}
	}
	if _, err := New().Apply(1, 1, []byte{0xff}); err == nil {
		t.Error("a broken entry was applied")
	}
}

func TestSnapshotsRefuseDamage(t *testing.T) {
	l := &log{t: t, store: New()}
	l.apply(1, join("w"), submit("a", 1, 2, 3))
	whole := snapshot(t, l.store)
	for cut := range len(whole) {
		s := New()
		if err := s.Restore(bytes.NewReader(whole[:cut])); err == nil && bytes.Equal(snapshot(t, s), whole) {
			t.Errorf("a snapshot cut to %d of %d bytes restored as the whole", cut, len(whole))
		}
	}
	if err := New().Restore(bytes.NewReader(nil)); err == nil {
		t.Error("an empty snapshot was restored")
	}
	if err := New().Restore(bytes.NewReader(append(slices.Clone(whole), whole...))); err == nil {
		t.Error("a second header was accepted")
	}
}

// draw makes a random entry over few ids, so that commands meet.
func draw(t *rapid.T, label string) (ms int64, commands []*pb.Command) {
	id := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
	worker := rapid.SampledFrom([]string{"v", "w"})
	command := rapid.Custom(func(t *rapid.T) *pb.Command {
		switch rapid.IntRange(0, 6).Draw(t, "kind") {
		case 0:
			return submit(id.Draw(t, "id"), rapid.SliceOfN(rapid.Int32Range(0, 300), 1, 5).Draw(t, "prompt")...)
		case 1:
			return assign(id.Draw(t, "id"), worker.Draw(t, "worker"), rapid.Uint64Range(1, 9).Draw(t, "term"), rapid.Uint64().Draw(t, "index"))
		case 2:
			return requeue(id.Draw(t, "id"), worker.Draw(t, "worker"))
		case 3:
			return finish(id.Draw(t, "id"), pb.FinishReason(rapid.IntRange(1, 4).Draw(t, "reason")))
		case 4:
			return join(worker.Draw(t, "worker"))
		case 5:
			return node(worker.Draw(t, "node"), id.Draw(t, "address"), rapid.Bool().Draw(t, "removed"))
		}
		return leave(worker.Draw(t, "worker"))
	})
	return rapid.Int64Range(0, 5000).Draw(t, label+" ms"), rapid.SliceOfN(command, 0, 8).Draw(t, label)
}

// TestStateIsAFunctionOfTheLog: two stores with the same log, one of them snapshotted and restored
// somewhere on the way, hold the same bytes, and the counts and indexes agree with the tables.
func TestStateIsAFunctionOfTheLog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		straight := &log{t: t, store: newStore(3, 2000)}
		restored := &log{t: t, store: newStore(3, 2000)}
		n := rapid.IntRange(1, 12).Draw(t, "entries")
		cut := rapid.IntRange(0, n-1).Draw(t, "cut")
		for i := range n {
			ms, commands := draw(t, fmt.Sprint("entry ", i))
			before := straight.store.View()
			pictured := snapshot(t, straight.store)
			straight.apply(ms, commands...)
			restored.apply(ms, commands...)
			var again bytes.Buffer
			if _, err := before.WriteTo(&again); err != nil || !bytes.Equal(again.Bytes(), pictured) {
				t.Fatalf("a view changed after it was taken (%v)", err)
			}
			if i == cut {
				fresh := newStore(3, 2000)
				if err := fresh.Restore(bytes.NewReader(snapshot(t, restored.store))); err != nil {
					t.Fatal(err)
				}
				restored.store = fresh
			}
		}
		a, b := straight.store.View(), restored.store.View()
		if a.ChainHash() != b.ChainHash() || a.Index() != b.Index() || a.Finished() != b.Finished() {
			t.Fatalf("hash, index, finished: %x %d %d and %x %d %d", a.ChainHash(), a.Index(), a.Finished(), b.ChainHash(), b.Index(), b.Finished())
		}
		if !bytes.Equal(snapshot(t, straight.store), snapshot(t, restored.store)) {
			t.Fatal("restore(persist(x)) is not x")
		}
		var live, ended, assigned int
		for r := range a.Requests() {
			switch r.Phase {
			case Finished:
				ended++
			case Assigned:
				assigned++
				live++
			case Queued:
				live++
			}
		}
		count := func(records func(func(*Record) bool)) (n int) {
			for range records {
				n++
			}
			return n
		}
		if got := count(a.Live()); got != live {
			t.Fatalf("index live has %d, table %d", got, live)
		}
		if got := count(a.Ended()); got != ended || ended > 3 || a.Finished() != ended {
			t.Fatalf("index finished has %d, table %d, counter %d", got, ended, a.Finished())
		}
		if got := count(a.OnWorker("v")) + count(a.OnWorker("w")); got != assigned {
			t.Fatalf("index worker has %d, table %d", got, assigned)
		}
	})
}

func TestChainHashTellsLogsApart(t *testing.T) {
	hash := func(term uint64, entries ...[]byte) uint64 {
		s := New()
		for i, data := range entries {
			if _, err := s.Apply(uint64(i+1), term, data); err != nil {
				t.Fatal(err)
			}
		}
		return s.View().ChainHash()
	}
	a, b := encode(t, 1, submit("a", 1)), encode(t, 1, submit("b", 1))
	base := hash(1, a, b)
	if base != hash(1, a, b) {
		t.Error("the same log hashed differently")
	}
	for name, other := range map[string]uint64{"order": hash(1, b, a), "term": hash(2, a, b), "length": hash(1, a)} {
		if other == base {
			t.Errorf("a log that differs in %s has the same hash", name)
		}
	}
}

func BenchmarkApplyLife(b *testing.B) {
	s := New()
	index := uint64(0)
	const batch = 100
	for b.Loop() {
		commands := make([]*pb.Command, 0, 3*batch)
		for i := range batch {
			id := fmt.Sprint("request-", index, "-", i)
			commands = append(commands, submit(id, make([]int32, 128)...), assign(id, "w", 1, index), finish(id, pb.FinishReason_FINISH_REASON_STOP))
		}
		index++
		if _, err := s.Apply(index, 1, encode(b, int64(index), commands...)); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/batch, "ns/request")
}
