package state

import (
	"fmt"
	"iter"
	"maps"
	"math"
	"slices"

	"google.golang.org/protobuf/proto"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// What is kept of ended requests is bounded in the memory that it takes, so that neither load nor one
// tenant can fill a node. A record has two parts: that the request was there and how it ended, and its
// answer. Answers take at most a quarter of each bound, so that ids outlive them.

// Retention is for how long ended requests are kept, and how much of them. All nodes go by what the log
// says, because it decides what Apply does.
type Retention struct {
	// AgeMS is for how long after its end a request is known, in the log's time.
	AgeMS int64
	// TenantRequests and TenantBytes bound what is kept of one tenant, Bytes of all together.
	TenantRequests     int64
	TenantBytes, Bytes int64
}

// DefaultRetention is what counts until the log says something else.
var DefaultRetention = Retention{AgeMS: 15 * 60 * 1000, TenantRequests: 1_000_000, TenantBytes: 512 << 20, Bytes: 512 << 20}

// The most that the bounds can be.
const (
	MaxKeptBytes = 1 << 40
	MaxKeptMS    = 7 * 24 * 60 * 60 * 1000
)

// Validate says which bound is wrong.
func (r Retention) Validate() error {
	switch {
	case r.AgeMS < 0 || r.AgeMS > MaxKeptMS:
		return fmt.Errorf("ended requests are kept for %d ms; it must be 0 to %d", r.AgeMS, int64(MaxKeptMS))
	case r.TenantRequests < 1 || r.TenantRequests > math.MaxInt32:
		return fmt.Errorf("%d ended requests of a tenant are kept; it must be 1 to %d", r.TenantRequests, math.MaxInt32)
	case r.Bytes < 1 || r.Bytes > MaxKeptBytes:
		return fmt.Errorf("ended requests may take %d bytes; it must be 1 to %d", r.Bytes, int64(MaxKeptBytes))
	case r.TenantBytes < 1 || r.TenantBytes > r.Bytes:
		return fmt.Errorf("ended requests of a tenant may take %d bytes; it must be 1 to the %d of all tenants", r.TenantBytes, r.Bytes)
	}
	return nil
}

// ToProto is the retention as the log has it.
func (r Retention) ToProto() *pb.Retention {
	return &pb.Retention{AgeMs: r.AgeMS, TenantRequests: r.TenantRequests, TenantBytes: r.TenantBytes, Bytes: r.Bytes}
}

func retentionFromProto(p *pb.Retention) Retention {
	return Retention{AgeMS: p.GetAgeMs(), TenantRequests: p.GetTenantRequests(), TenantBytes: p.GetTenantBytes(), Bytes: p.GetBytes()}
}

// retain changes the retention. One that is wrong changes nothing.
func (a *application) retain(c *pb.RetentionCommand) Result {
	next := retentionFromProto(c.GetRetention())
	if next.Validate() != nil || next == a.keep {
		return Result{}
	}
	a.keep = next
	for t := range tallies(a) {
		a.ending[t.tenant] = true
	}
	return Result{Changed: true}
}

// tally is what is kept of a tenant's ended requests. It is immutable.
type tally struct {
	tenant   string
	requests int64
	// bytes of memory, answers among them.
	bytes, answers int64
	// oldestMS is the end of the one that is to be forgotten first.
	oldestMS int64
}

// What an ended request takes in memory beside its strings and its answer: the record, its request, and
// the nodes of the trees that it is found by. TestKeptMemoryIsBounded measures it.
const (
	recordBytes = 1536
	// idCopies is how often an id is there: in the request and in two trees, twice each.
	idCopies = 5
	// outputBytes is what a choice takes beside its tokens and stop reason, samplingBytes what parameters
	// take beside their encoded size, which they take twice at most.
	outputBytes   = 192
	samplingBytes = 512
	treeBytes     = 512
	// tallyBytes is what a tenant takes of which something is kept.
	tallyBytes = 2048
	// answerShare is the part of a bound that answers take at most.
	answerShare = 4
	// errorKept is how much of an error outlives its answer.
	errorKept = 128
)

// keptBytes is what a finished record takes in memory.
func (r *Record) keptBytes() int64 {
	if r.Phase != Finished {
		return 0
	}
	return r.answerBytes() + recordBytes + int64(idCopies*len(r.Request.GetId())+len(r.Request.GetModel())+len(r.Request.GetGatewayId())+
		len(r.WorkerID)+len(r.Digest)+len(r.PromptDigest)+3*len(r.Request.GetTenant())+min(len(r.Error), errorKept))
}

// answerBytes is the part of it that goes before the rest: outputs, parameters, a long error.
func (r *Record) answerBytes() int64 {
	if r.Phase != Finished {
		return 0
	}
	n := max(0, len(r.Error)-errorKept)
	for _, o := range r.Outputs {
		n += outputBytes + 4*len(o.GetTokenIds()) + len(o.GetStopReason())
	}
	if s := r.Request.GetSampling(); s != nil {
		n += samplingBytes + 2*proto.Size(s)
	}
	if n > 0 {
		n += treeBytes
	}
	return int64(n)
}

// bare is the record without what answerBytes counts.
func (r *Record) bare() *Record {
	out := *r
	out.Outputs = nil
	out.Request = Slim(r.Request)
	out.Request.Sampling = nil
	if len(r.Error) > errorKept {
		out.Error = string([]byte(r.Error[:errorKept])) // The rest is not held by a part of it.
	}
	return &out
}

// trimmed outputs take no more memory than they hold.
func trimmed(outputs []*pb.Output) []*pb.Output {
	for i, o := range outputs {
		if tokens := o.GetTokenIds(); cap(tokens) > len(tokens) {
			outputs[i] = &pb.Output{TokenIds: append(make([]int32, 0, len(tokens)), tokens...), FinishReason: o.GetFinishReason(), StopReason: o.GetStopReason()}
		}
	}
	return outputs
}

// keepEnd books a finished record that comes into the table.
func (a *application) keepEnd(r *Record) {
	t := tally{tenant: r.Request.GetTenant(), oldestMS: r.FinishedMS, bytes: tallyBytes}
	if known := first[*tally](a.txn, talliesTable, t.tenant); known != nil {
		t = *known
		t.oldestMS = min(t.oldestMS, r.FinishedMS)
	} else {
		a.kept.bytes += tallyBytes
	}
	a.book(t, 1, r.keptBytes(), r.answerBytes())
	a.ending[t.tenant] = true
}

// book changes a tally and the sum of all.
func (a *application) book(t tally, requests, bytes, answers int64) {
	t.requests, t.bytes, t.answers = t.requests+requests, t.bytes+bytes, t.answers+answers
	a.kept.requests, a.kept.bytes, a.kept.answers = a.kept.requests+requests, a.kept.bytes+bytes, a.kept.answers+answers
	if t.requests == 0 {
		a.kept.bytes -= t.bytes
		must(a.txn.Delete(talliesTable, &t))
		return
	}
	must(a.txn.Insert(talliesTable, &t))
}

// drop forgets a finished request.
func (a *application) drop(r *Record) {
	must(a.txn.Delete(requestsTable, r))
	t := *first[*tally](a.txn, talliesTable, r.Request.GetTenant())
	if oldest := foremost[*Record](a.txn, requestsTable, "ended", t.tenant); oldest != nil {
		t.oldestMS = oldest.FinishedMS
	}
	a.book(t, -1, -r.keptBytes(), -r.answerBytes())
}

// shed drops a finished request's answer.
func (a *application) shed(r *Record) {
	bare := r.bare()
	must(a.txn.Insert(requestsTable, bare))
	t := *first[*tally](a.txn, talliesTable, r.Request.GetTenant())
	a.book(t, 0, bare.keptBytes()-r.keptBytes(), -r.answerBytes())
}

// forget brings what is kept under its bounds: each tenant's of which a request ended, oldest first;
// then all together, where whoever has the most loses its oldest; then what is too old.
func (a *application) forget() {
	for _, tenant := range slices.Sorted(maps.Keys(a.ending)) {
		for {
			t := first[*tally](a.txn, talliesTable, tenant)
			if t != nil && t.answers > a.keep.TenantBytes/answerShare {
				a.shed(foremost[*Record](a.txn, requestsTable, "answered", tenant))
			} else if t != nil && (t.requests > a.keep.TenantRequests || t.bytes > a.keep.TenantBytes) {
				a.drop(foremost[*Record](a.txn, requestsTable, "ended", tenant))
			} else {
				break
			}
		}
	}
	for a.kept.answers > a.keep.Bytes/answerShare {
		a.shed(foremost[*Record](a.txn, requestsTable, "answered", foremost[*tally](a.txn, talliesTable, "answers").tenant))
	}
	for a.kept.bytes > a.keep.Bytes {
		a.drop(foremost[*Record](a.txn, requestsTable, "ended", foremost[*tally](a.txn, talliesTable, "bytes").tenant))
	}
	for a.kept.requests > 0 {
		t := foremost[*tally](a.txn, talliesTable, "oldest")
		if a.nowMS-t.oldestMS <= a.keep.AgeMS {
			break
		}
		a.drop(foremost[*Record](a.txn, requestsTable, "ended", t.tenant))
	}
}

func tallies(a *application) iter.Seq[*tally] {
	return func(yield func(*tally) bool) {
		it, err := a.txn.Get(talliesTable, "id")
		must(err)
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if t, ok := raw.(*tally); ok && !yield(t) {
				return
			}
		}
	}
}

