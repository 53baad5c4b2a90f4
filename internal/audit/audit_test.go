package audit_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/jobs"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/problem"
)

var (
	operator = actor.OfSystem("cli:test")
	address  = netip.MustParseAddr("203.0.113.7")
)

// house is a trail with its database and keys, and one customer.
type house struct {
	t     testing.TB
	db    *db.DB
	ring  *keyring.Keyring
	trail *audit.Trail
	ada   customer.ID
	by    actor.Actor // ada, at her device
}

func newHouse(t testing.TB, d *db.DB, o audit.Options) *house {
	t.Helper()
	h := &house{t: t, db: d, ring: keyringtest.Open(t, d)}
	h.trail = audit.New(d, h.ring, o)
	h.ada = h.newCustomer()
	h.by = actor.Actor{
		Kind: actor.Customer, ID: string(h.ada), Device: "dev_1", Session: "ses_1", Key: "thumbprint",
		Address: address, Request: "req_1",
	}
	return h
}

func (h *house) newCustomer() customer.ID {
	h.t.Helper()
	c := customer.NewID()
	h.update(func(tx *db.Tx) error {
		_, err := h.ring.CreateCustomer(context.Background(), tx, operator, c)
		return err
	})
	return c
}

func (h *house) erase(c customer.ID) {
	h.t.Helper()
	h.exec(`DELETE FROM data_key WHERE customer_id = $1`, c)
	h.exec(`INSERT INTO data_key_tombstone (customer_id, erased_at, mac) VALUES ($1, 1, $2)`, c, h.ring.TombstoneMAC(c, 1))
	h.ring.Forget(c)
}

func (h *house) update(fn func(tx *db.Tx) error) {
	h.t.Helper()
	if err := h.db.Update(context.Background(), fn); err != nil {
		h.t.Fatal(err)
	}
}

// exec changes the database behind the trail's back.
func (h *house) exec(query string, args ...any) int64 {
	h.t.Helper()
	var n int64
	h.update(func(tx *db.Tx) (err error) {
		n, err = tx.Exec(context.Background(), query, args...)
		return err
	})
	return n
}

func (h *house) ask(query string, args ...any) (s string) {
	h.t.Helper()
	err := h.db.View(context.Background(), func(tx *db.Tx) error {
		return tx.QueryRow(context.Background(), query, args...).Scan(&s)
	})
	if err != nil {
		h.t.Fatalf("%s: %v", query, err)
	}
	return s
}

func (h *house) count(query string, args ...any) (n int64) {
	h.t.Helper()
	err := h.db.View(context.Background(), func(tx *db.Tx) error {
		return tx.QueryRow(context.Background(), query, args...).Scan(&n)
	})
	if err != nil {
		h.t.Fatalf("%s: %v", query, err)
	}
	return n
}

// record records n events about ada, one transaction each.
func (h *house) record(n int) {
	h.t.Helper()
	for i := range n {
		e := audit.Event{Action: "test.thing.do", Resource: fmt.Sprintf("thing %d", i), Customer: h.ada}
		if err := h.trail.Do(context.Background(), h.by, e, nothing); err != nil {
			h.t.Fatal(err)
		}
	}
}

func nothing(*db.Tx, *audit.Event) error { return nil }

func (h *house) sequence() {
	h.t.Helper()
	for {
		n, err := h.trail.Sequence(context.Background())
		if err != nil {
			h.t.Fatal(err)
		}
		if n == 0 {
			return
		}
	}
}

func (h *house) verify() audit.Report {
	h.t.Helper()
	r, err := h.trail.Verify(context.Background(), operator, nil)
	if err != nil {
		h.t.Fatal(err)
	}
	return r
}

// holds fails the test unless the trail verifies without findings.
func (h *house) holds() audit.Report {
	h.t.Helper()
	r := h.verify()
	for _, f := range r.Findings {
		h.t.Errorf("finding: %+v", f)
	}
	return r
}

// eventAt returns the id of the event with an index.
func (h *house) eventAt(index int64) string {
	h.t.Helper()
	return h.ask(`SELECT event_id FROM event_leaf WHERE idx = $1`, index)
}

func (h *house) tail() []audit.Entry {
	h.t.Helper()
	list, err := h.trail.Tail(context.Background(), operator, "", 1000)
	if err != nil {
		h.t.Fatal(err)
	}
	return list
}

