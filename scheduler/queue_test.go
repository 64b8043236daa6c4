package scheduler

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/scheduler/batch"
)

// TestNobodyWaitsBesideAnIdleWorker: eighty requests that only the large worker could hold wait for it
// to come back. A short one starts on the small worker at once.
func TestNobodyWaitsBesideAnIdleWorker(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		large, small := newWorker(t, "large"), newWorker(t, "small")
		large.info.MaxSequences = 1
		small.info.ContextLength, small.info.TotalBlocks = 512, 32
		large.join(s)
		small.join(s)
		defer small.leave()
		until(t, "both are in session", func() bool { return s.Stats().Workers == 2 })
		for n := range 80 {
			r := request(fmt.Sprint("large", n))
			r.Prompt = make([]int32, 700)
			mustSubmit(t, s, r)
		}
		until(t, "one runs", func() bool { return large.count() == 1 })
		large.crash()
		until(t, "the large one is lost", func() bool { return s.Stats().Workers == 1 && s.Stats().Running == 0 })
		r := mustSubmit(t, s, request("hi"))
		if r.GetWorkerId() != "small" {
			t.Errorf("it was answered with worker %q, want the small one, which is idle", r.GetWorkerId())
		}
		until(t, "it runs", func() bool { return small.has("hi") })
	})
}

// TestWhatCannotFitIsRefused: a prompt or an output that no worker could hold, of its tenant or of anyone,
// is refused with the field and the limit, and one that some worker holds goes there.
func TestWhatCannotFitIsRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := start(t, Settings{})
		for id, blocks := range map[string]int32{"narrow": 10, "wide": 20} {
			w := newWorker(t, id)
			w.info.Tenants = []*pb.TenantShare{{Tenant: "t", Blocks: blocks}}
			w.join(s)
			defer w.leave()
		}
		until(t, "both are in session", func() bool { return s.Stats().Workers == 2 })
		for _, c := range []struct {
			tenant            string
			prompt, maxTokens int
			want              string
		}{
			{"t", 320, 1, `request.prompt: 320 tokens leave no room for an answer; "m" takes 320 in all of tenant "t"`},
			{"t", 300, 21, `request.sampling.max_tokens: 21 beside a prompt of 300 tokens; "m" takes 320 in all of tenant "t"`},
			{"u", 300, 3797, `request.sampling.max_tokens: 3797 beside a prompt of 300 tokens; "m" takes 4096 in all`},
			{"t", 300, 20, ""},
			{"u", 300, 3796, ""},
		} {
			r := request(fmt.Sprint(c.tenant, c.maxTokens))
			r.Tenant, r.Prompt, r.Sampling.MaxTokens = c.tenant, make([]int32, c.prompt), int32(c.maxTokens)
			response, err := submit(s, r)
			if c.want != "" {
				if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%v; want %q", err, c.want)
				}
			} else if err != nil || c.tenant == "t" && response.GetWorkerId() != "wide" {
				t.Errorf("%s, %d and %d tokens: on %q, %v", c.tenant, c.prompt, c.maxTokens, response.GetWorkerId(), err)
			}
		}
	})
}

