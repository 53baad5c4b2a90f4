// Package db keeps everything that Strongroom remembers, in an encrypted SQLite file inside the
// process or in a PostgreSQL server, behind one way of working: Update runs a function in one
// durable transaction and returns only after it was committed; View shows one unchanging snapshot.
//
// The promise: what Update acknowledged survives kill -9 and a power cut; what it did not
// acknowledge because the function failed left nothing behind. An engine that cannot work for now
// (disk full, server gone) answers with a problem.Unavailable that carries Retry-After, and works
// again by itself as soon as it can. Opening a database with the wrong key, of another environment
// or of a newer version is refused with an error that names the remedy, and changes nothing on disk.
//
// One query text serves both engines. Placeholders are $1, $2 …; times are integer Unix
// microseconds; identifiers are made by the program.
package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"strongroom/internal/clock"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// Options say which database to open and what to expect of it.
type Options struct {
	// URL names a PostgreSQL database, "postgres://…"; empty means the embedded database.
	URL string
	// Dir is the data folder of the embedded database; it is made with mode 0700.
	Dir string
	// File is the name of the embedded database's file in Dir.
	File string
	// Key is the embedded database's key, 32 bytes.
	Key secret.Value
	// Environment is dev, uat or live. It is stamped into a new database and compared ever after.
	Environment string
	// Create makes the database when it is absent.
	Create bool
	// Schema is the migration to stop at, for a copy to be restored that was made then; 0 means the newest.
	Schema int64
	// Bulk is for a database that is being restored. Its commits keep their order, but survive a power cut
	// only once a later commit of one who opened it without Bulk does. What takes long is not cut off.
	Bulk bool

	Clock   clock.Clock           // nil means clock.System
	Log     *slog.Logger          // nil discards
	Metrics prometheus.Registerer // nil keeps none
}

// The reasons for which Open refuses a database. Each text names the remedy, and in each case
// nothing on disk has changed.
var (
	ErrWrongKey     = errors.New("the key does not open this database: give the root key and the database.json that belong to this data folder")
	ErrCorrupt      = errors.New("the database is damaged: keep a copy of the folder and restore the latest backup")
	ErrNewerSchema  = errors.New("the database was written by a newer version of Strongroom: run that version or a later one")
	ErrEnvironment  = errors.New("the database belongs to another environment: correct the setting \"environment\" or the database's place")
	ErrNoDatabase   = errors.New("there is no database: run \"strongroom init\" to make one, or correct its place")
	ErrInUse        = errors.New("the database is in use by another process: stop it first")
	ErrNotSupported = errors.New("this PostgreSQL is too old: version 15 or later is needed")
)

// ErrOutcomeUnknown says that COMMIT was sent and not answered: the transaction may have been kept, or
// not. It is the cause of a problem.
var ErrOutcomeUnknown = errors.New("the outcome of a commit is unknown")

// errClosed answers Update and View after Close.
var errClosed = errors.New("the database is closed")

// Engine is the kind of database.
type Engine int

// The engines.
const (
	SQLite Engine = iota
	PostgreSQL
)

// String returns "sqlite" or "postgresql".
func (e Engine) String() string {
	if e == PostgreSQL {
		return "postgresql"
	}
	return "sqlite"
}

// DB is an open database. It is safe for concurrent use.
type DB struct {
	engine       engine
	kind         Engine
	installation string
	environment  string
	metrics      *metrics
	hub          *hub
	// full is true after a write failed for want of space, until the next one succeeds.
	full    atomic.Bool
	begun   atomic.Int64 // updates that were asked for
	running atomic.Int64 // those that have no outcome yet
}

// engine is what SQLite and PostgreSQL do differently.
type engine interface {
	update(ctx context.Context, level sql.IsolationLevel, fn func(*Tx) error) ([]func(), error)
	view(ctx context.Context, fn func(*Tx) error) error
	// snapshot is view for one who reads a great deal, with Each.
	snapshot(ctx context.Context, fn func(*Tx) error) error
	// read is Read.
	read(ctx context.Context, fn func(*Tx) error) error
	// space reports whether there is room to write, as far as that can be known without writing.
	space() error
	// scrub is Scrub.
	scrub(ctx context.Context) (bool, error)
	close() error
}

