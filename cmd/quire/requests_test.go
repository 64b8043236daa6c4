package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestRequestsAreListedAndAborted: the command line shows what has not ended, chooses by what requests have in
// common, and ends requests with a reason that their clients hear.
func TestRequestsAreListedAndAborted(t *testing.T) {
	c := newNodes(t, 1, func(int) []string { return nil })
	c.leader(0)
	c.startWorker("w")
	p := c.run[0]
	p.waitReady()
	run := func(want int, args ...string) string {
		t.Helper()
		code, out, stderr := runQuire(t, append(args, "--control", c.control[0])...)
		if code != want {
			t.Fatalf("quire %v: exit %d, want %d: %s%s", args, code, want, out, stderr)
		}
		return out + stderr
	}
	list := func(args ...string) (ids []string) {
		t.Helper()
		var rows []requestRow
		if err := json.Unmarshal([]byte(run(0, append([]string{"request", "list", "-o", "json"}, args...)...)), &rows); err != nil {
			t.Fatal(err)
		}
		for _, r := range rows {
			if r.State == "" || r.Model != "tiny" || r.Gateway != "n1" || !r.Watched {
				t.Errorf("row %+v", r)
			}
			ids = append(ids, r.ID)
		}
		return ids
	}
	if ids := list(); len(ids) != 0 {
		t.Fatalf("before there is anything: %v", ids)
	}
	// With its worker barred, what comes waits.
	run(0, "pool", "cordon", "--worker", "w")
	type ending struct {
		status int
		body   string
	}
	ended := map[string]chan ending{}
	for i, tenant := range []string{"acme", "acme", "zoo"} {
		id := fmt.Sprint("r", i)
		ended[id] = make(chan ending, 1)
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.http+"/v1/completions", strings.NewReader(`{"model":"tiny","prompt":"Hello","max_tokens":4}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Quire-Tenant", tenant)
		req.Header.Set("Idempotency-Key", id)
		go func() {
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				ended[id] <- ending{body: err.Error()}
				return
			}
			defer resp.Body.Close()
			body, _ := io.ReadAll(resp.Body) // What is cut off is missed below.
			ended[id] <- ending{resp.StatusCode, string(body)}
		}()
	}
	p.waitFor("waiting", func() bool { return len(list("--state", "waiting")) == 3 })
	if ids := list("--tenant", "acme"); fmt.Sprint(ids) != "[acme/r0 acme/r1]" {
		t.Errorf("acme's are %v", ids)
	}
	if ids := list("--state", "running"); len(ids) != 0 {
		t.Errorf("running are %v", ids)
	}
	if out := run(0, "request", "list", "--limit", "1"); !strings.Contains(out, "more: --after acme/r0") {
		t.Errorf("a page is %s", out)
	}
	if ids := list("--after", "acme/r0"); fmt.Sprint(ids) != "[acme/r1 zoo/r2]" {
		t.Errorf("the next page is %v", ids)
	}
	for _, args := range [][]string{
		{"request", "list", "--state", "lively"}, {"request", "list", "--limit", "0"}, {"request", "abort"}, {"request", "abort", "x", "--tenant", "acme"},
	} {
		run(2, args...)
	}
	run(1, "request", "abort", "unknown")
	if out := run(0, "request", "abort", "acme/r0", "--reason", "maintenance"); !strings.Contains(out, "1 requests aborted") {
		t.Errorf("abort says %s", out)
	}
	if e := <-ended["r0"]; e.status == http.StatusOK || !strings.Contains(e.body, "maintenance") {
		t.Errorf("its client gets %d %s", e.status, e.body)
	}
	if out := run(0, "request", "abort", "--tenant", "zoo"); !strings.Contains(out, "1 requests aborted") {
		t.Errorf("abort says %s", out)
	}
	if e := <-ended["r2"]; e.status == http.StatusOK {
		t.Errorf("its client gets %d %s", e.status, e.body)
	}
	if ids := list(); fmt.Sprint(ids) != "[acme/r1]" {
		t.Errorf("left are %v", ids)
	}
	run(0, "pool", "uncordon", "--worker", "w")
	if e := <-ended["r1"]; e.status != http.StatusOK {
		t.Errorf("what was left alone: %d %s", e.status, e.body)
	}
}

// TestNamesOfModels: the command line shows what a name stands for, changes it only while nobody has it, and
// says what is missing.
func TestNamesOfModels(t *testing.T) {
	c := newNodes(t, 1, func(int) []string { return nil })
	c.leader(0)
	run := func(want int, args ...string) string {
		t.Helper()
		code, out, stderr := runQuire(t, append(args, "--control", c.control[0])...)
		if code != want {
			t.Fatalf("quire %v: exit %d, want %d: %s%s", args, code, want, out, stderr)
		}
		return out + stderr
	}
	models := func() (rows []bindingRow) {
		t.Helper()
		if err := json.Unmarshal([]byte(run(0, "pool", "models", "-o", "json")), &rows); err != nil {
			t.Fatal(err)
		}
		return rows
	}
	if rows := models(); len(rows) != 0 {
		t.Fatalf("before there is a worker: %+v", rows)
	}
	run(2, "pool", "bind", "other")
	run(2, "pool", "bind")
	run(2, "pool", "release")
	run(0, "pool", "bind", "other", "--digest", "d1", "--arithmetic", "a1")
	if rows := models(); len(rows) != 1 || rows[0].Model != "other" || rows[0].Digest != "d1" || rows[0].Arithmetic != "a1" || rows[0].Workers != 0 {
		t.Errorf("bound is %+v", rows)
	}
	run(0, "pool", "release", "other")
	w := c.startWorker("w")
	w.waitFor("in session", func() bool {
		rows := models()
		return len(rows) == 1 && rows[0].Model == "tiny" && rows[0].Workers == 1
	})
	if rows := models(); rows[0].Digest == "" || rows[0].Arithmetic == "" || len(rows[0].OtherCopies) != 0 {
		t.Errorf("the worker's is %+v", rows)
	}
	for _, args := range [][]string{{"pool", "bind", "tiny", "--digest", "d2"}, {"pool", "release", "tiny"}} {
		if out := run(1, args...); !strings.Contains(out, "tiny") {
			t.Errorf("quire %v says %s", args, out)
		}
	}
	if out := run(0, "pool", "models"); !strings.Contains(out, "MODEL") || !strings.Contains(out, "tiny") {
		t.Errorf("the table is %s", out)
	}
}
