package clienttest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
)

// OpenAINode runs the official Node client's tests, which lie in dir. It installs the client, as the
// lock file says, if it is not there yet; after that it needs no network. Where there is no npm the
// test is left out, unless QUIRE_TEST_NODE is "required".
func OpenAINode(t *testing.T, s Target, dir string) {
	npm, err := exec.LookPath("npm")
	if err != nil {
		const why = "npm is not installed: it runs the Node client's tests"
		if os.Getenv("QUIRE_TEST_NODE") == "required" {
			t.Fatal(why)
		}
		t.Skip(why)
	}
	if _, err := os.Stat(filepath.Join(dir, "node_modules", "openai")); err != nil {
		install := exec.CommandContext(t.Context(), npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund")
		install.Dir = dir
		if out, err := install.CombinedOutput(); err != nil {
			t.Fatalf("npm ci: %v\n%s", err, out)
		}
	}
	run := exec.CommandContext(t.Context(), "node", "--test", "--test-reporter=tap")
	run.Dir = dir
	run.Env = append(os.Environ(), "BASE_URL="+s.URL+"/v1", "MODEL="+s.Model, "CONTEXT="+strconv.Itoa(s.ContextLength))
	out, err := run.CombinedOutput()
	if err != nil {
		t.Errorf("node: %v\n%s", err, out)
	}
	if s.Idle != nil {
		s.Idle(t)
	}
	fmt.Fprintf(t.Output(), "%s", out)
}
