package identity

import (
	"context"
	"encoding/json"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// Started is a registration or a login that waits for its one-time code.
type Started struct {
	ID      string
	Expires time.Duration
	// Passkey is what a passkey has to answer, in WebAuthn's JSON, when that is the second step.
	Passkey   json.RawMessage
	challenge string
}

// StartRegistration sends a one-time code to the number. The answer is the same when the number has
// an account already; its owner is then told so by message, instead of the code.
func (i *Identity) StartRegistration(ctx context.Context, by actor.Actor, number string) (Started, error) {
	if by.Key == "" {
		return Started{}, errNotDevice
	}
	e164, err := i.Phone.Parse(number)
	if err != nil {
		return Started{}, errInvalidPhone
	}
	s := starter{class: registering, number: e164, key: by.Key, from: network(by.Address)}
	if err := i.admit(ctx, by, ActionRegistrationStart, s); err != nil {
		return Started{}, err
	}
	now := i.Clock.Now()
	var started string
	suppressed := because("message-quota")
	event := audit.Event{Action: ActionRegistrationStart}
	record := func(tx *db.Tx, e *audit.Event) error {
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		a, taken, err := i.rows.accountByPhone(ctx, tx, i.phoneIndexes(e164))
		if err != nil {
			return err
		}
		send, err := i.mayMessage(ctx, tx, s, true, now)
		if err != nil {
			return err
		}
		c := challenge{Phone: e164}
		// Only challenges of the same device make each other void, or strangers could void the codes
		// of whoever is registering.
		slot := i.slotKeys(purposeRegistration, e164, by.Key)
		switch {
		case taken:
			c.Reason = "known-number"
			e.Customer, e.Personal = a.customer, numberOf(e164)
		case !send:
			// A code that nobody was sent can only be guessed, and with it the guesses would not be
			// bounded by the number's quota.
			c.Reason = suppressed.Slug()
		}
		if !send {
			slot = nil // what was sent before stays good
		}
		var code string
		if started, code, err = i.newChallenge(ctx, tx, purposeRegistration, by.Key, slot, c, now); err != nil {
			return err
		}
		e.Resource = "registration " + started
		l := letter{To: e164, Text: i.codeText(code)}
		if taken {
			l.Text, l.Customer = i.knownText(), a.customer
		}
		if !send {
			l = letter{}
			e.Deny(suppressed)
		}
		return i.post(ctx, tx, l, now)
	}
	err = i.write(ctx, func() error { return i.Trail.Do(ctx, by, event, record) })
	if err != nil && !problem.Is(err, suppressed.Slug()) {
		return Started{}, err
	}
	i.metrics.done.WithLabelValues(ActionRegistrationStart).Inc()
	return Started{ID: started, Expires: CodeLifetime}, nil
}

// numberOf is the number in the personal part of an event, which is only ever sealed under the key of the
// customer who has that number. An event of nobody's does not hold it: nothing could erase it there.
func numberOf(e164 string) map[string]string { return map[string]string{"phone": e164} }

// Registered is a new customer with their first device.
type Registered struct {
	Customer customer.ID
	Device   string
}

// CompleteRegistration makes the customer, if the code is the one that was sent and the number has no
// account. The private code is judged first, so that choosing a better one costs no try.
func (i *Identity) CompleteRegistration(ctx context.Context, by actor.Actor, registration string, code, private secret.Value, deviceName string) (Registered, error) {
	return i.CompleteRegistrationWith(ctx, by, registration, private, Answer{Code: code, DeviceName: deviceName})
}

// CompleteRegistrationWith is CompleteRegistration with what vouches for the device's key.
func (i *Identity) CompleteRegistrationWith(ctx context.Context, by actor.Actor, registration string, private secret.Value, answered Answer) (Registered, error) {
	code, deviceName := answered.Code, answered.DeviceName
	if by.Key == "" {
		return Registered{}, errNotDevice
	}
	event := audit.Event{Action: ActionRegistrationComplete}
	var row challengeRow
	var state challenge
	found, err := i.findChallenge(ctx, registration, purposeRegistration, &row)
	if err != nil {
		return Registered{}, err
	}
	mine := found && row.jkt == by.Key
	if mine {
		event.Resource = "registration " + row.id
		if state, err = i.openChallenge(row); err != nil {
			return Registered{}, err
		}
	}
	if bad := weak(i.judge(private.Reveal(), state.Phone, i.MinCodeLength)); bad != nil {
		return Registered{}, i.denied(ctx, by, event, bad.Slug(), row.idIf(mine), bad)
	}
	now := i.Clock.Now()
	if reason := row.dead(found, by.Key, now); reason != "" {
		return Registered{}, i.denied(ctx, by, event, reason, "", errRegistrationFailed)
	}
	level, err := i.attested(by.Key, answered.Attestation)
	if err == nil && level == "" && i.Attest.Policy == AttestRequired {
		err = errAttestationRequired
	}
	if p := problem.Of(err); p != nil {
		return Registered{}, i.denied(ctx, by, event, p.Slug(), row.id, p)
	}

	waiting := ctx
	ctx, cancel := settle(ctx)
	defer cancel()

	// The try is counted and committed before anything depends on it.
	var reason string
	var refused *problem.Problem
	err = i.DB.Update(ctx, func(tx *db.Tx) error {
		reason, refused = "", nil
		row, found, err := challengeByID(ctx, tx, registration, purposeRegistration)
		if err != nil {
			return err
		}
		if reason = row.dead(found, by.Key, now); reason != "" {
			return nil
		}
		if err := setTries(ctx, tx, row.id, row.tries-1); err != nil {
			return err
		}
		right, err := i.codeMatches(row, by.Key, code)
		switch {
		case err != nil:
			return err
		case row.superseded:
			reason = "superseded-code"
		case state.Reason != "":
			reason = state.Reason
		case !right:
			reason = "wrong-one-time-code"
		}
		if reason == "" {
			return nil
		}
		refused = errRegistrationFailed
		e := event
		e.Outcome, e.Reason = audit.Denied, reason
		return i.Trail.Record(ctx, tx, by, e)
	})
	switch {
	case err != nil:
		return Registered{}, err
	case refused != nil:
		i.metrics.refused.WithLabelValues(event.Action, reason).Inc()
		return Registered{}, refused
	case reason != "":
		return Registered{}, i.denied(ctx, by, event, reason, "", errRegistrationFailed)
	}

	// Only who holds the telephone gets here, so only they cost a hash, and they need not share their
	// network's places with others. Being refused for lack of a place must not cost a try.
	leave, err := i.hasher.enter(waiting, guest{})
	if err != nil {
		if failed := i.giveBack(waiting, registration); failed != nil {
			return Registered{}, failed
		}
		return Registered{}, err
	}
	defer leave()
	ctx, cancel = settle(waiting) // the queue has taken its time
	defer cancel()
	hash, err := i.hasher.make(private)
	if err != nil {
		return Registered{}, err
	}
	var out Registered
	lost := because("known-number")
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		out = Registered{customer.NewID(), id.New("dev")}
		e.Customer = out.Customer
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		ok, err := useChallenge(ctx, tx, registration)
		if err != nil {
			return err
		}
		if !ok {
			return because("used-code")
		}
		ring, err := i.Keys.CreateCustomer(ctx, tx, by, out.Customer)
		if err != nil {
			return err
		}
		sealed := ring.Seal(place("account", out.Customer, "phone"), []byte(state.Phone))
		a := account{out.Customer, hash}
		if ok, err = i.rows.insertAccount(ctx, tx, a, i.phoneIndexes(state.Phone), sealed, now); err != nil {
			return err
		}
		if !ok {
			return lost
		}
		us := clock.Micros(now)
		e.Resource, e.Personal = "device "+out.Device, numberOf(state.Phone)
		d := deviceRow{
			id: out.Device, customer: out.Customer, jkt: by.Key, status: authorised, added: us, seen: us,
			name: ring.Seal(place("device", out.Customer, out.Device), []byte(cleanName(deviceName))),
		}
		if err := i.rows.insertDevice(ctx, tx, d); err != nil {
			return err
		}
		return i.vouched(ctx, tx, d, level)
	})
	if p := problem.Of(err); p != nil && p.Kind() == problem.Unauthenticated {
		i.metrics.refused.WithLabelValues(event.Action, p.Slug()).Inc()
		return Registered{}, errRegistrationFailed
	}
	if err != nil {
		return Registered{}, err
	}
	i.metrics.done.WithLabelValues(event.Action).Inc()
	return out, nil
}

