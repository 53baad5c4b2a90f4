package db_test

import (
	"context"
	"database/sql"
	"errors"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/id"
)

// What a process that was killed left of a scratch database goes with the next one; what somebody uses stays.
func TestScratchDropsWhatWasAbandoned(t *testing.T) {
	postgres := dbtest.PostgresURL(t)
	pool, err := sql.Open("pgx", postgres)
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	schemas := func() (n int) {
		t.Helper()
		if err := pool.QueryRowContext(t.Context(), `SELECT count(*) FROM pg_namespace WHERE nspname LIKE 'strongroom%'`).Scan(&n); err != nil {
			t.Fatal(err)
		}
		return n
	}
	for _, name := range []string{"strongroom_" + id.New("scratch"), "strongroom_scratch_of_somebody"} {
		if _, err := pool.ExecContext(t.Context(), `CREATE SCHEMA "`+name+`" CREATE TABLE data_key (id TEXT)`); err != nil {
			t.Fatal(err)
		}
	}
	_, drop, err := db.Scratch(t.Context(), postgres)
	if err != nil {
		t.Fatal(err)
	}
	if n := schemas(); n != 2 {
		t.Errorf("%d schemas, and there should be that of somebody and the new one", n)
	}
	_, dropOther, err := db.Scratch(t.Context(), postgres)
	if err != nil {
		t.Fatal(err)
	}
	if n := schemas(); n != 3 {
		t.Errorf("%d schemas while two are used", n)
	}
	if err := errors.Join(drop(context.Background()), dropOther(context.Background())); err != nil {
		t.Error(err)
	}
	if n := schemas(); n != 1 {
		t.Errorf("%d schemas are left", n)
	}
}

func TestSame(t *testing.T) {
	postgres := dbtest.PostgresURL(t)
	d, err := db.Open(t.Context(), db.Options{URL: postgres, Environment: "dev", Create: true})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	schema, drop, err := db.Scratch(t.Context(), postgres)
	if err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]bool{postgres: true, postgres + "&application_name=other": true, dbtest.PostgresURL(t): false, schema: false} {
		if same, err := d.Same(t.Context(), url); same != want || err != nil {
			t.Errorf("%s: %v, %v", url, same, err)
		}
	}
	if err := drop(context.Background()); err != nil {
		t.Error(err)
	}
	if same, err := dbtest.Open(t, db.SQLite).Same(t.Context(), postgres); same || err != nil {
		t.Errorf("%v, %v", same, err)
	}
}
