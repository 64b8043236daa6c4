package gateway_test

import (
	"context"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/quire-serve/quire/gateway/gatewaytest"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestDrain drains a gateway for too short a time: meanwhile it refuses what is new and says so to
// health, then each kind of client is told where to go on, and there finds its request running.
func TestDrain(t *testing.T) {
	o := gatewaytest.Options{Manual: true}
	here := open(t, o)
	there := join(t, here.Cluster, o, "node-2")
	client := pb.NewInferenceClient(here.grpc())
	const body = `{"model":"test","prompt":"hi","stream":true,"max_tokens":30,"seed":3}`
	whole := strings.Replace(body, `"stream":true,`, "", 1)

	here.Step(5)
	s := here.stream(textPath, body, "Idempotency-Key", "s")
	var got strings.Builder
	got.WriteString("data: " + s.next() + "\n\n")
	rpc, err := client.Generate(t.Context(), &pb.GenerateRequest{Model: "test", RequestId: "g", Input: &pb.GenerateRequest_Prompt{Prompt: "hi"}, Sampling: &pb.SamplingParams{MaxTokens: 30}})
	if err != nil {
		t.Fatal(err)
	}
	answered := make(chan reply)
	go func() { answered <- here.post(textPath, whole, "Idempotency-Key", "w") }()
	here.Await(func(s gatewaytest.State) bool { return s.Admitted == 3 })

	ctx, cancel := context.WithCancel(t.Context())
	drained := make(chan int)
	go func() { drained <- here.gateway.Drain(ctx) }()
	await(t, func() bool { return here.do("GET", "/health", "").status == 503 })
	if r := here.post(textPath, whole); r.status != 503 || !strings.Contains(r.body, `"code":"shutting_down"`) || r.header.Get("X-Should-Retry") != "true" {
		t.Errorf("a new request while it drains: %d %s", r.status, r.body)
	}
	late, err := client.Generate(t.Context(), &pb.GenerateRequest{Model: "test", Input: &pb.GenerateRequest_Prompt{Prompt: "hi"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, _, err := collect(late); status.Code(err) != codes.Unavailable {
		t.Errorf("a new call while it drains: %v", err)
	}

	cancel()
	end := ""
	for data := s.next(); data != ""; data = s.next() {
		if end = data; !strings.Contains(data, `"error"`) {
			got.WriteString("data: " + data + "\n\n")
		}
	}
	if c := decode[chunk](t, end); c.Error == nil || c.Error.Code != "shutting_down" || !strings.Contains(c.Error.Message, `Idempotency-Key "s"`) {
		t.Errorf("the stream ends with %s", end)
	}
	if r := <-answered; r.status != 503 || !strings.Contains(r.body, `Idempotency-Key \"w\"`) || r.header.Get("Retry-After") == "" || r.header.Get("X-Should-Retry") != "true" {
		t.Errorf("the whole answer: %d %v %s", r.status, r.header, r.body)
	}
	_, _, err = collect(rpc)
	retry, _ := append(status.Convert(err).Details(), nil)[0].(*errdetails.RetryInfo)
	if status.Code(err) != codes.Unavailable || !strings.Contains(err.Error(), `"g"`) || retry.GetRetryDelay().AsDuration() <= 0 {
		t.Errorf("the call ends with %v", err)
	}
	if n := <-drained; n != 3 {
		t.Errorf("%d answers were interrupted, want 3", n)
	}
	here.quit()

	here.Step(100)
	resumed := there.stream(textPath, body, "Idempotency-Key", "s", "Last-Event-ID", s.id)
	for data := resumed.next(); data != ""; data = resumed.next() {
		got.WriteString("data: " + data + "\n\n")
	}
	if want := gatewaytest.Gather(t, open(t, gatewaytest.Options{}).post(textPath, body).body); gatewaytest.Gather(t, got.String()) != want {
		t.Errorf("got  %s\nwant %s", gatewaytest.Gather(t, got.String()), want)
	}
	if r := there.post(textPath, whole, "Idempotency-Key", "w"); r.status != 200 || decode[chunk](t, r.body).Choices[0].Text != babble("hi", 3, 30) {
		t.Errorf("the whole answer elsewhere: %d %s", r.status, r.body)
	}
	if s := here.State(); len(s.Aborts) != 0 || s.Reruns != 0 {
		t.Errorf("aborts %v, %d reruns", s.Aborts, s.Reruns)
	}
	if n := there.gateway.Drain(t.Context()); n != 0 {
		t.Errorf("%d answers interrupted where none was under way", n)
	}
}