// Kept is what is kept of ended requests.
type Kept struct {
	Requests int64
	// Bytes of memory that they take, Answers among them.
	Bytes, Answers int64
}

// Kept sums up what is kept of ended requests, of all tenants.
func (v *View) Kept() Kept { return Kept{v.kept.requests, v.kept.bytes, v.kept.answers} }

// KeptOf sums up what is kept of a tenant's ended requests.
func (v *View) KeptOf(tenant string) Kept {
	t := first[*tally](v.db.Txn(false), talliesTable, tenant)
	if t == nil {
		return Kept{}
	}
	return Kept{t.requests, t.bytes, t.answers}
}

// Retention is what the log says of how much is kept.
func (v *View) Retention() Retention { return v.keep }

// EndedSince lists finished requests that ended at this time of the log or later, by tenant.
func (v *View) EndedSince(ms int64) iter.Seq[*Record] {
	return func(yield func(*Record) bool) {
		txn := v.db.Txn(false)
		for t := range list[*tally](v.db, talliesTable, "id") {
			it, err := txn.LowerBound(requestsTable, "ended", t.tenant, ms)
			must(err)
			for raw := it.Next(); raw != nil; raw = it.Next() {
				r, ok := raw.(*Record)
				if !ok || r.Request.GetTenant() != t.tenant {
					break
				}
				if !yield(r) {
					return
				}
			}
		}
	}
}

// Ended lists finished requests by tenant, the ones that ended first at the front of each.
func (v *View) Ended() iter.Seq[*Record] { return list[*Record](v.db, requestsTable, "ended") }
