package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	pb "github.com/quire-serve/quire/proto/quire/v1"
)

func newChat() *cobra.Command {
	var c client
	var system string
	cmd := &cobra.Command{
		Use:   "chat",
		Short: "Talk to a model on a running Quire",
		Long:  "Talk to a model on a running Quire. A line is a message; /reset forgets the conversation, Ctrl-C ends an answer, Ctrl-D the conversation.",
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

// converse reads messages and streams answers until the input ends. Ctrl-C ends the answer that is coming;
// at the prompt it asks for Ctrl-D, and a second one ends the conversation.
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
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)
	input := readLines(cmd.InOrStdin())
	asked := false
	for {
		fmt.Fprint(out, "> ")
		var line string
		select {
		case l, ok := <-input.next:
			if !ok {
				fmt.Fprintln(out)
				return input.err
			}
			line = strings.TrimSpace(l)
		case s := <-signals:
			fmt.Fprintln(out)
			if asked || s != os.Interrupt {
				return nil
			}
			asked = true
			fmt.Fprintln(out, "(Ctrl-D, or Ctrl-C again, ends it)")
			continue
		}
		asked = false
		switch line {
		case "":
			continue
		case "/reset":
			reset()
			continue
		}
		turn := append(history, &pb.Message{Role: "user", Content: line})
		req := &pb.GenerateRequest{Model: model, Sampling: c.sampling(), Input: &pb.GenerateRequest_Chat{Chat: &pb.Messages{Messages: turn}}}
		// The command's own context ends with the first signal.
		ctx, cancel := context.WithCancel(context.WithoutCancel(cmd.Context()))
		done := make(chan reply, 1)
		go func() {
			text, _, err := c.stream(ctx, api, req, out)
			done <- reply{text, err}
		}()
		var answer reply
		var stopped os.Signal
		select {
		case answer = <-done:
		case stopped = <-signals:
			cancel()
			answer = <-done
		}
		cancel()
		fmt.Fprintln(out)
		switch {
		case stopped != nil && stopped != os.Interrupt:
			return nil
		case stopped == nil && answer.err != nil:
			return answer.err
		}
		history = append(turn, &pb.Message{Role: "assistant", Content: answer.text})
	}
}

// reply is an answer, as far as it came.
type reply struct {
	text string
	err  error
}

// lines are read ahead, so that whoever waits for one can wait for a signal too. The channel is closed at
// the end of the input; err is its error then.
type lines struct {
	next chan string
	err  error
}

func readLines(in io.Reader) *lines {
	l := &lines{next: make(chan string)}
	go func() { // ends with the input, or the process
		defer close(l.next)
		scanner := bufio.NewScanner(in)
		scanner.Buffer(nil, 1<<20)
		for scanner.Scan() {
			l.next <- scanner.Text()
		}
		if l.err = scanner.Err(); errors.Is(l.err, bufio.ErrTooLong) {
			l.err = usagef("a message has more than %d bytes", 1<<20)
		}
	}()
	return l
}