// newest returns the newest entry of an action.
func (h *house) newest(action string) audit.Entry {
	h.t.Helper()
	list := h.tail()
	for _, e := range slices.Backward(list) {
		if e.Action == action {
			return e
		}
	}
	h.t.Fatalf("there is no event %q", action)
	return audit.Entry{}
}

func TestRecordSequenceVerifyTail(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		registry := prometheus.NewRegistry()
		h := newHouse(t, d, audit.Options{Metrics: registry})
		e := audit.Event{
			Action: "test.thing.read", Resource: "thing \"ä\\\"", Customer: h.ada, Transaction: "pay-1",
			Personal: map[string]string{"note": "Ada's <b>\nthing", "address": "ignored"},
		}
		if err := h.trail.Do(t.Context(), h.by, e, nothing); err != nil {
			t.Fatal(err)
		}
		if r := h.holds(); r.Events != 0 || r.Pending != 1 {
			t.Errorf("before sequencing: %+v", r)
		}
		h.sequence()
		r := h.holds()
		if r.Events != 2 || r.Pending != 0 { // the event and the first verification
			t.Errorf("after sequencing: %+v", r)
		}
		signed, err := note.Open([]byte(r.Checkpoint), h.ring.CheckpointVerifiers())
		if err != nil {
			t.Fatalf("checkpoint: %v", err)
		}
		lines := strings.Split(signed.Text, "\n")
		if lines[0] != "strongroom/dev/"+d.Installation() || lines[1] != "2" || len(lines) != 4 {
			t.Errorf("checkpoint %q", signed.Text)
		}
		got := h.newest("test.thing.read")
		if got.Index != 0 || got.Resource != e.Resource || got.Customer != h.ada || got.Outcome != audit.Granted ||
			got.Transaction != "pay-1" || got.Request != "req_1" || got.Actor.Kind != actor.Customer ||
			got.Actor.ID != string(h.ada) || got.Actor.Device != "dev_1" || got.Actor.Session != "ses_1" ||
			time.Since(got.Time).Abs() > time.Minute {
			t.Errorf("got %+v", got)
		}
		if len(got.Personal) != 2 || got.Personal["address"] != address.String() || got.Personal["note"] != "Ada's <b>\uFFFDthing" {
			t.Errorf("personal %q", got.Personal)
		}
		if n := testutil.ToFloat64(counter(t, registry, "strongroom_audit_events_total")); n < 3 {
			t.Errorf("counted %v events", n)
		}
		// Nothing personal is readable in the row.
		if n := h.count(`SELECT count(*) FROM event WHERE resource LIKE '%203.0.113%' OR reason LIKE '%203.0.113%'`); n != 0 {
			t.Error("an address stands in the clear")
		}
	})
}

// counter finds a granted counter in the registry.
func counter(t *testing.T, r *prometheus.Registry, name string) prometheus.Collector {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: "Events committed to the trail, by outcome."}, []string{"outcome"})
	var was prometheus.AlreadyRegisteredError
	if err := r.Register(c); !errors.As(err, &was) {
		t.Fatalf("%s is not there: %v", name, err)
	}
	return was.ExistingCollector.(*prometheus.CounterVec).WithLabelValues("granted")
}

