package keyring

import (
	"errors"
	"testing"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
)

func reserved(t *testing.T, d *db.DB, name string, version uint32) int64 {
	t.Helper()
	var all map[versionOf]int64
	if err := d.View(t.Context(), func(tx *db.Tx) (err error) {
		all, err = selectUses(t.Context(), tx)
		return err
	}); err != nil {
		t.Fatal(err)
	}
	return all[versionOf{name, version}]
}

// TestUsesAreNeverCountedTooLow: whatever several processes seal, and however they end, the database has
// counted at least that before.
func TestUsesAreNeverCountedTooLow(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		root, place := testRoot(t), seal.Place{Room: "test", Table: "t"}
		var sealed int64
		for run := range 3 { // each process ends without a word
			k := openKeyring(t, d, root)
			for range 3000 {
				k.Service(KeyOutbox).Seal(place, nil)
				sealed++
			}
			if n := reserved(t, d, KeyOutbox, 1); n < sealed {
				t.Fatalf("run %d: %d counted of %d", run, n, sealed)
			}
			if err := k.tend(t.Context()); err != nil {
				t.Fatal(err)
			}
			for range 3000 { // beyond the first block
				k.Service(KeyOutbox).Seal(place, nil)
				sealed++
			}
			if n := reserved(t, d, KeyOutbox, 1); n < sealed || n > 100*sealed {
				t.Fatalf("run %d: %d counted of %d", run, n, sealed)
			}
		}
		if n := reserved(t, d, KeyEvent, 1); n != 3*leastBlock {
			t.Errorf("what did not seal has %d", n)
		}
	})
}

// TestWornKeys: half way to the limit a key is rotated, and at the limit it seals no more.
func TestWornKeys(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, root, place := t.Context(), testRoot(t), seal.Place{Room: "test", Table: "t"}
		k := openRotating(t, d, root)
		ready, done := k.work(t)
		if _, err := k.Rotate(ctx, by, KeyToken); err != nil {
			t.Fatal(err)
		}
		k.finish(t, ready)
		done()
		exec(t, d, `UPDATE key_use SET reserved = $1 WHERE name = $2`, int64(wornAt), kekName)
		exec(t, d, `UPDATE key_use SET reserved = $1 WHERE name = $2`, int64(wornAt), KeyOutbox)
		other := openRotating(t, d, root) // which reserves, and so sees it
		if got := other.due(); got != kekName {
			t.Fatalf("due is %q", got)
		}
		wake, stop := other.work(t)
		wake()
		other.until(t, wake, func(r Rotation) bool { return r.Key == KeyOutbox && !r.Ended.IsZero() })
		stop()
		if err := k.tend(ctx); err != nil { // reserves for the new versions
			t.Fatal(err)
		}
		if kek, outbox := k.keys.Load().kek.Version(), k.Service(KeyOutbox).Version(); kek != 2 || outbox != 2 {
			t.Fatalf("KEK %d, outbox %d", kek, outbox)
		}

		exec(t, d, `UPDATE key_use SET reserved = $1 WHERE version = 2`, int64(seal.Limit-1))
		last := openKeyring(t, d, root) // the one that gets the last use
		sealed := last.Service(KeyOutbox).Seal(place, []byte("the last"))
		if !last.Service(KeyOutbox).Worn() {
			t.Error("it may seal once more")
		}
		func() {
			defer func() {
				if err, _ := recover().(error); !errors.Is(err, seal.ErrWornOut) {
					t.Errorf("it sealed beyond the limit: %v", err)
				}
			}()
			last.Service(KeyOutbox).Seal(place, nil)
		}()
		if got, err := last.Service(KeyOutbox).Open(place, sealed); err != nil || string(got) != "the last" {
			t.Errorf("a worn key opens: %q, %v", got, err)
		}
		none := openKeyring(t, d, root) // comes after the last
		if err := d.Update(ctx, func(tx *db.Tx) error {
			_, err := none.CreateCustomer(ctx, tx, by, customer.NewID())
			return err
		}); !problem.Is(err, "keys-unavailable") || !errors.Is(err, seal.ErrWornOut) {
			t.Errorf("a customer's key under a worn KEK: %v", err)
		}
	})
}
