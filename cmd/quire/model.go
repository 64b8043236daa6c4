package main

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"github.com/quire-serve/quire/model"
	"github.com/quire-serve/quire/model/store"
	"github.com/quire-serve/quire/model/tiny"
)

// openSpecs opens models by name or path. "auto" is the default model if it was pulled, else the
// embedded one.
func openSpecs(names []string) ([]*model.Spec, error) {
	var specs []*model.Spec
	for _, name := range names {
		spec, err := openSpec(name)
		if err != nil {
			closeSpecs(specs)
			return nil, usageError{fmt.Errorf("--model %s: %w%s", name, err, nearModels(name, err))}
		}
		specs = append(specs, spec)
	}
	return specs, nil
}

func openSpec(name string) (*model.Spec, error) {
	if name == "tiny" {
		return model.OpenBytes("tiny", tiny.GGUF())
	}
	find := name
	if name == "auto" {
		find = store.Default
	}
	entry, err := store.Find(find)
	switch {
	case err == nil:
		spec, err := model.Open(entry.Path)
		if err != nil {
			return nil, err
		}
		spec.ID = entry.Name
		return spec, nil
	case name == "auto" && errors.Is(err, store.ErrNotFound):
		return model.OpenBytes("tiny", tiny.GGUF())
	default:
		return nil, err
	}
}

// nearModels suggests what a name that was not found may have meant, of the models that are here or can be
// pulled by name.
func nearModels(name string, err error) string {
	if !errors.Is(err, store.ErrNotFound) {
		return ""
	}
	names := []string{tiny.Name, store.Default}
	entries, _ := store.List() // no more than a suggestion
	for _, e := range entries {
		names = append(names, e.Name)
	}
	return didYouMean(near(name, names))
}

func closeSpecs(specs []*model.Spec) {
	for _, s := range specs {
		s.Close()
	}
}

// describeSpec says what a model is, and what to expect of a small one.
func describeSpec(s *model.Spec) string {
	n := parameters(s)
	text := fmt.Sprintf("%s from %s, %.3g billion parameters", s.ID, s.Path, float64(n)/1e9)
	if n < 1e9 {
		text = fmt.Sprintf("%s from %s, %.3g million parameters: a small model, which gets many things wrong", s.ID, s.Path, float64(n)/1e6)
	}
	if s.ID == "tiny" {
		return strings.Replace(text, " from ,", ", embedded,", 1) + " (quire model pull " + store.Default + " gets a larger one)"
	}
	return text
}

// parameters is how many numbers a model's tensors hold.
func parameters(s *model.Spec) (n int64) {
	for _, t := range s.File.Tensors {
		of := int64(1)
		for _, d := range t.Dims {
			of *= int64(d)
		}
		n += of
	}
	return n
}

// tryPullDefault gets the default model if it can; without a network Quire still has tiny.
func tryPullDefault(cmd *cobra.Command) {
	if _, err := store.Find(store.Default); err == nil {
		return
	}
	if err := pullModel(cmd, store.Default); err != nil {
		fmt.Fprintf(cmd.ErrOrStderr(), "%s could not be had (%v); going on with the embedded model\n", store.Default, err)
	}
}

func pullModel(cmd *cobra.Command, ref string) error {
	bar := newProgress(cmd.ErrOrStderr(), "pulling "+ref)
	_, err := store.Pull(cmd.Context(), ref, bar.bytes)
	bar.end(err == nil)
	if errors.Is(err, store.ErrNotFound) {
		return usageError{fmt.Errorf("%w%s", err, nearModels(ref, err))}
	}
	return err
}

func newModel() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "model",
		Short: "Get, list and inspect models",
		Args:  noArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newModelPull(), newModelList(), newModelInspect())
	return cmd
}

func newModelPull() *cobra.Command {
	return &cobra.Command{
		Use:   "pull NAME|FILE|URL",
		Short: "Get a model into the cache: a known name, a GGUF file or an https URL of one",
		Long: `Get a model into the cache: a known name (smollm2-135m), a GGUF file or an https URL of one.
A URL may end in #sha256=… to be checked. Interrupted pulls go on where they stopped.`,
		Args: exactArgs("NAME|FILE|URL"),
		RunE: func(cmd *cobra.Command, args []string) error { return pullModel(cmd, args[0]) },
	}
}