func TestDo(t *testing.T) {
	forbidden := problem.New(problem.Forbidden, "not-yours", "It is not yours.")
	broken := problem.New(problem.Internal, "record-unreadable", "It cannot be read.")
	cases := []struct {
		name    string
		fn      func(tx *db.Tx, e *audit.Event) error
		err     error
		panics  any
		kept    bool // what fn wrote
		outcome audit.Outcome
		reason  string
	}{
		{"granted", func(tx *db.Tx, e *audit.Event) error { return nil }, nil, nil, true, audit.Granted, ""},
		{"denied", func(tx *db.Tx, e *audit.Event) error { return forbidden }, forbidden, nil, false, audit.Denied, "not-yours"},
		{"denied and kept", func(tx *db.Tx, e *audit.Event) error { e.Deny(forbidden); return nil }, forbidden, nil, true, audit.Denied, "not-yours"},
		{"failed", func(tx *db.Tx, e *audit.Event) error { return broken }, broken, nil, false, audit.Failed, "record-unreadable"},
		{"failed and kept", func(tx *db.Tx, e *audit.Event) error { e.Deny(broken); return nil }, broken, nil, true, audit.Failed, "record-unreadable"},
		{"unknown commit", func(tx *db.Tx, e *audit.Event) error { return broken.Because(db.ErrOutcomeUnknown) }, broken, nil, false, audit.Failed, "outcome-unknown"},
		{"unclassified", func(tx *db.Tx, e *audit.Event) error { return context.Canceled }, context.Canceled, nil, false, audit.Failed, "cancelled"},
		{"unknown", func(tx *db.Tx, e *audit.Event) error { return errSome }, errSome, nil, false, audit.Failed, "internal-error"},
		{"panic", func(tx *db.Tx, e *audit.Event) error { panic("boom") }, nil, "boom", false, audit.Failed, "panic"},
	}
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		for _, c := range cases {
			t.Run(c.name, func(t *testing.T) {
				before := h.count(`SELECT count(*) FROM event`)
				epoch := h.count(`SELECT epoch FROM log_head`)
				e := audit.Event{Action: "test.thing.do", Personal: map[string]string{"a": "b"}, Reason: "given"}
				if c.outcome == audit.Granted {
					e.Reason = ""
				}
				panicked, err := call(func() error {
					return h.trail.Do(t.Context(), h.by, e, func(tx *db.Tx, e *audit.Event) error {
						if _, err := tx.Exec(t.Context(), `UPDATE log_head SET holder = holder || 'x'`); err != nil {
							return err
						}
						e.Resource, e.Personal["a"] = "filled in", "c"
						return c.fn(tx, e)
					})
				})
				if !errors.Is(err, c.err) || (err == nil) != (c.err == nil) || panicked != c.panics {
					t.Errorf("got %v, panic %v", err, panicked)
				}
				if n := h.count(`SELECT count(*) FROM event`) - before; n != 1 {
					t.Errorf("%d events", n)
				}
				kept := h.exec(`UPDATE log_head SET holder = '', epoch = $1 WHERE holder = 'x'`, epoch) == 1
				if kept != c.kept {
					t.Errorf("kept %v", kept)
				}
				if e.Personal["a"] != "b" || e.Resource != "" {
					t.Error("the caller's event was changed")
				}
				got := h.newest("test.thing.do")
				if got.Outcome != c.outcome || got.Reason != c.reason || got.Resource != "filled in" || got.Personal["a"] != "c" {
					t.Errorf("event %+v", got)
				}
			})
		}
		h.sequence()
		h.holds()
	})
}

var errSome = errors.New("some error")

func call(f func() error) (panicked any, err error) {
	defer func() { panicked = recover() }()
	return nil, f()
}

func TestDoEndedGoroutine(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		done := make(chan struct{})
		go func() {
			defer close(done)
			_ = h.trail.Do(context.Background(), h.by, audit.Event{Action: "test.thing.do"}, func(*db.Tx, *audit.Event) error {
				runtime.Goexit()
				return nil
			})
		}()
		<-done
		if e := h.newest("test.thing.do"); e.Outcome != audit.Failed || e.Reason != "panic" {
			t.Errorf("got %+v", e)
		}
	})
}

