package report

import (
	"context"
	"errors"

	"strongroom/internal/check"
	"strongroom/internal/db"
	"strongroom/internal/keyring/seal"
)

// CheckSealed finds out whether the newest reports are stored sealed under the key that they have to be, by opening
// them; nobody sees what is in them.
func (d *Desk) CheckSealed(ctx context.Context) check.Observation {
	did := "opened the newest reports as they are stored, without showing them to anybody"
	n := 0
	err := d.o.DB.View(ctx, func(tx *db.Tx) error {
		all, err := selectNewest(ctx, tx, 100)
		if err != nil {
			return err
		}
		ring := d.o.Keys.Service(sealingKey)
		for reference, sealed := range all {
			plain, err := ring.Open(place(reference), sealed)
			clear(plain)
			if err != nil {
				return err
			}
		}
		n = len(all)
		return nil
	})
	switch {
	case errors.Is(err, seal.ErrOpen):
		return check.Failed(did, "A report is not sealed for its place, or was altered.")
	case err != nil:
		return check.Undecided(did, "The reports could not be read: %v", err)
	}
	return check.Held(did, "All %d open under their key.", n).With("reports", n)
}
