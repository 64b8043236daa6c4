package main

import (
	"encoding/json"

	"github.com/spf13/cobra"
)

// output is the -o flag of commands that print a table.
type output struct{ format string }

func (o *output) flag(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&o.format, "output", "o", "table", "output format: table or json")
	_ = cmd.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json"}, cobra.ShellCompDirectiveNoFileComp))
}

// write prints value as JSON, or as the table that table prints.
func (o *output) write(cmd *cobra.Command, value any, table func()) error {
	switch o.format {
	case "json":
		enc := json.NewEncoder(cmd.OutOrStdout())
		enc.SetIndent("", "  ")
		return enc.Encode(value)
	case "table":
		table()
		return nil
	default:
		return usagef("--output: %q is not table or json", o.format)
	}
}
