package db

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/stdlib"
)

const (
	poolSize = 16
	// maxAttempts bounds how often a transaction runs again after a serialization failure.
	maxAttempts = 12
	// patientAttempts is after how many of them a transaction waits for its turn among those that lose
	// often, so that they stop defeating one another.
	patientAttempts = 3
	// maxTransaction bounds a writing transaction whatever its caller's context says, so that a
	// connection that went silent is given up.
	maxTransaction = 60 * time.Second
	// maxBulk is that of Options.Bulk: it makes indexes of whole tables.
	maxBulk = 24 * time.Hour
	// migrationLock is the advisory lock under which schemas are made and migrated.
	migrationLock = 0x5354524f4e47 // "STRONG"
)

var postgresWords = words{
	Int: "BIGINT", Text: `TEXT COLLATE "C"`, Blob: "BYTEA",
	tableExists: `SELECT count(*) FROM pg_class WHERE oid = to_regclass($1)`,
}

// server is the PostgreSQL engine.
type server struct {
	metrics *metrics
	log     *slog.Logger
	pool    *sql.DB
	hub     *hub
	slots   chan struct{} // one for each connection, so that waiting for one can end with a context
	turn    chan struct{} // for the one of the transactions that lose often which may run
	closed  atomic.Bool
	longest time.Duration // that a writing transaction may take
}

// postgresRunner runs the statements of one transaction.
type postgresRunner struct {
	tx   *sql.Tx
	conn *sql.Conn // the transaction's, for what reads a great deal; nil elsewhere
}

func (r postgresRunner) exec(ctx context.Context, query string, args []any) (int64, error) {
	res, err := r.tx.ExecContext(ctx, query, args...)
	if err != nil {
		return 0, err
	}
	return res.RowsAffected()
}

func (r postgresRunner) query(ctx context.Context, query string, args []any) (*sql.Rows, error) {
	return r.tx.QueryContext(ctx, query, args...)
}

func (r postgresRunner) queryRow(ctx context.Context, query string, args []any) *sql.Row {
	return r.tx.QueryRowContext(ctx, query, args...)
}

func (r postgresRunner) sticky(err error) bool { return conflict(err) || postgresFailure(err) }

func openPostgres(ctx context.Context, d *DB, o Options) (err error) {
	config, err := pgx.ParseConfig(o.URL)
	if err != nil {
		return fmt.Errorf("the database's URL is not valid: %w", err) // pgx leaves the password out
	}
	if config.ConnectTimeout == 0 {
		config.ConnectTimeout = 5 * time.Second
	}
	limits, longest, commits := [2]string{"30s", "60s"}, maxTransaction, durable
	if o.Bulk {
		limits, longest, commits = [2]string{"0", "0"}, maxBulk, ordered
	}
	for name, value := range map[string]string{
		"application_name":                    "strongroom",
		"statement_timeout":                   limits[0],
		"lock_timeout":                        "10s",
		"idle_in_transaction_session_timeout": limits[1],
	} {
		if _, set := config.RuntimeParams[name]; !set || o.Bulk {
			config.RuntimeParams[name] = value
		}
	}
	found, err := preparePostgres(ctx, config.Copy(), o)
	if err != nil {
		if postgresFailure(err) && !errors.Is(err, ErrNotSupported) {
			return unavailable(err)
		}
		return err
	}
	pool := stdlib.OpenDB(*config, stdlib.OptionAfterConnect(commits))
	pool.SetMaxOpenConns(poolSize)
	pool.SetMaxIdleConns(poolSize)
	pool.SetConnMaxIdleTime(5 * time.Minute)
	pool.SetConnMaxLifetime(time.Hour)
	d.hub.remote = newListener(d.hub, config.Copy())
	d.engine, d.installation = &server{
		metrics: d.metrics, log: o.Log, pool: pool, hub: d.hub, slots: make(chan struct{}, poolSize), turn: make(chan struct{}, 1), longest: longest,
	}, found.installation
	return nil
}

// durable has the commits of a connection wait for the disk, whatever the server's, the database's or
// the role's settings say, now or after they are changed.
func durable(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, `
		SELECT set_config('synchronous_commit',
			CASE WHEN now IN ('on', 'remote_write', 'remote_apply') THEN now ELSE 'on' END, false)
		FROM (SELECT current_setting('synchronous_commit') AS now) s`)
	return err
}

// ordered has the commits of a connection not wait for the disk. The server's log keeps their order, so that
// whoever commits durably later has these kept as well.
func ordered(ctx context.Context, c *pgx.Conn) error {
	_, err := c.Exec(ctx, `SELECT set_config('synchronous_commit', 'off', false)`)
	return err
}