// giveBack undoes the count of a try.
func (i *Identity) giveBack(ctx context.Context, challengeID string) error {
	ctx, cancel := settle(ctx)
	defer cancel()
	return i.DB.Update(ctx, func(tx *db.Tx) error {
		row, found, err := challengeByID(ctx, tx, challengeID, purposeRegistration)
		if err != nil || !found || row.superseded {
			return err
		}
		return setTries(ctx, tx, row.id, min(row.tries+1, codeTries))
	})
}

var errNotDevice = problem.New(problem.Unauthenticated, "invalid-dpop-proof", "Prove the device's key with a DPoP proof.")

// findChallenge looks a challenge up, when its id could be one.
func (i *Identity) findChallenge(ctx context.Context, challengeID, purpose string, row *challengeRow) (found bool, err error) {
	if !id.Valid(purpose, challengeID) {
		return false, nil
	}
	err = i.DB.View(ctx, func(tx *db.Tx) (err error) {
		*row, found, err = challengeByID(ctx, tx, challengeID, purpose)
		return err
	})
	return found, err
}

// dead says why a challenge cannot be tried by the device jkt, or "". It looks at nothing that
// depends on the account, the number or the private code, so that a quick refusal tells nothing.
func (c *challengeRow) dead(found bool, jkt string, now time.Time) string {
	switch {
	case !found:
		return "unknown-challenge"
	case c.jkt != jkt:
		return "other-device"
	case clock.Micros(now) >= c.expires:
		return "expired-code"
	case c.tries <= 0:
		return "used-code"
	}
	return ""
}

func (c *challengeRow) idIf(mine bool) string {
	if mine {
		return c.id
	}
	return ""
}

// maxDeviceName is in characters.
const maxDeviceName = 64

// cleanName makes a device's name fit to be shown: no control or invisible characters, no line
// breaks, no more than maxDeviceName characters, never empty.
func cleanName(s string) string {
	s = strings.Join(strings.Fields(strings.Map(func(r rune) rune {
		if r == utf8.RuneError || unicode.Is(unicode.Cf, r) {
			return -1
		}
		if unicode.IsControl(r) || unicode.IsSpace(r) {
			return ' '
		}
		return r
	}, s)), " ")
	if r := []rune(s); len(r) > maxDeviceName {
		s = strings.TrimSpace(string(r[:maxDeviceName]))
	}
	if s == "" {
		return "Unnamed device"
	}
	return s
}
