package catalogue_test

import (
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"strongroom/internal/audit/catalogue"
)

var update = flag.Bool("update", false, "write the table into docs/audit.md")

// declared returns the values of all constants called Action…, by where they stand, and every literal
// that is given to a field called Action outside of a constant.
func declared(t *testing.T) (constants map[string]string, literals []string) {
	t.Helper()
	constants = make(map[string]string)
	files := 0
	for _, root := range []string{"../..", "../../../cmd"} {
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			if strings.Contains(filepath.ToSlash(path), "/audit/catalogue/") || strings.HasPrefix(filepath.Base(path), "catalogue") {
				return nil
			}
			set := token.NewFileSet()
			file, err := parser.ParseFile(set, path, nil, 0)
			if err != nil {
				return err
			}
			files++
			ast.Inspect(file, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.ValueSpec:
					for i, name := range n.Names {
						if !strings.HasPrefix(name.Name, "Action") || i >= len(n.Values) {
							continue
						}
						if value, ok := text(n.Values[i]); ok {
							constants[value] = set.Position(name.Pos()).String()
						}
					}
				case *ast.KeyValueExpr:
					key, ok := n.Key.(*ast.Ident)
					if value, literal := text(n.Value); ok && literal && key.Name == "Action" {
						literals = append(literals, value+" at "+set.Position(n.Pos()).String())
					}
				}
				return true
			})
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if files < 100 {
		t.Fatalf("only %d files were looked at", files)
	}
	return constants, literals
}

func text(e ast.Expr) (string, bool) {
	literal, ok := e.(*ast.BasicLit)
	if !ok || literal.Kind != token.STRING {
		return "", false
	}
	value, err := strconv.Unquote(literal.Value)
	return value, err == nil
}

// What the program can record is in the catalogue, and nothing else is.
func TestEveryActionIsInTheCatalogue(t *testing.T) {
	constants, literals := declared(t)
	for _, l := range literals {
		t.Errorf("the action %s is no constant called Action…", l)
	}
	for value, where := range constants {
		if _, ok := catalogue.Find(value); !ok {
			t.Errorf("%s declares %q, which has no entry in catalogue.All: add one, and run this test with -update", where, value)
		}
	}
	for _, a := range catalogue.All {
		if constants[a.Name] == "" {
			t.Errorf("nothing in the program declares %q", a.Name)
		}
		if a.Does == "" || a.Class == 0 || a.Activity == 0 {
			t.Errorf("%q is not described", a.Name)
		}
	}
	if !slices.IsSortedFunc(catalogue.All, func(a, b catalogue.Action) int { return strings.Compare(a.Name, b.Name) }) {
		t.Error("the catalogue is not in order of the names")
	}
	if len(constants) < 60 {
		t.Errorf("only %d constants were found", len(constants))
	}
}

const (
	page  = "../../../docs/audit.md"
	begin = "<!-- catalogue: made by go test ./internal/audit/catalogue -update -->\n"
	end   = "<!-- end of catalogue -->"
)

func TestTheDocsHaveTheCatalogue(t *testing.T) {
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(b), begin)
	was, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the catalogue", page)
	}
	want := table()
	if was == want {
		return
	}
	if !*update {
		t.Fatalf("the table in %s is stale: run go test ./internal/audit/catalogue -update", page)
	}
	if err := os.WriteFile(page, []byte(before+begin+want+end+after), 0o644); err != nil {
		t.Fatal(err)
	}
}

func table() string {
	var b strings.Builder
	b.WriteString("| action | means | resource | sealed | outcomes | OCSF |\n|---|---|---|---|---|---|\n")
	for _, a := range catalogue.All {
		outcomes := a.Outcomes
		if outcomes == "" {
			outcomes = "all"
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s | %d/%d |\n", a.Name, a.Does, a.On, strings.Join(a.Seals, ", "), outcomes, a.Class, a.Activity)
	}
	return b.String()
}
