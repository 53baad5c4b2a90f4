package db

import (
	"context"
	"database/sql/driver"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/url"
	"path/filepath"
	"strings"

	"github.com/ncruces/go-sqlite3"
	_ "github.com/ncruces/go-sqlite3/vfs/adiantum" // the encrypting VFS
)

// connector opens connections to one encrypted SQLite file for database/sql. It is a driver of our
// own, above the same sqlite3.Conn, because the stock one prepares every statement with arguments
// anew, turns text that looks like a time into a time, and hides which statements are still open.
type connector struct {
	path string
	key  []byte // 32 bytes
	// setup runs once per connection, after the key was given.
	setup func(*sqlite3.Conn) error
}

// Driver is part of driver.Connector; nothing is registered under a name.
func (o *connector) Driver() driver.Driver { return noDriver{} }

type noDriver struct{}

func (noDriver) Open(string) (driver.Conn, error) {
	return nil, errors.New("connections are made by the connector only")
}

// Connect opens the file. The key is a parameter of the URI and not a PRAGMA: only so does SQLite's
// first look at the header, when it opens the file, decrypt it, and the checksum layer learn that pages
// carry checksums. A connection that finds page 1 in the write-ahead log of a crashed process would
// otherwise write pages back without them, and whoever reads those takes them for damaged. It is hexkey
// and never textkey, which would run Argon2id on every connection.
func (o *connector) Connect(ctx context.Context) (driver.Conn, error) {
	c, err := openRaw(ctx, o.path, o.key)
	if err != nil {
		return nil, err
	}
	if err := o.setup(c); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return &conn{c: c, stmts: make(map[string]*stmt)}, nil
}

func openRaw(ctx context.Context, path string, key []byte) (*sqlite3.Conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	u := url.URL{Scheme: "file", Path: filepath.ToSlash(path), RawQuery: "vfs=adiantum&hexkey=" + hex.EncodeToString(key)}
	return sqlite3.OpenFlags(u.String(), sqlite3.OPEN_READWRITE|sqlite3.OPEN_URI)
}

// maxStatements bounds the prepared statements that one connection keeps.
const maxStatements = 512

// conn is one connection with its prepared statements, by query text. It is used by one goroutine
// at a time.
type conn struct {
	c     *sqlite3.Conn
	stmts map[string]*stmt
	open  []*rows // rows that were not closed yet
	// within is true between BEGIN and COMMIT. Some failures (disk full, I/O) make SQLite roll the
	// whole transaction back; a statement after that would commit on its own, so it is refused.
	within bool
	lost   error // why the transaction is no more; nil while it lives
	broken error // the first failure of the engine in this transaction, which fn may hide
}

type stmt struct {
	s        *sqlite3.Stmt
	params   int
	readOnly bool
	busy     bool // its rows are being read
	cached   bool
	columns  []string
	row      []any
}

func (c *conn) prepare(query string) (*stmt, error) {
	if c.lost != nil {
		return nil, fmt.Errorf("the transaction was rolled back: %w", c.lost)
	}
	st := c.stmts[query]
	if st != nil && !st.busy {
		return st, nil
	}
	s, tail, err := c.c.PrepareFlags(numbered(query), sqlite3.PREPARE_PERSISTENT)
	if err != nil {
		return nil, c.failed(err)
	}
	if s == nil {
		return nil, errors.New("the query is empty")
	}
	for tail != "" { // comments and white space may follow, but no second statement
		more, rest, err := c.c.Prepare(tail)
		if err == nil && more != nil {
			err = errors.New("there are two statements in one query")
			_ = more.Close()
		}
		if err != nil {
			return nil, errors.Join(err, s.Close())
		}
		tail = rest
	}
	fresh := &stmt{s: s, params: s.BindCount(), readOnly: s.ReadOnly(), cached: st == nil}
	if fresh.cached {
		if len(c.stmts) >= maxStatements {
			c.forget()
		}
		c.stmts[query] = fresh
	}
	return fresh, nil
}

// forget closes the prepared statements that are not being read.
func (c *conn) forget() {
	for q, st := range c.stmts {
		if !st.busy {
			_ = st.s.Close()
			delete(c.stmts, q)
		}
	}
}

