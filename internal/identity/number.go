package identity

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"fmt"
	"slices"
	"strings"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/keyring"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// What the events of a change of number say was done.
const (
	ActionNumberStart    = "identity.number.start"
	ActionNumberComplete = "identity.number.complete" // the new number is proven, and its day begins
	ActionNumberCancel   = "identity.number.cancel"
	ActionNumberChange   = "identity.number.change"
)

// purposeNumber is of the challenges of a change of number.
const purposeNumber = "num"

// numberHold is how long a change of number waits, for the old number's owner to object.
const numberHold = 24 * time.Hour

var (
	errNumberFailed   = problem.New(problem.Unprocessable, "number-change-failed", "The number cannot be changed with this code. Start again.")
	errNoNumberChange = problem.New(problem.NotFound, "number-change-not-found", "No change of number is under way, or the code is another's.")
)

// numberChange is a change that waits out its day.
type numberChange struct {
	customer   customer.ID
	id         string
	due        int64
	phoneIndex []byte
	phone      []byte // sealed
	cancel     []byte
}

func numberParts(n *numberChange) [][]byte {
	return [][]byte{[]byte("identity.number-change"), []byte(n.customer), []byte(n.id), decimal(n.due), n.phoneIndex, n.cancel}
}

const numberColumns = `customer_id, id, due_at, phone_index, phone, cancel_hash, stamp`

func (r rows) scanNumber(row interface{ Scan(...any) error }) (n numberChange, ok bool, err error) {
	var stamp []byte
	ok, err = none(row.Scan(&n.customer, &n.id, &n.due, &n.phoneIndex, &n.phone, &n.cancel, &stamp))
	if ok {
		err = r.check(stamp, numberParts(&n))
	}
	return n, ok, err
}

func (r rows) numberOf(ctx context.Context, tx *db.Tx, c customer.ID) (numberChange, bool, error) {
	return r.scanNumber(tx.QueryRow(ctx, `SELECT `+numberColumns+` FROM number_change WHERE customer_id = $1`, string(c)))
}

func (r rows) numberByCancel(ctx context.Context, tx *db.Tx, hash []byte) (numberChange, bool, error) {
	return r.scanNumber(tx.QueryRow(ctx, `SELECT `+numberColumns+` FROM number_change WHERE cancel_hash = $1`, hash))
}

