package identity

import (
	"context"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
)

// accountOf returns a customer's account and the index of their number.
func (r rows) accountOf(ctx context.Context, tx *db.Tx, c customer.ID) (phoneIndex []byte, a account, err error) {
	var stamp []byte
	a.customer = c
	if err = tx.QueryRow(ctx, `SELECT phone_index, code_hash, pepper_version, stamp FROM account WHERE customer_id = $1`, string(c)).
		Scan(&phoneIndex, &a.code.hash, &a.code.pepper, &stamp); err == nil {
		err = r.check(stamp, accountParts(c, phoneIndex, a.code))
	}
	return phoneIndex, a, err
}

// setHash makes a hash the customer's private code.
func (r rows) setHash(ctx context.Context, tx *db.Tx, c customer.ID, fresh hashed) error {
	phoneIndex, _, err := r.accountOf(ctx, tx, c)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE account SET code_hash = $1, pepper_version = $2, stamp = $3 WHERE customer_id = $4`,
		fresh.hash, int64(fresh.pepper), r.stamp(accountParts(c, phoneIndex, fresh)), string(c))
	return err
}

func noteCodeChange(ctx context.Context, tx *db.Tx, c customer.ID, now time.Time) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO code_change (customer_id, changed_at) VALUES ($1, $2)
		ON CONFLICT (customer_id) DO UPDATE SET changed_at = excluded.changed_at`, string(c), clock.Micros(now))
	return err
}

// codeChangedSince reports whether the customer's private code was changed at that time or later.
func codeChangedSince(ctx context.Context, tx *db.Tx, c customer.ID, since int64) (bool, error) {
	var at int64
	ok, err := none(tx.QueryRow(ctx, `SELECT changed_at FROM code_change WHERE customer_id = $1`, string(c)).Scan(&at))
	return ok && at >= since, err
}

// resetRow is a customer who waits to choose a new private code.
type resetRow struct {
	customer             customer.ID
	device               string
	made, ready, expires int64
}

// ripe reports whether the hold is over and the code may be chosen.
func (r resetRow) ripe(now time.Time) bool {
	us := clock.Micros(now)
	return us >= r.ready && us < r.expires
}

// resetParts are under the stamp: a hold that the database could end by itself would be none.
func resetParts(r resetRow) [][]byte {
	return [][]byte{[]byte("identity.code-reset"), []byte(r.customer), []byte(r.device), decimal(r.made), decimal(r.ready), decimal(r.expires)}
}

func (r rows) reset(ctx context.Context, tx *db.Tx, c customer.ID) (row resetRow, ok bool, err error) {
	var stamp []byte
	row.customer = c
	ok, err = none(tx.QueryRow(ctx, `SELECT device_id, made_at, ready_at, expires_at, stamp FROM code_reset WHERE customer_id = $1`, string(c)).
		Scan(&row.device, &row.made, &row.ready, &row.expires, &stamp))
	if ok {
		err = r.check(stamp, resetParts(row))
	}
	return row, ok, err
}

func (r rows) putReset(ctx context.Context, tx *db.Tx, row resetRow) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO code_reset (customer_id, device_id, made_at, ready_at, expires_at, stamp) VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (customer_id) DO UPDATE SET device_id = excluded.device_id, made_at = excluded.made_at, ready_at = excluded.ready_at,
			expires_at = excluded.expires_at, stamp = excluded.stamp`,
		string(row.customer), row.device, row.made, row.ready, row.expires, r.stamp(resetParts(row)))
	return err
}

func deleteReset(ctx context.Context, tx *db.Tx, c customer.ID) (int64, error) {
	return tx.Exec(ctx, `DELETE FROM code_reset WHERE customer_id = $1`, string(c))
}
