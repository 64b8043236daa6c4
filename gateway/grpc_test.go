package gateway_test

import (
	"context"
	"net"
	"strings"
	"testing"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/quire-serve/quire/gateway/gatewaytest"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// grpc serves the gateway's services and connects to them.
func (d *door) grpc() *grpc.ClientConn {
	d.t.Helper()
	lis := bufconn.Listen(1 << 16)
	server := grpc.NewServer()
	d.gateway.Register(server)
	served := make(chan error)
	go func() { served <- server.Serve(lis) }()
	conn, err := grpc.NewClient("passthrough:///gateway", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return lis.DialContext(ctx) }))
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = conn.Close(); server.Stop(); <-served })
	return conn
}

// collect reads a Generate stream to its end.
func collect(stream grpc.ServerStreamingClient[pb.GenerateResponse]) (texts map[int32]string, last *pb.GenerateResponse, err error) {
	texts = map[int32]string{}
	for {
		m, err := stream.Recv()
		if err != nil {
			if err.Error() == "EOF" {
				err = nil
			}
			return texts, last, err
		}
		texts[m.Index] += m.Text
		last = m
	}
}

func TestGenerate(t *testing.T) {
	d := open(t, gatewaytest.Options{})
	client := pb.NewInferenceClient(d.grpc())
	seed, top := uint64(7), int32(2)
	stream, err := client.Generate(t.Context(), &pb.GenerateRequest{Model: "test", Input: &pb.GenerateRequest_Prompt{Prompt: "hi"},
		Sampling: &pb.SamplingParams{MaxTokens: 20, N: 2, Seed: &seed, Logprobs: &top}, RequestId: "g-1"})
	if err != nil {
		t.Fatal(err)
	}
	texts, last, err := collect(stream)
	if err != nil {
		t.Fatal(err)
	}
	if texts[0] != babble("hi", 7, 20) || texts[1] != babble("hi", 8, 20) {
		t.Errorf("got %q", texts)
	}
	if last.Usage.GetPromptTokens() != 2 || last.Usage.CompletionTokens != 40 || last.FinishReason != pb.FinishReason_FINISH_REASON_LENGTH || last.RequestId != "g-1" || last.Model != "test" {
		t.Errorf("the last message is %v", last)
	}
	if len(last.Logprobs) != len(last.TokenIds) || len(last.TokenIds) == 0 || len(last.Logprobs[0].Top) != 2 {
		t.Errorf("%d logprobs for %d tokens", len(last.Logprobs), len(last.TokenIds))
	}

	say := open(t, gatewaytest.Options{Reply: gatewaytest.Say("ok. more")})
	client = pb.NewInferenceClient(say.grpc())
	stream, err = client.Generate(t.Context(), &pb.GenerateRequest{Model: "test", Sampling: &pb.SamplingParams{Stop: []string{"."}},
		Input: &pb.GenerateRequest_Chat{Chat: &pb.Messages{Messages: []*pb.Message{{Role: "user", Content: "hi"}}}}})
	if err != nil {
		t.Fatal(err)
	}
	texts, last, err = collect(stream)
	if err != nil || texts[0] != "ok" || last.StopReason != "." || last.FinishReason != pb.FinishReason_FINISH_REASON_STOP {
		t.Errorf("%v: %q, last %v", err, texts, last)
	}
	if got := gatewaytest.Tokenizer().Decode(say.State().Requests[0].Prompt, false); got != "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n" {
		t.Errorf("the prompt was %q", got)
	}
}

