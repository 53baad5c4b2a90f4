package once

import (
	"context"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
)

// Stale names the answers about c that do not begin with header, at most limit, for whoever seals them
// anew under a newer version of c's data key.
func (b *Book) Stale(ctx context.Context, tx *db.Tx, c customer.ID, header []byte, limit int,
	found func(p seal.Place, sealed []byte, swap func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error))) error {
	rows, err := tx.Query(ctx, `SELECT name, sealed FROM answer WHERE customer_id = $1 AND substr(sealed, 1, 5) <> $2 LIMIT $3`,
		string(c), header, limit)
	if err != nil {
		return err
	}
	defer rows.Close()
	for rows.Next() {
		var name, sealed []byte
		if err := rows.Scan(&name, &sealed); err != nil {
			return err
		}
		found(place(name, c), sealed, func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error) {
			return tx.Exec(ctx, `UPDATE answer SET sealed = $1 WHERE name = $2 AND sealed = $3`, fresh, name, sealed)
		})
	}
	return rows.Err()
}
