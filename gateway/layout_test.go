package gateway

import (
	"go/ast"
	goparser "go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// surfaces are the files that speak with clients in one API's words. All others are what every API stands on.
var surfaces = []string{
	"chat.go", "completions.go", "constraint.go", "fields.go", "grpc.go", "http.go", "logprobs.go", "parameters.go", "params.go", "stream.go",
}

// TestCallsKnowNoSurface: what admits, follows and reads requests names nothing that belongs to an API, so
// that another one can stand beside those there are.
func TestCallsKnowNoSurface(t *testing.T) {
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]*ast.File{}
	declared := map[string]string{} // at top level, but for methods, in which file
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := goparser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		files[name] = f
		for _, d := range f.Decls {
			switch d := d.(type) {
			case *ast.FuncDecl:
				if d.Recv == nil {
					declared[d.Name.Name] = name
				}
			case *ast.GenDecl:
				for _, s := range d.Specs {
					switch s := s.(type) {
					case *ast.TypeSpec:
						declared[s.Name.Name] = name
					case *ast.ValueSpec:
						for _, n := range s.Names {
							declared[n.Name] = name
						}
					}
				}
			}
		}
	}
	for _, name := range surfaces {
		if files[name] == nil {
			t.Errorf("%s is no file of this package any more: take it from the list", name)
		}
	}
	for name, f := range files {
		if slices.Contains(surfaces, name) {
			continue
		}
		// The type checker, which is recommended instead, would have to load all that is imported.
		for _, id := range f.Unresolved {
			if at := declared[id.Name]; slices.Contains(surfaces, at) {
				t.Errorf("%s uses %s of %s: that belongs to one API; what all of them share goes to where calls are", name, id.Name, at)
			}
		}
	}
}
