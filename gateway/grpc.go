package gateway

import (
	"context"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"

	"github.com/quire-serve/quire/model/chat"
	pb "github.com/quire-serve/quire/proto/quire/v1"
)

// Register adds the Inference service, grpc.health.v1 and reflection to a server. Health follows
// Ready.
func (g *Gateway) Register(s *grpc.Server) {
	pb.RegisterInferenceServer(s, g)
	healthpb.RegisterHealthServer(s, g.health)
	reflection.Register(s)
}

// Generate streams the tokens of one prompt, a message a choice a step.
func (g *Gateway) Generate(req *pb.GenerateRequest, stream grpc.ServerStreamingServer[pb.GenerateResponse]) error {
	c, e := g.generateCall(req)
	if e != nil {
		return e
	}
	ctx := stream.Context()
	a, e := g.start(ctx, c)
	if e != nil {
		return e
	}
	defer a.close(ctx)
	for {
		pieces, e := a.next(ctx)
		if e != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return e
		}
		for i := range pieces {
			p := &pieces[i]
			m := &pb.GenerateResponse{RequestId: c.id, Model: c.model.ID, Index: int32(p.index), Text: p.text,
				TokenIds: p.ids, Logprobs: p.logprobs, FinishReason: p.finish, StopReason: p.stopped}
			if a.ended() && i == len(pieces)-1 {
				m.Usage = a.usage()
			}
			if err := stream.Send(m); err != nil {
				return err
			}
		}
		if a.ended() {
			return nil
		}
	}
}

// generateCall checks a request and turns its input into tokens.
func (g *Gateway) generateCall(req *pb.GenerateRequest) (*call, *apiError) {
	m := g.models[req.Model]
	if m == nil {
		return nil, unknownModel(req.Model)
	}
	id := req.RequestId
	switch {
	case id == "":
		id = newID()
	case !validID(id):
		return nil, invalid("request_id", "request_id must be 1 to %d printable ASCII characters without spaces", maxIDBytes)
	}
	params := req.Sampling
	if params == nil {
		params = &pb.SamplingParams{}
	}
	if params.PromptLogprobs != nil {
		return nil, unsupported("prompt_logprobs", "prompt_logprobs has no place in Generate's answer")
	}
	c := &call{id: id, model: m, params: params, constraint: "constraint", skipSpecial: true}
	var ids []int32
	param := "prompt"
	switch input := req.Input.(type) {
	case *pb.GenerateRequest_Prompt:
		ids = m.encode(input.Prompt)
	case *pb.GenerateRequest_PromptTokenIds:
		param = "prompt_token_ids"
		ids = input.PromptTokenIds.GetIds()
		if e := checkIDs(param, ids, m.Tokenizer.Size()); e != nil {
			return nil, e
		}
	case *pb.GenerateRequest_Chat:
		param = "chat"
		messages, e := protoMessages(m, input.Chat.GetMessages())
		if e != nil {
			return nil, e
		}
		if ids, e = m.renderChat(messages); e != nil {
			return nil, e
		}
	default:
		return nil, invalid("input", "one of prompt, prompt_token_ids and chat must be set")
	}
	if len(ids) == 0 {
		return nil, invalid(param, "%s is empty; the model needs at least one token", param)
	}
	c.prompts = []prompt{{ids: ids}}
	if e := g.settle(c, param, true); e != nil {
		return nil, e
	}
	return c, nil
}

func protoMessages(m *served, list []*pb.Message) ([]chat.Message, *apiError) {
	if m.Chat == nil {
		return nil, invalid("chat", "model %q has no chat template; use prompt", m.ID)
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

// Cancel ends a request wherever it is.
func (g *Gateway) Cancel(ctx context.Context, req *pb.CancelRequest) (*pb.CancelResponse, error) {
	if !validID(req.RequestId) {
		return nil, invalid("request_id", "request_id must be 1 to %d printable ASCII characters without spaces", maxIDBytes)
	}
	const reason = "cancelled by a client"
	if l := g.lives.get(req.RequestId); l != nil {
		g.abort(ctx, l, reason)
		l.fail(cancelled(reason))
		return &pb.CancelResponse{}, nil
	}
	if _, err := g.Control.Abort(ctx, &pb.AbortRequest{RequestId: req.RequestId, Reason: reason}); err != nil {
		return nil, fromControl(err)
	}
	return &pb.CancelResponse{}, nil
}

// Tokenize cuts text into tokens as a prompt would be.
func (g *Gateway) Tokenize(_ context.Context, req *pb.TokenizeRequest) (*pb.TokenizeResponse, error) {
	m := g.models[req.Model]
	if m == nil {
		return nil, unknownModel(req.Model)
	}
	if req.AddSpecial {
		return &pb.TokenizeResponse{TokenIds: m.encode(req.Text)}, nil
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
		ready, context := g.serving(m)
		if ready == 0 {
			context = m.ContextLength
		}
		resp.Models = append(resp.Models, &pb.Model{Id: m.ID, ContextLength: int32(context), ReadyWorkers: int32(ready)})
	}
	return resp, nil
}
