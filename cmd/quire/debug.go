package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/quire-serve/quire/worker"
)

// listenDebug takes the address of the debug pages, if it is not empty: before the long work, so that
// what is wrong shows at once.
func listenDebug(address string) (net.Listener, error) {
	if address == "" {
		return nil, nil
	}
	return listen("debug", address)
}

// serveDebug serves node's debug pages on l, if there is one, until stop is called.
func serveDebug(cmd *cobra.Command, l net.Listener, node *worker.Worker) (stop func() error) {
	if l == nil {
		return func() error { return nil }
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
	}
}