// TestGenerateRefusals wants a code, a message with the limit, and the field's name in the details.
func TestGenerateRefusals(t *testing.T) {
	d := open(t, gatewaytest.Options{ContextLength: 100})
	client := pb.NewInferenceClient(d.grpc())
	f := func(v float32) *float32 { return &v }
	prompt := &pb.GenerateRequest_Prompt{Prompt: "hi"}
	many := int32(21)
	for _, c := range []struct {
		name    string
		req     *pb.GenerateRequest
		code    codes.Code
		field   string
		message string
	}{
		{"model", &pb.GenerateRequest{Model: "x", Input: prompt}, codes.NotFound, "model", `model "x" is not served here; GET /v1/models lists those that are`},
		{"input", &pb.GenerateRequest{Model: "test"}, codes.InvalidArgument, "input", "one of prompt, prompt_token_ids and chat must be set"},
		{"empty", &pb.GenerateRequest{Model: "test", Input: &pb.GenerateRequest_Prompt{}}, codes.InvalidArgument, "prompt", "prompt is empty; the model needs at least one token"},
		{"token", &pb.GenerateRequest{Model: "test", Input: &pb.GenerateRequest_PromptTokenIds{PromptTokenIds: &pb.TokenIds{Ids: []int32{-1}}}}, codes.InvalidArgument, "prompt_token_ids", "prompt_token_ids[0] is -1; the model's tokens are 0 to 258"},
		{"role", &pb.GenerateRequest{Model: "test", Input: &pb.GenerateRequest_Chat{Chat: &pb.Messages{Messages: []*pb.Message{{Role: "x"}}}}}, codes.InvalidArgument, "chat", `chat.messages[0].role must be system, user or assistant, not "x"`},
		{"id", &pb.GenerateRequest{Model: "test", Input: prompt, RequestId: strings.Repeat("x", 129)}, codes.InvalidArgument, "request_id", "request_id must be 1 to 128 printable ASCII characters without spaces"},
		{"temperature", &pb.GenerateRequest{Model: "test", Input: prompt, Sampling: &pb.SamplingParams{Temperature: f(-1)}}, codes.InvalidArgument, "temperature", "temperature must be between 0 and 2, not -1"},
		{"n", &pb.GenerateRequest{Model: "test", Input: prompt, Sampling: &pb.SamplingParams{N: 129}}, codes.InvalidArgument, "n", "n must be between 1 and 128, not 129"},
		{"logprobs", &pb.GenerateRequest{Model: "test", Input: prompt, Sampling: &pb.SamplingParams{Logprobs: &many}}, codes.InvalidArgument, "logprobs", "logprobs must be between 0 and 20, not 21"},
		{"stops", &pb.GenerateRequest{Model: "test", Input: prompt, Sampling: &pb.SamplingParams{Stop: make([]string, 17)}}, codes.InvalidArgument, "stop", "stop holds 17 strings; the limit is 16"},
		{"max_tokens", &pb.GenerateRequest{Model: "test", Input: prompt, Sampling: &pb.SamplingParams{MaxTokens: 99}}, codes.InvalidArgument, "prompt", "this model's maximum context length is 100 tokens; the prompt has 2 tokens and up to 99 more are asked for: shorten it or lower max_tokens"},
	} {
		stream, err := client.Generate(t.Context(), c.req)
		if err != nil {
			t.Fatal(err)
		}
		_, _, err = collect(stream)
		s := status.Convert(err)
		if s.Code() != c.code || s.Message() != c.message {
			t.Errorf("%s: %v %q", c.name, s.Code(), s.Message())
		}
		field := ""
		for _, detail := range s.Details() {
			if b, ok := detail.(*errdetails.BadRequest); ok {
				field = b.FieldViolations[0].Field
			}
		}
		if field != c.field {
			t.Errorf("%s: the details name %q", c.name, field)
		}
	}
	d.Refuse(gatewaytest.QueueFull(1_500_000_000))
	stream, err := client.Generate(t.Context(), &pb.GenerateRequest{Model: "test", Input: prompt})
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = collect(stream)
	s := status.Convert(err)
	retry, _ := append(s.Details(), nil)[0].(*errdetails.RetryInfo)
	if s.Code() != codes.ResourceExhausted || retry.GetRetryDelay().AsDuration().Milliseconds() != 1500 {
		t.Errorf("a full queue: %v, details %v", s.Code(), s.Details())
	}
}

