package main

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestDebugPagesAndTiers: --debug serves the steps, and blocks that are on disk after one run are
// found by the next.
func TestDebugPagesAndTiers(t *testing.T) {
	disk := t.TempDir()
	page := regexp.MustCompile(`http://127\.0\.0\.1:\d+/debug/`)
	// Prompts of several blocks each, so that a cache of 8 evicts the first.
	ask := func(p *process, topic string) string {
		code, body := p.post("/v1/completions", `{"model":"tiny","prompt":"`+strings.Repeat(topic+" ", 25)+`","max_tokens":6,"temperature":0}`)
		var out struct{ Choices []struct{ Text string } }
		if err := json.Unmarshal([]byte(body), &out); code != http.StatusOK || err != nil || len(out.Choices) != 1 {
			t.Fatalf("%d %s", code, body)
		}
		return out.Choices[0].Text
	}
	get := func(p *process, path string) string {
		resp, err := http.Get(page.FindString(p.out.String()) + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != http.StatusOK {
			t.Fatalf("%d %s %v", resp.StatusCode, body, err)
		}
		return string(body)
	}
	var said [2]string
	for run := range said {
		p := startDev(t, t.TempDir(), "--prompt", "", "--debug", "127.0.0.1:0",
			"--kv-bytes", "163840", "--kv-host-bytes", "4000000", "--kv-disk", disk, "--kv-disk-bytes", "64000000")
		said[run] = ask(p, "the robot")
		for _, topic := range []string{"a river", "my house", "one song", "two hills"} {
			ask(p, topic)
		}
		var last struct {
			Step  uint64
			Rows  int
			Notes []struct{ What, Why string }
		}
		lines := strings.Split(strings.TrimSpace(get(p, "steps?n=3")), "\n")
		if err := json.Unmarshal([]byte(lines[len(lines)-1]), &last); err != nil || len(lines) != 3 || last.Step == 0 || last.Rows == 0 {
			t.Errorf("steps are %q: %v", lines, err)
		}
		var stats struct{ Tiers struct{ Stored int64 } }
		if err := json.Unmarshal([]byte(get(p, "stats")), &stats); err != nil || stats.Tiers.Stored == 0 {
			t.Errorf("nothing was evicted to host memory: %+v, %v", stats, err)
		}
		if code := p.interrupt(); code != 0 {
			t.Errorf("exit code %d", code)
		}
		files := 0
		err := filepath.WalkDir(disk, func(path string, _ os.DirEntry, err error) error {
			if strings.HasSuffix(path, ".kv") {
				files++
			}
			return err
		})
		if err != nil || files == 0 {
			t.Errorf("%d files on disk, %v", files, err)
		}
	}
	if said[0] != said[1] {
		t.Errorf("with blocks from disk %q, without %q", said[1], said[0])
	}
}

// TestDebugAddressInUse: a taken --debug address is said before a model is loaded.
func TestDebugAddressInUse(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	code, _, stderr := runQuire(t, "worker", "--model", "tiny", "--listen", "127.0.0.1:0", "--debug", l.Addr().String())
	want := "--debug: " + l.Addr().String() + " is in use by another program; choose another address"
	if code != 1 || !strings.Contains(stderr, want) || strings.Contains(stderr, "loading") {
		t.Errorf("exit code %d, said %q", code, stderr)
	}
}
