package keyring

import (
	"context"
	"database/sql"
	"errors"

	"strongroom/internal/customer"
	"strongroom/internal/db"
)

type kekRow struct {
	version          uint32
	algorithm, state string
	madeAt           int64
	vouch            []byte // nil for the first
	wraps            []kekWrap
}

type kekWrap struct {
	rootID  string
	wrapped []byte
}

// selectKEKs returns all KEKs in order of their version, each with all its wraps.
func selectKEKs(ctx context.Context, tx *db.Tx) ([]kekRow, error) {
	rows, err := tx.Query(ctx, `
		SELECT k.version, k.algorithm, k.state, k.made_at, k.vouch, COALESCE(w.root_id, ''), w.wrapped
		FROM kek k LEFT JOIN kek_wrap w ON w.kek_version = k.version
		ORDER BY k.version, w.root_id`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []kekRow
	for rows.Next() {
		var r kekRow
		var w kekWrap
		if err := rows.Scan(&r.version, &r.algorithm, &r.state, &r.madeAt, &r.vouch, &w.rootID, &w.wrapped); err != nil {
			return nil, err
		}
		if n := len(all); n == 0 || all[n-1].version != r.version {
			all = append(all, r)
		}
		if w.wrapped != nil {
			last := &all[len(all)-1]
			last.wraps = append(last.wraps, w)
		}
	}
	return all, rows.Err()
}

// insertKEK fails with errMoved when the version is there already.
func insertKEK(ctx context.Context, tx *db.Tx, r kekRow) error {
	n, err := tx.Exec(ctx, `
		INSERT INTO kek (version, algorithm, state, made_at, vouch) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (version) DO NOTHING`, r.version, r.algorithm, r.state, r.madeAt, r.vouch)
	if err != nil {
		return err
	}
	if n == 0 {
		return errMoved
	}
	for _, w := range r.wraps {
		if _, err := tx.Exec(ctx, `
			INSERT INTO kek_wrap (kek_version, root_id, wrapped, made_at) VALUES ($1, $2, $3, $4)`,
			r.version, w.rootID, w.wrapped, r.madeAt); err != nil {
			return err
		}
	}
	return nil
}

type serviceRow struct {
	name             string
	version          uint32
	kekVersion       uint32
	algorithm, state string
	wrapped          []byte // nil once destroyed
	madeAt           int64
	verifier         string // public part of a signing key whose private part is destroyed
}

// selectServiceKeys returns all service keys in order of name and version.
func selectServiceKeys(ctx context.Context, tx *db.Tx) ([]serviceRow, error) {
	rows, err := tx.Query(ctx, `
		SELECT name, version, kek_version, algorithm, state, wrapped, made_at, COALESCE(verifier, '')
		FROM service_key ORDER BY name, version`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []serviceRow
	for rows.Next() {
		var r serviceRow
		if err := rows.Scan(&r.name, &r.version, &r.kekVersion, &r.algorithm, &r.state, &r.wrapped, &r.madeAt, &r.verifier); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// insertServiceKey fails with errMoved when the version is there already.
func insertServiceKey(ctx context.Context, tx *db.Tx, r serviceRow) error {
	n, err := tx.Exec(ctx, `
		INSERT INTO service_key (name, version, kek_version, algorithm, state, wrapped, made_at)
		VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (name, version) DO NOTHING`,
		r.name, r.version, r.kekVersion, r.algorithm, r.state, r.wrapped, r.madeAt)
	if err == nil && n == 0 {
		return errMoved
	}
	return err
}

type dataRow struct {
	version    uint32
	kekVersion uint32
	state      string
	wrapped    []byte // nil once destroyed
	madeAt     int64
}

// selectDataKeys returns the versions of c's data key, oldest first. A tombstone comes first of all,
// as version 0, with its MAC for the wrapped key.
func selectDataKeys(ctx context.Context, tx *db.Tx, c customer.ID) ([]dataRow, error) {
	rows, err := tx.Query(ctx, `
		SELECT version, kek_version, state, wrapped, made_at FROM data_key WHERE customer_id = $1
		UNION ALL
		SELECT 0, 0, 'destroyed', mac, erased_at FROM data_key_tombstone WHERE customer_id = $1
		ORDER BY 1`, c)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []dataRow
	for rows.Next() {
		var r dataRow
		if err := rows.Scan(&r.version, &r.kekVersion, &r.state, &r.wrapped, &r.madeAt); err != nil {
			return nil, err
		}
		all = append(all, r)
	}
	return all, rows.Err()
}

// insertDataKey reports whether the version was not there before.
func insertDataKey(ctx context.Context, tx *db.Tx, c customer.ID, r dataRow) (bool, error) {
	n, err := tx.Exec(ctx, `
		INSERT INTO data_key (customer_id, version, kek_version, state, wrapped, made_at)
		VALUES ($1, $2, $3, $4, $5, $6)
		ON CONFLICT (customer_id, version) DO NOTHING`,
		c, r.version, r.kekVersion, r.state, r.wrapped, r.madeAt)
	return n == 1, err
}

// selectTombstone returns the tombstone of c, if there is one.
func selectTombstone(ctx context.Context, tx *db.Tx, c customer.ID) (mac []byte, erasedAt int64, found bool, err error) {
	err = tx.QueryRow(ctx, `SELECT mac, erased_at FROM data_key_tombstone WHERE customer_id = $1`, c).Scan(&mac, &erasedAt)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, 0, false, nil
	}
	return mac, erasedAt, err == nil, err
}

type dataCount struct {
	version, kekVersion uint32
	state               string
	count, madeAt       int64
}

// countDataKeys walks through all data keys; it is for the list, not for requests.
func countDataKeys(ctx context.Context, tx *db.Tx) ([]dataCount, error) {
	rows, err := tx.Query(ctx, `
		SELECT version, kek_version, state, COUNT(*), MIN(made_at) FROM data_key
		GROUP BY version, kek_version, state ORDER BY version, kek_version, state`)
	if err != nil {
		return nil, err
	}
	defer func() { _ = rows.Close() }()
	var all []dataCount
	for rows.Next() {
		var c dataCount
		if err := rows.Scan(&c.version, &c.kekVersion, &c.state, &c.count, &c.madeAt); err != nil {
			return nil, err
		}
		all = append(all, c)
	}
	return all, rows.Err()
}
