package app

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"
)

// A line that is meant to name a manifest key counts, or is refused: nobody restores without the check who has
// copied the line from paper with another space.
func TestManifestKeysOfAFile(t *testing.T) {
	_, key, err := note.GenerateKey(rand.Reader, "strongroom/dev/ins")
	if err != nil {
		t.Fatal(err)
	}
	for line, want := range map[string]string{
		"# manifest key: " + key:                              "pinned",
		"#manifest key:" + key + "\r":                         "pinned",
		"#  Manifest  Key :\t" + key:                          "pinned",
		"# manifest-key: " + key:                              "pinned",
		"# manifest key: " + key + "\n# manifest key: " + key: "pinned",
		"# manifest key:":                                     "no manifest key",
		"# manifest keys: " + key[:20]:                        "no manifest key",
		"# public key: " + key:                                "",
		"":                                                    "",
	} {
		path := filepath.Join(t.TempDir(), "recovery.key")
		if err := os.WriteFile(path, []byte("# Recovery key\n"+line+"\nAGE-SECRET-KEY-1\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		verifiers, err := manifestKeys(path, nil)
		switch {
		case want == "pinned":
			v, verr := note.NewVerifier(key)
			if err != nil || verr != nil || verifiers == nil {
				t.Errorf("%q: %v", line, err)
				continue
			}
			if _, err := verifiers.Verifier(v.Name(), v.KeyHash()); err != nil {
				t.Errorf("%q: %v", line, err)
			}
		case want == "":
			if err != nil || verifiers != nil {
				t.Errorf("%q: %v, %v", line, verifiers, err)
			}
		case err == nil || !strings.Contains(err.Error(), want):
			t.Errorf("%q: %v", line, err)
		}
	}
}

// No key of a blob is a path.
func TestFileNames(t *testing.T) {
	for key, want := range map[string]string{"scan": "scan", "..": "%2E.", ".": "%2E", ".hidden": "%2Ehidden", "a/../b": "a%2F..%2Fb"} {
		if got := fileName(key); got != want || filepath.Base(got) != got {
			t.Errorf("%q becomes %q", key, got)
		}
	}
}
