package gateway

import (
	"context"
	"errors"
	"iter"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/quire-serve/quire/model/chat"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Register adds the Inference service, grpc.health.v1 and reflection of these to a server for clients.
// Health follows Ready.
func (g *Gateway) Register(s *grpc.Server) {
	pb.RegisterInferenceServer(s, g)
	healthpb.RegisterHealthServer(s, g.health)
	reflection.Register(s)
}

// Generate streams the tokens of one prompt, a message a choice a step.
func (g *Gateway) Generate(req *pb.GenerateRequest, stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
	return g.recorded(stream.Context(), pb.Inference_Generate_FullMethodName, func(ctx context.Context) error {
		return g.generate(ctx, req, stream)
	})
}

// recorded runs a call and has it logged and counted.
func (g *Gateway) recorded(ctx context.Context, method string, run func(context.Context) error) error {
	r := &record{began: g.Now()}
	err := run(withRecord(ctx, r))
	var e *apiError
	ours := errors.As(err, &e)
	switch {
	case err != nil && ctx.Err() != nil:
		err = status.FromContextError(ctx.Err()).Err()
		r.fail(gone())
	case ours:
		r.fail(e)
		g.metrics.refused(e)
	}
	code := status.Code(err).String()
	g.metrics.grpc.WithLabelValues(method, code).Inc()
	g.logRequest(ctx, r, "gRPC", method, slog.String("status", code))
	return err
}

func (g *Gateway) generate(ctx context.Context, req *pb.GenerateRequest, stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
	c, e := g.generateCall(ctx, req)
	if e != nil {
		return e
	}
	defer g.yield(c)
	if e := g.answers.begin(); e != nil {
		return e
	}
	defer g.answers.end()
	a, e := g.start(ctx, c)
	if e != nil {
		return e
	}
	defer a.close(ctx)
	recordOf(ctx).running(a)
	return a.send(stream)
}

// Resume goes on with the stream of a request that is known by its id alone.
func (g *Gateway) Resume(req *pb.ResumeRequest, stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
	return g.recorded(stream.Context(), pb.Inference_Resume_FullMethodName, func(ctx context.Context) error {
		return g.resume(ctx, req, stream)
	})
}

func (g *Gateway) resume(ctx context.Context, req *pb.ResumeRequest, stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
	if !validID(req.RequestId) {
		return badRequestID()
	}
	who, _, e := fromMetadata(ctx, req.RequestId)
	if e != nil {
		return e
	}
	recordOf(ctx).identify(who)
	if e := g.answers.begin(); e != nil {
		return e
	}
	defer g.answers.end()
	a, e := g.reopen(ctx, who, req.Received)
	if e != nil {
		return e
	}
	defer a.close(ctx)
	recordOf(ctx).running(a)
	return a.send(stream)
}

// requestID is the header of an answer's stream with the id of its request. Headers go out before the first
// token, so that the client knows then that it is admitted.
const requestID = "quire-request-id"

// send streams an answer's pieces until all choices have ended. A client that reads nothing for WriteTimeout
// is told so, and counts as gone: gRPC itself would wait for it for ever.
func (a *answer) send(stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
	unread := time.NewTimer(a.g.WriteTimeout)
	unread.Stop()
	done := make(chan error, 1)
	// The call's end ends a Send that blocks, so that the goroutine does not outlive it for long.
	if !a.g.spawn(func() { done <- a.stream(guarded{stream, unread, a.g.WriteTimeout}) }) {
		return interrupted(a.call.id)
	}
	select {
	case err := <-done:
		return err
	case <-unread.C:
		return tooSlow(a.g.WriteTimeout)
	}
}

// guarded is a stream whose timer runs while it sends.
type guarded struct {
	grpc.ServerStreamingServer[pb.GenerateResponse]
	unread  *time.Timer
	timeout time.Duration
}

func (s guarded) Send(m *pb.GenerateResponse) error {
	s.unread.Reset(s.timeout)
	defer s.unread.Stop()
	return s.ServerStreamingServer.Send(m)
}

func (a *answer) stream(stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
	ctx := stream.Context()
	if err := stream.SendHeader(metadata.Pairs(requestID, a.call.id)); err != nil {
		return err
	}
	for {
		pieces, e := a.next(ctx)
		if e != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return e
		}
		for m := range a.messages(pieces) {
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		if a.ended() {
			return nil
		}
	}
}

// messages are what a client that speaks gRPC is sent for a look's pieces; the last has the usage.
func (a *answer) messages(pieces []piece) iter.Seq[*pb.GenerateResponse] {
	return func(yield func(*pb.GenerateResponse) bool) {
		for i := range pieces {
			p := &pieces[i]
			if p.skip {
				continue
			}
			m := &pb.GenerateResponse{RequestId: a.call.id, Model: a.call.model.ID, Index: int32(p.index), Text: p.text,
				TokenIds: p.ids, Logprobs: p.logprobs, FinishReason: p.finish, StopReason: p.stopped}
			if a.ended() && i == len(pieces)-1 {
				m.Usage = a.usage()
			}
			if !yield(m) {
				return
			}
		}
	}
}

// generateCall checks a request and turns its input into tokens.
func (g *Gateway) generateCall(ctx context.Context, req *pb.GenerateRequest) (c *call, e *apiError) {
	who, priority, e := fromMetadata(ctx, req.RequestId)
	if e != nil {
		return nil, e
	}
	recordOf(ctx).identify(who)
	if e := g.place(who); e != nil {
		return nil, e
	}
	defer func() {
		if e != nil {
			g.release(1)
		}
	}()
	m := g.models[req.Model]
	if m == nil {
		return nil, unknownModel(req.Model)
	}
	params := req.Sampling
	if params == nil {
		params = &pb.SamplingParams{}
	}
	if params.PromptLogprobs != nil {
		return nil, unsupported("prompt_logprobs", "prompt_logprobs has no place in Generate's answer")
	}
	c = &call{caller: who, places: 1, model: m, params: params, priority: priority, constraint: "constraint"}
	body := proto.CloneOf(req)
	body.RequestId = ""
	canonical, _ := proto.MarshalOptions{Deterministic: true}.Marshal(body) // it was decoded before
	c.digest = digestOf(canonical)
	var ids []int32
	param := "prompt"
	switch input := req.Input.(type) {
	case *pb.GenerateRequest_Prompt:
		var marked [][2]int
		if req.ParseSpecial == nil || *req.ParseSpecial {
			marked = wholly(input.Prompt)
		}
		if ids, e = m.encode(param, input.Prompt, marked); e != nil {
			return nil, e
		}
	case *pb.GenerateRequest_PromptTokenIds:
		param = "prompt_token_ids"
		ids = input.PromptTokenIds.GetIds()
		if e := checkIDs(param, ids, m.Tokenizer.Size()); e != nil {
			return nil, e
		}
	case *pb.GenerateRequest_Chat:
		param = "chat"
		var messages []chat.Message
		if messages, e = protoMessages(m, input.Chat.GetMessages()); e != nil {
			return nil, e
		}
		if ids, e = m.renderChat(ctx, messages, templating{Options: chat.Options{AddGenerationPrompt: true}}, req.GetParseSpecial()); e != nil {
			return nil, e
		}
	default:
		return nil, invalid("input", "one of prompt, prompt_token_ids and chat must be set")
	}
	if len(ids) == 0 {
		return nil, invalid(param, "%s is empty; the model needs at least one token", param)
	}
	c.prompts = []prompt{{ids: ids}}
	if e := g.settle(ctx, c, param, true); e != nil {
		return nil, e
	}
	return c, nil
}

func protoMessages(m *served, list []*pb.Message) ([]chat.Message, *apiError) {
	if e := m.chats("chat", "prompt"); e != nil {
		return nil, e
	}
	if len(list) == 0 || len(list) > maxMessages {
		return nil, invalid("chat", "chat must hold 1 to %d messages, not %d", maxMessages, len(list))
	}
	messages := make([]chat.Message, len(list))
	for i, msg := range list {
		switch msg.Role {
		case "system", "user", "assistant":
		default:
			return nil, invalid("chat", "chat.messages[%d].role must be system, user or assistant, not %q", i, clip(msg.Role, 32))
		}
		messages[i] = chat.Message{Role: msg.Role, Content: msg.Content, Name: msg.Name}
	}
	return messages, nil
}

// Cancel ends a request of the caller's tenant wherever it is. Others' are answered like those that are not
// there, so that nobody learns which ids there are.
func (g *Gateway) Cancel(ctx context.Context, req *pb.CancelRequest) (*pb.CancelResponse, error) {
	if !validID(req.RequestId) {
		return nil, badRequestID()
	}
	who, _, e := fromMetadata(ctx, req.RequestId)
	if e != nil {
		return nil, e
	}
	const reason = "cancelled by a client"
	ctx, cancel := context.WithTimeout(ctx, g.SubmitTimeout)
	defer cancel()
	abort := &pb.AbortRequest{RequestId: who.key(), Reason: reason, GatewayId: g.NodeID, Tenant: &who.tenant}
	if _, err := ask(ctx, g.control, abort, pb.ControlClient.Abort); err != nil {
		return nil, fromControl(err)
	}
	if l := g.lives.get(who.key()); l != nil && l.tenant() == who.tenant {
		l.fail(cancelled(reason))
	}
	return &pb.CancelResponse{}, nil
}

// Tokenize cuts text into tokens as a prompt would be.
func (g *Gateway) Tokenize(_ context.Context, req *pb.TokenizeRequest) (*pb.TokenizeResponse, error) {
	m := g.models[req.Model]
	if m == nil {
		return nil, unknownModel(req.Model)
	}
	if e := g.acquire(1); e != nil {
		return nil, e
	}
	defer g.release(1)
	if req.AddSpecial {
		return &pb.TokenizeResponse{TokenIds: m.tokens(req.Text, wholly(req.Text))}, nil
	}
	return &pb.TokenizeResponse{TokenIds: m.Tokenizer.Encode(nil, req.Text, true)}, nil
}

// Detokenize turns tokens back into text, special tokens spelled out.
func (g *Gateway) Detokenize(_ context.Context, req *pb.DetokenizeRequest) (*pb.DetokenizeResponse, error) {
	m := g.models[req.Model]
	if m == nil {
		return nil, unknownModel(req.Model)
	}
	if e := checkIDs("token_ids", req.TokenIds, m.Tokenizer.Size()); e != nil {
		return nil, e
	}
	return &pb.DetokenizeResponse{Text: m.Tokenizer.Decode(req.TokenIds, false)}, nil
}

// ListModels lists the models with their attached workers.
func (g *Gateway) ListModels(context.Context, *pb.ListModelsRequest) (*pb.ListModelsResponse, error) {
	resp := &pb.ListModelsResponse{}
	for _, m := range g.order {
		serves := g.serving(m)
		ready, context := serves.ready, serves.context
		if ready == 0 {
			context = m.ContextLength
		}
		resp.Models = append(resp.Models, &pb.Model{Id: m.ID, ContextLength: int32(context), ReadyWorkers: int32(ready)})
	}
	return resp, nil
}
