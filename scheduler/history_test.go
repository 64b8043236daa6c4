package scheduler

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/anishathalye/porcupine"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Histories of what clients and operators do to a cluster under faults must be linearizable: there is
// an order of the operations, within the times at which they ran, in which a single node that does one
// after the other would have given the same answers. An operation without an answer may have happened
// at any time after its call, or never.

// act is one operation on a subject: a request's id, a tenant, or a node.
type act struct {
	kind actKind
	// tenant is the partition: tenants share nothing. Members of the cluster are another one.
	tenant  int
	subject int
	limit   int8
}

type actKind int

const (
	actSubmit actKind = iota + 1
	actAbort
	actRead // Adopt with if_mine, which changes nothing
	actLimit
	actList // ListTenants
	actJoin
	actRemove
	actMembers
)

// outcome is an operation's answer.
type outcome struct {
	// unknown: the call failed in a way that does not say whether it happened.
	unknown bool
	code    codes.Code
	// known: the request, abort's request, or the node was there.
	known, ended bool
	live, limit  int8
	members      uint8
}

const (
	historyTenants  = 3
	historyRequests = 6
	historyNodes    = 3
	membersOf       = historyTenants // the partition of the members
)

// phase of a request in the model.
type modelPhase uint8

const (
	absent modelPhase = iota
	running
	over
	// doomed: its submit was told that it was aborted before it was admitted; the abort is on its way.
	doomed
)

// ledger is the model: what a single node knows of one tenant, or of the members.
type ledger struct {
	limit    int8
	requests [historyRequests]modelPhase
	// members are in the cluster; ghosts were taken out, and only their record is left.
	members, ghosts uint8
}

func (l ledger) live() (n int8) {
	for _, r := range l.requests {
		if r == running {
			n++
		}
	}
	return n
}

func (l ledger) full() bool { return l.limit > 0 && l.live() >= l.limit }

func (l ledger) with(id int, p modelPhase) ledger {
	l.requests[id] = p
	return l
}

// step gives the states that an operation with this answer may lead to; none if it cannot be.
func step(l ledger, in act, out outcome) []ledger {
	may := func(ok bool, next ...ledger) []ledger {
		if !ok {
			return nil
		}
		return next
	}
	bit := uint8(1) << in.subject
	switch in.kind {
	case actSubmit:
		p := l.requests[in.subject]
		switch {
		case out.unknown && p != running && p != over && !l.full():
			return []ledger{l, l.with(in.subject, running)}
		case out.unknown:
			return []ledger{l}
		case out.code == codes.Aborted:
			return may(p == absent || p == doomed, l.with(in.subject, doomed))
		case out.code == codes.ResourceExhausted:
			return may((p == absent || p == doomed) && l.full(), l)
		case !out.known:
			return may((p == absent || p == doomed) && !l.full(), l.with(in.subject, running))
		default:
			return may(out.ended && p == over || !out.ended && p == running, l)
		}
	case actAbort:
		p := l.requests[in.subject]
		next := map[modelPhase]modelPhase{running: over, doomed: absent}
		end, can := next[p]
		switch {
		case out.unknown && can:
			return []ledger{l, l.with(in.subject, end)}
		case out.unknown:
			return []ledger{l}
		case out.known && p == over:
			return []ledger{l} // Two aborts at once both find it.
		case out.known:
			return may(can, l.with(in.subject, end))
		default:
			return may(p != running, l)
		}
	case actRead:
		p := l.requests[in.subject]
		if out.unknown {
			return []ledger{l}
		}
		return may(out.known == (p == running || p == over) && out.ended == (p == over), l)
	case actLimit:
		changed := l
		changed.limit = in.limit
		if out.unknown {
			return []ledger{l, changed}
		}
		return []ledger{changed}
	case actList:
		return may(out.unknown || out.live == l.live() && out.limit == l.limit, l)
	case actJoin:
		joined := l
		joined.members, joined.ghosts = l.members|bit, l.ghosts&^bit
		if out.unknown {
			return []ledger{l, joined}
		}
		return []ledger{joined}
	case actRemove:
		gone := l
		gone.members, gone.ghosts = l.members&^bit, l.ghosts&^bit
		ghost := gone
		ghost.ghosts |= bit
		there := (l.members|l.ghosts)&bit != 0
		switch {
		case out.unknown && there:
			return []ledger{l, gone, ghost}
		case out.unknown:
			return []ledger{l}
		case out.code == codes.NotFound:
			return may(!there, l)
		default:
			return may(there, gone)
		}
	case actMembers:
		return may(out.unknown || out.members == l.members, l)
	}
	return nil
}

