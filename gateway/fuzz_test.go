package gateway_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/quire-serve/quire/gateway/gatewaytest"
)

// FuzzBody throws bodies at both endpoints: each is answered, with a shape that clients know, and
// nothing stays behind.
func FuzzBody(f *testing.F) {
	d := open(f, gatewaytest.Options{ContextLength: 64})
	handler := d.gateway.Handler()
	for _, body := range []string{
		``, `{}`, `{"model":"test","prompt":"hi"}`, `{"model":"test","prompt":[1,2],"echo":true,"logprobs":3,"max_tokens":0}`,
		`{"model":"test","prompt":["a","b"],"n":2,"stream":true,"stream_options":{"include_usage":true},"stop":["x",""]}`,
		`{"model":"test","messages":[{"role":"user","content":"hi"}],"max_tokens":3,"logit_bias":{"1":5}}`,
		`{"model":"test","messages":[{"role":"user","content":[{"type":"text","text":"é\ud800"}]}],"stream":true,"logprobs":true,"top_logprobs":2}`,
		"{\"model\":\"\xff\"}", `{"model":"test","prompt":[[1],[2]],"seed":-9223372036854775808,"temperature":1e-45}`,
		`{"model":"test","prompt":"` + strings.Repeat("[", 100) + `"}`, strings.Repeat("[", 20000),
	} {
		f.Add(true, body)
		f.Add(false, body)
	}
	f.Fuzz(func(t *testing.T, chat bool, body string) {
		path, shape, chunkShape := textPath, "Completion", "CompletionChunk"
		if chat {
			path, shape, chunkShape = chatPath, "ChatCompletion", "ChatCompletionChunk"
		}
		w := httptest.NewRecorder()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		handler.ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodPost, path, strings.NewReader(body)))
		if ctx.Err() != nil {
			t.Fatalf("no answer to %q", body)
		}
		switch {
		case w.Code != http.StatusOK:
			if w.Code >= 500 {
				t.Errorf("status %d for %q: %s", w.Code, body, w.Body)
			}
			validate(t, "Error", w.Body.String())
		case w.Header().Get("Content-Type") == "application/json":
			validate(t, shape, w.Body.String())
		default:
			list := events(t, w.Body.String())
			for _, data := range list[:len(list)-1] {
				validate(t, chunkShape, data)
			}
			if list[len(list)-1] != "[DONE]" {
				t.Errorf("the stream ends with %s", list[len(list)-1])
			}
		}
	})
}
