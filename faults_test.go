package quire

import (
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestFaultsAreGuarded: every fault of docs/faults.md names a test that guards against it, or says that the
// build does; and the tests that the documentation of faults and chaos names exist.
func TestFaultsAreGuarded(t *testing.T) {
	tests := testsOfTheModule(t)
	name := regexp.MustCompile(`\b(?:Test|Fuzz|Benchmark)[A-Z]\w*`)
	rows := 0
	for _, path := range []string{"docs/faults.md", "docs/chaos.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		header := ""
		for line := range strings.Lines(string(text)) {
			for _, n := range name.FindAllString(line, -1) {
				if !tests[n] {
					t.Errorf("%s names %s, which is no test", path, n)
				}
			}
			cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), "|")
			switch {
			case !strings.HasPrefix(line, "|"):
				header = ""
			case header == "":
				if header = strings.TrimSpace(cells[len(cells)-1]); len(name.FindString(header)) > 0 {
					t.Errorf("%s: a row is outside its table: %s", path, strings.TrimSpace(cells[0]))
				}
			case header == "guarded by" && strings.Trim(line, "|-\n") != "":
				rows++
				if guard := strings.TrimSpace(cells[len(cells)-1]); !name.MatchString(guard) && !strings.HasPrefix(guard, "the build:") {
					t.Errorf("%s: nothing guards against: %s", path, strings.TrimSpace(cells[0]))
				}
			}
		}
	}
	if rows < 50 {
		t.Errorf("%d faults: has the table moved?", rows)
	}
}