// Open opens the database, makes it when Options.Create allows and there is none, and brings its
// schema up to date. See the Err variables for the reasons to refuse; a PostgreSQL that cannot be
// reached is a problem.Unavailable.
func Open(ctx context.Context, o Options) (*DB, error) {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	switch o.Environment {
	case "dev", "uat", "live":
	default:
		return nil, fmt.Errorf("environment %q is none of dev, uat and live", o.Environment)
	}
	d := &DB{environment: o.Environment, metrics: newMetrics(o.Metrics), hub: &hub{}}
	var err error
	if o.URL != "" {
		d.kind = PostgreSQL
		err = openPostgres(ctx, d, o)
	} else {
		err = openSQLite(ctx, d, o)
	}
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Update runs fn in one durable transaction and returns after it was committed. fn may run more
// than once, so it must start from nothing each time; it must do nothing but use tx, and must call
// neither Update nor View. When fn fails, the transaction is rolled back and its error returned.
//
// Once fn has begun, its outcome is awaited even when ctx ends. The isolation is serializable.
func (d *DB) Update(ctx context.Context, fn func(tx *Tx) error) error {
	return d.update(ctx, sql.LevelSerializable, fn)
}

// UpdateReadCommitted is Update with the weaker isolation on PostgreSQL, for long deeds that
// append and compare-and-swap and that would make all others repeat their work. fn guards itself:
// each statement sees what was committed before it began.
func (d *DB) UpdateReadCommitted(ctx context.Context, fn func(tx *Tx) error) error {
	return d.update(ctx, sql.LevelReadCommitted, fn)
}

func (d *DB) update(ctx context.Context, level sql.IsolationLevel, fn func(*Tx) error) error {
	began := time.Now()
	d.begun.Add(1)
	d.running.Add(1)
	defer d.running.Add(-1)
	after, err := d.engine.update(ctx, level, fn)
	d.metrics.update.Observe(time.Since(began).Seconds())
	if err != nil {
		if noSpace(err) {
			d.full.Store(true)
		}
		if problem.Is(err, "database-unavailable") {
			d.hub.doubt() // it may have been committed all the same
		}
		return err
	}
	if d.full.Load() {
		d.full.Store(false)
	}
	for _, f := range after {
		f()
	}
	return nil
}

// View runs fn over one snapshot that no write changes. Writing in it fails.
func (d *DB) View(ctx context.Context, fn func(tx *Tx) error) error {
	return d.engine.view(ctx, fn)
}

// Read is View for a single query. It saves what begins and ends a transaction, with PostgreSQL two round trips, so two
// queries in one Read may see two states of the database. fn may run more than once.
func (d *DB) Read(ctx context.Context, fn func(tx *Tx) error) error {
	return d.engine.read(ctx, fn)
}

// Updates returns how many updates this process has asked for since it opened the database, and how many of
// them wait for their outcome: for work that can wait and gives way to them.
func (d *DB) Updates() (begun, running int64) { return d.begun.Load(), d.running.Load() }

// Installation returns the identifier that the database was given when it was made, "ins_…".
func (d *DB) Installation() string { return d.installation }

// Environment returns the environment that is stamped into the database.
func (d *DB) Environment() string { return d.environment }

// Engine returns the kind of database.
func (d *DB) Engine() Engine { return d.kind }

// Ping reports whether the database can be read and, when the last write found no space, whether
// there is space again: it then tries a small write of its own.
func (d *DB) Ping(ctx context.Context) error {
	if d.full.Load() {
		if err := d.engine.space(); err != nil {
			return err
		}
		return d.Update(ctx, func(tx *Tx) error {
			_, err := tx.Exec(ctx, `UPDATE installation SET probed_at = probed_at + 1 WHERE one = $1`, 1)
			return err
		})
	}
	return d.View(ctx, func(tx *Tx) error {
		var id string
		return tx.QueryRow(ctx, `SELECT id FROM installation WHERE one = $1`, 1).Scan(&id)
	})
}

// Close waits for the writes that were begun or queued, and closes the database.
func (d *DB) Close() error { return d.engine.close() }

// Tx is one transaction. It belongs to the function that it was given to and to one goroutine, and
// is over when that function returns. The contexts given to its methods do not interrupt a write.
//
// Read or close the rows of one query before the next statement: PostgreSQL insists on it.
type Tx struct {
	run   runner
	ctx   context.Context // of the transaction, not of the caller
	over  atomic.Bool
	rows  []*sql.Rows
	row   []*sql.Row
	after []func()
	hub   *hub
	err   error // the first failure of the engine, or reason to run again, which fn may hide
}

// runner is what runs statements: a connection of SQLite or a transaction of PostgreSQL.
type runner interface {
	exec(ctx context.Context, query string, args []any) (int64, error)
	query(ctx context.Context, query string, args []any) (*sql.Rows, error)
	queryRow(ctx context.Context, query string, args []any) *sql.Row
	// each is Each.
	each(ctx context.Context, query string, args []any, f func([]Value) error) error
	// sticky reports whether err decides the whole transaction's fate, whatever fn makes of it.
	sticky(err error) bool
}

var errOver = errors.New("the transaction is over")

// Exec runs a statement and returns how many rows it changed. Keep the query text constant: each
// connection keeps it prepared.
func (tx *Tx) Exec(_ context.Context, query string, args ...any) (int64, error) {
	if tx.over.Load() {
		return 0, errOver
	}
	args, err := checked(args)
	if err != nil {
		return 0, err
	}
	n, err := tx.run.exec(tx.ctx, query, args)
	if err != nil {
		return 0, tx.note(err)
	}
	return n, nil
}

// Query runs a query. Close the rows, and read rows.Err.
func (tx *Tx) Query(_ context.Context, query string, args ...any) (*sql.Rows, error) {
	if tx.over.Load() {
		return nil, errOver
	}
	args, err := checked(args)
	if err != nil {
		return nil, err
	}
	rows, err := tx.run.query(tx.ctx, query, args)
	if err != nil {
		return nil, tx.note(err)
	}
	tx.rows = append(tx.rows, rows)
	return rows, nil
}

// QueryRow runs a query that gives one row; its failures come out of Scan.
func (tx *Tx) QueryRow(_ context.Context, query string, args ...any) *sql.Row {
	bad := error(nil)
	if tx.over.Load() {
		bad = errOver
	} else {
		args, bad = checked(args)
	}
	if bad != nil {
		return tx.run.queryRow(tx.ctx, "SELECT $1", []any{refused{bad}})
	}
	row := tx.run.queryRow(tx.ctx, query, args)
	tx.row = append(tx.row, row)
	if err := row.Err(); err != nil {
		_ = tx.note(err)
	}
	return row
}

// AfterCommit has f run once after the transaction was committed durably, in the goroutine that
// called Update, before Update returns. It does not run when the transaction fails.
func (tx *Tx) AfterCommit(f func()) { tx.after = append(tx.after, f) }

func (tx *Tx) note(err error) error {
	if tx.err == nil && tx.run.sticky(err) {
		tx.err = err
	}
	return err
}

// finish closes what fn left open and ends the use of tx.
func (tx *Tx) finish() {
	tx.over.Store(true)
	for _, r := range tx.rows {
		_ = r.Close()
	}
	for _, r := range tx.row {
		_ = r.Scan() // closes its rows; the mismatch of columns is of no interest
	}
}

// IsUnique reports whether err is the violation of a unique index or primary key. On PostgreSQL it
// has also ended the transaction: prefer INSERT … ON CONFLICT DO NOTHING and look at the number of
// rows.
func IsUnique(err error) bool { return err != nil && (sqliteUnique(err) || postgresUnique(err)) }

// unavailable is the one answer for an engine that cannot work for now.
func unavailable(cause error) error {
	return problem.New(problem.Unavailable, "database-unavailable",
		"The database cannot answer for the moment. Please try again.").RetryAfter(time.Second).Because(cause)
}

// words are the template fields of the migrations, and the one query that cannot be the same.
type words struct {
	Int, Text, Blob, Table, Clustered string
	tableExists                       string // counts the tables with the name $1
}
