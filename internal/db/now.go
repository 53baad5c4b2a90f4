package db

import (
	"context"
	"time"

	"strongroom/internal/clock"
)

// Now returns what the database's own clock says: of PostgreSQL the server's, of the embedded database this
// host's.
func (d *DB) Now(ctx context.Context) (time.Time, error) {
	query := `SELECT CAST(unixepoch('subsec') * 1000000 AS INTEGER)`
	if d.kind == PostgreSQL {
		query = `SELECT CAST(extract(epoch FROM clock_timestamp()) * 1000000 AS BIGINT)`
	}
	var us int64
	err := d.View(ctx, func(tx *Tx) error { return tx.QueryRow(ctx, query).Scan(&us) })
	return clock.FromMicros(us), err
}
