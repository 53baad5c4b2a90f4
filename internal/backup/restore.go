package backup

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// ErrOccupied means that a database to restore into holds something already.
var ErrOccupied = errors.New("the database to restore into is not empty: name an empty one")

// source is one part of a snapshot that can be read.
type source struct {
	key          *vaultKey
	repositories []*Repository
	manifest     *Manifest
	passed       []string // snapshots that are newer and could not be taken
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
	// Only restores some tables and leaves the others as they are in a new database; nil restores all. It is for a
	// database that holds nothing, whatever Replace says.
	Only     func(table string) bool
	Progress Progress
	// Finish makes the restored database fit to serve, before it counts as one. It opens the database
	// itself. nil does nothing.
	Finish func(ctx context.Context) error

	// unindexed is from how many rows on a table is loaded without its indexes; 0 means 10,000.
	unindexed int64
}

// restoreInto makes the database that o describes out of the sources, one for each part, and leaves it closed.
// The tables and their rows are held against the manifests before anything else is done with them. What
// was cut off goes on with the table that it was at, when it is of the same snapshot, and begins anew else.
func restoreInto(ctx context.Context, o db.Options, sources []*source, into Into) (err error) {
	whole := slices.Clone(sources)
	if into.Only != nil {
		for i, s := range sources {
			m := *s.manifest
			m.Tables = slices.DeleteFunc(slices.Clone(m.Tables), func(t Copied) bool { return !into.Only(t.Name) })
			m.Rows = 0
			for _, t := range m.Tables {
				m.Rows += t.Rows
			}
			sources[i] = &source{key: s.key, repositories: s.repositories, manifest: &m}
		}
	}
	// The schema stays that of the copy until all rows are there: migrations change rows too.
	o.Create, o.Schema = false, sources[0].manifest.Schema
	filled, err := isFilled(ctx, o, sources)
	if err != nil {
		return err
	}
	if !filled {
		o.Create = true
		if err := fill(ctx, o, whole, sources, into); err != nil {
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

// whatOf says what is restored: the snapshots, and which of their tables.
func whatOf(sources []*source) (what string) {
	for _, s := range sources {
		what += string(s.manifest.Part) + " " + s.manifest.ID + " "
	}
	return what + digestOf(sources) + " "
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

func fill(ctx context.Context, o db.Options, whole, sources []*source, into Into) (err error) {
	var total, done int64
	what := whatOf(sources)
	for _, s := range sources {
		total += s.manifest.Rows
	}
	o.Bulk = true // the last commit of all, in restoreInto, has the disk keep the others too
	d, err := db.Open(ctx, o)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, d.Close()) }()
	so, err := beginRestore(ctx, d, what, whole, into)
	if err != nil {
		return err
	}
	if into.unindexed == 0 {
		into.unindexed = 10_000
	}
	for _, s := range sources {
		for _, t := range s.manifest.Tables {
			if so.finished[t.Name] {
				done += t.Rows
				continue
			}
			if t.Name == "installation" {
				if err := s.replace(ctx, d, t); err != nil {
					return fmt.Errorf("table %s: %w", t.Name, err)
				}
				continue
			}
			err := s.fillTable(ctx, d, t, t.Rows >= into.unindexed, so.indexes[t.Name], func(rows int64) {
				done += rows
				if into.Progress != nil {
					into.Progress(done, total)
				}
			})
			if err != nil {
				return fmt.Errorf("table %s: %w", t.Name, err)
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

// ErrShape means that the tables of a copy are not those of the database to restore into.
var ErrShape = errors.New("the database to restore into has other tables than the copy: name an empty one, and use the program that made the copy or a later one")

// fits sees that the tables of the copy are those of the database, each once and all of them: what a manifest says
// of tables becomes a part of statements, and what is replaced is emptied by them.
func fits(ctx context.Context, tx *db.Tx, sources []*source) error {
	tables, err := tx.Tables(ctx)
	if err != nil {
		return err
	}
	missing := make(map[string]db.Table)
	for _, t := range tables {
		if t.Name != restoringTable {
			missing[t.Name] = t
		}
	}
	for _, s := range sources {
		for _, t := range s.manifest.Tables {
			if is, ok := missing[t.Name]; !ok || !sameShape(is, t.Table) {
				return fmt.Errorf("%w (the table %q of schema %d)", ErrShape, t.Name, s.manifest.Schema)
			}
			delete(missing, t.Name)
		}
	}
	for name := range missing {
		return fmt.Errorf("%w (the copy, of schema %d, has no table %q)", ErrShape, sources[0].manifest.Schema, name)
	}
	return nil
}

// soFar is what a restore that was cut off has done.
type soFar struct {
	finished map[string]bool     // tables
	indexes  map[string][]string // table → the statements that make its indexes, which are dropped
}

// indexMark begins the name under which restoring keeps a statement; the table and a number follow.
const indexMark = "index "

// beginRestore refuses a database in which anything ever happened, unless a restore was cut off there or it may
// be replaced, and returns what is done.
func beginRestore(ctx context.Context, d *db.DB, what string, whole []*source, into Into) (so soFar, err error) {
	begun, goesOn := "", false
	so = soFar{make(map[string]bool), make(map[string][]string)}
	var used int64
	err = d.View(ctx, func(tx *db.Tx) error {
		rows, err := tx.Query(ctx, `SELECT name, detail FROM restoring WHERE name >= $1 ORDER BY name`, "")
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
			} else if index, ok := strings.CutPrefix(name, indexMark); ok {
				table, _, _ := strings.Cut(index, " ")
				so.indexes[table] = append(so.indexes[table], detail)
			} else {
				so.finished[name] = true
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		return tx.QueryRow(ctx, `SELECT (SELECT COUNT(*) FROM kek WHERE version >= $1) + (SELECT COUNT(*) FROM log_checkpoint)`, 0).Scan(&used)
	})
	switch {
	case err != nil:
		return so, err
	case goesOn && begun == what:
		return so, nil
	case used > 0 && !goesOn && !into.Replace:
		return so, ErrOccupied
	case (used > 0 || goesOn) && into.Only != nil:
		return so, ErrOccupied // what is there would stay in the tables that are not restored
	}
	return soFar{}, d.Update(ctx, func(tx *db.Tx) error {
		for table, statements := range so.indexes { // the other restore was cut off in this table
			if err := tx.Empty(ctx, db.Table{Name: table}); err != nil {
				return err
			}
			if err := runAll(ctx, tx, statements); err != nil {
				return err
			}
		}
		if err := fits(ctx, tx, whole); err != nil {
			return err
		}
		if _, err := tx.Exec(ctx, `DELETE FROM restoring WHERE name >= $1`, ""); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, `INSERT INTO restoring (name, detail) VALUES ($1, $2)`, "", what)
		return err
	})
}

func runAll(ctx context.Context, tx *db.Tx, statements []string) error {
	for _, s := range statements {
		if _, err := tx.Exec(ctx, s); err != nil {
			return err
		}
	}
	return nil
}

// fillTable puts the rows of a table into the database, and notes that it is done. A large one is unindexed
// meanwhile; again are the statements for the indexes of one in which a restore was cut off.
func (s *source) fillTable(ctx context.Context, d *db.DB, t Copied, unindexed bool, again []string, tell func(rows int64)) error {
	var err error
	if unindexed || len(again) > 0 {
		again, err = unindex(ctx, d, t.Table, again)
	} else {
		err = d.Clear(ctx, t.Table)
	}
	if err != nil {
		return err
	}
	if err := s.load(ctx, d, t, tell); err != nil {
		return err
	}
	return d.Update(ctx, func(tx *db.Tx) error {
		if err := runAll(ctx, tx, again); err != nil {
			return err
		}
		for i := range again {
			if _, err := tx.Exec(ctx, `DELETE FROM restoring WHERE name = $1`, indexNote(t.Table, i)); err != nil {
				return err
			}
		}
		_, err := tx.Exec(ctx, `INSERT INTO restoring (name, detail) VALUES ($1, $2)`, t.Name, "done")
		return err
	})
}

func indexNote(t db.Table, i int) string { return fmt.Sprintf("%s%s %03d", indexMark, t.Name, i) }

// unindex empties a table and drops its indexes, unless they are dropped already, and notes how they are made
// again in the same transaction.
func unindex(ctx context.Context, d *db.DB, t db.Table, dropped []string) (again []string, err error) {
	err = d.Update(ctx, func(tx *db.Tx) error {
		if err := tx.Empty(ctx, t); err != nil {
			return err
		}
		if again = dropped; len(again) > 0 {
			return nil
		}
		var err error
		if again, err = tx.DropIndexes(ctx, t); err != nil {
			return err
		}
		for i, statement := range again {
			if _, err := tx.Exec(ctx, `INSERT INTO restoring (name, detail) VALUES ($1, $2)`, indexNote(t, i), statement); err != nil {
				return err
			}
		}
		return nil
	})
	return again, err
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
	values := make([]db.Value, len(t.Columns))
	for _, segment := range t.Segments {
		err := restoreSegment(ctx, s.key, &t.Table, segment, s.open, func(row []byte) error {
			if err := readRow(row, values, t.Columns); err != nil {
				return err
			}
			args := make([]any, len(values))
			for i, v := range values {
				switch v.Kind {
				case db.IntColumn:
					args[i] = v.Int
				case db.TextColumn:
					args[i] = string(v.Bytes)
				case db.BlobColumn:
					args[i] = v.Bytes
				}
			}
			rows = append(rows, args)
			return nil
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

// batchBytes is about how much is loaded in one transaction. opened is how many segments are opened ahead.
const (
	batchBytes = 8 << 20
	opened     = 2
)

// load puts the rows of a table into the database. Segments are opened while those before are written: one
// after the other with SQLite, which has one writer, and over two connections with PostgreSQL, for which a
// row's place in the table does not matter.
func (s *source) load(ctx context.Context, d *db.DB, t Copied, tell func(rows int64)) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var work sync.WaitGroup
	run := func(f func() error) {
		work.Go(func() {
			if err := f(); err != nil {
				cancel(err)
			}
		})
	}
	ahead := make(chan chan [][]byte, opened)
	run(func() error {
		defer close(ahead)
		for _, segment := range t.Segments {
			out := make(chan [][]byte, 1)
			select {
			case ahead <- out:
			case <-ctx.Done():
				return nil
			}
			run(func() error {
				rows, err := s.rows(ctx, &t.Table, segment)
				if err == nil {
					out <- rows
				}
				return err
			})
		}
		return nil
	})
	// take returns the next segment that has rows, nil after the last.
	take := func() ([][]byte, error) {
		for {
			select {
			case out := <-ahead:
				if out == nil {
					return nil, context.Cause(ctx)
				}
				select {
				case rows := <-out:
					if len(rows) > 0 {
						return rows, nil
					}
				case <-ctx.Done():
				}
			case <-ctx.Done():
			}
			if ctx.Err() != nil {
				return nil, context.Cause(ctx)
			}
		}
	}
	writers := 1
	if d.Engine() == db.PostgreSQL {
		writers = 2
	}
	var telling sync.Mutex
	for range writers {
		run(func() error {
			for {
				n, err := loadBatch(ctx, d, &t.Table, take)
				if err != nil || n == 0 {
					return err
				}
				telling.Lock()
				tell(n)
				telling.Unlock()
			}
		})
	}
	work.Wait()
	return context.Cause(ctx)
}

// rows returns the rows of a segment.
func (s *source) rows(ctx context.Context, t *db.Table, segment Segment) (rows [][]byte, err error) {
	rows = make([][]byte, 0, segment.Rows)
	err = restoreSegment(ctx, s.key, t, segment, s.open, func(row []byte) error {
		rows = append(rows, row)
		return nil
	})
	return rows, err
}

// loadBatch writes the rows of some segments in one transaction, and returns how many; none are left after 0.
func loadBatch(ctx context.Context, d *db.DB, t *db.Table, take func() ([][]byte, error)) (int64, error) {
	rows, err := take()
	if err != nil || len(rows) == 0 {
		return 0, err
	}
	size := 0
	return d.Load(ctx, *t, func(values []db.Value) (bool, error) {
		if len(rows) == 0 && size < batchBytes {
			if rows, err = take(); err != nil {
				return false, err
			}
		}
		if len(rows) == 0 {
			return false, nil
		}
		row := rows[0]
		rows = rows[1:]
		size += len(row)
		return true, readRow(row, values, t.Columns)
	})
}

// ErrDiffers means that a restored table is not what the manifest says.
var ErrDiffers = errors.New("backup: the restored data differ from what was copied")

// compare holds every table of d against the manifests.
func compare(ctx context.Context, d *db.DB, sources []*source) error {
	return d.Snapshot(ctx, func(tx *db.Tx) error {
		if err := tx.InKeyOrder(ctx); err != nil {
			return err
		}
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
	hash := sha256.New()
	var row []byte
	var length [binary.MaxVarintLen64]byte
	err = tx.Each(ctx, selectRows(t), func(values []db.Value) error {
		row = appendRow(row[:0], values)
		hash.Write(length[:binary.PutUvarint(length[:], uint64(len(row)))])
		hash.Write(row)
		n++
		return nil
	})
	return n, hex.EncodeToString(hash.Sum(nil)), err
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

// sources returns both parts of a snapshot, the data first: the data as they were, and the newest keys. Whoever
// was erased since has no key there.
func (b *Backup) sources(ctx context.Context, id string) ([]*source, error) {
	var both []*source
	for _, part := range []Part{Data, Keys} {
		key, reached, _, err := b.key(ctx, part, false)
		if err != nil {
			return nil, err
		}
		both = append(both, &source{key: key, repositories: reached})
	}
	return choose(ctx, b, both[0], both[1], id, b.o.Keys.EvidenceVerifiers())
}

// choose finds the manifests: the newest of the keys, and of the data that of the snapshot with the id, "" for the
// newest that there is. Keys that are older than the data are refused: customers who came between would have none,
// and who was erased between would have theirs again.
func choose(ctx context.Context, b *Backup, data, keys *source, id string, verifiers note.Verifiers) (parts []*source, err error) {
	var failed error
	if keys.manifest, _, failed, err = b.newestUntil(ctx, keys.key, keys.repositories, "", verifiers); err != nil {
		return nil, err
	}
	if keys.manifest == nil {
		return nil, cmp.Or(failed, error(errNothing))
	}
	switch newest := keys.manifest.ID; {
	case id == "":
		if data.manifest, data.passed, failed, err = b.newestUntil(ctx, data.key, data.repositories, newest, verifiers); err != nil {
			return nil, err
		}
		if data.manifest == nil {
			return nil, cmp.Or(failed, error(errNothing))
		}
	default:
		if data.manifest, err = readManifest(ctx, data.key, data.repositories, id, verifiers); err != nil {
			return nil, err
		}
		if id > newest {
			return nil, problem.New(problem.Conflict, "backup-keys-older",
				"The newest copy of the keys that there is, %s, is older than the snapshot %s, and does not open all of it. Name a repository that has newer keys, or restore a snapshot from before.", newest, id)
		}
	}
	return []*source{data, keys}, nil
}

// current is sources for a restore: it sees that the copy of the keys knows everybody who was erased, and has the
// keys copied when it does not.
func (b *Backup) current(ctx context.Context, by actor.Actor, id string) ([]*source, error) {
	var failed error
	for tried := false; ; tried = true {
		parts, err := b.sources(ctx, id)
		if err != nil {
			return nil, err
		}
		var erased int64
		if err := b.o.DB.View(ctx, func(tx *db.Tx) (err error) {
			erased, err = countTombstones(ctx, tx)
			return err
		}); err != nil {
			return nil, err
		}
		missing := erased - tombstones(parts[1].manifest)
		if missing <= 0 {
			return parts, nil
		}
		if tried {
			return nil, problem.New(problem.Conflict, "backup-keys-older",
				"The newest copy of the keys that there is, %s, does not know of %d customers who were erased: a restore would bring them back. Run strongroom backup run, and see who put an older copy there.", parts[1].manifest.ID, missing).Because(failed)
		}
		failed = b.RefreshKeys(ctx, by) // one repository that has them is enough
	}
}
