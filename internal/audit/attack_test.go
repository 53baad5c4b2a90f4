package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
)

// The tests of this file are attacks by whoever can write to the database and holds no key.

// connected returns a house as a process has it, whose trail records what the keyring does.
func connected(t *testing.T, d *db.DB, root keyring.Root, file string, accept bool) *house {
	t.Helper()
	h := &house{t: t, db: d}
	var err error
	h.ring, err = keyring.Open(t.Context(), operator, keyring.Options{DB: d, Root: root, Create: true, AcceptStates: accept, Connect: func(k *keyring.Keyring) keyring.Recorder {
		h.trail = audit.New(d, k, audit.Options{Remember: audit.RememberFile(file)})
		return func(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, action, resource string) error {
			return h.trail.Record(ctx, tx, by, audit.Event{Action: action, Resource: resource, Customer: c, Outcome: audit.Granted})
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	return h
}

const emptyHead = `UPDATE log_head SET size = 0, root = '47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=', epoch = 0`

// rewind has everything sequenced once more, without one event.
func (h *house) rewind(without string) {
	h.t.Helper()
	h.exec(`DELETE FROM event WHERE id = $1`, without)
	h.exec(`DELETE FROM event_pending`)
	h.exec(`INSERT INTO event_pending SELECT id FROM event`)
	for _, table := range []string{"event_leaf", "log_tile", "log_checkpoint"} {
		h.exec(`DELETE FROM ` + table)
	}
	h.exec(emptyHead)
}

func has(r audit.Report, kind audit.Kind) bool {
	return slices.ContainsFunc(r.Findings, func(f audit.Finding) bool { return f.Kind == kind })
}

// wantFinding fails the test unless there is a finding of the kind whose detail has the words.
func wantFinding(t *testing.T, r audit.Report, kind audit.Kind, words string) {
	t.Helper()
	for _, f := range r.Findings {
		if f.Kind == kind && strings.Contains(f.Detail, words) {
			return
		}
	}
	t.Errorf("no finding %s %q in %+v", kind, words, r.Findings)
}

// A rewritten trail under a new checkpoint key: the remembered checkpoint is not one of ours any more,
// which is an error and a finding, and it is not overwritten.
func TestRewrittenUnderANewCheckpointKey(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		root, file := keyringtest.Root(t), filepath.Join(t.TempDir(), "checkpoint")
		h := connected(t, d, root, file, false)
		h.ada = h.newCustomer()
		h.by = actor.Actor{Kind: actor.Customer, ID: string(h.ada), Address: address}
		h.record(50)
		h.sequence()
		h.holds()
		remembered, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		h.rewind(h.eventAt(20))
		h.exec(`DELETE FROM service_key WHERE name = 'checkpoint'`)

		if _, err := keyring.Open(t.Context(), operator, keyring.Options{DB: d, Root: root}); !errors.Is(err, keyring.ErrDamaged) {
			t.Errorf("started without a checkpoint key: %v", err)
		}
		// Even if a new one were made, and somebody took the tables of keys as they are:
		h = connected(t, d, root, file, true)
		for range 2 {
			if n, err := h.trail.Sequence(t.Context()); !errors.Is(err, audit.ErrRolledBack) || n != 0 {
				t.Errorf("sequenced %d: %v", n, err)
			}
		}
		_ = h.trail.Remember()
		wantFinding(t, h.verify(), audit.Altered, "remembered checkpoint")
		if b, err := os.ReadFile(file); err != nil || !bytes.Equal(b, remembered) {
			t.Errorf("the remembered checkpoint was overwritten: %q %v", b, err)
		}
	})
}

// A replica that never sequenced remembers what it saw, so it notices too.
func TestIdleReplicaNoticesARewrittenTrail(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		file := filepath.Join(t.TempDir(), "checkpoint")
		idle := audit.New(d, h.ring, audit.Options{Remember: audit.RememberFile(file)})
		h.record(50)
		h.sequence()
		if err := idle.Watch().Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		if b, err := os.ReadFile(file); err != nil || len(b) == 0 {
			t.Errorf("nothing is remembered: %v", err)
		}
		h.rewind(h.eventAt(20))
		for range 2 { // a process that goes on, and one that begins
			if _, err := idle.Sequence(t.Context()); !errors.Is(err, audit.ErrRolledBack) {
				t.Errorf("sequenced: %v", err)
			}
			if err := idle.Watch().Run(t.Context()); !errors.Is(err, audit.ErrRolledBack) {
				t.Errorf("watched: %v", err)
			}
			idle = audit.New(d, h.ring, audit.Options{Remember: audit.RememberFile(file)})
		}
		if r, err := idle.Verify(t.Context(), operator, nil); err != nil || !has(r, audit.RolledBack) {
			t.Errorf("%+v %v", r, err)
		}
	})
}

