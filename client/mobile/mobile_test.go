package mobile

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"path/filepath"
	"strings"
	"testing"

	"strongroom/client"
	"strongroom/client/local"
)

// nothing imports packages as empty ones, so that a type of another package is no type at all.
type nothing struct{}

func (nothing) Import(path string) (*types.Package, error) {
	p := types.NewPackage(path, filepath.Base(path))
	p.MarkComplete()
	return p, nil
}

// unbindable says why gomobile cannot take what is exported, by the rules of golang.org/x/mobile/cmd/gobind.
func unbindable(p *types.Package) (found []string, seen int) {
	bad := func(where string, t types.Type) { found = append(found, fmt.Sprintf("%s: %s", where, t)) }
	isError := func(t types.Type) bool { return types.Identical(t, types.Universe.Lookup("error").Type()) }
	named := func(t types.Type) bool {
		n, ok := t.(*types.Named)
		return ok && n.Obj().Pkg() == p && n.Obj().Exported()
	}
	value := func(t types.Type) bool {
		switch t := t.(type) {
		case *types.Basic:
			switch t.Kind() {
			case types.Bool, types.Int, types.Int8, types.Int16, types.Int32, types.Int64, types.Uint8, types.Float32, types.Float64, types.String:
				return true
			}
		case *types.Slice:
			b, ok := t.Elem().(*types.Basic)
			return ok && b.Kind() == types.Uint8
		case *types.Pointer:
			_, isStruct := t.Elem().Underlying().(*types.Struct)
			return isStruct && named(t.Elem())
		case *types.Named:
			return types.IsInterface(t) && named(t)
		}
		return false
	}
	signature := func(where string, s *types.Signature) {
		seen++
		if s.Variadic() || s.TypeParams().Len() > 0 {
			bad(where, s)
		}
		for i := range s.Params().Len() {
			if t := s.Params().At(i).Type(); !value(t) {
				bad(where, t)
			}
		}
		r := s.Results()
		ok := r.Len() == 0 || r.Len() == 1 && (isError(r.At(0).Type()) || value(r.At(0).Type())) ||
			r.Len() == 2 && value(r.At(0).Type()) && isError(r.At(1).Type())
		if !ok {
			bad(where, r)
		}
	}
	for _, name := range p.Scope().Names() {
		o := p.Scope().Lookup(name)
		if !o.Exported() {
			continue
		}
		switch o := o.(type) {
		case *types.Func:
			signature(name, o.Signature())
		case *types.TypeName:
			n := o.Type().(*types.Named)
			switch u := n.Underlying().(type) {
			case *types.Struct:
				for i := range u.NumFields() {
					if f := u.Field(i); f.Exported() && !value(f.Type()) {
						bad(name+"."+f.Name(), f.Type())
					}
				}
				for i := range n.NumMethods() {
					if m := n.Method(i); m.Exported() {
						signature(name+"."+m.Name(), m.Signature())
					}
				}
			case *types.Interface:
				for i := range u.NumMethods() {
					signature(name+"."+u.Method(i).Name(), u.Method(i).Signature())
				}
			default:
				bad(name, u)
			}
		default:
			bad(name, o.Type())
		}
	}
	return found, seen
}

func check(t *testing.T, files map[string]any) (found []string, seen int) {
	t.Helper()
	set := token.NewFileSet()
	var parsed []*ast.File
	for name, source := range files {
		f, err := parser.ParseFile(set, name, source, 0)
		if err != nil {
			t.Fatal(err)
		}
		parsed = append(parsed, f)
	}
	config := types.Config{Importer: nothing{}, IgnoreFuncBodies: true, Error: func(error) {}} // what is not there is what is looked for
	p, _ := config.Check("strongroom/client/mobile", set, parsed, nil)
	return unbindable(p)
}

