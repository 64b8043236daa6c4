package gateway_test

import (
	"context"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"github.com/quire-serve/quire/gateway"
	"github.com/quire-serve/quire/gateway/gatewaytest"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// TestLeavingFreesEverything: clients over HTTP and gRPC, streamed and whole, with one or several choices,
// leave in any state of their requests, submission included: without one more step of a worker every request
// is aborted, and blocks and places are free.
func TestLeavingFreesEverything(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true}, func(s *gateway.Settings) { s.ResumeGrace = -1 })
	client := pb.NewInferenceClient(d.grpc())
	rapid.Check(t, func(rt *rapid.T) {
		before := d.State()
		release := func() {}
		if rapid.Bool().Draw(rt, "submitting") {
			release = d.HoldSubmit()
		}
		defer release()
		ctx, leave := context.WithCancel(t.Context())
		defer leave()
		var clients sync.WaitGroup
		requests := 0
		for range rapid.IntRange(1, 4).Draw(rt, "clients") {
			requests++
			n := rapid.IntRange(1, 3).Draw(rt, "n")
			kind := rapid.SampledFrom([]string{"stream", "whole", "gRPC"}).Draw(rt, "kind")
			clients.Go(func() {
				if kind == "gRPC" {
					call, err := client.Generate(ctx, &pb.GenerateRequest{Model: "test", Input: &pb.GenerateRequest_Prompt{Prompt: "hi"},
						Sampling: &pb.SamplingParams{MaxTokens: 400, N: int32(n)}})
					for err == nil {
						_, err = call.Recv()
					}
					return
				}
				body := fmt.Sprintf(`{"model":"test","prompt":"hi","max_tokens":400,"n":%d,"stream":%v}`, n, kind == "stream")
				req, _ := http.NewRequestWithContext(ctx, http.MethodPost, d.url+textPath, strings.NewReader(body))
				if resp, err := d.client.Do(req); err == nil {
					<-ctx.Done()
					resp.Body.Close()
				}
			})
		}
		d.Await(func(s gatewaytest.State) bool { return s.Admitted == before.Admitted+requests })
		steps := rapid.IntRange(0, 3).Draw(rt, "steps")
		d.Step(steps)
		d.Await(func(s gatewaytest.State) bool { return s.Steps == before.Steps+steps })
		leave()
		clients.Wait()
		after := d.Await(func(s gatewaytest.State) bool { return s.Live == 0 })
		if after.UsedBlocks != 0 || len(after.Aborts) != after.Admitted || after.Steps != before.Steps+steps {
			rt.Fatalf("%d requests left %d blocks, %d of %d were aborted, after %d steps more", requests, after.UsedBlocks,
				len(after.Aborts), after.Admitted, after.Steps-before.Steps-steps)
		}
		await(t, func() bool { return metric(t, d.do("GET", "/metrics", "").body, "quire_gateway_requests") == 0 })
	})
}
