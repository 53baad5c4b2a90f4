package e2e

import (
	"errors"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The proof that the trust page links to holds for anybody who knows the log's key, and so does the bundle that an
// auditor gets of the running server.
func TestEvidenceForEverybody(t *testing.T) {
	data := filepath.Join(t.TempDir(), "d")
	s := start(t, "dev", data)
	must(t, "check", "--data", data)
	client := s.client()
	page, proof := s.urls.App+"/trust/evidence/TLS-1", ""
	eventually(t, "the evidence of a claim", func() error {
		status, _ := get(t, client, page)
		code, text := get(t, client, page+"/state.tlog-proof")
		if status != http.StatusOK || code != http.StatusOK {
			return errors.New("it is not there")
		}
		proof = text
		return nil
	})
	if _, html := get(t, client, s.urls.App+"/trust"); !strings.Contains(html, `href="/trust/evidence/TLS-1"`) {
		t.Error("the trust page does not link to it")
	}
	file := filepath.Join(t.TempDir(), "state.tlog-proof")
	if err := os.WriteFile(file, []byte(proof), 0o600); err != nil {
		t.Fatal(err)
	}
	key := strings.TrimSpace(must(t, "audit", "key", "--data", data).stdout)
	if out := must(t, "audit", "check-proof", file, "--key", key).stdout; !strings.Contains(out, "assurance.claim.state") || !strings.Contains(out, "claim TLS-1 ") {
		t.Errorf("the proof says %s", out)
	}

	bundle := filepath.Join(t.TempDir(), "b.zip")
	must(t, "evidence", "export", "--data", data, "--out", bundle)
	evidence := strings.TrimSpace(must(t, "evidence", "key", "--data", data).stdout)
	s.stop()
	if out := must(t, "evidence", "verify", bundle, "--key", evidence, "--key", key).stdout; !strings.Contains(out, "✓ the bundle holds") || strings.Contains(out, "worth nothing") {
		t.Errorf("the bundle: %s", out)
	}
}
