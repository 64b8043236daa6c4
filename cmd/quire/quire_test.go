package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMain lets the test binary stand in for the quire binary, so that tests run real processes.
func TestMain(m *testing.M) {
	if os.Getenv("QUIRE_TEST_AS_BINARY") != "" {
		main()
	}
	os.Exit(m.Run())
}

// process is a running quire.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  lockedBuffer
	http string
	grpc string
	// control is the address of the port for the cluster.
	control string
	done    chan struct{}
}

type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// command is quire with args, in a clean environment of its own.
func command(t *testing.T, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(os.Args[0], args...)
	for _, kv := range os.Environ() {
		if !strings.HasPrefix(kv, "QUIRE_") || strings.HasPrefix(kv, "QUIRE_MODELS=") {
			cmd.Env = append(cmd.Env, kv)
		}
	}
	cmd.Env = append(cmd.Env, "QUIRE_TEST_AS_BINARY=1", "XDG_STATE_HOME="+t.TempDir())
	return cmd
}

// startDev runs `quire dev` on free ports and waits until it is ready.
func startDev(t *testing.T, data string, args ...string) *process {
	t.Helper()
	p := &process{t: t, http: freePort(t), grpc: freePort(t), control: freePort(t), done: make(chan struct{})}
	p.cmd = command(t, append([]string{"dev", "--model", "tiny", "--http", p.http, "--grpc", p.grpc, "--cluster", p.control, "--data", data}, args...)...)
	p.start()
	p.waitReady()
	return p
}

func (p *process) start() {
	p.t.Helper()
	p.cmd.Stdout, p.cmd.Stderr = &p.out, &p.out
	if err := p.cmd.Start(); err != nil {
		p.t.Fatal(err)
	}
	go func() { defer close(p.done); _ = p.cmd.Wait() }()
	p.t.Cleanup(func() {
		_ = p.cmd.Process.Kill()
		<-p.done
		if p.t.Failed() {
			p.t.Logf("quire %s said:\n%s", strings.Join(p.cmd.Args[1:], " "), p.out.String())
		}
	})
}

func (p *process) waitReady() {
	p.t.Helper()
	p.waitFor("ready", func() bool {
		resp, err := http.Get("http://" + p.http + "/health")
		if err != nil {
			return false
		}
		resp.Body.Close()
		return resp.StatusCode == http.StatusOK
	})
}

// waitFor polls a condition of the world outside this process.
func (p *process) waitFor(what string, ok func() bool) {
	p.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(90 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-p.done:
			p.t.Fatalf("quire ended (%v) before it was %s", p.cmd.ProcessState, what)
		case <-limit:
			p.t.Fatalf("not %s within 90 s", what)
		}
	}
}

// interrupt sends Ctrl-C and returns the exit code.
func (p *process) interrupt() int {
	p.t.Helper()
	if err := p.cmd.Process.Signal(os.Interrupt); err != nil {
		p.t.Fatal(err)
	}
	select {
	case <-p.done:
	case <-time.After(60 * time.Second):
		p.t.Fatal("quire did not end within 60 s of Ctrl-C")
	}
	return p.cmd.ProcessState.ExitCode()
}

// kill ends the process as a crash would.
func (p *process) kill() {
	p.t.Helper()
	if err := p.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		p.t.Fatal(err)
	}
	<-p.done
}

