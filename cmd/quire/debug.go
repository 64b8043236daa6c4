package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/quire-serve/quire/worker"
)

// serveDebug serves node's debug pages on address, if it is not empty, until stop is called.
func serveDebug(cmd *cobra.Command, address string, node *worker.Worker) (stop func() error, err error) {
	if address == "" {
		return func() error { return nil }, nil
	}
	l, err := listen("debug", address)
	if err != nil {
		return nil, err
	}
	server := &http.Server{Handler: node.Debug(), ReadHeaderTimeout: 10 * time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(l) }()
	fmt.Fprintf(cmd.ErrOrStderr(), "debug pages on http://%s/debug/steps\n", l.Addr())
	return func() error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		err := server.Shutdown(ctx)
		if errors.Is(err, context.DeadlineExceeded) {
			err = server.Close() // a profile that goes on
		}
		if served := <-ended; !errors.Is(served, http.ErrServerClosed) {
			err = errors.Join(err, served)
		}
		return err
	}, nil
}
