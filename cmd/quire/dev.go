package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/spf13/cobra"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
)

func newDev() *cobra.Command {
	s := serverFlags{id: "dev"}
	w := workerFlags{id: "dev-worker", listen: "127.0.0.1:0", rebind: true}
	var name, prompt string
	var pull bool
	cmd := &cobra.Command{
		Use:   "dev",
		Short: "Serve a model on this machine, all in one process",
		Long: `Serve a model on this machine: one control-plane node with a real Raft log, its gateway and one
CPU worker in one process, wired as they are in a cluster. Prints an answer to a first prompt, then
serves until Ctrl-C.`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if pull {
				tryPullDefault(cmd)
			}
			return serveDev(cmd, s, w, name, prompt)
		},
	}
	s.flags(cmd)
	w.flags(cmd)
	f := cmd.Flags()
	f.StringVar(&name, "model", "auto", "name or path of the model; auto: smollm2-135m if pulled, else tiny")
	f.BoolVar(&pull, "pull", false, "first get smollm2-135m, if it is not there and can be had")
	f.StringVar(&prompt, "prompt", "What is a computer?", "first prompt to answer; empty: none")
	return cmd
}

func serveDev(cmd *cobra.Command, s serverFlags, w workerFlags, name, prompt string) (err error) {
	out := cmd.OutOrStdout()
	specs, err := openSpecs([]string{name})
	if err != nil {
		return err
	}
	defer closeSpecs(specs)
	spec := specs[0]
	w.control = []string{s.control}
	if err := w.check(spec); err != nil {
		return err
	}
	fmt.Fprintf(out, "quire %s, model %s\n", version, describeSpec(spec))

	if !transport.Loopback(s.control) {
		return usagef("--cluster: %s; quire dev is a cluster of this machine alone: use quire server and quire worker for more", s.control)
	}
	// Take the ports and the log before the long work, so that what is wrong shows at once.
	s.data = filepath.Join(s.data, "dev")
	n, err := startControl(s, specs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, n.close()) }()
	debug, err := listenDebug(w.debug)
	if err != nil {
		return err
	}

	bar := newProgress(out, "loading "+spec.ID)
	dev, m, err := w.open(spec, bar.bytes)
	bar.end(err == nil)
	if err != nil {
		return err
	}
	defer dev.Close()
	w.control = []string{n.self}
	// Clients are waited for before the worker is stopped; what runs then has none, or one that comes back.
	node, err := w.newNode(dev, m, 0)
	if err != nil {
		return err
	}
	stopDebug := serveDebug(cmd, debug, node)
	defer func() { err = errors.Join(err, stopDebug()) }()
	info := dev.Info()
	fmt.Fprintf(out, "%s: kernels %s, %d threads\n", info.Description, info.Path, info.Threads)

	n.awaitLeader(cmd.Context())
	workerCtx, stopWorker := context.WithCancel(context.Background())
	workerDone := make(chan error, 1)
	go func() { workerDone <- node.Run(workerCtx) }()
	defer func() {
		err = errors.Join(err, n.closeFront())
		stopWorker()
		err = errors.Join(err, <-workerDone)
	}()

	ctx := cmd.Context()
	if err := n.waitReady(ctx); err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	if prompt != "" {
		if err := firstAnswer(ctx, out, n.grpcAddress, spec.ID, prompt); err != nil && ctx.Err() == nil {
			return fmt.Errorf("first prompt: %w", err)
		}
	}
	fmt.Fprintf(out, `
Ready. OpenAI API on http://%[1]s/v1, gRPC on %[2]s. Try:

  curl http://%[1]s/v1/chat/completions -d '{"model":"%[3]s","messages":[{"role":"user","content":"Hello!"}]}'
  quire chat

Ctrl-C ends it.
`, s.http, s.grpc, spec.ID)
	err = n.wait(ctx)
	fmt.Fprintln(out, "\nfinishing what runs …")
	return err
}

// firstAnswer prints a streamed answer, as a client of the node.
func firstAnswer(ctx context.Context, out io.Writer, address, model, prompt string) error {
	conn, err := transport.DialClients(address)
	if err != nil {
		return err
	}
	defer conn.Close()
	c := client{server: address, maxTokens: 96, topP: 1, seed: 1}
	fmt.Fprintf(out, "\n> %s\n", prompt)
	req := &pb.GenerateRequest{Model: model, Sampling: c.sampling(),
		Input: &pb.GenerateRequest_Chat{Chat: &pb.Messages{Messages: []*pb.Message{{Role: "user", Content: prompt}}}}}
	_, _, err = c.stream(ctx, pb.NewInferenceClient(conn), req, out)
	fmt.Fprintln(out)
	return err
}
