package backup

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"strongroom/internal/check"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// The age of the newest snapshot is nothing, late and overdue in turn; a clock that jumps neither hides that one
// is missing nor keeps the next from being taken.
func TestCheckSchedule(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	at := clock.NewManual(time.Date(2026, 3, 2, 10, 0, 0, 0, time.UTC))
	b := h.with(t, func(o *Options) { o.Clock, o.Schedule = at, Schedule{Every: time.Hour} }, h.folder("near", Data), h.folder("keys", Keys))
	expect := func(when string, want check.Outcome, says string) {
		t.Helper()
		if seen := b.CheckSchedule(t.Context()); seen.Outcome != want || !strings.Contains(seen.Detail, says) {
			t.Errorf("%s: %s, %s", when, seen.Outcome, seen.Detail)
		}
	}
	expect("never", check.Fails, "No snapshot was ever taken")
	if err := b.whenDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect("at once", check.Holds, "")
	at.Advance(50 * time.Minute)
	expect("within the hour", check.Holds, "")
	at.Advance(40 * time.Minute)
	expect("after an hour and a half", check.Unknown, "late")
	at.Advance(2 * time.Hour)
	expect("after three and a half", check.Fails, "overdue")
	at.Advance(-10 * 365 * 24 * time.Hour)
	expect("with the clock set back", check.Fails, "none counts")
	if err := b.whenDue(t.Context()); err != nil {
		t.Fatal(err)
	}
	expect("with the clock set back, after the next", check.Holds, "")
	at.Advance(20 * 365 * 24 * time.Hour)
	expect("with the clock set ahead", check.Fails, "overdue")
	b.o.Repositories = nil
	expect("without repositories", check.Fails, "backup.repositories")
}

// A check of a server that has just begun waits for its first snapshot, and says so when it takes long.
func TestCheckWaitsForTheFirst(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	h.backup.o.Since, h.backup.o.Schedule = time.Now(), Schedule{Every: time.Hour}
	seen := make(chan check.Observation)
	go func() { seen <- h.backup.CheckSchedule(t.Context()) }()
	if _, err := h.backup.Take(t.Context(), system, Taking{Class: ClassDaily}); err != nil {
		t.Fatal(err)
	}
	if o := <-seen; o.Outcome != check.Holds {
		t.Errorf("%+v", o)
	}
	// What began before this server did not try is due.
	h.backup.o.Since = time.Now()
	due := func() (bool, time.Time, error) { return true, time.Now().Add(-time.Hour), nil }
	h.backup.o.Since = time.Now().Add(-2 * firstTry)
	if err := h.backup.await(t.Context(), due); err != nil {
		t.Errorf("after the first minute: %v", err)
	}
	if o := undecided("", errUnder); o.Outcome != check.Unknown || !strings.Contains(o.Detail, "under way") {
		t.Errorf("%+v", o)
	}
}

// Every check holds over whole copies on either engine, and sees what is wrong with others.
func TestChecksOfCopies(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		holder, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		b := h.backup
		b.o.Recovery, b.o.Regions = []age.Recipient{holder.Recipient()}, []string{"on-premises-eu"}
		b.o.Schedule = Schedule{Every: time.Hour}
		for _, r := range b.o.Repositories {
			r.Region = "on-premises-eu-es"
		}
		h.fill(t, 0, 200, "a plaintext that nobody is to see")
		for range 2 {
			if _, err := h.trail.Sequence(t.Context()); err != nil {
				t.Fatal(err)
			}
			if _, err := b.Run(t.Context(), operator); err != nil {
				t.Fatal(err)
			}
		}
		facts := Facts{Data: "/data", Engine: "x", Root: "the root"}
		all := map[string]func() check.Observation{
			"schedule": func() check.Observation { return b.CheckSchedule(t.Context()) },
			"media":    func() check.Observation { return b.CheckMedia(t.Context()) },
			"copies":   func() check.Observation { return b.CheckCopies(t.Context()) },
			"stored": func() check.Observation {
				return b.CheckStored(t.Context(), []byte("a plaintext that nobody is to see"))
			},
			"retention": func() check.Observation { return b.CheckRetention(t.Context()) },
			"history":   func() check.Observation { return b.CheckHistory(t.Context()) },
			"trail":     func() check.Observation { return b.CheckTrail(t.Context()) },
			"runbook":   func() check.Observation { return b.CheckRunbook(t.Context(), facts) },
		}
		if seen := all["media"](); seen.Outcome != check.Fails || !strings.Contains(seen.Detail, "backup.label") {
			t.Errorf("without a label: %+v", seen)
		}
		b.o.Label, b.o.Jurisdiction = "customers", "ES"
		last, err := b.Run(t.Context(), operator)
		if err != nil {
			t.Fatal(err)
		}
		for name, look := range all {
			if seen := look(); seen.Outcome != check.Holds {
				t.Errorf("%s: %+v", name, seen)
			}
		}
		sees := func(what, name string, want check.Outcome, says string) {
			t.Helper()
			if seen := all[name](); seen.Outcome != want || !strings.Contains(seen.Detail, says) {
				t.Errorf("%s: %+v", what, seen)
			}
		}
		b.o.Regions = []string{"eu-"}
		sees("a region that is not allowed", "media", check.Fails, "not allowed")
		b.o.Regions = []string{"on-premises-eu"}
		b.o.Media = 1
		sees("one medium", "media", check.Fails, "not separate")
		b.o.Media = 2
		far := filepath.Join(h.base, "far")
		if err := os.Rename(filepath.Join(far, "manifests", last.ID), filepath.Join(h.base, "away")); err != nil {
			t.Fatal(err)
		}
		sees("a manifest that is gone in one place", "media", check.Fails, "1 separate media")
		sees("a manifest that is gone in one place", "retention", check.Unknown, "fewer media")
		if err := os.Rename(filepath.Join(h.base, "away"), filepath.Join(far, "manifests", last.ID)); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(far, "objects", "note"), []byte("by the way: a plaintext that nobody is to see"), 0o600); err != nil {
			t.Fatal(err)
		}
		sees("plaintext among the objects", "stored", check.Fails, "the repository far")
		if err := os.Remove(filepath.Join(far, "objects", "note")); err != nil {
			t.Fatal(err)
		}
		other, err := age.GenerateX25519Identity()
		if err != nil {
			t.Fatal(err)
		}
		b.o.Recovery = []age.Recipient{other.Recipient()}
		sees("other recovery keys", "runbook", check.Fails, "not sealed to the recovery keys")
		if _, err := b.Run(t.Context(), operator); err != nil {
			t.Fatal(err)
		}
		sees("after the next run", "runbook", check.Holds, "")
		// A restored installation knows of no snapshot of its own.
		if err := d.Update(t.Context(), func(tx *db.Tx) error { return Leave(t.Context(), tx, time.Now()) }); err != nil {
			t.Fatal(err)
		}
		sees("after a restore", "schedule", check.Fails, "ever taken")
		sees("after a restore", "retention", check.Holds, "All 0")
		if due, err := b.drillDue(t.Context()); due || err != nil {
			t.Errorf("a drill without a snapshot is due: %v", err)
		}
	})
}

