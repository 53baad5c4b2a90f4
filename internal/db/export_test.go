package db

import (
	"context"
	"errors"
	"sync"
)

// Alone gives benchmarks the way that group commit is measured against: each call its own BEGIN
// IMMEDIATE and COMMIT on the writer's connection, one after the other.
func Alone(d *DB) func(fn func(*Tx) error) error {
	run := d.engine.(*embedded).writer.run
	var mu sync.Mutex
	return func(fn func(*Tx) error) error {
		mu.Lock()
		defer mu.Unlock()
		if err := run.conn.begin("BEGIN IMMEDIATE"); err != nil {
			return err
		}
		tx := &Tx{run: run}
		err := fn(tx)
		tx.finish()
		if err != nil {
			return errors.Join(err, run.conn.end("ROLLBACK"))
		}
		return run.conn.end("COMMIT")
	}
}

// Queued returns how many transactions wait for the writer.
func Queued(d *DB) int { return len(d.engine.(*embedded).writer.queue) }

// ChecksumsAtOpen says whether a connection checks and writes page checksums before its first read.
func ChecksumsAtOpen(path string, key []byte) (bool, error) {
	c, err := openRaw(context.Background(), path, key)
	if err != nil {
		return false, err
	}
	defer c.Close()
	s, _, err := c.Prepare(`PRAGMA checksum_verification`)
	if err != nil {
		return false, err
	}
	defer s.Close()
	return s.Step() && s.ColumnText(0) == "1", s.Err()
}
