package db

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"net/url"

	"strongroom/internal/id"
)

// Scratch makes an empty schema in a PostgreSQL database and returns the URL of a database that consists
// of it, and what drops it again with all that it holds.
func Scratch(ctx context.Context, postgres string) (scratch string, drop func(ctx context.Context) error, err error) {
	u, err := url.Parse(postgres)
	if err != nil {
		return "", nil, errors.New("the URL of the scratch database is not one")
	}
	pool, err := sql.Open("pgx", postgres)
	if err != nil {
		return "", nil, errors.New("the URL of the scratch database is not one")
	}
	name := `"strongroom_` + id.New("scratch") + `"`
	if _, err := pool.ExecContext(ctx, `CREATE SCHEMA `+name); err != nil {
		return "", nil, errors.Join(fmt.Errorf("the scratch database: %w", err), pool.Close())
	}
	q := u.Query()
	q.Set("search_path", name)
	u.RawQuery = q.Encode()
	return u.String(), func(ctx context.Context) error {
		_, err := pool.ExecContext(ctx, `DROP SCHEMA `+name+` CASCADE`)
		return errors.Join(err, pool.Close())
	}, nil
}
