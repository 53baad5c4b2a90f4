package audit_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/jobs"
	"strongroom/internal/problem"
)

// recordAtOnce is record in one transaction.
func (h *house) recordAtOnce(n int) {
	h.t.Helper()
	h.update(func(tx *db.Tx) error {
		for i := range n {
			e := audit.Event{Action: "test.thing.do", Resource: fmt.Sprintf("thing %d", i), Customer: h.ada, Outcome: audit.Granted}
			if err := h.trail.Record(context.Background(), tx, h.by, e); err != nil {
				return err
			}
		}
		return nil
	})
}

func exportAll(t *testing.T, h *house, q audit.ExportQuery) []audit.Entry {
	t.Helper()
	var all []audit.Entry
	err := h.trail.Export(context.Background(), operator, q, func(events []audit.Entry) error {
		all = append(all, events...)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestExport(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		clk := clock.NewManual(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
		h := newHouse(t, d, audit.Options{Clock: clk})
		h.recordAtOnce(600) // more than a page
		clk.Advance(24 * time.Hour)
		bob := h.newCustomer()
		if err := h.trail.Do(context.Background(), operator, audit.Event{Action: "test.other.do", Customer: bob}, nothing); err != nil {
			t.Fatal(err)
		}
		h.sequence()
		clk.Advance(24 * time.Hour)

		export := func(q audit.ExportQuery) []audit.Entry {
			clk.Advance(time.Minute)
			return exportAll(t, h, q)
		}
		all := export(audit.ExportQuery{})
		if len(all) != 601 || !slices.IsSortedFunc(all, func(a, b audit.Entry) int { return a.Time.Compare(b.Time) }) {
			t.Errorf("%d events", len(all))
		}
		for _, e := range all {
			if e.Personal != nil || e.Outcome != audit.Granted || e.Index < 0 {
				t.Fatalf("%+v", e)
			}
		}
		second := time.Date(2026, 3, 2, 0, 0, 0, 0, time.UTC)
		if got := export(audit.ExportQuery{Since: second}); got[0].Customer != bob || got[1].Action != audit.ActionExport || len(got) != 2 {
			t.Errorf("since: %+v", got)
		}
		if got := export(audit.ExportQuery{Until: second}); len(got) != 600 {
			t.Errorf("until: %d events", len(got))
		}
		got := export(audit.ExportQuery{Customer: h.ada, Reveal: true, Reason: "a request by Ada", Until: second})
		if len(got) != 600 || got[0].Personal["address"] != address.String() {
			t.Errorf("revealed: %d events, %+v", len(got), got[0])
		}
		last := export(audit.ExportQuery{Reveal: true, Reason: "to see the export's event"})
		i := slices.IndexFunc(last, func(e audit.Entry) bool { return e.Personal["reason"] == "a request by Ada" })
		if i < 0 || last[i].Customer != h.ada || last[i].Resource != "trail with personal parts" {
			t.Error("the export with its reason is not in the trail")
		}

		rows := []struct {
			by   actor.Actor
			q    audit.ExportQuery
			slug string
		}{
			{h.by, audit.ExportQuery{}, "trail-not-allowed"},
			{operator, audit.ExportQuery{Reveal: true, Reason: " "}, "reason-needed"},
			{operator, audit.ExportQuery{Since: second, Until: second}, "invalid-period"},
			{operator, audit.ExportQuery{Until: time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)}, "invalid-period"},
			{operator, audit.ExportQuery{Customer: "cus_'--"}, "invalid-customer"},
		}
		for _, row := range rows {
			err := h.trail.Export(context.Background(), row.by, row.q, func([]audit.Entry) error { t.Error("an event left"); return nil })
			if !problem.Is(err, row.slug) {
				t.Errorf("%s: %v", row.slug, err)
			}
			if h.count(`SELECT count(*) FROM event WHERE action = $1 AND outcome = 'denied' AND reason = $2`, audit.ActionExport, row.slug) == 0 {
				t.Errorf("%s left no event", row.slug)
			}
		}
		// One that is cut short says so, beside its beginning.
		err := h.trail.Export(context.Background(), operator, audit.ExportQuery{}, func([]audit.Entry) error { return errors.New("disk full") })
		if err == nil || h.count(`SELECT count(*) FROM event WHERE action = $1 AND outcome = 'failed'`, audit.ActionExport) != 1 {
			t.Errorf("cut short: %v", err)
		}
		h.exec(`UPDATE event SET resource = 'altered' WHERE id = $1`, all[3].ID)
		if got := export(audit.ExportQuery{}); got[3].Outcome != audit.Unverified {
			t.Errorf("an altered event: %+v", got[3])
		}
		h.erase(h.ada)
		if got := export(audit.ExportQuery{Reveal: true, Reason: "after erasure"}); got[0].Personal["address"] != audit.Erased {
			t.Errorf("after erasure: %+v", got[0])
		}
	})
}

// memory is a sink and a place of findings that remember.
type memory struct {
	mu     sync.Mutex
	fail   func() error // before the events are kept; nil never
	got    []audit.Entry
	raised []string
}

func (m *memory) Send(_ context.Context, events []audit.Entry) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fail != nil {
		if err := m.fail(); err != nil {
			return err
		}
	}
	m.got = append(m.got, events...)
	return nil
}

