package jobs

import (
	"context"
	"database/sql"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/db"
)

// insertRun notes that a run began, that runs which can no longer be running were lost, and forgets
// old history. Under the lease no other run of the job is alive; without it, a day says so.
func insertRun(ctx context.Context, tx *db.Tx, r Run, leased bool) error {
	began := r.Started.Add(-24 * time.Hour)
	if leased {
		began = r.Started
	}
	_, err := tx.Exec(ctx, `
		UPDATE job_run SET outcome = $1 WHERE name = $2 AND outcome = $3 AND started_at <= $4`,
		Lost, r.Name, Running, clock.Micros(began))
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `DELETE FROM job_run WHERE name = $1 AND started_at < $2`,
		r.Name, clock.Micros(r.Started.Add(-keep)))
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO job_run (id, name, holder, outcome, detail, started_at) VALUES ($1, $2, $3, $4, '', $5)`,
		r.ID, r.Name, r.Holder, r.Outcome, clock.Micros(r.Started))
	return err
}

// endRun notes the outcome of a run. The estimate of the next is the mean of the last runs that
// went well, this one among them.
func endRun(ctx context.Context, tx *db.Tx, r Run) error {
	_, err := tx.Exec(ctx, `
		UPDATE job_run SET outcome = $1, detail = $2, ended_at = $3, next_at = $4 WHERE id = $5`,
		r.Outcome, r.Detail, clock.Micros(r.Ended), micros(r.Next), r.ID)
	if err != nil {
		return err
	}
	var mean sql.NullFloat64
	err = tx.QueryRow(ctx, `
		SELECT AVG(took) FROM (
			SELECT ended_at - started_at AS took FROM job_run
			WHERE name = $1 AND outcome = $2 AND ended_at IS NOT NULL
			ORDER BY started_at DESC LIMIT 10) AS latest`, r.Name, OK).Scan(&mean)
	if err != nil || !mean.Valid {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE job_run SET estimate = $1 WHERE id = $2`, int64(mean.Float64), r.ID)
	return err
}

func lastStart(ctx context.Context, tx *db.Tx, name string) (time.Time, error) {
	var last sql.NullInt64
	err := tx.QueryRow(ctx, `SELECT MAX(started_at) FROM job_run WHERE name = $1`, name).Scan(&last)
	if err != nil || !last.Valid {
		return time.Time{}, err
	}
	return clock.FromMicros(last.Int64), nil
}

// History returns the latest runs of the job called name, newest first.
func History(ctx context.Context, d *db.DB, name string, limit int) ([]Run, error) {
	var out []Run
	err := d.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(ctx, `
			SELECT id, name, holder, outcome, detail, started_at, ended_at, estimate, next_at FROM job_run
			WHERE name = $1 ORDER BY started_at DESC, id DESC LIMIT $2`, name, limit)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var r Run
			var started int64
			var ended, estimate, next sql.NullInt64
			err := rows.Scan(&r.ID, &r.Name, &r.Holder, &r.Outcome, &r.Detail, &started, &ended, &estimate, &next)
			if err != nil {
				return err
			}
			r.Started = clock.FromMicros(started)
			if ended.Valid {
				r.Ended = clock.FromMicros(ended.Int64)
			}
			if next.Valid {
				r.Next = clock.FromMicros(next.Int64)
			}
			r.Estimate = time.Duration(estimate.Int64) * time.Microsecond
			out = append(out, r)
		}
		return rows.Err()
	})
	return out, err
}

func micros(t time.Time) any {
	if t.IsZero() {
		return nil
	}
	return clock.Micros(t)
}
