package identity

import (
	"context"
	"encoding/hex"
	"errors"
	"regexp"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/problem"
)

// ActionRecoveryVouch is a member of staff saying that they have seen who somebody is.
const ActionRecoveryVouch = "identity.recovery.vouch"

// vouchesNeeded is how many members of staff must say so (ASVS 5.0 2.3.5), and vouchLasts for how long
// one's word stands.
const (
	vouchesNeeded = 2
	vouchLasts    = 24 * time.Hour
)

var (
	errNotStaff       = problem.New(problem.Forbidden, "staff-only", "Only staff may do this.")
	errOperatorName   = problem.New(problem.Unprocessable, "invalid-operator", "Say who you are: 2 to 32 small letters, digits, dots and hyphens, as in ada.lovelace.")
	errOperatorAgain  = problem.New(problem.Conflict, "same-operator", "You have vouched already. Another member of staff must do so too, who has seen the customer's papers themselves.")
	errDeviceApproved = problem.New(problem.Conflict, "device-authorised", "This device is authorised already.")
)

// Assist is what members of staff may do for customers who have lost what they log in with. It needs no
// running server. It opens nothing by itself: a device that staff let in has come with the private code
// and a code sent to the number, and a number that staff change waits out its day.
type Assist struct{ room *Identity }

// NewAssist returns an Assist. The options are those of New, of which it needs DB, Keys, Trail, Clock,
// Phone and Brand.
func NewAssist(o Options) Assist {
	if o.Clock == nil {
		o.Clock = clock.System
	}
	if o.Wake == nil {
		o.Wake = func(string) {}
	}
	if o.Brand == "" {
		o.Brand = defaultBrand
	}
	return Assist{&Identity{Options: o, rows: rows{tokenKeys{o.Keys}}}}
}

// Assisted is what came of it.
type Assisted struct {
	Customer customer.ID `json:"customer"`
	Vouched  int         `json:"vouched,omitempty"` // how many members of staff have vouched
	Done     bool        `json:"done"`              // enough have
	Due      time.Time   `json:"due,omitzero"`      // when a number changes
}

var operatorName = regexp.MustCompile(`^[a-z][a-z0-9.-]{1,31}$`)

// staff returns the actor of a member of staff: the account of the host, and the name that they give.
func staff(by actor.Actor, operator string) (actor.Actor, error) {
	if by.Kind != actor.System && by.Kind != actor.Staff || by.ID == "" {
		return by, errNotStaff
	}
	if !operatorName.MatchString(operator) {
		return by, errOperatorName
	}
	by.ID += "/" + operator
	return by, nil
}

// ApproveDevice lets a pending device in once two members of staff have vouched for whoever holds it. The
// customer is told at the first word already.
func (a Assist) ApproveDevice(ctx context.Context, by actor.Actor, operator, device string) (out Assisted, err error) {
	i := a.room
	if by, err = staff(by, operator); err != nil {
		return out, err
	}
	event := audit.Event{Action: ActionRecoveryVouch, Resource: "device"}
	if !id.Valid("dev", device) {
		return out, i.Trail.Deny(ctx, by, event, errDeviceNotFound)
	}
	event.Resource = "device " + device
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		now := i.Clock.Now()
		ok, err := none(tx.QueryRow(ctx, `SELECT customer_id FROM device WHERE id = $1`, device).Scan(&out.Customer))
		if err != nil {
			return err
		}
		if !ok {
			return errDeviceNotFound
		}
		e.Customer = out.Customer
		d, _, err := i.waitingDevice(ctx, tx, out.Customer, device, now)
		if errors.Is(err, errNotWaiting) {
			return errDeviceApproved
		}
		if err != nil {
			return err
		}
		if out.Vouched, err = i.vouch(ctx, tx, by, operator, out.Customer, "device "+device, now); err != nil {
			return err
		}
		if out.Done = out.Vouched >= vouchesNeeded; out.Done {
			// Whoever holds what the customer has lost may be in a session of theirs.
			if _, err := i.endSessions(ctx, tx, by, out.Customer, "", "recovered", now); err != nil {
				return err
			}
			return i.letIn(ctx, tx, by, d, "vouched-for", now)
		}
		return i.tell(ctx, tx, by, out.Customer, NoticeRecovery, device, now)
	})
	return out, err
}

