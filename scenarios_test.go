package quire

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// scenarios are the ids of the conformance list for paged-KV engines.
const scenarios = `
A1 A2 A3 A5 A6 A7 A9 A10 A11 A13 A14
B1 B2 B3 B5 B6 B7 B9 B10 B11
C1 C2 C3 C5 C6 C7 C9
D1 D2 D3 D5 D6 D7 D9 D10 D11
E1 E2 E3 E5 E6 E7
F1 F2 F3 F5 F6 F7 F9 F10 F11 F13
G1 G2 G3 G4 G5 G7 G8 G9
H1 H2 H3
I1 I2 I3 I5
J1 J2 J3 J5 J6 J7 J9
K1 K2
L1 L2 L3 L5
M1 M2 M3 M5 M6 M7 M9
N1 N2 N3 N5 N6 N7 N9 N10
O1 O2 O3 O5 O6 O7 O9 O10 O11`

// testsOfTheModule are the names of all tests, fuzz targets and benchmarks.
func testsOfTheModule(t *testing.T) map[string]bool {
	t.Helper()
	tests := map[string]bool{}
	function := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w+)\(`)
	err := filepath.WalkDir(".", func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if e.IsDir() && path != "." && (strings.HasPrefix(e.Name(), ".") || e.Name() == "node_modules" || e.Name() == "venv") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, "_test.go") {
			return nil
		}
		text, err := os.ReadFile(path)
		for _, m := range function.FindAllStringSubmatch(string(text), -1) {
			tests[m[1]] = true
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return tests
}

// TestScenarios: every scenario of the list is a test by its id, or a row of a table that says what
// Quire does; and the tests that these rows name exist.
func TestScenarios(t *testing.T) {
	tests := testsOfTheModule(t)
	id := regexp.MustCompile(`[A-O]\d+`)
	named := map[string]bool{}
	for name := range tests {
		if list, ok := strings.CutPrefix(name, "TestScenario"); ok {
			for _, s := range id.FindAllString(list, -1) {
				named[s] = true
			}
		}
	}
	row := regexp.MustCompile(`(?m)^\| ([A-O]\d+(?:, [A-O]\d+)*) \|(.*)$`)
	quoted := regexp.MustCompile("`(Test\\w+)`")
	for _, path := range []string{"kvcache/DESIGN.md", "worker/engine/DESIGN.md"} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range row.FindAllStringSubmatch(string(text), -1) {
			for _, s := range strings.Split(m[1], ", ") {
				named[s] = true
			}
		}
		for _, m := range quoted.FindAllStringSubmatch(string(text), -1) {
			if !tests[m[1]] {
				t.Errorf("%s names %s, which is no test", path, m[1])
			}
		}
	}
	for _, s := range strings.Fields(scenarios) {
		if !named[s] {
			t.Errorf("scenario %s is neither a test nor in a table", s)
		}
	}
	if len(strings.Fields(scenarios)) < 90 || len(tests) < 400 {
		t.Errorf("%d scenarios, %d tests: has something moved?", len(strings.Fields(scenarios)), len(tests))
	}
}
