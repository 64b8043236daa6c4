package scheduler

import (
	"fmt"
	"strings"
	"testing"
	"testing/synctest"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
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
