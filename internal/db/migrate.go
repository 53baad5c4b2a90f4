package db

import (
	"bytes"
	"context"
	"database/sql"
	"embed"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"strconv"
	"strings"
	"text/template"

	"github.com/pressly/goose/v3"
	"github.com/pressly/goose/v3/database"

	"strongroom/internal/clock"
	"strongroom/internal/id"
)

//go:embed migrations/*.sql
var migrationFiles embed.FS

// stamp is what 0001 writes into a new database, in its own transaction.
type stamp struct {
	words
	Installation string
	Environment  string
	Now          int64
}

// templates are the embedded migrations in the words of one engine.
type templates struct {
	fs.FS
	stamp stamp
}

// Open renders a migration.
func (t templates) Open(name string) (fs.File, error) {
	f, err := t.FS.Open(name)
	if err != nil || !strings.HasSuffix(name, ".sql") {
		return f, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	tmpl, err := template.New(name).Option("missingkey=error").ParseFS(t.FS, name)
	if err != nil {
		return nil, err
	}
	r := &rendered{info: info}
	if err := tmpl.Execute(&r.Buffer, t.stamp); err != nil {
		return nil, err
	}
	return r, nil
}

// rendered is an open file with a rendered migration.
type rendered struct {
	bytes.Buffer
	info fs.FileInfo
}

// Stat is part of fs.File.
func (r *rendered) Stat() (fs.FileInfo, error) { return r.info, nil }

// Close is part of fs.File.
func (r *rendered) Close() error { return nil }

// known returns the highest version among the migrations of this program, and how many there are.
func known() (newest, count int64, err error) {
	names, err := fs.Glob(migrationFiles, "migrations/*.sql")
	if err != nil {
		return 0, 0, err
	}
	for _, name := range names {
		number, _, _ := strings.Cut(strings.TrimPrefix(name, "migrations/"), "_")
		v, err := strconv.ParseInt(number, 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("migration %s has no number: %w", name, err)
		}
		newest = max(newest, v)
	}
	return newest, int64(len(names)), nil
}

// migrate brings the schema up to date, each migration in a transaction of its own.
func migrate(ctx context.Context, pool *sql.DB, w words, o Options) error {
	return migrateTo(ctx, pool, w, o, o.Schema)
}

// migrateTo stops at a version; 0 means the newest.
func migrateTo(ctx context.Context, pool *sql.DB, w words, o Options, version int64) error {
	embedded, err := fs.Sub(migrationFiles, "migrations")
	if err != nil {
		return err
	}
	files := templates{embedded, stamp{
		words: w, Installation: id.New("ins"), Environment: o.Environment, Now: clock.Micros(o.Clock.Now()),
	}}
	p, err := goose.NewProvider(goose.DialectCustom, pool, files,
		goose.WithStore(versions{w.tableExists}), goose.WithDisableGlobalRegistry(true), goose.WithLogger(goose.NopLogger()))
	if err != nil {
		return err
	}
	var done []*goose.MigrationResult
	if version > 0 {
		done, err = p.UpTo(ctx, version)
	} else {
		done, err = p.Up(ctx)
	}
	if err != nil {
		return fmt.Errorf("the database's schema could not be brought up to date: %w", err)
	}
	for _, m := range done {
		o.Log.LogAttrs(ctx, slog.LevelInfo, "schema migrated",
			slog.Int64("version", m.Source.Version), slog.Duration("took", m.Duration))
	}
	return nil
}

// inspection is what a database says of itself before anything is changed.
type inspection struct {
	version      int64
	applied      int64 // migrations
	installation string
	environment  string
}

// asker is what inspect needs of a *sql.DB, *sql.Conn or *sql.Tx.
type asker interface {
	QueryRowContext(ctx context.Context, query string, args ...any) *sql.Row
}

// inspect reads the version and the stamp. found is false when there is no schema at all.
func inspect(ctx context.Context, a asker, tableExists string) (in inspection, found bool, err error) {
	for _, table := range []string{versionTable, "installation"} {
		var n int64
		if err := a.QueryRowContext(ctx, tableExists, table).Scan(&n); err != nil {
			return in, false, err
		}
		if n == 0 {
			return in, false, nil
		}
	}
	err = a.QueryRowContext(ctx, `SELECT MAX(version), COUNT(CASE WHEN version > 0 THEN 1 END) FROM `+versionTable).Scan(&in.version, &in.applied)
	if err != nil {
		return in, false, err
	}
	err = a.QueryRowContext(ctx, `SELECT id, environment FROM installation WHERE one = $1`, 1).
		Scan(&in.installation, &in.environment)
	if err != nil {
		return in, false, err
	}
	return in, true, nil
}

// fits refuses a database of a newer program or of another environment.
func (in inspection) fits(environment string) error {
	if in.environment != environment {
		return fmt.Errorf("%w (the database is of %q, the configuration says %q)", ErrEnvironment, in.environment, environment)
	}
	newest, _, err := known()
	if err != nil {
		return err
	}
	if in.version > newest {
		return fmt.Errorf("%w (its schema is %d, this program knows up to %d)", ErrNewerSchema, in.version, newest)
	}
	return nil
}

// current reports whether there is nothing to migrate.
func (in inspection) current() bool {
	newest, count, err := known()
	return err == nil && in.version == newest && in.applied == count
}

const versionTable = "schema_version"

// versions keeps which migrations were applied; it speaks to both engines alike.
type versions struct{ tableExists string }

var _ database.StoreExtender = versions{}

func (versions) Tablename() string { return versionTable }

func (versions) CreateVersionTable(ctx context.Context, db database.DBTxConn) error {
	_, err := db.ExecContext(ctx, `CREATE TABLE `+versionTable+` (version BIGINT NOT NULL PRIMARY KEY)`)
	return err
}

func (versions) Insert(ctx context.Context, db database.DBTxConn, r database.InsertRequest) error {
	_, err := db.ExecContext(ctx, `INSERT INTO `+versionTable+` (version) VALUES ($1)`, r.Version)
	return err
}

func (versions) Delete(context.Context, database.DBTxConn, int64) error {
	return errors.New("migrations go forward only")
}

func (versions) GetMigration(ctx context.Context, db database.DBTxConn, version int64) (*database.GetMigrationResult, error) {
	var v int64
	err := db.QueryRowContext(ctx, `SELECT version FROM `+versionTable+` WHERE version = $1`, version).Scan(&v)
	if errors.Is(err, sql.ErrNoRows) {
		return nil, database.ErrVersionNotFound
	}
	if err != nil {
		return nil, err
	}
	return &database.GetMigrationResult{IsApplied: true}, nil
}

func (versions) GetLatestVersion(ctx context.Context, db database.DBTxConn) (int64, error) {
	var v sql.NullInt64
	if err := db.QueryRowContext(ctx, `SELECT MAX(version) FROM `+versionTable).Scan(&v); err != nil {
		return 0, err
	}
	if !v.Valid {
		return 0, database.ErrVersionNotFound
	}
	return v.Int64, nil
}

func (versions) ListMigrations(ctx context.Context, db database.DBTxConn) ([]*database.ListMigrationsResult, error) {
	rows, err := db.QueryContext(ctx, `SELECT version FROM `+versionTable+` ORDER BY version DESC`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	var out []*database.ListMigrationsResult
	for rows.Next() {
		r := &database.ListMigrationsResult{IsApplied: true}
		if err := rows.Scan(&r.Version); err != nil {
			return nil, err
		}
		out = append(out, r)
	}
	return out, rows.Err()
}

func (v versions) TableExists(ctx context.Context, db database.DBTxConn) (bool, error) {
	var n int64
	err := db.QueryRowContext(ctx, v.tableExists, versionTable).Scan(&n)
	return n > 0, err
}
