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

// goBench runs benchmarks of a package of ours and returns, for each benchmark and unit, what each run
// measured, and the output, which benchstat reads.
func goBench(ctx context.Context, pkg, pattern string, count int) (map[string]map[string][]float64, string, error) {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", pattern, "-benchmem", "-count", strconv.Itoa(count), pkg)
	cmd.Stderr = os.Stderr
	text, err := cmd.Output()
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, text)
	}
	runs := map[string]map[string][]float64{}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) < 4 || !strings.HasPrefix(fields[0], "Benchmark") {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(fields[0], "Benchmark"), "-")
		if runs[name] == nil {
			runs[name] = map[string][]float64{}
		}
		for i := 2; i+1 < len(fields); i += 2 {
			v, err := strconv.ParseFloat(fields[i], 64)
			if err != nil {
				return nil, "", fmt.Errorf("benchmark line %q: %w", line, err)
			}
			runs[name][fields[i+1]] = append(runs[name][fields[i+1]], v)
		}
	}
	return runs, string(text), nil
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
