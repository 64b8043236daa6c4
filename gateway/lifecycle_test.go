package gateway_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quire-serve/quire/gateway"
	"github.com/quire-serve/quire/gateway/gatewaytest"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

const streamed = `{"model":"test","prompt":"hi","stream":true,"max_tokens":400}`

// babble is what the fake workers answer to a prompt.
func babble(prompt string, seed uint64, n int) string {
	req := &pb.Request{Prompt: gatewaytest.Text(prompt), Sampling: &pb.SamplingParams{Seed: &seed}}
	var b strings.Builder
	for i := range n {
		b.WriteByte(byte(gatewaytest.Babble(req, 0, i)))
	}
	return b.String()
}

// text joins the text of a stream's remaining chunks; it fails on an error event.
func (s *stream) text() string {
	s.t.Helper()
	var b strings.Builder
	for data := s.next(); data != "[DONE]"; data = s.next() {
		c := decode[chunk](s.t, data)
		if c.Error != nil {
			s.t.Fatalf("error event: %+v", *c.Error)
		}
		for _, choice := range c.Choices {
			b.WriteString(choice.Text + choice.Delta.Content)
		}
	}
	return b.String()
}

// TestNothingBeforeCommit runs a request to its end on the worker while Submit has not answered: the
// client must see nothing of it until then, and all of it afterwards.
func TestNothingBeforeCommit(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	release := d.HoldSubmit()
	defer release()
	answered := make(chan string)
	go func() {
		answered <- d.post(textPath, `{"model":"test","prompt":"hi","seed":1,"max_tokens":30}`).body
	}()
	d.Await(func(s gatewaytest.State) bool { return s.Admitted == 1 && s.Live == 0 })
	early := time.NewTimer(50 * time.Millisecond)
	select {
	case got := <-answered:
		t.Fatalf("answered before the commit: %s", got)
	case <-early.C:
	}
	release()
	if got := decode[chunk](t, <-answered).Choices[0].Text; got != babble("hi", 1, 30) {
		t.Errorf("got %q", got)
	}
}

// TestClientGone ends a request in each of its states by closing the client's connection.
func TestClientGone(t *testing.T) {
	gone := func(t *testing.T, d *door) {
		t.Helper()
		s := d.Await(func(s gatewaytest.State) bool { return s.UsedBlocks == 0 && len(s.Aborts) == s.Admitted })
		if s.Admitted == 0 {
			t.Error("nothing was admitted")
		}
	}
	t.Run("streaming", func(t *testing.T) {
		d := open(t, gatewaytest.Options{Manual: true})
		d.Step(1)
		s := d.stream(textPath, streamed)
		if s.next() == "" {
			t.Fatal("no first event")
		}
		s.close()
		gone(t, d)
	})
	t.Run("waiting for the whole", func(t *testing.T) {
		d := open(t, gatewaytest.Options{Manual: true})
		ctx, cancel := context.WithCancel(t.Context())
		var client sync.WaitGroup
		defer client.Wait()
		client.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, d.url+textPath, strings.NewReader(`{"model":"test","prompt":["a","b"],"n":2}`))
			if resp, err := d.client.Do(req); err == nil {
				resp.Body.Close()
				t.Error("an answer came back")
			}
		})
		d.Await(func(s gatewaytest.State) bool { return s.Live == 2 })
		cancel()
		gone(t, d)
	})
	t.Run("submitting", func(t *testing.T) {
		d := open(t, gatewaytest.Options{Manual: true})
		defer d.HoldSubmit()()
		ctx, cancel := context.WithCancel(t.Context())
		var client sync.WaitGroup
		defer client.Wait()
		client.Go(func() {
			req, _ := http.NewRequestWithContext(ctx, http.MethodPost, d.url+textPath, strings.NewReader(streamed))
			if resp, err := d.client.Do(req); err == nil {
				resp.Body.Close()
				t.Error("an answer came back")
			}
		})
		d.Await(func(s gatewaytest.State) bool { return s.Live == 1 })
		cancel()
		gone(t, d)
	})
}

