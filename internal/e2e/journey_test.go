package e2e

import (
	"bufio"
	"database/sql"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx", to play the database administrator

	"strongroom/internal/db/dbtest"
)

// personal is what the demo's customers have: drama numbers, an IBAN, names. None of it may be
// found in a file or a log.
var personal = regexp.MustCompile(`\+?44 ?7700 ?900[0-9]{3}|GB[0-9]{2}[A-Z]{4}[0-9]{6}`)

// onBoth runs a test on the embedded database and on PostgreSQL.
func onBoth(t *testing.T, test func(t *testing.T, database []string)) {
	t.Run("sqlite", func(t *testing.T) { test(t, nil) })
	t.Run("postgresql", func(t *testing.T) { test(t, []string{"--database", dbtest.PostgresURL(t)}) })
}

func ready(t *testing.T, s *server) string {
	t.Helper()
	b, err := json.Marshal(map[string]string{"app": s.urls.App, "service": s.urls.Service, "admin": s.urls.Admin, "ops": s.urls.Ops, "ca": s.urls.CA, "data": s.urls.Data})
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ready.json")
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestDemo plays the whole journey, and then looks for what must never be left:
// a personal value or a secret in the log or on disk.
func TestDemo(t *testing.T) {
	onBoth(t, func(t *testing.T, database []string) {
		data := t.TempDir()
		s := startLogging(t, "dev", data, database...)
		t.Log(must(t, "demo", "--ready-file", ready(t, s)).stdout)

		log := s.log.String()
		if !strings.Contains(log, `"level":"DEBUG"`) {
			t.Errorf("the log is not at debug level, so its scan shows little:\n%s", log)
		}
		never := []*regexp.Regexp{
			personal,
			regexp.MustCompile(`(?i)s[ar]t_[A-Za-z0-9_-]{20}`),                // tokens
			regexp.MustCompile(`eyJ[A-Za-z0-9_-]{10,}\.eyJ`),                  // proofs
			regexp.MustCompile(`(?i)"(code|private_code|otp|password|pin)":`), // codes
			regexp.MustCompile(`Your Strongroom code`),
		}
		for _, leak := range never {
			if found := leak.FindString(log); found != "" {
				t.Errorf("the log holds %q (%v)", found, leak)
			}
		}
		for _, line := range lines(log) {
			var l map[string]any
			if err := json.Unmarshal([]byte(line), &l); err != nil {
				t.Errorf("a log line is not JSON: %q", line)
			}
		}
		scanFolder(t, data)

		checkCatalogue(t, data)
		running := must(t, "audit", "verify", "--data", data, "--json")
		s.stop()
		scanFolder(t, data)
		stopped := must(t, "audit", "verify", "--data", data, "--json")
		var before, after struct{ Events int64 }
		if err := json.Unmarshal([]byte(running.stdout), &before); err != nil {
			t.Fatal(err)
		}
		if err := json.Unmarshal([]byte(stopped.stdout), &after); err != nil {
			t.Fatal(err)
		}
		if before.Events < 50 || after.Events <= before.Events {
			t.Errorf("%d events while running, %d after", before.Events, after.Events)
		}
	})
}

func lines(s string) []string {
	var all []string
	for scan := bufio.NewScanner(strings.NewReader(s)); scan.Scan(); {
		all = append(all, scan.Text())
	}
	return all
}

// scanFolder fails when a file in folder holds something personal, or is open to others.
func scanFolder(t *testing.T, folder string) {
	t.Helper()
	var files int
	err := filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			if os.IsNotExist(err) { // a file of a running server that has just gone
				return nil
			}
			return err
		}
		info, err := d.Info()
		if err != nil || path == folder {
			return nil
		}
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s is open to others: %v", path, info.Mode())
		}
		if !info.Mode().IsRegular() {
			return nil
		}
		files++
		b, err := os.ReadFile(path)
		if err != nil {
			return nil
		}
		if found := personal.Find(b); found != nil {
			t.Errorf("%s holds %q", path, found)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if files < 4 {
		t.Errorf("only %d files were looked at in %s", files, folder)
	}
}

