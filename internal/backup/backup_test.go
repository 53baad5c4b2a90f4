package backup

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
)

var operator = actor.OfSystem("cli:test")

// house is a database with keys, a trail, and two repositories for each part.
type house struct {
	db     *db.DB
	keys   *keyring.Keyring
	trail  *audit.Trail
	backup *Backup
	base   string
}

func newHouse(t testing.TB, d *db.DB) *house {
	t.Helper()
	h := &house{db: d, base: t.TempDir(), keys: keyringtest.Open(t, d)}
	h.trail = audit.New(d, h.keys, audit.Options{})
	h.backup = h.open(t)
	return h
}

func (h *house) open(t testing.TB) *Backup {
	t.Helper()
	var all []*Repository
	for _, o := range []RepositoryOptions{
		{Name: "near", Part: Data, Medium: "disk-1"}, {Name: "far", Part: Data, Medium: "disk-2"},
		{Name: "near-keys", Part: Keys, Medium: "disk-1"}, {Name: "far-keys", Part: Keys, Medium: "disk-2"},
	} {
		o.URL = "file://" + filepath.Join(h.base, o.Name)
		r, err := OpenRepository(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = r.Close() })
		all = append(all, r)
	}
	b, err := New(Options{DB: h.db, Keys: h.keys, Trail: h.trail, Repositories: all, Folder: filepath.Join(h.base, "memory"), Segment: 2048})
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// sources are both parts of a snapshot.
func (h *house) sources(t testing.TB, id string) []*source {
	t.Helper()
	all, err := h.backup.sources(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// other returns the options of an empty database of the other engine.
func other(t testing.TB, e db.Engine) db.Options {
	if e == db.SQLite {
		return db.Options{URL: dbtest.PostgresURL(t), Environment: "dev", Create: true}
	}
	return dbtest.SQLite(t)
}

func (h *house) fill(t testing.TB, from, to int, body string) {
	t.Helper()
	err := h.db.Update(t.Context(), func(tx *db.Tx) error {
		for i := from; i < to; i++ {
			_, err := tx.Exec(t.Context(), `
				INSERT INTO finding (kind, subject, detail, opened_at, seen_at, times) VALUES ($1, $2, $3, $4, $4, 1)
				ON CONFLICT (kind, subject) DO UPDATE SET detail = excluded.detail`, "test.row", fmt.Sprintf("%06d", i), body, i)
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestSnapshotRestoresIntoTheOtherEngine(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		canary := "canary of Ada Lovelace"
		h.fill(t, 0, 500, canary)
		s, err := h.backup.Run(t.Context(), operator)
		if err != nil || !s.Kept || len(s.Copies) != 4 {
			t.Fatalf("%+v, %v", s, err)
		}
		into := other(t, d.Engine())
		if err := restore(t.Context(), into, h.sources(t, s.ID), nil); err != nil {
			t.Fatal(err)
		}
		into.Create = false
		copied, err := db.Open(t.Context(), into)
		if err != nil {
			t.Fatal(err)
		}
		if copied.Installation() != d.Installation() {
			t.Errorf("the copy says it is %s, not %s", copied.Installation(), d.Installation())
		}
		if err := copied.Close(); err != nil {
			t.Error(err)
		}
		if err := restore(t.Context(), into, h.sources(t, s.ID), nil); !errors.Is(err, ErrOccupied) {
			t.Errorf("a restore over a database: %v", err)
		}
		err = filepath.WalkDir(h.base, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			content, err := os.ReadFile(path)
			if bytes.Contains(content, []byte(canary)) || bytes.Contains(content, []byte("test.row")) {
				t.Errorf("%s holds plaintext", path)
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
	})
}

func TestIncrementStoresWhatChanged(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		h.backup.o.Segment = 64 << 10
		h.fill(t, 0, 5000, strings.Repeat("x", 200))
		first, err := h.backup.Run(t.Context(), operator)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i < 5000; i += 100 { // one row in a hundred, all over the table
			h.fill(t, i, i+1, strings.Repeat("y", 200))
		}
		second, err := h.backup.Run(t.Context(), operator)
		if err != nil {
			t.Fatal(err)
		}
		for name, forget := range map[string]bool{"with its memory": false, "without": true} {
			if forget {
				if err := os.RemoveAll(filepath.Join(h.base, "memory")); err != nil {
					t.Fatal(err)
				}
				h.backup = h.open(t)
				h.backup.o.Segment = 64 << 10
			}
			third, err := h.backup.Run(t.Context(), operator)
			if err != nil {
				t.Fatal(err)
			}
			if third.NewBytes > 20_000 { // the run before is itself new, and its event
				t.Errorf("%s: %d bytes for no change", name, third.NewBytes)
			}
		}
		if second.NewBytes > first.NewBytes/2 {
			t.Errorf("1%% of the rows changed: %d new bytes after %d", second.NewBytes, first.NewBytes)
		}
		for _, s := range []Snapshot{first, second} {
			if err := restore(t.Context(), dbtest.SQLite(t), h.sources(t, s.ID), nil); err != nil {
				t.Errorf("%s: %v", s.ID, err)
			}
		}
	})
}

// Whatever happens to the rows between snapshots, each snapshot restores to what stood then.
func TestAnyHistoryRestores(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	key, err := newVaultKey(bytes.Repeat([]byte{7}, masterSize), "dev/ins_test", Data)
	if err != nil {
		t.Fatal(err)
	}
	r, err := OpenRepository(t.Context(), RepositoryOptions{Name: "near", Part: Data, URL: "file://" + t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	var table db.Table
	err = d.View(t.Context(), func(tx *db.Tx) error {
		tables, err := tx.Tables(t.Context())
		for _, x := range tables {
			if x.Name == "finding" {
				table = x
			}
		}
		return err
	})
	if err = errors.Join(err, r.look(t.Context())); err != nil {
		t.Fatal(err)
	}
	remembered := t.TempDir()
	edit := func(rt *rapid.T, tx *db.Tx) error {
		i := rapid.IntRange(0, 120).Draw(rt, "row")
		if rapid.IntRange(0, 3).Draw(rt, "kind") == 0 {
			_, err := tx.Exec(t.Context(), `DELETE FROM finding WHERE subject >= $1 AND subject < $2`,
				fmt.Sprintf("%03d", i), fmt.Sprintf("%03d", i+rapid.IntRange(1, 30).Draw(rt, "deleted")))
			return err
		}
		_, err := tx.Exec(t.Context(), `
			INSERT INTO finding (kind, subject, detail, opened_at, seen_at, times) VALUES ($1, $2, $3, $4, $4, 1)
			ON CONFLICT (kind, subject) DO UPDATE SET detail = excluded.detail`,
			"test.row", fmt.Sprintf("%03d", i), strings.Repeat("d", rapid.IntRange(0, 60).Draw(rt, "length")), i)
		return err
	}
	rapid.Check(t, func(rt *rapid.T) {
		if err := d.Clear(t.Context(), table); err != nil {
			rt.Fatal(err)
		}
		c := newCopier(key, []*Repository{r}, 400)
		if rapid.Bool().Draw(rt, "memory") {
			c.memory.folder = remembered
		}
		var before *Copied
		for range rapid.IntRange(1, 6).Draw(rt, "snapshots") {
			edits := rapid.IntRange(0, 40).Draw(rt, "edits")
			err := d.Update(t.Context(), func(tx *db.Tx) error {
				for range edits {
					if err := edit(rt, tx); err != nil {
						return err
					}
				}
				return nil
			})
			var copied Copied
			if err == nil {
				err = d.Snapshot(t.Context(), func(tx *db.Tx) (err error) {
					copied, _, err = c.copyTable(t.Context(), tx, table, before)
					return err
				})
			}
			c.settle()
			if err = errors.Join(err, c.err); err != nil || len(c.lost) > 0 {
				rt.Fatal(err, c.lost)
			}
			if rows, hash := rowsOf(rt, c, copied); rows != copied.Rows || hash != copied.Hash {
				rt.Fatalf("%d rows with %s restore to %d with %s", copied.Rows, copied.Hash, rows, hash)
			}
			before = &copied
		}
	})
}

// rowsOf counts and hashes the rows that the segments of a table restore to.
func rowsOf(rt *rapid.T, c *copier, t Copied) (int64, string) {
	type row struct {
		key     []db.Value
		content []byte
	}
	var all []row
	for _, s := range t.Segments {
		err := restoreSegment(context.Background(), c.key, &t.Table, s, c.open, func(content []byte) error {
			values, key := make([]db.Value, len(t.Columns)), make([]db.Value, len(t.Key))
			if err := readRow(content, values, t.Columns); err != nil {
				return err
			}
			for i, column := range t.Key {
				key[i] = values[column]
			}
			all = append(all, row{key, content})
			return nil
		})
		if err != nil {
			rt.Fatal(err)
		}
	}
	slices.SortFunc(all, func(a, b row) int { return compareKeys(a.key, b.key) })
	hash := sha256.New()
	for _, r := range all {
		hash.Write(binary.AppendUvarint(nil, uint64(len(r.content))))
		hash.Write(r.content)
	}
	return int64(len(all)), hex.EncodeToString(hash.Sum(nil))
}

// Flipping any byte of any stored object is noticed, and the other copy is used.
func TestDamageIsNoticed(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	h := newHouse(t, d)
	h.fill(t, 0, 100, "body")
	if _, err := h.backup.Run(t.Context(), operator); err != nil {
		t.Fatal(err)
	}
	near := filepath.Join(h.base, "near")
	damagedOnes := 0
	err := filepath.WalkDir(near, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || e.Name() == headerKey {
			return err
		}
		whole, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		for _, i := range []int{0, len(whole) / 2, len(whole) - 1} {
			damaged := bytes.Clone(whole)
			damaged[i] ^= 1
			if err := os.WriteFile(path, damaged, 0o600); err != nil {
				return err
			}
			key, reached, _, err := h.backup.key(t.Context(), Data, false)
			if err != nil {
				return err
			}
			read := func(repositories []*Repository) error {
				if strings.Contains(path, "manifests") {
					_, err := readManifest(context.Background(), key, repositories, e.Name(), h.keys.EvidenceVerifiers())
					return err
				}
				_, err := openObject(context.Background(), key, repositories, e.Name())
				return err
			}
			if err := read(reached[:1]); !errors.Is(err, ErrObject) {
				t.Errorf("%s, byte %d: %v", e.Name(), i, err)
			}
			if err := read(reached); err != nil {
				t.Errorf("%s: the other copy was not used: %v", e.Name(), err)
			}
			damagedOnes++
		}
		return os.WriteFile(path, whole, 0o600)
	})
	if err != nil {
		t.Fatal(err)
	}
	if damagedOnes < 12 {
		t.Errorf("only %d objects were damaged", damagedOnes)
	}
}