// A rerun of the function must not see what an earlier run did to the event.
func TestDoRerun(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.exec(`INSERT INTO kek (version, algorithm, state, made_at) VALUES (1000, 'none', '', 0)`)
		const callers = 8
		var group sync.WaitGroup
		for range callers {
			group.Go(func() {
				e := audit.Event{Action: "test.counter.raise", Personal: map[string]string{"runs": ""}}
				err := h.trail.Do(context.Background(), h.by, e, func(tx *db.Tx, e *audit.Event) error {
					e.Personal["runs"] += "x"
					var n int64
					if err := tx.QueryRow(context.Background(), `SELECT made_at FROM kek WHERE version = 1000`).Scan(&n); err != nil {
						return err
					}
					_, err := tx.Exec(context.Background(), `UPDATE kek SET made_at = $1 WHERE version = 1000`, n+1)
					return err
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		group.Wait()
		if n := h.count(`SELECT made_at FROM kek WHERE version = 1000`); n != callers {
			t.Errorf("counted to %d", n)
		}
		var events int
		for _, e := range h.tail() {
			if e.Action == "test.counter.raise" {
				events++
				if e.Personal["runs"] != "x" {
					t.Errorf("the event remembers %q", e.Personal["runs"])
				}
			}
		}
		if events != callers {
			t.Errorf("%d events", events)
		}
	})
}

func TestDenyAndUnrecorded(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		p := problem.New(problem.Unauthenticated, "login-failed", "No.")
		ctx, cancel := context.WithCancel(t.Context())
		cancel() // a caller who hangs up does not get rid of the record
		err := h.trail.Deny(ctx, actor.Actor{Kind: actor.Anonymous, Address: address, Key: "thumb"}, audit.Event{Action: "test.login.try"}, p)
		if err != error(p) {
			t.Errorf("got %v", err)
		}
		got := h.newest("test.login.try")
		if got.Outcome != audit.Denied || got.Reason != "login-failed" || got.Personal["address"] != address.String() || got.Personal["key"] != "thumb" {
			t.Errorf("got %+v", got)
		}

		// A deed that was never begun leaves nothing.
		before := h.count(`SELECT count(*) FROM event`)
		if err := h.trail.Do(ctx, h.by, audit.Event{Action: "test.thing.do"}, nothing); !errors.Is(err, context.Canceled) {
			t.Errorf("got %v", err)
		}
		if n := h.count(`SELECT count(*) FROM event`); n != before {
			t.Errorf("%d events for nothing", n-before)
		}

		// What cannot be recorded is not answered.
		h.exec(`ALTER TABLE event RENAME TO elsewhere`)
		err = h.trail.Deny(t.Context(), h.by, audit.Event{Action: "test.login.try"}, p)
		if q := problem.Of(err); q == nil || q.Slug() != "audit-unavailable" || q.Kind() != problem.Unavailable || !errors.Is(err, p) {
			t.Errorf("got %v", err)
		}
		err = h.trail.Do(t.Context(), h.by, audit.Event{Action: "test.thing.do"}, func(*db.Tx, *audit.Event) error { return p })
		if q := problem.Of(err); q == nil || q.Slug() != "audit-unavailable" || !errors.Is(err, p) {
			t.Errorf("got %v", err)
		}
		h.exec(`ALTER TABLE elsewhere RENAME TO event`)
	})
}

func TestRecordRefuses(t *testing.T) {
	h := newHouse(t, dbtest.Open(t, db.SQLite), audit.Options{})
	for _, e := range []audit.Event{{}, {Action: "a.b.c"}, {Outcome: audit.Granted}, {Action: "a.b.c", Outcome: "maybe"}} {
		err := h.db.Update(t.Context(), func(tx *db.Tx) error { return h.trail.Record(t.Context(), tx, h.by, e) })
		if err == nil {
			t.Errorf("%+v was recorded", e)
		}
	}
}

// Whatever bytes a caller sends, the event is recorded and verifies.
func TestStrangeBytes(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		for _, s := range []string{"\x00", "\xff\xfe", "a\nb", strings.Repeat("é", 10_000), "\u202e", "'; DROP TABLE event; --"} {
			by := h.by
			by.Request, by.ID, by.Device, by.Session = s, s, s, s
			e := audit.Event{Action: "test.thing.do", Resource: s, Customer: customer.ID(s), Transaction: s, Personal: map[string]string{s: s, "x": s}}
			if err := h.trail.Do(t.Context(), by, e, nothing); err != nil {
				t.Errorf("%.20q: %v", s, err)
			}
		}
		h.sequence()
		h.holds()
		h.tail()
	})
}

func TestOnlyTheSystemInspects(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		for _, by := range []actor.Actor{h.by, {Kind: actor.Anonymous}, {}, {Kind: actor.Service, ID: "pay"}, {Kind: actor.Staff, ID: "bob"}} {
			if _, err := h.trail.Tail(t.Context(), by, "", 10); !problem.Is(err, "trail-not-allowed") {
				t.Errorf("Tail by %q: %v", by.Kind, err)
			}
			if _, err := h.trail.Verify(t.Context(), by, nil); !problem.Is(err, "trail-not-allowed") {
				t.Errorf("Verify by %q: %v", by.Kind, err)
			}
		}
		if n := h.count(`SELECT count(*) FROM event WHERE outcome = 'denied'`); n != 10 {
			t.Errorf("%d denials are recorded", n)
		}
		for _, bad := range []struct {
			after string
			limit int
		}{{"", 0}, {"", 1001}, {"evt_x", 1}, {"' OR 1=1", 1}} {
			if _, err := h.trail.Tail(t.Context(), operator, bad.after, bad.limit); problem.Of(err) == nil {
				t.Errorf("Tail(%q, %d): %v", bad.after, bad.limit, err)
			}
		}
	})
}

