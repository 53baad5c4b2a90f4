package vault_test

import (
	"strings"
	"testing"

	"strongroom/internal/actor"
	"strongroom/internal/check"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/vault"
)

// Every record has its turn, and one that was altered is found when it has.
func TestRecordsAreOpenedInTurns(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, collections())
		ctx := actor.With(t.Context(), actor.OfSystem("test"))
		look := func(want check.Outcome, sample int) {
			t.Helper()
			if seen := h.vault.CheckSomeRecords(ctx, 2); seen.Outcome != want || seen.Figures["sample"] != sample {
				t.Errorf("%+v, want %s of %d", seen, want, sample)
			}
		}
		look(check.Holds, 0)
		for range 5 {
			h.put(t, h.person(t), profile, adaProfile, vault.Condition{})
		}
		for range 2 {
			look(check.Holds, 2)
			look(check.Holds, 2)
			look(check.Holds, 1) // the last; then it begins anew
		}
		if err := d.Update(ctx, func(tx *db.Tx) error {
			_, err := tx.Exec(ctx, `UPDATE record SET version = version + 1 WHERE customer_id = (SELECT MAX(customer_id) FROM record)`)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		look(check.Holds, 2)
		look(check.Holds, 2)
		look(check.Fails, 1)
		if !strings.Contains(h.log.String(), "does not open") {
			t.Error("the log does not name the record")
		}
	})
}

// A rotation that loses what the old version sealed is seen, and one that does not is none of the customers'.
func TestRotationOfTheCanary(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		h := newHouse(t, d, collections())
		ctx := actor.With(t.Context(), actor.OfSystem("test"))
		for range 3 {
			if seen := h.vault.CheckRotation(ctx); seen.Outcome != check.Holds {
				t.Errorf("%+v", seen)
			}
		}
		if seen := h.vault.CheckCanary(ctx); seen.Outcome != check.Holds {
			t.Errorf("afterwards: %+v", seen)
		}
	})
}
