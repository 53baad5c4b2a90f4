package backup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"

	"strongroom/internal/db"
)

// ErrOccupied means that a database to restore into holds something already.
var ErrOccupied = errors.New("the database to restore into is not empty: name an empty one")

// source is one part of a snapshot that can be read.
type source struct {
	key          *vaultKey
	repositories []*Repository
	manifest     *Manifest
}

// open returns the plaintext of an object.
func (s *source) open(ctx context.Context, name string) ([]byte, error) {
	return openObject(ctx, s.key, s.repositories, name)
}

// Progress is told how far a restore is: rows that are done, and rows in all.
type Progress func(done, total int64)

// restore makes the database that o describes out of the sources, one for each part, and leaves it closed.
// The tables and their rows are held against the manifests before anything else is done with them.
func restore(ctx context.Context, o db.Options, sources []*source, progress Progress) (err error) {
	var total, done int64
	for _, s := range sources {
		total += s.manifest.Rows
	}
	o.Create, o.Schema = true, sources[0].manifest.Schema
	d, err := db.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	if err := untouched(ctx, d); err != nil {
		return err
	}
	for _, s := range sources {
		for _, t := range s.manifest.Tables {
			if err := d.Clear(ctx, t.Table); err != nil {
				return fmt.Errorf("table %s: %w", t.Name, err)
			}
			for _, segment := range t.Segments {
				n, err := s.load(ctx, d, &t.Table, segment)
				if err != nil {
					return fmt.Errorf("table %s: %w", t.Name, err)
				}
				done += n
				if progress != nil {
					progress(done, total)
				}
			}
		}
	}
	return compare(ctx, d, sources)
}

// untouched refuses a database in which anything ever happened.
func untouched(ctx context.Context, d *db.DB) error {
	return d.View(ctx, func(tx *db.Tx) error {
		var n int64
		if err := tx.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM kek WHERE version >= $1) + (SELECT COUNT(*) FROM log_checkpoint)`, 0).Scan(&n); err != nil {
			return err
		}
		if n > 0 {
			return ErrOccupied
		}
		return nil
	})
}

// load puts the rows of a segment into the database.
func (s *source) load(ctx context.Context, d *db.DB, t *db.Table, segment Segment) (int64, error) {
	var rows [][]byte
	err := restoreSegment(ctx, s.key, t, segment, s.open, func(row []byte) error {
		rows = append(rows, row)
		return nil
	})
	if err != nil {
		return 0, err
	}
	return d.Load(ctx, *t, func(values []any) (bool, error) {
		if len(rows) == 0 {
			return false, nil
		}
		row := rows[0]
		rows = rows[1:]
		return true, readRow(row, values, t.Columns)
	})
}

// ErrDiffers means that a restored table is not what the manifest says.
var ErrDiffers = errors.New("backup: the restored data differ from what was copied")

// compare holds every table of d against the manifests.
func compare(ctx context.Context, d *db.DB, sources []*source) error {
	return d.Snapshot(ctx, func(tx *db.Tx) error {
		for _, s := range sources {
			for _, t := range s.manifest.Tables {
				rows, hash, err := digest(ctx, tx, t.Table)
				if err != nil {
					return fmt.Errorf("table %s: %w", t.Name, err)
				}
				if rows != t.Rows || hash != t.Hash {
					return fmt.Errorf("%w: table %s has %d rows with hash %s, and %d with %s were copied", ErrDiffers, t.Name, rows, hash, t.Rows, t.Hash)
				}
			}
		}
		return nil
	})
}

// digest returns the number of rows and the hash of a table, as a manifest has them.
func digest(ctx context.Context, tx *db.Tx, t db.Table) (n int64, sum string, err error) {
	values, targets := make([]any, len(t.Columns)), make([]any, len(t.Columns))
	for i := range values {
		targets[i] = &values[i]
	}
	rows, err := tx.Query(ctx, selectRows(t))
	if err != nil {
		return 0, "", err
	}
	defer rows.Close()
	hash := sha256.New()
	var row []byte
	var length [binary.MaxVarintLen64]byte
	for rows.Next() {
		if err := rows.Scan(targets...); err != nil {
			return 0, "", err
		}
		if row, err = appendRow(row[:0], values); err != nil {
			return 0, "", err
		}
		hash.Write(length[:binary.PutUvarint(length[:], uint64(len(row)))])
		hash.Write(row)
		n++
	}
	return n, hex.EncodeToString(hash.Sum(nil)), rows.Err()
}

// selectRows is the query for every row of a table in the order of its keys.
func selectRows(t db.Table) string {
	names, order := make([]string, len(t.Columns)), make([]string, len(t.Key))
	for i, column := range t.Columns {
		names[i] = `"` + column.Name + `"`
	}
	for i, column := range t.Key {
		order[i] = names[column]
	}
	return `SELECT ` + strings.Join(names, ", ") + ` FROM "` + t.Name + `" ORDER BY ` + strings.Join(order, ", ")
}

// sources returns both parts of a snapshot: the data as they were, and the newest keys. Whoever was erased
// since has no key there.
func (b *Backup) sources(ctx context.Context, id string) ([]*source, error) {
	var all []*source
	for _, part := range []Part{Data, Keys} {
		key, reached, _, err := b.key(ctx, part, false)
		if err != nil {
			return nil, err
		}
		s := &source{key: key, repositories: reached}
		if part == Data {
			s.manifest, err = readManifest(ctx, key, reached, id, b.o.Keys.EvidenceVerifiers())
		} else {
			s.manifest, err = b.newest(ctx, key, reached)
		}
		if err != nil {
			return nil, err
		}
		if s.manifest == nil {
			return nil, errNothing
		}
		all = append(all, s)
	}
	return all, nil
}
