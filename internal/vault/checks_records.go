package vault

import (
	"bytes"
	"context"
	"database/sql"
	"errors"
	"log/slog"
	"strings"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/check"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

// ActionRecordTry is recorded when a check has opened records and thrown away what was in them.
const ActionRecordTry = "vault.record.try"

// tried is how many records CheckRecords opens.
const tried = 200

// CheckRecordsID is the name of the check that is CheckRecords, under which it remembers how far it came.
const CheckRecordsID = "vault-records-open"

// CheckRecords opens the next records under the keys of their customers, from where it stopped the last time;
// behind the last record it begins anew. What they hold goes nowhere.
func (v *Vault) CheckRecords(ctx context.Context) check.Observation {
	return v.checkRecords(ctx, tried)
}

func (v *Vault) checkRecords(ctx context.Context, some int) check.Observation {
	did := "opened the next records, one after the other, under the keys of their customers"
	opened, damaged := 0, 0
	err := v.db.Update(ctx, func(tx *db.Tx) error {
		opened, damaged = 0, 0
		after, err := selectCursor(ctx, tx)
		if err != nil {
			return err
		}
		next, err := selectNext(ctx, tx, after, some)
		if err != nil {
			return err
		}
		if len(next) == 0 && after != (position{}) {
			if next, err = selectNext(ctx, tx, position{}, some); err != nil {
				return err
			}
		}
		var last position
		for _, n := range next {
			last = n.position
			ring, err := v.keys.Customer(ctx, tx, n.owner)
			if err == nil {
				ring, err = v.keys.Holding(ctx, tx, n.owner, ring, n.sealed)
			}
			if problem.Is(err, "customer-erased") {
				continue // what a restore brought back is erased again
			}
			if err == nil {
				_, err = open(ring, n.owner, Ref{n.collection, n.position.key}, n.row)
			}
			switch {
			case err == nil:
				opened++
			case errors.Is(err, seal.ErrOpen), errors.Is(err, seal.ErrKeyVersion), errors.Is(err, keyring.ErrDamaged), problem.Is(err, "customer-not-found"):
				damaged++
				v.log.ErrorContext(ctx, "a record does not open under its customer's key", slog.String("customer", string(n.owner)),
					slog.String("collection", n.collection), slog.String("record", n.position.key))
			default:
				return err
			}
		}
		if len(next) < some {
			last = position{}
		}
		if err := putCursor(ctx, tx, last); err != nil || len(next) == 0 {
			return err
		}
		return v.trail.Record(ctx, tx, actor.From(ctx), audit.Event{Action: ActionRecordTry, Outcome: audit.Granted, Resource: "records"})
	})
	switch {
	case err != nil:
		return check.Undecided(did, "They could not be read: %v", err)
	case damaged > 0:
		return check.Failed(did, "%d of %d records do not open; the log names them.", damaged, damaged+opened).With("damaged", damaged).With("sample", damaged+opened)
	case opened == 0:
		return check.Held(did, "There are no records yet.").With("sample", 0)
	}
	return check.Held(did, "All %d opened.", opened).With("sample", opened)
}

// CheckRotation gives the canary's key a new version: what the old one sealed has to open, and what is sealed
// anew has to be sealed under the new one and open too. Versions that nothing needs any more are destroyed.
func (v *Vault) CheckRotation(ctx context.Context) check.Observation {
	did := "gave a key a new version, opened what the old one had sealed, sealed it anew and opened that"
	by := actor.From(ctx)
	plain, err := v.Canary(ctx)
	if err != nil {
		return check.Undecided(did, "The canary could not be read: %v", err)
	}
	var owner customer.ID
	var old uint32
	if err := v.db.View(ctx, func(tx *db.Tx) error {
		var sealed []byte
		if err := tx.QueryRow(ctx, `SELECT customer_id, sealed FROM canary WHERE one = $1`, 1).Scan(&owner, &sealed); err != nil {
			return err
		}
		old, err = seal.KeyVersion(sealed)
		return err
	}); err != nil {
		return check.Undecided(did, "The canary could not be read: %v", err)
	}
	fresh, err := v.keys.RotateCustomer(ctx, by, owner)
	if err != nil {
		return check.Failed(did, "The key could not be rotated: %v", err)
	}
	v.keys.Forget(owner) // what opens now is what is stored
	again, err := v.Canary(ctx)
	if err == nil {
		v.keys.Forget(owner)
		again, err = v.Canary(ctx)
	}
	if err != nil || !bytes.Equal(again, plain) {
		return check.Failed(did, "What was sealed under version %d does not open under versions %d and %d: %v", old, old, fresh, err)
	}
	var now uint32
	if err := v.db.View(ctx, func(tx *db.Tx) error {
		var sealed []byte
		if err := tx.QueryRow(ctx, `SELECT sealed FROM canary WHERE one = $1`, 1).Scan(&sealed); err != nil {
			return err
		}
		now, err = seal.KeyVersion(sealed)
		return err
	}); err != nil {
		return check.Undecided(did, "The canary could not be read: %v", err)
	}
	if now != fresh || fresh <= old {
		return check.Failed(did, "After the rotation to version %d, version %d still seals.", fresh, now)
	}
	v.destroyBefore(ctx, by, owner, old)
	return check.Held(did, "Version %d opened after version %d was made, which seals now.", old, fresh).With("version", fresh)
}

// destroyBefore destroys the canary's versions before that one, as far as they are not needed.
func (v *Vault) destroyBefore(ctx context.Context, by actor.Actor, owner customer.ID, version uint32) {
	all, err := v.keys.CustomerVersions(ctx, by, owner)
	for _, old := range all {
		if old.Version >= version || old.State == "destroyed" {
			continue
		}
		if destroyed := v.keys.DestroyCustomerVersion(ctx, by, owner, old.Version); destroyed != nil && !problem.Is(destroyed, "key-needed") {
			err = errors.Join(err, destroyed)
		}
	}
	if err != nil {
		v.log.WarnContext(ctx, "an old version of the canary's key was not destroyed; the next check tries again", "error", err)
	}
}

// position is where a record is among all, in the order of the table.
type position struct {
	owner           customer.ID
	collection, key string
}

// following is a record with its place.
type following struct {
	position
	row
}

func selectNext(ctx context.Context, tx *db.Tx, after position, limit int) (all []following, err error) {
	rows, err := tx.Query(ctx, `
		SELECT customer_id, collection, key, version, schema_version, sealed, updated_at FROM record
		WHERE (customer_id, collection, key) > ($1, $2, $3)
		ORDER BY customer_id, collection, key LIMIT $4`, string(after.owner), after.collection, after.key, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var f following
		if err := rows.Scan(&f.owner, &f.collection, &f.position.key, &f.version, &f.schemaVersion, &f.sealed, &f.updatedAt); err != nil {
			return nil, err
		}
		all = append(all, f)
	}
	return all, rows.Err()
}

// A cursor is the three parts with slashes between, which none of them holds.

func selectCursor(ctx context.Context, tx *db.Tx) (p position, err error) {
	var text string
	err = tx.QueryRow(ctx, `SELECT position FROM check_cursor WHERE check_id = $1`, CheckRecordsID).Scan(&text)
	if errors.Is(err, sql.ErrNoRows) {
		return p, nil
	}
	if parts := strings.SplitN(text, "/", 3); len(parts) == 3 {
		p = position{customer.ID(parts[0]), parts[1], parts[2]}
	}
	return p, err
}

func putCursor(ctx context.Context, tx *db.Tx, p position) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO check_cursor (check_id, position) VALUES ($1, $2)
		ON CONFLICT (check_id) DO UPDATE SET position = excluded.position`, CheckRecordsID, string(p.owner)+"/"+p.collection+"/"+p.key)
	return err
}
