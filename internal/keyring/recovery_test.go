package keyring_test

import (
	"bytes"
	"errors"
	"slices"
	"testing"

	"filippo.io/age"

	"strongroom/internal/actor"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/db/dbtest"
	"strongroom/internal/keyring"
	"strongroom/internal/keyring/keyringtest"
	"strongroom/internal/keyring/seal"
)

// Whoever holds the recovery key opens the keys under another root key, and nobody else does.
func TestRecovery(t *testing.T) {
	dbtest.Each(t, func(t *testing.T, d *db.DB) {
		ctx, by := t.Context(), actor.OfSystem("test")
		keys := keyringtest.Open(t, d)
		c := customer.NewID()
		place := seal.Place{Room: "test", Customer: string(c)}
		var sealed []byte
		err := d.Update(ctx, func(tx *db.Tx) error {
			ring, err := keys.CreateCustomer(ctx, tx, by, c)
			if err == nil {
				sealed = ring.Seal(place, []byte("Ada"))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		holder, err := age.GenerateHybridIdentity()
		if err != nil {
			t.Fatal(err)
		}
		stranger, err := age.GenerateHybridIdentity()
		if err != nil {
			t.Fatal(err)
		}
		if _, err := keys.ExportForRecovery(ctx, by, nil); err == nil {
			t.Error("KEKs were sealed to nobody")
		}
		exported, err := keys.ExportForRecovery(ctx, by, []age.Recipient{holder.Recipient()})
		if err != nil {
			t.Fatal(err)
		}
		root := keyringtest.Root(t)
		damaged := slices.Clone(exported)
		damaged[len(damaged)-1] ^= 1
		for name, try := range map[string]error{
			"a stranger":              keyring.Recover(ctx, d, root, exported, stranger),
			"damaged":                 keyring.Recover(ctx, d, root, damaged, holder),
			"cut short":               keyring.Recover(ctx, d, root, exported[:len(exported)/2], holder),
			"of another installation": keyring.Recover(ctx, dbtest.New(t, db.SQLite), root, exported, holder),
		} {
			if try == nil {
				t.Errorf("%s recovered the KEKs", name)
			}
		}
		options := keyring.Options{DB: d, Root: root}
		if _, err := keyring.Open(ctx, by, options); err == nil {
			t.Fatalf("before: %v", err)
		}
		if err := keyring.Recover(ctx, d, root, exported, holder); err != nil {
			t.Fatal(err)
		}
		recovered, err := keyring.Open(ctx, by, options)
		if err != nil {
			t.Fatal(err)
		}
		err = d.View(ctx, func(tx *db.Tx) error {
			ring, err := recovered.Customer(ctx, tx, c)
			if err != nil {
				return err
			}
			plain, err := ring.Open(place, sealed)
			if err == nil && !bytes.Equal(plain, []byte("Ada")) {
				t.Errorf("opened %q", plain)
			}
			versions, err2 := recovered.Versions(ctx, tx)
			if !slices.Equal(versions["kek"], []uint32{1}) || !slices.Equal(versions["customer"], []uint32{1}) || len(versions["backup"]) != 1 {
				t.Errorf("versions: %v", versions)
			}
			sample, err3 := recovered.Sample(ctx, tx, 3)
			if !slices.Equal(sample, []customer.ID{c}) {
				t.Errorf("sample: %v", sample)
			}
			return errors.Join(err, err2, err3)
		})
		if err != nil {
			t.Error(err)
		}
	})
}