// TestBrokenStreams cuts the worker's stream again and again while requests run: no token may be
// lost, repeated or changed.
func TestBrokenStreams(t *testing.T) {
	d := open(t, gatewaytest.Options{Workers: 2, Manual: true})
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			prompt := fmt.Sprint("prompt ", i)
			s := d.stream(textPath, fmt.Sprintf(`{"model":"test","prompt":%q,"seed":5,"stream":true,"max_tokens":200}`, prompt))
			if got, want := s.text(), babble(prompt, 5, 200); got != want {
				t.Errorf("stream %d\ngot  %q\nwant %q", i, got, want)
			}
		})
	}
	d.Await(func(s gatewaytest.State) bool { return s.Live == 8 })
	for k := range 10 {
		d.Step(20)
		d.Await(func(s gatewaytest.State) bool { return s.Steps >= 20*k+10 })
		d.Break()
		d.Await(func(s gatewaytest.State) bool { return s.Sessions == 2 && s.Steps == 20*(k+1) })
	}
	clients.Wait()
}

// TestWorkersComeAndGo follows the set of workers.
func TestWorkersComeAndGo(t *testing.T) {
	d := open(t, gatewaytest.Options{Workers: 2})
	d.Await(func(s gatewaytest.State) bool { return s.Sessions == 2 })
	d.SetWorkers(0)
	await(t, func() bool { return !d.gateway.Ready() })
	for _, path := range []string{"/health", textPath} {
		method := http.MethodGet
		if path == textPath {
			method = http.MethodPost
		}
		r := d.do(method, path, streamed)
		if r.status != http.StatusServiceUnavailable || r.header.Get("Retry-After") != "1" || r.header.Get("X-Should-Retry") != "true" {
			t.Errorf("%s: %d %v %s", path, r.status, r.header, r.body)
		}
		validate(t, "Error", r.body)
	}
	d.SetWorkers(1)
	await(t, d.gateway.Ready)
	if r := d.do(http.MethodGet, "/health", ""); r.status != 200 || r.body != "{\"status\":\"ok\"}\n" {
		t.Errorf("health: %d %s", r.status, r.body)
	}
	if r := d.post(textPath, `{"model":"test","prompt":"hi"}`); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestLivenessIsNotReadiness: without workers, without a leader and while it drains a gateway is alive and not
// ready, with the reason.
func TestLivenessIsNotReadiness(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	check := func(ready int, reason string) {
		t.Helper()
		if r := d.do(http.MethodGet, "/livez", ""); r.status != 200 {
			t.Errorf("/livez: %d %s", r.status, r.body)
		}
		for _, path := range []string{"/readyz", "/health"} {
			r := d.do(http.MethodGet, path, "")
			if r.status != ready || !strings.Contains(r.body, reason) || (r.header.Get("Retry-After") != "") != (ready == 503) {
				t.Errorf("%s: %d %v %s, want %d", path, r.status, r.header, r.body, ready)
			}
		}
	}
	check(200, "ok")
	d.Elect(-1)
	check(200, "ok") // streams and the workers are there; an election is short
	d.Elect(0)
	d.SetWorkers(0)
	await(t, func() bool { return !d.gateway.Ready() })
	check(503, `model \"test\" takes no requests: it has no ready worker`)
	d.SetWorkers(1)
	await(t, d.gateway.Ready)
	d.gateway.Drain(t.Context())
	check(503, "shutting_down")
}

// TestQueueFull passes the leader's refusal on, with its wait, and aborts nothing.
func TestQueueFull(t *testing.T) {
	d := open(t, gatewaytest.Options{MaxLive: 1, Manual: true})
	d.Step(1)
	s := d.stream(textPath, streamed)
	s.next()
	r := d.post(chatPath, `{"model":"test","messages":[{"role":"user","content":"hi"}]}`)
	const want = `{"error":{"message":"the queue is full","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}` + "\n"
	if r.status != 429 || r.body != want {
		t.Errorf("%d %s", r.status, r.body)
	}
	for name, want := range map[string]string{"Retry-After": "2", "Retry-After-Ms": "1500", "X-Should-Retry": "true"} {
		if got := r.header.Get(name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if n := len(d.State().Aborts); n != 0 {
		t.Errorf("%d aborts for a request that was never admitted", n)
	}
}

// TestPlaces bounds what the gateway itself takes on.
func TestPlaces(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true}, func(s *gateway.Settings) { s.MaxRequests = 2 })
	d.Step(1)
	first := d.stream(textPath, streamed)
	first.next()
	r := d.post(textPath, `{"model":"test","prompt":["a","b"]}`)
	const want = `{"error":{"message":"the gateway serves 2 sequences at once and has no place for 1 more","type":"rate_limit_error","param":null,"code":"rate_limit_exceeded"}}` + "\n"
	if r.status != 429 || r.body != want {
		t.Errorf("%d %s", r.status, r.body)
	}
	first.close()
	// The places come back with the client's end.
	d.Await(func(s gatewaytest.State) bool { return s.Live == 0 })
	d.Step(100)
	await(t, func() bool { return d.post(textPath, `{"model":"test","prompt":["a","b"]}`).status == 200 })
}

// TestPlacesAreSequences: each choice of each prompt has a place, from a call's begin over its client's absence
// and return to its end, and exactly these places come back.
func TestPlacesAreSequences(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true}, func(s *gateway.Settings) { s.MaxRequests = 5 })
	holds := func(want float64) {
		t.Helper()
		await(t, func() bool { return metric(t, d.do("GET", "/metrics", "").body, "quire_gateway_requests") == want })
	}
	const three = `{"model":"test","prompt":"hi","stream":true,"max_tokens":30,"seed":3,"n":3}`
	d.Step(1)
	first := d.stream(textPath, three, "Idempotency-Key", "k")
	first.next()
	holds(3)
	for _, c := range []struct {
		body, text string
		status     int
	}{
		{`{"model":"test","prompt":"a","n":3}`, "no place for 2 more", 429}, // beside the one that every call has
		{`{"model":"test","prompt":["a","b","c"]}`, "no place for 2 more", 429},
		{`{"model":"test","prompt":"a","n":6}`, "1 prompts with n 6 are 6 sequences; the gateway serves 5 at once", 400},
		{`{"model":"test","prompt":["a","b","c"],"n":2}`, "3 prompts with n 2 are 6 sequences; the gateway serves 5 at once", 400},
	} {
		if r := d.post(textPath, c.body); r.status != c.status || !strings.Contains(r.body, c.text) {
			t.Errorf("%s: %d %s, want %d with %q", c.body, r.status, r.body, c.status, c.text)
		}
		holds(3)
	}
	first.close()
	second := d.stream(textPath, three, "Idempotency-Key", "k", "Last-Event-ID", first.id)
	await(t, func() bool { // that the first is gone is not noticed at once
		if second.resp.StatusCode == 429 {
			second.close()
			second = d.stream(textPath, three, "Idempotency-Key", "k", "Last-Event-ID", first.id)
		}
		return second.resp.StatusCode != 429
	})
	if second.resp.StatusCode != 200 {
		t.Fatalf("back: %d", second.resp.StatusCode)
	}
	holds(3)
	d.Step(100)
	second.text()
	second.close()
	holds(0)
	d.Step(100)
	if r := d.post(textPath, `{"model":"test","prompt":"a","n":5}`); r.status != 200 {
		t.Errorf("with all places free: %d %s", r.status, r.body)
	}
	holds(0)
}