// A certificate counts only while it says what happened.
func TestCheckDrill(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	at := clock.NewManual(time.Now())
	b := h.backup
	b.o.Clock, b.o.Schedule = at, Schedule{Every: time.Hour, DrillEvery: 24 * time.Hour}
	expect := func(when string, want check.Outcome, says string) {
		t.Helper()
		if seen := b.CheckDrill(t.Context()); seen.Outcome != want || !strings.Contains(seen.Detail, says) {
			t.Errorf("%s: %s, %s", when, seen.Outcome, seen.Detail)
		}
	}
	expect("never", check.Fails, "None was ever held")
	if _, err := b.Run(t.Context(), operator); err != nil {
		t.Fatal(err)
	}
	if due, err := b.drillDue(t.Context()); !due || err != nil {
		t.Fatalf("the first drill: %v, %v", due, err)
	}
	good := h.drilled(t)
	expect("just held", check.Holds, good.Snapshot)
	if due, err := b.drillDue(t.Context()); due || err != nil {
		t.Errorf("the next drill is due at once: %v", err)
	}
	at.Advance(24*time.Hour + 20*time.Minute)
	expect("late", check.Unknown, "late")
	if due, err := b.drillDue(t.Context()); !due || err != nil {
		t.Errorf("a day later no drill is due: %v", err)
	}
	at.Advance(30 * time.Hour)
	expect("overdue", check.Fails, "one is due every")
	at.Advance(-54*time.Hour - 20*time.Minute)
	for what, alter := range map[string]func(d *Drill){
		"no figures":    func(d *Drill) { d.RTO *= 2 },
		"rows":          func(d *Drill) { d.Rows++ },
		"snapshot":      func(d *Drill) { d.Snapshot = "snap_20260101t000000_aaaaaa" },
		"signature":     func(d *Drill) { d.Certificate = strings.Replace(d.Certificate, `"sig":"`, `"sig":"AA`, 1) },
		"payload":       func(d *Drill) { d.Certificate = strings.Replace(d.Certificate, `"payload":"`, `"payload":"AAAA`, 1) },
		"key":           func(d *Drill) { d.Certificate = strings.Replace(d.Certificate, `evidence+`, `evidence+1`, 1) },
		"nothing at it": func(d *Drill) { d.Certificate = "{}" },
	} {
		altered := good
		alter(&altered)
		if err := b.checkCertificate(t.Context(), &altered); err == nil {
			t.Errorf("%s: an altered certificate holds", what)
		}
	}
	if err := b.checkCertificate(t.Context(), &good); err != nil {
		t.Error(err)
	}
}

// drilled holds a drill that passes.
func (h *house) drilled(t *testing.T) Drill {
	t.Helper()
	o := dbtest.SQLite(t)
	d, err := h.backup.Drill(t.Context(), operator, Scratch{Options: o, Drop: noDrop,
		Probe: func(_ context.Context, served func()) (Probed, error) { served(); return Probed{Events: 1}, nil }}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func noDrop(context.Context) error { return nil }