// TestUploadsHoldNobodyUp: while a prompt of many parts is on its way to the log, other requests are
// admitted beside it, of its tenant and of others, and it gets there however many come.
func TestUploadsHoldNobodyUp(t *testing.T) {
	l := &leader{term: 1, live: map[string]*live{}, batcher: batch.New(batch.Settings{})}
	add := func(id, tenant string, tokens int) *live {
		r := request(id)
		r.Tenant, r.Prompt = tenant, make([]int32, tokens)
		for n := range r.Prompt {
			r.Prompt[n] = 1 << 20
		}
		x := &live{request: r, size: proto.Size(r), bytes: 1, phase: phaseNew}
		l.submits.push(x)
		return x
	}
	large := add("large", "t", 5*partTokens)
	second := add("second", "t", 2*partTokens)
	entries := 0
	for large.phase == phaseNew {
		if entries++; entries > 10 {
			t.Fatal("the large one does not get there")
		}
		var behind []*live
		for n := range 300 { // More than an entry takes.
			behind = append(behind, add(fmt.Sprint("t", entries, n), "t", 500), add(fmt.Sprint("u", entries, n), "u", 500))
		}
		e := &entry{pb: &pb.Entry{}}
		l.composeSubmits(e)
		if e.bytes > admitBytes {
			t.Fatalf("an entry of %d bytes", e.bytes)
		}
		admitted := 0
		for _, r := range behind {
			if r.phase != phaseNew {
				admitted++
			}
		}
		if len(e.pb.GetCommands()) < 3 || entries < 4 && large.logged != entries*partTokens {
			t.Errorf("entry %d: %d commands, %d tokens of the large one", entries, len(e.pb.GetCommands()), large.logged)
		}
	}
	if entries != 5 {
		t.Errorf("the large one took %d entries, want 5: a part in each", entries)
	}
	if second.upload != 0 {
		t.Error("two uploads at once")
	}
	for range 1000 {
		l.composeSubmits(&entry{pb: &pb.Entry{}})
	}
	if l.submits.len != 0 || l.submits.sequences != 0 || l.submits.bytes != 0 || len(l.submits.lines) != 0 || l.uploading != nil {
		t.Errorf("left over: %+v", l.submits)
	}
}

// TestTenantsAreAdmittedInTurn: a burst of one tenant's does not hold another's request up, and a large
// one that an entry has no room for is the first of the next.
func TestTenantsAreAdmittedInTurn(t *testing.T) {
	var s submits
	sizes := map[string]int{}
	add := func(id, tenant string, size int) {
		r := request(id)
		r.Tenant = tenant
		sizes[id] = size
		s.push(&live{request: r, bytes: 1})
	}
	for n := range 6 {
		add(fmt.Sprint("burst", n), "burst", 1)
	}
	add("single", "single", 1)
	add("large", "large", 10)
	serve := func() string {
		var out []string
		room := 10
		s.serve(func(r *live) offered {
			id := r.request.GetId()
			if sizes[id] > room {
				return noRoom
			}
			room -= sizes[id]
			out = append(out, id)
			return taken
		})
		return strings.Join(out, " ")
	}
	if got := serve(); got != "burst0 single burst1 burst2 burst3 burst4 burst5" {
		t.Errorf("first entry: %s", got)
	}
	add("burst6", "burst", 1)
	if got := serve(); got != "large" {
		t.Errorf("second entry: %s", got)
	}
	if got := serve(); got != "burst6" || s.len != 0 {
		t.Errorf("third entry: %s; %d are left", got, s.len)
	}
}

// TestQueueBytesAreReal: what the queue's bound counts is what its requests take of the heap.
func TestQueueBytesAreReal(t *testing.T) {
	s := start(t, Settings{QueueRequests: 100_000, QueueBytes: 1 << 30})
	w := newWorker(t, "w")
	w.info.MaxSequences = 1
	w.join(s)
	defer w.leave()
	until(t, "the worker is in session", func() bool { return s.Stats().Workers == 1 })
	heap := func() int64 {
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc)
	}
	before := heap()
	const requests = 2000
	var calls sync.WaitGroup
	for _, id := range ids("r", requests) {
		calls.Go(func() {
			r := request(id)
			r.Prompt = make([]int32, 1000)
			if _, err := submit(s, r); err != nil {
				t.Error(err)
			}
		})
	}
	calls.Wait()
	took, counted := heap()-before, s.Stats().QueuedBytes // The log, which is in memory here, included.
	t.Logf("%d requests took %d bytes each; %d are counted", requests, took/requests, counted/requests)
	if took > counted*3/2 || took < counted/4 {
		t.Errorf("%d requests took %d bytes of the heap; %d are counted", requests, took, counted)
	}
}