func newModelList() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the models that are here",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			type row struct {
				Name  string `json:"name"`
				Bytes int64  `json:"bytes"`
				Path  string `json:"path"`
			}
			rows := []row{{"tiny", int64(len(tiny.GGUF())), "(embedded)"}}
			entries, err := store.List()
			if err != nil {
				return err
			}
			for _, e := range entries {
				rows = append(rows, row{e.Name, e.Size, e.Path})
			}
			return out.write(cmd, rows, func() {
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintln(t, "NAME\tSIZE\tPATH")
				for _, r := range rows {
					fmt.Fprintf(t, "%s\t%.1f MB\t%s\n", r.Name, float64(r.Bytes)/1e6, r.Path)
				}
				t.Flush()
			})
		},
	}
	out.flag(cmd)
	return cmd
}

// countsOf lists how many there are of each, the most first.
func countsOf(n map[string]int) string {
	names := slices.SortedFunc(maps.Keys(n), func(a, b string) int { return cmp.Or(cmp.Compare(n[b], n[a]), cmp.Compare(a, b)) })
	for i, name := range names {
		names[i] = fmt.Sprintf("%d %s", n[name], name)
	}
	return strings.Join(names, ", ")
}

func newModelInspect() *cobra.Command {
	var out output
	cmd := &cobra.Command{
		Use:   "inspect NAME|FILE",
		Short: "Show a model's shape, tokenizer and size",
		Args:  exactArgs("NAME|FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			spec, err := openSpec(args[0])
			if errors.Is(err, store.ErrNotFound) {
				return usageError{fmt.Errorf("%w%s", err, nearModels(args[0], err))}
			} else if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			defer spec.Close()
			c := spec.Config
			v := struct {
				ID         string         `json:"id"`
				Path       string         `json:"path,omitempty"`
				Digest     string         `json:"digest"`
				Arch       string         `json:"arch"`
				Layers     int            `json:"layers"`
				Hidden     int            `json:"hidden"`
				FFN        int            `json:"ffn"`
				Heads      int            `json:"heads"`
				KVHeads    int            `json:"kv_heads"`
				HeadDim    int            `json:"head_dim"`
				Vocab      int            `json:"vocab"`
				Context    int            `json:"context_length"`
				Windows    []int          `json:"sliding_windows,omitempty"`
				Parameters int64          `json:"parameters"`
				Tensors    map[string]int `json:"tensors"`
				Chat       bool           `json:"chat_template"`
			}{spec.ID, spec.Path, spec.Digest, c.Arch, c.Layers, c.Hidden, c.FFN, c.Heads, c.KVHeads, c.HeadDim, c.Vocab, c.ContextLength, c.Windows, parameters(spec), map[string]int{}, spec.Chat != nil}
			for _, t := range spec.File.Tensors {
				v.Tensors[t.Type.String()]++
			}
			return out.write(cmd, v, func() {
				t := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintf(t, "id\t%s\narchitecture\t%s\nparameters\t%.1f M\ntensors\t%s\n", v.ID, v.Arch, float64(v.Parameters)/1e6, countsOf(v.Tensors))
				fmt.Fprintf(t, "layers\t%d\nhidden\t%d\nffn\t%d\nheads\t%d (%d of KV, %d wide)\n", v.Layers, v.Hidden, v.FFN, v.Heads, v.KVHeads, v.HeadDim)
				if v.Windows != nil {
					fmt.Fprintf(t, "sliding windows\t%s tokens, by layer (0: all)\n", strings.Trim(fmt.Sprint(v.Windows), "[]"))
				}
				template := "none"
				switch {
				case spec.NoChat != nil:
					template = "unusable: " + spec.NoChat.Error()
				case v.Chat:
					template = "yes"
				}
				fmt.Fprintf(t, "vocabulary\t%d\ncontext\t%d tokens\nchat template\t%s\ndigest\t%s\npath\t%s\n", v.Vocab, v.Context, template, v.Digest, v.Path)
				t.Flush()
			})
		},
	}
	out.flag(cmd)
	return cmd
}
