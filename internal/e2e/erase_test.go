package e2e

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"strongroom/client"
)

// TestErase erases a logged-in customer while the server runs: their session is dead at once, the trail
// holds, the number registers anew, and the receipt checks where there is no installation.
func TestErase(t *testing.T) {
	onBoth(t, func(t *testing.T, database []string) {
		data := t.TempDir()
		s := start(t, "dev", data, database...)
		p := mustPerson(t, s)
		ctx := t.Context()
		if _, err := p.app.Collection("profile").Put(ctx, "main", map[string]any{"given_name": "Ada", "family_name": "Lovelace"}); err != nil {
			t.Fatal(err)
		}
		receipt := filepath.Join(t.TempDir(), "receipt.json")
		if r := command(t, "vault", "erase", "--data", data, p.id); r.code == 0 || !strings.Contains(r.stderr, "reason") {
			t.Fatalf("without a reason: %v", r)
		}
		r := must(t, "vault", "erase", "--data", data, p.id, "--reason", "customer asked", "--receipt", receipt)
		for _, want := range []string{"✓ " + p.id + " is erased", "1 records", "1 accounts", "1 devices", "1 sessions", "cli:"} {
			if !strings.Contains(r.stdout, want) {
				t.Errorf("%q is missing in\n%s", want, r.stdout)
			}
		}
		if inFiles := strings.Contains(r.stdout, "may still lie"); inFiles != (database != nil) {
			t.Errorf("what is left:\n%s", r.stdout)
		}

		var refused *client.Problem
		if _, err := p.app.Collection("profile").Get(ctx, "main"); !errors.As(err, &refused) || refused.Status != 401 {
			t.Errorf("the session afterwards: %v", err)
		}
		if r := command(t, "vault", "erase", "--data", data, p.id, "--reason", "again"); r.code == 0 || !strings.Contains(r.stderr, "customer-erased") {
			t.Errorf("twice: %v", r)
		}
		must(t, "audit", "verify", "--data", data)
		if tail := must(t, "audit", "tail", "--data", data, "-n", "200").stdout; !strings.Contains(tail, "[erased]") {
			t.Errorf("the trail:\n%s", tail)
		}

		// The same number, a new customer.
		again := &person{phone: p.phone, privateCode: p.privateCode, key: p.key, store: &tokens{}}
		again.moveTo(s)
		last, err := s.code(ctx, p.phone, "")
		if err != nil {
			t.Fatal(err)
		}
		registration, err := again.app.Register(ctx, again.phone)
		if err != nil {
			t.Fatal(err)
		}
		code, err := s.code(ctx, p.phone, last)
		if err != nil {
			t.Fatal(err)
		}
		done, err := registration.Complete(ctx, code, again.privateCode, "test")
		if err != nil || done.Customer == p.id {
			t.Errorf("registered anew: %+v, %v", done, err)
		}
		s.stop()

		// Without a server, and the receipt without an installation.
		alone := must(t, "vault", "receipt", "--data", data, p.id)
		var installation struct{ Key string }
		if err := json.Unmarshal([]byte(alone.stdout), &installation); err != nil {
			t.Fatal(err)
		}
		must(t, "audit", "verify", "--data", data)
		if r := must(t, "vault", "check-receipt", receipt, "--key", installation.Key); !strings.Contains(r.stdout, "the receipt holds: "+p.id) {
			t.Errorf("check-receipt: %v", r)
		}
		b, err := os.ReadFile(receipt)
		if err != nil {
			t.Fatal(err)
		}
		forged := filepath.Join(t.TempDir(), "forged.json")
		if err := os.WriteFile(forged, []byte(strings.Replace(string(b), p.id, done.Customer, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
		if r := command(t, "vault", "check-receipt", forged); r.code != 1 || !strings.Contains(r.stderr, "the receipt does not hold") {
			t.Errorf("a forged receipt: %v", r)
		}
	})
}
