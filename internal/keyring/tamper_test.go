package keyring

import (
	"errors"
	"strings"
	"testing"

	"strongroom/internal/actor"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

// TestMissingKeysAreNotMadeAgain: who deletes a key does not get a new one in its place, under which
// everything would verify.
func TestMissingKeysAreNotMadeAgain(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		root := testRoot(t)
		k := openKeyring(t, d, root)
		o := Options{DB: d, Root: root, Record: k.events.record}
		if _, err := Open(t.Context(), by, o); err != nil {
			t.Fatalf("nothing is missing: %v", err)
		}
		update(t, d, func(tx *db.Tx) error {
			_, err := tx.Exec(t.Context(), `CREATE TABLE copy_service_key AS SELECT * FROM service_key WHERE 1 = 0`)
			return err
		})
		for _, name := range []string{KeyCheckpoint, KeyEventMAC, KeyBlindIndex, KeyPepper} {
			exec(t, d, `INSERT INTO copy_service_key SELECT * FROM service_key WHERE name = $1`, name)
			exec(t, d, `DELETE FROM service_key WHERE name = $1`, name)
			_, err := Open(t.Context(), by, o)
			if !errors.Is(err, ErrDamaged) || !strings.Contains(err.Error(), name) || !strings.Contains(err.Error(), "backup") {
				t.Errorf("%s is missing: %v", name, err)
			}
			if n := count(t, d, `SELECT count(*) FROM service_key WHERE name = '`+name+`'`); n != 0 {
				t.Errorf("%s was made again", name)
			}
			exec(t, d, `INSERT INTO service_key SELECT * FROM copy_service_key`)
			exec(t, d, `DELETE FROM copy_service_key`)
		}
		for _, table := range []string{"service_key", "kek_wrap", "kek"} {
			exec(t, d, `DELETE FROM `+table)
		}
		if _, err := Open(t.Context(), by, o); !errors.Is(err, ErrDamaged) {
			t.Errorf("all keys are missing: %v", err)
		}
	})
}

// TestPlantedTombstone: only a tombstone that Strongroom wrote makes a customer erased.
func TestPlantedTombstone(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := openKeyring(t, d, testRoot(t))
		a, b := k.create(t), k.create(t)
		k.Forget(a)
		good := k.TombstoneMAC(a, 7)
		for name, row := range map[string]struct {
			at  int64
			mac []byte
		}{
			"empty": {7, []byte{}}, "short": {7, good[:4]}, "garbage": {7, make([]byte, len(good))}, "another time": {8, good},
			"another customer's": {7, k.TombstoneMAC(b, 7)}, "another version": {7, append([]byte{0, 0, 0, 9}, good[4:]...)},
		} {
			exec(t, d, `INSERT INTO data_key_tombstone (customer_id, erased_at, mac) VALUES ($1, $2, $3)`, a, row.at, row.mac)
			if _, err := k.ring(t, a); !errors.Is(err, ErrDamaged) {
				t.Errorf("%s: %v", name, err)
			}
			exec(t, d, `DELETE FROM data_key_tombstone`)
		}
		if _, err := k.ring(t, a); err != nil {
			t.Errorf("without: %v", err)
		}
		exec(t, d, `INSERT INTO data_key_tombstone (customer_id, erased_at, mac) VALUES ($1, 7, $2)`, a, good)
		if _, err := k.ring(t, a); !problem.Is(err, "customer-erased") {
			t.Errorf("erased: %v", err)
		}
	})
}

func TestListIsForTheSystem(t *testing.T) {
	k := openKeyring(t, dbtest.Open(t, db.SQLite), testRoot(t))
	for _, kind := range []actor.Kind{actor.Anonymous, actor.Customer, "staff", ""} {
		if list, err := k.List(t.Context(), actor.Actor{Kind: kind, ID: "x"}); !problem.Is(err, "keys-not-allowed") || list != nil {
			t.Errorf("%q: %v", kind, err)
		}
	}
}
