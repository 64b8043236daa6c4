package main

import (
	"log/slog"
	"strings"

	"github.com/spf13/cobra"
)

func newRoot() *cobra.Command {
	var logLevel, logFormat string
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
			options := &slog.HandlerOptions{Level: level}
			switch logFormat {
			case "text":
				slog.SetDefault(slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), options)))
			case "json":
				slog.SetDefault(slog.New(slog.NewJSONHandler(cmd.ErrOrStderr(), options)))
			default:
				return usagef("--log-format: %q is not text or json", logFormat)
			}
			warnUnknownEnv(cmd.Root())
			return nil
		},
	}
	root.SuggestionsMinimumDistance = 2
	root.Version = version
	root.SetVersionTemplate(versionLine() + "\n")
	root.PersistentFlags().String("config", "", "configuration file (YAML)")
	root.PersistentFlags().StringVar(&logLevel, "log-level", "warn", "least level to log: debug, info, warn, error")
	root.PersistentFlags().StringVar(&logFormat, "log-format", "text", "how log lines look: text for people, json for machines")
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usageError{explainFlag(cmd, err)} })
	root.AddCommand(newDev(), newServer(), newWorker(), newChat(), newGenerate(), newModel(), newRaft(), newTLS(), newSnapshot(), newTenant(), newPool(), newRequest(), newVersion())
	return root
}

// noArgs refuses arguments, as a usage error; on a command that only groups others it suggests one.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	if cmd.HasSubCommands() {
		return usagef("unknown command %q for %q%s", args[0], cmd.CommandPath(), didYouMean(cmd.SuggestionsFor(args[0])))
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
