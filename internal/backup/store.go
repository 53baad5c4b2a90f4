package backup

import (
	"context"

	"strongroom/internal/db"
)

func insertRun(ctx context.Context, tx *db.Tx, id string, started, ended int64, outcome, reason, figures string) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO backup_run (id, started_at, ended_at, outcome, reason, figures) VALUES ($1, $2, $3, $4, $5, $6)`,
		id, started, ended, outcome, reason, figures)
	return err
}

// treeOf returns the size and root of the trail's tree.
func treeOf(ctx context.Context, tx *db.Tx) (size int64, root string, err error) {
	err = tx.QueryRow(ctx, `SELECT size, root FROM log_head WHERE one = $1`, 1).Scan(&size, &root)
	return size, root, err
}
