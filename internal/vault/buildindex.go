package vault

import (
	"bytes"
	"context"
	"database/sql"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"golang.org/x/time/rate"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// ActionIndex is the event of opening records to bring their indexes in line with a declaration.
const ActionIndex = "vault.collection.index"

const (
	// buildBatch is how many records one transaction of BuildIndexes opens.
	buildBatch = 64
	// buildRate is how many records a second BuildIndexes opens at most: the rest of the machine is for
	// those who wait.
	buildRate = 2000
)

// BuildIndexes brings the indexes of all records in line with the newest declarations, collection by
// collection. It goes on where it was interrupted. While it is at work, a field that it adds cannot be
// looked up.
func (v *Vault) BuildIndexes(ctx context.Context) error {
	if err := v.refresh(ctx); err != nil {
		return err
	}
	by := actor.OfSystem("job:" + JobIndex)
	pace := rate.NewLimiter(buildRate, buildBatch)
	for _, s := range v.collections() {
		for more := s.rebuild; more; {
			if err := pace.WaitN(ctx, buildBatch); err != nil {
				return err
			}
			var err error
			if more, err = v.buildBatch(ctx, by, s); err != nil {
				return fmt.Errorf("index of %s: %w", s.Name, err)
			}
		}
	}
	return v.refresh(ctx)
}

// buildBatch does the next records of a collection; more is false when there are none left.
func (v *Vault) buildBatch(ctx context.Context, by actor.Actor, s *schema) (more bool, err error) {
	err = v.db.Update(ctx, func(tx *db.Tx) error {
		more = false
		b, at, err := selectProgress(ctx, tx, s.Name, s.Version)
		if err != nil || b == nil {
			return err // it is done, or for a version that another process has declared just now
		}
		if _, err := v.keys.CatchUp(ctx, tx); err != nil {
			return err
		}
		batch, err := selectAfter(ctx, tx, s.Name, at, buildBatch)
		if err != nil {
			return err
		}
		for _, r := range batch {
			if err := v.buildRow(ctx, tx, s, r, b); err != nil {
				return err
			}
			at, b.Done = r.place, b.Done+1
		}
		more = len(batch) == buildBatch
		resource := "collection " + s.Name + " v" + strconv.Itoa(s.Version) + " " + strconv.Itoa(len(batch)) + " records"
		if more {
			err = updateBuild(ctx, tx, s.Name, at, b)
		} else {
			resource += ", index complete"
			err = deleteBuild(ctx, tx, s.Name)
		}
		if err != nil {
			return err
		}
		return v.trail.Record(ctx, tx, by, audit.Event{Action: ActionIndex, Resource: resource, Outcome: audit.Granted, Reason: "declaration-changed"})
	})
	return more, err
}

// buildRow brings one record's rows in the index in line. A record that does not open stays in no index, and
// is counted.
func (v *Vault) buildRow(ctx context.Context, tx *db.Tx, s *schema, r unindexed, b *Building) error {
	ref := Ref{s.Name, r.place.key}
	ring, err := v.keys.Customer(ctx, tx, r.place.customer)
	if p := problem.Of(err); p != nil && (p.Kind() == problem.Gone || p.Kind() == problem.NotFound) {
		return nil // erased: nothing to be found
	}
	if err != nil {
		return err
	}
	if ring, err = v.keys.Holding(ctx, tx, r.place.customer, ring, r.sealed); err != nil {
		return err
	}
	values, err := open(ring, r.place.customer, ref, r.row)
	if err != nil {
		b.Unreadable++
		v.log.ErrorContext(ctx, "a record does not open, and is left out of its index", "customer", r.place.customer,
			"record", ref.Collection+"/"+ref.Key, "error", err)
		return nil
	}
	blinds := v.blinds(s, s.known(values))
	index := digest(blinds)
	if bytes.Equal(index, r.indexed) {
		return nil
	}
	if err := deleteIndex(ctx, tx, r.place.customer, ref); err != nil {
		return err
	}
	if err := insertIndex(ctx, tx, r.place.customer, ref, blinds); err != nil {
		return err
	}
	n, err := tx.Exec(ctx, `UPDATE record SET indexed = $4 WHERE customer_id = $1 AND collection = $2 AND key = $3`,
		string(r.place.customer), ref.Collection, ref.Key, index)
	return exactlyOne(n, err)
}

// buildPlace is the last record that was done.
type buildPlace struct {
	customer customer.ID
	key      string
}

// unindexed is a record whose index is to be checked.
type unindexed struct {
	place buildPlace
	row
}

// selectAfter walks through the table in its own order, from the place on: to find the collection first,
// each batch would sort all of it.
func selectAfter(ctx context.Context, tx *db.Tx, collection string, at buildPlace, limit int) (out []unindexed, err error) {
	rows, err := tx.Query(ctx, `
		SELECT customer_id, key, version, schema_version, sealed, indexed, updated_at FROM record
		WHERE (customer_id, collection, key) > ($1, $2, $3) AND collection || '' = $2
		ORDER BY customer_id, collection, key LIMIT $4`, string(at.customer), collection, at.key, limit)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r unindexed
		if err := rows.Scan(&r.place.customer, &r.place.key, &r.version, &r.schemaVersion, &r.sealed, &r.indexed, &r.updatedAt); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

// startBuild begins at the first record, for the fields that cannot be looked up until it has ended.
func startBuild(ctx context.Context, tx *db.Tx, name string, version int, fields []string) error {
	if fields == nil {
		fields = []string{}
	}
	text, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `
		INSERT INTO collection_build (name, version, fields, after_customer, after_key, done, unreadable)
		VALUES ($1, $2, $3, '', '', 0, 0)
		ON CONFLICT (name) DO UPDATE SET version = excluded.version, fields = excluded.fields,
			after_customer = '', after_key = '', done = 0, unreadable = 0`,
		name, version, string(text))
	return err
}

func selectBuild(ctx context.Context, tx *db.Tx, name string) (*Building, error) {
	b, _, err := selectProgress(ctx, tx, name, 0)
	return b, err
}

// selectProgress returns the build of a collection for that version, 0 for any; nil if there is none.
func selectProgress(ctx context.Context, tx *db.Tx, name string, version int) (*Building, buildPlace, error) {
	var b Building
	var at buildPlace
	var fields string
	err := tx.QueryRow(ctx, `
		SELECT fields, after_customer, after_key, done, unreadable FROM collection_build
		WHERE name = $1 AND ($2 = 0 OR version = $2)`, name, version).Scan(&fields, &at.customer, &at.key, &b.Done, &b.Unreadable)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, at, nil
	}
	if err != nil {
		return nil, at, err
	}
	return &b, at, json.Unmarshal([]byte(fields), &b.Fields)
}

func updateBuild(ctx context.Context, tx *db.Tx, name string, at buildPlace, b *Building) error {
	n, err := tx.Exec(ctx, `
		UPDATE collection_build SET after_customer = $2, after_key = $3, done = $4, unreadable = $5 WHERE name = $1`,
		name, string(at.customer), at.key, b.Done, b.Unreadable)
	return exactlyOne(n, err)
}

func deleteBuild(ctx context.Context, tx *db.Tx, name string) error {
	n, err := tx.Exec(ctx, `DELETE FROM collection_build WHERE name = $1`, name)
	return exactlyOne(n, err)
}
