package backup

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"

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
func appendRow(dst []byte, row []db.Value) []byte {
	for _, v := range row {
		switch v.Kind {
		case db.IntColumn:
			dst = binary.AppendVarint(append(dst, intValue), v.Int)
		case db.TextColumn:
			dst = append(binary.AppendUvarint(append(dst, textValue), uint64(len(v.Bytes))), v.Bytes...)
		case db.BlobColumn:
			dst = append(binary.AppendUvarint(append(dst, blobValue), uint64(len(v.Bytes))), v.Bytes...)
		default:
			dst = append(dst, nullValue)
		}
	}
	return dst
}

// readRow fills values, which have as many places as the table has columns, from the whole of row. What
// it fills in refers to row.
func readRow(row []byte, values []db.Value, columns []db.Column) error {
	for i := range values {
		if len(row) == 0 {
			return errRow
		}
		kind := row[0]
		row = row[1:]
		switch kind {
		case nullValue:
			values[i] = db.Value{}
			continue
		case intValue:
			v, n := binary.Varint(row)
			if n <= 0 || columns[i].Type != db.IntColumn {
				return errRow
			}
			values[i], row = db.Value{Kind: db.IntColumn, Int: v}, row[n:]
			continue
		}
		length, n := binary.Uvarint(row)
		if n <= 0 || length > uint64(len(row)-n) {
			return errRow
		}
		v := row[n : n+int(length)]
		row = row[n+int(length):]
		switch {
		case kind == textValue && columns[i].Type == db.TextColumn, kind == blobValue && columns[i].Type == db.BlobColumn:
			values[i] = db.Value{Kind: columns[i].Type, Bytes: v}
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
func appendKey(dst []byte, t *db.Table, row []db.Value) []byte {
	for _, column := range t.Key {
		dst = appendRow(dst, row[column:column+1])
	}
	return dst
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
func compareKeys(a, b []db.Value) int {
	for i := range a {
		order := cmp.Compare(a[i].Int, b[i].Int)
		if order == 0 {
			order = bytes.Compare(a[i].Bytes, b[i].Bytes)
		}
		if order != 0 {
			return order
		}
	}
	return 0
}