// A clean stop leaves the newest checkpoint behind, so nothing after an earlier one can be cut off.
func TestCutOffAfterACleanStop(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		file := filepath.Join(t.TempDir(), "checkpoint")
		h := newHouse(t, d, audit.Options{Remember: audit.RememberFile(file)})
		h.record(10)
		h.sequence()
		size, root := h.count(`SELECT size FROM log_head`), h.ask(`SELECT root FROM log_head`)
		var tile []byte
		h.update(func(tx *db.Tx) error {
			return tx.QueryRow(t.Context(), `SELECT hashes FROM log_tile WHERE level = 0 AND n = 0`).Scan(&tile)
		})
		h.record(40)
		h.sequence() // at once after the first
		if err := h.trail.Remember(); err != nil {
			t.Fatal(err)
		}
		h.exec(`DELETE FROM event WHERE id IN (SELECT event_id FROM event_leaf WHERE idx >= $1)`, size)
		h.exec(`DELETE FROM event_leaf WHERE idx >= $1`, size)
		h.exec(`DELETE FROM log_checkpoint WHERE size > $1`, size)
		h.exec(`UPDATE log_tile SET hashes = $1`, tile)
		h.exec(`UPDATE log_head SET size = $1, root = $2, epoch = 1`, size, root)
		h.trail = audit.New(d, h.ring, audit.Options{Remember: audit.RememberFile(file)})
		wantFinding(t, h.verify(), audit.RolledBack, "seen before")
	})
}

// A lease that nobody can outlive: the sequencer goes on.
func TestSequencerOutlivesAForgedLease(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.exec(`INSERT INTO lease (name, holder, epoch, expires_at) VALUES ($1, 'nobody', 1, 9000000000000000000)`, audit.JobName)
		r := jobs.New(d, jobs.Options{})
		r.Add(h.trail.Job())
		r.Start(t.Context())
		defer func() { _ = r.Stop(t.Context()) }()
		h.record(20)
		for deadline := time.Now().Add(20 * time.Second); h.count(`SELECT size FROM log_head`) < 20; time.Sleep(50 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("nothing is sequenced")
			}
		}
	})
}

// A sequencer that is kept from its work by whatever means is noticed, by every replica.
func TestStalledSequencerIsNoticed(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		manual := clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
		registry, logs := prometheus.NewRegistry(), new(bytes.Buffer)
		h := newHouse(t, d, audit.Options{Clock: manual, Metrics: registry, Log: slog.New(slog.NewTextHandler(logs, nil))})
		h.record(3)
		oldest := h.ask(`SELECT min(event_id) FROM event_pending`)
		manual.Advance(29 * time.Second)
		h.holds()
		manual.Advance(31 * time.Second)
		r := h.verify()
		if len(r.Findings) != 1 || r.Findings[0].Kind != audit.Stalled || r.Findings[0].Event != oldest {
			t.Errorf("%+v", r.Findings)
		}
		for range 2 {
			if err := h.trail.Watch().Run(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if n := strings.Count(logs.String(), "stands still"); n != 1 {
			t.Errorf("%d warnings: %s", n, logs)
		}
		// The three events, and those of the two verifications.
		if n := gauge(t, registry, "strongroom_audit_pending"); n != 5 {
			t.Errorf("%v are pending", n)
		}
		if lag := gauge(t, registry, "strongroom_audit_lag_seconds"); lag < 59 || lag > 61 {
			t.Errorf("the lag is %v", lag)
		}
		h.sequence()
		h.holds()
	})
}

func gauge(t *testing.T, r *prometheus.Registry, name string) float64 {
	t.Helper()
	families, err := r.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == name {
			return f.GetMetric()[0].GetGauge().GetValue()
		}
	}
	t.Fatalf("there is no %s", name)
	return 0
}

const forge = `INSERT INTO event SELECT 'evt_' || substr(id, 5, 20) || 'zzzzzz', version, made_at, actor_kind, 'mallory', device_id,
	session_id, action, $2, customer_id, outcome, reason, transaction_id, request_id, '', NULL, NULL, mac_version, mac FROM event WHERE id = $1`

