package main

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"regexp"
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
				err = usagef("%s: %w", name, explainFlag(cmd, e))
			}
			return
		}
		if v, ok := file[section][f.Name]; ok {
			if e := cmd.Flags().Set(f.Name, v.value); e != nil {
				err = usagef("--config %s, line %d: %w", v.file, v.line, explainFlag(cmd, e))
			}
		}
	})
	return err
}

func envName(flag string) string {
	return "QUIRE_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// warnUnknownEnv names variables that look like Quire's and set nothing. It is no more than a warning, for
// the environment is everybody's.
func warnUnknownEnv(root *cobra.Command) {
	known := map[string]bool{"QUIRE_CONFIG": true, "QUIRE_MODELS": true}
	var names []string
	eachFlag(root, func(f *pflag.Flag) {
		if f.Name != "help" {
			known[envName(f.Name)] = true
			names = append(names, envName(f.Name))
		}
	})
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, "QUIRE_") || known[name] || reservedEnv.MatchString(name) {
			continue
		}
		slog.Warn("an environment variable sets nothing: it is no flag of any command"+didYouMean(near(name, names)), slog.String("variable", name))
	}
}

// reservedEnv are variables that Kubernetes sets in every pod beside a service called quire, and those of
// Quire's own tests.
var reservedEnv = regexp.MustCompile(`^QUIRE_(.*_)?(SERVICE_HOST|SERVICE_PORT(_.*)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_.*)?)?)$|^QUIRE_TEST_`)

// eachFlag calls f for every flag of every command.
func eachFlag(cmd *cobra.Command, f func(*pflag.Flag)) {
	cmd.Flags().VisitAll(f)
	cmd.PersistentFlags().VisitAll(f)
	for _, c := range cmd.Commands() {
		eachFlag(c, f)
	}
}

// explainFlag says what is wrong with a flag in words of the command line.
func explainFlag(cmd *cobra.Command, err error) error {
	if unknown := (*pflag.NotExistError)(nil); errors.As(err, &unknown) {
		name := unknown.GetSpecifiedName()
		if name == "server" && cmd.Flag("control") != nil {
			return fmt.Errorf("unknown flag --server for %q; --control names the cluster's ports (8004) of its nodes", cmd.CommandPath())
		}
		if len(name) > 1 {
			return fmt.Errorf("unknown flag --%s for %q%s", name, cmd.CommandPath(), didYouMean(nearFlags(cmd, name)))
		}
		return err
	}
	invalid := (*pflag.InvalidValueError)(nil)
	if !errors.As(err, &invalid) {
		return err
	}
	f := invalid.GetFlag()
	want := map[string]string{"bool": "true or false", "duration": "a duration such as 500ms, 30s or 5m"}[f.Value.Type()]
	switch kind := f.Value.Type(); {
	case want != "":
	case strings.HasPrefix(kind, "int") || strings.HasPrefix(kind, "uint"):
		want = "a whole number in range"
	case strings.HasPrefix(kind, "float"):
		want = "a number"
	default:
		return err
	}
	return fmt.Errorf("--%s: %q is not %s", f.Name, invalid.GetValue(), want)
}

// nearFlags are the flags of cmd that a name may have meant, with their dashes.
func nearFlags(cmd *cobra.Command, name string) []string {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) {
		if f.Name != "help" {
			names = append(names, f.Name)
		}
	})
	found := near(name, names)
	for i := range found {
		found[i] = "--" + found[i]
	}
	return found
}

// near are those of names that begin with name or differ in few letters, as cobra compares commands.
func near(name string, names []string) []string {
	list := &cobra.Command{SuggestionsMinimumDistance: 2}
	slices.Sort(names)
	for _, n := range slices.Compact(names) {
		list.AddCommand(&cobra.Command{Use: n, Run: func(*cobra.Command, []string) {}})
	}
	return list.SuggestionsFor(name)
}

func didYouMean(near []string) string {
	if len(near) == 0 {
		return ""
	}
	return "; did you mean " + strings.Join(near, " or ") + "?"
}

// setting is a value of the configuration file, and where it stands.
type setting struct {
	value, file string
	line        int
}

// readConfig reads the file that --config or QUIRE_CONFIG names, checking every section against the
// commands and every key against their flags.
func readConfig(cmd *cobra.Command) (map[string]map[string]setting, error) {
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
	var doc yaml.Node
	if err := yaml.NewDecoder(io.LimitReader(f, 1<<20)).Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, usagef("--config %s is not YAML: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	wrong := func(n *yaml.Node, format string, args ...any) error {
		return usagef("--config %s, line %d: %s", path, n.Line, fmt.Sprintf(format, args...))
	}
	sections, ok := entries(doc.Content[0])
	if !ok {
		return nil, wrong(doc.Content[0], "want sections, each a command's name and a colon")
	}
	out := map[string]map[string]setting{}
	for _, s := range sections {
		section := s.key.Value
		target, rest, err := cmd.Root().Find(strings.Fields(section))
		if err != nil || len(rest) > 0 || target == cmd.Root() || !target.Runnable() {
			return nil, wrong(s.key, "unknown section %q; sections are commands: %s", section, strings.Join(commandNames(cmd.Root()), ", "))
		}
		if out[section] != nil {
			return nil, wrong(s.key, "the section %q stands here a second time", section)
		}
		keys, ok := entries(s.value)
		if !ok {
			return nil, wrong(s.value, "want keys and values in %q; keys are the flags of quire %s", section, section)
		}
		out[section] = map[string]setting{}
		for _, k := range keys {
			key := k.key.Value
			if target.Flags().Lookup(key) == nil && target.InheritedFlags().Lookup(key) == nil || key == "config" || key == "help" {
				return nil, wrong(k.key, "unknown key %q in %q; keys are the flags of quire %s%s", key, section, section, didYouMean(nearFlags(target, key)))
			}
			if _, twice := out[section][key]; twice {
				return nil, wrong(k.key, "the key %q stands in %q a second time", key, section)
			}
			value, ok := scalar(k.value)
			if !ok {
				return nil, wrong(k.value, "%s.%s: want a value or a list of values", section, key)
			}
			out[section][key] = setting{value, path, k.key.Line}
		}
	}
	return out, nil
}

type pair struct{ key, value *yaml.Node }

// entries are a mapping's, in their order; an empty value is a mapping without any.
func entries(n *yaml.Node) (list []pair, ok bool) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return nil, true
	}
	if n.Kind != yaml.MappingNode {
		return nil, false
	}
	for i := 0; i < len(n.Content); i += 2 {
		list = append(list, pair{n.Content[i], n.Content[i+1]})
	}
	return list, true
}

// scalar turns a YAML value into what a flag takes: a scalar, or a list joined by commas.
func scalar(n *yaml.Node) (value string, ok bool) {
	switch n.Kind {
	case yaml.AliasNode:
		return scalar(n.Alias)
	case yaml.ScalarNode:
		return n.Value, true
	case yaml.SequenceNode:
		var list []string
		for _, e := range n.Content {
			if e.Kind != yaml.ScalarNode {
				return "", false
			}
			list = append(list, e.Value)
		}
		return strings.Join(list, ","), true
	}
	return "", false
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
