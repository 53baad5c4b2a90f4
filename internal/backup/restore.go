package backup

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
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

// restoringTable notes, in the database that is restored, what was done so far.
const restoringTable = "restoring"

// restore is restoreInto for a database that is empty, and done when it returns.
func restore(ctx context.Context, o db.Options, sources []*source, progress Progress) error {
	return restoreInto(ctx, o, sources, Into{Progress: progress})
}

// Into says how a database is restored.
type Into struct {
	// Replace allows the database to hold something, which is lost.
	Replace bool
	// Only restores some tables and leaves the others empty; nil restores all.
	Only     func(table string) bool
	Progress Progress
	// Finish makes the restored database fit to serve, before it counts as one. It opens the database
	// itself. nil does nothing.
	Finish func(ctx context.Context) error
}

// restoreInto makes the database that o describes out of the sources, one for each part, and leaves it closed.
// The tables and their rows are held against the manifests before anything else is done with them. What
// was cut off goes on with the table that it was at, when it is of the same snapshot, and begins anew else.
func restoreInto(ctx context.Context, o db.Options, sources []*source, into Into) (err error) {
	if into.Only != nil {
		for i, s := range sources {
			m := *s.manifest
			m.Tables = slices.DeleteFunc(slices.Clone(m.Tables), func(t Copied) bool { return !into.Only(t.Name) })
			m.Rows = 0
			for _, t := range m.Tables {
				m.Rows += t.Rows
			}
			sources[i] = &source{s.key, s.repositories, &m}
		}
	}
	o.Create, o.Schema = false, 0
	filled, err := isFilled(ctx, o, sources)
	if err != nil {
		return err
	}
	if !filled {
		o.Create, o.Schema = true, sources[0].manifest.Schema
		if err := fill(ctx, o, sources, into); err != nil {
			return err
		}
	}
	if into.Finish != nil {
		if err := into.Finish(ctx); err != nil {
			return err
		}
	}
	o.Create, o.Schema = false, 0
	d, err := db.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	return d.Update(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `DELETE FROM restoring WHERE name >= $1`, "")
		return err
	})
}

// whatOf says what is restored.
func whatOf(sources []*source) (what string) {
	for _, s := range sources {
		what += string(s.manifest.Part) + " " + s.manifest.ID + " "
	}
	return what
}

// filledMark says, behind whatOf, that all rows are there and were compared. Finish has its own events
// then, and can be done again.
const filledMark = "filled"

// isFilled reports whether a restore of the same was cut off after its rows were compared.
func isFilled(ctx context.Context, o db.Options, sources []*source) (filled bool, err error) {
	d, err := db.Open(ctx, o)
	if err != nil {
		return false, nil // there is none, or fill says what is wrong with it
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	var n int64
	err = d.View(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT COUNT(*) FROM restoring WHERE name = $1 AND detail = $2`, "", whatOf(sources)+filledMark).Scan(&n)
	})
	return n > 0, err
}

func fill(ctx context.Context, o db.Options, sources []*source, into Into) (err error) {
	var total, done int64
	what := whatOf(sources)
	for _, s := range sources {
		total += s.manifest.Rows
	}
	d, err := db.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	finished, err := beginRestore(ctx, d, what, into.Replace)
	if err != nil {
		return err
	}
	for _, s := range sources {
		for _, t := range s.manifest.Tables {
			if finished[t.Name] {
				done += t.Rows
				continue
			}
			if t.Name == "installation" {
				if err := s.replace(ctx, d, t); err != nil {
					return fmt.Errorf("table %s: %w", t.Name, err)
				}
				continue
			}
			if err := d.Clear(ctx, t.Table); err != nil {
				return fmt.Errorf("table %s: %w", t.Name, err)
			}
			for _, segment := range t.Segments {
				n, err := s.load(ctx, d, &t.Table, segment)
				if err != nil {
					return fmt.Errorf("table %s: %w", t.Name, err)
				}
				done += n
				if into.Progress != nil {
					into.Progress(done, total)
				}
			}
			if err := markDone(ctx, d, t.Name); err != nil {
				return err
			}
		}
	}
	if err := compare(ctx, d, sources); err != nil {
		return err
	}
	return d.Update(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `UPDATE restoring SET detail = $1 WHERE name = $2`, what+filledMark, "")
		return err
	})
}

// beginRestore refuses a database in which anything ever happened, unless a restore was cut off there or it may
// be replaced, and returns the tables that are done.
func beginRestore(ctx context.Context, d *db.DB, what string, replace bool) (finished map[string]bool, err error) {
	begun, goesOn := "", false
	finished = make(map[string]bool)
	var used int64
	err = d.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT name, detail FROM restoring WHERE name >= $1`, "")
		if err != nil {
			return err
		}
		defer rows.Close()
		for rows.Next() {
			var name, detail string
			if err := rows.Scan(&name, &detail); err != nil {
				return err
			}
			if name == "" {
				begun, goesOn = detail, true
			} else {
				finished[name] = true
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM kek WHERE version >= $1) + (SELECT COUNT(*) FROM log_checkpoint)`, 0).Scan(&used)
	})
	switch {
	case err != nil:
		return nil, err
	case goesOn && begun == what:
		return finished, nil
	case used > 0 && !goesOn && !replace:
		return nil, ErrOccupied
	}
	return nil, d.Update(ctx, func(tx *db.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM restoring WHERE name >= $1`, ""); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO restoring (name, detail) VALUES ($1, $2)`, "", what)
		return err
	})
}

func markDone(ctx context.Context, d *db.DB, table string) error {
	return d.Update(ctx, func(tx *db.Tx) error {
		_, err := tx.Exec(ctx, `INSERT INTO restoring (name, detail) VALUES ($1, $2)`, table, "done")
		return err
	})
}

// Unfinished reports whether a restore into d was cut off: such a database must not serve.
func Unfinished(ctx context.Context, d *db.DB) (bool, error) {
	var n int64
	err := d.View(ctx, func(tx *db.Tx) error {
		return tx.QueryRow(ctx, `SELECT COUNT(*) FROM restoring WHERE name = $1`, "").Scan(&n)
	})
	return n > 0, err
}

// replace puts the rows of a small table into the database in one step: without its name an installation
// cannot be opened.
func (s *source) replace(ctx context.Context, d *db.DB, t Copied) error {
	names, marks := make([]string, len(t.Columns)), make([]string, len(t.Columns))
	for i, c := range t.Columns {
		names[i], marks[i] = `"`+c.Name+`"`, fmt.Sprintf("$%d", i+1)
	}
	var rows [][]any
	for _, segment := range t.Segments {
		err := restoreSegment(ctx, s.key, &t.Table, segment, s.open, func(row []byte) error {
			values := make([]any, len(t.Columns))
			rows = append(rows, values)
			return readRow(row, values, t.Columns)
		})
		if err != nil {
			return err
		}
	}
	return d.Update(ctx, func(tx *db.Tx) error {
		if _, err := tx.Exec(ctx, `DELETE FROM "`+t.Name+`"`); err != nil {
			return err
		}
		for _, values := range rows {
			query := `INSERT INTO "` + t.Name + `" (` + strings.Join(names, ", ") + `) VALUES (` + strings.Join(marks, ", ") + `)`
			if _, err := tx.Exec(ctx, query, values...); err != nil {
				return err
			}
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
		if part == Data && id == "" {
			id, err = b.newestID(ctx, reached)
		}
		if err != nil {
			return nil, err
		}
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
