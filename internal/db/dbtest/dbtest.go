// Package dbtest gives tests real databases of both kinds, fresh and empty but for the schema.
package dbtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"net/url"
	"os"
	"testing"
	"time"

	_ "github.com/jackc/pgx/v5/stdlib" // the driver "pgx", to make databases

	"strongroom/internal/db"
	"strongroom/internal/secret"
)

// Variable names the environment variable with the URL of a PostgreSQL server whose user may
// create databases.
const Variable = "STRONGROOM_TEST_POSTGRES"

// Each runs f once on each kind of database, as subtests.
func Each(t *testing.T, f func(t *testing.T, d *db.DB)) {
	t.Helper()
	for _, e := range []db.Engine{db.SQLite, db.PostgreSQL} {
		t.Run(e.String(), func(t *testing.T) { f(t, Open(t, e)) })
	}
}

// Open makes a database of environment "dev" and closes it at the end of the test.
func Open(t testing.TB, e db.Engine) *db.DB {
	t.Helper()
	o := SQLite(t)
	if e == db.PostgreSQL {
		o = db.Options{URL: PostgresURL(t), Environment: "dev", Create: true}
	}
	d, err := db.Open(context.Background(), o)
	if err != nil {
		t.Fatalf("open %s: %v", e, err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close %s: %v", e, err)
		}
	})
	return d
}

// SQLite returns the options of an embedded database that does not exist yet, in a temporary folder.
func SQLite(t testing.TB) db.Options {
	t.Helper()
	key := make([]byte, 32)
	rand.Read(key)
	return db.Options{Dir: t.TempDir(), File: "strongroom-1.db", Key: secret.New(key), Environment: "dev", Create: true}
}

// PostgresURL makes a fresh database on the test server, and drops it at the end of the test.
func PostgresURL(t testing.TB) string {
	t.Helper()
	base := os.Getenv(Variable)
	if base == "" {
		t.Fatalf("%s is not set: run \"make test\", which starts a PostgreSQL for the tests", Variable)
	}
	u, err := url.Parse(base)
	if err != nil {
		t.Fatalf("%s: %v", Variable, err)
	}
	admin, err := sql.Open("pgx", base)
	if err != nil {
		t.Fatalf("%s: %v", Variable, err)
	}
	var random [8]byte
	rand.Read(random[:])
	name := "strongroom_test_" + hex.EncodeToString(random[:])
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := admin.ExecContext(ctx, `CREATE DATABASE `+name); err != nil {
		t.Fatalf("create a test database: %v", err)
	}
	t.Cleanup(func() {
		if _, err := admin.Exec(`DROP DATABASE IF EXISTS ` + name + ` WITH (FORCE)`); err != nil {
			t.Errorf("drop the test database: %v", err)
		}
		if err := admin.Close(); err != nil {
			t.Error(err)
		}
	})
	u.Path = "/" + name
	return u.String()
}
