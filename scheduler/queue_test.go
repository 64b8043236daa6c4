package scheduler

import (
	"fmt"
	"testing"
	"testing/synctest"
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
