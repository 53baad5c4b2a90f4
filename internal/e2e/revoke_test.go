package e2e

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"strongroom/client"
	"strongroom/internal/db/dbtest"
)

// TestASVS_7_4_1_RevocationReachesEveryServer runs two processes on one PostgreSQL. What is asked of the one a second
// after a session was ended at the other is refused, though both remember the sessions that they found good.
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
		for ended := time.Now(); ; {
			asked := time.Now()
			_, err := other.Session(ctx)
			if errors.Is(err, client.ErrSessionRevoked) || errors.Is(err, client.ErrInvalidToken) {
				break
			}
			if err != nil || asked.Sub(ended) > time.Second {
				t.Errorf("round %d: %v after the logout the other server says %v", round, asked.Sub(ended), err)
				break
			}
		}
	}
}
