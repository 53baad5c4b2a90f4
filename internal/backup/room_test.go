package backup

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"filippo.io/age"
	testresult "github.com/in-toto/attestation/go/predicates/test_result/v0"
	intoto "github.com/in-toto/attestation/go/v1"
	"github.com/secure-systems-lab/go-securesystemslib/dsse"
	"golang.org/x/mod/sumdb/note"
	"google.golang.org/protobuf/encoding/protojson"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

func (h *house) newCustomer(t testing.TB) customer.ID {
	t.Helper()
	c := customer.NewID()
	if err := h.db.Update(t.Context(), func(tx *db.Tx) error {
		_, err := h.keys.CreateCustomer(t.Context(), tx, operator, c)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return c
}

func (h *house) erase(t testing.TB, c customer.ID) {
	t.Helper()
	if err := h.db.Update(t.Context(), func(tx *db.Tx) error {
		_, err := h.keys.DestroyCustomer(t.Context(), tx, operator, c)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// wrappedIn reports whether any object in the keys' repositories holds the wrapped key of c.
func (h *house) wrappedIn(t testing.TB, c customer.ID) bool {
	t.Helper()
	key, reached, _, err := h.backup.key(t.Context(), Keys, false)
	if err != nil {
		t.Fatal(err)
	}
	found := false
	objects := 0
	for _, r := range reached {
		err := filepath.WalkDir(filepath.Join(r.folder, "objects"), func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() {
				return err
			}
			stored, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			plaintext, err := key.open(e.Name(), stored, true)
			objects++
			if bytes.Contains(plaintext, []byte(c)) && !bytes.Contains(plaintext, []byte("tombstone of "+string(c))) {
				// A tombstone names the customer too; a key stands with its state.
				for rest := plaintext; len(rest) > 0; {
					row, after, err := nextRow(rest)
					if err != nil {
						return nil // a pack of changes: the name is enough
					}
					found = found || bytes.Contains(row, []byte(c)) && bytes.Contains(row, []byte("active"))
					rest = after
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if objects == 0 {
		t.Fatal("there are no objects")
	}
	return found
}

// An erasure reaches every copy of the keys: no object that is left holds the key of who was erased.
func TestErasureReachesTheCopies(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		var people []customer.ID
		for range 12 {
			people = append(people, h.newCustomer(t))
		}
		for range 2 {
			if _, err := h.backup.Run(t.Context(), operator); err != nil {
				t.Fatal(err)
			}
		}
		if !h.wrappedIn(t, people[3]) {
			t.Fatal("the copies do not hold the keys at all")
		}
		if err := h.backup.RefreshKeys(t.Context(), operator); err != nil {
			t.Fatal(err)
		}
		if n := h.manifestsOf(t, "near-keys"); n != 2 {
			t.Errorf("%d copies of the keys are kept, without an erasure", n)
		}
		h.erase(t, people[3])
		if err := h.backup.RefreshKeys(t.Context(), operator); err != nil {
			t.Fatal(err)
		}
		if h.wrappedIn(t, people[3]) {
			t.Error("a copy holds the key of who was erased")
		}
		if !h.wrappedIn(t, people[4]) {
			t.Error("the key of somebody else is gone")
		}
		for _, name := range []string{"near-keys", "far-keys"} {
			if n := h.manifestsOf(t, name); n != 1 {
				t.Errorf("%s keeps %d copies of the keys after an erasure", name, n)
			}
		}
		for range 3 {
			if _, err := h.backup.Run(t.Context(), operator); err != nil {
				t.Fatal(err)
			}
		}
		if n := h.manifestsOf(t, "far-keys"); n != keptKeys {
			t.Errorf("%d copies of the keys are kept", n)
		}
		if n := h.manifestsOf(t, "far"); n != 5 {
			t.Errorf("%d copies of the data are kept", n)
		}
	})
}

func (h *house) manifestsOf(t testing.TB, repository string) int {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(h.base, repository, "manifests"))
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}

// A repository that does not answer leaves a snapshot that does not count, and the next one mends it.
func TestIncompleteCopies(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	h.fill(t, 0, 50, "body")
	told := &findings{open: map[string]string{}}
	h.backup.o.Findings = told
	if _, err := h.backup.Run(t.Context(), operator); err != nil {
		t.Fatal(err)
	}
	far := filepath.Join(h.base, "far")
	if err := errors.Join(os.Rename(far, far+".away"), os.WriteFile(far, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	h.fill(t, 50, 60, "body")
	s, err := h.backup.Run(t.Context(), operator)
	if !problem.Is(err, "backup-incomplete") || !strings.Contains(err.Error(), "far") || s.Kept || told.open[FindingIncomplete] == "" {
		t.Errorf("%+v, %v, %v", s, err, told.open)
	}
	if err := errors.Join(os.Remove(far), os.Rename(far+".away", far)); err != nil {
		t.Fatal(err)
	}
	if s, err = h.backup.Run(t.Context(), operator); err != nil || !s.Kept || len(told.open) != 0 {
		t.Errorf("%+v, %v, %v", s, err, told.open)
	}
	v, err := h.backup.Verify(t.Context(), operator, "", true, nil)
	if err != nil || len(v.Faults) != 0 || v.Objects == 0 {
		t.Errorf("%+v, %v", v, err)
	}
	// Damage in one repository is named, and mended from another.
	var victim string
	if err := filepath.WalkDir(filepath.Join(far, "objects"), func(path string, e fs.DirEntry, err error) error {
		if err == nil && !e.IsDir() {
			victim = path
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(victim, 10); err != nil {
		t.Fatal(err)
	}
	if v, err = h.backup.Verify(t.Context(), operator, "", true, nil); err != nil || len(v.Faults) != 1 || !v.Faults[0].Mended || v.Faults[0].Object != filepath.Base(victim) {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := h.backup.Run(t.Context(), actor.Actor{Kind: actor.Anonymous}); !problem.Is(err, "backup-forbidden") {
		t.Errorf("anybody may back up: %v", err)
	}
}

type findings struct{ open map[string]string }

func (f *findings) Raise(_ context.Context, kind, subject, detail string) error {
	f.open[kind+subject] = detail
	return nil
}

func (f *findings) Clear(_ context.Context, kind, subject string) error {
	delete(f.open, kind+subject)
	return nil
}

// What a snapshot needs cannot be destroyed: KEKs for as long as the keys are kept, all else until it is pruned.
func TestNeeded(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		needed := func(name string, version uint32) (by string) {
			t.Helper()
			if err := d.View(t.Context(), func(tx *db.Tx) (err error) {
				by, err = Needed(t.Context(), tx, name, version)
				return err
			}); err != nil {
				t.Fatal(err)
			}
			return by
		}
		if by := needed("kek", 1); by != "" {
			t.Errorf("without a backup, by %s", by)
		}
		s, err := h.backup.Run(t.Context(), operator)
		if err != nil {
			t.Fatal(err)
		}
		for _, key := range []string{"kek", "event", "backup", "token"} {
			if by := needed(key, 1); by != "the backup "+s.ID {
				t.Errorf("%s is needed by %q", key, by)
			}
		}
		if by := needed("kek", 2); by != "" {
			t.Errorf("a KEK that there is not is needed by %s", by)
		}
		if err := d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `UPDATE backup_run SET pruned_at = $1 WHERE id = $2`, 1, s.ID)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		if by := needed("event", 1); by != "" {
			t.Errorf("after it was pruned, by %s", by)
		}
	})
}

// With nothing but the repositories and the recovery key, the database comes back.
func TestRecoveryPlan(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	holder, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	h.backup.o.Recovery = []age.Recipient{holder.Recipient()}
	h.backup.o.Files = func() (map[string][]byte, error) { return map[string][]byte{"a": []byte("b")}, nil }
	h.fill(t, 0, 20, "body")
	first, err := h.backup.Run(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.backup.Run(t.Context(), operator); err != nil {
		t.Fatal(err)
	}
	stranger, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := PlanRecovery(t.Context(), h.backup.o.Repositories, []age.Identity{stranger}, ""); err == nil {
		t.Error("a stranger's key opened the repositories")
	}
	if _, err := PlanRecovery(t.Context(), h.backup.o.Repositories[:1], []age.Identity{holder}, ""); !errors.Is(err, errNoKeys) {
		t.Errorf("without the keys: %v", err)
	}
	plan, err := PlanRecovery(t.Context(), h.backup.o.Repositories, []age.Identity{holder}, first.ID)
	if err != nil {
		t.Fatal(err)
	}
	if plan.Snapshot != first.ID || plan.KEKs == nil || string(plan.Files["a"]) != "b" || !plan.KeysTaken.After(plan.Taken) {
		t.Errorf("%+v", plan)
	}
	if _, err := plan.Restore(t.Context(), dbtest.SQLite(t), Into{}); err != nil {
		t.Error(err)
	}
	// Who made the copies is told by their signature, against keys that somebody brings.
	listed, err := h.keys.EvidenceKeys(t.Context())
	if err != nil || len(listed) != 1 {
		t.Fatalf("%v, %v", listed, err)
	}
	ours, err := note.NewVerifier(listed[0])
	if err != nil {
		t.Fatal(err)
	}
	_, encoded, err := note.GenerateKey(rand.Reader, ours.Name())
	if err != nil {
		t.Fatal(err)
	}
	theirs, err := note.NewVerifier(encoded)
	if err != nil {
		t.Fatal(err)
	}
	if key, err := plan.Signed(note.VerifierList(theirs, ours)); err != nil || !strings.HasPrefix(listed[0], key+"+") {
		t.Errorf("%s, %v", key, err)
	}
	if _, err := plan.Signed(note.VerifierList(theirs)); !errors.Is(err, ErrSigner) || !strings.Contains(err.Error(), fmt.Sprintf("%08x", ours.KeyHash())) {
		t.Errorf("signed by another key: %v", err)
	}
	plan.sources[1].manifest.statement += "x"
	if _, err := plan.Signed(note.VerifierList(ours)); !errors.Is(err, ErrSigner) {
		t.Errorf("a signature over another manifest: %v", err)
	}
	// The KEKs are exported once, and again only when they or the recipients change.
	if p2, err := PlanRecovery(t.Context(), h.backup.o.Repositories, []age.Identity{holder}, ""); err != nil || !bytes.Equal(p2.KEKs, plan.KEKs) {
		t.Errorf("the KEKs were sealed again: %v", err)
	}
	h.backup.o.Recovery = append(h.backup.o.Recovery, stranger.Recipient())
	if _, err := h.backup.Run(t.Context(), operator); err != nil {
		t.Fatal(err)
	}
	for _, who := range []age.Identity{holder, stranger} { // who is named later opens the repositories too
		if p2, err := PlanRecovery(t.Context(), h.backup.o.Repositories, []age.Identity{who}, ""); err != nil || bytes.Equal(p2.KEKs, plan.KEKs) {
			t.Errorf("the KEKs were not sealed to the new holder: %v", err)
		}
	}
}

// A restore that was cut off anywhere goes on when it is asked for again, and serves nobody before.
func TestRestoreGoesOn(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		h.fill(t, 0, 200, strings.Repeat("b", 100))
		s, err := h.backup.Run(t.Context(), operator)
		if err != nil {
			t.Fatal(err)
		}
		total := int64(0)
		for _, part := range h.sources(t, s.ID) {
			total += part.manifest.Rows
		}
		into := other(t, d.Engine())
		unindexed := int64(1)
		if into.URL != "" {
			unindexed = 100 // one table will do, as each has the index of its key
		}
		cut := errors.New("cut off")
		cuts := 0
		for at := int64(1); at <= total+90; at += 90 {
			ctx, cancel := context.WithCancelCause(t.Context())
			err := restoreInto(ctx, into, h.sources(t, s.ID), Into{unindexed: unindexed, Progress: func(done, _ int64) {
				if done >= at {
					cancel(cut)
				}
			}, Finish: func(ctx context.Context) error {
				if at <= total {
					return cut
				}
				return ctx.Err()
			}})
			cancel(nil)
			if err != nil {
				cuts++
				o := into
				o.Create = false
				half, err := db.Open(t.Context(), o)
				if err != nil {
					t.Fatal(err)
				}
				unfinished, err := Unfinished(t.Context(), half)
				if err = errors.Join(err, half.Close()); err != nil || !unfinished {
					t.Fatalf("cut off at %d: unfinished %v, %v", at, unfinished, err)
				}
			}
		}
		if cuts < 3 {
			t.Errorf("only %d restores were cut off", cuts)
		}
		if err := restoreInto(t.Context(), into, h.sources(t, s.ID), Into{unindexed: unindexed}); err != nil && !errors.Is(err, ErrOccupied) {
			t.Fatal(err)
		}
		fresh := other(t, d.Engine())
		if want, got := schemaOf(t, fresh), schemaOf(t, into); len(want) < 50 || !slices.Equal(want, got) {
			t.Errorf("the restored schema is\n%s\nnot\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
		// Another snapshot begins anew, over the half of this one.
		again := other(t, d.Engine())
		if err := restoreInto(t.Context(), again, h.sources(t, s.ID), Into{unindexed: unindexed, Finish: func(context.Context) error { return cut }}); !errors.Is(err, cut) {
			t.Fatal(err)
		}
		h.fill(t, 200, 220, "later")
		later, err := h.backup.Run(t.Context(), operator)
		if err != nil {
			t.Fatal(err)
		}
		if err := restoreInto(t.Context(), again, h.sources(t, later.ID), Into{unindexed: unindexed}); err != nil {
			t.Error(err)
		}
		if err := restoreInto(t.Context(), again, h.sources(t, s.ID), Into{unindexed: unindexed, Replace: true}); err != nil {
			t.Errorf("replaced: %v", err)
		}
		// Also when it was cut off while a table had no indexes.
		half := other(t, d.Engine())
		ctx, cancel := context.WithCancelCause(t.Context())
		defer cancel(nil)
		if err := restoreInto(ctx, half, h.sources(t, s.ID), Into{unindexed: unindexed, Progress: func(done, _ int64) {
			if done >= 200 {
				cancel(cut)
			}
		}}); err == nil {
			t.Error("the restore was not cut off")
		}
		// With PostgreSQL each table has an index, that of its key.
		if want, got := schemaOf(t, fresh), schemaOf(t, half); half.URL != "" && slices.Equal(want, got) {
			t.Error("no index was dropped while the restore was cut off")
		}
		if err := restoreInto(t.Context(), half, h.sources(t, later.ID), Into{unindexed: unindexed}); err != nil {
			t.Error(err)
		}
		if want, got := schemaOf(t, fresh), schemaOf(t, half); !slices.Equal(want, got) {
			t.Errorf("the restored schema is\n%s\nnot\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	})
}

// schemaOf returns what a database says of its tables, indexes and keys.
func schemaOf(t testing.TB, o db.Options) (all []string) {
	t.Helper()
	d, err := db.Open(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	query := `SELECT name || ': ' || sql FROM sqlite_schema WHERE sql IS NOT NULL AND name NOT LIKE $1 ORDER BY 1`
	if d.Engine() == db.PostgreSQL {
		query = `
			SELECT i.tablename || ': ' || i.indexdef FROM pg_indexes i WHERE i.schemaname = current_schema() AND i.tablename NOT LIKE $1
			UNION ALL SELECT conrelid::regclass || ': ' || conname || ' ' || pg_get_constraintdef(oid) FROM pg_constraint
			WHERE connamespace = current_schema()::regnamespace ORDER BY 1`
	}
	err = d.View(t.Context(), func(tx *db.Tx) error {
		return tx.Each(t.Context(), query, func(row []db.Value) error {
			all = append(all, string(row[0].Bytes))
			return nil
		}, "sqlite%")
	})
	if err = errors.Join(err, d.Close()); err != nil {
		t.Fatal(err)
	}
	return all
}

// A drill's certificate verifies with another implementation, and a failed one says so.
func TestDrillCertificate(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d)
		told := &findings{open: map[string]string{}}
		h.backup.o.Findings = told
		h.fill(t, 0, 30, "body")
		drill := func(p Probed) (Drill, error) {
			o := other(t, d.Engine())
			o.Create = false
			dropped := false
			defer func() {
				if !dropped {
					t.Error("the scratch database was left")
				}
			}()
			return h.backup.Drill(t.Context(), operator, Scratch{Options: o, Drop: func(context.Context) error { dropped = true; return nil },
				Probe: func(_ context.Context, served func()) (Probed, error) { served(); return p, nil }}, nil)
		}
		if _, err := drill(Probed{}); !problem.Is(err, "backup-not-found") {
			t.Errorf("without a snapshot: %v", err)
		}
		s, err := h.backup.Run(t.Context(), operator)
		if err != nil {
			t.Fatal(err)
		}
		good, err := drill(Probed{Events: 3, Sampled: 2})
		if err != nil || good.Snapshot != s.ID || good.RTO <= 0 || len(good.Passed) != 4 || good.From == good.Into {
			t.Errorf("%+v, %v", good, err)
		}
		if r := h.certificate(t, good); r.Result != "PASSED" || len(r.PassedTests) != 4 || r.Configuration[0].Annotations.AsMap()["rows"] != float64(good.Rows) {
			t.Errorf("%v", r)
		}
		bad, err := drill(Probed{Findings: []string{"altered"}, Broken: []string{"customer"}})
		if !problem.Is(err, "drill-failed") || len(bad.Failed) != 2 || told.open[FindingDrill] == "" {
			t.Errorf("%+v, %v", bad, err)
		}
		if r := h.certificate(t, bad); r.Result != "FAILED" || len(r.FailedTests) != 2 {
			t.Errorf("%v", r)
		}
		if _, err := drill(Probed{}); err != nil || len(told.open) != 0 {
			t.Errorf("%v, %v", err, told.open)
		}
		list, err := h.backup.List(t.Context(), operator)
		if err != nil || list.LastDrill == nil || len(list.LastDrill.Failed) != 0 || len(list.Snapshots) != 1 || !list.Snapshots[0].Kept {
			t.Errorf("%+v, %v", list, err)
		}
		book, err := h.backup.Runbook(t.Context(), operator, Facts{Data: "/data", Engine: "x", Root: "the root"})
		if err != nil || !strings.Contains(book, s.ID) || !strings.Contains(book, "near-keys") || strings.Contains(book, "NONE COUNTS") {
			t.Errorf("%v\n%s", err, book)
		}
	})
}

// certificate verifies the envelope with the DSSE library and returns what it says.
func (h *house) certificate(t testing.TB, d Drill) *testresult.TestResult {
	t.Helper()
	var envelope dsse.Envelope
	if err := json.Unmarshal([]byte(d.Certificate), &envelope); err != nil {
		t.Fatal(err)
	}
	signer := h.keys.EvidenceSigner()
	v, err := h.keys.EvidenceVerifiers().Verifier(signer.Name(), signer.KeyHash())
	if err != nil {
		t.Fatal(err)
	}
	verifier, err := dsse.NewEnvelopeVerifier(certificateVerifier{v})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := verifier.Verify(t.Context(), &envelope); err != nil {
		t.Fatal(err)
	}
	payload, err := envelope.DecodeB64Payload()
	if err != nil {
		t.Fatal(err)
	}
	statement := new(intoto.Statement)
	if err := protojson.Unmarshal(payload, statement); err != nil {
		t.Fatal(err)
	}
	if err := statement.Validate(); err != nil || statement.PredicateType != PredicateType || statement.Subject[0].Name != d.Snapshot {
		t.Fatalf("%v: %v", statement, err)
	}
	text, err := statement.Predicate.MarshalJSON()
	if err != nil {
		t.Fatal(err)
	}
	result := new(testresult.TestResult)
	if err := protojson.Unmarshal(text, result); err != nil {
		t.Fatal(err)
	}
	envelope.Payload = envelope.Payload[:len(envelope.Payload)-8] + "AAAAAAA="
	if _, err := verifier.Verify(t.Context(), &envelope); err == nil {
		t.Error("an altered certificate verifies")
	}
	return result
}

func TestSchedule(t *testing.T) {
	at := func(text string) time.Time {
		v, err := time.Parse("2006-01-02 15:04", text)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	ran := func(class, when, outcome string) run {
		return run{class: class, started: clock.Micros(at(when)), ended: clock.Micros(at(when).Add(time.Second)), outcome: outcome}
	}
	s := Schedule{Daily: 2*time.Hour + 30*time.Minute, Every: time.Hour}
	for _, row := range []struct {
		name  string
		runs  []run
		now   string
		due   string
		class string
	}{
		{name: "never", now: "2026-05-04 12:00", due: "2026-05-04 12:00", class: ClassDaily},
		{name: "only failed", runs: []run{ran(ClassDaily, "2026-05-04 11:00", "failed")}, now: "2026-05-04 12:00", due: "2026-05-04 12:00", class: ClassDaily},
		{name: "next hour", runs: []run{ran(ClassDaily, "2026-05-04 11:30", "kept")}, now: "2026-05-04 12:00", due: "2026-05-04 12:30", class: ClassHourly},
		{name: "partial does not count", runs: []run{ran(ClassHourly, "2026-05-04 12:20", "partial"), ran(ClassDaily, "2026-05-04 11:30", "kept")}, now: "2026-05-04 12:40", due: "2026-05-04 12:30", class: ClassHourly},
		{name: "of a clock that was ahead", runs: []run{ran(ClassDaily, "2036-05-04 11:30", "kept"), ran(ClassDaily, "2026-05-04 11:30", "kept")}, now: "2026-05-04 12:40", due: "2026-05-04 12:30", class: ClassHourly},
		{name: "the day's", runs: []run{ran(ClassHourly, "2026-05-05 02:00", "kept"), ran(ClassDaily, "2026-05-04 02:30", "kept")}, now: "2026-05-05 02:31", due: "2026-05-05 02:30", class: ClassDaily},
		{name: "before the day's", runs: []run{ran(ClassHourly, "2026-05-05 02:00", "kept"), ran(ClassDaily, "2026-05-04 02:30", "kept")}, now: "2026-05-05 02:10", due: "2026-05-05 02:30", class: ClassDaily},
	} {
		t.Run(row.name, func(t *testing.T) {
			due, class := s.due(row.runs, at(row.now))
			if !due.Equal(at(row.due)) || class != row.class {
				t.Errorf("due %v, %s", due, class)
			}
		})
	}
	e := s.estimate([]run{ran(ClassHourly, "2026-05-04 11:30", "kept")}, at("2026-05-04 11:40"))
	if e.Took != time.Second {
		t.Errorf("%+v", e)
	}
	if !slices.Equal([]string{e.Class}, []string{ClassHourly}) {
		t.Errorf("%+v", e)
	}
}

// The scheduled jobs take a snapshot when it is due and when something changed, and only then.
func TestJobsRunWhenDue(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite))
	h.backup.o.Schedule = Schedule{Every: time.Hour, Continuous: time.Second}
	ctx := t.Context()
	count := func() int {
		t.Helper()
		runs, err := h.backup.runs(ctx, 100)
		if err != nil {
			t.Fatal(err)
		}
		return len(runs)
	}
	for range 2 {
		if err := h.backup.whenDue(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(); n != 1 {
		t.Errorf("%d snapshots were due", n)
	}
	if _, err := h.trail.Sequence(ctx); err != nil {
		t.Fatal(err)
	}
	now := &later{by: time.Minute}
	h.backup.o.Clock = now
	if err := h.backup.whenChanged(ctx); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 1 {
		t.Errorf("%d snapshots although nothing changed", n)
	}
	if _, err := h.backup.o.Trail.Verify(ctx, operator, nil); err != nil { // leaves an event
		t.Fatal(err)
	}
	if _, err := h.trail.Sequence(ctx); err != nil {
		t.Fatal(err)
	}
	if err := h.backup.whenChanged(ctx); err != nil {
		t.Fatal(err)
	}
	if n := count(); n != 2 {
		t.Errorf("%d snapshots after a change", n)
	}
	told := &findings{open: map[string]string{}}
	h.backup.o.Findings = told
	now.by = 5 * time.Hour
	if err := h.backup.watch(ctx); err != nil || told.open[FindingOverdue] == "" {
		t.Errorf("five hours without a snapshot: %v, %v", err, told.open)
	}
	if err := h.backup.whenDue(ctx); err != nil || len(told.open) != 0 {
		t.Errorf("%v, %v", err, told.open)
	}
}

// later is the system's clock, moved on.
type later struct{ by time.Duration }

func (l *later) Now() time.Time { return time.Now().Add(l.by) }