func TestGomobileTakesEverything(t *testing.T) {
	names, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]any{}
	for _, name := range names {
		if !strings.HasSuffix(name, "_test.go") {
			files[name] = nil
		}
	}
	found, seen := check(t, files)
	if len(found) > 0 || seen < 50 {
		t.Errorf("%d signatures; gomobile does not take:\n%s", seen, strings.Join(found, "\n"))
	}
}

// TestTheCheckFinds what it is for.
func TestTheCheckFinds(t *testing.T) {
	for _, bad := range []string{
		"func F(context.Context)", "func F(...string)", "func F() (int, int)", "func F() (int, string, error)", "func F(map[string]string)",
		"func F([]string)", "func F(uint64)", "func F(func())", "func F(chan int)", "type T struct{ A []int }", "type T struct{ A time.Time }",
		"type T struct{}; func (T) M(error, T)", "type I interface{ M() time.Duration }", "func F[T any](T)", "var V = 1", "type N int", "func F(*client.Client)",
	} {
		if found, _ := check(t, map[string]any{"x.go": "package mobile\nimport (\"context\"; \"time\"; \"strongroom/client\")\n" + bad}); len(found) == 0 {
			t.Errorf("%s was taken", bad)
		}
	}
}

// hardware stands for a platform's keystore, over the keys of a file.
type hardware struct{ *local.KeyFile }

func (h hardware) PublicKey() ([]byte, error)         { return h.Device().Public().Bytes() }
func (h hardware) SignES256(m []byte) ([]byte, error) { return h.Device().SignES256(m) }

func TestAppOverAPlatformsKeystore(t *testing.T) {
	dir := t.TempDir()
	keys, err := local.OpenKeyFile(local.KeyFileOptions{Path: filepath.Join(dir, "device.key"), Passphrase: []byte("p")})
	if err != nil {
		t.Fatal(err)
	}
	s := NewSettings()
	s.BaseURL, s.Folder = "https://127.0.0.1:1", filepath.Join(dir, "app")
	s.Pins = "sha256/AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\nsha256/BBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBBA=\n"
	app, err := Open(s, hardware{keys}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if in, err := app.LoggedIn(); in || err != nil {
		t.Error(in, err)
	}
	if err := errors.Join(app.Keep("b", "k", []byte("v")), app.Put(NewKey(), "profile", "main", `{"given_name":"Ada"}`, "")); err != nil {
		t.Fatal(err)
	}
	if err := app.Put(NewKey(), "profile", "main", `{`, ""); err == nil {
		t.Error("what is no JSON was queued")
	}
	if n, err := app.Flush(); n != 0 || !errors.Is(err, client.ErrNotLoggedIn) {
		t.Errorf("flush without a session: %d %v", n, err)
	}
	if err := app.Close(); err != nil {
		t.Fatal(err)
	}
	if app, err = Open(s, hardware{keys}, nil); err != nil {
		t.Fatal(err)
	}
	v, err := app.Kept("b", "k")
	queued, listed := app.Queued()
	if string(v) != "v" || err != nil || listed != nil || !strings.Contains(queued, `"fields":{"given_name":"Ada"}`) {
		t.Errorf("%q %v %s %v", v, err, queued, listed)
	}
	if err := app.Wipe(); err != nil {
		t.Fatal(err)
	}
	if _, err := app.Kept("b", "k"); !errors.Is(err, local.ErrWiped) {
		t.Error(err)
	}
	s.Authorities = "none"
	if _, err := Open(s, hardware{keys}, nil); err == nil {
		t.Error("authorities that are none were taken")
	}
}

func TestSlug(t *testing.T) {
	problem := &client.Problem{Slug: client.ErrLoginFailed, Status: 401, Detail: "Start again."}
	if got := Slug(fmt.Errorf("flush: %w", problem).Error()); got != "login-failed" {
		t.Errorf("%q", got)
	}
	if got := Slug("strongroom: not logged in"); got != "" {
		t.Errorf("%q", got)
	}
}
