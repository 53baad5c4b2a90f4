package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	signednote "golang.org/x/mod/sumdb/note"

	"strongroom/client"
	"strongroom/internal/db/dbtest"
)

// TestBackup takes snapshots of a running server, erases somebody, restores an older snapshot on either
// engine, and then loses the whole server: what is left are the repositories and the recovery key.
func TestBackup(t *testing.T) {
	onBoth(t, func(t *testing.T, database []string) {
		data := t.TempDir()
		s := start(t, "dev", data, database...)
		stays, leaves := mustPerson(t, s), mustPerson(t, s)
		for _, p := range []*person{stays, leaves} {
			if _, err := p.app.Collection("profile").Put(t.Context(), "main", map[string]any{"given_name": "Ada", "family_name": "Lovelace"}); err != nil {
				t.Fatal(err)
			}
		}
		scan := bytes.Repeat([]byte("a document of many pages. "), 100_000)
		if _, err := s.service().For("show-to-customer").Blobs(stays.id, "profile").Put(t.Context(), "scan", bytes.NewReader(scan), client.IfNew()); err != nil {
			t.Fatal(err)
		}
		var first, list struct {
			ID        string
			Kept      bool
			Snapshots []struct{ ID string }
		}
		decode(t, must(t, "backup", "run", "--data", data, "--json"), &first)
		if !first.Kept {
			t.Fatalf("%+v", first)
		}
		must(t, "vault", "erase", "--data", data, leaves.id, "--reason", "asked")
		must(t, "backup", "run", "--data", data)
		decode(t, must(t, "backup", "list", "--data", data, "--json"), &list)
		if len(list.Snapshots) < 2 {
			t.Fatalf("%+v", list)
		}
		for _, args := range [][]string{{"show", first.ID}, {"verify"}, {"verify", first.ID}, {"drill"}, {"runbook"}} {
			if r := must(t, append([]string{"backup", args[0], "--data", data}, args[1:]...)...); !strings.Contains(r.stdout, "snap_") {
				t.Errorf("backup %s says %v", args[0], r)
			}
		}
		before := exported(t, stays.id, "--data", data)

		// The older snapshot, in which both customers are.
		folder := filepath.Join(t.TempDir(), "restored")
		r := must(t, "backup", "restore", "--data", data, "--snapshot", first.ID, "--to", folder)
		if !strings.Contains(r.stdout, "1 customers who were erased since") {
			t.Errorf("%v", r)
		}
		checkRestored(t, before, stays.id, leaves.id, "--data", folder)
		if r := command(t, "backup", "restore", "--data", data, "--to", folder); r.code == 0 || !strings.Contains(r.stderr, "holds an installation") {
			t.Errorf("over an installation: %v", r)
		}
		if r := command(t, "backup", "restore", "--data", data, "--to", folder, "--force", "--environment", "live"); r.code == 0 || !strings.Contains(r.stderr, "--environment dev") {
			t.Errorf("over an installation, with the wrong word: %v", r)
		}
		must(t, "backup", "restore", "--data", data, "--to", folder, "--force", "--environment", "dev")
		checkRestored(t, before, stays.id, leaves.id, "--data", folder)
		postgres := dbtest.PostgresURL(t)
		must(t, "backup", "restore", "--data", data, "--snapshot", first.ID, "--to", postgres)
		if r := command(t, "backup", "restore", "--data", data, "--to", postgres); r.code == 0 || !strings.Contains(r.stderr, "not empty") {
			t.Errorf("over a database: %v", r)
		}
		trail := filepath.Join(t.TempDir(), "trail")
		must(t, "backup", "restore", "--data", data, "--only", "audit", "--to", trail)
		must(t, "audit", "verify", "--data", trail)
		one := filepath.Join(t.TempDir(), "one")
		must(t, "backup", "restore", "--data", data, "--snapshot", first.ID, "--customer", stays.id, "--to", one)
		text, err := os.ReadFile(filepath.Join(one, "customer.json"))
		if err != nil || !strings.Contains(string(text), "Lovelace") || !strings.Contains(string(text), stays.phone) {
			t.Errorf("one customer: %s, %v", text, err)
		}
		if back, err := os.ReadFile(filepath.Join(one, "blobs", "profile", "scan")); err != nil || !bytes.Equal(back, scan) {
			t.Errorf("one customer's blob: %d bytes, %v", len(back), err)
		}
		gone := filepath.Join(t.TempDir(), "gone")
		if r := command(t, "backup", "restore", "--data", data, "--snapshot", first.ID, "--customer", leaves.id, "--to", gone); r.code == 0 || !strings.Contains(r.stderr, "customer-erased") {
			t.Errorf("who was erased is restored: %v", r)
		}
		if _, err := os.Stat(gone); err == nil {
			t.Error("an empty folder was left")
		}

		// A database is replaced in its place when no server runs on it.
		if len(database) > 0 {
			inPlace := append([]string{"backup", "restore", "--data", data, "--to", database[1], "--force", "--environment", "dev"}, database...)
			if r := command(t, inPlace...); r.code == 0 || !strings.Contains(r.stderr, "a server runs on this database") {
				t.Errorf("under a server: %v", r)
			}
			s.kill()
			r := must(t, inPlace...)
			_, checkpoint, _ := strings.Cut(r.stdout, "accept-restore --checkpoint ")
			must(t, append([]string{"audit", "accept-restore", "--data", data, "--checkpoint", strings.TrimSpace(checkpoint)}, database...)...)
			checkRestored(t, before, stays.id, leaves.id, append([]string{"--data", data}, database...)...)
		}

		// The server burns down.
		s.kill()
		safe := t.TempDir()
		for _, name := range []string{"backups", "recovery.key"} {
			if err := os.Rename(filepath.Join(data, name), filepath.Join(safe, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.RemoveAll(data); err != nil {
			t.Fatal(err)
		}
		fresh := filepath.Join(t.TempDir(), "fresh")
		recover := []string{"backup", "restore", "--recovery-key", filepath.Join(safe, "recovery.key"), "--snapshot", first.ID, "--to", fresh}
		for _, name := range []string{"near-data", "far-keys"} {
			recover = append(recover, "--repository", filepath.Join(safe, "backups", name))
		}
		_, other, err := signednote.GenerateKey(rand.Reader, "strongroom/dev/other")
		if err != nil {
			t.Fatal(err)
		}
		if r := command(t, append(recover, "--manifest-key", other)...); r.code == 0 || !strings.Contains(r.stderr, "not signed by a key that was named") {
			t.Errorf("copies that another key has signed: %v", r)
		}
		if r := must(t, recover...); !strings.Contains(r.stdout, "The manifests are signed by strongroom/dev/") {
			t.Errorf("%v", r) // the development recovery key's file names who signs
		}
		checkRestored(t, before, stays.id, leaves.id, "--data", fresh)
		again := start(t, "dev", fresh)
		stays.moveTo(again)
		record, err := stays.app.Collection("profile").Get(t.Context(), "main")
		if err != nil {
			t.Errorf("the customer cannot read their record: %v", err)
		} else if record.Key != "main" || record.Fields["family_name"] != "L****" {
			t.Errorf("%+v", record)
		}
		must(t, "audit", "verify", "--data", fresh)
		again.stop()
	})
}

func decode(t *testing.T, r result, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(r.stdout), into); err != nil {
		t.Fatalf("%v: %v", err, r)
	}
}

// exported is what a customer has, without when that was asked.
func exported(t *testing.T, c string, place ...string) string {
	t.Helper()
	var out struct {
		Collections json.RawMessage `json:"collections"`
	}
	decode(t, must(t, append([]string{"vault", "export", c}, place...)...), &out)
	return string(out.Collections)
}

// checkRestored: the trail holds, one customer has what they had, and the other stays erased.
func checkRestored(t *testing.T, before, stays, leaves string, place ...string) {
	t.Helper()
	must(t, append([]string{"audit", "verify"}, place...)...)
	if after := exported(t, stays, place...); after != before {
		t.Errorf("restored: %s, and it was %s", after, before)
	}
	if r := command(t, append([]string{"vault", "export", leaves}, place...)...); r.code == 0 || !strings.Contains(r.stderr, "customer-erased") {
		t.Errorf("who was erased is back: %v", r)
	}
}

// TestKillBackupAndRestore kills backups and restores at many moments: the next backup counts and is whole,
// and the same restore, asked for again, ends.
func TestKillBackupAndRestore(t *testing.T) {
	onBoth(t, func(t *testing.T, database []string) {
		data := t.TempDir()
		s := start(t, "dev", data, database...)
		mustPerson(t, s)
		s.stop()
		data2 := append([]string{"--data", data}, database...)
		began := time.Now()
		must(t, append([]string{"backup", "run"}, data2...)...)
		whole := time.Since(began)
		const moments = 4
		for i := range moments {
			if err := os.RemoveAll(filepath.Join(data, "backup-memory")); err != nil && i == 0 {
				t.Fatal(err)
			}
			killed(t, whole*time.Duration(i+1)/moments, append([]string{"backup", "run"}, data2...)...)
			if i%2 == 1 { // two in a row may have been killed
				must(t, append([]string{"backup", "run"}, data2...)...)
				must(t, append([]string{"backup", "verify"}, data2...)...)
			}
		}
		into := filepath.Join(t.TempDir(), "into")
		restore := append([]string{"backup", "restore", "--to", into}, data2...)
		began = time.Now()
		must(t, restore...)
		whole = time.Since(began)
		for i := range moments {
			into = filepath.Join(t.TempDir(), "into")
			restore[3] = into
			killed(t, whole*time.Duration(i+1)/(moments+2), restore...)
			r := command(t, restore...)
			if r.code != 0 && !strings.Contains(r.stderr, "holds an installation") { // it had ended before it was killed
				t.Fatalf("after a kill: %v", r)
			}
			must(t, "audit", "verify", "--data", into)
		}
		must(t, append([]string{"audit", "verify"}, data2...)...)
	})
}

// killed runs a command and kills it after a while, if it still runs.
func killed(t *testing.T, after time.Duration, args ...string) {
	t.Helper()
	cmd := exec.Command(binary, args...)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	timer := time.AfterFunc(after, func() { _ = cmd.Process.Signal(syscall.SIGKILL) }) // it may have ended
	defer timer.Stop()
	_ = cmd.Wait() // that it was killed is the point
}
