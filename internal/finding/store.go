package finding

import (
	"context"
	"database/sql"
	"errors"

	"strongroom/internal/clock"
	"strongroom/internal/db"
)

// openFinding is what Raise has to know of a finding that is open.
type openFinding struct {
	detail string
	seen   int64 // Unix microseconds
}

func selectOpen(ctx context.Context, tx *db.Tx, kind, subject string) (*openFinding, error) {
	var f openFinding
	err := tx.QueryRow(ctx, `
		SELECT detail, seen_at FROM finding
		WHERE kind = $1 AND subject = $2 AND cleared_at IS NULL`, kind, subject).Scan(&f.detail, &f.seen)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, nil
	}
	return &f, err
}

// seen notes that an open finding still holds, and reports whether there was one.
func seen(ctx context.Context, tx *db.Tx, kind, subject, detail string, now int64) (bool, error) {
	n, err := tx.Exec(ctx, `
		UPDATE finding SET detail = $3, seen_at = $4, times = times + 1
		WHERE kind = $1 AND subject = $2 AND cleared_at IS NULL`, kind, subject, detail, now)
	return n == 1, err
}

func open(ctx context.Context, tx *db.Tx, kind, subject, detail string, now int64) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO finding (kind, subject, detail, opened_at, seen_at, times) VALUES ($1, $2, $3, $4, $4, 1)
		ON CONFLICT (kind, subject) DO UPDATE
			SET detail = excluded.detail, opened_at = excluded.opened_at, seen_at = excluded.seen_at, times = 1, cleared_at = NULL`,
		kind, subject, detail, now)
	return err
}

func clearOpen(ctx context.Context, tx *db.Tx, kind, subject string, now int64) (bool, error) {
	n, err := tx.Exec(ctx, `
		UPDATE finding SET cleared_at = $3 WHERE kind = $1 AND subject = $2 AND cleared_at IS NULL`, kind, subject, now)
	return n == 1, err
}

func selectAll(ctx context.Context, tx *db.Tx, all bool) ([]Finding, error) {
	every := 0
	if all {
		every = 1
	}
	rows, err := tx.Query(ctx, `
		SELECT kind, subject, detail, opened_at, seen_at, times, cleared_at FROM finding
		WHERE cleared_at IS NULL OR $1 = 1 ORDER BY opened_at DESC, kind, subject LIMIT $2`, every, maxListed)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	list := []Finding{}
	for rows.Next() {
		var f Finding
		var opened, seen int64
		var cleared sql.NullInt64
		if err := rows.Scan(&f.Kind, &f.Subject, &f.Detail, &opened, &seen, &f.Times, &cleared); err != nil {
			return nil, err
		}
		f.Opened, f.Seen = clock.FromMicros(opened), clock.FromMicros(seen)
		if cleared.Valid {
			at := clock.FromMicros(cleared.Int64)
			f.Cleared = &at
		}
		list = append(list, f)
	}
	return list, rows.Err()
}
