package state

import (
	"encoding/binary"
	"fmt"

	"github.com/cespare/xxhash/v2"
	"github.com/hashicorp/go-memdb"
	"google.golang.org/protobuf/proto"
)

// chain extends the hash of all entries before with one more, and with what it did: nodes that read the
// same entry and make something else of it, because their versions differ or their memory fails, must not
// pass for the same. What changed is summed up rather than hashed in order, so that the order in which an
// entry touches accounts does not matter.
func chain(previous, index, term uint64, data []byte, timeMS int64, changes memdb.Changes) uint64 {
	d := digest{Digest: xxhash.New()}
	d.numbers(previous, index, term, uint64(timeMS), sum(changes))
	_, _ = d.Write(data)
	return d.Sum64()
}

func sum(changes memdb.Changes) (total uint64) {
	var d digest
	for _, c := range changes {
		if c.Table == talliesTable {
			continue // They follow from the requests.
		}
		if d.Digest == nil {
			d.Digest = xxhash.New()
		}
		d.Reset()
		d.text(c.Table)
		d.object(c.Before)
		d.object(c.After)
		total += d.Sum64()
	}
	return total
}

// digest is a hash of fields, each with its length where that varies.
type digest struct {
	*xxhash.Digest
	buf []byte
}

func (d *digest) numbers(numbers ...uint64) {
	d.buf = d.buf[:0]
	for _, n := range numbers {
		d.buf = binary.LittleEndian.AppendUint64(d.buf, n)
	}
	_, _ = d.Write(d.buf)
}

func (d *digest) text(s string) {
	d.numbers(uint64(len(s)))
	_, _ = d.WriteString(s)
}

func (d *digest) message(m proto.Message) {
	data, err := proto.MarshalOptions{Deterministic: true}.Marshal(m)
	if err != nil {
		panic(fmt.Sprintf("state: encode a %T: %v", m, err))
	}
	d.numbers(uint64(len(data)))
	_, _ = d.Write(data)
}

// object hashes a row of a table, or that there is none. Of prompts and outputs only the length and the
// last token count: all of it came with entries, which are hashed too, and may be long.
func (d *digest) object(raw any) {
	switch o := raw.(type) {
	case nil:
		d.numbers(0)
	case *Record:
		d.record(o)
	case *Account:
		d.text(o.Name)
		d.message(o.Limits)
		d.numbers(uint64(o.Live), uint64(o.requestsLeft), uint64(o.tokensLeft), uint64(o.refilledMS), uint64(o.Served))
	case *Model:
		d.text(o.Name)
		d.message(o.Identity)
		d.numbers(uint64(o.Workers), uint64(o.Live))
	case *cordoned:
		d.text(o.id)
		d.numbers(uint64(o.sinceMS))
	case *upload:
		d.text(o.GetRequestId())
		d.numbers(o.GetUpload(), uint64(o.GetParts()), uint64(o.GetBeganMs()))
		d.tokens(o.GetPrompt())
	case proto.Message:
		d.message(o)
	default:
		panic(fmt.Sprintf("state: a table has a %T, which the chain hash does not know", raw))
	}
}

func (d *digest) record(r *Record) {
	request := r.Request
	for _, s := range []string{
		request.GetId(), request.GetModel(), request.GetTenant(), request.GetGatewayId(), r.WorkerID, r.Error,
		string(r.Digest), string(r.PromptDigest),
	} {
		d.text(s)
	}
	redirected := uint64(0)
	if r.Redirected {
		redirected = 1
	}
	d.numbers(
		uint64(r.Phase), uint64(r.PromptTokens), uint64(r.Attempts), redirected, uint64(r.FinishReason),
		r.Submitted.Term, r.Submitted.Index, r.Dispatched.Term, r.Dispatched.Index,
		uint64(r.ArrivalMS), uint64(r.DeadlineMS), uint64(r.FinishedMS), uint64(len(r.Outputs)),
	)
	d.message(r.Usage)
	d.tokens(request.GetPrompt())
	for _, o := range r.Outputs {
		d.text(o.GetStopReason())
		d.numbers(uint64(o.GetFinishReason()))
		d.tokens(o.GetTokenIds())
	}
}

func (d *digest) tokens(tokens []int32) {
	last := int32(-1)
	if len(tokens) > 0 {
		last = tokens[len(tokens)-1]
	}
	d.numbers(uint64(len(tokens)), uint64(last))
}
