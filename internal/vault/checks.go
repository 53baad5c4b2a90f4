package vault

import (
	"bytes"
	"context"
	"crypto/rand"
	"database/sql"
	"errors"
	"strings"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/check"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
)

// ActionCanary is recorded when the canary is planted.
const ActionCanary = "vault.canary.plant"

// canaryPrefix begins the plaintext, so that an opened one can be told from anything else.
const canaryPrefix = "the canary of this vault sings "

func canaryPlace(owner customer.ID) seal.Place {
	return seal.Place{Room: room, Table: "canary", Customer: string(owner), Record: "canary"}
}

// Canary returns the plaintext of a value that belongs to nobody and is sealed as customers' values are; the
// first time it plants it. It must be found nowhere in the clear.
func (v *Vault) Canary(ctx context.Context) (plain []byte, err error) {
	by := actor.OfSystem("vault-canary")
	err = v.db.Update(ctx, func(tx *db.Tx) error {
		var owner customer.ID
		var sealed []byte
		err := tx.QueryRow(ctx, `SELECT customer_id, sealed FROM canary WHERE one = $1`, 1).Scan(&owner, &sealed)
		if errors.Is(err, sql.ErrNoRows) {
			owner, plain = customer.NewID(), []byte(canaryPrefix+strings.ToLower(rand.Text()))
			ring, err := v.keys.CreateCustomer(ctx, tx, by, owner)
			if err != nil {
				return err
			}
			if _, err := tx.Exec(ctx, `INSERT INTO canary (one, customer_id, sealed) VALUES ($1, $2, $3)`, 1, string(owner), ring.Seal(canaryPlace(owner), plain)); err != nil {
				return err
			}
			return v.trail.Record(ctx, tx, by, audit.Event{Action: ActionCanary, Resource: "canary", Customer: owner, Outcome: audit.Granted})
		}
		if err != nil {
			return err
		}
		ring, err := v.keys.Customer(ctx, tx, owner)
		if err == nil {
			ring, err = v.keys.Holding(ctx, tx, owner, ring, sealed)
		}
		if err != nil {
			return err
		}
		if plain, err = ring.Open(canaryPlace(owner), sealed); err != nil {
			return err
		}
		// It moves to the newest version, as records do.
		if version, err := seal.KeyVersion(sealed); err != nil || version == ring.Version() {
			return err
		}
		_, err = tx.Exec(ctx, `UPDATE canary SET sealed = $1 WHERE one = $2`, ring.Seal(canaryPlace(owner), plain), 1)
		return err
	})
	return plain, err
}

// CheckCanary opens the canary.
func (v *Vault) CheckCanary(ctx context.Context) check.Observation {
	did := "opened a value that was sealed as customers' values are"
	plain, err := v.Canary(ctx)
	switch {
	case errors.Is(err, seal.ErrOpen), errors.Is(err, seal.ErrKeyVersion), err == nil && !bytes.HasPrefix(plain, []byte(canaryPrefix)):
		return check.Failed(did, "It does not open.")
	case err != nil:
		return check.Undecided(did, "It could not be read: %v", err)
	}
	return check.Held(did, "It opened.")
}
