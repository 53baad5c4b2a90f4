package db_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/secret"
)

func open(t testing.TB, o db.Options) *db.DB {
	t.Helper()
	d, err := db.Open(context.Background(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = d.Close() })
	return d
}

// contents returns the hash of each file in dir, with its size and mode.
func contents(t testing.TB, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		data, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		info, err := e.Info()
		if err != nil {
			t.Fatal(err)
		}
		out[e.Name()] = fmt.Sprintf("%x %d %v", sha256.Sum256(data), len(data), info.Mode())
	}
	return out
}

// crashed makes a database with rows and copies it while it is open, so that the copy looks like
// what a crash leaves: acknowledged rows are in the log only.
func crashed(t testing.TB, rows int) db.Options {
	t.Helper()
	o := dbtest.SQLite(t)
	d := open(t, o)
	scratch(t, d)
	for i := range rows {
		update(t, d, insertScratch, fmt.Sprint("row", i), []byte("v"), i)
	}
	o.Dir = copied(t, o.Dir)
	if info, err := os.Stat(filepath.Join(o.Dir, o.File+"-wal")); err != nil || info.Size() == 0 {
		t.Fatalf("the copy has no log: %v", err)
	}
	o.Create = false
	return o
}

func copied(t testing.TB, dir string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(to, os.DirFS(dir)); err != nil {
		t.Fatal(err)
	}
	for name := range contents(t, to) {
		if err := os.Chmod(filepath.Join(to, name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return to
}

// closed makes a database with rows that was closed in order.
func closed(t testing.TB, rows int) db.Options {
	t.Helper()
	o := dbtest.SQLite(t)
	d := open(t, o)
	scratch(t, d)
	for i := range rows {
		update(t, d, insertScratch, fmt.Sprint("row", i), bytes.Repeat([]byte("v"), 3000), i)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	o.Create = false
	return o
}

func edit(t testing.TB, name string, f func([]byte) []byte) {
	t.Helper()
	data, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, f(data), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Each reason to refuse has its error, and leaves every byte of the folder as it was.
func TestRefusedAndUnchanged(t *testing.T) {
	ctx := context.Background()
	for _, state := range []struct {
		name string
		make func(testing.TB, int) db.Options
	}{{"crashed", crashed}, {"closed", closed}} {
		for _, c := range []struct {
			name string
			harm func(t *testing.T, o *db.Options)
			want error
			only string // the state that it applies to
		}{
			{name: "wrong key", want: db.ErrWrongKey, harm: func(t *testing.T, o *db.Options) {
				key := make([]byte, 32)
				rand.Read(key)
				o.Key = secret.New(key)
			}},
			{name: "wrong environment", want: db.ErrEnvironment, harm: func(t *testing.T, o *db.Options) { o.Environment = "live" }},
			{name: "newer schema", want: db.ErrNewerSchema, harm: func(t *testing.T, o *db.Options) {
				d := open(t, *o)
				update(t, d, `INSERT INTO schema_version (version) VALUES (9999)`)
				dir := o.Dir
				o.Dir = copied(t, dir)
				if err := d.Close(); err != nil {
					t.Fatal(err)
				}
				if state.name == "closed" {
					o.Dir = dir
				}
			}},
			{name: "empty file", want: db.ErrCorrupt, harm: func(t *testing.T, o *db.Options) {
				edit(t, filepath.Join(o.Dir, o.File), func([]byte) []byte { return nil })
			}},
			{name: "part of a page", want: db.ErrCorrupt, harm: func(t *testing.T, o *db.Options) {
				edit(t, filepath.Join(o.Dir, o.File), func(b []byte) []byte { return b[:1000] })
			}},
			{name: "truncated", want: db.ErrCorrupt, only: "closed", harm: func(t *testing.T, o *db.Options) {
				edit(t, filepath.Join(o.Dir, o.File), func(b []byte) []byte { return b[:len(b)-4096] })
			}},
			{name: "truncated within a page", want: db.ErrCorrupt, only: "closed", harm: func(t *testing.T, o *db.Options) {
				edit(t, filepath.Join(o.Dir, o.File), func(b []byte) []byte { return b[:len(b)-100] })
			}},
			{name: "first page damaged", want: db.ErrCorrupt, only: "closed", harm: func(t *testing.T, o *db.Options) {
				edit(t, filepath.Join(o.Dir, o.File), func(b []byte) []byte { b[50] ^= 1; return b })
			}},
			{name: "all pages damaged", want: db.ErrWrongKey, only: "closed", harm: func(t *testing.T, o *db.Options) {
				edit(t, filepath.Join(o.Dir, o.File), func(b []byte) []byte { rand.Read(b); return b })
			}},
			{name: "schema pages damaged", want: db.ErrCorrupt, only: "closed", harm: func(t *testing.T, o *db.Options) {
				edit(t, filepath.Join(o.Dir, o.File), func(b []byte) []byte { rand.Read(b[4096 : 6*4096]); return b })
			}},
			{name: "main file missing", want: db.ErrCorrupt, only: "crashed", harm: func(t *testing.T, o *db.Options) {
				o.Create = true
				if err := os.Remove(filepath.Join(o.Dir, o.File)); err != nil {
					t.Fatal(err)
				}
			}},
			{name: "nothing there", want: db.ErrNoDatabase, harm: func(t *testing.T, o *db.Options) { o.File = "other.db" }},
		} {
			if c.only != "" && c.only != state.name {
				continue
			}
			t.Run(state.name+"/"+c.name, func(t *testing.T) {
				o := state.make(t, 20)
				good := o
				c.harm(t, &o)
				before := contents(t, o.Dir)
				d, err := db.Open(ctx, o)
				if err == nil {
					_ = d.Close()
				}
				if !errors.Is(err, c.want) {
					t.Errorf("got %v, want %v", err, c.want)
				}
				if after := contents(t, o.Dir); !maps.Equal(before, after) {
					t.Errorf("the folder changed:\n%v\n%v", before, after)
				}
				if c.want == db.ErrWrongKey && c.name == "wrong key" || c.want == db.ErrEnvironment {
					if n := count(t, open(t, good), `SELECT count(*) FROM scratch`); n != 20 {
						t.Errorf("%d rows afterwards, want 20", n)
					}
				}
			})
		}
	}
}

// A power cut while page 1 is written back leaves it torn; the log still has it, so nothing is lost.
func TestTornFirstPageComesFromTheLog(t *testing.T) {
	o := dbtest.SQLite(t)
	d := open(t, o)
	scratch(t, d) // a new table changes page 1
	update(t, d, insertScratch, "k", []byte("v"), 1)
	o.Dir = copied(t, o.Dir)
	edit(t, filepath.Join(o.Dir, o.File), func(b []byte) []byte { b[50] ^= 1; return b })
	if n := count(t, open(t, o), `SELECT count(*) FROM scratch`); n != 1 {
		t.Errorf("%d rows, want 1", n)
	}
}

func TestInUse(t *testing.T) {
	o := dbtest.SQLite(t)
	d := open(t, o)
	before := contents(t, o.Dir)
	if _, err := db.Open(context.Background(), o); !errors.Is(err, db.ErrInUse) {
		t.Errorf("got %v, want ErrInUse", err)
	}
	if after := contents(t, o.Dir); !maps.Equal(before, after) {
		t.Error("the folder changed")
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	again := open(t, o)
	if again.Installation() != d.Installation() || again.Environment() != "dev" {
		t.Errorf("%q became %q", d.Installation(), again.Installation())
	}
}

func TestNoDatabaseMakesNothing(t *testing.T) {
	o := dbtest.SQLite(t)
	o.Dir, o.Create = filepath.Join(o.Dir, "sub"), false
	if _, err := db.Open(context.Background(), o); !errors.Is(err, db.ErrNoDatabase) {
		t.Errorf("got %v", err)
	}
	if _, err := os.Stat(o.Dir); !errors.Is(err, os.ErrNotExist) {
		t.Error("the folder was made")
	}
}

// Whatever the umask, nobody else may read the files.
func TestModes(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0))
	o := dbtest.SQLite(t)
	o.Dir = filepath.Join(o.Dir, "sub")
	for range 2 {
		d := open(t, o)
		update(t, d, `UPDATE installation SET probed_at = 1`)
		info, err := os.Stat(o.Dir)
		if err != nil || info.Mode().Perm() != 0o700 {
			t.Errorf("folder: %v %v", info.Mode(), err)
		}
		entries, err := os.ReadDir(o.Dir)
		if err != nil || len(entries) != 4 {
			t.Errorf("%v %v", entries, err)
		}
		for _, e := range entries {
			if info, err := e.Info(); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("%s: %v %v", e.Name(), info.Mode(), err)
			}
		}
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// Every connection, also after the database is opened again, commits with a full fsync, and the
// pages carry checksums.
func TestSettingsOfEveryConnection(t *testing.T) {
	ctx := context.Background()
	o := dbtest.SQLite(t)
	want := map[string]string{
		"synchronous": "2", "journal_mode": "wal", "foreign_keys": "1", "temp_store": "2",
		"trusted_schema": "0", "checksum_verification": "1", "secure_delete": "1",
	}
	look := func(tx *db.Tx) error {
		for name, value := range want {
			var got string
			if err := tx.QueryRow(ctx, `PRAGMA `+name).Scan(&got); err != nil {
				return err
			}
			if got != value {
				t.Errorf("%s is %q, want %q", name, got, value)
			}
		}
		return nil
	}
	for range 2 {
		d := open(t, o)
		if err := d.Update(ctx, look); err != nil {
			t.Fatal(err)
		}
		var here, wg sync.WaitGroup
		here.Add(4) // all four readers at once
		for range 4 {
			wg.Go(func() {
				err := d.View(ctx, func(tx *db.Tx) error {
					here.Done()
					here.Wait()
					return look(tx)
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := d.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What is written cannot be found in the files.
func TestNothingReadableOnDisk(t *testing.T) {
	o := dbtest.SQLite(t)
	d := open(t, o)
	scratch(t, d)
	secretText := "a quite unmistakable plaintext"
	for i := range 50 {
		update(t, d, insertScratch, fmt.Sprint(secretText, i), bytes.Repeat([]byte(secretText), 200), i)
	}
	look := func() {
		t.Helper()
		entries, err := os.ReadDir(o.Dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			data, err := os.ReadFile(filepath.Join(o.Dir, e.Name()))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Contains(data, []byte(secretText)) || bytes.Contains(data, []byte("CREATE TABLE")) ||
				bytes.Contains(data, []byte("SQLite format")) {
				t.Errorf("%s can be read", e.Name())
			}
		}
	}
	look()
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	look()
}

func TestBadOptions(t *testing.T) {
	ctx := context.Background()
	for name, change := range map[string]func(*db.Options){
		"environment": func(o *db.Options) { o.Environment = "prod" },
		"short key":   func(o *db.Options) { o.Key = secret.New([]byte("short")) },
		"path":        func(o *db.Options) { o.File = "../x.db" },
		"no name":     func(o *db.Options) { o.File = "" },
		"url":         func(o *db.Options) { o.URL = "postgres://u:hunter2@host:notaport/db" },
	} {
		o := dbtest.SQLite(t)
		change(&o)
		d, err := db.Open(ctx, o)
		if err == nil {
			_ = d.Close()
			t.Errorf("%s was accepted", name)
		} else if bytes.Contains([]byte(err.Error()), []byte("hunter2")) {
			t.Errorf("the password is in %v", err)
		}
	}
}
