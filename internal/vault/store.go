package vault

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"time"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring"
	"strongroom/internal/problem"
)

// row is a record as it stands in the database.
type row struct {
	key           string // only in pages
	version       int64
	schemaVersion int
	sealed        []byte
	indexed       []byte // digest of its blind indexes
	updatedAt     int64
}

// day is the day of a time in Unix microseconds, in days since 1970.
func day(micros int64) int64 { return micros / (24 * time.Hour).Microseconds() }

func selectRecord(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref) (w row, found bool, err error) {
	err = tx.QueryRow(ctx, `
		SELECT version, schema_version, sealed, updated_at FROM record
		WHERE customer_id = $1 AND collection = $2 AND key = $3`,
		string(owner), ref.Collection, ref.Key).Scan(&w.version, &w.schemaVersion, &w.sealed, &w.updatedAt)
	if errors.Is(err, sql.ErrNoRows) {
		return row{}, false, nil
	}
	return w, err == nil, err
}

// selectVersion returns the version of a record, 0 when there is none, and the digest of its indexes.
func selectVersion(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref) (version int64, indexed []byte, err error) {
	err = tx.QueryRow(ctx, `
		SELECT version, indexed FROM record
		WHERE customer_id = $1 AND collection = $2 AND key = $3`,
		string(owner), ref.Collection, ref.Key).Scan(&version, &indexed)
	if errors.Is(err, sql.ErrNoRows) {
		err = nil
	}
	return version, indexed, err
}

// selectRoom returns the version that a new record gets, and how many records there are already.
func selectRoom(ctx context.Context, tx *db.Tx, owner customer.ID, collection string) (version int64, count int, err error) {
	err = tx.QueryRow(ctx, `SELECT version, records FROM record_mark WHERE customer_id = $1 AND collection = $2`,
		string(owner), collection).Scan(&version, &count)
	if errors.Is(err, sql.ErrNoRows) {
		return 1, 0, nil
	}
	return version, count, err
}

func selectPage(ctx context.Context, tx *db.Tx, owner customer.ID, collection, after string, limit int) (page []row, err error) {
	rows, err := tx.Query(ctx, `
		SELECT key, version, schema_version, sealed, updated_at FROM record
		WHERE customer_id = $1 AND collection = $2 AND key > $3
		ORDER BY key LIMIT $4`,
		string(owner), collection, after, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var w row
		if err := rows.Scan(&w.key, &w.version, &w.schemaVersion, &w.sealed, &w.updatedAt); err != nil {
			return nil, err
		}
		page = append(page, w)
	}
	return page, rows.Err()
}

func insertRecord(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref, w row) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO record (customer_id, collection, key, version, schema_version, sealed, indexed, made_at, updated_at, updated_day)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $8, $9)`,
		string(owner), ref.Collection, ref.Key, w.version, w.schemaVersion, w.sealed, w.indexed, w.updatedAt, day(w.updatedAt))
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO record_mark (customer_id, collection, version, records) VALUES ($1, $2, 1, 1)
		ON CONFLICT (customer_id, collection) DO UPDATE SET records = record_mark.records + 1`,
		string(owner), ref.Collection)
	return err
}

func updateRecord(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref, old int64, w row) error {
	n, err := tx.Exec(ctx, `
		UPDATE record SET version = $5, schema_version = $6, sealed = $7, indexed = $8, updated_at = $9, updated_day = $10
		WHERE customer_id = $1 AND collection = $2 AND key = $3 AND version = $4`,
		string(owner), ref.Collection, ref.Key, old, w.version, w.schemaVersion, w.sealed, w.indexed, w.updatedAt, day(w.updatedAt))
	return exactlyOne(n, err)
}

// exactlyOne guards what the isolation of the transaction promises anyway.
func exactlyOne(n int64, err error) error {
	if err == nil && n != 1 {
		err = fmt.Errorf("vault: %d records changed instead of one", n)
	}
	return err
}

// remove deletes a record with its index, and raises the mark above its version.
func remove(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref, version int64) error {
	n, err := tx.Exec(ctx, `
		DELETE FROM record WHERE customer_id = $1 AND collection = $2 AND key = $3 AND version = $4`,
		string(owner), ref.Collection, ref.Key, version)
	if err := exactlyOne(n, err); err != nil {
		return err
	}
	n, err = tx.Exec(ctx, `
		UPDATE record_mark SET records = records - 1, version = CASE WHEN version < $3 THEN $3 ELSE version END
		WHERE customer_id = $1 AND collection = $2`,
		string(owner), ref.Collection, version+1)
	if err := exactlyOne(n, err); err != nil {
		return err
	}
	if err := deleteVersions(ctx, tx, owner, ref); err != nil {
		return err
	}
	return deleteIndex(ctx, tx, owner, ref)
}

// byRecord finds the rows of record_index of a record by its customer, who has few. Of a plain comparison
// of collection, SQLite would make a search of the primary key, and walk through all of the collection.
const byRecord = `customer_id = $1 AND collection || '' = $2 AND key = $3`

func deleteIndex(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref) error {
	_, err := tx.Exec(ctx, `DELETE FROM record_index WHERE `+byRecord,
		string(owner), ref.Collection, ref.Key)
	return err
}

func insertIndex(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref, blinds []blind) error {
	for _, b := range blinds {
		n, err := tx.Exec(ctx, `
			INSERT INTO record_index (collection, field, key_version, blind, customer_id, key, sole)
			VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING`,
			ref.Collection, b.field, b.Version, b.Value, string(owner), ref.Key, b.sole)
		if err != nil {
			return err
		}
		if n == 0 {
			return problem.New(problem.Conflict, "value-taken", "Another record holds a value that must be unique; see errors.").
				With("errors", []FieldError{{b.field, "is in use already"}})
		}
	}
	return nil
}

// selectIndex returns the records of which a row was made by any of the blinds.
func selectIndex(ctx context.Context, tx *db.Tx, collection, field string, blinds []keyring.Blind) (matches []Match, err error) {
	condition, args := among(blinds, "blind", 4)
	rows, err := tx.Query(ctx, `
		SELECT DISTINCT customer_id, key FROM record_index
		WHERE collection = $1 AND field = $2 AND `+condition+`
		ORDER BY customer_id, key LIMIT $3`, append([]any{collection, field, maxMatches}, args...)...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var m Match
		if err := rows.Scan(&m.Customer, &m.Key); err != nil {
			return nil, err
		}
		matches = append(matches, m)
	}
	return matches, rows.Err()
}

// old is a record whose time is over.
type old struct {
	customer customer.ID
	key      string
	version  int64
}

func selectOld(ctx context.Context, tx *db.Tx, collection string, before int64, limit int) (out []old, err error) {
	rows, err := tx.Query(ctx, `
		SELECT customer_id, key, version FROM record
		WHERE collection = $1 AND updated_day <= $2 AND updated_at <= $3
		ORDER BY updated_day LIMIT $4`,
		collection, day(before), before, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var o old
		if err := rows.Scan(&o.customer, &o.key, &o.version); err != nil {
			return nil, err
		}
		out = append(out, o)
	}
	return out, rows.Err()
}
