package backup

import (
	"context"
	"database/sql"
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

// markPruned notes that nothing needs the keys of these snapshots any more.
func markPruned(ctx context.Context, tx *db.Tx, ids []string, at int64) error {
	for _, id := range ids {
		if _, err := tx.Exec(ctx, `UPDATE backup_run SET pruned_at = $1 WHERE id = $2 AND pruned_at IS NULL`, at, id); err != nil {
			return err
		}
	}
	return nil
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

func putHold(ctx context.Context, tx *db.Tx, snapshot, reason, by string, at int64) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO backup_hold (snapshot, reason, held_by, held_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (snapshot) DO UPDATE SET reason = excluded.reason, held_by = excluded.held_by, held_at = excluded.held_at`,
		snapshot, reason, by, at)
	return err
}

func deleteHold(ctx context.Context, tx *db.Tx, snapshot string) (bool, error) {
	n, err := tx.Exec(ctx, `DELETE FROM backup_hold WHERE snapshot = $1`, snapshot)
	return n > 0, err
}

func readHolds(ctx context.Context, tx *db.Tx) (map[string]bool, error) {
	rows, err := tx.Query(ctx, `SELECT snapshot FROM backup_hold`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	held := make(map[string]bool)
	for rows.Next() {
		var snapshot string
		if err := rows.Scan(&snapshot); err != nil {
			return nil, err
		}
		held[snapshot] = true
	}
	return held, rows.Err()
}

func putApproval(ctx context.Context, tx *db.Tx, deed, approver string, at int64) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO backup_approval (deed, approver, approved_at) VALUES ($1, $2, $3)
		ON CONFLICT (deed, approver) DO UPDATE SET approved_at = excluded.approved_at`, deed, approver, at)
	return err
}

// approvers returns who approved a deed between two times.
func approvers(ctx context.Context, tx *db.Tx, deed string, from, to int64) ([]string, error) {
	rows, err := tx.Query(ctx, `
		SELECT approver FROM backup_approval WHERE deed = $1 AND approved_at >= $2 AND approved_at <= $3 ORDER BY approver`, deed, from, to)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var approver string
		if err := rows.Scan(&approver); err != nil {
			return nil, err
		}
		all = append(all, approver)
	}
	return all, rows.Err()
}

func deleteApprovals(ctx context.Context, tx *db.Tx, deed string) error {
	_, err := tx.Exec(ctx, `DELETE FROM backup_approval WHERE deed = $1`, deed)
	return err
}

// readRetention returns the retention in force; nothing if none was ever recorded.
func readRetention(ctx context.Context, tx *db.Tx) (string, error) {
	var kept string
	err := tx.QueryRow(ctx, `SELECT kept FROM backup_retention WHERE one = $1`, 1).Scan(&kept)
	if errors.Is(err, sql.ErrNoRows) {
		return "", nil
	}
	return kept, err
}

func putRetention(ctx context.Context, tx *db.Tx, kept string, at int64) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO backup_retention (one, kept, set_at) VALUES (1, $1, $2)
		ON CONFLICT (one) DO UPDATE SET kept = excluded.kept, set_at = excluded.set_at`, kept, at)
	return err
}
