package db

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/ncruces/go-sqlite3"
)

// Scrub sees to it that what was deleted, in transactions that were committed before, is in no file
// of the database any more, and reports whether it can promise that.
//
// The embedded database overwrites what it deletes with zeros; Scrub then writes its log back and
// cuts it to nothing, since the log still holds the pages as they were. It waits for readers that
// need the log, up to the end of ctx, and does not hold up other writers meanwhile.
//
// PostgreSQL promises no such thing to any client: a deleted row stays in its table until vacuum
// and its space is used again, and in the write-ahead log for as long as that is kept. Scrub does
// nothing there and returns false.
func (d *DB) Scrub(ctx context.Context) (clean bool, err error) { return d.engine.scrub(ctx) }

func (s *server) scrub(context.Context) (bool, error) { return false, nil }

const (
	// scrubWait is how long the writer waits for readers at one attempt.
	scrubWait = 20 * time.Millisecond
	// scrubPause lies between two attempts.
	scrubPause = 50 * time.Millisecond
)

func (e *embedded) scrub(ctx context.Context) (bool, error) {
	for {
		err := e.writer.between(ctx, func(c *conn) error {
			if err := c.c.BusyTimeout(scrubWait); err != nil {
				return err
			}
			_, _, err := c.c.WALCheckpoint("main", sqlite3.CHECKPOINT_TRUNCATE)
			return errors.Join(err, c.c.BusyTimeout(busyTimeout))
		})
		switch {
		case err == nil:
			return true, nil
		case !errors.Is(err, sqlite3.BUSY):
			return false, engineError(err)
		}
		select {
		case <-time.After(scrubPause):
		case <-ctx.Done():
			return false, fmt.Errorf("readers kept the database's log: %w", waited(ctx))
		}
	}
}

// between runs f in the writer's goroutine while no transaction is open.
func (w *writer) between(ctx context.Context, f func(*conn) error) error {
	done := make(chan error, 1)
	select {
	case w.aside <- func() { done <- guard(func() error { return f(w.run.conn) }) }:
		return <-done
	case <-w.ended:
		return unavailable(errClosed)
	case <-ctx.Done():
		return waited(ctx)
	}
}
