package quire

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/quire-serve/quire"

type goPackage struct {
	ImportPath string
	Dir        string
	Name       string
	GoFiles    []string
	CgoFiles   []string
	Imports    []string
	Deps       []string
}

// folder is the package's path below the module, "" at the root.
func (p goPackage) folder() string {
	return strings.TrimPrefix(strings.TrimPrefix(p.ImportPath, module), "/")
}

// within reports whether folder is top or lies below it.
func within(folder, top string) bool { return folder == top || strings.HasPrefix(folder, top+"/") }

func packages(t *testing.T) []goPackage {
	t.Helper()
	out, err := exec.Command("go", "list", "-json=ImportPath,Dir,Name,GoFiles,CgoFiles,Imports,Deps", "./...").Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var list []goPackage
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return list
		} else if err != nil {
			t.Fatal(err)
		}
		list = append(list, p)
	}
}

// TestImportDirection keeps the arrows of the architecture: a folder may import, of ours, only what
// stands beside it, and itself.
func TestImportDirection(t *testing.T) {
	rules := []struct {
		folder string
		may    []string
		why    string
	}{
		{"proto", nil, "the wire API is what everything else speaks; it depends on nothing"},
		{"trust", nil, "who is who is proved by certificates alone, on every port"},
		{"transport", []string{"proto", "trust"}, "who may call what depends on who calls and on the wire API, not on what a call does"},
		{"roster", []string{"proto"}, "a set and its changes are the same for who keeps it and who follows it"},
		{"device", nil, "the contract with the hardware must not know who uses it"},
		{"kvcache", nil, "the books of the cache are pure, so that simulation and the control plane share them"},
		{"model/gguf", []string{"device"}, "a file format knows element types and nothing else"},
		{"model", []string{"device", "model"}, "a model is written over device operations only"},
		{"cpu", []string{"device"}, "a device holds no policy and knows no model"},
		{"scheduler/state", []string{"proto"}, "what a log entry does depends on the log alone"},
		{"scheduler/prefix", []string{"kvcache"}, "an index knows the names of blocks and nothing of who asks"},
		{"scheduler/batch", []string{"kvcache", "scheduler/prefix"}, "decisions are pure functions of their inputs"},
		{"scheduler/rpc", nil, "how a service says what is wrong depends on no service"},
		{"scheduler/check", []string{"proto", "scheduler/rpc", "scheduler/state"}, "whether a message may be said depends on that message alone"},
		{"scheduler/snapshot", []string{"proto", "scheduler/state"}, "a file is the state and its checksum, whoever saves or reads it"},
		{"scheduler/membership", []string{"proto", "transport", "trust", "scheduler/consensus", "scheduler/rpc", "scheduler/snapshot", "scheduler/state"}, "which nodes there are has nothing to do with requests and workers; the scheduler is built on it"},
		{"scheduler", []string{"scheduler", "kvcache", "proto", "roster", "transport", "trust"}, "the control plane never links a device or a model"},
		{"worker", []string{"worker", "kvcache", "model", "device", "proto", "transport", "trust"}, "a worker knows no gateway and no Raft"},
		{"worker/engine/pace", nil, "what a step may hold is a function of times and counts, so that it is tested without sequences"},
		{"worker/engine/draft", []string{"worker/engine/pace"}, "guesses are a function of the tokens, and their number one of times and counts"},
		{"model/grammar", []string{"model/tokenizer"}, "what text may follow depends on the grammar and the tokens alone, so that a stream can go on elsewhere"},
		{"gateway", []string{"gateway", "proto", "roster", "transport", "model/tokenizer", "model/chat", "model/grammar"}, "the front door turns text into tokens and back, and refuses what no grammar can be made of; it never loads weights"},
		{"bench/placement", []string{"kvcache", "scheduler/batch", "scheduler/prefix"}, "the simulation runs the very code that places, and nothing of the clusters around it"},
		{"bench", []string{"bench"}, "the harness sees Quire as a client does"},
		{"bench/control", []string{"bench", "proto", "transport"}, "the harness sees Quire as a client does, and its simulated workers speak to it as workers do"},
		{"bench/compare", []string{"bench", "kvcache/replay"}, "the harness sees Quire as a client does, and replays traces through the KV cache's books"},
	}
	for _, p := range packages(t) {
		folder := p.folder()
		// The longest rule that fits is the one that counts.
		best := -1
		for i, r := range rules {
			if within(folder, r.folder) && (best < 0 || len(r.folder) > len(rules[best].folder)) {
				best = i
			}
		}
		if best < 0 {
			if folder != "" && !within(folder, "cmd") && !within(folder, "test") {
				t.Errorf("%s has no rule here: add one that says what it may import", folder)
			}
			continue
		}
		r := rules[best]
		for _, imp := range p.Imports {
			target, ours := strings.CutPrefix(imp, module+"/")
			if !ours || within(target, r.folder) {
				continue
			}
			if !slices.ContainsFunc(r.may, func(m string) bool { return within(target, m) }) {
				t.Errorf("%s imports %s: %s", folder, target, r.why)
			}
		}
	}
}

