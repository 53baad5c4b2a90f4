package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/ncruces/go-sqlite3"
	"golang.org/x/sys/unix"
	"lukechampine.com/adiantum"
)

const (
	pageSize = 4096
	readers  = 4

	// busyTimeout is what pragmas says.
	busyTimeout = 10 * time.Second
)

// embedded is the SQLite engine: one writer, four readers, each with a connection of its own.
type embedded struct {
	metrics *metrics
	hub     *hub
	pool    *sql.DB
	writer  *writer
	readers chan *reader
	lock    *os.File
}

// reader is a connection that only reads.
type reader struct {
	sqliteRunner
}

// sqliteRunner runs the statements of one connection.
type sqliteRunner struct {
	conn *conn
	sql  *sql.Conn // the same connection, for what gives *sql.Rows
}

func (r *sqliteRunner) exec(_ context.Context, query string, args []any) (int64, error) {
	return r.conn.exec(query, args)
}

func (r *sqliteRunner) query(ctx context.Context, query string, args []any) (*sql.Rows, error) {
	return r.sql.QueryContext(ctx, query, args...)
}

func (r *sqliteRunner) queryRow(ctx context.Context, query string, args []any) *sql.Row {
	return r.sql.QueryRowContext(ctx, query, args...)
}

// sticky is left to conn.broken, which also sees what goes wrong while rows are read.
func (r *sqliteRunner) sticky(error) bool { return false }

// openSQLite opens, or makes, the embedded database. Everything that can refuse it comes first and
// only reads; see look.
func openSQLite(ctx context.Context, d *DB, o Options) (err error) {
	if o.Key.Len() != 32 {
		return errors.New("the key of the embedded database must be 32 bytes")
	}
	if o.File == "" || o.File != filepath.Base(o.File) {
		return fmt.Errorf("the database's file name %q must be a plain name", o.File)
	}
	dir, err := filepath.Abs(o.Dir)
	if err != nil {
		return err
	}
	path := filepath.Join(dir, o.File)
	defer func() {
		if err != nil && !errors.Is(err, context.Canceled) {
			err = fmt.Errorf("database %s: %w", path, err)
		}
	}()
	exists, err := present(path)
	if err != nil {
		return err
	}
	if !exists {
		if !o.Create {
			return ErrNoDatabase
		}
		if err := makeDir(dir); err != nil {
			return err
		}
	}
	lock, err := lockFile(path + ".lock")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = lock.Close()
		}
	}()
	if exists, err = present(path); err != nil { // now that nobody else is making it
		return err
	}
	if !exists {
		if err := create(ctx, path, o); err != nil {
			return err
		}
	}
	found, err := look(ctx, path, o.Key.Reveal())
	if err != nil {
		return err
	}
	if err := found.fits(o.Environment); err != nil {
		return err
	}
	e := &embedded{metrics: d.metrics, hub: d.hub, lock: lock}
	if err := e.start(ctx, path, o, found.current()); err != nil {
		return err
	}
	d.engine, d.installation = e, found.installation
	return nil
}

// present reports whether the database's file is there. A log without its database is a database
// that lost its main file, not one that may be made anew.
func present(path string) (bool, error) {
	_, err := os.Lstat(path)
	if err == nil {
		return true, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if info, err := os.Lstat(path + "-wal"); err == nil && info.Size() > 0 {
		return false, fmt.Errorf("%w (its main file is missing beside the write-ahead log)", ErrCorrupt)
	}
	return false, nil
}

func makeDir(dir string) error {
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// lockFile keeps other processes out for as long as it is open; the kernel releases it with the
// process, however that ends.
func lockFile(name string) (*os.File, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, err
	}
	return f, nil
}

func syncDir(dir string) error {
	f, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// touch makes an empty file that only its owner may read; SQLite on its own makes it 0644.
func touch(name string) error {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), f.Close())
}

