package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"
)

// layerFlags gives each flag that the command line left alone its value from the environment or the
// configuration file. A value that does not parse is an error that names its source.
func layerFlags(cmd *cobra.Command) error {
	file, err := readConfig(cmd)
	if err != nil {
		return err
	}
	section := strings.Join(strings.Fields(cmd.CommandPath())[1:], " ")
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if err != nil || f.Changed || f.Name == "config" || f.Name == "help" {
			return
		}
		name := envName(f.Name)
		if value, ok := os.LookupEnv(name); ok {
			if e := cmd.Flags().Set(f.Name, value); e != nil {
				err = usagef("%s=%q (for --%s): %v", name, value, f.Name, e)
			}
			return
		}
		if value, ok := file[section][f.Name]; ok {
			if e := cmd.Flags().Set(f.Name, value); e != nil {
				err = usagef("configuration file, %s.%s: %v", section, f.Name, e)
			}
		}
	})
	return err
}

func envName(flag string) string {
	return "QUIRE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// readConfig reads the file that --config or QUIRE_CONFIG names, checking every section against the
// commands and every key against their flags.
func readConfig(cmd *cobra.Command) (map[string]map[string]string, error) {
	path, _ := cmd.Flags().GetString("config")
	if path == "" {
		path = os.Getenv("QUIRE_CONFIG")
	}
	if path == "" {
		return nil, nil
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, usagef("--config: %w", err)
	}
	defer f.Close()
	var raw map[string]map[string]yaml.Node
	if err := yaml.NewDecoder(io.LimitReader(f, 1<<20)).Decode(&raw); err != nil && !errors.Is(err, io.EOF) {
		return nil, usagef("--config %s: %w", path, err)
	}
	out := make(map[string]map[string]string, len(raw))
	for section, keys := range raw {
		target, rest, err := cmd.Root().Find(strings.Fields(section))
		if err != nil || len(rest) > 0 || target == cmd.Root() || !target.Runnable() {
			return nil, usagef("--config %s: unknown section %q; sections are commands: %s", path, section, strings.Join(commandNames(cmd.Root()), ", "))
		}
		out[section] = make(map[string]string, len(keys))
		for key, node := range keys {
			if target.Flags().Lookup(key) == nil && target.InheritedFlags().Lookup(key) == nil || key == "config" || key == "help" {
				return nil, usagef("--config %s, line %d: unknown key %q in %q; keys are the flags of quire %s", path, node.Line, key, section, section)
			}
			value, err := scalar(node)
			if err != nil {
				return nil, usagef("--config %s, line %d: %s.%s: %w", path, node.Line, section, key, err)
			}
			out[section][key] = value
		}
	}
	return out, nil
}

// scalar turns a YAML value into what a flag takes: a scalar, or a list joined by commas.
func scalar(node yaml.Node) (string, error) {
	switch node.Kind {
	case yaml.ScalarNode:
		return node.Value, nil
	case yaml.SequenceNode:
		var list []string
		if err := node.Decode(&list); err != nil {
			return "", err
		}
		return strings.Join(list, ","), nil
	default:
		return "", fmt.Errorf("want a value or a list of values")
	}
}

func commandNames(root *cobra.Command) []string {
	var names []string
	for _, c := range root.Commands() {
		if c.Runnable() && c.Name() != "help" && c.Name() != "completion" {
			names = append(names, c.Name())
		}
	}
	slices.Sort(names)
	return names
}