// preparePostgres looks at the database and migrates it, under a lock that keeps replicas that
// start together from doing so at once.
func preparePostgres(ctx context.Context, config *pgx.ConnConfig, o Options) (in inspection, err error) {
	for _, name := range []string{"statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout"} {
		config.RuntimeParams[name] = "0" // a migration may take long
	}
	pool := stdlib.OpenDB(*config, stdlib.OptionAfterConnect(durable))
	defer pool.Close()
	c, err := pool.Conn(ctx)
	if err != nil {
		var pg *pgconn.PgError
		if errors.As(err, &pg) && pg.Code == "3D000" {
			return in, fmt.Errorf("%w (PostgreSQL has no database %q: create it first)", ErrNoDatabase, config.Database)
		}
		return in, err
	}
	defer c.Close()
	var version string
	if err := c.QueryRowContext(ctx, `SHOW server_version_num`).Scan(&version); err != nil {
		return in, err
	}
	if n, err := strconv.Atoi(version); err == nil && n < 150000 {
		return in, fmt.Errorf("%w (it is %d)", ErrNotSupported, n/10000)
	}
	for locked := false; !locked; {
		if err := c.QueryRowContext(ctx, `SELECT pg_try_advisory_lock($1)`, migrationLock).Scan(&locked); err != nil {
			return in, err
		}
		if locked {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return in, ctx.Err()
		}
	}
	defer func() {
		_, unlock := c.ExecContext(context.WithoutCancel(ctx), `SELECT pg_advisory_unlock($1)`, migrationLock)
		if err == nil {
			err = unlock
		}
	}()
	in, ok, err := inspect(ctx, c, postgresWords.tableExists)
	if err != nil {
		return in, err
	}
	if !ok && !o.Create {
		return in, ErrNoDatabase
	}
	if ok {
		if err := in.fits(o.Environment); err != nil {
			return in, err
		}
		if in.current() {
			return in, nil
		}
	}
	before := in.version
	// The migrations wait for the disk together.
	swift := stdlib.OpenDB(*config, stdlib.OptionAfterConnect(ordered))
	if err := errors.Join(migrate(ctx, swift, postgresWords, o), swift.Close()); err != nil {
		return in, err
	}
	in, _, err = inspect(ctx, c, postgresWords.tableExists)
	if err == nil && in.version != before {
		_, err = c.ExecContext(ctx, `UPDATE `+versionTable+` SET version = version WHERE version = $1`, in.version)
	}
	return in, err
}

func (s *server) update(ctx context.Context, level sql.IsolationLevel, fn func(*Tx) error) ([]func(), error) {
	for attempt := 1; ; attempt++ {
		if ctx.Err() != nil {
			return nil, waited(ctx)
		}
		after, again, err := s.try(ctx, level, fn)
		if !again {
			return after, err
		}
		if attempt == maxAttempts {
			return nil, unavailable(fmt.Errorf("gave up after %d attempts: %w", attempt, err))
		}
		s.metrics.retries.Inc()
		if attempt == patientAttempts {
			select {
			case s.turn <- struct{}{}:
				defer func() { <-s.turn }()
			case <-ctx.Done():
				return nil, waited(ctx)
			}
		}
		if !pause(ctx, attempt) {
			return nil, waited(ctx)
		}
	}
}

// pause waits before the next attempt, longer each time and never the same for two callers. It
// reports false when ctx ended.
func pause(ctx context.Context, attempt int) bool {
	most := min(time.Millisecond<<attempt, 250*time.Millisecond)
	t := time.NewTimer(rand.N(most))
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// try runs fn in one transaction. again is true when it surely left nothing behind and may succeed
// if it is run once more.
func (s *server) try(ctx context.Context, level sql.IsolationLevel, fn func(*Tx) error) (after []func(), again bool, err error) {
	// The transaction does not hang on the caller's context: a commit that is cut short is one whose
	// outcome nobody knows.
	own, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.longest)
	defer cancel()
	t, err := s.begin(ctx, own, &sql.TxOptions{Isolation: level})
	if err != nil {
		return nil, false, err
	}
	defer s.leave()
	tx := &Tx{run: postgresRunner{tx: t}, ctx: own, hub: s.hub}
	open := true
	defer func() {
		if open { // fn failed, panicked or ended the goroutine
			tx.finish()
			_ = t.Rollback()
		}
	}()
	err = fn(tx)
	if tx.err != nil && (err == nil || !conflict(err)) {
		err = tx.err // fn may have hidden what ended the transaction
	}
	if err != nil {
		if conflict(err) {
			return nil, true, err
		}
		if postgresFailure(err) {
			// The connection was lost before COMMIT was sent, so nothing was kept.
			return nil, lostConnection(err) && !errors.Is(err, context.DeadlineExceeded), unavailable(err)
		}
		return nil, false, err
	}
	tx.finish()
	open = false
	err = t.Commit()
	switch {
	case err == nil:
		return tx.after, false, nil
	case conflict(err):
		return nil, true, err
	case refusedCommit(err):
		return nil, false, err
	}
	// Whether the server committed is not known; to run fn again could do its deed twice.
	return nil, false, unavailable(fmt.Errorf("%w: %w", ErrOutcomeUnknown, err))
}

