package dbtest

import (
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"strongroom/internal/db"
	"strongroom/internal/secret"
)

// To bring a schema up to date takes longer than most tests, so a process does it once and copies the result.

// embedded is an embedded database as it is right after it was made.
type embedded struct {
	content []byte
	key     secret.Value
}

var sqliteTemplate = sync.OnceValues(func() (e embedded, err error) {
	dir, err := os.MkdirTemp("", "strongroom-template-*")
	if err != nil {
		return e, err
	}
	defer os.RemoveAll(dir)
	key := make([]byte, 32)
	rand.Read(key)
	e.key = secret.New(key)
	o := db.Options{Dir: dir, File: "template.db", Key: e.key, Environment: "dev", Create: true}
	d, err := db.Open(context.Background(), o)
	if err != nil {
		return e, err
	}
	if err := d.Close(); err != nil {
		return e, err
	}
	if info, err := os.Stat(filepath.Join(dir, o.File+"-wal")); err == nil && info.Size() > 0 {
		return e, errors.New("the template has a log beside it")
	}
	e.content, err = os.ReadFile(filepath.Join(dir, o.File))
	return e, err
})

// postgresTemplate returns the name of a database on the test server to copy. A process holds a lock under its
// template's name for as long as it lives; whoever makes another drops those that nobody holds.
var postgresTemplate = sync.OnceValues(func() (string, error) {
	const prefix = "strongroom_template_"
	ctx := context.Background()
	admin, u, err := administrator()
	if err != nil {
		return "", err
	}
	c, err := admin.Conn(ctx) // never closed: it has the lock
	if err != nil {
		return "", err
	}
	name := prefix + randomName()
	if _, err := c.ExecContext(ctx, `SELECT pg_advisory_lock(hashtextextended($1, 0))`, name); err != nil {
		return "", err
	}
	if err := dropTemplates(ctx, c, prefix); err != nil {
		return "", err
	}
	if _, err := c.ExecContext(ctx, `CREATE DATABASE `+name); err != nil {
		return "", err
	}
	u.Path = "/" + name
	d, err := db.Open(ctx, db.Options{URL: u.String(), Environment: "dev", Create: true})
	if err != nil {
		return "", err
	}
	return name, d.Close()
})

func dropTemplates(ctx context.Context, c *sql.Conn, prefix string) error {
	var names string
	err := c.QueryRowContext(ctx, `SELECT COALESCE(string_agg(datname, ' '), '') FROM pg_database WHERE starts_with(datname, $1)`, prefix).Scan(&names)
	if err != nil {
		return err
	}
	for _, old := range strings.Fields(names) {
		var free bool
		if err := c.QueryRowContext(ctx, `SELECT pg_try_advisory_lock(hashtextextended($1, 0))`, old).Scan(&free); err != nil {
			return err
		}
		if !free {
			continue
		}
		_, err := c.ExecContext(ctx, `DROP DATABASE IF EXISTS `+old)
		if _, unlock := c.ExecContext(ctx, `SELECT pg_advisory_unlock(hashtextextended($1, 0))`, old); err != nil || unlock != nil {
			return errors.Join(err, unlock)
		}
	}
	return nil
}
