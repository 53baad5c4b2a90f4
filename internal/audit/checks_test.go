package audit_test

import (
	"testing"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/check"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

func TestCheckClock(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		mine := &shifted{}
		h := newHouse(t, d, audit.Options{Clock: mine, ClockLimit: 10 * time.Minute}) // a busy machine may take its time
		look := func(when string, want check.Outcome) {
			t.Helper()
			if seen := h.trail.CheckClock(t.Context()); seen.Outcome != want {
				t.Errorf("%s: %+v", when, seen)
			}
		}
		look("as it is", check.Holds)
		mine.by = time.Hour
		look("set forward", check.Fails)
		look("and left there", check.Holds)
		h.record(3)
		h.sequence()
		look("with a checkpoint", check.Holds)
		mine.by = 0
		look("set back", check.Fails)
		look("behind the newest checkpoint", check.Fails)
	})
}

func TestCheckDetector(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		h.record(5)
		h.sequence()
		if seen := h.trail.CheckDetector(t.Context(), h.trail.Detects); seen.Outcome != check.Holds || seen.Figures["alterations"].(int) < 30 {
			t.Errorf("%+v", seen)
		}
		if seen := h.trail.CheckDetector(t.Context(), func(audit.Proof) error { return nil }); seen.Outcome != check.Fails {
			t.Errorf("a detector that sees nothing: %+v", seen)
		}
		if seen := h.trail.CheckDetector(t.Context(), func(audit.Proof) error { return audit.ErrProof }); seen.Outcome != check.Fails {
			t.Errorf("a detector that refuses everything: %+v", seen)
		}
	})
}

func TestCheckSearch(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, audit.Options{})
		ctx := actor.With(t.Context(), actor.OfSystem("test"))
		h.record(5)
		h.sequence()
		if err := h.trail.IndexAll(ctx); err != nil {
			t.Fatal(err)
		}
		if seen := h.trail.CheckSearch(ctx); seen.Outcome != check.Holds {
			t.Errorf("%+v", seen)
		}
		h.exec(`DELETE FROM event_search`)
		if seen := h.trail.CheckSearch(ctx); seen.Outcome != check.Fails {
			t.Errorf("without the index: %+v", seen)
		}
	})
}
