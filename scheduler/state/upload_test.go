package state

import (
	"fmt"
	"slices"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func part(id string, upload uint64, n int32, prompt ...int32) *pb.Command {
	return &pb.Command{Command: &pb.Command_PromptPart{PromptPart: &pb.PromptPartCommand{RequestId: id, Upload: upload, Part: n, Prompt: prompt}}}
}

// whole is the submit that ends an upload.
func whole(id string, upload uint64, prompt ...int32) *pb.Command {
	c := submit(id, prompt...)
	c.GetSubmit().Upload = upload
	return c
}

func TestPromptsInParts(t *testing.T) {
	l := &log{t: t, store: New()}
	count := func() int { return l.store.View().Uploads() }
	l.apply(1, part("a", 7, 0, 1, 2), part("a", 7, 1, 3), part("b", 1, 0, 9))
	if l.apply(2, part("a", 7, 1, 66))[0].Changed || l.apply(2, part("a", 8, 2, 66))[0].Changed || l.apply(2, part("c", 7, 1, 66))[0].Changed {
		t.Error("a part that follows nothing was taken")
	}
	if r := l.apply(2, whole("a", 8, 4))[0]; r.Refused == nil || r.Record != nil {
		t.Errorf("a submit of another upload: %+v", r)
	}
	l.apply(3, part("a", 7, 2, 4), whole("a", 7, 5))
	if r := l.store.View().Request("a"); r == nil || !slices.Equal(r.Request.GetPrompt(), []int32{1, 2, 3, 4, 5}) || r.PromptTokens != 5 || string(r.Request.GetCacheSalt()) != "salt" {
		t.Fatalf("assembled %+v", r)
	}
	if r := l.apply(4, whole("a", 7, 5))[0]; r.Refused == nil {
		t.Errorf("an upload was used twice: %+v", r)
	}
	// A new attempt replaces what an old leader left behind.
	l.apply(4, part("b", 2, 0, 1), part("b", 2, 1, 2), whole("b", 2, 3))
	if r := l.store.View().Request("b"); !slices.Equal(r.Request.GetPrompt(), []int32{1, 2, 3}) || count() != 0 {
		t.Errorf("the second attempt gave %v, %d uploads are left", r.Request.GetPrompt(), count())
	}
	for i := range 6 {
		l.apply(int64(100+i), part(fmt.Sprint("u", i), 1, 0, 1))
	}
	if count() != uploadsKept {
		t.Errorf("%d uploads are kept, the limit is %d", count(), uploadsKept)
	}
	l.apply(104+uploadAgeMS, submit("later", 1))
	if count() != 2 {
		t.Errorf("%d uploads are left after a minute, want 2", count())
	}
}
