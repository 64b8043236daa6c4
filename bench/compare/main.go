// Command compare measures Quire beside its peers, on the same machine in the same run, and its parts
// against their bars. Run it with `make bench`; bench/README.md says what there is.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "compare:", err)
		os.Exit(1)
	}
}

// options are the flags.
type options struct {
	quire, model, python, streams, out, path string
	azure, mooncake                          string
	rounds                                   int
	alone                                    bool
}

// measurements are what -only chooses from, in the order in which they run.
var measurements = []struct {
	name string
	run  func(context.Context, *options) error
}{
	{"llamacpp", llamaCPP}, // rates over HTTP, beside llama.cpp
	{"vllm", vllmStep},     // an engine step, beside vLLM's scheduler
	{"prefix", prefix},     // rates with and without a shared prefix, and by the type of the KV cache
	{"parts", parts},       // the KV cache's books
}

func run(ctx context.Context) error {
	var o options
	only := flag.String("only", "llamacpp,vllm,prefix,parts", "what to measure")
	flag.StringVar(&o.quire, "quire", "bin/quire", "the quire binary")
	flag.StringVar(&o.model, "model", "smollm2-135m", "name or path of the model")
	flag.StringVar(&o.python, "python", "", "python with llama-cpp-python and vllm (default: .cache/bench-venv, made when missing)")
	flag.StringVar(&o.streams, "streams", "1,4,16", "numbers of concurrent streams beside llama.cpp")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds; each runs all sides, in alternating order")
	flag.StringVar(&o.out, "out", "bench/results", "folder for the results")
	flag.BoolVar(&o.alone, "alone", false, "measure Quire only")
	flag.StringVar(&o.path, "path", "", "kernel path of Quire's CPU device (default: the best)")
	flag.StringVar(&o.azure, "azure", "", "an Azure LLM inference trace, for the KV cache's waste")
	flag.StringVar(&o.mooncake, "mooncake", "", "a Mooncake trace, for the prefix cache's hit rates")
	flag.Parse()
	if o.rounds < 1 {
		return fmt.Errorf("-rounds is %d, must be at least 1", o.rounds)
	}
	if err := os.MkdirAll(o.out, 0o755); err != nil {
		return err
	}
	left := map[string]bool{}
	for name := range strings.SplitSeq(*only, ",") {
		left[name] = true
	}
	for _, m := range measurements {
		if !left[m.name] {
			continue
		}
		delete(left, m.name)
		if err := m.run(ctx, &o); err != nil {
			return fmt.Errorf("%s: %w", m.name, err)
		}
	}
	for name := range left {
		return fmt.Errorf("-only: no measurement %q", name)
	}
	return nil
}

// peers are what the peers need, from PyPI.
var peers = map[string][]string{
	"llama_cpp": {"llama-cpp-python==0.3.36", "numpy"},
	"vllm": {"torch", "cbor2", "pyzmq", "aiohttp", "openai", "openai_harmony", "pillow", "pybase64", "cachetools", "msgspec", "cloudpickle", "uvloop",
		"py-cpuinfo", "prometheus-client", "xgrammar", "partial_json_parser", "llguidance", "einops", "transformers<5.20", "psutil", "requests", "fastapi"},
}

// needs sees to it that o.python has the modules, the first of which names the peer.
func (o *options) needs(ctx context.Context, modules ...string) error {
	if o.python == "" {
		o.python = ".cache/bench-venv/bin/python"
	}
	if exec.CommandContext(ctx, o.python, "-c", "import "+strings.Join(modules, ", ")).Run() == nil {
		return nil
	}
	fmt.Fprintf(os.Stderr, "installing %s beside %s (some minutes, once)\n", modules[0], o.python)
	pip := []string{o.python, "-m", "pip", "install", "-q"}
	steps := [][]string{append(pip, peers[modules[0]]...)}
	if modules[0] == "vllm" { // its own dependencies are of a GPU
		steps = append(steps, append(pip, "--no-deps", "vllm==0.32.0"))
	}
	if _, err := os.Stat(o.python); err != nil {
		steps = append([][]string{{"python3", "-m", "venv", filepath.Dir(filepath.Dir(o.python))}}, steps...)
	}
	for _, args := range steps {
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
		if runtime.GOARCH == "amd64" {
			// llama.cpp's AMX kernels crash on some machines that have AMX (ggml-org/llama.cpp#20824).
			cmd.Env = append(os.Environ(), "CMAKE_ARGS=-DCMAKE_C_FLAGS=-mno-amx-int8 -DCMAKE_CXX_FLAGS=-mno-amx-int8")
		}
		if err := cmd.Run(); err != nil {
			return fmt.Errorf("%s: %w", strings.Join(args, " "), err)
		}
	}
	return nil
}

func today() string { return time.Now().UTC().Format(time.DateOnly) }

// machine says in general terms what this one is.
func machine() string {
	return fmt.Sprintf("%d cores of %s, %s/%s, %s", runtime.NumCPU(), cpuName(), runtime.GOOS, runtime.GOARCH, runtime.Version())
}

func writeJSON(path string, v any) error {
	text, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(text, '\n'), 0o644)
}

func fileMB(path string) float64 {
	info, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return float64(info.Size()) / 1e6
}

func cpuName() string {
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if _, name, ok := strings.Cut(line, "model name\t: "); ok {
			return strings.TrimSpace(name)
		}
	}
	return runtime.GOARCH
}
