package jobs

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/db"
)

// Lease is the right to be the only one who does something. Epoch is raised whenever the holder
// changes, and never falls: it is the fencing token of what the holder does.
type Lease struct {
	Name, Holder string
	Epoch        int64
}

// maxSkew is how far the clocks of the replicas may be apart before they take leases from each other.
const maxSkew = time.Minute

// Acquire takes the lease called name for ttl, or renews it, when it is free, expired or holder's
// own. held is false when somebody else has it. The clocks of the replicas need to agree only
// roughly: who is late is stopped by Holds, not by the time. A lease that would last longer than
// anybody asks for was not given by Acquire, and is taken like an expired one.
func Acquire(ctx context.Context, d *db.DB, clk clock.Clock, name, holder string, ttl time.Duration) (epoch int64, held bool, err error) {
	err = d.UpdateReadCommitted(ctx, func(tx *db.Tx) error {
		now := clk.Now()
		epoch, held = 0, false
		err := tx.QueryRow(ctx, `
			INSERT INTO lease (name, holder, epoch, expires_at) VALUES ($1, $2, 1, $3)
			ON CONFLICT (name) DO UPDATE
				SET epoch = lease.epoch + CASE WHEN lease.holder = excluded.holder THEN 0 ELSE 1 END,
				    holder = excluded.holder, expires_at = excluded.expires_at
				WHERE lease.holder = excluded.holder OR lease.expires_at <= $4 OR lease.expires_at > $5
			RETURNING epoch`, name, holder, clock.Micros(now.Add(ttl)), clock.Micros(now),
			clock.Micros(now.Add(ttl+maxSkew))).Scan(&epoch)
		if errors.Is(err, sql.ErrNoRows) {
			return nil
		}
		held = err == nil
		return err
	})
	if err != nil {
		return 0, false, err
	}
	return epoch, held, nil
}

// Holds reports whether holder still has the lease with that epoch, inside the transaction of the
// deed that needs it. Nobody can take the lease over before that transaction has ended, so a
// process that was late finds out here and leaves nothing behind.
func Holds(ctx context.Context, tx *db.Tx, name, holder string, epoch int64) (bool, error) {
	// Writing the row, and not only reading it, is what locks it on PostgreSQL.
	n, err := tx.Exec(ctx, `UPDATE lease SET epoch = epoch WHERE name = $1 AND holder = $2 AND epoch = $3`,
		name, holder, epoch)
	return n == 1, err
}

// Release gives the lease back, if holder still has it with that epoch.
func Release(ctx context.Context, d *db.DB, name, holder string, epoch int64) error {
	return d.UpdateReadCommitted(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `
			UPDATE lease SET holder = '', expires_at = 0 WHERE name = $1 AND holder = $2 AND epoch = $3`,
			name, holder, epoch)
		return err
	})
}
