package keyring

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
)

// TestFlippedStates: whoever changes the state of a key in the database is found out, at start and by a
// server that runs.
func TestFlippedStates(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root := t.Context(), testRoot(t)
		k := openRotating(t, d, root)
		wake, stop := k.work(t)
		c := k.create(t)
		if _, err := k.CompromiseKEK(ctx, by, 1); err != nil {
			t.Fatal(err)
		}
		k.finish(t, wake)
		if _, err := k.Rotate(ctx, by, KeyToken); err != nil {
			t.Fatal(err)
		}
		k.finish(t, wake)
		stop()
		open := func() error {
			_, err := Open(ctx, by, Options{DB: d, Root: root, Record: k.events.record})
			return err
		}
		if err := open(); err != nil {
			t.Fatalf("nothing is flipped: %v", err)
		}
		// Each row changes something, and puts it back.
		for name, row := range map[string][2]string{
			"compromised looks retired": {`UPDATE kek SET state = 'retired' WHERE version = 1`, `UPDATE kek SET state = 'compromised' WHERE version = 1`},
			"compromised seals again": {`UPDATE kek SET state = CASE version WHEN 1 THEN 'active' ELSE 'destroyed' END`,
				`UPDATE kek SET state = CASE version WHEN 1 THEN 'compromised' ELSE 'active' END`},
			"active looks destroyed": {`UPDATE service_key SET state = CASE version WHEN 2 THEN 'destroyed' ELSE 'active' END WHERE name = 'token'`,
				`UPDATE service_key SET state = CASE version WHEN 2 THEN 'active' ELSE 'retired' END WHERE name = 'token'`},
			"retired looks destroyed": {`UPDATE service_key SET state = 'destroyed' WHERE name = 'token' AND version = 1`,
				`UPDATE service_key SET state = 'retired' WHERE name = 'token' AND version = 1`},
			"young again":       {`UPDATE kek SET made_at = made_at + 1 WHERE version = 2`, `UPDATE kek SET made_at = made_at - 1 WHERE version = 2`},
			"another verifier":  {`UPDATE service_key SET verifier = 'x' WHERE name = 'checkpoint'`, `UPDATE service_key SET verifier = NULL WHERE name = 'checkpoint'`},
			"the count is old":  {`UPDATE key_generation SET n = n - 1`, `UPDATE key_generation SET n = n + 1`},
			"the count is new":  {`UPDATE key_generation SET n = n + 1`, `UPDATE key_generation SET n = n - 1`},
			"a row more":        {`INSERT INTO service_key (name, version, kek_version, algorithm, state, wrapped, made_at) SELECT 'zz', version, kek_version, algorithm, state, wrapped, made_at FROM service_key WHERE name = 'outbox'`, `DELETE FROM service_key WHERE name = 'zz'`},
			"the last KEK gone": {`UPDATE kek SET state = 'destroyed' WHERE version = 1`, `UPDATE kek SET state = 'compromised' WHERE version = 1`},
		} {
			exec(t, d, row[0])
			if err := open(); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: open: %v", name, err)
			} else if !strings.Contains(err.Error(), "accept-states") && !strings.Contains(err.Error(), "backup") {
				t.Errorf("%s: no remedy: %v", name, err)
			}
			exec(t, d, row[1])
			if err := open(); err != nil {
				t.Fatalf("%s: put back: %v", name, err)
			}
		}

		// A server that runs refuses the next generation, and goes on with what it has.
		exec(t, d, `UPDATE kek SET state = 'retired' WHERE version = 1`)
		exec(t, d, `UPDATE key_generation SET n = n + 1`)
		k.opening.until = time.Time{}
		if err := k.Reload(ctx); !errors.Is(err, ErrDamaged) {
			t.Errorf("reload: %v", err)
		}
		if _, err := k.ring(t, c); err != nil {
			t.Errorf("what it holds: %v", err)
		}
		// The roster of another generation does not fit, nor one that the compromised KEK seals.
		old, err := k.keys.Load().kek.Under(1)
		if err != nil {
			t.Fatal(err)
		}
		update(t, d, func(tx *db.Tx) error {
			rows, err := selectKeys(ctx, tx)
			if err != nil {
				return err
			}
			return setRoster(ctx, tx, old.Seal(rosterPlace(rows.generation), roster(rows)))
		})
		if err := open(); !errors.Is(err, ErrDamaged) {
			t.Errorf("sealed by the compromised KEK: %v", err)
		}
		exec(t, d, `UPDATE key_generation SET roster = NULL`)
		if err := open(); !errors.Is(err, ErrDamaged) {
			t.Errorf("without a roster: %v", err)
		}

		// Who has looked at the states may have them hold, and that is an event.
		looked := openWith(t, Options{DB: d, Root: root, AcceptStates: true})
		if !slices.Contains(looked.events.all, ActionRosterAccept+" the states of all keys") {
			t.Errorf("events %q", looked.events.all)
		}
		if err := open(); err != nil {
			t.Errorf("accepted: %v", err)
		}
	})
}