func TestTailFollows(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.record(5)
		list, err := h.trail.Tail(t.Context(), operator, "", 3)
		if err != nil || len(list) != 3 || list[0].Resource != "thing 2" || list[2].Resource != "thing 4" || list[0].Index != -1 {
			t.Fatalf("got %+v, %v", list, err)
		}
		h.record(1)
		list, err = h.trail.Tail(t.Context(), operator, list[2].ID, 10)
		if err != nil || len(list) != 2 || list[0].Action != audit.ActionRead || list[1].Action != "test.thing.do" {
			t.Fatalf("got %+v, %v", list, err)
		}
		// Whoever follows sees their own last reading, and then nothing more.
		if list, err = h.trail.Tail(t.Context(), operator, list[1].ID, 10); err != nil || len(list) != 1 {
			t.Fatalf("got %+v, %v", list, err)
		}
		if list, err = h.trail.Tail(t.Context(), operator, list[0].ID, 10); err != nil || len(list) != 0 {
			t.Fatalf("got %+v, %v", list, err)
		}
		for _, e := range h.tail() {
			var back audit.Entry
			text, err := json.Marshal(e)
			if err != nil || json.Unmarshal(text, &back) != nil || back.ID != e.ID || !back.Time.Equal(e.Time) {
				t.Errorf("%s: %v", text, err)
			}
		}
	})
}

// An erased customer's events stay, verify, and say that they were erased.
func TestErasure(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.record(3)
		h.sequence()
		h.record(1) // still waits when the key goes
		h.erase(h.ada)
		h.record(1)
		h.sequence()
		r := h.holds()
		if r.Events != 5 || r.Erased != 4 {
			t.Errorf("got %+v", r)
		}
		var erased, after int
		for _, e := range h.tail() {
			if e.Action != "test.thing.do" {
				continue
			}
			switch e.Personal["address"] {
			case audit.Erased:
				erased++
			case "":
				after++ // recorded after the erasure: of the erased customer's own deed nothing personal is kept
			}
		}
		if erased != 4 || after != 1 {
			t.Errorf("%d erased, %d after", erased, after)
		}
		// A key that is gone without a record of its erasure is a finding.
		eve := h.newCustomer()
		e := audit.Event{Action: "test.thing.do", Customer: eve}
		for range 3 {
			if err := h.trail.Do(t.Context(), h.by, e, nothing); err != nil {
				t.Fatal(err)
			}
		}
		h.sequence()
		h.exec(`DELETE FROM data_key WHERE customer_id = $1`, eve)
		h.ring.Forget(eve)
		if r := h.verify(); len(r.Findings) != 1 || r.Findings[0].Kind != audit.Altered || !strings.Contains(r.Findings[0].Detail, string(eve)) {
			t.Errorf("got %+v", r.Findings)
		}
		if e := h.newest("test.thing.do"); e.Personal["address"] != audit.Unreadable {
			t.Errorf("got %+v", e)
		}
	})
}

func TestJob(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		runner := jobs.New(d, jobs.Options{})
		h := newHouse(t, d, audit.Options{Holder: runner.Holder(), Wake: func() { runner.Wake(audit.JobName) }})
		runner.Add(h.trail.Job())
		runner.Start(t.Context())
		for round := range int64(3) {
			h.record(10)
			for h.count(`SELECT size FROM log_head`) != 10*(round+1) {
				time.Sleep(time.Millisecond) // the log's growth shows in the database only
			}
		}
		if err := runner.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if s := h.ask(`SELECT holder FROM log_head`); s != runner.Holder() {
			t.Errorf("the log's holder is %q", s)
		}
		h.holds()
	})
}