// TestEndsInTheQueue: each way in which a request may end before a worker began it has its status over HTTP and
// its code over gRPC, and says whether asking again helps.
func TestEndsInTheQueue(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true})
	client := pb.NewInferenceClient(d.grpc())
	for key, c := range map[string]struct {
		reason pb.FinishReason
		status int
		code   codes.Code
		name   string
		retry  string
		word   string
	}{
		"deadline": {pb.FinishReason_FINISH_REASON_DEADLINE, 504, codes.DeadlineExceeded, "deadline_exceeded", "false", "deadline"},
		"unserved": {pb.FinishReason_FINISH_REASON_UNSERVED, 503, codes.Unavailable, "unavailable", "true", "no_worker"},
		"lost":     {pb.FinishReason_FINISH_REASON_ERROR, 500, codes.Internal, "internal_error", "", ""},
		"aborted":  {pb.FinishReason_FINISH_REASON_ABORT, 409, codes.Aborted, "request_cancelled", "false", ""},
	} {
		before := d.State().Admitted
		answered := make(chan reply)
		go func() { answered <- d.post(textPath, `{"model":"test","prompt":"hi"}`, "Idempotency-Key", key) }()
		d.Await(func(s gatewaytest.State) bool { return s.Admitted == before+1 })
		d.EndQueued(key, c.reason, "why")
		r := <-answered
		if got := decode[chunk](t, r.body); r.status != c.status || got.Error.Code != c.name || !strings.Contains(got.Error.Message, "why") ||
			c.retry != "" && r.header.Get("X-Should-Retry") != c.retry || r.header.Get("X-Quire-Reason") != c.word {
			t.Errorf("%s: %d %s %v", key, r.status, r.body, r.header)
		}
		failed := make(chan error)
		go func() {
			stream, err := client.Generate(t.Context(), &pb.GenerateRequest{Model: "test", RequestId: key + "-grpc", Input: &pb.GenerateRequest_Prompt{Prompt: "hi"}})
			for err == nil {
				_, err = stream.Recv()
			}
			failed <- err
		}()
		d.Await(func(s gatewaytest.State) bool { return s.Admitted == before+2 })
		d.EndQueued(key+"-grpc", c.reason, "why")
		if err := <-failed; status.Code(err) != c.code || !strings.Contains(err.Error(), "why") {
			t.Errorf("%s over gRPC: %v, want %v", key, err, c.code)
		}
	}
}

// TestControlPlaneErrors translates the leader's other answers.
func TestControlPlaneErrors(t *testing.T) {
	d := open(t, gatewaytest.Options{}, func(s *gateway.Settings) { s.SubmitTimeout = 100 * time.Millisecond })
	for _, c := range []struct {
		err    error
		status int
		name   string
	}{
		{status.Error(codes.Unavailable, "no quorum"), 503, "unavailable"},
		{status.Error(codes.FailedPrecondition, "not the leader"), 503, "unavailable"},
		{status.Error(codes.InvalidArgument, "bad"), 400, "invalid_value"},
		{status.Error(codes.NotFound, "no such model"), 404, "model_not_found"},
		{status.Error(codes.AlreadyExists, "known"), 409, "request_id_in_use"},
		{errors.New("surprise"), 500, "internal_error"},
	} {
		d.Refuse(c.err)
		r := d.post(textPath, streamed)
		validate(t, "Error", r.body)
		if got := decode[chunk](t, r.body); r.status != c.status || got.Error.Code != c.name {
			t.Errorf("%v became %d %s", c.err, r.status, r.body)
		}
	}
}

// TestFailures ends a request with an error before its first token and after it. A whole answer has the
// error's status, a stream has begun once it is admitted, and ends with an event.
func TestFailures(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true})
	whole := strings.Replace(streamed, `"stream":true,`, "", 1)
	t.Run("before the first token", func(t *testing.T) {
		answered := make(chan reply)
		go func() { answered <- d.post(textPath, whole, "Idempotency-Key", "early") }()
		d.Await(func(s gatewaytest.State) bool { return s.Live == 1 })
		d.Fail("early", "out of blocks")
		r := <-answered
		const want = `{"error":{"message":"generation failed: out of blocks","type":"server_error","param":null,"code":"internal_error"}}` + "\n"
		if r.status != 500 || r.body != want || r.header.Get("Content-Type") != "application/json" {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
	t.Run("before the first token of a stream", func(t *testing.T) {
		s := d.stream(textPath, streamed, "Idempotency-Key", "early-stream") // it has its status before anything failed
		d.Fail("early-stream", "out of blocks")
		const want = `{"error":{"message":"generation failed: out of blocks","type":"server_error","param":null,"code":"internal_error"}}`
		if got := s.next(); s.resp.StatusCode != 200 || got != want {
			t.Errorf("%d %s", s.resp.StatusCode, got)
		}
		if rest := s.next(); rest != "" {
			t.Errorf("after the error comes %s", rest)
		}
	})
	t.Run("in the stream", func(t *testing.T) {
		d.Step(1)
		s := d.stream(textPath, streamed, "Idempotency-Key", "late")
		s.next()
		d.Fail("late", "the device is gone")
		const want = `{"error":{"message":"generation failed: the device is gone","type":"server_error","param":null,"code":"internal_error"}}`
		if got := s.next(); got != want {
			t.Errorf("got %s", got)
		}
		if rest := s.next(); rest != "" {
			t.Errorf("after the error comes %s", rest)
		}
	})
	t.Run("while queued", func(t *testing.T) {
		answered := make(chan reply)
		go func() { answered <- d.post(textPath, whole, "Idempotency-Key", "queued") }()
		d.Await(func(s gatewaytest.State) bool { return s.Live == 1 })
		d.EndQueued("queued", pb.FinishReason_FINISH_REASON_ABORT, "by an operator")
		r := <-answered
		if got := decode[chunk](t, r.body); r.status != 409 || got.Error.Code != "request_cancelled" || r.header.Get("X-Should-Retry") != "false" {
			t.Errorf("%d %s", r.status, r.body)
		}
	})
	t.Run("late in the queue", func(t *testing.T) {
		for _, key := range []string{"too-late", "too-late-again"} {
			answered := make(chan reply)
			before := d.State().Admitted
			go func() { answered <- d.post(textPath, whole, "Idempotency-Key", key) }()
			d.Await(func(s gatewaytest.State) bool { return s.Admitted == before+1 })
			d.EndQueued(key, pb.FinishReason_FINISH_REASON_DEADLINE, "the deadline passed while the request waited for a worker")
			r := <-answered
			if got := decode[chunk](t, r.body); r.status != 504 || got.Error.Code != "deadline_exceeded" || r.header.Get("X-Should-Retry") != "false" || r.header.Get("X-Quire-Reason") != "deadline" {
				t.Errorf("%d %v %s", r.status, r.header, r.body)
			}
		}
	})
}

// TestTenantsShareIsTheirContext: what a tenant's share of the KV cache cannot hold is refused with the
// limit, prompt or output, and an output without a bound of its own ends there.
func TestTenantsShareIsTheirContext(t *testing.T) {
	d := open(t, gatewaytest.Options{Workers: 2, Tenants: []*pb.TenantShare{{Tenant: "small", Blocks: 2}}})
	long := strings.Repeat("x", 40)
	for _, c := range []struct{ tenant, body, want string }{
		{"small", `{"model":"test","prompt":"` + long + `"}`, `tenant \"small\" has a share of the KV cache whose maximum context length is 32 tokens`},
		{"small", `{"model":"test","prompt":"hi","max_tokens":31}`, `tenant \"small\" has a share of the KV cache whose maximum context length is 32 tokens`},
		{"other", `{"model":"test","prompt":"` + long + `","max_tokens":31}`, ""},
		{"small", `{"model":"test","prompt":"hi","max_tokens":8}`, ""},
	} {
		r := d.post(textPath, c.body, "X-Quire-Tenant", c.tenant)
		if c.want == "" && r.status != 200 || c.want != "" && (r.status != 400 || !strings.Contains(r.body, c.want)) {
			t.Errorf("%s: %d %s; want %q", c.tenant, r.status, r.body, c.want)
		}
	}
}

// TestIDs checks how requests are named.
func TestIDs(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	const body = `{"model":"test","prompt":"hi","max_tokens":1}`
	r := d.post(textPath, body, "Idempotency-Key", "order-66", "X-Request-Id", "trace-1")
	if got := r.header.Get("X-Request-Id"); got != "trace-1" {
		t.Errorf("x-request-id came back as %q", got)
	}
	if got := decode[chunk](t, r.body).ID; got != "cmpl-order-66" || d.State().Requests[0].Id != "order-66" {
		t.Errorf("the id is %q", got)
	}
	again := d.post(textPath, body, "Idempotency-Key", "order-66")
	if again.status != 200 || again.body != r.body {
		t.Errorf("the second time: %d %s", again.status, again.body)
	}
	other := d.post(textPath, `{"model":"test","prompt":"ho","max_tokens":1}`, "Idempotency-Key", "order-66")
	const want = `{"error":{"message":"request.id: \"order-66\" was used for a request with another body","type":"invalid_request_error","param":null,"code":"request_id_in_use"}}` + "\n"
	if other.status != 409 || other.body != want || other.header.Get("X-Should-Retry") != "false" {
		t.Errorf("another body: %d %s", other.status, other.body)
	}
	if s := d.State(); len(s.Aborts) != 0 || s.Admitted != 1 {
		t.Errorf("%d aborts, %d admitted", len(s.Aborts), s.Admitted)
	}
	for _, bad := range []string{strings.Repeat("x", 129), "two words", "naïve"} {
		r = d.post(textPath, body, "X-Request-Id", bad)
		if got := r.header.Get("X-Request-Id"); len(got) != 32 {
			t.Errorf("x-request-id %q came back as %q", bad, got)
		}
		if r = d.post(textPath, body, "Idempotency-Key", bad); r.status != 400 {
			t.Errorf("Idempotency-Key %q: %d", bad, r.status)
		}
	}
}

// TestIDInUse refuses a second request under a live id and leaves the first alone.
func TestIDInUse(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true})
	d.Step(1)
	s := d.stream(textPath, `{"model":"test","prompt":"hi","stream":true,"max_tokens":5,"seed":3}`, "Idempotency-Key", "k")
	s.next()
	if r := d.post(textPath, streamed, "Idempotency-Key", "k"); r.status != 409 {
		t.Errorf("%d %s", r.status, r.body)
	}
	d.Step(4)
	if got := s.text(); got != babble("hi", 3, 5)[1:] {
		t.Errorf("the first request went on with %q", got)
	}
}

