package vault

import (
	"context"
	"database/sql"
	"errors"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
)

// ActionTrim is the event of deleting older versions that a collection keeps no longer.
const ActionTrim = "vault.history.trim"

// Version is a version of a record, without what it holds.
type Version struct {
	Version       int64
	SchemaVersion int
	UpdatedAt     time.Time
	Current       bool
}

// replace puts w in the place of the record's version old, and keeps old as its collection says.
func (v *Vault) replace(ctx context.Context, tx *db.Tx, s *schema, owner customer.ID, ref Ref, old int64, w row) error {
	if s.History > 0 {
		// It stays sealed as it is: bound to the record and to its version, it opens as nothing else.
		if _, err := tx.Exec(ctx, `
			INSERT INTO record_version (customer_id, collection, key, version, schema_version, sealed, updated_at)
			SELECT customer_id, collection, key, version, schema_version, sealed, updated_at FROM record
			WHERE customer_id = $1 AND collection = $2 AND key = $3 AND version = $4`,
			string(owner), ref.Collection, ref.Key, old); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `
			DELETE FROM record_version WHERE customer_id = $1 AND collection = $2 AND key = $3 AND version <= $4`,
			string(owner), ref.Collection, ref.Key, old-int64(s.History)); err != nil {
			return err
		}
	}
	return updateRecord(ctx, tx, owner, ref, old, w)
}

// selectAt is selectRecord for a version, 0 for the newest.
func selectAt(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref, version int64) (w row, found bool, err error) {
	w, found, err = selectRecord(ctx, tx, owner, ref)
	if err != nil || !found || version == 0 || w.version == version {
		return w, found, err
	}
	err = tx.QueryRow(ctx, `
		SELECT version, schema_version, sealed, updated_at FROM record_version
		WHERE customer_id = $1 AND collection = $2 AND key = $3 AND version = $4`,
		string(owner), ref.Collection, ref.Key, version).Scan(&w.version, &w.schemaVersion, &w.sealed, &w.updatedAt)
	if errors.Is(err, sql.ErrNoRows) {
		return row{}, false, nil
	}
	return w, err == nil, err
}

// selectVersions returns the versions of a record that are kept, newest first; none if there is no record.
func selectVersions(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref) (out []Version, err error) {
	rows, err := tx.Query(ctx, `
		SELECT version, schema_version, updated_at, 1 FROM record
		WHERE customer_id = $1 AND collection = $2 AND key = $3
		UNION ALL
		SELECT version, schema_version, updated_at, 0 FROM record_version
		WHERE customer_id = $1 AND collection = $2 AND key = $3
		ORDER BY 1 DESC`, string(owner), ref.Collection, ref.Key)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var v Version
		var at int64
		var current int
		if err := rows.Scan(&v.Version, &v.SchemaVersion, &at, &current); err != nil {
			return nil, err
		}
		v.UpdatedAt, v.Current = clock.FromMicros(at), current == 1
		out = append(out, v)
	}
	return out, rows.Err()
}

func deleteVersions(ctx context.Context, tx *db.Tx, owner customer.ID, ref Ref) error {
	_, err := tx.Exec(ctx, `DELETE FROM record_version WHERE customer_id = $1 AND collection = $2 AND key = $3`,
		string(owner), ref.Collection, ref.Key)
	return err
}

// trimBatch is how many versions one transaction of trim deletes.
const trimBatch = 256

// trim deletes the older versions of collections that keep none any more. A collection that keeps fewer
// than before loses the rest with each record's next change.
func (v *Vault) trim(ctx context.Context) error {
	by := actor.OfSystem("job:vault-expiry")
	for _, s := range v.collections() {
		if s.History > 0 {
			continue
		}
		for more := true; more; {
			if err := ctx.Err(); err != nil {
				return err
			}
			var n int64
			err := v.db.Update(ctx, func(tx *db.Tx) (err error) {
				n, err = tx.Exec(ctx, `
					DELETE FROM record_version WHERE (customer_id, collection, key, version) IN (
						SELECT customer_id, collection, key, version FROM record_version WHERE collection = $1 LIMIT $2)`,
					s.Name, trimBatch)
				if err != nil || n == 0 {
					return err
				}
				return v.trail.Record(ctx, tx, by, audit.Event{
					Action: ActionTrim, Resource: "collection " + s.Name, Outcome: audit.Granted, Reason: "history-not-kept"})
			})
			if err != nil {
				return err
			}
			more = n == trimBatch
		}
	}
	return nil
}
