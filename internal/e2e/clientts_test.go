package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"
)

// TestTypeScriptClient runs the TypeScript client's own tests, in Node, against the real binary over TLS.
// TestPocket runs the same client in a browser.
func TestTypeScriptClient(t *testing.T) {
	s := start(t, "dev", filepath.Join(t.TempDir(), "d"))
	cmd := exec.CommandContext(t.Context(), "node", "--test", "test/")
	cmd.Dir = "../../client-ts"
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+s.urls.CA, "READY_FILE="+filepath.Join(s.data, "ready.json"))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s\n%s", err, out, s.log)
	}
}

// TestTypeScriptClientIsOfThisServer compares what is committed with what the server says of itself, and with
// what the compiler makes of the source.
func TestTypeScriptClientIsOfThisServer(t *testing.T) {
	s := start(t, "dev", filepath.Join(t.TempDir(), "d"))
	_, text := get(t, s.client(), s.urls.App+"/openapi.json")
	var now, was map[string]any
	committed, err := os.ReadFile("../../client-ts/openapi.json")
	if err != nil {
		t.Fatal(err)
	}
	for text, into := range map[string]*map[string]any{text: &now, string(committed): &was} {
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
		delete(*into, "info") // it holds the version
	}
	if !reflect.DeepEqual(now, was) {
		t.Error("client-ts/openapi.json is not what the server says of itself: run make client-ts")
	}

	const dir = "../../client-ts"
	if _, err := os.Stat(filepath.Join(dir, "node_modules")); err != nil {
		t.Fatal("the compiler is not there: run npm ci in client-ts, or scripts/test, which does")
	}
	out := t.TempDir()
	types := filepath.Join(out, "schema.d.ts")
	for _, args := range [][]string{
		{"node_modules/.bin/openapi-typescript", "openapi.json", "--output", types},
		{"node_modules/.bin/tsc", "-p", ".", "--outDir", out},
	} {
		cmd := exec.CommandContext(t.Context(), args[0], args[1:]...)
		cmd.Dir = dir
		if text, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v: %v\n%s", args, err, text)
		}
	}
	for made, kept := range map[string]string{"index.js": "dist/index.js", "index.d.ts": "dist/index.d.ts", "schema.d.ts": "src/schema.d.ts"} {
		a, err := os.ReadFile(filepath.Join(out, made))
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(dir, kept))
		if err != nil {
			t.Fatal(err)
		}
		if string(a) != string(b) {
			t.Errorf("client-ts/%s is not what the source makes: run make client-ts", kept)
		}
	}
}
