package db

import (
	"context"
	"database/sql"
	"errors"
)

// poolRunner runs each query by itself, on any connection.
type poolRunner struct{ pool *sql.DB }

// errReadOnly answers a write where there is no transaction to write in.
var errReadOnly = errors.New("db: Read does not write: use Update")

func (r poolRunner) exec(context.Context, string, []any) (int64, error) { return 0, errReadOnly }

func (r poolRunner) query(ctx context.Context, query string, args []any) (*sql.Rows, error) {
	return r.pool.QueryContext(ctx, query, args...)
}

func (r poolRunner) queryRow(ctx context.Context, query string, args []any) *sql.Row {
	return r.pool.QueryRowContext(ctx, query, args...)
}

func (r poolRunner) sticky(err error) bool { return postgresFailure(err) }

// read passes over connections that died in the pool, as begin does: what only reads may be sent again.
func (s *server) read(ctx context.Context, fn func(*Tx) error) error {
	select {
	case s.slots <- struct{}{}:
	case <-ctx.Done():
		return waited(ctx)
	}
	defer s.leave()
	for n := 0; ; n++ {
		tx := &Tx{run: poolRunner{s.pool}, ctx: ctx, hub: s.hub}
		err := fn(tx)
		if tx.err != nil {
			err = tx.err // fn may have hidden it
		}
		tx.finish()
		switch {
		case err == nil:
			return nil
		case s.closed.Load():
			return unavailable(errClosed)
		case ctx.Err() != nil && (errors.Is(err, ctx.Err()) || postgresFailure(err)):
			return waited(ctx)
		case n < poolSize && lostConnection(err):
			continue
		case postgresFailure(err):
			return unavailable(err)
		}
		return err
	}
}
