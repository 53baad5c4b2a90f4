package keyring

import (
	"context"
	"database/sql"
	"errors"

	"strongroom/internal/clock"
	"strongroom/internal/db"
)

// selectMove returns the latest move, which alone may be going on, or else one with the number 0.
func selectMove(ctx context.Context, tx *db.Tx) (m RootMove, err error) {
	var started int64
	var ended sql.NullInt64
	err = tx.QueryRow(ctx, `
		SELECT number, from_id, to_id, phase, started_at, ended_at FROM root_move
		ORDER BY number DESC LIMIT 1`).Scan(
		&m.Number, &m.From, &m.To, &m.Phase, &started, &ended)
	if errors.Is(err, sql.ErrNoRows) {
		return RootMove{}, nil
	}
	if err != nil {
		return RootMove{}, err
	}
	m.Started = clock.FromMicros(started)
	if ended.Valid {
		m.Ended = clock.FromMicros(ended.Int64)
	}
	return m, nil
}

func insertMove(ctx context.Context, tx *db.Tx, m RootMove) error {
	n, err := tx.Exec(ctx, `
		INSERT INTO root_move (number, from_id, to_id, phase, started_at, ended_at) VALUES ($1, $2, $3, $4, $5, NULL)
		ON CONFLICT (number) DO NOTHING`, m.Number, m.From, m.To, m.Phase, clock.Micros(m.Started))
	if err == nil && n == 0 {
		return errMoved
	}
	return err
}

// advanceMove changes the phase, and fails with errMoved when it is no longer what it was.
func advanceMove(ctx context.Context, tx *db.Tx, number int64, from, to string) error {
	n, err := tx.Exec(ctx, `UPDATE root_move SET phase = $1 WHERE number = $2 AND phase = $3 AND ended_at IS NULL`, to, number, from)
	if err == nil && n == 0 {
		return errMoved
	}
	return err
}

func endMove(ctx context.Context, tx *db.Tx, number int64, from, to string, now int64) error {
	n, err := tx.Exec(ctx, `UPDATE root_move SET phase = $1, ended_at = $2 WHERE number = $3 AND phase = $4 AND ended_at IS NULL`,
		to, now, number, from)
	if err == nil && n == 0 {
		return errMoved
	}
	return err
}

func insertWrap(ctx context.Context, tx *db.Tx, version uint32, w kekWrap, now int64) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO kek_wrap (kek_version, root_id, wrapped, made_at) VALUES ($1, $2, $3, $4)
		ON CONFLICT (kek_version, root_id) DO UPDATE SET wrapped = excluded.wrapped, made_at = excluded.made_at`,
		version, w.rootID, w.wrapped, now)
	return err
}

func deleteOtherWraps(ctx context.Context, tx *db.Tx, keep string) error {
	_, err := tx.Exec(ctx, `DELETE FROM kek_wrap WHERE root_id <> $1`, keep)
	return err
}
