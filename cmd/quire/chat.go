package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func newChat() *cobra.Command {
	var c client
	var system string
	cmd := &cobra.Command{
		Use:   "chat",
		Short: "Talk to a model on a running Quire",
		Long:  "Talk to a model on a running Quire. A line is a message; /reset forgets the conversation; Ctrl-D ends it.",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			api, conn, err := c.dial()
			if err != nil {
				return err
			}
			defer conn.Close()
			model, err := c.resolveModel(cmd.Context(), api)
			if err != nil {
				return err
			}
			return converse(cmd, &c, api, model, system)
		},
	}
	c.flags(cmd)
	cmd.Flags().StringVar(&system, "system", "", "system message")
	return cmd
}

func converse(cmd *cobra.Command, c *client, api pb.InferenceClient, model, system string) error {
	var history []*pb.Message
	reset := func() {
		history = nil
		if system != "" {
			history = append(history, &pb.Message{Role: "system", Content: system})
		}
	}
	reset()
	out := cmd.OutOrStdout()
	lines := bufio.NewScanner(cmd.InOrStdin())
	lines.Buffer(nil, 1<<20)
	for {
		fmt.Fprint(out, "> ")
		if !lines.Scan() {
			fmt.Fprintln(out)
			return lines.Err()
		}
		line := strings.TrimSpace(lines.Text())
		switch line {
		case "":
			continue
		case "/reset":
			reset()
			continue
		}
		turn := append(history, &pb.Message{Role: "user", Content: line})
		req := &pb.GenerateRequest{Model: model, Sampling: c.sampling(), Input: &pb.GenerateRequest_Chat{Chat: &pb.Messages{Messages: turn}}}
		text, _, err := c.stream(cmd.Context(), api, req, out)
		fmt.Fprintln(out)
		if errors.Is(err, context.Canceled) {
			return nil
		}
		if err != nil {
			return err
		}
		history = append(turn, &pb.Message{Role: "assistant", Content: text})
	}
}
