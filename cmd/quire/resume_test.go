package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
)

// ask posts a request under a key, after the event last if that is not empty.
func (p *process) ask(key, last, body string) (int, string) {
	p.t.Helper()
	resp := p.open(key, last, body)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func (p *process) open(key, last, body string) *http.Response {
	p.t.Helper()
	req, err := http.NewRequest(http.MethodPost, "http://"+p.http+"/v1/completions", strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	req.Header.Set("Idempotency-Key", key)
	if last != "" {
		req.Header.Set("Last-Event-ID", last)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		p.t.Fatal(err)
	}
	return resp
}

// afterEvent is what follows the event with an id in a stream.
func afterEvent(t *testing.T, stream, id string) string {
	t.Helper()
	_, rest, ok := strings.Cut(stream, "id: "+id+"\n")
	if !ok {
		t.Fatalf("no event %q in %s", id, stream)
	}
	_, rest, _ = strings.Cut(rest, "\n\n")
	return rest
}

// TestEndedAnswersAreAnsweredAgain asks for answers again that have just ended, of all shapes whose output
// the log does not keep whole, under the same key and after each event: they are what they were.
func TestEndedAnswersAreAnsweredAgain(t *testing.T) {
	p := startDev(t, t.TempDir(), "--prompt", "")
	for name, body := range map[string]string{
		"text":          `"prompt":"Once upon a time"`,
		"logprobs":      `"prompt":"Once upon a time","logprobs":2`,
		"echo":          `"prompt":"Once upon a time","logprobs":1,"echo":true`,
		"choices":       `"prompt":"Once upon a time","logprobs":0,"n":3`,
		"prompts":       `"prompt":["Once upon","The cat"],"logprobs":2,"stop":["e"]`,
		"tokens, score": `"prompt":[5,6,7],"logprobs":2,"echo":true`,
	} {
		t.Run(name, func(t *testing.T) {
			for _, stream := range []string{"false", "true"} {
				body := fmt.Sprintf(`{"model":"tiny","seed":7,"max_tokens":8,"stream":%s,%s}`, stream, body)
				key := strings.ReplaceAll(name, ", ", "-") + stream
				code, first := p.ask(key, "", body)
				if code != http.StatusOK {
					t.Fatalf("%d %s", code, first)
				}
				code, again := p.ask(key, "", body)
				if code != http.StatusOK || stream == "false" && again != first {
					t.Fatalf("asked again: %d\ngot  %s\nwant %s", code, again, first)
				}
				var ids []string
				for lines := bufio.NewScanner(strings.NewReader(again)); lines.Scan(); {
					if id, ok := strings.CutPrefix(lines.Text(), "id: "); ok {
						ids = append(ids, id)
					}
				}
				for _, id := range ids {
					if code, rest := p.ask(key, id, body); code != http.StatusOK || rest != afterEvent(t, again, id) {
						t.Errorf("after %s: %d\ngot  %s\nwant %s", id, code, rest, afterEvent(t, again, id))
					}
				}
			}
		})
	}
}

// TestDrainRunsOut stops a node that has no time for its stream: the client is told where it goes on, the
// exit code tells, and when the node is back the stream goes on to the end that it would have had.
func TestDrainRunsOut(t *testing.T) {
	data := t.TempDir()
	const body = `{"model":"tiny","prompt":"Once upon a time","seed":5,"max_tokens":400,"ignore_eos":true,"stream":true}`
	p := startDev(t, data, "--prompt", "", "--drain-timeout", "0s")
	_, whole := p.ask("whole", "", body)
	resp := p.open("cut", "", body)
	defer resp.Body.Close()
	code := make(chan int)
	var first strings.Builder
	last, end := "", ""
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		switch line := lines.Text(); {
		case strings.HasPrefix(line, "id: "):
			if last == "" {
				go func() { code <- p.interrupt() }()
			}
			last = line[len("id: "):]
		case strings.Contains(line, `"error"`):
			end = line
		default:
			first.WriteString(line + "\n")
		}
	}
	if !strings.Contains(end, `"code":"shutting_down"`) || !strings.Contains(end, `Idempotency-Key \"cut\"`) {
		t.Fatalf("the stream ends with %q after %s", end, first.String())
	}
	if c := <-code; c != 3 {
		t.Errorf("exit code %d, want 3", c)
	}
	again := startDev(t, data, "--prompt", "")
	if code, rest := again.ask("cut", last, body); code != http.StatusOK || texts(t, first.String())+texts(t, rest) != texts(t, whole) {
		t.Errorf("%d\ngot  %q + %q\nwant %q", code, texts(t, first.String()), texts(t, rest), texts(t, whole))
	}
}

// texts joins the text of a stream's events.
func texts(t *testing.T, stream string) string {
	t.Helper()
	var all strings.Builder
	for line := range strings.Lines(stream) {
		data, ok := strings.CutPrefix(line, "data: ")
		if !ok || data == "[DONE]\n" {
			continue
		}
		var c struct{ Choices []struct{ Text string } }
		if err := json.Unmarshal([]byte(data), &c); err != nil || len(c.Choices) == 0 {
			t.Fatalf("%v in %s", err, data)
		}
		all.WriteString(c.Choices[0].Text)
	}
	return all.String()
}