// Forged events outside of the log, at a negative index or far behind its end, are named.
func TestForgedPlaces(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.record(30)
		h.sequence()
		e := h.eventAt(7)
		f := "evt_" + e[4:24] + "zzzzzz"
		h.exec(forge, e, "forged")
		for _, index := range []int64{-1, -7, -1 << 63, 32, 1 << 62, 1<<63 - 1} {
			h.exec(`INSERT INTO event_leaf (idx, event_id) VALUES ($1, $2)`, index, f)
			r := h.verify()
			if !slices.ContainsFunc(r.Findings, func(x audit.Finding) bool {
				return x.Kind == audit.Inserted && x.Event == f && x.Index == index
			}) {
				t.Errorf("index %d: %+v", index, r.Findings)
			}
			h.exec(`DELETE FROM event_leaf WHERE event_id = $1`, f)
		}
		h.exec(`DELETE FROM event WHERE id = $1`, f)
		h.sequence()
		h.holds()
	})
}

// Absurd sizes neither hang nor break the verification.
func TestAbsurdSizes(t *testing.T) {
	for name, tamper := range map[string][]string{
		"head and index":  {`UPDATE log_head SET size = 4611686018427387904`, `INSERT INTO event_leaf VALUES (4611686018427387903, 'x')`},
		"largest index":   {`INSERT INTO event_leaf VALUES (9223372036854775807, 'x')`},
		"no head":         {`DELETE FROM log_head`, `INSERT INTO event_leaf VALUES (9223372036854775807, 'x')`},
		"negative head":   {`UPDATE log_head SET size = -5`},
		"negative places": {`UPDATE log_head SET size = -5`, `UPDATE event_leaf SET idx = -1 - idx`},
	} {
		t.Run(name, func(t *testing.T) {
			dbtest.Each(t, func(t *testing.T, d *db.DB) {
				h := newHouse(t, d, audit.Options{})
				h.record(30)
				h.sequence()
				for _, q := range tamper {
					h.exec(q)
				}
				ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
				defer cancel()
				r, err := h.trail.Verify(ctx, operator, nil)
				if err != nil || len(r.Findings) == 0 || len(r.Findings) > 200 {
					t.Errorf("%d findings, %v", len(r.Findings), err)
				}
			})
		})
	}
}

// Tiles are what they should be to the byte, and there are no others.
func TestTilesToTheByte(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		for range 3 {
			h.record(100)
			h.sequence()
		}
		for _, at := range [][2]int{{0, 0}, {0, 1}, {1, 0}} {
			for name, more := range map[string]int{"a byte": 1, "a hash": 32, "very many": 100_000} {
				var b []byte
				h.update(func(tx *db.Tx) error {
					if err := tx.QueryRow(t.Context(), `SELECT hashes FROM log_tile WHERE level = $1 AND n = $2`, at[0], at[1]).Scan(&b); err != nil {
						return err
					}
					_, err := tx.Exec(t.Context(), `UPDATE log_tile SET hashes = $1 WHERE level = $2 AND n = $3`, append(bytes.Clone(b), make([]byte, more)...), at[0], at[1])
					return err
				})
				r, err := audit.New(d, h.ring, audit.Options{}).Verify(t.Context(), operator, nil)
				if err != nil || !has(r, audit.Altered) {
					t.Errorf("%v longer by %s: %+v %v", at, name, r.Findings, err)
				}
				h.exec(`UPDATE log_tile SET hashes = $1 WHERE level = $2 AND n = $3`, b, at[0], at[1])
			}
		}
		h.holds()
		for _, at := range [][2]int64{{-1, 0}, {0, -1}, {0, 2}, {1, 1}, {2, 0}, {9, 0}, {1 << 40, 1 << 40}} {
			h.exec(`INSERT INTO log_tile (level, n, hashes) VALUES ($1, $2, $3)`, at[0], at[1], make([]byte, 32))
			wantFinding(t, h.verify(), audit.Inserted, fmt.Sprintf("tile %d/%d does not belong", at[0], at[1]))
			h.exec(`DELETE FROM log_tile WHERE level = $1 AND n = $2`, at[0], at[1])
		}
		h.exec(`INSERT INTO log_checkpoint (size, epoch, root, note, made_at) VALUES (-3, -3, '', '', 0)`)
		wantFinding(t, h.verify(), audit.Inserted, "checkpoint of size -3")
	})
}

