package gateway_test

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"testing"

	"github.com/quire-serve/quire/gateway"
	"github.com/quire-serve/quire/gateway/gatewaytest"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// logged collects a gateway's log.
type logged struct {
	mu  sync.Mutex
	all bytes.Buffer
}

func (l *logged) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.all.Write(b)
}

// requests are the lines about requests; text is the whole log.
func (l *logged) requests(t *testing.T) (lines []map[string]any, text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	text = l.all.String()
	for line := range strings.Lines(text) {
		var fields map[string]any
		if err := json.Unmarshal([]byte(line), &fields); err != nil {
			t.Fatalf("%v in %s", err, line)
		}
		if fields["msg"] == "request" {
			lines = append(lines, fields)
		}
	}
	return lines, text
}

// TestALineARequest: every request leaves one line at its end, with what operators ask for, whatever became
// of it; and none has anything of the prompt or the output.
func TestALineARequest(t *testing.T) {
	const secret = "thequickbrownfox"
	log := &logged{}
	d := open(t, gatewaytest.Options{Reply: gatewaytest.Say(secret)}, func(s *gateway.Settings) {
		s.Log = slog.New(slog.NewJSONHandler(log, nil))
		s.ResumeGrace = -1
	})
	count := 0
	next := func() map[string]any {
		t.Helper()
		count++
		await(t, func() bool { lines, _ := log.requests(t); return len(lines) >= count })
		lines, _ := log.requests(t)
		if len(lines) != count {
			t.Fatalf("%d lines of %d requests", len(lines), count)
		}
		return lines[count-1]
	}
	expect := func(got map[string]any, want map[string]any) {
		t.Helper()
		for name, v := range want {
			if got[name] != v {
				t.Errorf("%s is %v, want %v, in %v", name, got[name], v, got)
			}
		}
	}
	timed := func(got map[string]any) {
		t.Helper()
		queue, _ := got["queue_ms"].(float64)
		ttft, ok := got["ttft_ms"].(float64)
		total, also := got["total_ms"].(float64)
		if !ok || !also || queue > ttft || ttft > total {
			t.Errorf("the times are wrong: %v", got)
		}
	}

	const prompt = secret + secret
	d.post(textPath, `{"model":"test","prompt":"`+prompt+`","max_tokens":5}`, "X-Quire-Tenant", "acme", "Idempotency-Key", "one")
	got := next()
	expect(got, map[string]any{"level": "INFO", "method": "POST", "path": textPath, "status": 200.0, "id": "one", "tenant": "acme", "model": "test",
		"stream": false, "prompt_tokens": float64(len(prompt)), "cached_tokens": 16.0, "output_tokens": 5.0, "finish": "length"})
	timed(got)
	d.post(chatPath, `{"model":"test","stream":true,"messages":[{"role":"user","content":"`+prompt+`"}]}`)
	got = next()
	expect(got, map[string]any{"path": chatPath, "status": 200.0, "stream": true, "output_tokens": float64(len(secret) + 1), "finish": "stop"})
	timed(got)
	d.post(textPath, `{"model":"test","prompt":"`+prompt+`","max_tokens":-5}`)
	expect(next(), map[string]any{"status": 400.0, "finish": "invalid_value"})
	d.post(textPath, `{"model":"`+secret+`","prompt":"`+prompt+`"}`)
	expect(next(), map[string]any{"status": 404.0, "finish": "model_not_found"})
	call, err := pb.NewInferenceClient(d.grpc()).Generate(t.Context(), &pb.GenerateRequest{Model: "test", RequestId: "g", Input: &pb.GenerateRequest_Prompt{Prompt: prompt}, Sampling: &pb.SamplingParams{MaxTokens: 5}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := collect(call); err != nil {
		t.Fatal(err)
	}
	got = next()
	expect(got, map[string]any{"method": "gRPC", "path": pb.Inference_Generate_FullMethodName, "status": "OK", "id": "g", "output_tokens": 5.0, "finish": "length"})
	timed(got)

	// Pages that are asked for all the time leave none.
	for _, path := range []string{"/health", "/livez", "/metrics", "/v1/models"} {
		d.do("GET", path, "")
	}
	lines, text := log.requests(t)
	if len(lines) != count {
		t.Errorf("%d lines of %d requests", len(lines), count)
	}
	if strings.Contains(text, secret) {
		t.Errorf("the log holds what was asked or answered: %s", text)
	}
}

// TestHangingUpIsNoConflict: a client that leaves is a 499 in metrics and log, in every state of its request.
func TestHangingUpIsNoConflict(t *testing.T) {
	log := &logged{}
	d := open(t, gatewaytest.Options{Manual: true}, func(s *gateway.Settings) { s.Log = slog.New(slog.NewJSONHandler(log, nil)) })
	n := 0
	for name, body := range map[string]string{"streamed": streamed, "whole": `{"model":"test","prompt":"hi"}`} {
		for _, step := range []int{0, 1} {
			n++
			ctx, leave := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, d.url+textPath, strings.NewReader(body))
			left := make(chan struct{})
			go func() {
				defer close(left)
				if resp, err := d.client.Do(req); err == nil {
					defer resp.Body.Close()
					<-ctx.Done()
				}
			}()
			d.Await(func(s gatewaytest.State) bool { return s.Live == 1 })
			d.Step(step)
			leave()
			<-left
			await(t, func() bool { lines, _ := log.requests(t); return len(lines) == n })
			lines, _ := log.requests(t)
			if got := lines[n-1]; got["status"] != 499.0 || got["finish"] != "client_closed_request" {
				t.Errorf("%s: %v", name, got)
			}
			d.Await(func(s gatewaytest.State) bool { return s.Live == 0 })
		}
	}
	page := d.do("GET", "/metrics", "").body
	if got := metric(t, page, `quire_http_requests_total{code="499",route="/v1/completions"}`); got != float64(n) {
		t.Errorf("%g of %d", got, n)
	}
	if strings.Contains(page, `code="409"`) {
		t.Error("a client's leaving is a conflict in the metrics")
	}
}
