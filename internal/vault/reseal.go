package vault

import (
	"context"
	"database/sql"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
)

// swap puts a value that is sealed anew in the place of the one that was found, if that still stands
// there; what else the row says, and with it a record's ETag, stays.
type swap = func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error)

// shelf is a table with values sealed under customers' data keys.
type shelf struct {
	query string // $1 the customer, $2 the beginning of values to leave alone, $3 how many
	scan  func(rows *sql.Rows, c customer.ID) (seal.Place, []byte, swap, error)
}

// shelves are all of them.
var shelves = []shelf{
	{`SELECT collection, key, version, schema_version, updated_at, sealed FROM record
	  WHERE customer_id = $1 AND substr(sealed, 1, 5) <> $2 LIMIT $3`,
		func(rows *sql.Rows, c customer.ID) (seal.Place, []byte, swap, error) {
			var ref Ref
			var w row
			err := rows.Scan(&ref.Collection, &ref.Key, &w.version, &w.schemaVersion, &w.updatedAt, &w.sealed)
			return place(c, ref, w), w.sealed, func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error) {
				return tx.Exec(ctx, `UPDATE record SET sealed = $1
					WHERE customer_id = $2 AND collection = $3 AND key = $4 AND version = $5 AND sealed = $6`,
					fresh, string(c), ref.Collection, ref.Key, w.version, w.sealed)
			}, err
		}},
	{`SELECT collection, key, version, schema_version, updated_at, sealed FROM record_version
	  WHERE customer_id = $1 AND substr(sealed, 1, 5) <> $2 LIMIT $3`,
		func(rows *sql.Rows, c customer.ID) (seal.Place, []byte, swap, error) {
			var ref Ref
			var w row
			err := rows.Scan(&ref.Collection, &ref.Key, &w.version, &w.schemaVersion, &w.updatedAt, &w.sealed)
			return place(c, ref, w), w.sealed, func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error) {
				return tx.Exec(ctx, `UPDATE record_version SET sealed = $1
					WHERE customer_id = $2 AND collection = $3 AND key = $4 AND version = $5 AND sealed = $6`,
					fresh, string(c), ref.Collection, ref.Key, w.version, w.sealed)
			}, err
		}},
	{`SELECT key_version, blind, kind, purpose, sealed FROM token
	  WHERE customer_id = $1 AND substr(sealed, 1, 5) <> $2 LIMIT $3`,
		func(rows *sql.Rows, c customer.ID) (seal.Place, []byte, swap, error) {
			var version int64
			var blind, sealed []byte
			var kind, purpose string
			err := rows.Scan(&version, &blind, &kind, &purpose, &sealed)
			return tokenPlace(c, kind, purpose), sealed, func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error) {
				return tx.Exec(ctx, `UPDATE token SET sealed = $1
					WHERE key_version = $2 AND blind = $3 AND customer_id = $4 AND sealed = $5`, fresh, version, blind, string(c), sealed)
			}, err
		}},
	// A blob's chunks are sealed under a key of their own, which is in here.
	{`SELECT collection, key, content_id, sealed FROM blob
	  WHERE customer_id = $1 AND substr(sealed, 1, 5) <> $2 LIMIT $3`,
		func(rows *sql.Rows, c customer.ID) (seal.Place, []byte, swap, error) {
			var ref Ref
			var content string
			var sealed []byte
			err := rows.Scan(&ref.Collection, &ref.Key, &content, &sealed)
			return blobPlace(c, ref, content), sealed, func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error) {
				return tx.Exec(ctx, `UPDATE blob SET sealed = $1
					WHERE customer_id = $2 AND collection = $3 AND key = $4 AND content_id = $5 AND sealed = $6`,
					fresh, string(c), ref.Collection, ref.Key, content, sealed)
			}, err
		}},
	{`SELECT key_version, blind, sealed FROM external_ref
	  WHERE customer_id = $1 AND substr(sealed, 1, 5) <> $2 LIMIT $3`,
		func(rows *sql.Rows, c customer.ID) (seal.Place, []byte, swap, error) {
			var version int64
			var blind, sealed []byte
			err := rows.Scan(&version, &blind, &sealed)
			return externalPlace(c), sealed, func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error) {
				return tx.Exec(ctx, `UPDATE external_ref SET sealed = $1
					WHERE key_version = $2 AND blind = $3 AND customer_id = $4 AND sealed = $5`, fresh, version, blind, string(c), sealed)
			}, err
		}},
}

// Stale names the values of c that do not begin with header, at most limit: records and their older
// versions, tokens, the keys of blobs, and the name under which c was imported.
func (v *Vault) Stale(ctx context.Context, tx *db.Tx, c customer.ID, header []byte, limit int,
	found func(p seal.Place, sealed []byte, swap func(ctx context.Context, tx *db.Tx, fresh []byte) (int64, error))) error {
	for _, s := range shelves {
		if limit <= 0 {
			return nil
		}
		n, err := s.stale(ctx, tx, c, header, limit, found)
		if err != nil {
			return err
		}
		limit -= n
	}
	return nil
}

func (s shelf) stale(ctx context.Context, tx *db.Tx, c customer.ID, header []byte, limit int, found func(seal.Place, []byte, swap)) (n int, err error) {
	rows, err := tx.Query(ctx, s.query, string(c), header, limit)
	if err != nil {
		return 0, err
	}
	defer rows.Close()
	for ; rows.Next(); n++ {
		p, sealed, swap, err := s.scan(rows, c)
		if err != nil {
			return n, err
		}
		found(p, sealed, swap)
	}
	return n, rows.Err()
}
