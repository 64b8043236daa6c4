package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
)

// client is what commands that talk to a running Quire share: where it is and how to sample.
type client struct {
	server      string
	model       string
	maxTokens   int32
	temperature float32
	topP        float32
	seed        int64
	stop        []string
}

func (c *client) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&c.server, "server", "127.0.0.1:8001", "address of a control-plane node's gRPC API (its --grpc)")
	f.StringVar(&c.model, "model", "", "model to use (default: the only one served)")
	f.Int32Var(&c.maxTokens, "max-tokens", 512, "most tokens to generate")
	f.Float32Var(&c.temperature, "temperature", 0, "0 is greedy, up to 2")
	f.Float32Var(&c.topP, "top-p", 1, "keep the smallest set of tokens with this probability")
	f.Int64Var(&c.seed, "seed", -1, "seed of the draws; negative: a new one each time")
	f.StringArrayVar(&c.stop, "stop", nil, "text that ends the answer (repeatable)")
}

// dial connects; the caller closes the connection.
func (c *client) dial() (pb.InferenceClient, *grpc.ClientConn, error) {
	conn, err := transport.DialClients(c.server)
	if err != nil {
		return nil, nil, usagef("--server: %w", err)
	}
	return pb.NewInferenceClient(conn), conn, nil
}

// resolveModel answers --model, or the only model served.
func (c *client) resolveModel(ctx context.Context, api pb.InferenceClient) (string, error) {
	if c.model != "" {
		return c.model, nil
	}
	list, err := api.ListModels(ctx, &pb.ListModelsRequest{})
	if err != nil {
		return "", c.explain(err)
	}
	switch models := list.GetModels(); len(models) {
	case 1:
		return models[0].GetId(), nil
	case 0:
		return "", fmt.Errorf("%s serves no model yet", c.server)
	default:
		var ids []string
		for _, m := range models {
			ids = append(ids, m.GetId())
		}
		return "", usagef("--model is needed: %s serves %q", c.server, ids)
	}
}

func (c *client) sampling() *pb.SamplingParams {
	p := &pb.SamplingParams{Temperature: &c.temperature, TopP: &c.topP, MaxTokens: c.maxTokens, Stop: c.stop}
	if c.seed >= 0 {
		seed := uint64(c.seed)
		p.Seed = &seed
	}
	return p
}

// stream generates and writes the text to out as it comes. It returns the whole text and the usage.
func (c *client) stream(ctx context.Context, api pb.InferenceClient, req *pb.GenerateRequest, out io.Writer) (string, *pb.Usage, error) {
	stream, err := api.Generate(ctx, req)
	if err != nil {
		return "", nil, c.explain(err)
	}
	var text string
	var usage *pb.Usage
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return text, usage, nil
		}
		if err != nil {
			return text, usage, c.explain(err)
		}
		text += msg.GetText()
		if msg.GetUsage() != nil {
			usage = msg.GetUsage()
		}
		if _, err := io.WriteString(out, msg.GetText()); err != nil {
			return text, usage, err
		}
	}
}

// explain turns a gRPC status into a sentence.
func (c *client) explain(err error) error {
	switch s := status.Convert(err); s.Code() {
	case codes.Unavailable, codes.Unimplemented:
		fault := fmt.Errorf("no answer from --server %w", transport.Explain(c.server, err))
		if transport.IsMistake(fault) {
			return usageError{fault}
		}
		return fault
	case codes.InvalidArgument, codes.NotFound:
		return usagef("%s", s.Message())
	case codes.Canceled:
		return context.Canceled
	default:
		return errors.New(s.Message())
	}
}

// maxPromptBytes is what a request may hold.
const maxPromptBytes = 4 << 20

// promptOf joins the arguments, or reads in if there is one of them, a dash.
func promptOf(in io.Reader, args []string) (string, error) {
	if len(args) > 1 || args[0] != "-" {
		return strings.Join(args, " "), nil
	}
	text, err := io.ReadAll(io.LimitReader(in, maxPromptBytes+1))
	switch {
	case err != nil:
		return "", fmt.Errorf("standard input: %w", err)
	case len(text) > maxPromptBytes:
		return "", usagef("standard input has more than %d bytes, the most that a prompt can have", maxPromptBytes)
	case len(text) == 0:
		return "", usagef("standard input is empty: there is no prompt")
	}
	return string(text), nil
}

func newGenerate() *cobra.Command {
	var c client
	var out output
	var raw bool
	cmd := &cobra.Command{
		Use:   "generate PROMPT…",
		Short: "Generate an answer to one prompt on a running Quire",
		Long:  "Generate an answer to one prompt on a running Quire. Several arguments are one prompt, with spaces between; - reads it from standard input.",
		Example: `  quire generate "Why is the sky blue?"
  quire generate --raw "Once upon a time"
  quire generate - < question.txt`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return usagef("%s needs a prompt, or - to read it from standard input", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			prompt, err := promptOf(cmd.InOrStdin(), args)
			if err != nil {
				return err
			}
			api, conn, err := c.dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			ctx := cmd.Context()
			model, err := c.resolveModel(ctx, api)
			if err != nil {
				return err
			}
			req := &pb.GenerateRequest{Model: model, Sampling: c.sampling()}
			if raw {
				req.Input = &pb.GenerateRequest_Prompt{Prompt: prompt}
			} else {
				req.Input = &pb.GenerateRequest_Chat{Chat: &pb.Messages{Messages: []*pb.Message{{Role: "user", Content: prompt}}}}
			}
			live := cmd.OutOrStdout()
			if out.format == "json" {
				live = io.Discard
			}
			text, usage, err := c.stream(ctx, api, req, live)
			if err != nil {
				return err
			}
			v := struct {
				Model            string `json:"model"`
				Text             string `json:"text"`
				PromptTokens     int32  `json:"prompt_tokens"`
				CompletionTokens int32  `json:"completion_tokens"`
			}{model, text, usage.GetPromptTokens(), usage.GetCompletionTokens()}
			return out.write(cmd, v, func() { fmt.Fprintln(cmd.OutOrStdout()) })
		},
	}
	c.flags(cmd)
	out.flag(cmd)
	cmd.Flags().BoolVar(&raw, "raw", false, "continue the prompt as it is, without the chat template")
	return cmd
}