// A planted tombstone does not turn what was altered into what was erased.
func TestPlantedTombstoneHidesNothing(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.record(30)
		h.sequence()
		h.exec(`UPDATE event SET sealed = $1 WHERE customer_id = $2`, []byte("garbage"), h.ada)
		h.exec(`INSERT INTO data_key_tombstone (customer_id, erased_at, mac) VALUES ($1, 1, $2)`, h.ada, []byte("12345678"))
		h.ring.Forget(h.ada)
		r := h.verify()
		if r.Erased != 0 {
			t.Errorf("%d are counted as erased", r.Erased)
		}
		wantFinding(t, r, audit.Altered, "missing or damaged")
	})
}

// When a trigger swallows the event, the deed is not done.
func TestSwallowedEvents(t *testing.T) {
	for _, table := range []string{"event", "event_pending"} {
		d := dbtest.Open(t, db.PostgreSQL)
		h := newHouse(t, d, audit.Options{})
		h.record(1)
		h.exec(`CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`)
		h.exec(`CREATE TRIGGER swallow BEFORE INSERT ON ` + table + ` FOR EACH ROW EXECUTE FUNCTION swallow()`)
		epoch := h.count(`SELECT epoch FROM log_head`)
		err := h.trail.Do(t.Context(), h.by, audit.Event{Action: "test.thing.do"}, func(tx *db.Tx, _ *audit.Event) error {
			_, err := tx.Exec(t.Context(), `UPDATE log_head SET epoch = epoch + 1`)
			return err
		})
		if err == nil || h.count(`SELECT epoch FROM log_head`) != epoch {
			t.Errorf("%s: the deed was done: %v", table, err)
		}
		h.exec(`DROP FUNCTION swallow() CASCADE`)
	}
}

// Rows in the queue that are not ours cost the sequencer a look, not its pace.
func TestPoisonedQueue(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.update(func(tx *db.Tx) error {
			for i := range 1023 {
				if err := h.trail.Record(t.Context(), tx, h.by, audit.Event{Action: "x", Outcome: audit.Granted, Resource: fmt.Sprint(i)}); err != nil {
					return err
				}
			}
			return nil
		})
		h.exec(`INSERT INTO event_pending WITH RECURSIVE c(n) AS (SELECT 100000 UNION ALL SELECT n + 1 FROM c WHERE n < 130000) SELECT 'zzz' || n FROM c`)
		began := time.Now()
		if n, err := h.trail.Sequence(t.Context()); n != 1023 || err != nil {
			t.Errorf("sequenced %d: %v", n, err)
		}
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("it took %v", took)
		}
	})
}

// Long values in planted rows do not fill the memory of whoever looks at them.
func TestPlantedLongRows(t *testing.T) {
	const size, limit = 4_000_000, 16_000_000 // each, of which there are 16
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.record(3)
		e := h.ask(`SELECT min(id) FROM event`)
		long := strings.Repeat("x", size)
		for i := range 8 {
			id := fmt.Sprint("aaa", i)
			h.exec(`INSERT INTO event SELECT $1, version, made_at, actor_kind, actor_id, device_id, session_id, action, $2, customer_id, outcome,
				reason, transaction_id, request_id, sealed_under, commitment, $3, mac_version, mac FROM event WHERE id = $4`, id, long, []byte(long), e)
			h.exec(`INSERT INTO event_pending (event_id) VALUES ($1)`, id)
		}
		long = ""
		heap := func(what string, f func()) {
			t.Helper()
			runtime.GC()
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			f()
			runtime.ReadMemStats(&after)
			if n := after.TotalAlloc - before.TotalAlloc; n > limit {
				t.Errorf("%s allocated %d MB", what, n>>20)
			}
		}
		heap("Sequence", h.sequence)
		heap("Verify", func() {
			if r := h.verify(); len(r.Findings) != 8 {
				t.Errorf("%+v", r.Findings)
			}
		})
		heap("Tail", func() { h.tail() })
	})
}

