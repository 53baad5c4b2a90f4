// Package dbtest gives tests real databases of both kinds, fresh and empty but for the schema.
package dbtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"encoding/hex"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
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

// Open makes a database of environment "dev", with the schema of today, and closes it at the end of the test.
// Those of a process are copies of one, and so of the same installation: see New.
func Open(t testing.TB, e db.Engine) *db.DB {
	t.Helper()
	if e == db.PostgreSQL {
		template, err := postgresTemplate()
		if err != nil {
			t.Fatal(err)
		}
		return open(t, db.Options{URL: newDatabase(t, template), Environment: "dev"})
	}
	template, err := sqliteTemplate()
	if err != nil {
		t.Fatal(err)
	}
	o := SQLite(t)
	o.Key, o.Create = template.key, false
	if err := os.WriteFile(filepath.Join(o.Dir, o.File), template.content, 0o600); err != nil {
		t.Fatal(err)
	}
	return open(t, o)
}

// New is Open for a database of an installation of its own.
func New(t testing.TB, e db.Engine) *db.DB {
	t.Helper()
	if e == db.PostgreSQL {
		return open(t, db.Options{URL: PostgresURL(t), Environment: "dev", Create: true})
	}
	return open(t, SQLite(t))
}

func open(t testing.TB, o db.Options) *db.DB {
	t.Helper()
	d, err := db.Open(context.Background(), o)
	if err != nil {
		t.Fatalf("open a test database: %v", err)
	}
	t.Cleanup(func() {
		if err := d.Close(); err != nil {
			t.Errorf("close a test database: %v", err)
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

// PostgresURL makes an empty database on the test server, and drops it at the end of the test.
func PostgresURL(t testing.TB) string {
	t.Helper()
	return newDatabase(t, "template1")
}

// newDatabase makes a database that is a copy of another, and drops it at the end of the test.
func newDatabase(t testing.TB, template string) string {
	t.Helper()
	admin, u, err := administrator()
	if err != nil {
		t.Fatal(err)
	}
	name := "strongroom_test_" + randomName()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if _, err := admin.ExecContext(ctx, `CREATE DATABASE `+name+` TEMPLATE `+template); err != nil {
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

// administrator connects to the test server.
func administrator() (*sql.DB, *url.URL, error) {
	base := os.Getenv(Variable)
	if base == "" {
		return nil, nil, fmt.Errorf("%s is not set: run \"make test\", which starts a PostgreSQL for the tests", Variable)
	}
	u, err := url.Parse(base)
	if err != nil {
		return nil, nil, fmt.Errorf("%s: %w", Variable, err)
	}
	admin, err := sql.Open("pgx", base)
	return admin, u, err
}

func randomName() string {
	var random [8]byte
	rand.Read(random[:])
	return hex.EncodeToString(random[:])
}
