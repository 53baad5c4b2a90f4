package db

import (
	"context"
	"errors"
	"fmt"
	"strings"
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