// A process that lost its lease leaves nothing behind, even if the head has not moved.
func TestLateSequencerIsFenced(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.record(3)
		job := h.trail.Job()
		first := jobs.New(d, jobs.Options{Holder: "first"})
		begun, result := make(chan struct{}), make(chan error, 1)
		first.Add(jobs.Job{Name: job.Name, Leased: true, Quiet: true, Run: func(ctx context.Context) error {
			h.exec(`UPDATE lease SET holder = 'second', epoch = epoch + 1 WHERE name = $1`, job.Name)
			close(begun)
			_, err := h.trail.Sequence(ctx)
			result <- err
			return err
		}})
		first.Start(t.Context())
		first.Wake(job.Name)
		<-begun
		if err := <-result; err == nil {
			t.Error("it went on without its lease")
		}
		if err := first.Stop(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := h.count(`SELECT size FROM log_head`); n != 0 {
			t.Errorf("the log has %d events", n)
		}
		h.sequence()
		h.holds()
	})
}

// Sequencers without any lease, on one database, make one log: compare-and-swap suffices.
func TestSequencersNeverFork(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		const writers, each = 4, 60
		var group, sequencers sync.WaitGroup
		done := make(chan struct{})
		trails := []*audit.Trail{h.trail, audit.New(d, h.ring, audit.Options{}), audit.New(d, h.ring, audit.Options{})}
		var total [3]int
		for i, trail := range trails {
			sequencers.Go(func() {
				for last := false; ; {
					n, err := trail.Sequence(context.Background())
					if err != nil {
						t.Errorf("sequencer %d: %v", i, err)
						return
					}
					total[i] += n
					if last {
						return
					}
					select {
					case <-done:
						last = n == 0
					default:
					}
				}
			})
		}
		for range writers {
			group.Go(func() { h.record(each) })
		}
		group.Wait()
		close(done)
		sequencers.Wait()
		h.sequence()
		t.Logf("sequenced %v", total)
		r := h.holds()
		if r.Events != writers*each || r.Pending != 0 {
			t.Errorf("got %+v", r)
		}
		if n := h.count(`SELECT count(DISTINCT event_id) FROM event_leaf`); n != writers*each {
			t.Errorf("%d events have a place", n)
		}
	})
}

// A database that was put back to an older state is noticed by what is remembered outside of it.
func TestRolledBack(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		path := filepath.Join(t.TempDir(), "checkpoint")
		h := newHouse(t, d, audit.Options{Remember: audit.RememberFile(path)})
		h.record(300)
		h.sequence()
		first := h.count(`SELECT size FROM log_head`)
		saved := map[string]string{"root": h.ask(`SELECT root FROM log_head`)}
		h.record(20)
		// Another process, which stores what it signs at once.
		other := audit.New(d, h.ring, audit.Options{Remember: audit.RememberFile(path)})
		if _, err := other.Sequence(t.Context()); err != nil {
			t.Fatal(err)
		}
		h.sequence()
		h.holds()
		h.sequence()

		back := func() {
			h.exec(`DELETE FROM event WHERE id IN (SELECT event_id FROM event_leaf WHERE idx >= $1)`, first)
			h.exec(`DELETE FROM event WHERE id IN (SELECT event_id FROM event_pending)`)
			h.exec(`DELETE FROM event_pending`)
			h.exec(`DELETE FROM event_leaf WHERE idx >= $1`, first)
			h.exec(`DELETE FROM log_checkpoint WHERE size > $1`, first)
			h.exec(`UPDATE log_head SET size = $1, root = $2, epoch = 1`, first, saved["root"])
		}
		back()
		if _, err := h.trail.Sequence(t.Context()); !errors.Is(err, audit.ErrRolledBack) {
			t.Errorf("the process that saw it: %v", err)
		}
		fresh := audit.New(d, h.ring, audit.Options{Remember: audit.RememberFile(path)})
		if _, err := fresh.Sequence(t.Context()); !errors.Is(err, audit.ErrRolledBack) {
			t.Errorf("a new process: %v", err)
		}
		r, err := fresh.Verify(t.Context(), operator, nil)
		if err != nil || !slices.ContainsFunc(r.Findings, func(f audit.Finding) bool { return f.Kind == audit.RolledBack }) {
			t.Errorf("got %+v, %v", r.Findings, err)
		}

		// The tiles of the longer log do not fit either, so not even a process without memory goes on.
		forgetful := audit.New(d, h.ring, audit.Options{})
		if err := forgetful.Do(t.Context(), h.by, audit.Event{Action: "test.thing.do"}, nothing); err != nil {
			t.Fatal(err)
		}
		if _, err := forgetful.Sequence(t.Context()); err == nil {
			t.Error("sequenced over tiles that do not fit")
		}
	})
}

