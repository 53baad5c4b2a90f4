package identity

import (
	"context"
	"errors"
	"testing"

	"strongroom/internal/db"
	"strongroom/internal/problem"
)

// TestForgedRowsLetNobodyIn plays somebody who can write to the database and holds no key: they give
// themselves another's session, device or private code, and get nowhere.
func TestForgedRowsLetNobodyIn(t *testing.T) {
	each(t, nil, func(t *testing.T, h *house) {
		ctx := context.Background()
		victim, mallory := number(1), number(2)
		h.register(victim, "victim-key")
		h.register(mallory, "mallory-key")
		theirs, own := h.mustLogin(victim, "victim-key"), h.mustLogin(mallory, "mallory-key")

		session := func() error {
			return h.DB.View(ctx, func(tx *db.Tx) error {
				s, found, err := h.rows.sessionByAccess(ctx, tx, tokenHash(string(own.Access.Reveal())))
				if err == nil && found && s.customer == theirs.Customer {
					t.Error("mallory has a session of the victim")
				}
				if err == nil && !found {
					return errForged // no such session at all is as good
				}
				return err
			})
		}
		refresh := func() error {
			_, err := h.Refresh(ctx, from("mallory-key"), own.Refresh)
			if problem.Of(err) != nil && problem.Of(err).Kind() == problem.Unauthenticated {
				return errForged
			}
			return err
		}
		login := func() error {
			_, err := h.login(victim, "victim-key", goodCode)
			return err
		}
		for _, row := range []struct {
			name  string
			query string
			args  []any
			try   []func() error
		}{
			{"a longer session", `UPDATE session SET expires_at = expires_at + 1 WHERE id = $1`, []any{own.Session}, []func() error{session, refresh}},
			{"another's session", `UPDATE session SET customer_id = $1, device_id = $2 WHERE id = $3`, []any{string(theirs.Customer), theirs.Device, own.Session}, []func() error{session, refresh}},
			{"another's session and device", `UPDATE device SET jkt = 'mallory-key' WHERE id = $1`, []any{theirs.Device}, []func() error{session, refresh, login}},
			{"another private code", `UPDATE account SET code_hash = (SELECT code_hash FROM account WHERE customer_id = $1) WHERE customer_id = $2`,
				[]any{string(own.Customer), string(theirs.Customer)}, []func() error{login}},
		} {
			t.Run(row.name, func(t *testing.T) {
				if err := h.DB.Update(ctx, func(tx *db.Tx) error {
					n, err := tx.Exec(ctx, row.query, row.args...)
					if err == nil && n != 1 {
						t.Errorf("%d rows altered", n)
					}
					return err
				}); err != nil {
					t.Fatal(err)
				}
				for _, try := range row.try {
					if err := try(); !errors.Is(err, errForged) {
						t.Errorf("got %v", err)
					}
				}
			})
		}
	})
}
