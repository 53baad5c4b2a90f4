package identity

import (
	"context"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
)

// swaps put a value that was sealed anew in the place of the old one. No two values of a customer are
// sealed alike, so that the old one names its row.
var swaps = map[string]string{
	"account":       `UPDATE account SET phone = $1 WHERE customer_id = $2 AND phone = $3`,
	"session":       `UPDATE session SET origin = $1 WHERE customer_id = $2 AND origin = $3`,
	"device":        `UPDATE device SET name = $1 WHERE customer_id = $2 AND name = $3`,
	"factor":        `UPDATE factor SET sealed = $1 WHERE customer_id = $2 AND sealed = $3`,
	"device_trust":  `UPDATE device_trust SET number = $1 WHERE customer_id = $2 AND number = $3`,
	"honey":         `UPDATE honey SET sealed = $1 WHERE customer_id = $2 AND sealed = $3`,
	"number_change": `UPDATE number_change SET phone = $1 WHERE customer_id = $2 AND phone = $3`,
}

// Resealer names what this room keeps sealed under customers' data keys: numbers, the names of devices,
// the addresses of logins, and the secrets of second steps. The stamps of these rows do not cover the sealed values, which the
// place that they are sealed for keeps where they are; so they need no new stamp.
type Resealer struct{}

// Stale names the values of c that do not begin with header, at most limit.
func (Resealer) Stale(ctx context.Context, tx *db.Tx, c customer.ID, header []byte, limit int,
	found func(p seal.Place, sealed []byte, swap func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error))) error {
	rows, err := tx.Query(ctx, `
		SELECT 'account', 'phone', phone FROM account WHERE customer_id = $1 AND substr(phone, 1, 5) <> $2
		UNION ALL
		SELECT 'device', id, name FROM device WHERE customer_id = $1 AND substr(name, 1, 5) <> $2
		UNION ALL
		SELECT 'session', id, origin FROM session WHERE customer_id = $1 AND substr(origin, 1, 5) <> $2
		UNION ALL
		SELECT 'factor', id, sealed FROM factor WHERE customer_id = $1 AND substr(sealed, 1, 5) <> $2
		UNION ALL
		SELECT 'device_trust', device_id, number FROM device_trust WHERE customer_id = $1 AND length(number) > 0 AND substr(number, 1, 5) <> $2
		UNION ALL
		SELECT 'honey', 'honey', sealed FROM honey WHERE customer_id = $1 AND substr(sealed, 1, 5) <> $2
		UNION ALL
		SELECT 'number_change', 'phone', phone FROM number_change WHERE customer_id = $1 AND substr(phone, 1, 5) <> $2
		LIMIT $3`, string(c), header, limit)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var table, record string
		var sealed []byte
		if err := rows.Scan(&table, &record, &sealed); err != nil {
			return err
		}
		found(place(table, c, record), sealed, func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error) {
			return tx.Exec(ctx, swaps[table], fresh, string(c), sealed)
		})
	}
	return rows.Err()
}
