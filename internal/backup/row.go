package backup

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"

	"strongroom/internal/db"
)

// A row is written as its length in bytes and its values in the order of the table's columns: for each a
// byte that says what follows, then nothing for NULL, a signed varint for an integer, and length and
// bytes for text and blob. Both engines give the same bytes for the same row.
const (
	nullValue = 0
	intValue  = 1
	textValue = 2
	blobValue = 3
)

// maxRow bounds the length of a row: the longest is a chunk of a blob.
const maxRow = 16 << 20

// errRow means bytes that no row is written as.
var errRow = errors.New("backup: a row is malformed")

// appendRow appends a row of the table.
func appendRow(dst []byte, values []any) ([]byte, error) {
	for _, v := range values {
		switch v := v.(type) {
		case nil:
			dst = append(dst, nullValue)
		case int64:
			dst = binary.AppendVarint(append(dst, intValue), v)
		case string:
			dst = append(binary.AppendUvarint(append(dst, textValue), uint64(len(v))), v...)
		case []byte:
			dst = append(binary.AppendUvarint(append(dst, blobValue), uint64(len(v))), v...)
		default:
			return nil, fmt.Errorf("backup: a value of type %T", v)
		}
	}
	return dst, nil
}

// readRow fills values, which have as many places as the table has columns, from the whole of row. What
// it fills in refers to row.
func readRow(row []byte, values []any, columns []db.Column) error {
	for i := range values {
		if len(row) == 0 {
			return errRow
		}
		kind := row[0]
		row = row[1:]
		switch kind {
		case nullValue:
			values[i] = nil
			continue
		case intValue:
			v, n := binary.Varint(row)
			if n <= 0 || columns[i].Type != db.IntColumn {
				return errRow
			}
			values[i], row = v, row[n:]
			continue
		}
		length, n := binary.Uvarint(row)
		if n <= 0 || length > uint64(len(row)-n) {
			return errRow
		}
		v := row[n : n+int(length)]
		row = row[n+int(length):]
		switch {
		case kind == textValue && columns[i].Type == db.TextColumn:
			values[i] = string(v)
		case kind == blobValue && columns[i].Type == db.BlobColumn:
			values[i] = v
		default:
			return errRow
		}
	}
	if len(row) != 0 {
		return errRow
	}
	return nil
}

// nextRow cuts the first row off b, which begins with its length.
func nextRow(b []byte) (row, rest []byte, err error) {
	length, n := binary.Uvarint(b)
	if n <= 0 || length > maxRow || length > uint64(len(b)-n) {
		return nil, nil, errRow
	}
	return b[n : n+int(length)], b[n+int(length):], nil
}

// appendKey appends the primary key of a row as a row of its own.
func appendKey(dst []byte, t *db.Table, values []any) ([]byte, error) {
	key := make([]any, len(t.Key))
	for i, column := range t.Key {
		key[i] = values[column]
	}
	return appendRow(dst, key)
}

// keyColumns returns the columns of the primary key.
func keyColumns(t *db.Table) []db.Column {
	columns := make([]db.Column, len(t.Key))
	for i, column := range t.Key {
		columns[i] = t.Columns[column]
	}
	return columns
}

// compareKeys orders keys as both engines do: integers as numbers, texts and blobs by their bytes.
func compareKeys(a, b []any) int {
	for i := range a {
		var order int
		switch v := a[i].(type) {
		case int64:
			w, _ := b[i].(int64)
			order = cmp.Compare(v, w)
		case string:
			w, _ := b[i].(string)
			order = cmp.Compare(v, w)
		case []byte:
			w, _ := b[i].([]byte)
			order = bytes.Compare(v, w)
		}
		if order != 0 {
			return order
		}
	}
	return 0
}
