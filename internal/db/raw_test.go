package db_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// What Load writes, Each reads, of every type, in a View as in a Snapshot; an error of f ends it and leaves the
// transaction usable.
func TestLoadAndEach(t *testing.T) {
	table := db.Table{Name: "data_key_tombstone", Key: []int{0}, Columns: []db.Column{
		{Name: "customer_id", Type: db.TextColumn}, {Name: "erased_at", Type: db.IntColumn}, {Name: "mac", Type: db.BlobColumn},
	}}
	row := func(i int) []db.Value {
		return []db.Value{
			{Kind: db.TextColumn, Bytes: fmt.Appendf(nil, "%06d – text", i)},
			{Kind: db.IntColumn, Int: int64(i)*1_000_000_007 - 5},
			{Kind: db.BlobColumn, Bytes: bytes.Repeat([]byte{byte(i), 0, 255}, i%50)},
		}
	}
	same := func(a, b db.Value) bool { return a.Kind == b.Kind && a.Int == b.Int && bytes.Equal(a.Bytes, b.Bytes) }
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		const rows = 300
		i := 0
		for _, until := range []int{200, rows} {
			_, err := d.Load(t.Context(), table, func(values []db.Value) (bool, error) {
				if i == until {
					return false, nil
				}
				copy(values, row(i))
				i++
				return true, nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		stop := errors.New("stop")
		if _, err := d.Load(t.Context(), table, func(values []db.Value) (bool, error) {
			copy(values, row(i))
			i++
			if i > rows+10 {
				return false, stop
			}
			return true, nil
		}); !errors.Is(err, stop) {
			t.Errorf("a source that fails: %v", err)
		}
		for name, read := range map[string]func(context.Context, func(tx *db.Tx) error) error{"Snapshot": d.Snapshot, "View": d.View, "Read": d.Read} {
			err := read(t.Context(), func(tx *db.Tx) error {
				query := `SELECT customer_id, erased_at, mac, CASE WHEN erased_at < $1 THEN erased_at END, '' FROM data_key_tombstone ORDER BY customer_id`
				if err := tx.Each(t.Context(), query, func([]db.Value) error { return stop }, 0); !errors.Is(err, stop) {
					t.Errorf("%s: f's own error: %v", name, err)
				}
				i := 0
				err := tx.Each(t.Context(), query, func(got []db.Value) error {
					want := append(row(i), db.Value{}, db.Value{Kind: db.TextColumn})
					if i == 0 {
						want[3] = want[1]
					}
					if !slices.EqualFunc(got, want, same) {
						t.Errorf("%s: row %d is %v, not %v", name, i, got, want)
					}
					i++
					return nil
				}, 0)
				if i != rows {
					t.Errorf("%s: %d rows", name, i)
				}
				return err
			})
			if err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	})
}

// A database that is written in bulk has everything when it is opened again.
func TestBulk(t *testing.T) {
	for _, e := range []db.Engine{db.SQLite, db.PostgreSQL} {
		t.Run(e.String(), func(t *testing.T) {
			o := dbtest.SQLite(t)
			if e == db.PostgreSQL {
				o = db.Options{URL: dbtest.PostgresURL(t), Environment: "dev", Create: true}
			}
			for _, bulk := range []bool{true, false} {
				o.Bulk = bulk
				d, err := db.Open(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				if err := d.Update(t.Context(), func(tx *db.Tx) error {
					_, err := tx.Exec(t.Context(), `UPDATE installation SET probed_at = probed_at + 1 WHERE one = $1`, 1)
					return err
				}); err != nil {
					t.Fatal(err)
				}
				begun, running := d.Updates()
				if begun != 1 || running != 0 {
					t.Errorf("%d updates, %d running", begun, running)
				}
				var commit string
				query := `SELECT CAST(synchronous AS TEXT) FROM pragma_synchronous`
				want := map[bool]string{true: "1", false: "2"}[bulk]
				if e == db.PostgreSQL {
					query, want = `SELECT current_setting('synchronous_commit')`, map[bool]string{true: "off", false: "on"}[bulk]
				}
				var probed int
				err = d.Update(t.Context(), func(tx *db.Tx) error { // on the connection that writes
					return errors.Join(tx.QueryRow(t.Context(), query).Scan(&commit),
						tx.QueryRow(t.Context(), `SELECT probed_at FROM installation`).Scan(&probed))
				})
				if err != nil {
					t.Fatal(err)
				}
				if commit != want {
					t.Errorf("bulk %v: commits are %s, not %s", bulk, commit, want)
				}
				if probed < 1 || !bulk && probed < 2 {
					t.Errorf("an update was lost: %d", probed)
				}
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}
