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

// news is progress of one choice.
func news(choice, first int32, reason pb.FinishReason, tokens ...int32) *pb.ChoiceProgress {
	return &pb.ChoiceProgress{Choice: choice, First: first, TokenIds: tokens, FinishReason: reason}
}

func progress(id string, choices ...*pb.ChoiceProgress) *pb.Command {
	return &pb.Command{Command: &pb.Command_Progress{Progress: &pb.ProgressCommand{RequestId: id, Choices: choices}}}
}

func adopt(id, gateway string) *pb.Command {
	return &pb.Command{Command: &pb.Command_Adopt{Adopt: &pb.AdoptCommand{RequestId: id, GatewayId: gateway, Tenant: "t"}}}
}

func join(id string) *pb.Command {
	return &pb.Command{Command: &pb.Command_Worker{Worker: &pb.WorkerCommand{Worker: &pb.WorkerInfo{Id: id, Model: "m"}}}}
}

func leave(id string) *pb.Command {
	return &pb.Command{Command: &pb.Command_Worker{Worker: &pb.WorkerCommand{Worker: &pb.WorkerInfo{Id: id}, Left: true}}}
}

func encode(t rapid.TB, ms int64, commands ...*pb.Command) []byte {
	t.Helper()
	data, err := proto.Marshal(&pb.Entry{TimeMs: ms, Commands: commands})
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
	l := &log{t: t, store: newStore(Retention{AgeMS: 1000, TenantRequests: 3, TenantBytes: 1 << 20, Bytes: 1 << 20})}
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
	if got := l.store.View().Kept().Requests; got != 2 {
		t.Errorf("finished count %d, want 2", got)
	}
}

// TestOutputsGrow: what follows is appended, whatever overlaps, is late or comes out of order; a
// finished answer is kept whole or not at all.
func TestOutputsGrow(t *testing.T) {
	const stop, length = pb.FinishReason_FINISH_REASON_STOP, pb.FinishReason_FINISH_REASON_LENGTH
	l := &log{t: t, store: New()}
	two := submit("a", 1, 2, 3)
	two.GetSubmit().Request.Sampling = &pb.SamplingParams{N: 2, MaxTokens: 9}
	l.apply(1, join("w"), two, assign("a", "w", 3, 1))
	shown := func() string {
		var out []string
		for _, o := range l.store.View().Request("a").Outputs {
			out = append(out, fmt.Sprintf("%v%d", o.GetTokenIds(), o.GetFinishReason()))
		}
		return strings.Join(out, " ")
	}
	for _, step := range []struct {
		name    string
		news    []*pb.ChoiceProgress
		changed bool
		want    string
	}{
		{"a gap", []*pb.ChoiceProgress{news(0, 1, 0, 11)}, false, ""},
		{"the first", []*pb.ChoiceProgress{news(0, 0, 0, 10, 11)}, true, "[10 11]0 []0"},
		{"a repeat", []*pb.ChoiceProgress{news(0, 0, 0, 10, 11)}, false, "[10 11]0 []0"},
		{"an overlap, and the other choice", []*pb.ChoiceProgress{news(0, 1, 0, 11, 12), news(1, 0, 0, 20)}, true, "[10 11 12]0 [20]0"},
		{"two pieces", []*pb.ChoiceProgress{news(1, 1, 0, 21), news(1, 2, stop, 22)}, true, "[10 11 12]0 [20 21 22]1"},
		{"more of an ended choice", []*pb.ChoiceProgress{news(1, 3, 0, 23)}, false, "[10 11 12]0 [20 21 22]1"},
		{"choices that are not there", []*pb.ChoiceProgress{news(2, 0, 0, 1), news(-1, 0, 0, 1), news(0, -1, 0, 1, 1, 1, 1, 1)}, false, "[10 11 12]0 [20 21 22]1"},
	} {
		before := l.store.View().Request("a")
		length := 0
		if len(before.Outputs) > 0 {
			length = len(before.Outputs[0].GetTokenIds())
		}
		if r := l.apply(2, progress("a", step.news...))[0]; r.Changed != step.changed {
			t.Errorf("%s: changed %v", step.name, r.Changed)
		}
		if got := shown(); got != step.want {
			t.Errorf("%s: outputs %s, want %s", step.name, got, step.want)
		}
		if len(before.Outputs) > 0 && len(before.Outputs[0].GetTokenIds()) != length {
			t.Errorf("%s: an older record changed", step.name)
		}
	}
	if r := l.store.View().Request("a"); r.Attempts != 0 {
		t.Errorf("attempts %d after the output grew, want 0", r.Attempts)
	}
	done := finish("a", length)
	done.GetFinish().Choices = []*pb.ChoiceProgress{news(0, 3, length, 13)}
	l.apply(3, requeue("a", "w"), assign("a", "w", 3, 2), done)
	r := l.store.View().Request("a")
	if got := shown(); got != "[10 11 12 13]2 [20 21 22]1" || r.PromptTokens != 3 || r.Request.GetSampling().GetMaxTokens() != 9 || r.Attempts != 1 {
		t.Errorf("finished with %s, %+v", got, r)
	}
	l.apply(3, submit("part", 1), assign("part", "w", 3, 3), progress("part", news(0, 0, 0, 1)), finish("part", stop))
	if r := l.store.View().Request("part"); len(r.Outputs) != 0 {
		t.Errorf("a part of an answer is kept as the whole: %v", r.Outputs)
	}
	l.apply(3, submit("cut", 1), progress("cut", news(0, 0, 0, 1)), finish("cut", pb.FinishReason_FINISH_REASON_ABORT))
	if r := l.store.View().Request("cut"); len(r.Outputs) != 1 {
		t.Errorf("an aborted request lost its output: %v", r)
	}
}

