package db_test

import (
	"context"
	"errors"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

func scratch(t testing.TB, d *db.DB) {
	t.Helper()
	words := map[db.Engine]string{
		db.SQLite:     `CREATE TABLE scratch (k TEXT NOT NULL PRIMARY KEY, v BLOB, n INTEGER) STRICT, WITHOUT ROWID`,
		db.PostgreSQL: `CREATE TABLE scratch (k TEXT COLLATE "C" NOT NULL PRIMARY KEY, v BYTEA, n BIGINT)`,
	}
	update(t, d, words[d.Engine()])
}

func update(t testing.TB, d *db.DB, query string, args ...any) {
	t.Helper()
	err := d.Update(context.Background(), func(tx *db.Tx) error {
		_, err := tx.Exec(context.Background(), query, args...)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func count(t testing.TB, d *db.DB, query string, args ...any) (n int) {
	t.Helper()
	err := d.View(context.Background(), func(tx *db.Tx) error {
		return tx.QueryRow(context.Background(), query, args...).Scan(&n)
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestUpdateAndView(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		scratch(t, d)
		update(t, d, `INSERT INTO scratch (k, v, n) VALUES ($2, $3, $1)`, 7, "key", []byte("value"))
		err := d.View(ctx, func(tx *db.Tx) error {
			var k string
			var v []byte
			var n int64
			if err := tx.QueryRow(ctx, `SELECT k, v, n FROM scratch WHERE n = $1`, 7).Scan(&k, &v, &n); err != nil {
				return err
			}
			if k != "key" || string(v) != "value" || n != 7 {
				t.Errorf("got %q %q %d", k, v, n)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		boom := errors.New("boom")
		err = d.Update(ctx, func(tx *db.Tx) error {
			if _, err := tx.Exec(ctx, `DELETE FROM scratch`); err != nil {
				return err
			}
			return boom
		})
		if !errors.Is(err, boom) {
			t.Fatalf("got %v", err)
		}
		if n := count(t, d, `SELECT count(*) FROM scratch`); n != 1 {
			t.Errorf("%d rows after a rollback, want 1", n)
		}
		if err := d.View(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `DELETE FROM scratch`)
			return err
		}); err == nil {
			t.Error("View let a write through")
		}
		if err := d.Ping(ctx); err != nil {
			t.Error(err)
		}
	})
}
