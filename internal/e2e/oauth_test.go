package e2e

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRFC_9449_IndependentClient has an OAuth client that others wrote, and that is certified, obtain and
// use DPoP-bound tokens of the real binary over TLS; a service introspects them meanwhile.
func TestRFC_9449_IndependentClient(t *testing.T) {
	if _, err := os.Stat("oauth/node_modules"); err != nil {
		install := exec.Command("npm", "ci", "--prefix", "oauth")
		if out, err := install.CombinedOutput(); err != nil {
			t.Fatalf("npm ci: %v\n%s", err, out)
		}
	}
	s := start(t, "dev", t.TempDir())
	node := exec.CommandContext(t.Context(), "node", "oauth/client.mjs", s.urls.App, fmt.Sprintf("+447700900%03d", nextNumber.Add(1)-1))
	node.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+s.urls.CA)
	var failure bytes.Buffer
	node.Stderr = &failure
	in, err := node.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := node.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Start(); err != nil {
		t.Fatal(err)
	}
	lines := bufio.NewReader(out)
	line, err := lines.ReadBytes('\n')
	if err != nil {
		_ = node.Wait()
		t.Fatalf("the client ended early: %s", failure.String())
	}
	var got struct{ Access, Refresh, Customer, Jkt string }
	if err := json.Unmarshal(line, &got); err != nil {
		t.Fatal(err)
	}
	before := s.introspect(got.Access)
	cnf, _ := before["cnf"].(map[string]any)
	if before["active"] != true || before["sub"] != got.Customer || cnf["jkt"] != got.Jkt || before["token_type"] != "DPoP" || before["scope"] != "read write payment" {
		t.Errorf("introspection says %v", before)
	}
	if _, err := io.WriteString(in, "go on\n"); err != nil {
		t.Fatal(err)
	}
	rest, err := io.ReadAll(lines)
	if err != nil {
		t.Fatal(err)
	}
	if err := node.Wait(); err != nil || strings.TrimSpace(string(rest)) != "done" {
		t.Fatalf("%v %s\n%s", err, rest, failure.String())
	}
	for _, token := range []string{got.Access, got.Refresh} {
		if after := s.introspect(token); len(after) != 1 || after["active"] != false {
			t.Errorf("after the revocation introspection says %v", after)
		}
	}
	if log := s.log.String(); strings.Contains(log, got.Access) || strings.Contains(log, got.Refresh) {
		t.Error("a token is in the log")
	}
}

// introspect asks the service listener about a token.
func (s *server) introspect(token string) (answer map[string]any) {
	s.t.Helper()
	certificate, err := tls.LoadX509KeyPair(filepath.Join(s.data, "tls", "client.pem"), filepath.Join(s.data, "tls", "client.key"))
	if err != nil {
		s.t.Fatal(err)
	}
	service := &http.Client{Timeout: patience, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: s.authority(), Certificates: []tls.Certificate{certificate}}}}
	defer service.CloseIdleConnections()
	r, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.urls.Service+"/oauth2/introspect",
		strings.NewReader(url.Values{"token": {token}}.Encode()))
	if err != nil {
		s.t.Fatal(err)
	}
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Strongroom-Purpose", "authorise-request")
	response, err := service.Do(r)
	if err != nil {
		s.t.Fatal(err)
	}
	defer response.Body.Close()
	if err := json.NewDecoder(response.Body).Decode(&answer); err != nil || response.StatusCode != http.StatusOK {
		s.t.Fatalf("%d %v %v", response.StatusCode, answer, err)
	}
	return answer
}