// TestAdoptAndRerun follows a request to another gateway and through a second run.
func TestAdoptAndRerun(t *testing.T) {
	l := &log{t: t, store: New()}
	l.apply(1, join("w"), submit("a", 1, 2), adopt("a", "h"))
	if r := l.store.View().Request("a"); r.Request.GetGatewayId() != "h" || len(r.Request.GetPrompt()) != 2 || string(r.Request.GetCacheSalt()) != "salt" || r.Redirected {
		t.Fatalf("adopted while queued: %+v", r)
	}
	l.apply(2, assign("a", "w", 3, 1), adopt("a", "i"))
	if r := l.store.View().Request("a"); r.Request.GetGatewayId() != "i" || !r.Redirected {
		t.Fatalf("adopted while running: %+v", r)
	}
	if l.apply(2, adopt("a", "i"))[0].Changed || l.apply(2, adopt("a", ""))[0].Changed || l.apply(2, adopt("z", "i"))[0].Record != nil {
		t.Error("adopting one's own, or nothing, changed something")
	}
	again := submit("a", 1, 2)
	again.GetSubmit().Rerun = true
	if l.apply(2, again)[0].Changed {
		t.Error("a running request was begun again")
	}
	done := finish("a", pb.FinishReason_FINISH_REASON_STOP)
	done.GetFinish().Choices = []*pb.ChoiceProgress{news(0, 0, pb.FinishReason_FINISH_REASON_STOP, 7)}
	l.apply(3, requeue("a", "w"), assign("a", "w", 3, 2), done, adopt("a", "j"))
	if r := l.store.View().Request("a"); r.Phase != Finished || r.Redirected || r.Request.GetGatewayId() != "j" || len(r.Outputs) != 1 {
		t.Fatalf("adopted after its end: %+v", r)
	}
	other := submit("a", 9)
	other.GetSubmit().Rerun, other.GetSubmit().Digest = true, []byte("another")
	if l.apply(4, other)[0].Changed || l.apply(4, submit("a", 1, 2))[0].Changed {
		t.Error("another body, or a submit without rerun, began it again")
	}
	rendered := submit("a", 9)
	rendered.GetSubmit().Rerun, rendered.GetSubmit().PromptDigest = true, []byte("another day")
	if l.apply(4, rendered)[0].Changed {
		t.Error("the same body with another prompt began it again")
	}
	l.apply(5, again)
	r := l.store.View().Request("a")
	if r.Phase != Queued || len(r.Outputs) != 1 || len(r.Outputs[0].GetTokenIds()) != 1 || r.Attempts != 0 || r.Usage != nil || r.Request.GetGatewayId() != "g" || l.store.View().Kept() != (Kept{}) {
		t.Errorf("begun again: %+v", r)
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

// token is what every choice generates at a position, so that any two tellings of it agree.
func token(choice, position int32) int32 { return 1000*choice + position }

func drawNews(t *rapid.T) []*pb.ChoiceProgress {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) *pb.ChoiceProgress {
		choice, first := rapid.Int32Range(-1, 3).Draw(t, "choice"), rapid.Int32Range(0, 6).Draw(t, "first")
		n := news(choice, first, pb.FinishReason(rapid.SampledFrom([]int{0, 0, 0, 1, 2}).Draw(t, "ends")))
		for i := range rapid.Int32Range(0, 6).Draw(t, "tokens") {
			n.TokenIds = append(n.TokenIds, token(choice, first+i))
		}
		return n
	}), 0, 4).Draw(t, "news")
}