// TestPureFolders keeps network, C and clocks out of the packages that decide.
func TestPureFolders(t *testing.T) {
	// What a log entry does and who the workers are is said in the wire API's words; decisions are not.
	speak := []string{"roster", "scheduler/state"}
	pure := []string{"kvcache", "device", "scheduler/state", "scheduler/batch", "scheduler/prefix", "roster", "worker/engine/pace", "worker/engine/draft"}
	for _, p := range packages(t) {
		if !slices.Contains(pure, p.folder()) {
			continue
		}
		for _, dep := range p.Deps {
			if within(dep, "google.golang.org/protobuf") && !slices.Contains(speak, p.folder()) {
				t.Errorf("%s depends on %s: what decides has types of its own, so that neither the wire API nor the log's format is its concern", p.folder(), dep)
			}
			// The generated proto package is data and its service stubs; only direct use is barred.
			if dep == "google.golang.org/grpc" && slices.Contains(p.Imports, dep) || dep == "runtime/cgo" && p.folder() != "scheduler/state" && p.folder() != "scheduler/batch" && p.folder() != "roster" {
				t.Errorf("%s depends on %s: it must run the same in a simulation, without network or C", p.folder(), dep)
			}
		}
		for _, name := range p.GoFiles {
			f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, 0)
			if err != nil {
				t.Fatal(err)
			}
			ast.Inspect(f, func(n ast.Node) bool {
				sel, ok := n.(*ast.SelectorExpr)
				if !ok {
					return true
				}
				if x, ok := sel.X.(*ast.Ident); ok && x.Name == "time" && slices.Contains([]string{"Now", "Since", "Until", "After", "NewTimer", "NewTicker", "Sleep"}, sel.Sel.Name) {
					t.Errorf("%s/%s reads the clock (time.%s): time is an argument here", p.folder(), name, sel.Sel.Name)
				}
				return true
			})
		}
	}
}

// TestCgoStaysInDevices keeps C behind the device contract.
func TestCgoStaysInDevices(t *testing.T) {
	for _, p := range packages(t) {
		if len(p.CgoFiles) > 0 && !within(p.folder(), "cpu") && !within(p.folder(), "cuda") {
			t.Errorf("%s uses cgo in %v: all C of the project lives in cpu and cuda", p.folder(), p.CgoFiles)
		}
	}
}

// TestEveryPackageSaysWhatItIs wants a package comment, in doc.go unless the package is a command.
func TestEveryPackageSaysWhatItIs(t *testing.T) {
	for _, p := range packages(t) {
		if p.folder() == "" || within(p.folder(), "proto") || len(p.GoFiles)+len(p.CgoFiles) == 0 {
			continue
		}
		name := "doc.go"
		if p.Name == "main" {
			name = "main.go"
		}
		f, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil, parser.ParseComments)
		if errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s has no %s", p.folder(), name)
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if len(f.Doc.Text()) < 60 {
			t.Errorf("%s/%s says too little: what is the package, why does it exist, what must it not import?", p.folder(), name)
		}
	}
}
