package audit_test

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/audit/repository"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

const day = 24 * time.Hour

// archiveHouse is a house with an archive in a folder, in objects of up to 512 events.
type archiveHouse struct {
	*house
	clock   *shifted
	found   board
	folder  string
	options audit.ArchiveOptions
	archive *audit.Archive
	woken   func()
}

func newArchiveHouse(t *testing.T, d *db.DB) *archiveHouse {
	t.Helper()
	h := &archiveHouse{clock: &shifted{}, found: board{}, folder: filepath.Join(t.TempDir(), "archive")}
	h.house = newHouse(t, d, audit.Options{Clock: h.clock, Findings: h.found, Wake: func() {
		if h.woken != nil {
			h.woken()
		}
	}})
	r, err := repository.Open(repository.Options{URL: "file://" + h.folder})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	h.options = audit.ArchiveOptions{Repository: r, Online: 12 * day, Keep: 60 * day, Range: 512}
	h.archive = h.trail.OpenArchive(h.options)
	return h
}

func (h *archiveHouse) run() error {
	h.t.Helper()
	h.sequence()
	if err := h.trail.IndexAll(context.Background()); err != nil {
		h.t.Fatal(err)
	}
	return h.archive.Job().Run(context.Background())
}

func (h *archiveHouse) mustRun() {
	h.t.Helper()
	if err := h.run(); err != nil {
		h.t.Fatal(err)
	}
	h.sequence()
}

// objects returns the files of the archive.
func (h *archiveHouse) objects() (files []string) {
	h.t.Helper()
	err := filepath.WalkDir(h.folder, func(path string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			files = append(files, path)
		}
		return err
	})
	if err != nil {
		h.t.Fatal(err)
	}
	slices.Sort(files)
	return files
}

