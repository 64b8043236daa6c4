package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "github.com/quire-serve/quire/proto/quire/v1"
	"github.com/quire-serve/quire/transport"
)

func (p *process) dial() *grpc.ClientConn {
	p.t.Helper()
	return p.dialAt(p.grpc)
}

// dialAt connects to one of the process's ports without TLS.
func (p *process) dialAt(address string) *grpc.ClientConn {
	p.t.Helper()
	conn, err := transport.DialClients(address)
	if err != nil {
		p.t.Fatal(err)
	}
	p.t.Cleanup(func() { conn.Close() })
	return conn
}

func (p *process) post(path, body string) (int, string) {
	p.t.Helper()
	resp, err := http.Post("http://"+p.http+path, "application/json", strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// TestDevServes is the main job: a first answer, the API, a clean end on Ctrl-C.
func TestDevServes(t *testing.T) {
	p := startDev(t, t.TempDir(), "--prompt", "Hello!")
	p.waitFor("printing its first answer", func() bool { return strings.Contains(p.out.String(), "Ready.") })
	if out := p.out.String(); !strings.Contains(out, "> Hello!\n") || !strings.Contains(out, "http://"+p.http+"/v1") || !strings.Contains(out, "model tiny") {
		t.Errorf("quire dev said:\n%s", out)
	}

	code, body := p.post("/v1/chat/completions", `{"model":"tiny","messages":[{"role":"user","content":"Hello!"}],"max_tokens":12,"temperature":0}`)
	var chat struct {
		Choices []struct {
			Message struct{ Content string }
		}
		Usage struct {
			PromptTokens     int `json:"prompt_tokens"`
			CompletionTokens int `json:"completion_tokens"`
		}
	}
	if err := json.Unmarshal([]byte(body), &chat); err != nil || code != http.StatusOK {
		t.Fatalf("%d %s: %v", code, body, err)
	}
	if len(chat.Choices) != 1 || chat.Choices[0].Message.Content == "" || chat.Usage.CompletionTokens < 1 || chat.Usage.CompletionTokens > 12 {
		t.Errorf("chat answer %s", body)
	}

	// The command line's own clients agree with it.
	exit, out, stderr := runQuire(t, "generate", "--server", p.grpc, "--max-tokens", "12", "-o", "json", "Hello!")
	var generated struct {
		Text             string
		PromptTokens     int `json:"prompt_tokens"`
		CompletionTokens int `json:"completion_tokens"`
	}
	if err := json.Unmarshal([]byte(out), &generated); err != nil || exit != 0 {
		t.Fatalf("quire generate: exit %d, %s%s", exit, out, stderr)
	}
	if generated.Text != chat.Choices[0].Message.Content || generated.PromptTokens != chat.Usage.PromptTokens {
		t.Errorf("gRPC said %+v, HTTP %s", generated, body)
	}
	talk := command(t, "chat", "--server", p.grpc, "--max-tokens", "12")
	talk.Stdin = strings.NewReader("Hello!\n")
	said, err := talk.Output()
	if err != nil || !bytes.Contains(said, []byte(generated.Text)) {
		t.Errorf("quire chat: %q, %v; want %q in it", said, err, generated.Text)
	}

	if code := p.interrupt(); code != 0 {
		t.Errorf("exit code %d after Ctrl-C, want 0", code)
	}
}

// TestCtrlCLetsStreamsFinish starts a long stream, sends Ctrl-C and still gets the whole of it.
func TestCtrlCLetsStreamsFinish(t *testing.T) {
	p := startDev(t, t.TempDir(), "--prompt", "")
	stream, err := pb.NewInferenceClient(p.dial()).Generate(t.Context(), &pb.GenerateRequest{
		Model: "tiny", Input: &pb.GenerateRequest_Prompt{Prompt: "Once"},
		Sampling: &pb.SamplingParams{MaxTokens: 400, IgnoreEos: true, Temperature: new(float32)},
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	code := make(chan int)
	go func() { code <- p.interrupt() }()
	var usage *pb.Usage
	for {
		msg, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("the stream was cut: %v", err)
		}
		if msg.GetUsage() != nil {
			usage = msg.GetUsage()
		}
	}
	if usage.GetCompletionTokens() != 400 {
		t.Errorf("got %d tokens, want 400", usage.GetCompletionTokens())
	}
	if c := <-code; c != 0 {
		t.Errorf("exit code %d, want 0", c)
	}
}

// TestCrashLosesNoAdmittedRequest kills the process while a request runs. The next process finds it
// in the log and runs it to its end, though nobody listens any more.
func TestCrashLosesNoAdmittedRequest(t *testing.T) {
	data := t.TempDir()
	p := startDev(t, data, "--prompt", "")
	seed := uint64(7)
	request := &pb.Request{
		Id: "survivor", Model: "tiny", GatewayId: "gone", Prompt: []int32{1, 2, 3, 4, 5},
		Sampling: &pb.SamplingParams{MaxTokens: 900, IgnoreEos: true, Seed: &seed, Temperature: new(float32), N: 1},
	}
	first, err := pb.NewControlClient(p.dialAt(p.control)).Submit(t.Context(), &pb.SubmitRequest{Request: request})
	if err != nil || first.GetDuplicate() || first.GetFinishReason() != pb.FinishReason_FINISH_REASON_UNSPECIFIED {
		t.Fatalf("submit: %v, %v", first, err)
	}
	p.kill()

	p = startDev(t, data, "--prompt", "")
	control := pb.NewControlClient(p.dialAt(p.control))
	p.waitFor("done with the request", func() bool {
		again, err := control.Submit(t.Context(), &pb.SubmitRequest{Request: request})
		if err != nil || !again.GetDuplicate() {
			t.Fatalf("submit again: %v, %v; want a duplicate", again, err)
		}
		return again.GetFinishReason() == pb.FinishReason_FINISH_REASON_LENGTH
	})
}

// TestServerAndWorkerApart runs the two halves as processes of their own.
func TestServerAndWorkerApart(t *testing.T) {
	s := &process{t: t, http: freePort(t), grpc: freePort(t), control: freePort(t), done: make(chan struct{})}
	s.cmd = command(t, "server", "--model", "tiny", "--http", s.http, "--grpc", s.grpc, "--cluster", s.control, "--data", t.TempDir())
	s.start()
	s.waitFor("listening", func() bool {
		resp, err := http.Get("http://" + s.http + "/health")
		if err != nil {
			return false
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusServiceUnavailable {
			t.Fatalf("health without a worker: %s, want 503", resp.Status)
		}
		return true
	})
	w := &process{t: t, done: make(chan struct{})}
	w.cmd = command(t, "worker", "--model", "tiny", "--id", "w1", "--control", s.control, "--listen", "127.0.0.1:0")
	w.start()
	s.waitReady()
	code, body := s.post("/v1/completions", `{"model":"tiny","prompt":"Hello","max_tokens":5,"temperature":0}`)
	if code != http.StatusOK || !strings.Contains(body, `"completion_tokens":`) {
		t.Errorf("%d %s", code, body)
	}
	if c := w.interrupt(); c != 0 {
		t.Errorf("worker's exit code %d, want 0", c)
	}
	if c := s.interrupt(); c != 0 {
		t.Errorf("server's exit code %d, want 0", c)
	}
}

func TestDevRefusesWhatCannotWork(t *testing.T) {
	taken := startDev(t, t.TempDir(), "--prompt", "")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	bad := filepath.Join(t.TempDir(), "bad.gguf")
	if err := os.WriteFile(bad, []byte("GGUF\x03\x00\x00\x00 cut off"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		args []string
		want string
	}{
		{"HTTP port in use", []string{"--http", taken.http, "--grpc", freePort(t)}, "--http: " + taken.http + " is in use by another program"},
		{"gRPC port in use", []string{"--http", freePort(t), "--grpc", taken.grpc}, "--grpc: " + taken.grpc + " is in use by another program"},
		{"data folder is a file", []string{"--http", freePort(t), "--grpc", freePort(t), "--data", file}, "--data " + file},
		{"hostile model file", []string{"--http", freePort(t), "--grpc", freePort(t), "--model", bad}, "--model " + bad},
	} {
		args := append([]string{"dev", "--model", "tiny", "--prompt", "", "--cluster", freePort(t), "--data", t.TempDir()}, c.args...)
		code, _, stderr := runQuire(t, args...)
		if code == 0 || !strings.Contains(stderr, c.want) || strings.Contains(stderr, "goroutine ") {
			t.Errorf("%s: exit %d, %q; want a failure with %q", c.name, code, stderr, c.want)
		}
	}
}

func TestGRPCNamesTheField(t *testing.T) {
	p := startDev(t, t.TempDir(), "--prompt", "")
	api := pb.NewInferenceClient(p.dial())
	tooHot := float32(3)
	for _, c := range []struct {
		name string
		req  *pb.GenerateRequest
		code codes.Code
		want string
	}{
		{"temperature", &pb.GenerateRequest{Model: "tiny", Input: &pb.GenerateRequest_Prompt{Prompt: "x"}, Sampling: &pb.SamplingParams{Temperature: &tooHot}}, codes.InvalidArgument, "temperature"},
		{"no prompt", &pb.GenerateRequest{Model: "tiny"}, codes.InvalidArgument, "prompt"},
		{"unknown model", &pb.GenerateRequest{Model: "none", Input: &pb.GenerateRequest_Prompt{Prompt: "x"}}, codes.NotFound, "none"},
	} {
		stream, err := api.Generate(t.Context(), c.req)
		if err == nil {
			_, err = stream.Recv()
		}
		if s := status.Convert(err); s.Code() != c.code || !strings.Contains(s.Message(), c.want) {
			t.Errorf("%s: %v; want %v naming %q", c.name, err, c.code, c.want)
		}
	}
}

// TestPrompts: a prompt is an argument, several, or standard input.
func TestPrompts(t *testing.T) {
	p := startDev(t, t.TempDir())
	want := ""
	for _, c := range []struct {
		args  []string
		stdin string
	}{
		{[]string{"What is a computer?"}, ""},
		{[]string{"What", "is", "a", "computer?"}, ""},
		{[]string{"-"}, "What is a computer?"},
	} {
		cmd := command(t, append([]string{"generate", "--server", p.grpc}, c.args...)...)
		cmd.Stdin = strings.NewReader(c.stdin)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("generate %q: %v", c.args, err)
		}
		if want == "" {
			want = string(out)
		}
		if string(out) != want || !strings.Contains(want, "machine") {
			t.Errorf("generate %q: %q, want %q", c.args, out, want)
		}
	}
	cmd := command(t, "generate", "--server", p.grpc, "-")
	if out, err := cmd.CombinedOutput(); err == nil || cmd.ProcessState.ExitCode() != 2 || !strings.Contains(string(out), "standard input is empty") {
		t.Errorf("an empty standard input: %v, %s", err, out)
	}
}

// TestInterruptedAnswer: Ctrl-C ends an answer and not the conversation; at the prompt a second one ends it.
func TestInterruptedAnswer(t *testing.T) {
	p := startDev(t, t.TempDir(), "--cpu-path", "go", "--threads", "1") // slowly
	chat := &process{t: t, done: make(chan struct{}), cmd: command(t, "chat", "--server", p.grpc, "--max-tokens", "1900", "--temperature", "2", "--seed", "1")}
	in, err := chat.cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	chat.start()
	say := func(text string) {
		if _, err := io.WriteString(in, text+"\n"); err != nil {
			t.Fatal(err)
		}
	}
	interrupt := func() {
		if err := chat.cmd.Process.Signal(os.Interrupt); err != nil {
			t.Fatal(err)
		}
	}
	prompts := func(n int) func() bool {
		return func() bool { return strings.Count(chat.out.String(), "> ") >= n }
	}
	chat.waitFor("asking", prompts(1))
	said := 0
	for n := range 2 {
		say("Tell me a story.")
		chat.waitFor("answering", func() bool { return len(chat.out.String()) > said+20 })
		interrupt()
		chat.waitFor("asking again", prompts(n+2))
		said = len(chat.out.String())
	}
	if strings.Contains(chat.out.String(), "Ctrl-D") {
		t.Fatal("an answer had ended before it was interrupted: the test needs a longer one")
	}
	interrupt()
	chat.waitFor("explaining how to end", func() bool { return strings.Contains(chat.out.String(), "Ctrl-D") })
	interrupt()
	<-chat.done
	if code := chat.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit %d after the second Ctrl-C at the prompt", code)
	}
}