var controlModel = (&porcupine.NondeterministicModel{
	Partition: func(history []porcupine.Operation) [][]porcupine.Operation {
		parts := make([][]porcupine.Operation, historyTenants+1)
		for _, o := range history {
			t := o.Input.(act).tenant
			parts[t] = append(parts[t], o)
		}
		return parts
	},
	Init: func() []any { return []any{ledger{}} },
	Step: func(state, in, out any) (next []any) {
		for _, l := range step(state.(ledger), in.(act), out.(outcome)) {
			next = append(next, l)
		}
		return next
	},
}).ToModel()

// recorder collects a history. Its clock orders calls and answers and means nothing else.
type recorder struct {
	clock atomic.Int64
	mu    sync.Mutex
	ops   []porcupine.Operation
}

// nothing says that a node did nothing because it does not lead; that is no operation.
func nothing(err error) bool {
	return status.Code(err) == codes.FailedPrecondition || status.Code(err) == codes.Unavailable && strings.Contains(err.Error(), "has no leader yet")
}

// do records an operation.
func (r *recorder) do(client int, in act, f func() (outcome, error)) {
	call := r.clock.Add(1)
	out, err := f()
	end := r.clock.Add(1)
	if nothing(err) {
		return
	}
	switch out.code = status.Code(err); out.code {
	case codes.OK, codes.ResourceExhausted, codes.Aborted, codes.NotFound:
	default:
		out = outcome{unknown: true, code: out.code}
		end = int64(1) << 62 // It may still happen.
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.ops = append(r.ops, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: end})
}

func tenantName(i int) string { return fmt.Sprint("tenant-", i) }

// perform does one operation at a node.
func perform(s *Scheduler, in act) (out outcome, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Second)
	defer cancel()
	id := fmt.Sprintf("r%d.%d", in.tenant, in.subject)
	switch in.kind {
	case actSubmit:
		r := request(id)
		r.Tenant = tenantName(in.tenant)
		var resp *pb.SubmitResponse
		resp, err = s.Submit(ctx, &pb.SubmitRequest{Request: r})
		out.known, out.ended = resp.GetDuplicate(), resp.GetFinishReason() != 0
	case actAbort:
		var resp *pb.AbortResponse
		resp, err = s.Abort(ctx, &pb.AbortRequest{RequestId: id})
		out.known = resp.GetFound()
	case actRead:
		var resp *pb.AdoptResponse
		resp, err = s.Adopt(ctx, &pb.AdoptRequest{RequestId: id, GatewayId: "g", Tenant: tenantName(in.tenant), IfMine: true})
		out.known, out.ended = resp.GetFound(), resp.GetFinishReason() != 0
	case actLimit:
		_, err = s.SetTenant(ctx, &pb.SetTenantRequest{Tenant: &pb.Tenant{Name: tenantName(in.tenant), MaxRequests: int32(in.limit)}})
	case actList:
		var resp *pb.ListTenantsResponse
		resp, err = s.ListTenants(ctx, &pb.ListTenantsRequest{})
		for _, t := range resp.GetTenants() {
			if t.GetTenant().GetName() == tenantName(in.tenant) {
				out.live, out.limit = int8(t.GetLive()), int8(t.GetTenant().GetMaxRequests())
			}
		}
	case actJoin:
		address := fmt.Sprintf("x%d:1", in.subject)
		_, err = s.members.Join(ctx, &pb.JoinRequest{Node: &pb.Node{Id: nodeName(in.subject), StoreId: "s", RaftAddress: address, ControlAddress: address}})
	case actRemove:
		_, err = s.members.Remove(ctx, &pb.RemoveRequest{Id: nodeName(in.subject)})
	case actMembers:
		var resp *pb.MembersResponse
		resp, err = s.members.Members(ctx, &pb.MembersRequest{})
		for _, m := range resp.GetMembers() {
			for i := range historyNodes {
				if m.GetId() == nodeName(i) {
					out.members |= 1 << i
				}
			}
		}
	}
	return out, err
}

func nodeName(i int) string { return fmt.Sprint("x", i) }