func (h *archiveHouse) verifyArchive() audit.Report {
	h.t.Helper()
	r, err := h.trail.VerifyArchive(context.Background(), operator, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

func (h *archiveHouse) export(q audit.ExportQuery) (all []audit.Entry) {
	h.t.Helper()
	if q.Reveal {
		q.Reason = "a test"
	}
	err := h.trail.Export(context.Background(), operator, q, func(page []audit.Entry) error {
		all = append(all, slices.Clone(page)...)
		return nil
	})
	if err != nil {
		h.t.Fatal(err)
	}
	return all
}

func TestArchiveMovesOldEventsAndProofsHold(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newArchiveHouse(t, d)
		ben := h.newCustomer()
		h.fill(600)
		h.sequence()
		first, hundredth := h.eventAt(0), h.eventAt(100)
		before := h.export(audit.ExportQuery{})

		h.mustRun()
		if len(h.objects()) != 0 {
			t.Fatal("young events were archived")
		}
		h.clock.by = 12*day + time.Hour
		h.mustRun() // 512 of them fill an object
		if n := h.count(`SELECT COALESCE(min(idx), -1) FROM event_leaf`); n != 512 || len(h.objects()) != 1 {
			t.Fatalf("the database begins at index %d, with %d objects", n, len(h.objects()))
		}
		if n := h.count(`SELECT count(*) FROM event_search WHERE idx < 512`); n != 0 {
			t.Errorf("%d rows of the search index are left", n)
		}
		if e := h.newest(audit.ActionArchive); !strings.HasPrefix(e.Resource, "events 0 to 511 sha256:") || e.Actor.Kind != actor.System {
			t.Errorf("%+v", e)
		}
		if r := h.holds(); r.Archived != 512 || r.ArchiveRead != 0 {
			t.Errorf("%+v", r)
		}
		if r := h.verifyArchive(); len(r.Findings) != 0 || r.Archived != 512 || r.ArchiveRead != 512 {
			t.Errorf("%+v", r)
		}
		for _, id := range []string{first, hundredth} {
			p, err := h.trail.Prove(t.Context(), operator, id)
			if err != nil {
				t.Fatal(err)
			}
			v, err := audit.NewVerifier(h.logKey())
			if err != nil {
				t.Fatal(err)
			}
			if said, err := p.Check(note.VerifierList(v)); err != nil || said.ID != id {
				t.Errorf("%+v %v", said, err)
			}
		}
		after := h.export(audit.ExportQuery{Reveal: true})
		for i, e := range before {
			if after[i].ID != e.ID || after[i].Index != int64(i) || after[i].Outcome != audit.Granted || after[i].Personal["address"] != address.String() {
				t.Fatalf("event %d was %+v and is %+v", i, e, after[i])
			}
		}
		if n := len(h.export(audit.ExportQuery{Customer: ben})); n != 0 {
			t.Errorf("%d events of another customer", n)
		}
		if n := len(h.export(audit.ExportQuery{Since: time.Now().Add(24 * time.Hour), Until: time.Now().Add(48 * time.Hour)})); n != 0 {
			t.Errorf("%d events of another time", n)
		}
		// A part of an object goes when the oldest has waited a twelfth longer.
		h.clock.by = 13*day + time.Hour
		h.mustRun()
		if n := h.count(`SELECT COALESCE(min(idx), -1) FROM event_leaf`); n != 512 {
			t.Errorf("less than a tile was archived: up to %d", n)
		}

		// An erasure reaches what is archived.
		h.erase(h.ada)
		for _, e := range h.export(audit.ExportQuery{Reveal: true, Customer: h.ada}) {
			if e.Personal["address"] != audit.Erased {
				t.Fatalf("%+v", e)
			}
		}
		if r := h.verifyArchive(); len(r.Findings) != 0 || r.Erased < 600 {
			t.Errorf("%+v", r)
		}

		// And in the end the object is deleted; the hashes stay.
		h.clock.by = 61 * day
		h.mustRun()
		if e := h.newest(audit.ActionArchiveRemove); !strings.HasPrefix(e.Resource, "events 0 to 511 sha256:") {
			t.Errorf("%+v", e)
		}
		for _, file := range h.objects() {
			if strings.Contains(file, "000000000000-000000000512") {
				t.Errorf("%s is left", file)
			}
		}
		if r := h.verifyArchive(); len(r.Findings) != 0 || r.Archived < 512 || r.ArchiveRead != r.Archived-512 {
			t.Errorf("%+v", r)
		}
		if _, err := h.trail.Prove(t.Context(), operator, first); err == nil {
			t.Error("an event that is gone was proved")
		}
		if len(h.found) != 0 {
			t.Errorf("%v", h.found)
		}
	})
}

// logKey returns the verifier key of the log.
func (h *house) logKey() string {
	h.t.Helper()
	keys, err := h.ring.CheckpointKeys(context.Background())
	if err != nil || len(keys) != 1 {
		h.t.Fatalf("%v %v", keys, err)
	}
	return keys[0]
}

func TestArchiveStandsStill(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newArchiveHouse(t, d)
		h.fill(600)
		h.sequence()
		h.clock.by = 13 * day

		// A legal hold.
		h.options.HoldUntil = h.clock.Now().Add(time.Hour)
		h.archive = h.trail.OpenArchive(h.options)
		if err := h.archive.Hold(t.Context(), operator, "case 12"); err != nil {
			t.Fatal(err)
		}
		if e := h.newest(audit.ActionArchiveHold); e.Personal["reason"] != "case 12" {
			t.Errorf("%+v", e)
		}
		h.mustRun()
		if n := len(h.objects()); n != 0 {
			t.Fatalf("%d objects in spite of the hold", n)
		}
		h.options.HoldUntil = time.Time{}

		// A sink that has not been sent them.
		h.exec(`INSERT INTO audit_sink (name, next, moved_at) VALUES ('siem', 100, 0)`)
		h.options.Sinks = []string{"siem"}
		h.archive = h.trail.OpenArchive(h.options)
		h.mustRun()
		if n := len(h.objects()); n != 0 {
			t.Fatalf("%d objects before the sink had them", n)
		}
		h.options.Sinks = nil
		h.archive = h.trail.OpenArchive(h.options)

		// An event that was altered, and one that is gone, are not tidied away.
		id := h.eventAt(7)
		h.exec(`UPDATE event SET outcome = 'denied' WHERE id = $1`, id)
		if err := h.run(); err == nil || len(h.objects()) != 0 || !strings.Contains(h.found[audit.FindingArchive+" archive"], "index 7") {
			t.Errorf("%v %v %v", err, h.objects(), h.found)
		}
		h.exec(`UPDATE event SET outcome = 'granted' WHERE id = $1`, id)
		h.mustRun()
		if len(h.found) != 0 || len(h.objects()) != 1 {
			t.Errorf("%v %v", h.found, h.objects())
		}
		h.holds()
	})
}

