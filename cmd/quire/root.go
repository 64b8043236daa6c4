package main

import (
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
)

func newRoot() *cobra.Command {
	var logLevel string
	root := &cobra.Command{
		Use:   "quire",
		Short: "Serve large language models; streams survive the death of any machine",
		Long: `Quire serves large language models from a pool of workers over the OpenAI HTTP API and gRPC.

  quire dev      the whole of it in one process, with a model ready to talk to
  quire server   a control-plane node: scheduler and gateway
  quire worker   a worker node: engine, paged KV cache, device

Every flag can also be set by an environment variable (--http: QUIRE_HTTP) or in the file that
--config or QUIRE_CONFIG names: YAML, a section per command, keys as the flags.
The order is flag, environment, file, default.`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          noArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if err := layerFlags(cmd); err != nil {
				return err
			}
			var level slog.Level
			if err := level.UnmarshalText([]byte(logLevel)); err != nil {
				return usagef("--log-level: %q is not debug, info, warn or error", logLevel)
			}
			slog.SetDefault(slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level})))
			return nil
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.PersistentFlags().String("config", "", "configuration file (YAML)")
	root.PersistentFlags().StringVar(&logLevel, "log-level", "warn", "least level to log: debug, info, warn, error")
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(newDev(), newServer(), newWorker(), newChat(), newGenerate(), newModel(), newRaft(), newTLS(), newSnapshot(), newTenant(), newPool(), newRequest(), newVersion())
	return root
}

// noArgs refuses arguments, as a usage error; on a command that only groups others it suggests one.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		hint := ""
		if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
			hint = fmt.Sprintf("; did you mean %s?", strings.Join(near, " or "))
		}
		return usagef("unknown command %q for %q%s", args[0], cmd.CommandPath(), hint)
	}
	return usagef("%s takes no arguments, got %q", cmd.CommandPath(), args)
}

// exactArgs asks for the named arguments.
func exactArgs(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != len(names) {
			return usagef("%s needs %s, got %d argument(s)", cmd.CommandPath(), strings.Join(names, " "), len(args))
		}
		return nil
	}
}