// TestSlowClient leaves one client's stream unread, with more output than its connection can hold,
// and wants another's to run to its end.
func TestSlowClient(t *testing.T) {
	d := open(t, gatewaytest.Options{ContextLength: 60_000, TotalBlocks: 1 << 20, TokensPerStep: 16})
	slow := d.stream(chatPath, `{"model":"test","messages":[{"role":"user","content":"slow"}],"stream":true,"logprobs":true,"top_logprobs":20,"max_tokens":20000,"seed":1}`)
	fast := d.stream(textPath, `{"model":"test","prompt":"fast","stream":true,"seed":1,"max_tokens":20000}`)
	if got := fast.text(); got != babble("fast", 1, 20000) {
		t.Errorf("the fast stream is wrong, %d bytes", len(got))
	}
	slow.close()
	d.Await(func(s gatewaytest.State) bool { return s.UsedBlocks == 0 })
}

// TestUnreadClientIsDropped counts a client that does not read as gone after the write timeout.
func TestUnreadClientIsDropped(t *testing.T) {
	d := open(t, gatewaytest.Options{ContextLength: 300_000, TotalBlocks: 1 << 20, TokensPerStep: 64, Manual: true}, func(s *gateway.Settings) { s.WriteTimeout = 50 * time.Millisecond })
	d.Step(400) // some 40 MB of events, and no end in sight
	d.stream(chatPath, `{"model":"test","messages":[{"role":"user","content":"x"}],"stream":true,"logprobs":true,"top_logprobs":20,"ignore_eos":true}`)
	d.Await(func(s gatewaytest.State) bool { return len(s.Aborts) == 1 && s.UsedBlocks == 0 })
}

