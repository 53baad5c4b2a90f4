package keyring

import (
	"context"
	"crypto/ed25519"
	"fmt"
	"strconv"

	"golang.org/x/mod/sumdb/note"

	"strongroom/internal/actor"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
)

// ActionCustomerDestroy is recorded for every version of a customer's data key that is destroyed.
const ActionCustomerDestroy = "keyring.customer-key.destroy"

// DestroyCustomer destroys the data key of c in all its versions, in the transaction that erases the
// customer, and leaves a tombstone: from the commit on nothing that was sealed for c opens again, in
// any copy of the database, and the tombstone wins should an old copy bring the key back. It returns
// how many versions there were. It fails with the problem "customer-erased" when the key was destroyed
// before, and with "customer-not-found" when there never was one.
//
// What is still to be opened or sealed under the key must be before: from here on Customer fails, in
// this transaction too. This process drops the key from its memory at once; another one may hold it
// for a lease, and asks Erased before it relies on it for something new. When the transaction is
// rolled back, the key is read from the database again.
func (k *Keyring) DestroyCustomer(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID) (versions int, err error) {
	if !c.Valid() {
		return 0, errUnknown
	}
	if k.record.Load() == nil {
		return 0, errNoRecorder
	}
	if err := k.Erased(ctx, tx, c); err != nil {
		return 0, err
	}
	rows, err := selectDataKeys(ctx, tx, c)
	if err != nil {
		return 0, err
	}
	if len(rows) == 0 {
		return 0, errUnknown
	}
	if err := k.deleteDataKeys(ctx, tx, c, clock.Micros(k.clock.Now())); err != nil {
		return 0, err
	}
	k.Forget(c) // the events below must not be sealed under it
	for _, row := range rows {
		resource := "customer key " + string(c) + "/" + strconv.Itoa(int(row.version))
		if err := k.event(ctx, tx, by, c, ActionCustomerDestroy, resource); err != nil {
			return 0, err
		}
	}
	tx.AfterCommit(func() { k.Forget(c) })
	return len(rows), nil
}

// Erased fails with the problem "customer-erased" when the data key of c was destroyed. It asks the
// database each time, where Customer may answer from the cache: whoever finds nothing of a customer,
// or is about to add something, asks it in the same transaction.
func (k *Keyring) Erased(ctx context.Context, tx *db.Tx, c customer.ID) error {
	mac, at, erased, err := selectTombstone(ctx, tx, c)
	switch {
	case err != nil || !erased:
		return err
	case !k.isTombstone(c, at, mac):
		return fmt.Errorf("%w: the tombstone of customer %s was not written by Strongroom: remove it", ErrDamaged, c)
	}
	return errErased
}

func (k *Keyring) deleteDataKeys(ctx context.Context, tx *db.Tx, c customer.ID, now int64) error {
	if _, err := tx.Exec(ctx, `DELETE FROM data_key WHERE customer_id = $1`, c); err != nil {
		return err
	}
	_, err := tx.Exec(ctx, `INSERT INTO data_key_tombstone (customer_id, erased_at, mac) VALUES ($1, $2, $3)`,
		c, now, k.TombstoneMAC(c, now))
	return err
}

// CheckpointKey returns the newest version of the key that signs checkpoints and receipts as others
// verify with it: its name, hash and public part in the form of a C2SP signed-note verifier key.
func (k *Keyring) CheckpointKey() string {
	s := k.keys.Load().service[KeyCheckpoint].signer
	text, err := note.NewEd25519VerifierKey(s.Name(), s.key.Public().(ed25519.PublicKey))
	if err != nil {
		panic("keyring: " + err.Error()) // only for a key of another length
	}
	return text
}