func (st *stmt) bind(args []any) error {
	if len(args) != st.params {
		return fmt.Errorf("the query has %d parameters, but %d arguments were given", st.params, len(args))
	}
	for i, a := range args {
		var err error
		switch a := a.(type) {
		case nil:
			err = st.s.BindNull(i + 1)
		case int64:
			err = st.s.BindInt64(i+1, a)
		case float64:
			err = st.s.BindFloat(i+1, a)
		case string:
			err = st.s.BindText(i+1, a)
		case []byte:
			err = st.s.BindBlob(i+1, a)
		default:
			err = fmt.Errorf("argument $%d is a %T", i+1, a)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// failed notes what an error did to the transaction.
func (c *conn) failed(err error) error {
	if c.broken == nil && sqliteFailure(err) {
		c.broken = err
	}
	if c.within && c.c.GetAutocommit() {
		c.within, c.lost = false, err
	}
	return err
}

// errEngine is a panic of the engine: it panics when it is out of memory.
var errEngine = errors.New("the database engine panicked")

// caught turns a panic of the engine, which would be taken for one of fn's, into an error.
func (c *conn) caught(err *error) {
	if p := recover(); p != nil {
		*err = c.failed(fmt.Errorf("%w: %v", errEngine, p))
	}
}

// exec runs a statement to its end. The arguments are those that checked returned.
func (c *conn) exec(query string, args []any) (n int64, err error) {
	defer c.caught(&err)
	st, err := c.prepare(query)
	if err != nil {
		return 0, err
	}
	if !st.cached {
		defer st.s.Close()
	}
	err = st.bind(args)
	if err == nil {
		if err = st.s.Exec(); err != nil {
			err = c.failed(err)
		}
	}
	if st.params > 0 {
		_ = st.s.ClearBindings() // what was bound may be a secret
	}
	if err != nil || st.readOnly {
		return 0, err
	}
	return c.c.Changes(), nil
}

// control runs BEGIN, COMMIT, SAVEPOINT and the like, also in a transaction that was lost.
func (c *conn) control(query string) error {
	st := c.stmts[query]
	if st == nil {
		s, _, err := c.c.PrepareFlags(query, sqlite3.PREPARE_PERSISTENT)
		if err != nil {
			return err
		}
		st = &stmt{s: s, cached: true}
		c.stmts[query] = st
	}
	return st.s.Exec()
}

func (c *conn) begin(query string) error {
	c.lost, c.broken = nil, nil
	err := c.control(query)
	c.within = err == nil
	return err
}

// end commits or rolls back, and leaves the connection outside of any transaction.
func (c *conn) end(query string) error {
	err := c.control(query)
	if err != nil && !c.c.GetAutocommit() {
		err = errors.Join(err, c.control("ROLLBACK"))
	}
	c.within, c.lost, c.broken = false, nil, nil
	return err
}

// closeRows closes the rows that were left open: an open statement would keep COMMIT from working.
func (c *conn) closeRows() {
	for len(c.open) > 0 {
		_ = c.open[len(c.open)-1].Close()
	}
}

// Close is part of driver.Conn.
func (c *conn) Close() error {
	c.closeRows()
	for q, st := range c.stmts {
		_ = st.s.Close()
		delete(c.stmts, q)
	}
	return c.c.Close()
}

// CheckNamedValue is part of driver.NamedValueChecker; Tx has made the arguments fit.
func (c *conn) CheckNamedValue(nv *driver.NamedValue) error {
	v, same, err := value(nv.Value)
	if err == nil && !same {
		nv.Value = v
	}
	return err
}

// QueryContext is part of driver.QueryerContext.
func (c *conn) QueryContext(_ context.Context, query string, named []driver.NamedValue) (driver.Rows, error) {
	var few [12]any
	r, err := c.start(query, plain(few[:0], named))
	if err != nil {
		return nil, err
	}
	return r, nil
}

// start runs a query up to its first row.
func (c *conn) start(query string, args []any) (_ *rows, err error) {
	defer c.caught(&err)
	st, err := c.prepare(query)
	if err != nil {
		return nil, err
	}
	if err := st.bind(args); err != nil {
		if !st.cached {
			_ = st.s.Close()
		}
		return nil, err
	}
	if st.columns == nil {
		st.columns = make([]string, st.s.ColumnCount())
		st.row = make([]any, len(st.columns))
		for i := range st.columns {
			st.columns[i] = st.s.ColumnName(i)
		}
	}
	st.busy = true
	r := &rows{c: c, st: st}
	c.open = append(c.open, r)
	return r, nil
}

// ExecContext is part of driver.ExecerContext.
func (c *conn) ExecContext(_ context.Context, query string, named []driver.NamedValue) (driver.Result, error) {
	var few [12]any
	n, err := c.exec(query, plain(few[:0], named))
	return driver.RowsAffected(n), err
}

func plain(args []any, named []driver.NamedValue) []any {
	for i := range named {
		args = append(args, named[i].Value)
	}
	return args
}

// Prepare is part of driver.Conn; nobody needs it, as every statement is kept prepared.
func (c *conn) Prepare(string) (driver.Stmt, error) {
	return nil, errors.New("statements are prepared by the connection itself")
}

// Begin is part of driver.Conn; the migrations use it.
func (c *conn) Begin() (driver.Tx, error) {
	if err := c.begin("BEGIN IMMEDIATE"); err != nil {
		return nil, err
	}
	return ended{c}, nil
}

// BeginTx is part of driver.ConnBeginTx.
func (c *conn) BeginTx(context.Context, driver.TxOptions) (driver.Tx, error) { return c.Begin() }

type ended struct{ c *conn }

func (t ended) Commit() error   { return t.c.end("COMMIT") }
func (t ended) Rollback() error { return t.c.end("ROLLBACK") }

// rows reads the result of one statement.
type rows struct {
	c      *conn
	st     *stmt
	closed bool
}

// Columns is part of driver.Rows.
func (r *rows) Columns() []string { return r.st.columns }

// Close is part of driver.Rows.
func (r *rows) Close() error {
	if r.closed {
		return nil
	}
	r.closed = true
	for i, o := range r.c.open {
		if o == r {
			last := len(r.c.open) - 1
			r.c.open[i] = r.c.open[last]
			r.c.open[last] = nil
			r.c.open = r.c.open[:last]
			break
		}
	}
	// Reset repeats the error that Step gave already.
	_ = r.st.s.Reset()
	_ = r.st.s.ClearBindings()
	clear(r.st.row)
	r.st.busy = false
	if !r.st.cached {
		return r.st.s.Close()
	}
	return nil
}

// Next is part of driver.Rows.
func (r *rows) Next(dest []driver.Value) (err error) {
	defer r.c.caught(&err)
	if err := r.step(); err != nil {
		return err
	}
	if err := r.st.s.ColumnsRaw(r.st.row...); err != nil {
		return r.c.failed(err)
	}
	for i, v := range r.st.row {
		// Text and blobs both come as bytes; ColumnsRaw leaves room for text's final NUL.
		if b, ok := v.([]byte); ok && cap(b) > len(b) {
			dest[i] = string(b)
		} else {
			dest[i] = v
		}
	}
	return nil
}

// step goes on to the next row; io.EOF follows the last.
func (r *rows) step() error {
	if r.closed {
		return errors.New("the rows were read after the end of their transaction")
	}
	if r.c.lost != nil {
		return fmt.Errorf("the transaction was rolled back: %w", r.c.lost)
	}
	if !r.st.s.Step() {
		if err := r.st.s.Err(); err != nil {
			return r.c.failed(err)
		}
		return io.EOF
	}
	return nil
}

// sqliteFailure reports whether err says that the engine, not the statement, failed for now.
func sqliteFailure(err error) bool {
	if errors.Is(err, errEngine) {
		return true
	}
	var code sqlite3.ErrorCode
	if !errors.As(err, &code) || errors.Is(err, sqlite3.IOERR_DATA) {
		return false
	}
	switch code {
	case sqlite3.FULL, sqlite3.IOERR, sqlite3.NOMEM, sqlite3.CANTOPEN, sqlite3.BUSY, sqlite3.LOCKED,
		sqlite3.READONLY, sqlite3.PROTOCOL, sqlite3.PERM:
		return true
	}
	return false
}

// sqliteCorrupt reports whether err says that the file's content is not what was written.
func sqliteCorrupt(err error) bool {
	return errors.Is(err, sqlite3.CORRUPT) || errors.Is(err, sqlite3.NOTADB) || errors.Is(err, sqlite3.IOERR_DATA)
}

func sqliteUnique(err error) bool {
	return errors.Is(err, sqlite3.CONSTRAINT_UNIQUE) || errors.Is(err, sqlite3.CONSTRAINT_PRIMARYKEY) ||
		errors.Is(err, sqlite3.CONSTRAINT_ROWID)
}

var sqliteWords = words{
	Int: "INTEGER", Text: "TEXT", Blob: "BLOB", Table: "STRICT", Clustered: "STRICT, WITHOUT ROWID",
	tableExists: `SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = $1`,
}

func isSQLiteHeader(page []byte) bool { return strings.HasPrefix(string(page), "SQLite format 3\x00") }