func (m *memory) Raise(_ context.Context, kind, subject, _ string) error {
	m.raised = append(m.raised, "raise "+kind+" "+subject)
	return nil
}

func (m *memory) Clear(_ context.Context, kind, subject string) error {
	m.raised = append(m.raised, "clear "+kind+" "+subject)
	return nil
}

func (h *house) streams(t *testing.T, m *memory, personal bool, r prometheus.Registerer) (watch, send jobs.Job) {
	t.Helper()
	s, err := h.trail.OpenStreams(context.Background(), operator,
		[]audit.Stream{{Name: "siem", Form: "test", Personal: personal, To: m}}, m, r)
	if err != nil {
		t.Fatal(err)
	}
	list := s.Jobs()
	if len(list) != 2 || !list[1].Leased || list[0].Leased {
		t.Fatalf("%+v", list)
	}
	return list[0], list[1]
}

// A sink gets every event in the order of the log, once as long as it does not fail, from where the last
// process left off; a failing one is left in peace for a while, and is a finding when it is far behind.
func TestStream(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		clk := clock.NewManual(time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC))
		h := newHouse(t, d, audit.Options{Clock: clk})
		m, registry := new(memory), prometheus.NewRegistry()
		watch, send := h.streams(t, m, false, registry)
		run := func(j jobs.Job) error { return j.Run(ctx) }

		h.recordAtOnce(300) // more than a page
		if err := run(send); err != nil || len(m.got) != 0 {
			t.Fatalf("events without a place were sent: %d, %v", len(m.got), err)
		}
		h.sequence()
		if err := errors.Join(run(send), run(send), run(watch)); err != nil {
			t.Fatal(err)
		}
		if len(m.got) != 301 || m.got[0].Action != audit.ActionSinkStart || m.got[0].Resource != "sink siem test, without personal parts" {
			t.Fatalf("%d events, first %+v", len(m.got), m.got[0])
		}

		failures := 0
		m.fail = func() error { failures++; return errors.New("the receiver is down") }
		h.record(2)
		h.sequence()
		for range 3 {
			_ = run(send)
		}
		if failures != 1 {
			t.Errorf("a sink that failed was asked %d times at once", failures)
		}
		for _, wait := range []time.Duration{time.Second, 2 * time.Second, 4 * time.Second} {
			before := failures
			clk.Advance(wait - time.Millisecond)
			_ = run(send)
			clk.Advance(time.Millisecond)
			if err := run(send); err == nil || failures != before+1 {
				t.Errorf("after %v: %d tries, %v", wait, failures-before, err)
			}
		}
		clk.Advance(6 * time.Minute)
		if err := errors.Join(run(watch), run(watch)); err != nil {
			t.Fatal(err)
		}
		gauge := func(name string) float64 {
			families, err := registry.Gather()
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range families {
				if f.GetName() == name {
					return f.GetMetric()[0].GetGauge().GetValue() + f.GetMetric()[0].GetCounter().GetValue()
				}
			}
			t.Fatalf("there is no %s", name)
			return 0
		}
		if gauge("strongroom_audit_sink_lag_events") != 2 || gauge("strongroom_audit_sink_lag_seconds") < 360 || gauge("strongroom_audit_sink_failures_total") != 4 {
			t.Error("the metrics do not say that the sink is behind")
		}
		m.fail = nil
		if err := errors.Join(run(send), run(watch)); err != nil {
			t.Fatal(err)
		}
		if want := []string{"clear audit.sink-lag siem", "raise audit.sink-lag siem", "clear audit.sink-lag siem"}; !slices.Equal(m.raised, want) {
			t.Errorf("findings: %v", m.raised)
		}
		if n, err := testutil.GatherAndCount(registry); err != nil || n == 0 {
			t.Error(n, err)
		}

		// Another process goes on where this one stopped.
		next := new(memory)
		_, send = h.streams(t, next, true, nil)
		h.record(1)
		h.sequence()
		if err := run(send); err != nil {
			t.Fatal(err)
		}
		all := append(m.got, next.got...)
		for i, e := range all {
			if e.Index != int64(i) {
				t.Fatalf("place %d has the event of index %d", i, e.Index)
			}
		}
		if last := all[len(all)-1]; last.Personal["address"] != address.String() || all[5].Personal != nil {
			t.Errorf("personal parts: %+v, %+v", last, all[5])
		}
	})
}

