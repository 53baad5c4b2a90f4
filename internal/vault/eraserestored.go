package vault

import (
	"context"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
)

// EraseRestored deletes what a restored copy brought back of a customer who was erased since it was made:
// their key is gone, and the tombstone is there. It does what Erase does but for the key, and leaves the
// same event; the reason says why. Of who was erased before the copy was made there is nothing to delete,
// and no event. It is for a restored database that does not serve yet, and reports whether it did anything.
func (v *Vault) EraseRestored(ctx context.Context, by actor.Actor, owner customer.ID) (bool, error) {
	var known bool
	err := v.db.View(ctx, func(tx *db.Tx) (err error) {
		_, known, err = selectErasure(ctx, tx, owner)
		return err
	})
	if err != nil || known {
		return false, err
	}
	d := &deed{Vault: v, by: by, Event: audit.Event{Action: ActionErase, Resource: "customer", Customer: owner, Reason: "restored"}, err: mayErase(by)}
	err = d.do(ctx, func(tx *db.Tx, e *audit.Event) error {
		row := erasure{event: audit.NewID(), erasedAt: clock.Micros(v.clock.Now()), deleted: map[string]int64{}}
		e.ID = row.event
		for _, room := range append([]Eraser{v}, v.erasers...) {
			deleted, err := room.EraseCustomer(ctx, tx, owner)
			if err != nil {
				return err
			}
			for kind, n := range deleted {
				if n > 0 {
					row.deleted[kind] += n
				}
			}
		}
		return insertErasure(ctx, tx, owner, row)
	})
	return err == nil, err
}
