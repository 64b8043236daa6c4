package gateway_test

import (
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
)

// metric is a counter's value for the test model.
func (d *door) metric(name, labels string) string {
	d.t.Helper()
	for line := range strings.Lines(d.do(http.MethodGet, "/metrics", "").body) {
		if v, ok := strings.CutPrefix(line, name+"{"+labels+"} "); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func (d *door) continued(how string) string {
	return d.metric("quire_requests_continued_total", fmt.Sprintf("how=%q,model_name=\"test\"", how))
}

// TestElection streams on while nobody leads, and admits what comes meanwhile once somebody does.
func TestElection(t *testing.T) {
	d := open(t, gatewaytest.Options{Nodes: 3, Manual: true})
	d.Step(1)
	s := d.stream(textPath, `{"model":"test","prompt":"hi","stream":true,"max_tokens":50,"seed":3}`)
	first := decode[chunk](t, s.next()).Choices[0].Text
	d.Elect(-1)
	answered := make(chan reply)
	go func() { answered <- d.post(textPath, `{"model":"test","prompt":"ho","max_tokens":5,"seed":4}`) }()
	d.Step(48)
	d.Await(func(s gatewaytest.State) bool { return s.Steps == 49 })
	if n := d.State().Admitted; n != 1 {
		t.Errorf("%d admitted without a leader", n)
	}
	d.Elect(2)
	elected := time.Now()
	d.Await(func(s gatewaytest.State) bool { return s.Admitted == 2 })
	if took := time.Since(elected); took > time.Second {
		t.Errorf("admission came back after %v", took)
	}
	d.Step(10)
	if got := first + s.text(); got != babble("hi", 3, 50) {
		t.Errorf("the stream is %q", got)
	}
	if r := <-answered; r.status != 200 || decode[chunk](t, r.body).Choices[0].Text != babble("ho", 4, 5) {
		t.Errorf("%d %s", r.status, r.body)
	}
	// News come from the new leader now.
	d.SetWorkers(0)
	await(t, func() bool { return !d.gateway.Ready() })
}

// TestNoLeader answers 503 with a wait when no leader is found in time.
func TestNoLeader(t *testing.T) {
	d := open(t, gatewaytest.Options{Nodes: 3}, func(s *gateway.Settings) { s.SubmitTimeout = 50 * time.Millisecond })
	d.Elect(-1)
	r := d.post(textPath, `{"model":"test","prompt":"hi"}`, "Idempotency-Key", "k")
	if r.status != 503 || r.header.Get("Retry-After") != "1" {
		t.Errorf("%d %v %s", r.status, r.header, r.body)
	}
	d.Elect(1)
	await(t, func() bool {
		return d.post(textPath, `{"model":"test","prompt":"hi"}`, "Idempotency-Key", "k").status == 200
	})
}

// TestTimeIsUp does not take a node's word that the call's time is up for the request's deadline.
func TestTimeIsUp(t *testing.T) {
	d := open(t, gatewaytest.Options{}, func(s *gateway.Settings) { s.SubmitTimeout = 50 * time.Millisecond })
	d.Refuse(status.Error(codes.DeadlineExceeded, "context deadline exceeded"))
	if r := d.post(textPath, `{"model":"test","prompt":"hi"}`); r.status != 503 {
		t.Errorf("%d %v %s", r.status, r.header, r.body)
	}
}

// TestNodeKilled finds the new leader when the old one's process is gone, and again when it is back.
func TestNodeKilled(t *testing.T) {
	d := open(t, gatewaytest.Options{Nodes: 2})
	for i, place := range []int{1, 0, 1} {
		d.KillNode(1 - place)
		d.Elect(place)
		if r := d.post(textPath, `{"model":"test","prompt":"hi","max_tokens":3}`); r.status != 200 {
			t.Errorf("%d: %d %s", i, r.status, r.body)
		}
		d.StartNode(1 - place)
	}
}

// TestSilentNode does not wait for a leader that takes calls and never answers.
func TestSilentNode(t *testing.T) {
	d := open(t, gatewaytest.Options{Nodes: 2})
	d.Mute("node-0", true)
	d.Elect(1)
	if r := d.post(textPath, `{"model":"test","prompt":"hi","max_tokens":3}`); r.status != 200 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestLeaderIsTold cuts what waits for a silent node's answer short when the gateway is told who leads.
func TestLeaderIsTold(t *testing.T) {
	d := open(t, gatewaytest.Options{Nodes: 2})
	d.post(textPath, `{"model":"test","prompt":"hi","max_tokens":3}`) // the leader is known now
	d.Mute("node-0", true)
	answered := make(chan reply)
	go func() { answered <- d.post(textPath, `{"model":"test","prompt":"hi","max_tokens":3}`) }()
	d.Await(func(s gatewaytest.State) bool { return s.Unanswered > 0 })
	d.Elect(1)
	began := time.Now()
	d.gateway.LeaderAt("node-1")
	if r := <-answered; r.status != 200 || time.Since(began) > time.Second {
		t.Errorf("%d after %v: %s", r.status, time.Since(began), r.body)
	}
	d.SetWorkers(0) // told by the new leader
	await(t, func() bool { return !d.gateway.Ready() })
	if took := time.Since(began); took > time.Second {
		t.Errorf("news came from the new leader after %v", took)
	}
}

// TestAdmittedOnce loses the answers to Submit: it is repeated, and the request runs once.
func TestAdmittedOnce(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	d.LoseAnswers(2)
	r := d.post(textPath, `{"model":"test","prompt":["hi","ho"],"max_tokens":5,"seed":4}`)
	if r.status != 200 || decode[chunk](t, r.body).Choices[1].Text != babble("ho", 4, 5) {
		t.Errorf("%d %s", r.status, r.body)
	}
	if s := d.State(); s.Admitted != 2 || len(s.Aborts) != 0 {
		t.Errorf("%d admitted, %v aborted", s.Admitted, s.Aborts)
	}
}

// TestWorkerKilled kills workers under streams of every kind: each goes on with the tokens it would
// have had, and the leader is given back what clients have seen.
func TestWorkerKilled(t *testing.T) {
	bodies := map[string]string{
		"plain":    `{"model":"test","prompt":"hi","stream":true,"max_tokens":120,"seed":3}`,
		"choices":  `{"model":"test","prompt":["a","b"],"n":3,"stream":true,"max_tokens":120,"seed":3,"stop":["zq"]}`,
		"logprobs": `{"model":"test","prompt":"hi","stream":true,"max_tokens":120,"seed":3,"logprobs":2,"echo":true}`,
		"whole":    `{"model":"test","prompt":"hi","max_tokens":120,"seed":3,"n":2}`,
	}
	undisturbed := open(t, gatewaytest.Options{})
	d := open(t, gatewaytest.Options{Workers: 4, Manual: true})
	var clients sync.WaitGroup
	for name, body := range bodies {
		want := gatewaytest.Gather(t, undisturbed.post(textPath, body).body)
		clients.Go(func() {
			if got := gatewaytest.Gather(t, d.post(textPath, body).body); got != want {
				t.Errorf("%s\ngot  %s\nwant %s", name, got, want)
			}
		})
	}
	d.Await(func(s gatewaytest.State) bool { return s.Live == 5 })
	for place := range 3 {
		d.Step(20)
		d.Await(func(s gatewaytest.State) bool { return s.Steps == 20*(place+1) })
		d.KillWorker(place)
	}
	d.Step(1000)
	clients.Wait()
	if s := d.State(); len(s.Wrong) != 0 || s.Recalls == 0 || len(s.Aborts) != 0 {
		t.Errorf("%d recalls, aborts %v, never generated: %v", s.Recalls, s.Aborts, s.Wrong)
	}
	if d.continued("recovered") == "0" || d.metric("quire_stream_gap_seconds_count", `model_name="test"`) == "0" {
		t.Error("the metrics tell of no failover")
	}
}

// TestLogprobsGoOn kills workers under streams with log-probabilities: they go on where they were, and what the next worker says again is not said to the client.
func TestLogprobsGoOn(t *testing.T) {
	const tokens = 60
	for name, body := range map[string]string{
		"choices": `{"model":"test","prompt":"hi","stream":true,"max_tokens":60,"seed":3,"logprobs":2,"n":2}`,
		"echo":    `{"model":"test","prompt":"hi","stream":true,"max_tokens":60,"seed":3,"logprobs":2,"echo":true}`,
	} {
		t.Run(name, func(t *testing.T) {
			want := gatewaytest.Gather(t, open(t, gatewaytest.Options{}).post(textPath, body).body)
			d := open(t, gatewaytest.Options{Workers: 3, Manual: true})
			answered := make(chan reply)
			go func() { answered <- d.post(textPath, body, "Idempotency-Key", "k") }()
			d.Await(func(s gatewaytest.State) bool { return s.Live == 1 })
			for place := range 2 {
				d.Step(20)
				d.Await(func(s gatewaytest.State) bool { return s.Steps == 20*(place+1) })
				d.KillWorker(d.WorkerOf("k"))
			}
			d.Step(tokens)
			if got := gatewaytest.Gather(t, (<-answered).body); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
			// A step or two before a kill may have reached neither the gateway nor the log.
			if s := d.State(); s.Steps > tokens+2*2 || s.Recalls != 2 || s.Reruns != 0 {
				t.Errorf("%d steps, %d recalls, %d reruns", s.Steps, s.Recalls, s.Reruns)
			}
		})
	}
}

// TestEndedWithItsWorker has a request end on a worker that dies before its stream brought the end.
func TestEndedWithItsWorker(t *testing.T) {
	for name, body := range map[string]string{
		"plain":    `{"model":"test","prompt":"hi","stream":true,"max_tokens":9,"seed":3}`,
		"logprobs": `{"model":"test","prompt":"hi","stream":true,"max_tokens":9,"seed":3,"logprobs":2}`,
	} {
		t.Run(name, func(t *testing.T) {
			want := gatewaytest.Gather(t, open(t, gatewaytest.Options{}).post(textPath, body).body)
			d := open(t, gatewaytest.Options{Workers: 2, Manual: true})
			d.Step(3)
			s := d.stream(textPath, body)
			got := s.next() + "\n\n"
			d.Await(func(s gatewaytest.State) bool { return s.Steps == 3 })
			d.Mute("worker-0", true)
			d.Step(100)
			d.Await(func(s gatewaytest.State) bool { return s.Live == 0 })
			d.KillWorker(0)
			for data := s.next(); data != ""; data = s.next() {
				got += "data: " + data + "\n\n"
			}
			if got := gatewaytest.Gather(t, "data: "+got); got != want {
				t.Errorf("got  %s\nwant %s", got, want)
			}
		})
	}
}

// TestGap loses tokens on the way: they are asked for, not missed.
func TestGap(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true})
	d.Step(5)
	s := d.stream(textPath, `{"model":"test","prompt":"hi","stream":true,"max_tokens":60,"seed":3}`, "Idempotency-Key", "k")
	d.Await(func(s gatewaytest.State) bool { return s.Steps == 5 })
	d.Skip("k", 7)
	d.Step(55)
	if got := s.text(); got != babble("hi", 3, 60) {
		t.Errorf("got %q", got)
	}
}

// TestSilentWorker reads from the leader what a worker that nobody reaches generates.
func TestSilentWorker(t *testing.T) {
	d := open(t, gatewaytest.Options{Workers: 2})
	d.Mute("worker-0", true)
	if got := decode[chunk](t, d.post(textPath, `{"model":"test","prompt":"hi","max_tokens":60,"seed":3}`).body); got.Choices[0].Text != babble("hi", 3, 60) {
		t.Errorf("got %+v", got)
	}
}

// TestNobodyLeft tells a client whose worker is gone that no leader answers either, and does not let it
// wait for ever.
func TestNobodyLeft(t *testing.T) {
	d := open(t, gatewaytest.Options{Workers: 2, Manual: true}, func(s *gateway.Settings) { s.RecoverTimeout = 100 * time.Millisecond })
	d.Step(1)
	s := d.stream(textPath, streamed, "Idempotency-Key", "k")
	s.next()
	d.Elect(-1)
	d.KillWorker(0)
	c := decode[chunk](t, s.next())
	if c.Error == nil || c.Error.Code != "unavailable" || !strings.Contains(c.Error.Message, "the control plane does not answer; ask again under the same id") {
		t.Errorf("got %+v", c)
	}
	// It is not lost.
	d.Elect(0)
	d.Step(400)
	if got := d.stream(textPath, streamed, "Idempotency-Key", "k", "Last-Event-ID", s.id).text(); len(got) != 399 {
		t.Errorf("the rest has %d characters", len(got))
	}
}

// TestForgottenRequest ends a request that the control plane knows nothing of.
func TestForgottenRequest(t *testing.T) {
	d := open(t, gatewaytest.Options{Workers: 2, Manual: true})
	answered := make(chan reply)
	go func() {
		answered <- d.post(textPath, `{"model":"test","prompt":"hi"}`, "Idempotency-Key", "k")
	}()
	d.Await(func(s gatewaytest.State) bool { return s.Live == 1 })
	d.Forget("k")
	d.SetWorkers(0) // nobody is attached, so that the leader is asked soon
	if r := <-answered; r.status != 500 || !strings.Contains(r.body, "the control plane has forgotten the request") {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestRefusals passes the leader's reasons on.
func TestRefusals(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	d.Refuse(gatewaytest.QueueFull(time.Second))
	if r := d.post(textPath, streamed); r.status != 429 || r.header.Get("X-Quire-Reason") != "overloaded" {
		t.Errorf("%d %v", r.status, r.header)
	}
	d.Refuse(gatewaytest.Late())
	const want = `{"error":{"message":"request.patience_ms: the deadline has passed","type":"server_error","param":null,"code":"deadline_exceeded"}}` + "\n"
	r := d.post(textPath, streamed, "X-Request-Deadline-Ms", "5")
	if r.status != 504 || r.body != want || r.header.Get("X-Quire-Reason") != "deadline" || r.header.Get("X-Should-Retry") != "false" {
		t.Errorf("%d %v %s", r.status, r.header, r.body)
	}
}

// TestCallerReachesLeader sends what a request says outside of its body.
func TestCallerReachesLeader(t *testing.T) {
	d := open(t, gatewaytest.Options{}, frozen)
	d.post(textPath, `{"model":"test","prompt":"x","max_tokens":1,"priority":-3}`, "X-Quire-Tenant", "acme", "X-Request-Deadline-Ms", "2500")
	d.post(textPath, `{"model":"test","prompt":"x","max_tokens":1}`, "X-Quire-Tenant", "other")
	d.post(textPath, `{"model":"test","prompt":"x","max_tokens":1}`)
	reqs := d.State().Requests
	if r := reqs[0]; r.Tenant != "acme" || r.Priority != -3 || r.PatienceMs != 2500 || len(r.CacheSalt) != 16 {
		t.Errorf("got %v", r)
	}
	if string(reqs[0].CacheSalt) == string(reqs[1].CacheSalt) || reqs[2].CacheSalt != nil || reqs[2].PatienceMs != 0 {
		t.Errorf("salts %x %x %x", reqs[0].CacheSalt, reqs[1].CacheSalt, reqs[2].CacheSalt)
	}
	for _, c := range []struct{ header, value, body, want string }{
		{"X-Quire-Tenant", "a/b", streamed, "X-Quire-Tenant must be at most 64 letters, digits, dots, hyphens and underscores"},
		{"X-Quire-Tenant", strings.Repeat("x", 65), streamed, "X-Quire-Tenant must be at most 64"},
		{"X-Request-Deadline-Ms", "0", streamed, "X-Request-Deadline-Ms must be 1 to 86400000 milliseconds from now"},
		{"X-Request-Deadline-Ms", "soon", streamed, "X-Request-Deadline-Ms must be 1 to 86400000 milliseconds from now"},
		{"X-Other", "", `{"model":"test","prompt":"x","priority":8}`, "priority must be between -8 and 7, not 8"},
	} {
		if r := d.post(textPath, c.body, c.header, c.value); r.status != 400 || !strings.Contains(r.body, c.want) {
			t.Errorf("%s %q: %d %s", c.header, c.value, r.status, r.body)
		}
	}
}

// TestHugePrompt is refused without being cut into tokens.
func TestHugePrompt(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	r := d.post(textPath, `{"model":"test","prompt":"`+strings.Repeat("words ", 1_000_000)+`"}`)
	if r.status != 400 || !strings.Contains(r.body, "maximum context length is 2048 tokens; the prompt has at least 461539 tokens") {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// TestNoWorkerIsSaidAtOnce: the leader's word that no worker takes requests is the answer; it is not asked
// again, as a node that does not lead is.
func TestNoWorkerIsSaidAtOnce(t *testing.T) {
	d := open(t, gatewaytest.Options{}, func(s *gateway.Settings) { s.SubmitTimeout = time.Hour })
	d.Refuse(gatewaytest.NoWorker())
	r := d.post(textPath, streamed)
	if r.status != 503 || r.header.Get("X-Quire-Reason") != "no_worker" || r.header.Get("Retry-After") == "" || !strings.Contains(r.body, "it has no workers") {
		t.Errorf("%d %v %s", r.status, r.header, r.body)
	}
}
