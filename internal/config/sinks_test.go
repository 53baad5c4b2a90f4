package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The sinks of docs/audit.md are settings that hold as they stand there.
func TestSinksOfTheDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(page), "```yaml\n")
	block, _, ok := strings.Cut(rest, "```\n")
	if !ok {
		t.Fatal("docs/audit.md has no settings")
	}
	c, err := load(t, devBase+block)
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(c.Data, "fraud.secret"), "a secret of enough characters\n", 0o600)
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if s := c.Audit.Sinks; len(s) != 3 || s[0].MaxSize != 100<<20 || s[1].CA != filepath.Join(c.Data, "siem-ca.pem") || s[2].Secret.File != filepath.Join(c.Data, "fraud.secret") {
		t.Errorf("%+v", s)
	}
	// A secret may come from the environment under a name of the operator's choice.
	t.Setenv("STRONGROOM_FRAUD", "a secret of enough characters")
	other := strings.Replace(block, "{file: fraud.secret}", "{env: STRONGROOM_FRAUD}", 1)
	if c, err = load(t, devBase+other, "STRONGROOM_FRAUD=a secret of enough characters"); err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}
