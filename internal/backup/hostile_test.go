package backup

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"strongroom/internal/check"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

var keyFolders = []string{"near-keys", "far-keys"}

// Data that are newer than every copy of the keys are not restored, and the snapshot before them is.
func TestKeysOlderThanTheDataAreRefused(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	h.backup.o.Regions, h.backup.o.Label, h.backup.o.Jurisdiction = []string{"eu-"}, "label", "ES"
	for _, r := range h.backup.o.Repositories {
		r.Region = "eu-here"
	}
	first, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	h.newCustomer(t)
	second, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	for _, folder := range keyFolders {
		if err := os.Remove(filepath.Join(h.base, folder, "manifests", second.ID)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.backup.sources(t.Context(), second.ID); !problem.Is(err, "backup-keys-older") || !strings.Contains(err.Error(), first.ID) {
		t.Errorf("%v", err)
	}
	parts, err := h.backup.current(t.Context(), operator, "")
	if err != nil || parts[0].manifest.ID != first.ID || !slices.Equal(newPlan(parts).Passed, []string{second.ID}) {
		t.Errorf("%v", err)
	}
	if o := h.backup.CheckMedia(t.Context()); o.Outcome != check.Fails || !strings.Contains(o.Detail, first.ID) {
		t.Errorf("%+v", o)
	}
	if part, stored, was, err := h.backup.rolledBack(t.Context()); part != Keys || stored != first.ID || was != second.ID || err != nil {
		t.Errorf("%s, %s, %s, %v", part, stored, was, err)
	}
}

// Whoever holds the repositories of the keys puts back how they were before an erasure: no restore takes them.
func TestOlderKeysBringNobodyBack(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		c := h.newCustomer(t)
		if _, err := h.backup.Run(t.Context(), operator); err != nil {
			t.Fatal(err)
		}
		for _, folder := range keyFolders {
			if err := os.CopyFS(filepath.Join(h.base, "old-"+folder), os.DirFS(filepath.Join(h.base, folder))); err != nil {
				t.Fatal(err)
			}
		}
		// A restore does not wait for the job that takes an erasure to the copies.
		h.erase(t, c)
		parts, err := h.backup.current(t.Context(), operator, "")
		if err != nil || tombstones(parts[1].manifest) != 1 || h.wrappedIn(t, c) {
			t.Fatalf("the erasure is not in the copy that is restored: %v", err)
		}
		if part, _, _, err := h.backup.rolledBack(t.Context()); part != "" || err != nil {
			t.Errorf("%s, %v", part, err)
		}
		for _, folder := range keyFolders {
			now := filepath.Join(h.base, folder)
			if err := errors.Join(os.RemoveAll(now), os.Rename(filepath.Join(h.base, "old-"+folder), now)); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := h.backup.current(t.Context(), operator, ""); !problem.Is(err, "backup-keys-older") {
			t.Errorf("the erased customer's key came back: %v", err)
		}
		if part, _, _, err := h.backup.rolledBack(t.Context()); part != Keys || err != nil {
			t.Errorf("nobody notices: %q, %v", part, err)
		}
		if _, err := h.backup.Run(t.Context(), operator); err != nil {
			t.Fatal(err)
		}
		if _, err := h.backup.current(t.Context(), operator, ""); err != nil || h.wrappedIn(t, c) {
			t.Errorf("after another run: %v", err)
		}
	})
}

// What a manifest says of tables does not become a statement unless the database has such tables.
func TestHostileTables(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		s, err := h.backup.Run(t.Context(), operator)
		if err != nil {
			t.Fatal(err)
		}
		into := other(t, d.Engine())
		for name, alter := range map[string]func(tables []Copied) []Copied{
			"a statement for a name": func(all []Copied) []Copied {
				all[3].Name += `"; DROP TABLE "finding`
				return all
			},
			"a key that is no column": func(all []Copied) []Copied { all[3].Key = []int{99}; return all },
			"another column": func(all []Copied) []Copied {
				all[3].Columns = append(slices.Clone(all[3].Columns), db.Column{Name: "more", Type: db.TextColumn})
				return all
			},
			"a table twice":   func(all []Copied) []Copied { return append(all, all[3]) },
			"a table is left": func(all []Copied) []Copied { return slices.Delete(all, 3, 4) },
			"what notes the restore": func(all []Copied) []Copied {
				return append(all, Copied{Table: db.Table{Name: restoringTable, Columns: []db.Column{{Name: "detail", Type: db.TextColumn}, {Name: "name", Type: db.TextColumn}}, Key: []int{1}}})
			},
		} {
			parts := h.sources(t, s.ID)
			m := *parts[0].manifest
			m.Tables = alter(slices.Clone(m.Tables))
			parts[0].manifest = &m
			if err := restoreInto(t.Context(), into, parts, Into{Replace: true}); !errors.Is(err, ErrShape) {
				t.Errorf("%s: %v", name, err)
			}
		}
		if err := restoreInto(t.Context(), into, h.sources(t, s.ID), Into{}); err != nil {
			t.Error(err)
		}
	})
}

