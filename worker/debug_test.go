package worker

import (
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestDebugSteps: the traces tell what was scheduled, who was preempted, for whom and why; how many
// is bounded.
func TestDebugSteps(t *testing.T) {
	l := newLeader(t, 1)
	w := start(t, func(s *Settings) { s.Engine.Blocks = 4 }, l.address)
	s := next(t, l.sessions, "session")
	first, second := ask("a", 56), ask("bb", 50)
	second.ArrivalMs++
	s.dispatch(t, 1, 1, first, second)
	w.gate.let(-1)
	for range 2 {
		if f := next(t, s.finished, "report"); f.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH {
			t.Fatalf("report is %v", f)
		}
	}
	get := func(path string) (int, string) {
		out := httptest.NewRecorder()
		w.Debug().ServeHTTP(out, httptest.NewRequest("GET", path, nil))
		return out.Code, out.Body.String()
	}
	code, body := get("/debug/steps")
	if code != http.StatusOK {
		t.Fatalf("%d: %s", code, body)
	}
	lines := strings.Split(strings.TrimSpace(body), "\n")
	if n := w.Stats().Steps; int64(len(lines)) != n {
		t.Errorf("%d lines for %d steps", len(lines), n)
	}
	rows, seen := 0, map[string]string{}
	for i, line := range lines {
		var r stepRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Step != uint64(i+1) {
			t.Fatalf("line %d: %q: %v", i, line, err)
		}
		rows += r.Rows
		for _, n := range r.Notes {
			if n.Why == "" {
				t.Errorf("no reason for %+v", n)
			}
			seen[n.Request+" "+n.What] = n.For
		}
	}
	if n := w.Stats().StepTokens; int64(rows) != n {
		t.Errorf("the steps tell of %d tokens, %d were computed", rows, n)
	}
	for _, want := range []string{"a admitted", "a prefill", "bb admitted", "bb preempted"} {
		if _, ok := seen[want]; !ok {
			t.Errorf("%q is missing in %v", want, seen)
		}
	}
	if seen["bb preempted"] != "a" {
		t.Errorf("bb was preempted for %q, want a", seen["bb preempted"])
	}
	if _, body := get("/debug/steps?n=2"); strings.Count(body, "\n") != 2 {
		t.Errorf("asked for 2 steps, got %q", body)
	}
	for _, n := range []string{"0", "-1", "257", "x"} {
		if code, body := get("/debug/steps?n=" + n); code != http.StatusBadRequest || !strings.Contains(body, "1 to 256") {
			t.Errorf("n=%s: %d %s", n, code, body)
		}
	}
	var stats Stats
	if code, body := get("/debug/stats"); code != http.StatusOK || json.Unmarshal([]byte(body), &stats) != nil || stats.Preemptions == 0 {
		t.Errorf("stats: %d %s", code, body)
	}
	if code, body := get("/debug/pprof/goroutine?debug=1"); code != http.StatusOK || !strings.Contains(body, "goroutine profile") {
		t.Errorf("pprof: %d", code)
	}
}