// ChangeNumber begins a change of number once two members of staff have vouched. The old number is told,
// and the change waits a day, as when a customer asks for it.
func (a Assist) ChangeNumber(ctx context.Context, by actor.Actor, operator string, c customer.ID, number string) (out Assisted, err error) {
	i := a.room
	if by, err = staff(by, operator); err != nil {
		return out, err
	}
	e164, err := i.Phone.Parse(number)
	if err != nil {
		return out, errInvalidPhone
	}
	event := audit.Event{Action: ActionRecoveryVouch, Resource: "number", Customer: c, Personal: numberOf(e164)}
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		now := i.Clock.Now()
		out = Assisted{Customer: c}
		if _, _, exists, err := i.accountOf(ctx, tx, c); err != nil {
			return err
		} else if !exists {
			e.Personal = nil
			return errNoAccount
		}
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		index := i.phoneIndexes(e164)
		if _, taken, err := i.rows.accountByPhone(ctx, tx, index); err != nil {
			return err
		} else if taken {
			return errNumberOfAnother
		}
		out.Vouched, err = i.vouch(ctx, tx, by, operator, c, "number "+string(c)+" "+hex.EncodeToString(index[0].Value), now)
		if err != nil {
			return err
		}
		if out.Done = out.Vouched >= vouchesNeeded; out.Done {
			out.Due, err = i.holdNumber(ctx, tx, c, e164, now)
			return err
		}
		return i.tell(ctx, tx, by, c, NoticeRecovery, "", now)
	})
	return out, err
}

var errNumberOfAnother = problem.New(problem.Conflict, "number-taken", "This number is of another account.")

// LoseDevice shuts a device out at once for a customer who has called. One member of staff may: it takes
// something away and opens nothing.
func (a Assist) LoseDevice(ctx context.Context, by actor.Actor, operator, device string) (out Assisted, err error) {
	i := a.room
	if by, err = staff(by, operator); err != nil {
		return out, err
	}
	event := audit.Event{Action: ActionDeviceLost, Resource: "device"}
	if !id.Valid("dev", device) {
		return out, i.Trail.Deny(ctx, by, event, errDeviceNotFound)
	}
	event.Resource = "device " + device
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		ok, err := none(tx.QueryRow(ctx, `SELECT customer_id FROM device WHERE id = $1`, device).Scan(&out.Customer))
		if err != nil {
			return err
		}
		if !ok {
			return errDeviceNotFound
		}
		e.Customer, out.Done = out.Customer, true
		d, ok, err := i.rows.deviceByID(ctx, tx, out.Customer, device)
		if err != nil || !ok {
			return err
		}
		return i.lose(ctx, tx, by, d, i.Clock.Now())
	})
	return out, err
}

func vouchParts(subject, operator string, c customer.ID, expires int64) [][]byte {
	return [][]byte{[]byte("identity.vouch"), []byte(subject), []byte(operator), []byte(c), decimal(expires)}
}

// vouch writes a member of staff's word down, and returns how many have given theirs. When enough have, the
// words are used up.
func (i *Identity) vouch(ctx context.Context, tx *db.Tx, by actor.Actor, operator string, c customer.ID, subject string, now time.Time) (int, error) {
	type word struct {
		operator string
		expires  int64
		stamp    []byte
	}
	var words []word
	found, err := tx.Query(ctx, `SELECT operator, expires_at, stamp FROM vouch WHERE subject = $1 AND customer_id = $2 AND expires_at > $3`,
		subject, string(c), clock.Micros(now))
	if err != nil {
		return 0, err
	}
	defer found.Close()
	for found.Next() {
		var w word
		if err := found.Scan(&w.operator, &w.expires, &w.stamp); err != nil {
			return 0, err
		}
		words = append(words, w)
	}
	if err := found.Err(); err != nil {
		return 0, err
	}
	for _, w := range words {
		if err := i.rows.check(w.stamp, vouchParts(subject, w.operator, c, w.expires)); err != nil {
			return 0, err
		}
		if w.operator == operator {
			return 0, errOperatorAgain
		}
	}
	if len(words)+1 >= vouchesNeeded {
		_, err := tx.Exec(ctx, `DELETE FROM vouch WHERE subject = $1`, subject)
		return len(words) + 1, err
	}
	expires := clock.Micros(now.Add(vouchLasts))
	_, err = tx.Exec(ctx, `
		INSERT INTO vouch (subject, operator, customer_id, expires_at, stamp) VALUES ($1, $2, $3, $4, $5)
		ON CONFLICT (subject, operator) DO UPDATE SET expires_at = excluded.expires_at, stamp = excluded.stamp`,
		subject, operator, string(c), expires, i.rows.stamp(vouchParts(subject, operator, c, expires)))
	return len(words) + 1, err
}