// history runs clients against a cluster whose leader is cut off, or hands over, now and then.
func history(t *testing.T, random *rand.Rand) []porcupine.Operation {
	c := newCluster(t, 3, func(s *Settings) {
		s.OrphanGrace = time.Hour // Nobody reads these requests.
		s.DialNode = func(string) (grpc.ClientConnInterface, func() error, error) {
			return nil, nil, errors.New("nobody there")
		}
	})
	w := newWorker(t, "w")
	c.workers = append(c.workers, w)
	c.waitLeader()
	c.attend(w)
	until(t, "the worker is in session", func() bool { i := c.leader(); return i >= 0 && c.nodes[i].Stats().Workers == 1 })
	var r recorder
	var clients sync.WaitGroup
	client := func(number, tenant, steps int, random *rand.Rand, kinds []actKind) {
		for range steps {
			in := act{kind: kinds[random.IntN(len(kinds))], tenant: tenant, limit: int8(1 + random.IntN(4))}
			if tenant == membersOf {
				in.subject = random.IntN(historyNodes)
			} else {
				in.subject = random.IntN(historyRequests)
			}
			i := random.IntN(3)
			if leader := c.leader(); leader >= 0 && random.IntN(4) > 0 {
				i = leader
			}
			r.do(number, in, func() (outcome, error) { return perform(c.nodes[i], in) })
			time.Sleep(time.Duration(random.IntN(400)) * time.Millisecond) // Virtual.
		}
	}
	number := 0
	for tenant := range historyTenants + 1 {
		kinds := []actKind{actSubmit, actSubmit, actSubmit, actAbort, actAbort, actRead, actRead, actList, actLimit}
		steps := 40
		if tenant == membersOf {
			kinds, steps = []actKind{actJoin, actRemove, actMembers, actMembers}, 20
		}
		for range 3 {
			own, n := rand.New(rand.NewPCG(random.Uint64(), 3)), number
			number++
			clients.Go(func() { client(n, tenant, steps, own, kinds) })
		}
	}
	over := make(chan struct{})
	go func() { clients.Wait(); close(over) }()
	done := false
	// pass lets time pass, in tenths of a second, with the worker at the leader.
	pass := func(tenths int) {
		for range tenths {
			select {
			case <-over:
				done = true
				return
			case <-time.After(100 * time.Millisecond):
			}
			c.attend(w)
		}
	}
	for !done {
		pass(10 + random.IntN(30))
		switch i := c.leader(); {
		case i < 0:
		case random.IntN(3) == 0:
			_, _ = c.nodes[i].members.Transfer(context.Background(), &pb.TransferRequest{}) // It may fail; that is a fault too.
		default:
			c.isolate(i)
			pass(10 + random.IntN(60))
			c.heal()
		}
	}
	w.leave()
	c.close()
	return r.ops
}

// check says whether a history is linearizable, and shows the operations of the partitions that are not.
func linearize(ops []porcupine.Operation) (porcupine.CheckResult, string) {
	var bad strings.Builder
	result := porcupine.Ok
	for _, part := range controlModel.Partition(ops) {
		got := porcupine.CheckOperationsTimeout(controlModel, part, 30*time.Second)
		if got == porcupine.Ok {
			continue
		}
		if result != porcupine.Illegal {
			result = got
		}
		slices.SortFunc(part, func(a, b porcupine.Operation) int { return int(a.Call - b.Call) })
		for _, o := range part {
			fmt.Fprintf(&bad, "client %d, %d to %d: %+v: %+v\n", o.ClientId, o.Call, o.Return, o.Input, o.Output)
		}
	}
	return result, bad.String()
}

func TestHistoriesAreLinearizable(t *testing.T) {
	first := uint64(time.Now().UnixNano())
	tried, found := map[actKind]int{}, map[actKind]int{}
	for n := range uint64(20) {
		seed := first + n
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			var ops []porcupine.Operation
			synctest.Test(t, func(t *testing.T) { ops = history(t, rand.New(rand.NewPCG(seed, 4))) })
			unknown := 0
			for _, o := range ops {
				if o.Output.(outcome).unknown {
					unknown++
				}
			}
			t.Logf("%d operations, %d without an answer", len(ops), unknown)
			if result, bad := linearize(ops); result != porcupine.Ok {
				t.Fatalf("the history is %v:\n%s", result, bad)
			}
			if len(ops) < 60 {
				t.Errorf("only %d operations", len(ops))
			}
			spoil(ops, tried, found)
		})
	}
	// Beside operations that run at the same time some lies might be true.
	for kind, n := range tried {
		if 2*found[kind] < n {
			t.Errorf("of %d wrong answers of kind %d only %d were found", n, kind, found[kind])
		}
	}
}

// spoil counts the lies in answers, by kind, that it tells and that are found.
func spoil(ops []porcupine.Operation, tried, found map[actKind]int) {
	lies := map[actKind]func(*outcome){
		actSubmit:  func(o *outcome) { o.code, o.known = codes.OK, !o.known && o.code == codes.OK; o.ended = false },
		actAbort:   func(o *outcome) { o.known = !o.known },
		actRead:    func(o *outcome) { o.known = !o.known; o.ended = false },
		actList:    func(o *outcome) { o.live++ },
		actRemove:  func(o *outcome) { o.code = codes.NotFound - o.code },
		actMembers: func(o *outcome) { o.members ^= 1 },
	}
	for kind, lie := range lies {
		told := 0
		for i, o := range ops {
			if out := o.Output.(outcome); o.Input.(act).kind == kind && !out.unknown && told < 8 {
				told++
				lie(&out)
				spoilt := slices.Clone(ops)
				spoilt[i].Output = out
				if result, _ := linearize(spoilt); result == porcupine.Illegal {
					found[kind]++
				}
			}
		}
		tried[kind] += told
	}
}