// begin waits for a connection for as long as wait allows, and begins a transaction. Connections
// that died in the pool (a server that was restarted) are passed over: nothing was sent on them that
// could have an effect. The transaction's end must be followed by s.leave.
func (s *server) begin(wait, own context.Context, o *sql.TxOptions) (*sql.Tx, error) {
	select {
	case s.slots <- struct{}{}:
	case <-wait.Done():
		return nil, waited(wait)
	}
	for n := 0; ; n++ {
		t, err := s.pool.BeginTx(own, o)
		if err == nil {
			return t, nil
		}
		if n < poolSize && lostConnection(err) && wait.Err() == nil {
			continue
		}
		s.leave()
		switch {
		case s.closed.Load():
			return nil, unavailable(errClosed)
		case wait.Err() != nil:
			return nil, waited(wait)
		case postgresFailure(err):
			return nil, unavailable(err)
		}
		return nil, err
	}
}

// leave lets the next one have a connection.
func (s *server) leave() { <-s.slots }

// unchanging is how a transaction is begun that only reads.
var unchanging = sql.TxOptions{Isolation: sql.LevelRepeatableRead, ReadOnly: true}

func (s *server) view(ctx context.Context, fn func(*Tx) error) error {
	t, err := s.begin(ctx, ctx, &unchanging)
	if err != nil {
		return err
	}
	defer s.leave()
	return s.inView(ctx, t, nil, fn)
}

func (s *server) snapshot(ctx context.Context, fn func(*Tx) error) error {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return waited(ctx)
	}
	defer s.leave()
	for n := 0; ; n++ {
		var t *sql.Tx
		c, err := s.pool.Conn(ctx)
		if err == nil {
			if t, err = c.BeginTx(ctx, &unchanging); err == nil {
				defer c.Close()
				return s.inView(ctx, t, c, fn)
			}
			_ = c.Close()
		}
		switch {
		case n < poolSize && lostConnection(err) && ctx.Err() == nil: // it died in the pool
			continue
		case s.closed.Load():
			return unavailable(errClosed)
		case ctx.Err() != nil:
			return waited(ctx)
		case postgresFailure(err):
			return unavailable(err)
		}
		return err
	}
}

// inView runs fn in a transaction that reads, and ends it.
func (s *server) inView(ctx context.Context, t *sql.Tx, c *sql.Conn, fn func(*Tx) error) error {
	tx := &Tx{run: postgresRunner{t, c}, ctx: ctx, hub: s.hub}
	defer func() {
		tx.finish()
		_ = t.Rollback()
	}()
	err := fn(tx)
	if err != nil && ctx.Err() != nil && (errors.Is(err, ctx.Err()) || postgresFailure(err)) {
		return waited(ctx)
	}
	if postgresFailure(err) && sqlState(err) != "25006" { // 25006: fn tried to write
		return unavailable(err)
	}
	return err
}

// space is the server's own affair.
func (s *server) space() error { return nil }

// close waits for the transactions that run, and then lets no other begin.
func (s *server) close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.hub.remote.stop()
	for range poolSize {
		s.slots <- struct{}{}
	}
	err := s.pool.Close()
	for range poolSize {
		<-s.slots
	}
	return err
}

// conflict reports whether the transaction lost against another and may run again.
func conflict(err error) bool {
	code := sqlState(err)
	return code == "40001" || code == "40P01"
}

func sqlState(err error) string {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.Code
	}
	return ""
}

// lostConnection reports whether the connection to the server is no more.
func lostConnection(err error) bool {
	if code := sqlState(err); code != "" {
		return strings.HasPrefix(code, "08") || code == "57P01" || code == "57P02" || code == "57P05"
	}
	var connect *pgconn.ConnectError
	if errors.As(err, &connect) {
		return false // there is no server to be had for now
	}
	var network net.Error
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) ||
		errors.Is(err, net.ErrClosed) || errors.As(err, &network) || closedConnection(err)
}

// closedConnection reports whether pgx found the connection closed, for which it has no type.
func closedConnection(err error) bool {
	return err != nil && strings.Contains(err.Error(), "conn closed")
}

// postgresFailure reports whether err says that the server, not the statement, failed for now.
func postgresFailure(err error) bool {
	switch code := sqlState(err); {
	case code == "":
		var connect *pgconn.ConnectError
		return err != nil && (lostConnection(err) || errors.As(err, &connect) || errors.Is(err, context.DeadlineExceeded))
	case strings.HasPrefix(code, "08"), // connection
		strings.HasPrefix(code, "53"), // insufficient resources: disk, memory, connections
		strings.HasPrefix(code, "57"), // operator intervention, shutdown, statement timeout
		strings.HasPrefix(code, "58"), // system: input and output
		code == "55P03",               // lock timeout
		code == "25006",               // read only: a replica, after a fail-over
		code == "25P03":               // idle for too long in a transaction
		return true
	}
	return false
}

// refusedCommit reports whether the server answered COMMIT with a refusal: nothing was kept. Class
// 57 is not among them, as a server that shuts down may have committed already.
func refusedCommit(err error) bool {
	code := sqlState(err)
	return errors.Is(err, pgx.ErrTxCommitRollback) || strings.HasPrefix(code, "23") || strings.HasPrefix(code, "44")
}

func postgresFull(err error) bool { return sqlState(err) == "53100" }

func postgresUnique(err error) bool { return sqlState(err) == "23505" }
