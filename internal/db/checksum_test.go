package db_test

import (
	"path/filepath"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// TestChecksumsFromTheFirstMoment: a connection that finds the first page in the log of a crashed
// process must still write pages back with their checksums.
func TestChecksumsFromTheFirstMoment(t *testing.T) {
	o := dbtest.SQLite(t)
	d, err := db.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	on, err := db.ChecksumsAtOpen(filepath.Join(o.Dir, o.File), o.Key.Reveal())
	if err != nil || !on {
		t.Errorf("checksums are on: %v, %v", on, err)
	}
}
