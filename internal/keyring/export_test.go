package keyring

import (
	"context"
	"testing"

	"strongroom/internal/customer"
	"strongroom/internal/db"
)

// Materials returns the bytes of every key that the root key leads to: KEKs, service keys and customers'
// data keys, as far as they are in the database.
func Materials(t testing.TB, k *Keyring) (keys [][]byte) {
	t.Helper()
	ctx := context.Background()
	add := func(material []byte, err error) error {
		keys = append(keys, material)
		return err
	}
	err := k.db.View(ctx, func(tx *db.Tx) error {
		keks, err := selectKEKs(ctx, tx)
		if err != nil {
			return err
		}
		for _, row := range keks {
			if err := add(k.unwrapKEK(ctx, row)); err != nil {
				return err
			}
		}
		services, err := selectServiceKeys(ctx, tx)
		if err != nil {
			return err
		}
		for _, row := range services {
			if err := add(unwrap(k.keys.Load().kek, servicePlace(row.name, row.algorithm, row.version), row.kekVersion, row.wrapped)); err != nil {
				return err
			}
		}
		rows, err := tx.Query(ctx, `SELECT customer_id, version, kek_version, wrapped FROM data_key`)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var c customer.ID
			var row dataRow
			if err := rows.Scan(&c, &row.version, &row.kekVersion, &row.wrapped); err != nil {
				return err
			}
			if err := add(unwrap(k.keys.Load().kek, dataPlace(c, row.version), row.kekVersion, row.wrapped)); err != nil {
				return err
			}
		}
		return rows.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return keys
}
