package backup

import (
	"context"
	"encoding/json"
	"errors"

	"strongroom/internal/db"
)

// run is a row of backup_run.
type run struct {
	id             string
	started, ended int64
	outcome        string // kept, partial, failed
	reason         string
	figures        figures
	class          string
	needs          map[string][]uint32
}

func insertRun(ctx context.Context, tx *db.Tx, r run) error {
	f, err := json.Marshal(r.figures)
	if err != nil {
		return err
	}
	needs, err := json.Marshal(r.needs)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO backup_run (id, started_at, ended_at, outcome, reason, figures, class, needs) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)`,
		r.id, r.started, r.ended, r.outcome, r.reason, string(f), r.class, string(needs))
	return err
}

// selectRuns returns the runs that are not pruned, the newest first.
func selectRuns(ctx context.Context, tx *db.Tx, limit int) (all []run, err error) {
	rows, err := tx.Query(ctx, `
		SELECT id, started_at, ended_at, outcome, reason, figures, class, needs FROM backup_run
		WHERE pruned_at IS NULL ORDER BY started_at DESC, id DESC LIMIT $1`, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r run
		var f, needs string
		if err := rows.Scan(&r.id, &r.started, &r.ended, &r.outcome, &r.reason, &f, &r.class, &needs); err != nil {
			return nil, err
		}
		if err := errors.Join(json.Unmarshal([]byte(f), &r.figures), json.Unmarshal([]byte(needs), &r.needs)); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// countTombstones returns how many customers were erased.
func countTombstones(ctx context.Context, tx *db.Tx) (n int64, err error) {
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM data_key_tombstone WHERE erased_at >= $1`, 0).Scan(&n)
	return n, err
}

// treeOf returns the size and root of the trail's tree.
func treeOf(ctx context.Context, tx *db.Tx) (size int64, root string, err error) {
	err = tx.QueryRow(ctx, `SELECT size, root FROM log_head WHERE one = $1`, 1).Scan(&size, &root)
	return size, root, err
}