// create makes the database beside its place and moves it there when it is complete, so that a
// file at path is always a whole database with schema and stamp.
func create(ctx context.Context, path string, o Options) (err error) {
	draft := path + ".new"
	clean := func() error {
		var all error
		for _, end := range []string{"", "-wal", "-shm", "-journal"} {
			if err := os.Remove(draft + end); err != nil && !errors.Is(err, fs.ErrNotExist) {
				all = errors.Join(all, err)
			}
		}
		return all
	}
	if err := clean(); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(engineError(err), clean())
		}
	}()
	if err := touch(draft); err != nil {
		return err
	}
	pool := sql.OpenDB(&connector{path: draft, key: o.Key.Reveal(), setup: func(c *sqlite3.Conn) error {
		// Checksums are enabled here and nowhere else: on a database with content it rewrites all.
		if err := c.EnableChecksums("main"); err != nil {
			return err
		}
		return c.Exec(pragmas)
	}})
	pool.SetMaxOpenConns(1)
	err = errors.Join(migrate(ctx, pool, sqliteWords, o), pool.Close())
	if err != nil {
		return err
	}
	f, err := os.OpenFile(draft, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return err
	}
	if err := os.Rename(draft, path); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// look reads what the database is without changing a byte of it or of its log. SQLite would answer
// a wrong key after a crash by deleting the log, and with it acknowledged writes; so the first page
// is decrypted here before SQLite sees the file, and SQLite then looks through a connection that
// neither checkpoints nor makes a shared-memory file.
func look(ctx context.Context, path string, key []byte) (inspection, error) {
	header, err := openable(path, key)
	if err != nil {
		return inspection{}, err
	}
	pool := sql.OpenDB(&connector{path: path, key: key, setup: func(c *sqlite3.Conn) error {
		if _, err := c.Config(sqlite3.DBCONFIG_NO_CKPT_ON_CLOSE, true); err != nil {
			return err
		}
		return c.Exec(`PRAGMA locking_mode=EXCLUSIVE; PRAGMA query_only=ON; PRAGMA temp_store=MEMORY`)
	}})
	pool.SetMaxOpenConns(1)
	found, ok, err := inspect(ctx, pool, sqliteWords.tableExists)
	var pages int64
	if err == nil {
		err = pool.QueryRowContext(ctx, `PRAGMA page_count`).Scan(&pages)
	}
	err = errors.Join(err, pool.Close())
	if header.noLog {
		// SQLite opened an empty one. Remove would take nothing else, as it was empty a moment ago and
		// the lock keeps others out.
		if info, serr := os.Lstat(path + "-wal"); serr == nil && info.Size() == 0 {
			err = errors.Join(err, os.Remove(path+"-wal"))
		}
	}
	switch {
	case ctx.Err() != nil:
		return inspection{}, ctx.Err()
	case err != nil && sqliteCorrupt(err):
		return inspection{}, fmt.Errorf("%w (%w)", ErrCorrupt, err)
	case err != nil:
		return inspection{}, engineError(err)
	case !ok:
		return inspection{}, fmt.Errorf("%w (it holds no installation)", ErrCorrupt)
	case header.size+header.log+1<<16 < pages*pageSize:
		return inspection{}, fmt.Errorf("%w (it ends before its last page)", ErrCorrupt)
	}
	return found, nil
}

// sizes are those of the database's file and of its log, in bytes.
type sizes struct {
	size, log int64
	noLog     bool // there is no such file
}

// openable decides between a right key, a wrong key and a damaged file by reading alone.
func openable(path string, key []byte) (sizes, error) {
	var s sizes
	db, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return s, err
	}
	defer db.Close()
	info, err := db.Stat()
	if err != nil {
		return s, err
	}
	s.size = info.Size()
	wal, err := os.OpenFile(path+"-wal", os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err == nil {
		defer wal.Close()
		if info, err = wal.Stat(); err != nil {
			return s, err
		}
		s.log = info.Size()
	} else if s.noLog = errors.Is(err, fs.ErrNotExist); !s.noLog {
		return s, err
	}
	if s.size < pageSize {
		return s, fmt.Errorf("%w (it has %d bytes, less than a page)", ErrCorrupt, s.size)
	}
	cipher := adiantum.New(key)
	block := func(f *os.File, at int64) ([]byte, error) {
		b := make([]byte, pageSize)
		if _, err := f.ReadAt(b, at); err != nil {
			return nil, err
		}
		var tweak [8]byte
		binary.LittleEndian.PutUint64(tweak[:], uint64(at))
		return cipher.Decrypt(b, tweak[:]), nil
	}
	page, err := block(db, 0)
	if err != nil {
		return s, err
	}
	if isSQLiteHeader(page) {
		// The count in the header holds for a database whose log was written back; with a log, the
		// last word is SQLite's.
		pages := int64(binary.BigEndian.Uint32(page[28:]))
		if s.log == 0 && (s.size%pageSize != 0 || s.size < pages*pageSize) {
			return s, fmt.Errorf("%w (it should have %d pages and has %d bytes)", ErrCorrupt, pages, s.size)
		}
		return s, nil
	}
	// The key may be right and the first page damaged. The log's header tells, and so does any
	// other page by its checksum.
	if s.log >= pageSize {
		head, err := block(wal, 0)
		if err != nil {
			return s, err
		}
		if binary.BigEndian.Uint32(head)&^1 == 0x377f0682 && binary.BigEndian.Uint32(head[8:]) == pageSize {
			return s, nil // a torn write-back of page 1: SQLite takes the page from the log
		}
	}
	for at := int64(pageSize); at+pageSize <= s.size && at < 64*pageSize; at += pageSize {
		page, err := block(db, at)
		if err != nil && !errors.Is(err, io.EOF) {
			return s, err
		}
		if err == nil && checksummed(page) {
			return s, fmt.Errorf("%w (its first page is not readable)", ErrCorrupt)
		}
	}
	return s, ErrWrongKey
}