// draw makes a random entry over few ids, so that commands meet.
func draw(t *rapid.T, label string) (ms int64, commands []*pb.Command) {
	id := rapid.SampledFrom([]string{"a", "b", "c", "d", "e"})
	worker := rapid.SampledFrom([]string{"v", "w"})
	command := rapid.Custom(func(t *rapid.T) *pb.Command {
		switch rapid.IntRange(0, 14).Draw(t, "kind") {
		case 0:
			s := submit(id.Draw(t, "id"), rapid.SliceOfN(rapid.Int32Range(0, 300), 1, 5).Draw(t, "prompt")...)
			n := rapid.Int32Range(0, 3).Draw(t, "n")
			s.GetSubmit().Request.Sampling = &pb.SamplingParams{N: n}
			s.GetSubmit().Digest = append(s.GetSubmit().Digest, byte(n)) // it names the sampling, too
			s.GetSubmit().Request.Tenant = rapid.SampledFrom([]string{"t", "u"}).Draw(t, "tenant")
			s.GetSubmit().Upload = rapid.SampledFrom([]uint64{0, 0, 1, 2}).Draw(t, "upload")
			s.GetSubmit().Rerun = rapid.Bool().Draw(t, "rerun")
			return s
		case 1:
			return assign(id.Draw(t, "id"), worker.Draw(t, "worker"), rapid.Uint64Range(1, 9).Draw(t, "term"), rapid.Uint64().Draw(t, "index"))
		case 2:
			return requeue(id.Draw(t, "id"), worker.Draw(t, "worker"))
		case 3:
			f := finish(id.Draw(t, "id"), pb.FinishReason(rapid.IntRange(1, 4).Draw(t, "reason")))
			f.GetFinish().Choices = drawNews(t)
			return f
		case 4:
			return join(worker.Draw(t, "worker"))
		case 5, 6:
			return progress(id.Draw(t, "id"), drawNews(t)...)
		case 7:
			return adopt(id.Draw(t, "id"), rapid.SampledFrom([]string{"g", "h"}).Draw(t, "gateway"))
		case 10:
			return part(id.Draw(t, "id"), rapid.Uint64Range(1, 2).Draw(t, "upload"), rapid.Int32Range(0, 2).Draw(t, "part"), rapid.SliceOfN(rapid.Int32Range(0, 300), 0, 5).Draw(t, "prompt")...)
		case 9:
			return drawLimits(t)
		case 12:
			return serve(worker.Draw(t, "worker"), rapid.SampledFrom([]string{"m", "n"}).Draw(t, "model"), id.Draw(t, "digest"), id.Draw(t, "pool"))
		case 13:
			return pool(id.Draw(t, "pool"), rapid.Bool().Draw(t, "removed"))
		case 14:
			return cordon(rapid.SampledFrom([]string{"", "v", "w"}).Draw(t, "worker"), id.Draw(t, "pool"), rapid.Bool().Draw(t, "lifted"))
		case 8:
			return node(worker.Draw(t, "node"), id.Draw(t, "address"), rapid.Bool().Draw(t, "removed"))
		}
		return leave(worker.Draw(t, "worker"))
	})
	return rapid.Int64Range(0, 5000).Draw(t, label+" ms"), rapid.SliceOfN(command, 0, 8).Draw(t, label)
}

// smallRetention lets a few requests reach each of the bounds.
var smallRetention = Retention{AgeMS: 2000, TenantRequests: 3, TenantBytes: 8000, Bytes: 16_000}

