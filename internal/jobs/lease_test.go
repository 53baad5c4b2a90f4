package jobs_test

import (
	"context"
	"testing"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/jobs"
)

// A lease that no Acquire gave, because it would last for ever, is taken over; one within the clocks'
// difference is not.
func TestForgedLeaseIsTaken(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		now := clock.NewManual(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))
		const ttl = 15 * time.Second
		epoch, held, err := jobs.Acquire(t.Context(), d, now, "x", "a", ttl)
		if err != nil || !held {
			t.Fatal(held, err)
		}
		set := func(expires int64) {
			t.Helper()
			err := d.Update(context.Background(), func(tx *db.Tx) error {
				_, err := tx.Exec(t.Context(), `UPDATE lease SET holder = 'nobody', expires_at = $1`, expires)
				return err
			})
			if err != nil {
				t.Fatal(err)
			}
		}
		set(clock.Micros(now.Now().Add(ttl + time.Minute)))
		if _, held, err := jobs.Acquire(t.Context(), d, now, "x", "a", ttl); err != nil || held {
			t.Errorf("a lease by a clock that is a minute fast was taken: %v", err)
		}
		for _, expires := range []int64{clock.Micros(now.Now().Add(ttl+time.Minute)) + 1, 9e18, 1<<63 - 1} {
			set(expires)
			got, held, err := jobs.Acquire(t.Context(), d, now, "x", "a", ttl)
			if err != nil || !held || got <= epoch {
				t.Errorf("expires at %d: held %v, epoch %d after %d, %v", expires, held, got, epoch, err)
			}
			epoch = got
		}
	})
}
