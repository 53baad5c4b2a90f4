package identity

import (
	"context"
	"fmt"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/identity/sms"
	"strongroom/internal/keyring/seal"
)

// ActionNoticeList is a customer's look at what they were told.
const ActionNoticeList = "identity.notice.list"

// What a customer is told of, on the number and on their devices (ASVS 5.0 6.3.7).
const (
	NoticeDeviceNew      = "device-new"
	NoticeDeviceApproved = "device-approved"
	NoticeDeviceRefused  = "device-refused" // its number was guessed wrong too often
	NoticeDeviceLost     = "device-lost"
	NoticeFactorAdded    = "factor-added"
	NoticeFactorRemoved  = "factor-removed"
	NoticeSMSChanged     = "sms-changed"
	NoticeSIMChanged     = "sim-changed"
	NoticeNumberPending  = "number-change-pending"
	NoticeNumberChanged  = "number-changed"
	NoticeNumberKept     = "number-change-cancelled"
	NoticeRecovery       = "recovery"
)

// noticeTexts are the messages to the number. A notice without one is shown on devices alone: because the
// number is not to be trusted, or is told in words of its own.
var noticeTexts = map[string]string{
	NoticeDeviceNew:      "A new device asks to use your %s account. If it is not yours, approve nothing and change your private code.",
	NoticeDeviceApproved: "A new device may now use your %s account. If it is not yours, report it as lost at once.",
	NoticeDeviceRefused:  "A new device was refused for your %s account: its number was typed wrong too often. If it was not you, change your private code.",
	NoticeDeviceLost:     "A device of your %s account was reported lost and can do nothing any more.",
	NoticeFactorAdded:    "A second step was added to your %s account. If it was not you, remove it and change your private code.",
	NoticeFactorRemoved:  "A second step was removed from your %s account. If it was not you, change your private code.",
	NoticeSMSChanged:     "Codes by SMS were put on or off for your %s account. If it was not you, change your private code.",
	NoticeNumberKept:     "Your %s account keeps this number: its change was cancelled.",
	NoticeRecovery:       "Somebody has asked our staff for help to get back into your %s account. If it was not you, call us at once.",
}

// noticesKept is how long a notice is shown, and noticesShown how many are.
const (
	noticesKept  = 90 * 24 * time.Hour
	noticesShown = 50
)

// noticeDelivery is how long a message with a notice may wait for the gateway.
const noticeDelivery = 24 * time.Hour

// tell notes that something has happened to the account: a notice for all devices, and a message to the
// number. By is who did it.
func (i *Identity) tell(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, kind, device string, now time.Time) error {
	if err := insertNotice(ctx, tx, c, kind, device, now); err != nil {
		return err
	}
	text, ok := noticeTexts[kind]
	if !ok {
		return nil
	}
	_, number, exists, err := i.accountOf(ctx, tx, c)
	if err != nil || !exists || number == "" {
		return err
	}
	return i.postNotice(ctx, tx, c, number, fmt.Sprintf(text, i.Brand), now)
}

// postNotice sends a message that is no code, within a bound of its own: whoever adds and removes in turns
// must not have the operator pay for it.
func (i *Identity) postNotice(ctx context.Context, tx *db.Tx, c customer.ID, number, text string, now time.Time) error {
	if err := i.catchUp(ctx, tx); err != nil {
		return err
	}
	keys, rate := i.quotaKeys("notices", string(c)), Rate{20, 24 * time.Hour}
	count, err := getCounter(ctx, tx, keys, now, rate.Per)
	if err != nil {
		return err
	}
	room := count.add(now, rate, 1)
	if err := putCounter(ctx, tx, keys, count, rate.Per); err != nil || !room {
		return err
	}
	return i.postFor(ctx, tx, letter{To: number, Text: text, Customer: c, Known: true}, noticeDelivery, now)
}

// openOwn opens what is sealed under a customer's key.
func (i *Identity) openOwn(ctx context.Context, tx *db.Tx, c customer.ID, p seal.Place, sealed []byte) ([]byte, error) {
	ring, err := i.Keys.Customer(ctx, tx, c)
	if err != nil {
		return nil, err
	}
	if ring, err = i.Keys.Holding(ctx, tx, c, ring, sealed); err != nil {
		return nil, err
	}
	return ring.Open(p, sealed)
}