// What whoever reaches the repository or the database can do about archived events.
func TestArchiveTamperedWith(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newArchiveHouse(t, d)
		h.fill(1100)
		h.sequence()
		id := h.eventAt(600)
		h.clock.by = 13 * day
		h.mustRun()
		files := h.objects()
		if len(files) != 2 {
			t.Fatalf("%v", files)
		}
		whole, err := os.ReadFile(files[1])
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(whole, []byte("thing")) || bytes.Contains(whole, []byte(h.ada)) {
			t.Error("the object can be read by anybody")
		}
		other, err := os.ReadFile(files[0])
		if err != nil {
			t.Fatal(err)
		}
		flipped := bytes.Clone(whole)
		flipped[len(flipped)/2] ^= 1
		for what, content := range map[string][]byte{"flipped": flipped, "cut": whole[:len(whole)-1], "longer": append(bytes.Clone(whole), 0), "another": other, "empty": {}, "gone": nil} {
			if content == nil {
				err = os.Remove(files[1])
			} else {
				err = os.WriteFile(files[1], content, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			r := h.verifyArchive()
			wantFinding(t, r, audit.Altered, filepath.Base(files[1]))
			if len(r.Findings) != 1 || r.ArchiveRead != 512 {
				t.Errorf("%s: %+v", what, r)
			}
			if _, err := h.trail.Prove(t.Context(), operator, id); err == nil {
				t.Errorf("%s: proved", what)
			}
			if err := h.trail.Export(t.Context(), operator, audit.ExportQuery{}, func([]audit.Entry) error { return nil }); err == nil {
				t.Errorf("%s: exported", what)
			}
			h.holds() // by the hashes it does
		}
		if err := os.WriteFile(files[1], whole, 0o600); err != nil {
			t.Fatal(err)
		}

		// The row says something else, or is gone, or stands for events that were dropped.
		h.exec(`UPDATE audit_archive SET past = past + 256 WHERE first = 512`)
		wantFinding(t, h.verify(), audit.Altered, "row of audit_archive for the events from index 512")
		if err := h.run(); err == nil {
			t.Error("the job goes on")
		}
		h.exec(`UPDATE audit_archive SET past = past - 256 WHERE first = 512`)
		h.holds()
		h.exec(`UPDATE audit_archive SET removed_at = 1 WHERE first = 512`)
		wantFinding(t, h.verify(), audit.Altered, "row of audit_archive")
		h.exec(`UPDATE audit_archive SET removed_at = 0 WHERE first = 512`)
		h.exec(`DELETE FROM event WHERE id IN (SELECT event_id FROM event_leaf WHERE idx = 1030)`)
		h.exec(`DELETE FROM event_leaf WHERE idx = 1030`)
		h.exec(`INSERT INTO audit_archive SELECT 1024, 1280, name, hash, bytes, first_id, last_id, oldest, newest, announced, key_version, archived_at,
			removed_at, mac_version, mac FROM audit_archive WHERE first = 512`)
		r := h.verify()
		wantFinding(t, r, audit.Altered, "row of audit_archive for the events from index 1024")
		wantFinding(t, r, audit.Dropped, "index 1030")
		h.exec(`DELETE FROM audit_archive`)
		if r := h.verify(); !has(r, audit.Dropped) {
			t.Errorf("%+v", r)
		}
	})
}

