package state

import (
	"fmt"
	"iter"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Bounds of the prompts that come in parts: how many at once, how long after their first part by the
// log's time, and how long each. A leader brings one at a time; others are what failures left behind.
const (
	uploadsKept     = 4
	uploadAgeMS     = 60_000
	maxUploadTokens = 4 << 20
)

// upload is what has come of a prompt. It is immutable, but its array is shared with the one before.
type upload = pb.PromptUpload

// part takes a part of a prompt in. What does not follow what is there changes nothing.
func (a *application) part(c *pb.PromptPartCommand) Result {
	known := first[*upload](a.txn, uploadsTable, c.GetRequestId())
	next := &upload{RequestId: c.GetRequestId(), Upload: c.GetUpload(), Parts: 1, BeganMs: a.nowMS}
	switch {
	case c.GetPart() == 0:
		if known != nil {
			must(a.txn.Delete(uploadsTable, known))
		}
		next.Prompt = c.GetPrompt()
	case known == nil, known.GetUpload() != c.GetUpload(), known.GetParts() != c.GetPart(),
		len(known.GetPrompt())+len(c.GetPrompt()) > maxUploadTokens:
		return Result{}
	default:
		next.Parts, next.BeganMs = known.GetParts()+1, known.GetBeganMs()
		next.Prompt = append(known.GetPrompt(), c.GetPrompt()...)
	}
	if len(next.GetPrompt()) > maxUploadTokens {
		return Result{}
	}
	must(a.txn.Insert(uploadsTable, next))
	return Result{Changed: true}
}

// assemble is the request of a submit with its whole prompt, or why that is not there.
func (a *application) assemble(c *pb.SubmitCommand) (*pb.Request, *Refusal) {
	if c.GetUpload() == 0 {
		return c.GetRequest(), nil
	}
	u := first[*upload](a.txn, uploadsTable, c.GetRequest().GetId())
	if u == nil || u.GetUpload() != c.GetUpload() {
		return nil, &Refusal{Reason: fmt.Sprintf("parts of the prompt of %q are missing; submit it again", c.GetRequest().GetId()), RetryMS: 1}
	}
	must(a.txn.Delete(uploadsTable, u))
	r := WithGateway(c.GetRequest(), c.GetRequest().GetGatewayId())
	r.Prompt = append(u.GetPrompt(), c.GetRequest().GetPrompt()...)
	return r, nil
}

// forgetUploads drops the uploads that are too old or too many, the oldest first.
func (a *application) forgetUploads() {
	for {
		n := 0
		var oldest *upload
		it, err := a.txn.Get(uploadsTable, "began")
		must(err)
		for raw := it.Next(); raw != nil; raw = it.Next() {
			if u, ok := raw.(*upload); ok && oldest == nil {
				oldest = u
			}
			n++
		}
		if n <= uploadsKept && (oldest == nil || a.nowMS-oldest.GetBeganMs() <= uploadAgeMS) {
			return
		}
		must(a.txn.Delete(uploadsTable, oldest))
	}
}

// Uploads is how many prompts have come in part.
func (v *View) Uploads() (n int) {
	for range v.uploads() {
		n++
	}
	return n
}

// uploads lists the uploads by request.
func (v *View) uploads() iter.Seq[*upload] { return list[*upload](v.db, uploadsTable, "id") }
