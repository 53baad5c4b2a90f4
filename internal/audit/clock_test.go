package audit_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// board is what is wrong, for tests.
type board map[string]string

func (b board) Raise(_ context.Context, kind, subject, detail string) error {
	b[kind+" "+subject] = detail
	return nil
}

func (b board) Clear(_ context.Context, kind, subject string) error {
	delete(b, kind+" "+subject)
	return nil
}

// shifted is the system's clock, set wrong.
type shifted struct{ by time.Duration }

func (s *shifted) Now() time.Time { return clock.System.Now().Add(s.by) }

func TestClocksThatAreApartAreAFinding(t *testing.T) {
	const finding = audit.FindingClockSkew + " servers"
	// The limit leaves room for a machine that is busy.
	const limit = time.Hour
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		found, registry := board{}, prometheus.NewRegistry()
		mine := &shifted{}
		h := newHouse(t, d, audit.Options{Holder: "run_a", Clock: mine, Findings: found, ClockLimit: limit, Metrics: registry})
		other := audit.New(d, h.ring, audit.Options{Holder: "run_b", Clock: &shifted{-50 * time.Minute}, ClockLimit: limit})
		look := func(want string) {
			t.Helper()
			if err := h.trail.CompareClocks(t.Context()); err != nil {
				t.Fatal(err)
			}
			if got := found[finding]; want == "" && got != "" || !strings.Contains(got, want) {
				t.Errorf("finding %q, want %q", got, want)
			}
		}
		look("")
		mine.by = 2 * time.Hour
		look("run_a is 2h")
		families, err := registry.Gather()
		if err != nil {
			t.Fatal(err)
		}
		measured := false
		for _, f := range families {
			if f.GetName() == "strongroom_audit_clock_skew_seconds" {
				measured = f.GetMetric()[0].GetGauge().GetValue() > 7000
			}
		}
		if !measured {
			t.Error("the skew is not measured")
		}
		mine.by = 0
		look("")
		// Each of the two is within the limit of the database, and they are not of each other.
		if err := other.CompareClocks(t.Context()); err != nil {
			t.Fatal(err)
		}
		look("")
		mine.by = 50 * time.Minute
		look("ahead of that of run_b")
		// What a server saw that has gone does not count for ever.
		h.exec(`UPDATE server_clock SET looked_at = looked_at - 120000000 WHERE holder = 'run_b'`)
		look("")
		// A clock that was set back is behind what was signed.
		h.record(1)
		h.sequence()
		mine.by = -40 * time.Minute
		look("behind the newest checkpoint")
		mine.by = 0
		h.exec(`UPDATE log_checkpoint SET made_at = made_at - 7200000000`)
		look("")
	})
}

func TestEventsOfAProcessAreInOrderWhateverItsClockDoes(t *testing.T) {
	wrong := &shifted{}
	h := newHouse(t, dbtest.Open(t, db.SQLite), audit.Options{Clock: wrong})
	for i := range 50 {
		wrong.by = -time.Duration(i) * 10 * time.Millisecond // slower than time passes, and backwards
		h.record(1)
	}
	list := h.tail()
	for i := range len(list) - 1 {
		if list[i].ID >= list[i+1].ID || !list[i].Time.Before(list[i+1].Time) {
			t.Fatalf("event %d is not after event %d", i+1, i)
		}
		if list[i+1].Resource != "thing 0" {
			t.Fatalf("event %+v", list[i+1])
		}
	}
}