// An id that is longer than Strongroom makes them is a finding, and nothing reads it.
func TestPlantedLongIDs(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.record(3)
		e, long := h.ask(`SELECT min(id) FROM event`), strings.Repeat("y", 1000)
		h.exec(`INSERT INTO event SELECT $1, version, made_at, actor_kind, actor_id, device_id, session_id, action, resource, customer_id, outcome,
			reason, transaction_id, request_id, sealed_under, commitment, sealed, mac_version, mac FROM event WHERE id = $2`, long, e)
		h.exec(`INSERT INTO event_pending (event_id) VALUES ($1)`, long)
		h.sequence()
		r := h.verify()
		wantFinding(t, r, audit.Inserted, "1 rows of event have")
		wantFinding(t, r, audit.Inserted, "1 rows of event_pending have")
		h.tail()
	})
}

// Two rows with one id, which takes rights over the tables themselves: the genuine one gets its place,
// and the other is named, whichever is read first.
func TestDuplicateRows(t *testing.T) {
	d := dbtest.Open(t, db.PostgreSQL)
	h := newHouse(t, d, audit.Options{})
	h.record(30)
	h.sequence()
	e := h.eventAt(10)
	h.exec(`ALTER TABLE event DROP CONSTRAINT event_pkey`)
	forged := `INSERT INTO event SELECT id, version, made_at, actor_kind, 'mallory', device_id, session_id, action, 'forged', customer_id, outcome,
		reason, transaction_id, request_id, sealed_under, commitment, sealed, mac_version, mac FROM event WHERE id = $1 AND actor_id <> 'mallory'`
	h.exec(forged, e)
	wantFinding(t, h.verify(), audit.Inserted, "more than one row")
	h.exec(`CREATE TABLE kept AS SELECT * FROM event WHERE id = '` + e + `' AND actor_id <> 'mallory'`)
	h.exec(`DELETE FROM event WHERE id = $1 AND actor_id <> 'mallory'`, e)
	h.exec(`INSERT INTO event SELECT * FROM kept`)
	wantFinding(t, h.verify(), audit.Inserted, "more than one row")
	marks := make(map[audit.Outcome]int)
	for _, x := range h.tail() {
		if x.ID == e {
			marks[x.Outcome]++
		}
	}
	if marks[audit.Granted] != 1 || marks[audit.Unverified] != 1 {
		t.Errorf("tail shows %v", marks)
	}
	h.exec(`DELETE FROM event WHERE actor_id = 'mallory'`)
	h.sequence()
	h.record(1)
	h.exec(`INSERT INTO event SELECT e.* FROM event e JOIN event_pending p ON p.event_id = e.id`)
	if n, err := h.trail.Sequence(t.Context()); n != 1 || err != nil {
		t.Errorf("sequenced %d: %v", n, err)
	}
}

// A log that cannot be moved on is an error, not a quiet success.
func TestLogThatCannotBeMovedOn(t *testing.T) {
	d := dbtest.Open(t, db.PostgreSQL)
	h := newHouse(t, d, audit.Options{})
	h.record(3)
	h.exec(`CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'`)
	h.exec(`CREATE TRIGGER keep BEFORE UPDATE ON log_head FOR EACH ROW EXECUTE FUNCTION keep()`)
	if n, err := h.trail.Sequence(t.Context()); n != 0 || err == nil || !strings.Contains(err.Error(), "altered") {
		t.Errorf("sequenced %d: %v", n, err)
	}
}

// What Strongroom did not write is marked in the tail, and cannot act upon a terminal.
func TestTailMarksWhatIsNotOurs(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.record(2)
		e := h.ask(`SELECT max(id) FROM event`)
		h.exec(forge, e, "thing\x1b[2K\x1b]0;owned\a\r2026-11-21 nothing happened")
		h.exec(`UPDATE event SET made_at = $1 WHERE actor_id = 'mallory'`, int64(1<<63-1))
		h.exec(`UPDATE event SET mac_version = 17 WHERE id = $1`, e)
		var genuine, forged int
		for _, x := range h.tail() {
			switch {
			case x.Outcome == audit.Granted:
				genuine++
			case x.Outcome == audit.Unverified && (x.Actor.ID == "mallory" || x.ID == e):
				forged++
			default:
				t.Errorf("%+v", x)
			}
			if strings.ContainsAny(x.Resource, "\x1b\a\r") {
				t.Errorf("%q", x.Resource)
			}
			if x.Outcome == audit.Unverified && x.Personal != nil {
				t.Errorf("personal %v", x.Personal)
			}
			if _, err := x.Time.MarshalJSON(); err != nil {
				t.Error(err)
			}
		}
		if genuine < 1 || forged != 2 {
			t.Errorf("%d genuine, %d forged", genuine, forged)
		}
	})
}