// checksummed reports whether the last 8 bytes of page are the checksum of the others, in the way
// of SQLite's cksumvfs (https://sqlite.org/cksumvfs.html).
func checksummed(page []byte) bool {
	var s1, s2 uint32
	body := page[:len(page)-8]
	for i := 0; i < len(body); i += 8 {
		s1 += binary.LittleEndian.Uint32(body[i:]) + s2
		s2 += binary.LittleEndian.Uint32(body[i+4:]) + s1
	}
	return s1|s2 != 0 && binary.LittleEndian.Uint32(page[len(page)-8:]) == s1 &&
		binary.LittleEndian.Uint32(page[len(page)-4:]) == s2
}

// pragmas are set on every connection. A database that is reopened in WAL mode falls back to
// synchronous=NORMAL, which may lose acknowledged writes in a power cut, unless told each time. What is
// deleted, a wrapped key for one, is overwritten in its page; the log forgets it at its next turn.
const pragmas = `PRAGMA busy_timeout=10000;
PRAGMA temp_store=MEMORY;
PRAGMA journal_mode=WAL;
PRAGMA synchronous=FULL;
PRAGMA foreign_keys=ON;
PRAGMA trusted_schema=OFF;
PRAGMA cell_size_check=ON;
PRAGMA secure_delete=ON;
PRAGMA journal_size_limit=67108864;
PRAGMA cache_size=-4096`

// bulkPragmas are set after pragmas for Options.Bulk: commits wait for the disk when the log is written back,
// and that happens every 32 MB. What is sorted for an index lies in a file, encrypted under a key that is
// forgotten with it, as it may be more than fits into memory.
const bulkPragmas = `;
PRAGMA synchronous=NORMAL;
PRAGMA wal_autocheckpoint=8192;
PRAGMA temp_store=FILE;
PRAGMA cache_size=-16384`

func (e *embedded) start(ctx context.Context, path string, o Options, current bool) (err error) {
	// The log and the shared memory must not be made by SQLite: it would make them 0644, and would
	// not fsync the directory, so that a power cut could take the whole log.
	for _, end := range []string{"-wal", "-shm"} {
		if err := touch(path + end); err != nil {
			return err
		}
	}
	if err := syncDir(filepath.Dir(path)); err != nil {
		return err
	}
	settings := pragmas
	if o.Bulk {
		settings += bulkPragmas
	}
	e.pool = sql.OpenDB(&connector{path: path, key: o.Key.Reveal(), setup: func(c *sqlite3.Conn) error {
		return c.Exec(settings)
	}})
	e.pool.SetMaxOpenConns(readers + 1)
	e.pool.SetMaxIdleConns(readers + 1)
	defer func() {
		if err != nil {
			err = errors.Join(engineError(err), e.pool.Close())
		}
	}()
	if !current {
		if err := migrate(ctx, e.pool, sqliteWords, o); err != nil {
			return err
		}
	}
	w, err := e.connect(ctx)
	if err != nil {
		return err
	}
	e.readers = make(chan *reader, readers)
	for range readers {
		r, err := e.connect(ctx)
		if err != nil {
			return err
		}
		if err := r.conn.control("PRAGMA query_only=ON"); err != nil {
			return err
		}
		e.readers <- &reader{*r}
	}
	e.writer = newWriter(w, e.metrics, e.hub)
	return nil
}

