package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"strongroom/client"
	"strongroom/internal/db/dbtest"
)

// TestASVS_7_4_1_RevocationReachesEveryServer runs two processes on one PostgreSQL. The first request after
// a session was ended at the one is refused at the other: both look sessions up at each request.
func TestASVS_7_4_1_RevocationReachesEveryServer(t *testing.T) {
	url := dbtest.PostgresURL(t)
	first, second := t.TempDir(), t.TempDir()
	a := startPatient(t, first, "--database", url)
	for _, name := range []string{"root.key", "root.passphrase", "strongroom.yaml"} {
		b, err := os.ReadFile(filepath.Join(first, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(second, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.CopyFS(filepath.Join(second, "policies"), os.DirFS(filepath.Join(first, "policies"))); err != nil {
		t.Fatal(err)
	}
	b := startPatient(t, second, "--database", url)
	ctx := t.Context()
	for round := range 4 {
		here, there := a, b
		if round%2 == 1 {
			here, there = b, a
		}
		p := mustPerson(t, here)
		held, err := p.store.Load(ctx)
		if err != nil {
			t.Fatal(err)
		}
		other := there.device(p.key, &tokens{t: held})
		if _, err := other.Session(ctx); err != nil {
			t.Fatalf("round %d: the other server: %v", round, err)
		}
		if err := p.app.Logout(ctx); err != nil {
			t.Fatal(err)
		}
		if _, err := other.Session(ctx); !errors.Is(err, client.ErrSessionRevoked) && !errors.Is(err, client.ErrInvalidToken) {
			t.Errorf("round %d: after the logout the other server says %v", round, err)
		}
	}
}
