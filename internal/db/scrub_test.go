package db_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	mathrand "math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"lukechampine.com/adiantum"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

// After Scrub no page of the file, used or free, and no byte of the log holds what was deleted, also
// when pages were split and merged meanwhile.
func TestScrub(t *testing.T) {
	o := dbtest.SQLite(t)
	d, err := db.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	const rows = 4000
	secrets := make([][]byte, rows)
	order := mathrand.New(mathrand.NewPCG(1, 2)).Perm(rows) // inserted and deleted out of order
	write := func(from, to int, text string, args func(n int) []any) {
		for ; from < to; from += 100 {
			err := d.Update(t.Context(), func(tx *db.Tx) error {
				for _, n := range order[from:min(from+100, to)] {
					if _, err := tx.Exec(t.Context(), text, args(n)...); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	customer := func(n int) string { return fmt.Sprintf("cus_%06d", n) }
	for n := range secrets {
		secrets[n] = make([]byte, 65)
		rand.Read(secrets[n])
	}
	write(0, rows, `INSERT INTO data_key (customer_id, version, kek_version, state, wrapped, made_at) VALUES ($1, 1, 1, 'active', $2, 0)`,
		func(n int) []any { return []any{customer(n), secrets[n]} })
	// Some few, then runs that empty whole pages.
	gone := rows * 3 / 4
	write(0, gone, `DELETE FROM data_key WHERE customer_id = $1`, func(n int) []any { return []any{customer(n)} })

	clean, err := d.Scrub(t.Context())
	if err != nil || !clean {
		t.Fatalf("Scrub: %v, %v", clean, err)
	}
	pages := decrypted(t, o)
	for i, n := range order {
		found := bytes.Contains(pages, secrets[n])
		if found && i < gone {
			t.Fatalf("a deleted value (%d) is still in the file", i)
		}
		if !found && i >= gone {
			t.Fatal("a value that was kept is not found: this test looks in the wrong place")
		}
	}
	if info, err := os.Stat(filepath.Join(o.Dir, o.File+"-wal")); err != nil || info.Size() != 0 {
		t.Errorf("the log: %v, %v", info, err)
	}
}

// decrypted returns the pages of the main file.
func decrypted(t *testing.T, o db.Options) []byte {
	t.Helper()
	const page = 4096
	b, err := os.ReadFile(filepath.Join(o.Dir, o.File))
	if err != nil {
		t.Fatal(err)
	}
	c := adiantum.New(o.Key.Reveal())
	for at := 0; at+page <= len(b); at += page {
		var tweak [8]byte
		binary.LittleEndian.PutUint64(tweak[:], uint64(at))
		c.Decrypt(b[at:at+page], tweak[:])
	}
	return b
}

// A reader in the middle of its snapshot makes Scrub wait and nobody else.
func TestScrubWaitsForReaders(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	touch := func() error {
		return d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE installation SET probed_at = probed_at + 1 WHERE one = $1`, 1)
			return err
		})
	}
	reading, finish, ended := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	go func() {
		ended <- d.View(context.WithoutCancel(t.Context()), func(tx *db.Tx) error {
			var n int64
			err := tx.QueryRow(t.Context(), `SELECT probed_at FROM installation WHERE one = $1`, 1).Scan(&n)
			close(reading)
			<-finish
			return err
		})
	}()
	<-reading
	if err := touch(); err != nil {
		t.Fatal(err)
	}
	short, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if clean, err := d.Scrub(short); clean || !problem.Is(err, "database-unavailable") {
		t.Errorf("with a reader: %v, %v", clean, err)
	}
	scrubbed := make(chan error, 1)
	go func() {
		_, err := d.Scrub(t.Context())
		scrubbed <- err
	}()
	for range 20 {
		if err := touch(); err != nil {
			t.Fatal(err)
		}
	}
	close(finish)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if err := <-scrubbed; err != nil {
		t.Errorf("after the reader: %v", err)
	}
}

func TestScrubOfPostgresPromisesNothing(t *testing.T) {
	if clean, err := dbtest.Open(t, db.PostgreSQL).Scrub(t.Context()); clean || err != nil {
		t.Errorf("Scrub: %v, %v", clean, err)
	}
}
