package db_test

import (
	"context"
	"strconv"
	"sync"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

func TestRead(t *testing.T) {
	ctx := context.Background()
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		scratch(t, d)
		read := func() (n int64, err error) {
			err = d.Read(ctx, func(tx *db.Tx) error {
				return tx.QueryRow(ctx, `SELECT n FROM scratch WHERE k = $1`, "key").Scan(&n)
			})
			return n, err
		}
		update(t, d, `INSERT INTO scratch (k, n) VALUES ($1, $2)`, "key", 1)
		for want := int64(2); want < 20; want++ {
			update(t, d, `UPDATE scratch SET n = $1`, want)
			if n, err := read(); err != nil || n != want {
				t.Fatalf("read %d, %v; %d was acknowledged", n, err, want)
			}
		}
		if err := d.Read(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `DELETE FROM scratch`)
			return err
		}); err == nil {
			t.Error("Read writes")
		}
		if n, err := read(); err != nil || n != 19 {
			t.Errorf("%d %v", n, err)
		}
		gone, cancel := context.WithCancel(ctx)
		cancel()
		if err := d.Read(gone, func(tx *db.Tx) error { return tx.QueryRow(gone, `SELECT 1`).Scan(new(int)) }); err == nil {
			t.Error("nobody waits, and there is an answer")
		}
		var wg sync.WaitGroup
		for k := range 64 { // more than there are connections
			wg.Go(func() {
				var got string
				if err := d.Read(ctx, func(tx *db.Tx) error {
					return tx.QueryRow(ctx, `SELECT k || $1 FROM scratch`, strconv.Itoa(k)).Scan(&got)
				}); err != nil || got != "key"+strconv.Itoa(k) {
					t.Errorf("%q %v", got, err)
				}
			})
		}
		wg.Wait()
		if d.Engine() != db.PostgreSQL {
			return
		}
		// Connections that the server has ended are passed over.
		update(t, d, `SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()`)
		for range 40 {
			if n, err := read(); err != nil || n != 19 {
				t.Errorf("after the connections were ended: %d %v", n, err)
			}
		}
	})
}
