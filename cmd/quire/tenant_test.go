package main

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

// TestTenantsAndExplain: limits that the command line sets are what clients meet, and both commands
// tell of what happened.
func TestTenantsAndExplain(t *testing.T) {
	p := startDev(t, t.TempDir(), "--prompt", "")
	p.waitReady()
	run := func(want int, args ...string) string {
		t.Helper()
		args = append(args, "--control", p.control)
		code, out, stderr := runQuire(t, args...)
		if code != want {
			t.Fatalf("quire %v: exit %d, %s%s", args, code, out, stderr)
		}
		return out + stderr
	}
	ask := func(key string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://"+p.http+"/v1/completions", strings.NewReader(`{"model":"tiny","prompt":"Hello","max_tokens":4}`))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Quire-Tenant", "acme")
		req.Header.Set("Idempotency-Key", key)
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(body)
	}
	run(0, "tenant", "set", "acme", "--requests-per-minute", "1", "--weight", "3")
	if resp, body := ask("first"); resp.StatusCode != http.StatusOK {
		t.Fatalf("the first: %s %s", resp.Status, body)
	}
	if resp, body := ask("second"); resp.StatusCode != http.StatusTooManyRequests || resp.Header.Get("Retry-After") == "" || !strings.Contains(body, "1 requests a minute") {
		t.Errorf("the second: %s %v %s", resp.Status, resp.Header, body)
	}
	var rows []struct {
		Name         string
		Weight       int64
		RequestsLeft int64 `json:"requests_left"`
		Limit        int64 `json:"requests_per_minute"`
	}
	if err := json.Unmarshal([]byte(run(0, "tenant", "list", "-o", "json")), &rows); err != nil || len(rows) != 1 || rows[0].Name != "acme" || rows[0].Weight != 3 || rows[0].Limit != 1 || rows[0].RequestsLeft != 0 {
		t.Errorf("tenants %+v, %v", rows, err)
	}
	if out := run(0, "tenant", "list"); !strings.Contains(out, "acme") || !strings.Contains(out, "0/1") {
		t.Errorf("tenants\n%s", out)
	}
	if out := run(0, "request", "explain", "--summary"); !strings.Contains(out, "0 requests wait") || !strings.Contains(out, "on 1 workers") {
		t.Errorf("summary\n%s", out)
	}
	if out := run(1, "request", "explain", "nobody"); !strings.Contains(out, `"nobody" is unknown`) {
		t.Errorf("what is unknown: %s", out)
	}
	run(2, "request", "explain")
	run(2, "request", "explain", "x", "--summary")
	run(0, "tenant", "remove", "acme")
	if out := run(1, "tenant", "remove", "acme"); !strings.Contains(out, `"acme" has no limits`) {
		t.Errorf("removed twice: %s", out)
	}
	if resp, body := ask("second"); resp.StatusCode != http.StatusOK {
		t.Errorf("without limits: %s %s", resp.Status, body)
	}
	if code := p.interrupt(); code != 0 {
		t.Errorf("exit code %d", code)
	}
}