func (p *process) get(path string) (int, string) {
	p.t.Helper()
	resp, err := http.Get("http://" + p.http + path)
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// portsGiven keeps freePort from giving one twice.
var portsGiven sync.Map

func freePort(t *testing.T) string {
	t.Helper()
	// Below the ports that the kernel gives to outgoing connections, one of which could take it before
	// its user starts, or while it restarts.
	for range 1000 {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", 20000+rand.IntN(12000)))
		if err != nil {
			continue
		}
		l.Close()
		if _, again := portsGiven.LoadOrStore(l.Addr().String(), true); !again {
			return l.Addr().String()
		}
	}
	t.Fatal("no free port")
	return ""
}

// runQuire runs quire to its end.
func runQuire(t *testing.T, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	cmd := command(t, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stop := context.AfterFunc(ctx, func() { _ = cmd.Process.Kill() })
	defer stop()
	_ = cmd.Wait()
	if ctx.Err() != nil {
		t.Fatalf("quire %v did not end:\n%s%s", args, out.String(), errs.String())
	}
	return cmd.ProcessState.ExitCode(), out.String(), errs.String()
}

func TestUsageErrorsNameTheFlag(t *testing.T) {
	dir := t.TempDir()
	file := func(text string) string {
		path := fmt.Sprintf("%s/%d.yaml", dir, len(text))
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"dve"}, `unknown command "dve" for "quire"; did you mean dev?`},
		{[]string{"dev", "extra"}, "quire dev takes no arguments"},
		{[]string{"dev", "--htpp", "x"}, `unknown flag --htpp for "quire dev"; did you mean --http?`},
		{[]string{"pool", "workers", "--server", "127.0.0.1:8001"}, `unknown flag --server for "quire pool workers"; --control names`},
		{[]string{"dev", "--http", "8000"}, `--http: "8000" is not host:port`},
		{[]string{"dev", "--threads", "many"}, `--threads: "many" is not a whole number`},
		{[]string{"dev", "--model", "no-such-model"}, "--model no-such-model: "},
		{[]string{"worker", "--cpu-path", "sse9", "--model", "tiny"}, `--cpu-path is "sse9"`},
		{[]string{"worker", "--kv-type", "q4", "--model", "tiny"}, `--kv-type is "q4", must be f32, f16 or int8`},
		{[]string{"worker", "--threads", "-1", "--model", "tiny"}, "--threads is -1, must be 0 to 1024"},
		{[]string{"worker", "--max-sequences", "0", "--model", "tiny"}, "--max-sequences is 0, must be at least 1"},
		{[]string{"worker", "--kv-bytes", "-4", "--model", "tiny"}, "--kv-bytes is -4, must not be negative"},
		{[]string{"worker", "--decode-share", "2", "--model", "tiny"}, "--decode-share is 2, must be 0.05 to 0.95"},
		{[]string{"worker", "--tenant-kv", "a=2", "--model", "tiny"}, `--tenant-kv: "a=2" is not NAME=SHARE`},
		{[]string{"dev", "--context", "9000", "--model", "tiny"}, "--context is 9000, must be 0 to 2048, what tiny was trained for"},
		{[]string{"dev", "--drain-timeout", "5"}, `--drain-timeout: "5" is not a duration such as 500ms, 30s or 5m`},
		{[]string{"model", "inspect", "smollm2"}, "did you mean smollm2-135m?"},
		{[]string{"model", "inspect", "no-such-model"}, "neither a pulled model nor a file"},
		{[]string{"model", "pull", "tinny"}, "did you mean tiny?"},
		{[]string{"dev", "--queue-requests", "0", "--model", "tiny", "--http", freePort(t), "--grpc", freePort(t), "--cluster", freePort(t), "--data", dir}, `--queue-requests: 0 is not 1 to 1000000`},
		{[]string{"dev", "--prefix-index-bytes", "1000", "--model", "tiny", "--http", freePort(t), "--grpc", freePort(t), "--cluster", freePort(t), "--data", dir}, `--prefix-index-bytes: 1000; the least is 1048576`},
		{[]string{"dev", "--queue-bytes", "-1", "--model", "tiny", "--http", freePort(t), "--grpc", freePort(t), "--cluster", freePort(t), "--data", dir}, `--queue-bytes: -1; the least is 1`},
		{[]string{"dev", "--placement", "best", "--model", "tiny", "--http", freePort(t), "--grpc", freePort(t), "--cluster", freePort(t), "--data", dir}, `--placement: "best" is not one of ttft, round-robin`},
		{[]string{"version", "-o", "xml"}, `--output: "xml" is not table or json`},
		{[]string{"version", "--log-level", "loud"}, `--log-level: "loud"`},
		{[]string{"version", "--log-format", "xml"}, `--log-format: "xml" is not text or json`},
		{[]string{"generate"}, "quire generate needs a prompt"},
		{[]string{"version", "--config", dir + "/none.yaml"}, "--config: open"},
		{[]string{"version", "--config", file("serve:\n  http: x\n")}, `unknown section "serve"`},
		{[]string{"version", "--config", file("dev:\n  htpp: x\n")}, `line 2: unknown key "htpp" in "dev"`},
		{[]string{"version", "--config", file("version:\n  output: {a: b}\n")}, "line 2: version.output: want a value or a list of values"},
		{[]string{"version", "--config", file("worker: 5\n")}, `line 1: want keys and values in "worker"`},
		{[]string{"version", "--config", file("- a\n")}, "line 1: want sections"},
		{[]string{"version", "--config", file("\n\nversion: {output: json, output: table}\n")}, `line 3: the key "output" stands in "version" a second time`},
		{[]string{"worker", "--config", file("worker:\n\n  threads: many\n")}, `line 3: --threads: "many" is not a whole number`},
	} {
		code, _, stderr := runQuire(t, c.args...)
		if code != 2 || !strings.Contains(stderr, c.want) {
			t.Errorf("quire %v: exit %d, %q; want exit 2 and %q", c.args, code, stderr, c.want)
		}
		if strings.Contains(stderr, "loading") || strings.Contains(stderr, "strconv") || strings.Contains(stderr, "yaml.") {
			t.Errorf("quire %v: %q: it loads a model first, or speaks of Go", c.args, stderr)
		}
	}
}