// TestStateIsAFunctionOfTheLog: two stores with the same log, one of them snapshotted and restored
// somewhere on the way, hold the same bytes, and the counts and indexes agree with the tables.
func TestStateIsAFunctionOfTheLog(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		straight := &log{t: t, store: newStore(smallRetention)}
		restored := &log{t: t, store: newStore(smallRetention)}
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
				fresh := newStore(smallRetention)
				if err := fresh.Restore(bytes.NewReader(snapshot(t, restored.store))); err != nil {
					t.Fatal(err)
				}
				restored.store = fresh
			}
		}
		a, b := straight.store.View(), restored.store.View()
		if a.ChainHash() != b.ChainHash() || a.Index() != b.Index() || a.Kept() != b.Kept() {
			t.Fatalf("hash, index, kept: %x %d %v and %x %d %v", a.ChainHash(), a.Index(), a.Kept(), b.ChainHash(), b.Index(), b.Kept())
		}
		if !bytes.Equal(snapshot(t, straight.store), snapshot(t, restored.store)) {
			t.Fatal("restore(persist(x)) is not x")
		}
		var live, ended, assigned int
		kept := map[string]Kept{}
		running := map[string]int64{}
		for r := range a.Requests() {
			for c, o := range r.Outputs {
				for i, id := range o.GetTokenIds() {
					if want := token(int32(c), int32(i)); id != want {
						t.Fatalf("%s, choice %d: token %d is %d, want %d", r.Request.GetId(), c, i, id, want)
					}
				}
			}
			if n := len(r.Outputs); n != 0 && n != choices(r.Request) {
				t.Fatalf("%s has %d outputs for %d choices", r.Request.GetId(), n, choices(r.Request))
			}
			if r.Phase == Finished {
				k := kept[r.Request.GetTenant()]
				if k.Requests == 0 {
					k.Bytes = tallyBytes
				}
				k.Requests, k.Bytes, k.Answers = k.Requests+1, k.Bytes+r.keptBytes(), k.Answers+r.answerBytes()
				kept[r.Request.GetTenant()] = k
			}
			switch r.Phase {
			case Finished:
				ended++
				if r.FinishReason <= pb.FinishReason_FINISH_REASON_LENGTH && len(r.Outputs) > 0 && !complete(r.Outputs) {
					t.Fatalf("%s stopped by itself with a part of its output: %v", r.Request.GetId(), r.Outputs)
				}
			case Assigned:
				assigned++
				live++
				running[r.Request.GetTenant()] += int64(max(1, r.Request.GetSampling().GetN()))
			case Queued:
				live++
				running[r.Request.GetTenant()] += int64(max(1, r.Request.GetSampling().GetN()))
			}
		}
		var all Kept
		for tenant, k := range kept {
			if k != a.KeptOf(tenant) || k != b.KeptOf(tenant) {
				t.Fatalf("of %q %+v is kept, counted %+v and %+v", tenant, k, a.KeptOf(tenant), b.KeptOf(tenant))
			}
			if k.Requests > smallRetention.TenantRequests || k.Bytes > smallRetention.TenantBytes || k.Answers > smallRetention.TenantBytes/4 {
				t.Fatalf("of %q %+v is kept, the limits are %+v", tenant, k, smallRetention)
			}
			all.Requests, all.Bytes, all.Answers = all.Requests+k.Requests, all.Bytes+k.Bytes, all.Answers+k.Answers
		}
		if all != a.Kept() || all.Bytes > smallRetention.Bytes || all.Answers > smallRetention.Bytes/4 {
			t.Fatalf("%+v is kept, counted %+v, the limits are %+v", all, a.Kept(), smallRetention)
		}
		for account := range a.Accounts() {
			if account.Live != running[account.Name] || account.Live == 0 && account.Limits == nil || account.Served < 0 {
				t.Fatalf("account %+v of a tenant with %d requests", account, running[account.Name])
			}
			delete(running, account.Name)
		}
		if len(running) > 0 {
			t.Fatalf("tenants %v have no account", running)
		}
		checkModels(t, a)
		count := func(records func(func(*Record) bool)) (n int) {
			for range records {
				n++
			}
			return n
		}
		if got := count(a.Live()); got != live {
			t.Fatalf("index live has %d, table %d", got, live)
		}
		if got := count(a.Ended()); got != ended || a.Kept().Requests != int64(ended) {
			t.Fatalf("index ended has %d, table %d, counter %d", got, ended, a.Kept().Requests)
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
