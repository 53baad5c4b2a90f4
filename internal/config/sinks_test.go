package config

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// blockOf returns the block of settings in a page that has the text.
func blockOf(t *testing.T, page, text string) string {
	t.Helper()
	for _, part := range strings.Split(page, "```yaml\n")[1:] {
		if block, _, ok := strings.Cut(part, "```\n"); ok && strings.Contains(block, text) {
			return block
		}
	}
	t.Fatalf("docs/audit.md has no settings with %q", text)
	return ""
}

// So are those of the archive, and what cannot hold is named.
func TestArchive(t *testing.T) {
	page, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	c, err := load(t, devBase+blockOf(t, string(page), "  repository:\n"))
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	if a := c.Audit; a.Online != Default().Audit.Online || a.Archive != Default().Audit.Archive || a.Repository.URL != "file:///var/lib/strongroom-archive" {
		t.Errorf("%+v", a)
	}
	c.Audit.Repository, c.Audit.Archive, c.Audit.HoldUntil = ArchiveRepository{URL: "s3://bucket?region=r"}, time.Hour, "tomorrow"
	err = c.Validate()
	for _, key := range []string{"audit.repository.access_key", "audit.repository.secret_key", "audit.archive", "audit.hold_until", "audit.hold_reason"} {
		if err == nil || !strings.Contains(err.Error(), key+":") {
			t.Errorf("%s is not named: %v", key, err)
		}
	}
	for _, url := range []string{"file://relative", "gs://bucket", ":"} {
		c.Audit.Repository = ArchiveRepository{URL: url}
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), "audit.repository.url:") {
			t.Errorf("%q: %v", url, err)
		}
	}
}

// The sinks of docs/audit.md are settings that hold as they stand there.
func TestSinksOfTheDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	block := blockOf(t, string(page), "  sinks:\n")
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