// TestUnreadCallIsDropped does the same over gRPC, where a stream's end is all that ends a blocked Send.
func TestUnreadCallIsDropped(t *testing.T) {
	d := open(t, gatewaytest.Options{ContextLength: 300_000, TotalBlocks: 1 << 20, TokensPerStep: 64, Manual: true},
		func(s *gateway.Settings) { s.WriteTimeout, s.MaxRequests = 50*time.Millisecond, 1 })
	client := pb.NewInferenceClient(d.grpc())
	d.Step(400)
	top := int32(20)
	for i := range 2 { // the second has the place of the first
		await(t, func() bool {
			stream, err := client.Generate(t.Context(), &pb.GenerateRequest{Model: "test", Input: &pb.GenerateRequest_Prompt{Prompt: "x"},
				Sampling: &pb.SamplingParams{Logprobs: &top, IgnoreEos: true, MaxTokens: 200_000}})
			if err != nil {
				t.Fatal(err)
			}
			d.Step(400)
			_, err = stream.Header()
			return err == nil && d.State().Admitted == i+1
		})
		d.Await(func(s gatewaytest.State) bool { return len(s.Aborts) == i+1 && s.UsedBlocks == 0 })
	}
}

// TestShutdown ends what is live when Run ends.
func TestShutdown(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true})
	d.Step(1)
	s := d.stream(textPath, streamed)
	s.next()
	d.quit()
	if got := decode[chunk](t, s.next()); got.Error == nil || got.Error.Code != "shutting_down" {
		t.Errorf("the stream ends with %+v", got)
	}
	if d.gateway.Ready() {
		t.Error("still ready")
	}
}

