// Command quire is the whole of Quire in one binary: control plane, worker, gateway and the
// operators' tool. Each subcommand has a file of its own with its flags and wiring; the logic lives
// in the packages that it wires together.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	// The first signal asks for a clean end; once it has come, a second one ends the process.
	context.AfterFunc(ctx, stop)
	os.Exit(run(ctx, os.Args[1:]))
}

// run executes the command line and returns the exit code: 0 done, 1 failed, 2 wrong usage, 3 ended
// before all answers were over.
func run(ctx context.Context, args []string) int {
	root := newRoot()
	root.SetArgs(args)
	err := root.ExecuteContext(ctx)
	if err == nil {
		return 0
	}
	fmt.Fprintln(root.ErrOrStderr(), "quire:", err)
	if usage := (usageError{}); errors.As(err, &usage) {
		return 2
	}
	if cut := (interruptedError{}); errors.As(err, &cut) {
		return 3
	}
	return 1
}

// usageError is a mistake on the command line, in the environment or in the configuration file.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }
