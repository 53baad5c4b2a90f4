package db

import (
	"context"
	"database/sql"
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/stdlib"
)

// Value is a column of a row that Each reads or Load writes.
type Value struct {
	Kind  ColumnType // 0 means NULL
	Int   int64
	Bytes []byte // text or blob
}

// Each calls f with every row that a query gives. It is Query for those who read a great deal: nothing is
// made of the values, and they are valid until f returns. f must not use tx. An error of f ends it.
func (tx *Tx) Each(_ context.Context, query string, f func(row []Value) error, args ...any) error {
	if tx.over.Load() {
		return errOver
	}
	args, err := checked(args)
	if err != nil {
		return err
	}
	var failed error // f's own, which is no failure of the engine
	err = tx.run.each(tx.ctx, query, args, func(row []Value) error {
		failed = f(row)
		return failed
	})
	if failed != nil {
		return failed
	}
	if err != nil {
		return tx.note(err)
	}
	return nil
}

func (r *sqliteRunner) each(_ context.Context, query string, args []any, f func([]Value) error) error {
	return r.conn.each(query, args, f)
}

// each runs a query to its end.
func (c *conn) each(query string, args []any, f func([]Value) error) (err error) {
	r, err := c.start(query, args)
	if err != nil {
		return err
	}
	defer r.Close()
	row := make([]Value, len(r.st.columns))
	for {
		if err := r.values(row); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		if err := f(row); err != nil {
			return err
		}
	}
}

// values steps to the next row and has row refer to its columns; io.EOF follows the last.
func (r *rows) values(row []Value) (err error) {
	defer r.c.caught(&err)
	if err := r.step(); err != nil {
		return err
	}
	if err := r.st.s.ColumnsRaw(r.st.row...); err != nil {
		return r.c.failed(err)
	}
	for i, v := range r.st.row {
		switch v := v.(type) {
		case nil:
			row[i] = Value{}
		case int64:
			row[i] = Value{Kind: IntColumn, Int: v}
		case []byte:
			row[i] = Value{Kind: BlobColumn, Bytes: v}
			if cap(v) > len(v) { // text has room for its final NUL
				row[i].Kind = TextColumn
			}
		default:
			return fmt.Errorf("the column %s gave a %T", r.st.columns[i], v)
		}
	}
	return nil
}

// eachRow is each by way of database/sql.
func eachRow(rows *sql.Rows, err error, f func([]Value) error) error {
	if err != nil {
		return err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return err
	}
	values, targets, row := make([]any, len(columns)), make([]any, len(columns)), make([]Value, len(columns))
	for i := range values {
		targets[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(targets...); err != nil {
			return err
		}
		for i, v := range values {
			switch v := v.(type) {
			case nil:
				row[i] = Value{}
			case int64:
				row[i] = Value{Kind: IntColumn, Int: v}
			case string:
				row[i] = Value{Kind: TextColumn, Bytes: []byte(v)}
			case []byte:
				row[i] = Value{Kind: BlobColumn, Bytes: v}
			default:
				return fmt.Errorf("the column %s gave a %T", columns[i], v)
			}
		}
		if err := f(row); err != nil {
			return err
		}
	}
	return rows.Err()
}

func (r poolRunner) each(ctx context.Context, query string, args []any, f func([]Value) error) error {
	rows, err := r.pool.QueryContext(ctx, query, args...)
	return eachRow(rows, err, f)
}

func (r postgresRunner) each(ctx context.Context, query string, args []any, f func([]Value) error) error {
	if r.conn == nil {
		rows, err := r.tx.QueryContext(ctx, query, args...)
		return eachRow(rows, err, f)
	}
	return r.conn.Raw(func(driver any) error {
		args = append([]any{pgx.QueryResultFormats{pgx.BinaryFormatCode}}, args...)
		rows, err := driver.(*stdlib.Conn).Conn().Query(ctx, query, args...)
		if err != nil {
			return err
		}
		defer rows.Close()
		fields := rows.FieldDescriptions()
		row := make([]Value, len(fields))
		for rows.Next() {
			for i, raw := range rows.RawValues() {
				var ok bool
				if row[i], ok = binaryValue(fields[i].DataTypeOID, raw); !ok {
					return fmt.Errorf("the column %s is of a type that is not read in bulk (%d)", fields[i].Name, fields[i].DataTypeOID)
				}
			}
			if err := f(row); err != nil {
				return err
			}
		}
		return rows.Err()
	})
}

// binaryValue reads a value in PostgreSQL's binary format; raw is nil for NULL.
func binaryValue(oid uint32, raw []byte) (Value, bool) {
	if raw == nil {
		return Value{}, true
	}
	switch {
	case oid == pgtype.Int8OID && len(raw) == 8:
		return Value{Kind: IntColumn, Int: int64(binary.BigEndian.Uint64(raw))}, true
	case oid == pgtype.Int4OID && len(raw) == 4:
		return Value{Kind: IntColumn, Int: int64(int32(binary.BigEndian.Uint32(raw)))}, true
	case oid == pgtype.TextOID:
		return Value{Kind: TextColumn, Bytes: raw}, true
	case oid == pgtype.ByteaOID:
		return Value{Kind: BlobColumn, Bytes: raw}, true
	}
	return Value{}, false
}
