package keyring

import (
	"context"
	"time"

	"strongroom/internal/check"
	"strongroom/internal/clock"
	"strongroom/internal/db"
)

// overdue is how long after its date a rotation may begin: a server may have been down.
const overdue = 48 * time.Hour

// CheckSchedule reads the rows of the key-encryption and service keys: none that seals may be older than its
// schedule allows or be marked compromised.
func (k *Keyring) CheckSchedule(ctx context.Context) check.Observation {
	did := "read the age and state of every key-encryption key and service key from the database"
	var rows keyRows
	err := k.db.View(ctx, func(tx *db.Tx) (err error) {
		rows, err = selectKeys(ctx, tx)
		return err
	})
	if err != nil {
		return check.Undecided(did, "The keys could not be read: %v", err)
	}
	now, oldest, n := k.clock.Now(), time.Duration(0), 0
	late := func(every time.Duration, state string, madeAt int64) bool {
		if state != active {
			return false
		}
		n++
		oldest = max(oldest, now.Sub(clock.FromMicros(madeAt)))
		due := next(every, state, madeAt)
		return !due.IsZero() && now.After(due.Add(overdue))
	}
	for _, r := range rows.keks {
		if late(k.kekEvery, r.state, r.madeAt) {
			return check.Failed(did, "The key-encryption key %d was made on %s and should have been rotated.", r.version, clock.FromMicros(r.madeAt).Format(time.DateOnly))
		}
	}
	for _, r := range rows.services {
		if late(k.everyService(r.name), r.state, r.madeAt) {
			return check.Failed(did, "The key %s/%d was made on %s and should have been rotated.", r.name, r.version, clock.FromMicros(r.madeAt).Format(time.DateOnly))
		}
	}
	if k.kekEvery <= 0 || k.serviceEvery <= 0 {
		return check.Undecided(did, "No schedule is set: keys.kek_every and keys.service_every say how old a key may become.")
	}
	days := int(oldest.Hours() / 24)
	return check.Held(did, "The oldest of %d keys in use is %d days old.", n, days).With("keys", n).With("oldest_days", days)
}

// CheckRoot has the root key open the active key-encryption key, as a server does that starts.
func (k *Keyring) CheckRoot(ctx context.Context) check.Observation {
	did := "asked the root key to open the active key-encryption key"
	if err := k.probe(ctx); err != nil {
		if ctx.Err() != nil {
			return check.Undecided(did, "It did not answer in time.")
		}
		return check.Failed(did, "The root key does not open the active key-encryption key: a server could not start.")
	}
	return check.Held(did, "It opened it.")
}
