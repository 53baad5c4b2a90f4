package db_test

import (
	"database/sql"
	"testing"

	_ "github.com/jackc/pgx/v5/stdlib"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// Whatever the database's settings say, before or after a connection was made, a commit waits for the
// disk; a setting that waits for more stays.
func TestPostgresCommitsAreDurable(t *testing.T) {
	url := dbtest.PostgresURL(t)
	control, err := sql.Open("pgx", url)
	if err != nil {
		t.Fatal(err)
	}
	defer control.Close()
	var name string
	if err := control.QueryRow(`SELECT current_database()`).Scan(&name); err != nil {
		t.Fatal(err)
	}
	for setting, want := range map[string]string{
		"off": "on", "local": "on", "on": "on", "remote_write": "remote_write", "remote_apply": "remote_apply",
	} {
		if _, err := control.Exec(`ALTER DATABASE "` + name + `" SET synchronous_commit = ` + setting); err != nil {
			t.Fatal(err)
		}
		d, err := db.Open(t.Context(), db.Options{URL: url, Environment: "dev", Create: true})
		if err != nil {
			t.Fatal(err)
		}
		var got string
		err = d.Update(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT current_setting('synchronous_commit')`).Scan(&got)
		})
		if err != nil || got != want {
			t.Errorf("%s became %s, want %s; %v", setting, got, want, err)
		}
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}
