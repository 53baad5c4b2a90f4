package db

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/stdlib"
)

// ColumnType is one of the three types that the schema uses.
type ColumnType byte

// The types of columns.
const (
	IntColumn  ColumnType = 'i' // int64
	TextColumn ColumnType = 't' // string
	BlobColumn ColumnType = 'b' // []byte
)

// Column is a column of a Table.
type Column struct {
	Name string     `json:"name"`
	Type ColumnType `json:"type"`
}

// Table is what a copy of the database has to know of a table. It is the same on both engines.
type Table struct {
	Name    string   `json:"name"`
	Columns []Column `json:"columns"` // by name
	Key     []int    `json:"key"`     // the primary key: indexes into Columns, in the key's order
}

// Tables returns every table but the list of migrations, by name.
func (tx *Tx) Tables(ctx context.Context) ([]Table, error) {
	query := `
		SELECT m.name, p.name, p.type, p.pk
		FROM sqlite_schema m JOIN pragma_table_info(m.name) p
		WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%' AND m.name <> $1
		ORDER BY m.name, p.name`
	if _, ok := tx.run.(postgresRunner); ok {
		query = `
			SELECT c.relname, a.attname, format_type(a.atttypid, a.atttypmod), COALESCE(array_position(i.indkey, a.attnum) + 1, 0)
			FROM pg_class c
			JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped
			LEFT JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary
			WHERE c.relkind = 'r' AND c.relnamespace = current_schema()::regnamespace AND c.relname <> $1
			ORDER BY c.relname COLLATE "C", a.attname COLLATE "C"`
	}
	rows, err := tx.Query(ctx, query, versionTable)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var tables []Table
	places := make(map[int]int) // of the key's columns in the current table: place in the key → column
	finish := func() error {
		if len(tables) == 0 {
			return nil
		}
		t := &tables[len(tables)-1]
		for n := 1; n <= len(places); n++ {
			t.Key = append(t.Key, places[n])
		}
		if len(t.Key) == 0 {
			return fmt.Errorf("the table %s has no primary key", t.Name)
		}
		clear(places)
		return nil
	}
	for rows.Next() {
		var table, column, kind string
		var place int
		if err := rows.Scan(&table, &column, &kind, &place); err != nil {
			return nil, err
		}
		if len(tables) == 0 || tables[len(tables)-1].Name != table {
			if err := finish(); err != nil {
				return nil, err
			}
			tables = append(tables, Table{Name: table})
		}
		t := &tables[len(tables)-1]
		c := Column{Name: column}
		switch strings.ToUpper(kind) {
		case "INTEGER", "BIGINT":
			c.Type = IntColumn
		case "TEXT":
			c.Type = TextColumn
		case "BLOB", "BYTEA":
			c.Type = BlobColumn
		default:
			return nil, fmt.Errorf("the column %s.%s is of type %s", table, column, kind)
		}
		if place > 0 {
			places[place] = len(t.Columns)
		}
		t.Columns = append(t.Columns, c)
	}
	if err := errors.Join(rows.Err(), finish()); err != nil {
		return nil, err
	}
	return tables, nil
}

// SchemaVersion returns the number of the newest migration that was applied.
func (tx *Tx) SchemaVersion(ctx context.Context) (version int64, err error) {
	err = tx.QueryRow(ctx, `SELECT MAX(version) FROM `+versionTable+` WHERE version >= $1`, 0).Scan(&version)
	return version, err
}

// Snapshot is View for a reader that takes its time: the database's limits on how long a statement may
// run, or wait for its reader, do not hold. SQLite's log grows meanwhile.
func (d *DB) Snapshot(ctx context.Context, fn func(tx *Tx) error) error {
	return d.View(ctx, func(tx *Tx) error {
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

// Load adds rows to a table: next fills the values of a row, in the order of t.Columns, and reports
// false after the last. All rows are one transaction; keep them to some thousands. It returns how many
// there were. A row that is there already makes it fail.
//
// It is for restoring into a database that nobody uses yet: it records no event.
func (d *DB) Load(ctx context.Context, t Table, next func(values []any) (bool, error)) (loaded int64, err error) {
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
		values := make([]any, len(t.Columns))
		for {
			more, err := next(values)
			if err != nil || !more {
				return err
			}
			if _, err := tx.Exec(ctx, query, values...); err != nil {
				return err
			}
			loaded++
		}
	})
	return loaded, err
}

// copyIn is Load by COPY.
func (d *DB) copyIn(ctx context.Context, t Table, next func(values []any) (bool, error)) (loaded int64, err error) {
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
		source := &copySource{next: next, values: make([]any, len(t.Columns))}
		loaded, err = driver.(*stdlib.Conn).Conn().CopyFrom(ctx, pgx.Identifier{t.Name}, names, source)
		return err
	})
	return loaded, err
}

type copySource struct {
	next   func(values []any) (bool, error)
	values []any
	err    error
}

func (s *copySource) Next() bool {
	more, err := s.next(s.values)
	s.err = err
	return more && err == nil
}

func (s *copySource) Values() ([]any, error) { return s.values, nil }

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
	return d.Update(ctx, func(tx *Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM "`+t.Name+`"`)
		return err
	})
}
