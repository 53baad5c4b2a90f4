package keyring

import (
	"context"
	"database/sql"

	"strongroom/internal/customer"
	"strongroom/internal/db"
)

// The values of the column reseal.
const (
	waitsNot = iota
	waits
	waitsFirst // the version is compromised
)

// stopDataKey has the active version seal no more. What it sealed is looked for at once, whatever the
// clocks of the processes say.
func stopDataKey(ctx context.Context, tx *db.Tx, c customer.ID, version uint32, becomes string, now int64) error {
	reseal := waits
	if becomes == compromised {
		reseal = waitsFirst
	}
	_, err := tx.Exec(ctx, `
		UPDATE data_key SET state = $1, stopped_at = $2, reseal = $3, reseal_at = 0
		WHERE customer_id = $4 AND version = $5`, becomes, now, reseal, c, version)
	return err
}

// exposeDataKey marks a version that seals no more compromised.
func exposeDataKey(ctx context.Context, tx *db.Tx, c customer.ID, version uint32) error {
	_, err := tx.Exec(ctx, `
		UPDATE data_key SET state = 'compromised', reseal = $1, reseal_at = 0
		WHERE customer_id = $2 AND version = $3`, waitsFirst, c, version)
	return err
}

func destroyDataKey(ctx context.Context, tx *db.Tx, c customer.ID, version uint32) error {
	_, err := tx.Exec(ctx, `
		UPDATE data_key SET state = 'destroyed', wrapped = NULL, reseal = 0
		WHERE customer_id = $1 AND version = $2`, c, version)
	return err
}

// selectStopped returns when a version ceased to seal.
func selectStopped(ctx context.Context, tx *db.Tx, c customer.ID, version uint32) (at int64, err error) {
	err = tx.QueryRow(ctx, `SELECT COALESCE(stopped_at, made_at) FROM data_key WHERE customer_id = $1 AND version = $2`, c, version).Scan(&at)
	return at, err
}

// selectWaiting returns customers of whom values wait at now, those of compromised versions alone or
// those of all others; who was erased waits for nothing.
func selectWaiting(ctx context.Context, tx *db.Tx, first bool, now int64, limit int) ([]customer.ID, error) {
	query := `
		SELECT customer_id FROM data_key
		WHERE reseal > 0 AND reseal = 1 AND reseal_at <= $1
		  AND NOT EXISTS (SELECT 1 FROM data_key_tombstone t WHERE t.customer_id = data_key.customer_id)
		ORDER BY reseal_at, customer_id LIMIT $2`
	if first {
		query = `
		SELECT customer_id FROM data_key
		WHERE reseal > 0 AND reseal = 2 AND reseal_at <= $1
		  AND NOT EXISTS (SELECT 1 FROM data_key_tombstone t WHERE t.customer_id = data_key.customer_id)
		ORDER BY reseal_at, customer_id LIMIT $2`
	}
	return customers(ctx, tx, query, now, limit)
}

// selectDue returns the next customers whose active version was made at a time or before.
func selectDue(ctx context.Context, tx *db.Tx, after customer.ID, before int64, limit int) ([]customer.ID, error) {
	return customers(ctx, tx, `
		SELECT customer_id FROM data_key
		WHERE customer_id > $1 AND state = 'active' AND made_at <= $2
		  AND NOT EXISTS (SELECT 1 FROM data_key_tombstone t WHERE t.customer_id = data_key.customer_id)
		ORDER BY customer_id LIMIT $3`, string(after), before, limit)
}

func customers(ctx context.Context, tx *db.Tx, query string, args ...any) (all []customer.ID, err error) {
	rows, err := tx.Query(ctx, query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var c customer.ID
		if err := rows.Scan(&c); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, rows.Err()
}

// countDue walks through all data keys.
func countDue(ctx context.Context, tx *db.Tx, before int64) (n int64, err error) {
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM data_key WHERE state = 'active' AND made_at <= $1`, before).Scan(&n)
	return n, err
}

// selectMadeBefore returns versions that were made before a time and are not marked compromised, behind
// the cursor.
func selectMadeBefore(ctx context.Context, tx *db.Tx, after customerRow, before int64, limit int) ([]customerRow, error) {
	rows, err := tx.Query(ctx, `
		SELECT customer_id, version FROM data_key
		WHERE (customer_id, version) > ($1, $2) AND made_at < $3 AND state IN ('active', 'retired') AND wrapped IS NOT NULL
		ORDER BY customer_id, version LIMIT $4`, string(after.customer), after.version, before, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var all []customerRow
	for rows.Next() {
		var r customerRow
		if err := rows.Scan(&r.customer, &r.version); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// selectWaitingVersions returns the versions of c of which values may wait.
func selectWaitingVersions(ctx context.Context, tx *db.Tx, c customer.ID) (all []uint32, err error) {
	rows, err := tx.Query(ctx, `SELECT version FROM data_key WHERE customer_id = $1 AND reseal > 0`, c)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var v uint32
		if err := rows.Scan(&v); err != nil {
			return nil, err
		}
		all = append(all, v)
	}
	return all, rows.Err()
}

// settleDataKeys notes that nothing waits any more of the versions of c below current that ceased to
// seal before a time, and has the others looked at again when they have settled.
func settleDataKeys(ctx context.Context, tx *db.Tx, c customer.ID, current uint32, before, settle int64) (int64, error) {
	return tx.Exec(ctx, `
		UPDATE data_key SET reseal = CASE WHEN stopped_at <= $1 THEN 0 ELSE reseal END, reseal_at = stopped_at + $2
		WHERE customer_id = $3 AND version < $4 AND reseal > 0`, before, settle, c, current)
}

// deferDataKeys has the versions of c looked at again at a time.
func deferDataKeys(ctx context.Context, tx *db.Tx, c customer.ID, current uint32, at int64) error {
	_, err := tx.Exec(ctx, `UPDATE data_key SET reseal_at = $1 WHERE customer_id = $2 AND version < $3 AND reseal > 0`, at, c, current)
	return err
}

// countExposed counts the compromised versions of which values may wait.
func countExposed(ctx context.Context, tx *db.Tx) (n int64, err error) {
	err = tx.QueryRow(ctx, `SELECT COUNT(*) FROM data_key WHERE reseal > 0 AND reseal = 2`).Scan(&n)
	return n, err
}

// oldestDataKey returns when the oldest active version was made; 0 when there is none.
func oldestDataKey(ctx context.Context, tx *db.Tx) (at int64, err error) {
	var oldest sql.NullInt64
	err = tx.QueryRow(ctx, `SELECT MIN(made_at) FROM data_key WHERE state = 'active'`).Scan(&oldest)
	return oldest.Int64, err
}

func failRotation(ctx context.Context, tx *db.Tx, id string, failed int64) error {
	_, err := tx.Exec(ctx, `UPDATE rotation SET failed = $1 WHERE id = $2`, failed, id)
	return err
}
