package gateway

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"testing/synctest"

	"github.com/quire-serve/quire/model/grammar"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// bytesOnly is a vocabulary of all bytes and an end.
type bytesOnly struct{}

func (bytesOnly) Size() int               { return 257 }
func (bytesOnly) IsSpecial(id int32) bool { return id == 256 }
func (bytesOnly) EOGs() []int32           { return []int32{256} }
func (bytesOnly) Bytes(id int32) []byte {
	if id == 256 {
		return nil
	}
	return []byte{byte(id)}
}

// TestCompilesAreQueued: many constraints at once wait for each other, beyond a bound they are told to
// come again, who leaves takes his place along, and none is called bad for it.
func TestCompilesAreQueued(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := grammar.NewGate(1, 1)
		v, err := grammar.NewVocabulary(bytesOnly{}, 257)
		if err != nil {
			t.Fatal(err)
		}
		m := &served{}
		m.grammars.once.Do(func() { m.grammars.cache = grammar.NewCache(v, grammar.Limits{}, 10, 1<<20, gate) })
		check := func(ctx context.Context, source string) *apiError {
			return m.checkConstraint(ctx, &pb.Constraint{Kind: &pb.Constraint_Regex{Regex: source}}, "guided_regex")
		}
		release := make(chan struct{})
		go gate.Do(t.Context(), func() error { <-release; return nil })
		synctest.Wait()
		ctx, leave := context.WithCancelCause(t.Context())
		ended := make(chan *apiError, 1)
		go func() { ended <- check(ctx, "first") }()
		synctest.Wait()
		if e := check(t.Context(), "second"); e == nil || e.status != http.StatusTooManyRequests || e.retryAfter <= 0 {
			t.Errorf("over the bound: %+v", e)
		}
		leave(errors.New("gone"))
		if e := <-ended; e == nil || e.status != statusGone {
			t.Errorf("who has left: %+v", e)
		}
		go func() { ended <- check(t.Context(), "second") }()
		synctest.Wait()
		close(release)
		if e := <-ended; e != nil {
			t.Errorf("after a wait: %+v", e)
		}
	})
}
