package identity

import (
	"context"
	"errors"
	"strings"
	"unicode/utf8"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/keyring"
	"strongroom/internal/problem"
)

// ActionLoginUnlock is support lifting the blocks of a customer's account.
const ActionLoginUnlock = "identity.login.unlock"

var (
	errUnlockForbidden = problem.New(problem.Forbidden, "unlock-forbidden", "Only support may lift the blocks of an account.")
	errUnlockReason    = problem.New(problem.Unprocessable, "reason-required", "Say why, in 1 to 500 characters.")
	errNoAccount       = problem.New(problem.NotFound, "customer-not-found", "There is no such customer with an account.")
)

// maxUnlockReason is how many characters the reason of an unlock may have.
const maxUnlockReason = 500

// Support is what support may do for customers who cannot log in: let them try again. It can neither read
// nor set a code, and a device that was revoked stays so. It needs no running server.
type Support struct {
	room  *Identity
	db    *db.DB
	trail *audit.Trail
	clock clock.Clock
}

// NewSupport returns a Support.
func NewSupport(d *db.DB, keys *keyring.Keyring, trail *audit.Trail, c clock.Clock) *Support {
	return &Support{&Identity{Options: Options{Keys: keys}, rows: rows{tokenKeys{keys}}}, d, trail, c}
}

// Unlocked says what an unlock lifted.
type Unlocked struct {
	Customer customer.ID `json:"customer"`
	Blocked  int         `json:"blocked"`  // sources of logins that were blocked: the customer's own devices, and all others together
	Failures int64       `json:"failures"` // in a row, that were forgotten
}

// Unlock forgets the failed logins of a customer's account, from their own devices and from all others.
// The reason goes into the event, sealed under the customer's key.
func (s *Support) Unlock(ctx context.Context, by actor.Actor, c customer.ID, reason string) (out Unlocked, err error) {
	e := audit.Event{Action: ActionLoginUnlock, Resource: "account"}
	if by.Kind != actor.System && by.Kind != actor.Staff {
		return out, s.trail.Deny(ctx, by, e, errUnlockForbidden)
	}
	reason = strings.TrimSpace(reason)
	if n := utf8.RuneCountInString(reason); n == 0 || n > maxUnlockReason || !utf8.ValidString(reason) {
		return out, s.trail.Deny(ctx, by, e, errUnlockReason)
	}
	if !c.Valid() {
		return out, s.trail.Deny(ctx, by, e, errNoAccount)
	}
	err = s.trail.Do(ctx, by, e, func(tx *db.Tx, e *audit.Event) error {
		out = Unlocked{Customer: c}
		if err := s.room.catchUp(ctx, tx); err != nil {
			return err
		}
		_, number, exists, err := s.room.accountOf(ctx, tx, c)
		if err != nil {
			return err
		}
		if !exists {
			return errNoAccount
		}
		if number == "" {
			return errors.New("the number of the account does not open")
		}
		e.Customer, e.Personal = c, map[string]string{"reason": reason}
		devices, err := s.room.rows.devicesOf(ctx, tx, c)
		if err != nil {
			return err
		}
		now := s.clock.Now()
		sources := []string{""}
		for _, d := range devices {
			if d.status != revoked {
				sources = append(sources, d.jkt, d.jkt+resetLane)
			}
		}
		for _, source := range sources {
			keys := s.room.laneKeys(number, source)
			l, err := getLane(ctx, tx, keys)
			if err != nil {
				return err
			}
			if l == (lane{}) {
				continue
			}
			if l.isBlocked(now) {
				out.Blocked++
			}
			out.Failures += l.total
			l.reset()
			if err := putLane(ctx, tx, keys, l, now); err != nil {
				return err
			}
		}
		return nil
	})
	return out, err
}

// resetLane ends the name of the lane in which a device's one-time codes for a forgotten private code are
// counted.
const resetLane = " reset"