// A process that lost the lease in the middle moves nothing: the events come twice, and none is skipped.
func TestStreamLosesItsLease(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx := context.Background()
		h := newHouse(t, d, audit.Options{})
		m := new(memory)
		_, send := h.streams(t, m, false, nil)
		h.record(3)
		h.sequence()
		m.fail = func() error {
			h.exec(`UPDATE lease SET holder = 'somebody else', epoch = epoch + 1 WHERE name = $1`, send.Name)
			return nil
		}
		done := make(chan error, 1)
		runner := jobs.New(d, jobs.Options{Holder: "me"})
		again := send
		again.Run = func(ctx context.Context) error {
			err := send.Run(ctx)
			select {
			case done <- err:
			default:
			}
			return err
		}
		runner.Add(again)
		runner.Start(ctx)
		runner.Wake(send.Name)
		err := <-done
		if stopped := runner.Stop(ctx); stopped != nil {
			t.Fatal(stopped)
		}
		if err == nil || !strings.Contains(err.Error(), "lease was lost") {
			t.Fatalf("without the lease: %v", err)
		}
		m.fail = nil
		if err := send.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if len(m.got) < 8 || m.got[len(m.got)-1].Index != 3 || h.ask(`SELECT next FROM audit_sink`) != "4" {
			t.Errorf("%d events", len(m.got))
		}
	})
}

// A database that was put back to before what was sent is not sent again as if nothing had happened.
func TestStreamNoticesARollBack(t *testing.T) {
	d := dbtest.Open(t, db.SQLite)
	h := newHouse(t, d, audit.Options{})
	_, send := h.streams(t, new(memory), false, nil)
	h.exec(`UPDATE audit_sink SET next = 100`)
	if err := send.Run(context.Background()); !errors.Is(err, audit.ErrRolledBack) {
		t.Errorf("got %v", err)
	}
	h.exec(`DELETE FROM audit_sink`)
	if err := send.Run(context.Background()); err == nil {
		t.Error("a cursor that is gone was not noticed")
	}
}
