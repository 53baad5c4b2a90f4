package keyring

import (
	"errors"
	"slices"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/problem"
)

func TestDestroyCustomer(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		k := openKeyring(t, d, testRoot(t))
		c, other := k.create(t), k.create(t)
		warm := openKeyring(t, d, k.root) // another process, with the key in its memory
		update(t, d, func(tx *db.Tx) error {
			_, err := warm.Customer(t.Context(), tx, c)
			return err
		})

		// Rolled back, nothing happened.
		rollback := errors.New("rolled back")
		err := d.Update(t.Context(), func(tx *db.Tx) error {
			if _, err := k.DestroyCustomer(t.Context(), tx, by, c); err != nil {
				return err
			}
			if _, err := k.Customer(t.Context(), tx, c); !problem.Is(err, "customer-erased") {
				t.Errorf("within the transaction: %v", err)
			}
			return rollback
		})
		if !errors.Is(err, rollback) {
			t.Fatal(err)
		}
		if _, err := k.ring(t, c); err != nil {
			t.Errorf("after a rollback: %v", err)
		}

		// An event that cannot be recorded destroys nothing.
		k.events.fail = errors.New("no event")
		destroy := func(c customer.ID) (n int, err error) {
			err = d.Update(t.Context(), func(tx *db.Tx) (err error) {
				n, err = k.DestroyCustomer(t.Context(), tx, by, c)
				return err
			})
			return n, err
		}
		if _, err := destroy(c); err == nil {
			t.Error("destroyed without an event")
		}
		k.events.fail = nil
		if _, err := k.ring(t, c); err != nil {
			t.Errorf("after an event that failed: %v", err)
		}

		if n, err := destroy(c); n != 1 || err != nil {
			t.Fatalf("destroy: %d, %v", n, err)
		}
		if !slices.Contains(k.events.all, ActionCustomerDestroy+" customer key "+string(c)+"/1") {
			t.Errorf("events: %v", k.events.all)
		}
		if _, err := k.ring(t, c); !problem.Is(err, "customer-erased") {
			t.Errorf("afterwards: %v", err)
		}
		if _, err := destroy(c); !problem.Is(err, "customer-erased") {
			t.Errorf("twice: %v", err)
		}
		if _, err := destroy(customer.NewID()); !problem.Is(err, "customer-not-found") {
			t.Errorf("somebody unknown: %v", err)
		}
		if _, err := destroy("cus_'; --"); !problem.Is(err, "customer-not-found") {
			t.Errorf("no id: %v", err)
		}
		if _, err := k.ring(t, other); err != nil {
			t.Errorf("somebody else: %v", err)
		}

		// The other process may still hold it, and learns of it from Erased.
		err = d.View(t.Context(), func(tx *db.Tx) error { return warm.Erased(t.Context(), tx, c) })
		if !problem.Is(err, "customer-erased") {
			t.Errorf("Erased by a process with the key in its memory: %v", err)
		}
		if err := d.View(t.Context(), func(tx *db.Tx) error { return warm.Erased(t.Context(), tx, other) }); err != nil {
			t.Errorf("Erased of somebody else: %v", err)
		}
		warm.clock.Advance(defaultLease)
		if ring, err := warm.ring(t, c); !problem.Is(err, "customer-erased") {
			t.Errorf("after the lease: %v, %v", ring, err)
		}
		if n := count(t, d, `SELECT COUNT(*) FROM data_key WHERE customer_id = '`+string(c)+`'`); n != 0 {
			t.Errorf("%d wrapped keys are left", n)
		}
		fresh := openKeyring(t, d, k.root)
		if ring, err := fresh.ring(t, c); ring != nil || !problem.Is(err, "customer-erased") {
			t.Errorf("after a restart: %v", err)
		}
		if err := d.Update(t.Context(), func(tx *db.Tx) error {
			_, err := k.CreateCustomer(t.Context(), tx, by, c)
			return err
		}); !problem.Is(err, "customer-erased") {
			t.Errorf("made again: %v", err)
		}
	})
}

func TestCheckpointKey(t *testing.T) {
	k := openKeyring(t, dbtest.Open(t, db.SQLite), testRoot(t))
	verifier, err := note.NewVerifier(k.CheckpointKey())
	if err != nil {
		t.Fatal(err)
	}
	signer := k.CheckpointSigner()
	if verifier.Name() != signer.Name() || verifier.KeyHash() != signer.KeyHash() {
		t.Errorf("%s is not the key of %s+%08x", k.CheckpointKey(), signer.Name(), signer.KeyHash())
	}
	signature, err := signer.Sign([]byte("text"))
	if err != nil || !verifier.Verify([]byte("text"), signature) {
		t.Errorf("it does not verify: %v", err)
	}
}