func (r rows) putNumber(ctx context.Context, tx *db.Tx, n numberChange) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO number_change (customer_id, id, due_at, phone_index, phone, cancel_hash, stamp) VALUES ($1, $2, $3, $4, $5, $6, $7)
		ON CONFLICT (customer_id) DO UPDATE SET id = excluded.id, due_at = excluded.due_at, phone_index = excluded.phone_index,
			phone = excluded.phone, cancel_hash = excluded.cancel_hash, stamp = excluded.stamp`,
		string(n.customer), n.id, n.due, n.phoneIndex, n.phone, n.cancel, r.stamp(numberParts(&n)))
	return err
}

func deleteNumber(ctx context.Context, tx *db.Tx, c customer.ID) error {
	_, err := tx.Exec(ctx, `DELETE FROM number_change WHERE customer_id = $1`, string(c))
	return err
}

// StartNumberChange sends a one-time code to the number that shall be the customer's. It needs a fresh
// login. As with a registration, the answer is the same when the number has an account.
func (i *Identity) StartNumberChange(ctx context.Context, by actor.Actor, number string) (Started, error) {
	e164, err := i.Phone.Parse(number)
	if err != nil {
		return Started{}, errInvalidPhone
	}
	s := starter{class: registering, number: e164, key: by.Key, from: network(by.Address)}
	if _, err := caller(by); err != nil {
		return Started{}, err
	}
	if err := i.admit(ctx, by, ActionNumberStart, s); err != nil {
		return Started{}, err
	}
	var started string
	err = i.write(ctx, func() error {
		return i.inSession(ctx, by, ActionNumberStart, "number", true, func(tx *db.Tx, e *audit.Event, c customer.ID, now time.Time) error {
			if err := i.catchUp(ctx, tx); err != nil {
				return err
			}
			_, taken, err := i.rows.accountByPhone(ctx, tx, i.phoneIndexes(e164))
			if err != nil {
				return err
			}
			send, err := i.mayMessage(ctx, tx, s, true, now)
			if err != nil {
				return err
			}
			state, slot := challenge{Customer: c, Phone: e164}, i.slotKeys(purposeNumber, string(c))
			l := letter{To: e164, Customer: c}
			switch {
			case taken:
				state.Reason = "known-number"
			case !send:
				state.Reason, slot = "message-quota", nil
			}
			var code string
			if started, code, err = i.newChallenge(ctx, tx, purposeNumber, by.Key, slot, state, now); err != nil {
				return err
			}
			e.Resource = "number-change " + started
			if l.Text = i.codeText(code); taken {
				l.Text = i.knownText()
			}
			if !send {
				l = letter{}
			}
			return i.post(ctx, tx, l, now)
		})
	})
	if err != nil {
		return Started{}, err
	}
	return Started{ID: started, Expires: CodeLifetime}, nil
}

// CompleteNumberChange proves the new number with the code that was sent to it. It becomes the customer's
// a day later; until then the old number's owner, who is told, or any of the customer's devices may
// cancel. It returns when it will.
func (i *Identity) CompleteNumberChange(ctx context.Context, by actor.Actor, change string, code secret.Value) (due time.Time, err error) {
	if !id.Valid(purposeNumber, change) {
		return due, errNumberFailed
	}
	err = i.inSession(ctx, by, ActionNumberComplete, "number-change "+change, true, func(tx *db.Tx, e *audit.Event, c customer.ID, now time.Time) error {
		refuse := func(reason string) error {
			e.Deny(errNumberFailed.Because(because(reason)))
			return nil
		}
		row, found, err := challengeByID(ctx, tx, change, purposeNumber)
		if err != nil {
			return err
		}
		if reason := row.dead(found, by.Key, now); reason != "" {
			return refuse(reason)
		}
		state, err := i.openChallenge(row)
		if err != nil {
			return err
		}
		if err := setTries(ctx, tx, row.id, row.tries-1); err != nil {
			return err
		}
		right, err := i.codeMatches(row, by.Key, code)
		switch {
		case err != nil:
			return err
		case state.Customer != c:
			return refuse("other-customer")
		case row.superseded:
			return refuse("superseded-code")
		case state.Reason != "":
			return refuse(state.Reason)
		case !right:
			return refuse("wrong-one-time-code")
		}
		if _, err := useChallenge(ctx, tx, row.id); err != nil {
			return err
		}
		e.Personal = numberOf(state.Phone)
		due, err = i.holdNumber(ctx, tx, c, state.Phone, now)
		return err
	})
	return due, err
}

// holdNumber begins the day that a change of number waits, and tells the old number how to cancel it.
func (i *Identity) holdNumber(ctx context.Context, tx *db.Tx, c customer.ID, e164 string, now time.Time) (time.Time, error) {
	if err := i.Keys.Erased(ctx, tx, c); err != nil {
		return time.Time{}, err
	}
	ring, err := i.Keys.Customer(ctx, tx, c)
	if err != nil {
		return time.Time{}, err
	}
	if err := i.catchUp(ctx, tx); err != nil {
		return time.Time{}, err
	}
	cancel := newCancelCode()
	n := numberChange{
		customer: c, id: id.New(purposeNumber), due: clock.Micros(now.Add(numberHold)), phoneIndex: i.phoneIndexes(e164)[0].Value,
		phone: ring.Seal(place("number_change", c, "phone"), []byte(e164)), cancel: cancelHash(cancel),
	}
	if err := i.rows.putNumber(ctx, tx, n); err != nil {
		return time.Time{}, err
	}
	if err := insertNotice(ctx, tx, c, NoticeNumberPending, "", now); err != nil {
		return time.Time{}, err
	}
	_, old, exists, err := i.accountOf(ctx, tx, c)
	if err != nil {
		return time.Time{}, err
	}
	if exists && old != "" {
		how := "in the app with the code " + cancel
		if i.CancelURL != "" {
			how = "at " + i.CancelURL + cancel
		}
		text := fmt.Sprintf("In 24 hours your %s account moves to another number. If it was not you, cancel %s", i.Brand, how)
		if err := i.postNotice(ctx, tx, c, old, text, now); err != nil {
			return time.Time{}, err
		}
	}
	return clock.FromMicros(n.due), nil
}

// cancelEncoding has no letters that are taken for digits.
var cancelEncoding = base32.NewEncoding("0123456789ABCDEFGHJKMNPQRSTVWXYZ").WithPadding(base32.NoPadding)

// newCancelCode returns 80 random bits, too many to guess, in 16 characters.
func newCancelCode() string {
	var raw [10]byte
	rand.Read(raw[:])
	return cancelEncoding.EncodeToString(raw[:])
}

func cancelHash(code string) []byte {
	sum := sha256.Sum256([]byte("identity.cancel-number\x00" + strings.ToUpper(strings.TrimSpace(code))))
	return sum[:]
}

// CancelNumberChange keeps the old number. Any session of the customer will do: nothing is lost by it.
func (i *Identity) CancelNumberChange(ctx context.Context, by actor.Actor) error {
	return i.inSession(ctx, by, ActionNumberCancel, "number-change", false, func(tx *db.Tx, e *audit.Event, c customer.ID, now time.Time) error {
		n, ok, err := i.rows.numberOf(ctx, tx, c)
		if err != nil {
			return err
		}
		if !ok {
			return errNoNumberChange
		}
		return i.keepNumber(ctx, tx, by, n, e, now)
	})
}

// CancelNumberByCode is CancelNumberChange for whoever holds the code that was sent to the old number, on
// a device that need not be the customer's.
func (i *Identity) CancelNumberByCode(ctx context.Context, by actor.Actor, code secret.Value) error {
	if by.Key == "" {
		return errNotDevice
	}
	event, hash := audit.Event{Action: ActionNumberCancel, Resource: "number-change"}, cancelHash(string(code.Reveal()))
	var n numberChange
	var ok bool
	find := func(tx *db.Tx) (err error) {
		n, ok, err = i.rows.numberByCancel(ctx, tx, hash)
		return err
	}
	if err := i.DB.View(ctx, find); err != nil {
		return err
	}
	if !ok {
		return i.denied(ctx, by, event, "unknown-code", "", errNoNumberChange)
	}
	event.Customer = n.customer
	return i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		if err := find(tx); err != nil {
			return err
		}
		if !ok {
			return errNoNumberChange
		}
		e.Reason = "code"
		return i.keepNumber(ctx, tx, by, n, e, i.Clock.Now())
	})
}

func (i *Identity) keepNumber(ctx context.Context, tx *db.Tx, by actor.Actor, n numberChange, e *audit.Event, now time.Time) error {
	e.Resource = "number-change " + n.id
	if err := deleteNumber(ctx, tx, n.customer); err != nil {
		return err
	}
	return i.tell(ctx, tx, by, n.customer, NoticeNumberKept, "", now)
}

// changeNumbers makes the changes whose day is over.
func (i *Identity) changeNumbers(ctx context.Context) error {
	now := i.Clock.Now()
	var due []customer.ID
	err := i.DB.View(ctx, func(tx *db.Tx) error {
		due = nil
		found, err := tx.Query(ctx, `SELECT customer_id FROM number_change WHERE due_at <= $1 ORDER BY due_at LIMIT 100`, clock.Micros(now))
		if err != nil {
			return err
		}
		defer found.Close()
		for found.Next() {
			var c customer.ID
			if err := found.Scan(&c); err != nil {
				return err
			}
			due = append(due, c)
		}
		return found.Err()
	})
	if err != nil {
		return err
	}
	by := actor.OfSystem("job:" + JobNumbers)
	for _, c := range due {
		event := audit.Event{Action: ActionNumberChange, Resource: "number-change", Customer: c}
		err := i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error { return i.changeNumber(ctx, tx, by, c, e, now) })
		if err != nil && !problem.Is(err, "number-taken") && !problem.Is(err, "other-number") {
			return fmt.Errorf("changing a number: %w", err)
		}
	}
	return nil
}

// changeNumber makes one change. A number that somebody has registered meanwhile stays theirs.
func (i *Identity) changeNumber(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, e *audit.Event, now time.Time) error {
	n, ok, err := i.rows.numberOf(ctx, tx, c)
	if err != nil || !ok || n.due > clock.Micros(now) {
		return err
	}
	e.Resource = "number-change " + n.id
	if err := deleteNumber(ctx, tx, c); err != nil {
		return err
	}
	fresh, err := i.openOwn(ctx, tx, c, place("number_change", c, "phone"), n.phone)
	if err != nil {
		return err
	}
	if err := i.catchUp(ctx, tx); err != nil {
		return err
	}
	indexes := i.phoneIndexes(string(fresh))
	// The index is what the stamp vouches for. That of a key which was destroyed meanwhile vouches for nothing.
	if !slices.ContainsFunc(indexes, func(b keyring.Blind) bool { return bytes.Equal(b.Value, n.phoneIndex) }) {
		e.Deny(because("other-number"))
		return i.tell(ctx, tx, by, c, NoticeNumberKept, "", now)
	}
	if _, taken, err := i.rows.accountByPhone(ctx, tx, indexes); err != nil {
		return err
	} else if taken {
		e.Deny(because("number-taken"))
		return i.tell(ctx, tx, by, c, NoticeNumberKept, "", now)
	}
	_, old, exists, err := i.accountOf(ctx, tx, c)
	if err != nil || !exists {
		return err
	}
	_, a, err := i.rows.accountOf(ctx, tx, c)
	if err != nil {
		return err
	}
	ring, err := i.Keys.Customer(ctx, tx, c)
	if err != nil {
		return err
	}
	_, err = tx.Exec(ctx, `UPDATE account SET phone_index = $1, index_version = $2, phone = $3, stamp = $4 WHERE customer_id = $5`,
		indexes[0].Value, int64(indexes[0].Version), ring.Seal(place("account", c, "phone"), fresh), i.rows.stamp(accountParts(c, indexes[0].Value, a.code)), string(c))
	if err != nil {
		return err
	}
	if err := i.moveLanes(ctx, tx, c, old, string(fresh), now); err != nil {
		return err
	}
	if _, err := i.endSessions(ctx, tx, by, c, "", "number-changed", now); err != nil {
		return err
	}
	// The hold was of the old number's SIM.
	rule, err := i.rows.smsRuleOf(ctx, tx, c)
	if err == nil && rule.held > 0 {
		rule.held = 0
		err = i.rows.putSMSRule(ctx, tx, c, rule)
	}
	if err != nil {
		return err
	}
	if err := insertNotice(ctx, tx, c, NoticeNumberChanged, "", now); err != nil {
		return err
	}
	text := fmt.Sprintf("Your %s account has moved to another number. Codes come there from now on. If it was not you, call us at once.", i.Brand)
	if old != "" {
		if err := i.postNotice(ctx, tx, c, old, text, now); err != nil {
			return err
		}
	}
	return i.postNotice(ctx, tx, c, string(fresh), fmt.Sprintf("This is now the number of your %s account.", i.Brand), now)
}

// moveLanes takes the counts of failures along, which are named by the number: a new number is no way out
// of a lock-out.
func (i *Identity) moveLanes(ctx context.Context, tx *db.Tx, c customer.ID, from, to string, now time.Time) error {
	if from == "" {
		return nil // a number that does not open names no lanes
	}
	sources, err := deviceKeys(ctx, tx, c)
	if err != nil {
		return err
	}
	for _, source := range append(sources, "") {
		keys := i.laneKeys(from, source)
		l, err := getLane(ctx, tx, keys)
		if err != nil {
			return err
		}
		if l == (lane{older: l.older}) {
			continue
		}
		in, args := among(keys, 1)
		if _, err := tx.Exec(ctx, `DELETE FROM throttle WHERE lane IN (`+in+`)`, args...); err != nil {
			return err
		}
		l.older = true // whatever the new number has under older names goes
		if err := putLane(ctx, tx, i.laneKeys(to, source), l, now); err != nil {
			return err
		}
	}
	return nil
}
