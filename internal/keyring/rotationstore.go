package keyring

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
)

func selectGeneration(ctx context.Context, tx *db.Tx) (n int64, err error) {
	err = tx.QueryRow(ctx, `SELECT n FROM key_generation WHERE one = $1`, 1).Scan(&n)
	return n, err
}

func raiseGeneration(ctx context.Context, tx *db.Tx) error {
	_, err := tx.Exec(ctx, `UPDATE key_generation SET n = n + 1 WHERE one = $1`, 1)
	return err
}

func setRoster(ctx context.Context, tx *db.Tx, roster []byte) error {
	_, err := tx.Exec(ctx, `UPDATE key_generation SET roster = $1 WHERE one = $2`, roster, 1)
	return err
}

func selectRoster(ctx context.Context, tx *db.Tx) (roster []byte, err error) {
	err = tx.QueryRow(ctx, `SELECT roster FROM key_generation WHERE one = $1`, 1).Scan(&roster)
	return roster, err
}

func setKEKState(ctx context.Context, tx *db.Tx, version uint32, state string) error {
	_, err := tx.Exec(ctx, `UPDATE kek SET state = $1 WHERE version = $2`, state, version)
	return err
}

// replaceActiveKEK makes the version the active one, and gives the one that was another state.
func replaceActiveKEK(ctx context.Context, tx *db.Tx, version uint32, before string) error {
	if _, err := tx.Exec(ctx, `UPDATE kek SET state = $1 WHERE state = 'active'`, before); err != nil {
		return err
	}
	return setKEKState(ctx, tx, version, active)
}

func setVouch(ctx context.Context, tx *db.Tx, version uint32, vouch []byte) error {
	_, err := tx.Exec(ctx, `UPDATE kek SET vouch = $1 WHERE version = $2`, vouch, version)
	return err
}

// deleteKEK leaves the version's row as a tombstone.
func deleteKEK(ctx context.Context, tx *db.Tx, version uint32) error {
	if _, err := tx.Exec(ctx, `DELETE FROM kek_wrap WHERE kek_version = $1`, version); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `UPDATE kek SET state = 'destroyed', vouch = NULL WHERE version = $1`, version)
	return err
}

// countWrapped walks through all data keys.
func countWrapped(ctx context.Context, tx *db.Tx, kek uint32) (n int64, err error) {
	err = tx.QueryRow(ctx, `
		SELECT (SELECT COUNT(*) FROM data_key WHERE kek_version = $1 AND wrapped IS NOT NULL)
		     + (SELECT COUNT(*) FROM service_key WHERE kek_version = $1 AND wrapped IS NOT NULL)`, kek).Scan(&n)
	return n, err
}

// countOthers walks through all data keys and counts what other KEKs wrap.
func countOthers(ctx context.Context, tx *db.Tx, kek uint32) (n int64, err error) {
	err = tx.QueryRow(ctx, `
		SELECT (SELECT COUNT(*) FROM data_key WHERE kek_version <> $1 AND wrapped IS NOT NULL)
		     + (SELECT COUNT(*) FROM service_key WHERE kek_version <> $1 AND wrapped IS NOT NULL)`, kek).Scan(&n)
	return n, err
}

type customerRow struct {
	customer            customer.ID
	version, kekVersion uint32
	wrapped             []byte
}