// A run that ends in the middle, wherever that is, is taken up by the next: the events are in the database or
// in an object that was read back, and in the end there is one object of each.
func TestArchiveGoesOnAfterACrash(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newArchiveHouse(t, d)
		h.fill(1100)
		h.sequence()
		if err := h.trail.IndexAll(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.clock.by = 13 * day
		kept := h.options.Repository

		// After the object was read back, before it is recorded.
		ctx, cancel := context.WithCancel(t.Context())
		h.options.Repository = &dying{kept, cancel}
		if err := h.trail.OpenArchive(h.options).Job().Run(ctx); err == nil {
			t.Fatal("the run did not end")
		}
		if n := h.count(`SELECT min(idx) FROM event_leaf`); n != 0 || len(h.objects()) != 1 {
			t.Errorf("%d %v", n, h.objects())
		}
		h.options.Repository = kept
		h.archive = h.trail.OpenArchive(h.options)
		h.holds()

		// After it is recorded, before the events are deleted.
		if err := h.trail.Job().Run(t.Context()); err != nil { // so that the next event wakes
			t.Fatal(err)
		}
		ctx, h.woken = context.WithCancel(t.Context())
		if err := h.archive.Job().Run(ctx); err == nil {
			t.Fatal("the run did not end")
		}
		if n := h.count(`SELECT count(*) FROM audit_archive`); n != 1 {
			t.Fatalf("%d ranges", n)
		}
		if n := h.count(`SELECT min(idx) FROM event_leaf`); n >= 512 {
			t.Errorf("the database begins at index %d", n)
		}
		h.woken = nil
		h.holds()
		all := h.export(audit.ExportQuery{}) // what is in both places, once
		for i := range 1100 {
			if all[i].Index != int64(i) {
				t.Fatalf("event %d of the export has the index %d", i, all[i].Index)
			}
		}
		h.mustRun()
		h.mustRun()
		if n := h.count(`SELECT min(idx) FROM event_leaf`); n != 1024 || len(h.objects()) != 2 {
			t.Errorf("%d %v", n, h.objects())
		}
		if r := h.verifyArchive(); len(r.Findings) != 0 || r.ArchiveRead != 1024 {
			t.Errorf("%+v", r)
		}
	})
}

// dying is a repository whose process dies after it has read.
type dying struct {
	audit.Repository
	die func()
}

func (d *dying) Read(ctx context.Context, name string, limit int64) ([]byte, error) {
	defer d.die()
	return d.Repository.Read(ctx, name, limit)
}

// The versions of keys that only the archive needs are still needed.
func TestArchiveNeedsItsKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newArchiveHouse(t, d)
		h.fill(512)
		h.sequence()
		h.clock.by = 13 * day
		h.mustRun()
		h.update(func(tx *db.Tx) error {
			for c, want := range map[customer.ID]bool{h.ada: true, customer.NewID(): false} {
				if needed, err := h.trail.NeedsKey(t.Context(), tx, c, 1); err != nil || needed != want {
					t.Errorf("%s: %v %v", c, needed, err)
				}
			}
			for _, name := range []string{"event", "event-mac"} {
				if by, err := audit.KeyNeeded(t.Context(), tx, name, 1); err != nil || by == "" {
					t.Errorf("%s: %q %v", name, by, err)
				}
				if by, err := audit.KeyNeeded(t.Context(), tx, name, 2); err != nil || by != "" {
					t.Errorf("%s/2: %q %v", name, by, err)
				}
			}
			return nil
		})
	})
}