// TestVerifyNamesAnAlteredEvent plays the database administrator who edits the trail.
func TestVerifyNamesAnAlteredEvent(t *testing.T) {
	url := dbtest.PostgresURL(t)
	data := t.TempDir()
	s := start(t, "dev", data, "--database", url)
	must(t, "demo", "--ready-file", ready(t, s))
	must(t, "audit", "verify", "--data", data)

	d, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	var event string
	if err := d.QueryRow(`SELECT id FROM event WHERE outcome = 'denied' ORDER BY id LIMIT 1`).Scan(&event); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Exec(`UPDATE event SET outcome = 'granted' WHERE id = $1`, event); err != nil {
		t.Fatal(err)
	}
	for _, when := range []string{"running", "stopped"} {
		r := command(t, "audit", "verify", "--data", data)
		if r.code != 3 || !strings.Contains(r.stdout, event) || !strings.Contains(r.stdout, "altered") {
			t.Errorf("%s: %v", when, r)
		}
		if when == "running" {
			s.stop()
		}
	}
}

// TestEnvironments proves ENV-1: what belongs to one environment is refused in another, and nothing
// changes by trying.
func TestEnvironments(t *testing.T) {
	onBoth(t, func(t *testing.T, database []string) {
		data := t.TempDir()
		start(t, "dev", data, database...).stop()
		url := ""
		if database != nil {
			url = database[1]
		}
		settings := filepath.Join(t.TempDir(), "uat.yaml")
		uat := fmt.Sprintf(`
environment: uat
data: %s
database: {url: %q}
root_key: {passphrase: {file: root.passphrase, env: ""}}
login: {origin: "https://api.example"}
sms: {webhook: "https://sms.example", secret: {file: root.passphrase}}
listeners:
  app: {certificate: x, key: x}
  service: {certificate: x, key: x, client_ca: x}
  admin: {certificate: x, key: x}
`, data, url)
		if err := os.WriteFile(settings, []byte(uat), 0o600); err != nil {
			t.Fatal(err)
		}
		must(t, "config", "check", "--data", data, "--config", settings)

		before := fingerprint(t, data)
		r := command(t, "keys", "list", "--data", data, "--config", settings)
		if r.code == 0 || !strings.Contains(r.stderr, "environment") || !strings.Contains(r.stderr, "uat") && !strings.Contains(r.stderr, "another environment") {
			t.Errorf("accepted, or refused for another reason: %v", r)
		}
		if after := fingerprint(t, data); after != before {
			t.Errorf("trying changed the folder:\n%s\n%s", before, after)
		}
	})
}

// TestInitServe makes an installation as an operator would and looks at what is asked of them.
func TestInitServe(t *testing.T) {
	data := filepath.Join(t.TempDir(), "live")
	out := must(t, "init", "--data", data).stdout
	for _, want := range []string{"root.key", "root.passphrase", "strongroom.yaml", "config check"} {
		if !strings.Contains(out, want) {
			t.Errorf("init does not mention %s: %s", want, out)
		}
	}
	scanFolder(t, data)
	r := command(t, "config", "check", "--data", data)
	if r.code == 0 {
		t.Fatalf("settings without certificates are sound: %v", r)
	}
	for _, want := range []string{"login.origin", "listeners.app.certificate", "listeners.service.client_ca", "sms.webhook", "sms.secret"} {
		if !strings.Contains(r.stderr, want) {
			t.Errorf("config check does not name %s: %v", want, r)
		}
	}
	if r := command(t, "serve", "--data", data); r.code == 0 || !strings.Contains(r.stderr, "listeners.app.certificate") {
		t.Errorf("served: %v", r)
	}
	if r := command(t, "init", "--data", data); r.code == 0 || !strings.Contains(r.stderr, "there already") {
		t.Errorf("init over an installation: %v", r)
	}
	if r := command(t, "dev", "--data", data); r.code == 0 {
		t.Errorf("dev ran a live installation: %v", r)
	}
}
