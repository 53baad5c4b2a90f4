package identity

import (
	"context"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/keyring/seal"
)

// Resealer names what this room keeps sealed under customers' data keys: a number, the names of
// devices, and the addresses of logins. The stamps of these rows do not cover the sealed values, which the place that they are sealed
// for keeps where they are; so they need no new stamp.
type Resealer struct{}

// Stale names the values of c that do not begin with header, at most limit.
func (Resealer) Stale(ctx context.Context, tx *db.Tx, c customer.ID, header []byte, limit int,
	found func(p seal.Place, sealed []byte, swap func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error))) error {
	rows, err := tx.Query(ctx, `
		SELECT '', phone FROM account WHERE customer_id = $1 AND substr(phone, 1, 5) <> $2
		UNION ALL
		SELECT id, name FROM device WHERE customer_id = $1 AND substr(name, 1, 5) <> $2
		UNION ALL
		SELECT id, origin FROM session WHERE customer_id = $1 AND substr(origin, 1, 5) <> $2
		LIMIT $3`, string(c), header, limit)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var device string
		var sealed []byte
		if err := rows.Scan(&device, &sealed); err != nil {
			return err
		}
		if device == "" {
			found(place("account", c, "phone"), sealed, func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error) {
				return tx.Exec(ctx, `UPDATE account SET phone = $1 WHERE customer_id = $2 AND phone = $3`, fresh, string(c), sealed)
			})
			continue
		}
		if id.Valid("ses", device) {
			found(place("session", c, device), sealed, func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error) {
				return tx.Exec(ctx, `UPDATE session SET origin = $1 WHERE id = $2 AND customer_id = $3 AND origin = $4`, fresh, device, string(c), sealed)
			})
			continue
		}
		found(place("device", c, device), sealed, func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error) {
			return tx.Exec(ctx, `UPDATE device SET name = $1 WHERE id = $2 AND customer_id = $3 AND name = $4`, fresh, device, string(c), sealed)
		})
	}
	return rows.Err()
}