// connect takes one connection out of the pool for good.
func (e *embedded) connect(ctx context.Context) (*sqliteRunner, error) {
	pinned, err := e.pool.Conn(ctx)
	if err != nil {
		return nil, err
	}
	r := &sqliteRunner{sql: pinned}
	err = pinned.Raw(func(c any) error {
		r.conn = c.(*conn)
		return nil
	})
	return r, err
}

func (e *embedded) update(ctx context.Context, _ sql.IsolationLevel, fn func(*Tx) error) ([]func(), error) {
	return e.writer.do(ctx, fn)
}

// view runs fn over a snapshot on one of the readers. The end of ctx interrupts it.
func (e *embedded) view(ctx context.Context, fn func(*Tx) error) error {
	return e.look(ctx, "BEGIN", fn)
}

func (e *embedded) snapshot(ctx context.Context, fn func(*Tx) error) error { return e.view(ctx, fn) }

// read has each query begin and end its own transaction.
func (e *embedded) read(ctx context.Context, fn func(*Tx) error) error { return e.look(ctx, "", fn) }

// look runs fn on one of the readers, in a transaction that begins so, or in none.
func (e *embedded) look(ctx context.Context, begin string, fn func(*Tx) error) (err error) {
	var r *reader
	var open bool
	select {
	case r, open = <-e.readers:
	default:
		select {
		case r, open = <-e.readers:
		case <-ctx.Done():
			return waited(ctx)
		}
	}
	if !open {
		return unavailable(errClosed)
	}
	c := r.conn
	old := c.c.SetInterrupt(ctx)
	tx := &Tx{run: &r.sqliteRunner, ctx: context.Background(), hub: e.hub}
	returned := false
	defer func() {
		tx.finish()
		c.closeRows()
		c.c.SetInterrupt(old)
		if c.within || c.lost != nil {
			if end := c.end("ROLLBACK"); err == nil && returned {
				err = end
			}
		}
		e.readers <- r
		err = readError(ctx, err)
	}()
	if begin != "" {
		if err = c.begin(begin); err != nil {
			returned = true
			return err
		}
	}
	err = fn(tx)
	returned = true
	return err
}

// readError says what a failure of a read means to the caller.
func readError(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, sqlite3.INTERRUPT) && ctx.Err() != nil:
		return waited(ctx)
	case errors.Is(err, sqlite3.READONLY): // fn tried to write
		return err
	}
	return engineError(err)
}

// waited is the answer to a caller whose context ended: their own cancellation, or, when time ran
// out, an engine that is too busy.
func waited(ctx context.Context) error {
	if err := ctx.Err(); !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return unavailable(ctx.Err())
}

// engineError names damage and passing failures of SQLite; other errors stay as they are.
func engineError(err error) error {
	switch {
	case err == nil, errors.Is(err, ErrCorrupt):
		return err
	case sqliteCorrupt(err):
		return fmt.Errorf("%w (%w)", ErrCorrupt, err)
	case sqliteFailure(err):
		return unavailable(err)
	}
	return err
}

// noSpace reports whether err came from a full disk, or may have: SQLite sometimes says no more than
// that writing failed.
func noSpace(err error) bool {
	return errors.Is(err, sqlite3.FULL) || errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) ||
		errors.Is(err, sqlite3.IOERR) && !errors.Is(err, sqlite3.IOERR_DATA) || postgresFull(err)
}

// space wants room for a few write-backs of the log: a small write may find a place inside files
// that are there while the next one would fail.
func (e *embedded) space() error {
	const least = 4 << 20
	var fs unix.Statfs_t
	if err := unix.Fstatfs(int(e.lock.Fd()), &fs); err != nil {
		return err
	}
	if free := fs.Bavail * uint64(fs.Bsize); free < least {
		return unavailable(fmt.Errorf("the disk has %d bytes left: %w", free, unix.ENOSPC))
	}
	return nil
}

func (e *embedded) close() error {
	if !e.writer.stop() {
		return nil
	}
	var err error
	for range readers {
		r := <-e.readers
		err = errors.Join(err, r.close())
	}
	close(e.readers)
	// The writer goes last: the last connection writes the log back and removes it.
	return errors.Join(err, e.writer.run.close(), e.pool.Close(), e.lock.Close())
}

// close closes the connection instead of giving it back to the pool.
func (r *sqliteRunner) close() error {
	err := r.sql.Raw(func(any) error { return driver.ErrBadConn })
	if errors.Is(err, driver.ErrBadConn) || errors.Is(err, sql.ErrConnDone) {
		return nil
	}
	return err
}