// Names that somebody puts beside the manifests of one repository push nothing out of the retention, date nothing
// ahead, and do not stand for the newest snapshot.
func TestPlantedManifests(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	first, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	h.fill(t, 0, 10, "body")
	second, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 40 {
		at := time.Date(9990, 1, 1, 0, 0, 0, 0, time.UTC).AddDate(i/4, i, i).Add(time.Duration(i) * time.Hour)
		for _, folder := range []string{"far", "far-keys"} {
			if err := os.WriteFile(filepath.Join(h.base, folder, "manifests", fmt.Sprintf("snap_%s_zzzz%02d", min(at.Format(idTime), "99991231t235959"), i)), []byte("junk"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	h.backup.o.Retention = Retention{Hourly: 2, Daily: 1, Keys: time.Nanosecond}
	held := h.backup.CheckRetention(t.Context())
	if held.Outcome != check.Holds {
		t.Errorf("%+v", held)
	}
	if _, err := h.backup.Prune(t.Context(), operator); !problem.Is(err, "backup-prune-failed") {
		t.Errorf("%v", err)
	}
	if _, err := h.backup.sources(t.Context(), first.ID); err != nil {
		t.Errorf("the first is gone: %v", err)
	}
	if parts := h.sources(t, ""); parts[0].manifest.ID != second.ID || parts[1].manifest.ID != second.ID {
		t.Errorf("%s with the keys of %s is the newest", parts[0].manifest.ID, parts[1].manifest.ID)
	}
	for _, folder := range []string{"near", "far"} { // what is gone is missed, whatever lies there instead
		if err := os.Rename(filepath.Join(h.base, folder, "manifests", first.ID), filepath.Join(h.base, folder+".away")); err != nil {
			t.Fatal(err)
		}
	}
	if o := h.backup.CheckRetention(t.Context()); o.Outcome != check.Fails || !strings.Contains(o.Detail, first.ID) {
		t.Errorf("%+v", o)
	}
	third, err := h.backup.Run(t.Context(), operator)
	if err != nil || third.ID <= second.ID || timeOf(third.ID).Year() > 9000 {
		t.Errorf("%s after %s, %v", third.ID, second.ID, err)
	}
}

// The one file of a repository that is not encrypted is altered: the other repository serves, and what was sealed to
// the recovery keys is seen to be another, and sealed again.
func TestAlteredHeader(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	holder, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	h.backup.o.Recovery = []age.Recipient{holder.Recipient()}
	h.backup.o.Media = 1
	s, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	alter := func(folder string, change func(*header)) {
		t.Helper()
		path := filepath.Join(h.base, folder, headerKey)
		text, err := os.ReadFile(path)
		h := new(header)
		if err == nil {
			err = json.Unmarshal(text, h)
		}
		if err == nil {
			change(h)
			text, err = json.Marshal(h)
		}
		if err = errors.Join(err, os.WriteFile(path, text, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	facts := Facts{Data: "/data", Engine: "sqlite", Root: "the root key"}
	if o := h.backup.CheckRunbook(t.Context(), facts); o.Outcome != check.Holds {
		t.Fatalf("%+v", o)
	}
	// The digest of the recipients stays what it was.
	stranger := newMaster()
	sealed, err := sealToRecovery(stranger, h.backup.o.Recovery)
	if err != nil {
		t.Fatal(err)
	}
	alter("far-keys", func(h *header) { h.Recovery = sealed })
	if o := h.backup.CheckRunbook(t.Context(), facts); o.Outcome != check.Fails || !strings.Contains(o.Detail, "far-keys") {
		t.Errorf("%+v", o)
	}
	if _, err := h.backup.Run(t.Context(), operator); err != nil {
		t.Fatal(err)
	}
	if o := h.backup.CheckRunbook(t.Context(), facts); o.Outcome != check.Holds {
		t.Errorf("%+v", o)
	}
	if _, err := PlanRecovery(t.Context(), []*Repository{h.backup.o.Repositories[0], h.backup.o.Repositories[3]}, []age.Identity{holder}, ""); err != nil {
		t.Error(err)
	}

	alter("near", func(h *header) { h.Server[len(h.Server)-1] ^= 1 })
	if _, err := h.backup.sources(t.Context(), s.ID); err != nil {
		t.Errorf("the other repository has it: %v", err)
	}
	again, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Error(err)
	}
	if !slices.ContainsFunc(again.Copies, func(c Copy) bool { return c.Repository == "near" && strings.Contains(c.Error, "does not open") }) {
		t.Errorf("%+v", again.Copies)
	}
	alter("far", func(h *header) { h.Server = bytes.Repeat([]byte{1}, len(h.Server)) })
	if _, err := h.backup.Run(t.Context(), operator); !problem.Is(err, "backup-failed") {
		t.Errorf("with no repository whose key opens: %v", err)
	}
}

// A restore of the trail that was cut off when its rows were there is not taken for one of everything.
func TestTheTrailAloneIsNotTheWhole(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	h.fill(t, 0, 20, "body")
	s, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	into := dbtest.SQLite(t)
	cut := errors.New("cut off")
	some := Into{Only: func(table string) bool { return table != "finding" }, Finish: func(context.Context) error { return cut }}
	if err := restoreInto(t.Context(), into, h.sources(t, s.ID), some); !errors.Is(err, cut) {
		t.Fatal(err)
	}
	count := func() (n int64) {
		t.Helper()
		o := into
		o.Create = false
		d, err := db.Open(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		err = d.View(t.Context(), func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT COUNT(*) FROM finding WHERE kind = $1`, "test.row").Scan(&n)
		})
		if err = errors.Join(err, d.Close()); err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := count(); n != 0 {
		t.Fatalf("%d rows", n)
	}
	if err := restoreInto(t.Context(), into, h.sources(t, s.ID), Into{}); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 20 {
		t.Errorf("%d rows of 20 were restored", n)
	}
	// Nor does it leave what is there in the tables that it does not restore.
	some.Replace = true
	if err := restoreInto(t.Context(), into, h.sources(t, s.ID), some); !errors.Is(err, ErrOccupied) {
		t.Errorf("over another database: %v", err)
	}
}

// A restore that goes on leaves the schema as it was copied until the rows are there.
func TestRestoreGoesOnWithItsSchema(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	s, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	parts := h.sources(t, s.ID)
	m := *parts[0].manifest
	m.Schema = 28
	parts[0].manifest = &m
	into := dbtest.SQLite(t)
	for range 2 { // the second finds what the first has made
		if err := restoreInto(t.Context(), into, parts, Into{}); !errors.Is(err, ErrShape) {
			t.Fatal(err) // the tables are those of today
		}
	}
	into.Create, into.Schema = false, m.Schema
	d, err := db.Open(t.Context(), into)
	if err != nil {
		t.Fatal(err)
	}
	var version int64
	err = d.View(t.Context(), func(tx *db.Tx) (err error) {
		version, err = tx.SchemaVersion(t.Context())
		return err
	})
	if err = errors.Join(err, d.Close()); err != nil || version != m.Schema {
		t.Errorf("the schema is %d, %v", version, err)
	}
}

// What is far too long to be ours is not read.
func TestHugeObject(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	s, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{headerKey, manifestPrefix + s.ID} {
		if err := os.Truncate(filepath.Join(h.base, "near", filepath.FromSlash(key)), 1<<30); err != nil {
			t.Fatal(err)
		}
		if _, err := h.backup.o.Repositories[0].get(t.Context(), key); !errors.Is(err, ErrObject) {
			t.Errorf("%s: %v", key, err)
		}
	}
	if _, err := h.backup.sources(t.Context(), s.ID); err != nil {
		t.Errorf("the other repository has it: %v", err)
	}
}
