package db

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// Snapshot is View for a reader that takes its time: the database's limits on how long a statement may
// run, or wait for its reader, do not hold, and Each is at its fastest. SQLite's log grows meanwhile.
func (d *DB) Snapshot(ctx context.Context, fn func(tx *Tx) error) error {
	return d.engine.snapshot(ctx, func(tx *Tx) error {
		if d.kind == PostgreSQL {
			for _, setting := range []string{"statement_timeout", "idle_in_transaction_session_timeout"} {
				if _, err := tx.Exec(ctx, `SELECT set_config($1, '0', true)`, setting); err != nil {
					return err
				}
			}
		}
		return fn(tx)
	})
}

// InKeyOrder has a Snapshot read tables by their primary key and never sort them: it is for tables whose rows
// lie in that order.
func (tx *Tx) InKeyOrder(ctx context.Context) error {
	if _, ok := tx.run.(postgresRunner); !ok {
		return nil
	}
	_, err := tx.Exec(ctx, `SELECT set_config('enable_sort', 'off', true)`)
	return err
}

// Load adds rows to a table: next fills the values of a row, in the order of t.Columns, and reports
// false after the last. All rows are one transaction; keep them to some megabytes. It returns how many
// there were. A row that is there already makes it fail.
//
// It is for restoring into a database that nobody uses yet: it records no event.
func (d *DB) Load(ctx context.Context, t Table, next func(row []Value) (bool, error)) (loaded int64, err error) {
	if d.kind == PostgreSQL {
		return d.copyIn(ctx, t, next)
	}
	names, marks := make([]string, len(t.Columns)), make([]string, len(t.Columns))
	for i, c := range t.Columns {
		names[i], marks[i] = `"`+c.Name+`"`, fmt.Sprintf("$%d", i+1)
	}
	query := `INSERT INTO "` + t.Name + `" (` + strings.Join(names, ", ") + `) VALUES (` + strings.Join(marks, ", ") + `)`
	err = d.Update(ctx, func(tx *Tx) error {
		if loaded > 0 {
			return errors.New("rows that were given once cannot be loaded again")
		}
		c := tx.run.(*sqliteRunner).conn
		row := make([]Value, len(t.Columns))
		for {
			more, err := next(row)
			if err != nil || !more {
				return err
			}
			if err := c.insert(query, row); err != nil {
				return err
			}
			loaded++
		}
	})
	return loaded, err
}

// insert runs a statement with the values of a row.
func (c *conn) insert(query string, row []Value) (err error) {
	defer c.caught(&err)
	st, err := c.prepare(query)
	if err != nil {
		return err
	}
	for i, v := range row {
		switch v.Kind {
		case IntColumn:
			err = st.s.BindInt64(i+1, v.Int)
		case TextColumn:
			err = st.s.BindRawText(i+1, v.Bytes)
		case BlobColumn:
			err = st.s.BindBlob(i+1, v.Bytes)
		default:
			err = st.s.BindNull(i + 1)
		}
		if err != nil {
			return err
		}
	}
	if err := st.s.Exec(); err != nil {
		return c.failed(err)
	}
	return nil
}

// copyIn is Load by COPY.
func (d *DB) copyIn(ctx context.Context, t Table, next func(row []Value) (bool, error)) (loaded int64, err error) {
	c, err := d.engine.(*server).pool.Conn(ctx)
	if err != nil {
		return 0, unavailable(err)
	}
	defer c.Close()
	names := make([]string, len(t.Columns))
	for i, column := range t.Columns {
		names[i] = column.Name
	}
	err = c.Raw(func(driver any) (err error) {
		source := &copySource{next: next, row: make([]Value, len(t.Columns)), values: make([]any, len(t.Columns))}
		loaded, err = driver.(*stdlib.Conn).Conn().CopyFrom(ctx, pgx.Identifier{t.Name}, names, source)
		if source.err != nil {
			return source.err
		}
		return err
	})
	return loaded, err
}

// copySource gives the rows in the form that pgx wants.
type copySource struct {
	next   func(row []Value) (bool, error)
	row    []Value
	values []any
	err    error
}

func (s *copySource) Next() bool {
	more, err := s.next(s.row)
	s.err = err
	return more && err == nil
}

func (s *copySource) Values() ([]any, error) {
	for i, v := range s.row {
		switch v.Kind {
		case IntColumn:
			s.values[i] = v.Int
		case TextColumn, BlobColumn:
			s.values[i] = v.Bytes
		default:
			s.values[i] = nil
		}
	}
	return s.values, nil
}

func (s *copySource) Err() error { return s.err }

// Clear removes every row of a table that Load is to fill.
func (d *DB) Clear(ctx context.Context, t Table) error {
	rows := 0
	err := d.View(ctx, func(tx *Tx) error {
		return tx.QueryRow(ctx, `SELECT COUNT(*) FROM (SELECT 1 FROM "`+t.Name+`" LIMIT 1) AS one`).Scan(&rows)
	})
	if err != nil || rows == 0 {
		return err // most are empty, and a commit waits for the disk
	}
	return d.Update(ctx, func(tx *Tx) error { return tx.Empty(ctx, t) })
}

// Empty removes every row of a table.
func (tx *Tx) Empty(ctx context.Context, t Table) error {
	query := `DELETE FROM "` + t.Name + `"`
	if _, ok := tx.run.(postgresRunner); ok {
		query = `TRUNCATE "` + t.Name + `"`
	}
	_, err := tx.Exec(ctx, query)
	return err
}

// DropIndexes takes the indexes off a table that Load is to fill, with PostgreSQL the primary key too, and
// returns the statements that make them again: it is faster to sort what is there than to find the place of
// each row, and takes memory that does not grow with the table.
func (tx *Tx) DropIndexes(ctx context.Context, t Table) (again []string, err error) {
	query := `
		SELECT 'DROP INDEX "' || name || '"', sql FROM sqlite_schema
		WHERE type = 'index' AND sql IS NOT NULL AND tbl_name = $1 ORDER BY name`
	if _, ok := tx.run.(postgresRunner); ok {
		query = `
			SELECT CASE WHEN k.oid IS NULL THEN format('DROP INDEX %I', x.relname)
					ELSE format('ALTER TABLE %I DROP CONSTRAINT %I', t.relname, k.conname) END,
				CASE WHEN k.oid IS NULL THEN pg_get_indexdef(i.indexrelid)
					ELSE format('ALTER TABLE %I ADD CONSTRAINT %I %s', t.relname, k.conname, pg_get_constraintdef(k.oid)) END
			FROM pg_index i
			JOIN pg_class t ON t.oid = i.indrelid
			JOIN pg_class x ON x.oid = i.indexrelid
			LEFT JOIN pg_constraint k ON k.conindid = i.indexrelid
			WHERE i.indrelid = to_regclass($1)
			ORDER BY i.indisprimary DESC, x.relname`
	}
	var drop []string
	err = func() error {
		rows, err := tx.Query(ctx, query, t.Name)
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var off, on string
			if err := rows.Scan(&off, &on); err != nil {
				return err
			}
			drop, again = append(drop, off), append(again, on)
		}
		return rows.Err()
	}()
	if err != nil {
		return nil, err
	}
	for _, statement := range drop {
		if _, err := tx.Exec(ctx, statement); err != nil {
			return nil, err
		}
	}
	return again, nil
}