// Notice is something that a customer is told.
type Notice struct {
	ID, Kind, Device string
	Made             time.Time
}

// Notices lists what has happened to the customer's account in the last 90 days, newest first.
func (i *Identity) Notices(ctx context.Context, by actor.Actor) (out []Notice, err error) {
	err = i.inSession(ctx, by, ActionNoticeList, "notices", false, func(tx *db.Tx, _ *audit.Event, c customer.ID, now time.Time) error {
		out, err = noticesOf(ctx, tx, c, now.Add(-noticesKept))
		return err
	})
	return out, err
}

func insertNotice(ctx context.Context, tx *db.Tx, c customer.ID, kind, device string, now time.Time) error {
	_, err := tx.Exec(ctx, `INSERT INTO notice (id, customer_id, kind, device_id, made_at) VALUES ($1, $2, $3, $4, $5)`,
		id.New("not"), string(c), kind, device, clock.Micros(now))
	return err
}

func noticesOf(ctx context.Context, tx *db.Tx, c customer.ID, since time.Time) ([]Notice, error) {
	rows, err := tx.Query(ctx, `
		SELECT id, kind, device_id, made_at FROM notice WHERE customer_id = $1 AND made_at >= $2 ORDER BY id DESC LIMIT $3`,
		string(c), clock.Micros(since), int64(noticesShown))
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	out := []Notice{}
	for rows.Next() {
		var n Notice
		var made int64
		if err := rows.Scan(&n.ID, &n.Kind, &n.Device, &made); err != nil {
			return nil, err
		}
		n.Made = clock.FromMicros(made)
		out = append(out, n)
	}
	return out, rows.Err()
}

// SIMs tells when the SIM of a number was last changed, as the networks know it (CAMARA SIM Swap, or what
// a gateway offers). It returns the zero time when it was not, or nobody knows. It must end with its
// context, and its errors never hold the number.
type SIMs interface {
	ChangedAt(ctx context.Context, number string) (time.Time, error)
}

// SIMHold is for how long after a change of SIM no codes go to the number.
const SIMHold = 7 * 24 * time.Hour

// simChanged reports whether the letter is a code for a number whose SIM was changed a short while ago. It
// is asked when the message leaves, long after the answer to whoever wants to log in, so nobody learns from
// it; a customer who can be reached on a device is told. A look-up that fails keeps the message back: its
// sender comes back with it until it is out of date.
func (i *Identity) simChanged(ctx context.Context, l letter, message string) (bool, error) {
	if i.SIMs == nil || !l.Login || l.Customer == "" {
		return false, nil
	}
	asking, cancel := context.WithTimeout(ctx, deliveryTime/2)
	at, err := i.SIMs.ChangedAt(asking, l.To)
	cancel()
	i.answering(ctx, findingSIMs, "Changes of SIMs cannot be looked up: no codes are sent.", err)
	if err != nil {
		return false, fmt.Errorf("%w: looking up the SIM: %w", sms.ErrLater, err)
	}
	now := i.Clock.Now()
	until := at.Add(SIMHold)
	if at.IsZero() || !until.After(now) {
		return false, nil
	}
	settled, cancel := settle(ctx)
	defer cancel()
	by := actor.OfSystem("job:" + JobMessages)
	e := audit.Event{Action: ActionMessageSend, Resource: "message " + message, Customer: l.Customer, Outcome: audit.Denied, Reason: "sim-changed"}
	return true, i.DB.Update(settled, func(tx *db.Tx) error {
		rule, err := i.rows.smsRuleOf(settled, tx, l.Customer)
		if err != nil {
			return err
		}
		if held := clock.Micros(until); rule.held < held {
			rule.held = held
			if err := i.rows.putSMSRule(settled, tx, l.Customer, rule); err != nil {
				return err
			}
			if err := insertNotice(settled, tx, l.Customer, NoticeSIMChanged, "", now); err != nil {
				return err
			}
		}
		if err := deleteOutbox(settled, tx, message); err != nil {
			return err
		}
		return i.Trail.Record(settled, tx, by, e)
	})
}