func TestFlagsLayer(t *testing.T) {
	path := t.TempDir() + "/c.yaml"
	if err := os.WriteFile(path, []byte("version:\n  output: json\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if code, out, _ := runQuire(t, "version", "--config", path); code != 0 || !strings.HasPrefix(out, "{") {
		t.Errorf("file: exit %d, %q; want JSON", code, out)
	}
	if code, out, _ := runQuire(t, "version", "--config", path, "-o", "table"); code != 0 || !strings.HasPrefix(out, "quire ") {
		t.Errorf("flag over file: exit %d, %q; want the table", code, out)
	}
}

// TestUnknownVariables: a variable that sets nothing is named, with what was meant, and stops nothing; those
// that Kubernetes sets beside a service called quire, or that another command reads, are left alone.
func TestUnknownVariables(t *testing.T) {
	cmd := command(t, "version")
	cmd.Env = append(cmd.Env, "QUIRE_MAX_SEQUENCE=3", "QUIRE_THREADS=2", "QUIRE_SERVICE_HOST=10.0.0.1", "QUIRE_PORT_8000_TCP_ADDR=10.0.0.1")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(stderr.String(), "\n"); n != 1 || !strings.Contains(stderr.String(), "did you mean QUIRE_MAX_SEQUENCES?") {
		t.Errorf("said %q, want one line about QUIRE_MAX_SEQUENCE", stderr.String())
	}
}

// TestVersion: as a flag and as a command it is the same line.
func TestVersion(t *testing.T) {
	_, flag, _ := runQuire(t, "--version")
	code, line, _ := runQuire(t, "version")
	if code != 0 || flag != line || !strings.HasPrefix(line, "quire "+version+" ") || strings.Contains(line, "  ") {
		t.Errorf("--version says %q, version %q", flag, line)
	}
}

// TestInspectIsReadable: what is for people shows no Go.
func TestInspectIsReadable(t *testing.T) {
	code, out, stderr := runQuire(t, "model", "inspect", "tiny")
	if code != 0 || strings.Contains(out, "map[") || !strings.Contains(out, "36 Q8_0, 11 F32") {
		t.Errorf("exit %d, %s%s", code, out, stderr)
	}
}