// TestModelsSayWhetherTheyAreServed: the list says of a model whether its requests would be taken.
func TestModelsSayWhetherTheyAreServed(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	check := func(want bool) {
		t.Helper()
		for _, path := range []string{"/v1/models", "/v1/models/test"} {
			if r := d.do(http.MethodGet, path, ""); strings.Contains(r.body, `"ready":true`) != want || strings.Contains(r.body, `"ready":false`) == want {
				t.Errorf("%s: %s", path, r.body)
			}
		}
	}
	check(true)
	d.Unserved("it drains")
	await(t, func() bool { return !d.gateway.Ready() })
	check(false)
	d.Unserved("")
	await(t, d.gateway.Ready)
	d.SetWorkers(0)
	await(t, func() bool { return !d.gateway.Ready() })
	check(false)
}

// TestNotReadyWhileRequestsAreRefused: workers that are attached do not make a gateway ready if they take no
// requests (they are cordoned, say), which only the leader knows.
func TestNotReadyWhileRequestsAreRefused(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	d.Unserved("of 1 workers 1 are cordoned")
	await(t, func() bool { return !d.gateway.Ready() })
	if got := d.do(http.MethodGet, "/health", ""); got.status != http.StatusServiceUnavailable {
		t.Errorf("/health: %d %s", got.status, got.body)
	} else if !strings.Contains(got.body, "of 1 workers 1 are cordoned") {
		t.Errorf("no reason: %s", got.body)
	}
	d.Unserved("")
	await(t, d.gateway.Ready)
}