func TestCancel(t *testing.T) {
	d := open(t, gatewaytest.Options{Manual: true})
	client := pb.NewInferenceClient(d.grpc())
	d.Step(1)
	stream, err := client.Generate(t.Context(), &pb.GenerateRequest{Model: "test", Input: &pb.GenerateRequest_Prompt{Prompt: "hi"}, RequestId: "c-1"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if _, err := client.Cancel(t.Context(), &pb.CancelRequest{RequestId: "c-1"}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := collect(stream); status.Code(err) != codes.Aborted {
		t.Errorf("the stream ends with %v", err)
	}
	d.Await(func(s gatewaytest.State) bool { return s.UsedBlocks == 0 && len(s.Aborts) == 1 })
	if _, err := client.Cancel(t.Context(), &pb.CancelRequest{RequestId: "unknown"}); err != nil {
		t.Errorf("cancelling what is not there: %v", err)
	}

	// A client that goes away cancels too.
	ctx, cancel := context.WithCancel(t.Context())
	d.Step(1)
	stream, err = client.Generate(ctx, &pb.GenerateRequest{Model: "test", Input: &pb.GenerateRequest_Prompt{Prompt: "hi"}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	d.Await(func(s gatewaytest.State) bool { return s.UsedBlocks == 0 && len(s.Aborts) == 2 })
}

// TestOnlyTheOwnerCancelsAndResumes: a request of one tenant goes on, unread, whatever another tenant who
// knows its id asks for, here and at another gateway; its own client may, at either.
func TestOnlyTheOwnerCancelsAndResumes(t *testing.T) {
	for _, there := range []bool{false, true} {
		d := open(t, gatewaytest.Options{Manual: true})
		owner := metadata.AppendToOutgoingContext(t.Context(), "quire-tenant", "owner")
		d.Step(1)
		stream, err := pb.NewInferenceClient(d.grpc()).Generate(owner, &pb.GenerateRequest{
			Model: "test", Input: &pb.GenerateRequest_Prompt{Prompt: "hi"}, RequestId: "known"})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		asked := d
		if there {
			asked = join(t, d.Cluster, gatewaytest.Options{Manual: true}, "node-2")
		}
		client := pb.NewInferenceClient(asked.grpc())
		for _, tenant := range []string{"", "other", "owner2"} {
			ctx := metadata.AppendToOutgoingContext(t.Context(), "quire-tenant", tenant)
			if _, err := client.Cancel(ctx, &pb.CancelRequest{RequestId: "known"}); err != nil {
				t.Errorf("tenant %q cancels: %v; want the answer for what is not there", tenant, err)
			}
			again, err := client.Resume(ctx, &pb.ResumeRequest{RequestId: "known"})
			if err == nil {
				_, err = again.Recv()
			}
			if status.Code(err) != codes.NotFound {
				t.Errorf("tenant %q resumes: %v", tenant, err)
			}
		}
		if s := d.State(); len(s.Aborts) != 0 || s.Live != 1 || s.Adoptions != 0 {
			t.Errorf("after strangers asked (elsewhere: %t) the cluster is %+v", there, s)
		}
		d.Step(1)
		if _, err := stream.Recv(); err != nil {
			t.Errorf("the owner's stream: %v", err)
		}
		if _, err := client.Cancel(owner, &pb.CancelRequest{RequestId: "known"}); err != nil {
			t.Error(err)
		}
		if _, _, err := collect(stream); err == nil {
			t.Error("the owner's stream did not end")
		}
		d.Await(func(s gatewaytest.State) bool { return s.UsedBlocks == 0 && len(s.Aborts) == 1 })
	}
}

func TestTokenizeAndModels(t *testing.T) {
	d := open(t, gatewaytest.Options{ContextLength: 100})
	conn := d.grpc()
	client := pb.NewInferenceClient(conn)
	ids, err := client.Tokenize(t.Context(), &pb.TokenizeRequest{Model: "test", Text: "é<|im_end|>", AddSpecial: true})
	if err != nil || len(ids.TokenIds) != 3 || ids.TokenIds[2] != gatewaytest.TurnEnd {
		t.Errorf("%v %v", ids, err)
	}
	text, err := client.Detokenize(t.Context(), &pb.DetokenizeRequest{Model: "test", TokenIds: ids.GetTokenIds()})
	if err != nil || text.Text != "é<|im_end|>" {
		t.Errorf("%v %v", text, err)
	}
	if _, err := client.Detokenize(t.Context(), &pb.DetokenizeRequest{Model: "test", TokenIds: []int32{259}}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("an unknown token: %v", err)
	}
	if _, err := client.Tokenize(t.Context(), &pb.TokenizeRequest{Model: "x"}); status.Code(err) != codes.NotFound {
		t.Errorf("an unknown model: %v", err)
	}
	models, err := client.ListModels(t.Context(), &pb.ListModelsRequest{})
	if err != nil || len(models.Models) != 1 || models.Models[0].Id != "test" || models.Models[0].ContextLength != 100 || models.Models[0].ReadyWorkers != 1 {
		t.Errorf("%v %v", models, err)
	}
	health := healthpb.NewHealthClient(conn)
	serving := func(want healthpb.HealthCheckResponse_ServingStatus) func() bool {
		return func() bool {
			r, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "quire.v1.Inference"})
			return err == nil && r.Status == want
		}
	}
	await(t, serving(healthpb.HealthCheckResponse_SERVING))
	d.SetWorkers(0)
	await(t, serving(healthpb.HealthCheckResponse_NOT_SERVING))
}
