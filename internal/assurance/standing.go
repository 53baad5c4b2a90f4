package assurance

import (
	"context"

	"strongroom/internal/db"
)

// Standing returns all claims as they stand, in the order of the catalogue, for a room that leaves an event of its own
// in tx.
func (a *Assurance) Standing(ctx context.Context, tx *db.Tx) ([]Status, error) {
	return a.statuses(ctx, tx)
}

// Catalogue returns the claims that the product ships, without their states.
func Catalogue() ([]Claim, error) { return catalogue() }
