package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/url"
	"strings"

	"strongroom/internal/id"
)

// Scratch makes an empty schema in a PostgreSQL database and returns the URL of a database that consists
// of it, and what drops it again with all that it holds. It drops what processes that died left of theirs first.
func Scratch(ctx context.Context, postgres string) (scratch string, drop func(ctx context.Context) error, err error) {
	u, err := url.Parse(postgres)
	if err != nil {
		return "", nil, errors.New("the URL of the scratch database is not one")
	}
	pool, err := sql.Open("pgx", postgres)
	if err != nil {
		return "", nil, errors.New("the URL of the scratch database is not one")
	}
	schema := schemaPrefix + id.New(scratchID)
	// The lock says that somebody uses the schema, for as long as the connection is there.
	lock, err := pool.Conn(ctx)
	if err == nil {
		_, err = lock.ExecContext(ctx, `SELECT pg_advisory_lock($1)`, lockOf(schema))
	}
	if err == nil {
		err = dropAbandoned(ctx, lock)
	}
	if err == nil {
		_, err = lock.ExecContext(ctx, `CREATE SCHEMA "`+schema+`"`)
	}
	if err != nil {
		if lock != nil {
			err = errors.Join(err, lock.Close())
		}
		return "", nil, errors.Join(fmt.Errorf("the scratch database: %w", err), pool.Close())
	}
	q := u.Query()
	q.Set("search_path", `"`+schema+`"`)
	u.RawQuery = q.Encode()
	return u.String(), func(ctx context.Context) error {
		_, err := pool.ExecContext(ctx, `DROP SCHEMA "`+schema+`" CASCADE`)
		return errors.Join(err, lock.Close(), pool.Close())
	}, nil
}

const (
	schemaPrefix = "strongroom_"
	scratchID    = "scratch"
)

// lockOf returns the advisory lock of a scratch schema.
func lockOf(schema string) int64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(schema))
	return int64(h.Sum64())
}

// dropAbandoned drops the scratch schemas that nobody uses: they hold a copy of everything, also of the keys of
// whoever is erased after it was made.
func dropAbandoned(ctx context.Context, c *sql.Conn) error {
	rows, err := c.QueryContext(ctx, `SELECT nspname FROM pg_namespace WHERE nspname LIKE $1`, schemaPrefix+scratchID+`\_%`)
	if err != nil {
		return err
	}
	defer rows.Close()
	var all []string
	for rows.Next() {
		var name string
		if err := rows.Scan(&name); err != nil {
			return err
		}
		if id.Valid(scratchID, strings.TrimPrefix(name, schemaPrefix)) {
			all = append(all, name)
		}
	}
	if err := rows.Err(); err != nil {
		return err
	}
	for _, name := range all {
		var free bool
		if err := c.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, lockOf(name)).Scan(&free); err != nil {
			return err
		}
		if !free {
			continue
		}
		_, err := c.ExecContext(ctx, `DROP SCHEMA IF EXISTS "`+name+`" CASCADE`)
		_, unlocked := c.ExecContext(ctx, `SELECT pg_advisory_unlock($1)`, lockOf(name))
		if err := errors.Join(err, unlocked); err != nil {
			return err
		}
	}
	return nil
}

// Same reports whether a URL of a PostgreSQL database names the one that is open.
func (d *DB) Same(ctx context.Context, postgres string) (same bool, err error) {
	if d.kind != PostgreSQL {
		return false, nil
	}
	pool, err := sql.Open("pgx", postgres)
	if err != nil {
		return false, errors.New("the URL of the database is not one")
	}
	defer func() { err = errors.Join(err, pool.Close()) }()
	// An advisory lock is one of its database: whoever cannot get it is in the same.
	key := rand.Int64()
	err = d.View(ctx, func(tx *Tx) error {
		var ours, theirs string
		var free bool
		if _, err := tx.Exec(ctx, `SELECT pg_advisory_xact_lock($1)`, key); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, `SELECT current_schema()`).Scan(&ours); err != nil {
			return err
		}
		if err := pool.QueryRowContext(ctx, `SELECT COALESCE(current_schema(), ''), pg_try_advisory_xact_lock($1)`, key).Scan(&theirs, &free); err != nil {
			return err
		}
		same = !free && ours == theirs
		return nil
	})
	return same, err
}
