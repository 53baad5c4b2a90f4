package report

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"

	"strongroom/internal/clock"
	"strongroom/internal/db"
)

// KeyNeeded says whether reports need a version of a service key, or returns "". The job seals them anew under the
// newest version within minutes.
func KeyNeeded(ctx context.Context, tx *db.Tx, name string, version uint32) (by string, err error) {
	if name != sealingKey {
		return "", nil
	}
	var n int64
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM security_report WHERE substr(sealed, 2, 4) = $1`,
		binary.BigEndian.AppendUint32(nil, version)).Scan(&n)
	if err != nil || n == 0 {
		return "", err
	}
	return fmt.Sprintf("%d security reports", n), nil
}

func insertReport(ctx context.Context, tx *db.Tx, reference string, now int64, sealed []byte) error {
	_, err := tx.Exec(ctx, `INSERT INTO security_report (id, made_at, sealed) VALUES ($1, $2, $3)`, reference, now, sealed)
	return err
}

// entryOf makes an entry of a row.
func entryOf(reference string, made int64, closed sql.NullInt64, by, verdict string) Entry {
	e := Entry{Reference: reference, Received: clock.FromMicros(made), ClosedBy: by, Verdict: verdict}
	if closed.Valid {
		at := clock.FromMicros(closed.Int64)
		e.Closed = &at
	}
	return e
}

func selectReports(ctx context.Context, tx *db.Tx, all bool) ([]Entry, error) {
	every := 0
	if all {
		every = 1
	}
	rows, err := tx.Query(ctx, `
		SELECT id, made_at, closed_at, closed_by, verdict FROM security_report
		WHERE closed_at IS NULL OR $1 = 1 ORDER BY made_at DESC, id LIMIT $2`, every, 1000)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	list := []Entry{}
	for rows.Next() {
		var reference, by, verdict string
		var made int64
		var closed sql.NullInt64
		if err := rows.Scan(&reference, &made, &closed, &by, &verdict); err != nil {
			return nil, err
		}
		list = append(list, entryOf(reference, made, closed, by, verdict))
	}
	return list, rows.Err()
}

// selectReport returns a report, sealed, or errNotFound.
func selectReport(ctx context.Context, tx *db.Tx, reference string) (Entry, []byte, error) {
	var by, verdict string
	var made int64
	var closed sql.NullInt64
	var sealed []byte
	err := tx.QueryRow(ctx, `SELECT made_at, closed_at, closed_by, verdict, sealed FROM security_report WHERE id = $1`, reference).
		Scan(&made, &closed, &by, &verdict, &sealed)
	if errors.Is(err, sql.ErrNoRows) {
		return Entry{}, nil, errNotFound
	}
	return entryOf(reference, made, closed, by, verdict), sealed, err
}

func closeReport(ctx context.Context, tx *db.Tx, reference string, now int64, by, verdict string) error {
	_, err := tx.Exec(ctx, `UPDATE security_report SET closed_at = $1, closed_by = $2, verdict = $3 WHERE id = $4`, now, by, verdict, reference)
	return err
}

// names reads the rows of a query for ids.
func names(ctx context.Context, tx *db.Tx, query string, args ...any) (list []string, err error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return nil, err
		}
		list = append(list, name)
	}
	return list, rows.Err()
}

// selectOpen returns the references of the oldest reports that are open.
func selectOpen(ctx context.Context, tx *db.Tx) ([]string, error) {
	return names(ctx, tx, `SELECT id FROM security_report WHERE closed_at IS NULL ORDER BY made_at LIMIT $1`, 1000)
}

func deleteClosed(ctx context.Context, tx *db.Tx, before int64, limit int) ([]string, error) {
	gone, err := names(ctx, tx, `SELECT id FROM security_report WHERE closed_at < $1 ORDER BY closed_at LIMIT $2`, before, limit)
	if err != nil {
		return nil, err
	}
	for _, reference := range gone {
		if _, err := tx.Exec(ctx, `DELETE FROM security_report WHERE id = $1`, reference); err != nil {
			return nil, err
		}
	}
	return gone, nil
}

// sealedOf reads the rows of a query for ids and sealed reports.
func sealedOf(ctx context.Context, tx *db.Tx, query string, args ...any) (map[string][]byte, error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	all := make(map[string][]byte)
	for rows.Next() {
		var reference string
		var sealed []byte
		if err := rows.Scan(&reference, &sealed); err != nil {
			return nil, err
		}
		all[reference] = sealed
	}
	return all, rows.Err()
}

// selectStale returns reports that do not begin with header, by reference.
func selectStale(ctx context.Context, tx *db.Tx, header []byte, limit int) (map[string][]byte, error) {
	return sealedOf(ctx, tx, `SELECT id, sealed FROM security_report WHERE substr(sealed, 1, 5) <> $1 LIMIT $2`, header, limit)
}

// selectNewest returns the newest reports, by reference.
func selectNewest(ctx context.Context, tx *db.Tx, limit int) (map[string][]byte, error) {
	return sealedOf(ctx, tx, `SELECT id, sealed FROM security_report ORDER BY made_at DESC LIMIT $1`, limit)
}

func swap(ctx context.Context, tx *db.Tx, reference string, old, fresh []byte) error {
	_, err := tx.Exec(ctx, `UPDATE security_report SET sealed = $1 WHERE id = $2 AND sealed = $3`, fresh, reference, old)
	return err
}

// selectCount returns the count of a source; a fresh one when there is none.
func selectCount(ctx context.Context, tx *db.Tx, source []byte) (c count, err error) {
	err = tx.QueryRow(ctx, `SELECT since, taken, refused FROM security_report_count WHERE source = $1`, source).Scan(&c.since, &c.taken, &c.refused)
	if errors.Is(err, sql.ErrNoRows) {
		return count{}, nil
	}
	return c, err
}

func putCount(ctx context.Context, tx *db.Tx, source []byte, c count) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO security_report_count (source, since, taken, refused) VALUES ($1, $2, $3, $4)
		ON CONFLICT (source) DO UPDATE SET since = excluded.since, taken = excluded.taken, refused = excluded.refused`,
		source, c.since, c.taken, c.refused)
	return err
}

func deleteCounts(ctx context.Context, tx *db.Tx, before int64) error {
	_, err := tx.Exec(ctx, `DELETE FROM security_report_count WHERE since < $1`, before)
	return err
}
