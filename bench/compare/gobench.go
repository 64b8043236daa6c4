package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// measured is what each run of each benchmark measured, by unit.
type measured map[string]map[string][]float64

// goBench runs benchmarks of a package of ours count times, one after the other, so that what is
// compared lies near in time. It returns the output too, which benchstat reads.
func goBench(ctx context.Context, pkg, pattern string, count int) (measured, string, error) {
	runs := measured{}
	var text strings.Builder
	for range count {
		cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", pattern, "-benchmem", pkg)
		cmd.Stderr = os.Stderr
		out, err := cmd.Output()
		if err != nil {
			return nil, "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, out)
		}
		text.Write(out)
		if err := runs.add(string(out)); err != nil {
			return nil, "", err
		}
	}
	return runs, text.String(), nil
}

// add reads the output of go test -bench.
func (m measured) add(text string) error {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(fields[0], "Benchmark"), "-")
		if m[name] == nil {
			m[name] = map[string][]float64{}
		}
		for i := 2; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return fmt.Errorf("benchmark line %q: %w", line, err)
			}
			m[name][fields[i+1]] = append(m[name][fields[i+1]], v)
		}
	}
	return nil
}

// page is a results page in Markdown.
type page struct{ bytes.Buffer }

// newPage begins one with its title, and when and where it was measured.
func newPage(title string) *page {
	p := &page{}
	p.line("# %s\n\n%s, on %s.", title, today(), machine())
	return p
}

func (p *page) line(format string, args ...any) { fmt.Fprintf(p, format+"\n", args...) }

// write prints the page and stores it as name in folder.
func (p *page) write(folder, name string) error {
	fmt.Print(p.String(), "\n")
	return os.WriteFile(filepath.Join(folder, name), p.Bytes(), 0o644)
}