// selectWrapped returns data keys behind the cursor that other KEKs wrap, in order.
func selectWrapped(ctx context.Context, tx *db.Tx, after customer.ID, version, kek uint32, limit int) ([]customerRow, error) {
	rows, err := tx.Query(ctx, `
		SELECT customer_id, version, kek_version, wrapped FROM data_key
		WHERE (customer_id, version) > ($1, $2) AND kek_version <> $3 AND wrapped IS NOT NULL
		ORDER BY customer_id, version LIMIT $4`, after, version, kek, limit)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	all := make([]customerRow, 0, limit)
	for rows.Next() {
		var r customerRow
		if err := rows.Scan(&r.customer, &r.version, &r.kekVersion, &r.wrapped); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// rewrapDataKeys puts what was wrapped anew in place of what was read, unless that is gone or was
// wrapped anew by somebody else. It returns how many it replaced.
func rewrapDataKeys(ctx context.Context, tx *db.Tx, data []customerRow, kek uint32) (done int64, err error) {
	for _, r := range data {
		if r.wrapped == nil {
			continue
		}
		n, err := tx.Exec(ctx, `
			UPDATE data_key SET kek_version = $1, wrapped = $2
			WHERE customer_id = $3 AND version = $4 AND kek_version = $5 AND wrapped IS NOT NULL`,
			kek, r.wrapped, r.customer, r.version, r.kekVersion)
		if err != nil {
			return 0, err
		}
		done += n
	}
	return done, nil
}

func rewrapServiceKey(ctx context.Context, tx *db.Tx, r serviceRow, kek uint32) (int64, error) {
	return tx.Exec(ctx, `
		UPDATE service_key SET kek_version = $1, wrapped = $2
		WHERE name = $3 AND version = $4 AND kek_version = $5 AND wrapped IS NOT NULL`,
		kek, r.wrapped, r.name, r.version, r.kekVersion)
}

// selectRotation returns the rotation of the key, or for "" of any but the customers', that goes on, or else the latest, or
// else one without an ID.
func selectRotation(ctx context.Context, tx *db.Tx, key string) (r rotationRow, err error) {
	var worked, started, due int64
	var ended sql.NullInt64
	var paused int64
	err = tx.QueryRow(ctx, `
		SELECT id, key_name, version, reason, phase, paused, total, done, failed, worked,
		       cursor_customer, cursor_version, started_at, due_at, ended_at
		FROM rotation WHERE key_name = $1 OR $2 = '' AND key_name <> 'customer'
		ORDER BY CASE WHEN ended_at IS NULL THEN 0 ELSE 1 END, started_at DESC, id DESC LIMIT 1`, key, key).Scan(
		&r.ID, &r.Key, &r.Version, &r.Reason, &r.Phase, &paused, &r.Total, &r.Done, &r.Failed, &worked,
		&r.cursorCustomer, &r.cursorVersion, &started, &due, &ended)
	if errors.Is(err, sql.ErrNoRows) {
		return rotationRow{}, nil
	}
	if err != nil {
		return rotationRow{}, err
	}
	r.Paused = paused != 0
	r.worked = time.Duration(worked) * time.Microsecond
	r.Started, r.Due = clock.FromMicros(started), clock.FromMicros(due)
	if ended.Valid {
		r.Ended = clock.FromMicros(ended.Int64)
	}
	return r, nil
}

// shownRotation returns the rotation that a command without a name is about: of those that go on, or else
// of all, the one that began last.
func shownRotation(ctx context.Context, tx *db.Tx) (rotationRow, error) {
	r, err := selectRotation(ctx, tx, "")
	if err != nil {
		return r, err
	}
	customers, err := selectRotation(ctx, tx, customerName)
	if err != nil || customers.ID == "" {
		return r, err
	}
	if r.ID == "" || customers.open() && !r.open() || customers.open() == r.open() && customers.Started.After(r.Started) {
		r = customers
	}
	return r, nil
}

func insertRotation(ctx context.Context, tx *db.Tx, r rotationRow) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO rotation (id, key_name, version, reason, phase, paused, total, done, failed, worked,
		                      cursor_customer, cursor_version, started_at, due_at, ended_at)
		VALUES ($1, $2, $3, $4, $5, 0, 0, 0, 0, 0, '', 0, $6, $7, NULL)`,
		r.ID, r.Key, r.Version, r.Reason, r.Phase, clock.Micros(r.Started), clock.Micros(r.Due))
	return err
}

func activateRotation(ctx context.Context, tx *db.Tx, id string, total int64) error {
	_, err := tx.Exec(ctx, `UPDATE rotation SET phase = 'resealing', total = $1 WHERE id = $2`, total, id)
	return err
}

// advanceRotation writes down how far the rotation is, and reports whether it may go on.
func advanceRotation(ctx context.Context, tx *db.Tx, r rotationRow, done, failed int64, worked time.Duration) (bool, error) {
	n, err := tx.Exec(ctx, `
		UPDATE rotation
		SET done = done + $1, failed = failed + $2, worked = $3, cursor_customer = $4, cursor_version = $5
		WHERE id = $6 AND phase = 'resealing' AND paused = 0 AND ended_at IS NULL`,
		done, failed, worked.Microseconds(), r.cursorCustomer, r.cursorVersion, r.ID)
	return n == 1, err
}

// restartRotation begins another pass.
func restartRotation(ctx context.Context, tx *db.Tx, id string) error {
	_, err := tx.Exec(ctx, `
		UPDATE rotation SET failed = 0, cursor_customer = '', cursor_version = 0 WHERE id = $1`, id)
	return err
}

func pauseRotation(ctx context.Context, tx *db.Tx, id string, paused bool) error {
	n := 0
	if paused {
		n = 1
	}
	_, err := tx.Exec(ctx, `UPDATE rotation SET paused = $1 WHERE id = $2`, n, id)
	return err
}

// hurryRotation has the rotation be about a compromised key from now on.
func hurryRotation(ctx context.Context, tx *db.Tx, id string, now int64) error {
	_, err := tx.Exec(ctx, `UPDATE rotation SET reason = 'compromised', paused = 0, due_at = $1 WHERE id = $2`, now, id)
	return err
}

func endRotation(ctx context.Context, tx *db.Tx, id string, now int64) error {
	_, err := tx.Exec(ctx, `UPDATE rotation SET phase = 'done', paused = 0, ended_at = $1 WHERE id = $2`, now, id)
	return err
}