func TestForked(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		path := filepath.Join(t.TempDir(), "checkpoint")
		h := newHouse(t, d, audit.Options{Remember: audit.RememberFile(path)})
		h.record(5)
		h.sequence()
		// All is taken back and another log grown, by somebody who has the keys.
		for _, table := range []string{"event", "event_leaf", "event_pending", "log_tile", "log_checkpoint"} {
			h.exec(`DELETE FROM ` + table)
		}
		h.exec(`UPDATE log_head SET size = 0, epoch = 0, root = '47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='`)
		forger := audit.New(d, h.ring, audit.Options{})
		for range 7 {
			if err := forger.Do(t.Context(), h.by, audit.Event{Action: "test.thing.do"}, nothing); err != nil {
				t.Fatal(err)
			}
		}
		if n, err := forger.Sequence(t.Context()); n != 7 || err != nil {
			t.Fatalf("got %d, %v", n, err)
		}
		if r, err := forger.Verify(t.Context(), operator, nil); err != nil || len(r.Findings) != 0 {
			t.Fatalf("the forger sees nothing: %+v, %v", r.Findings, err)
		}
		r := h.verify()
		if len(r.Findings) != 1 || r.Findings[0].Kind != audit.Forked || r.Findings[0].Index != 4 {
			t.Errorf("got %+v", r.Findings)
		}
		if _, err := h.trail.Sequence(t.Context()); !errors.Is(err, audit.ErrRolledBack) {
			t.Errorf("got %v", err)
		}
	})
}

type handler struct {
	slog.Handler
	lines *int
}

func (h handler) Enabled(context.Context, slog.Level) bool { return true }
func (h handler) Handle(_ context.Context, r slog.Record) error {
	if r.Level == slog.LevelError {
		*h.lines++
	}
	return nil
}

// Somebody with access to the database puts events into it: they get no place, are told once, and
// hold up nothing.
func TestPlantedEventsAreQuarantined(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		var told int
		h := newHouse(t, d, audit.Options{Log: slog.New(handler{lines: &told})})
		h.record(2)
		genuine := h.ask(`SELECT min(id) FROM event`)
		plant := func(id, columns string) {
			h.exec(`INSERT INTO event (id, version, made_at, actor_kind, actor_id, device_id, session_id, action, resource,
					customer_id, outcome, reason, transaction_id, request_id, sealed_under, commitment, sealed, mac_version, mac)
				SELECT '`+id+`', `+columns+` FROM event WHERE id = $1`, genuine)
			h.exec(`INSERT INTO event_pending (event_id) VALUES ($1)`, id)
		}
		const rest = `made_at, actor_kind, actor_id, device_id, session_id, action, resource, customer_id, outcome, reason,
			transaction_id, request_id, sealed_under, commitment, sealed, mac_version, mac`
		plant("evt_0", "version, "+rest)
		plant("evt_1", "7, "+rest)
		plant("zzz", "version, "+rest)
		h.exec(`INSERT INTO event_pending (event_id) VALUES ('evt_2')`) // no event at all
		h.record(2)
		h.sequence()
		h.record(1)
		h.sequence()
		if n := h.count(`SELECT size FROM log_head`); n != 5 {
			t.Errorf("%d events were sequenced", n)
		}
		if told != 4 {
			t.Errorf("%d lines were logged", told)
		}
		kinds := findings(h.verify())
		want := map[string]audit.Kind{"evt_0": audit.Inserted, "evt_1": audit.Inserted, "zzz": audit.Inserted, "evt_2": audit.Dropped}
		if len(kinds) != len(want) {
			t.Errorf("got %v", kinds)
		}
		for id, kind := range want {
			if kinds[id].Kind != kind {
				t.Errorf("%s: got %+v", id, kinds[id])
			}
		}
	})
}

func findings(r audit.Report) map[string]audit.Finding {
	m := make(map[string]audit.Finding)
	for _, f := range r.Findings {
		m[f.Event] = f
	}
	return m
}
