package identity

import (
	"context"

	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/secret"
)

// rehashing is a private code that was right, and whose hash was made at another cost or under an
// older pepper than today's.
type rehashing struct {
	customer customer.ID
	old      hashed
	code     secret.Value
}

// rehashes is how many may wait. What finds no room waits for the customer's next login.
const rehashes = 64

// renew has the code hashed anew by a job, so that the answer under way takes no longer than that of a
// wrong code.
func (i *Identity) renew(r rehashing) {
	select {
	case i.stale <- r:
		i.Wake(JobRehash)
	default:
	}
}

// rehash makes the hashes that wait. A hash that has changed meanwhile stays as it is.
func (i *Identity) rehash(ctx context.Context) error {
	for {
		var r rehashing
		select {
		case r = <-i.stale:
		default:
			return nil
		}
		leave, err := i.hasher.enter(ctx, guest{})
		if err != nil {
			return nil // too much else to do; the next login brings it back
		}
		fresh, err := i.hasher.make(r.code)
		leave()
		if err != nil {
			return err
		}
		if err := i.DB.Update(ctx, func(tx *db.Tx) error {
			return i.rows.replaceHash(ctx, tx, r.customer, r.old, fresh)
		}); err != nil {
			return err
		}
	}
}
