package main

import (
	"bufio"
	"context"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"github.com/quire-serve/quire/gateway/clienttest"
)

// metric reads one of the server's metrics; the series of a name are summed.
func (p *process) metric(name string) (sum float64) {
	_, text := p.get("/metrics")
	for line := range strings.Lines(text) {
		series, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		if bare, _, _ := strings.Cut(series, "{"); ok && bare == name {
			v, err := strconv.ParseFloat(value, 64)
			if err != nil {
				p.t.Fatalf("metric %q: %v", line, err)
			}
			sum += v
		}
	}
	return sum
}

// target is the process for the official clients' tests. Idle waits until no block is in use.
func (p *process) target() clienttest.Target {
	return clienttest.Target{URL: "http://" + p.http, Model: "tiny", ContextLength: 2048, Idle: func(testing.TB) {
		p.waitFor("free of requests and blocks", func() bool {
			return p.metric("quire_requests_running") == 0 && p.metric("quire_kv_cache_usage_ratio") == 0 && p.metric("quire_gateway_requests") == 0
		})
	}}
}

// TestOfficialClients runs the official OpenAI clients, unchanged, against `quire dev`.
func TestOfficialClients(t *testing.T) {
	p := startDev(t, t.TempDir(), "--prompt", "")
	t.Run("Go", func(t *testing.T) { clienttest.OpenAIGo(t, p.target()) })
	t.Run("Node", func(t *testing.T) { clienttest.OpenAINode(t, p.target(), "../../test/clients/openai-node") })
}

// TestFullServerAnswers429 fills every place, of which each choice takes one, with streams, and frees it.
func TestFullServerAnswers429(t *testing.T) {
	// Two that last: of eight choices, and without guesses, which the tiny model makes right by repeating itself.
	p := startDev(t, t.TempDir(), "--prompt", "", "--max-requests", "16", "--speculate", "0")
	ctx, cancel := context.WithCancel(t.Context())
	full := func() {
		for range 2 {
			req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+p.http+"/v1/completions",
				strings.NewReader(`{"model":"tiny","prompt":"Once","max_tokens":1900,"n":8,"ignore_eos":true,"stream":true}`))
			if err != nil {
				t.Fatal(err)
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { resp.Body.Close() })
			if line, err := bufio.NewReader(resp.Body).ReadString('\n'); err != nil || !strings.HasPrefix(line, "id: ") {
				t.Fatalf("stream begins with %q, %v", line, err)
			}
		}
	}
	clienttest.OpenAIGoFull(t, p.target(), full, func() { cancel(); p.target().Idle(t) })
}
