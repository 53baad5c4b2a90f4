package identity

import (
	"context"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/identity/totp"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// What the events of second steps say was done.
const (
	ActionFactorList   = "identity.factor.list"
	ActionFactorAdd    = "identity.factor.add"    // its enrolment has begun
	ActionFactorEnrol  = "identity.factor.enrol"  // it has been proven, and counts
	ActionFactorRemove = "identity.factor.remove" //
	ActionFactorSMS    = "identity.factor.sms"    // codes by SMS were put off or on
)

// enrolFor is how long an enrolment waits for its proof.
const enrolFor = 10 * time.Minute

// maxFactors is how many second steps a customer may have beside SMS.
const maxFactors = 10

var (
	errFactorNotFound = problem.New(problem.NotFound, "factor-not-found", "You have no such second step, or its enrolment is over. Enrol it anew.")
	errFactorCode     = problem.New(problem.Unprocessable, "factor-not-proven", "This is not the code that the app shows now. Check the telephone's clock and type the next one.")
	errTooManyFactors = problem.New(problem.Forbidden, "too-many-factors", "You have as many second steps as are allowed. Remove one first.")
	errSMSNeeded      = problem.New(problem.Conflict, "sms-needed", "Codes by SMS are your only second step. Enrol a passkey or an authenticator app first.")
	errSMSOff         = problem.New(problem.Conflict, "last-factor", "Codes by SMS are off, and this is your last other second step. Put them on first.")
)

// Factor is a second step beside the code by SMS.
type Factor struct {
	ID, Kind, Status string
	Made, Used       time.Time // Used is zero when it never was
}

// Factors are a customer's second steps.
type Factors struct {
	All []Factor
	// SMS says whether codes are sent by SMS; Held until when they are not because the SIM was changed.
	SMS  bool
	Held time.Time
}

// inSession runs fn as a deed of the customer in whose session by acts. With fresh, the session must have
// begun with a login not long ago (ASVS 5.0 7.5.1). That the session and its device are still good is
// looked at inside the transaction.
func (i *Identity) inSession(ctx context.Context, by actor.Actor, action, resource string, fresh bool, fn func(tx *db.Tx, e *audit.Event, c customer.ID, now time.Time) error) error {
	c, err := caller(by)
	if err != nil {
		return err
	}
	return i.Trail.Do(ctx, by, audit.Event{Action: action, Resource: resource, Customer: c}, func(tx *db.Tx, e *audit.Event) error {
		now := i.Clock.Now()
		s, ok, err := i.rows.sessionByID(ctx, tx, c, by.Session)
		switch {
		case err != nil:
			return err
		case !ok || s.revoked.Valid || s.deviceStatus != authorised:
			return errSessionRevoked
		case fresh:
			if err := i.stepUp(ctx, tx, by); err != nil {
				return err
			}
		}
		return fn(tx, e, c, now)
	})
}

// Factors lists the second steps of the customer.
func (i *Identity) Factors(ctx context.Context, by actor.Actor) (out Factors, err error) {
	err = i.inSession(ctx, by, ActionFactorList, "factors", false, func(tx *db.Tx, _ *audit.Event, c customer.ID, now time.Time) error {
		out = Factors{All: []Factor{}}
		all, err := i.rows.factorsOf(ctx, tx, c)
		if err != nil {
			return err
		}
		for _, f := range all {
			if f.over(now) {
				continue
			}
			shown := Factor{ID: f.id, Kind: f.kind, Status: f.status, Made: clock.FromMicros(f.made)}
			if f.used > 0 {
				shown.Used = clock.FromMicros(f.used)
			}
			out.All = append(out.All, shown)
		}
		rule, err := i.rows.smsRuleOf(ctx, tx, c)
		if err != nil {
			return err
		}
		out.SMS = !rule.off
		if rule.held > clock.Micros(now) {
			out.Held = clock.FromMicros(rule.held)
		}
		return nil
	})
	return out, err
}

// over says that the enrolment was not ended in time.
func (f *factorRow) over(now time.Time) bool {
	return f.status == factorPending && now.Sub(clock.FromMicros(f.made)) > enrolFor
}

// startFactor stores a pending factor, and forgets those of the kind that wait in vain.
func (i *Identity) startFactor(ctx context.Context, tx *db.Tx, c customer.ID, kind, factorID string, state []byte, now time.Time) error {
	all, err := i.rows.factorsOf(ctx, tx, c)
	if err != nil {
		return err
	}
	n := 0
	for _, f := range all {
		if f.status == factorPending && (f.kind == kind || f.over(now)) {
			if err := deleteFactor(ctx, tx, f.id); err != nil {
				return err
			}
			continue
		}
		n++
	}
	if n >= maxFactors {
		return errTooManyFactors
	}
	f := factorRow{id: factorID, customer: c, kind: kind, status: factorPending, made: clock.Micros(now)}
	return i.saveFactor(ctx, tx, f, state)
}

// saveFactor seals state under the customer's key and stores the factor with it.
func (i *Identity) saveFactor(ctx context.Context, tx *db.Tx, f factorRow, state []byte) error {
	if err := i.Keys.Erased(ctx, tx, f.customer); err != nil {
		return err
	}
	ring, err := i.Keys.Customer(ctx, tx, f.customer)
	if err != nil {
		return err
	}
	f.sealed = ring.Seal(place("factor", f.customer, f.id), state)
	return i.rows.putFactor(ctx, tx, f)
}

// openFactor returns what a factor's row keeps sealed.
func (i *Identity) openFactor(ctx context.Context, tx *db.Tx, f factorRow) ([]byte, error) {
	return i.openOwn(ctx, tx, f.customer, place("factor", f.customer, f.id), f.sealed)
}

// pendingFactor finds the factor of an enrolment.
func (i *Identity) pendingFactor(ctx context.Context, tx *db.Tx, c customer.ID, kind, factorID string, now time.Time) (factorRow, error) {
	all, err := i.rows.factorsOf(ctx, tx, c)
	if err != nil {
		return factorRow{}, err
	}
	for _, f := range all {
		if f.id == factorID && f.kind == kind && f.status == factorPending && !f.over(now) {
			return f, nil
		}
	}
	return factorRow{}, errFactorNotFound
}

// activate has a factor count from now on, and tells the customer.
func (i *Identity) activate(ctx context.Context, tx *db.Tx, by actor.Actor, f factorRow, state []byte, now time.Time) error {
	f.status, f.made = factorActive, clock.Micros(now)
	if err := i.saveFactor(ctx, tx, f, state); err != nil {
		return err
	}
	return i.tell(ctx, tx, by, f.customer, NoticeFactorAdded, "", now)
}

// TOTPEnrolment is what an authenticator app needs to be set up.
type TOTPEnrolment struct {
	ID     string
	Secret secret.Value // base32, to be typed
	URI    secret.Value // to be shown as a QR code
}

// EnrolTOTP gives the customer a secret for an authenticator app. It counts once ConfirmTOTP has shown
// that the app has it.
func (i *Identity) EnrolTOTP(ctx context.Context, by actor.Actor) (out TOTPEnrolment, err error) {
	key := totp.NewSecret()
	out = TOTPEnrolment{id.New("fac"), secret.FromString(totp.Text(key)), secret.FromString(totp.URI(key, i.Brand))}
	err = i.inSession(ctx, by, ActionFactorAdd, "factor "+out.ID, true, func(tx *db.Tx, _ *audit.Event, c customer.ID, now time.Time) error {
		return i.startFactor(ctx, tx, c, factorTOTP, out.ID, key, now)
	})
	if err != nil {
		return TOTPEnrolment{}, err
	}
	return out, nil
}

// ConfirmTOTP ends the enrolment with a code that the app shows. The code is then used.
func (i *Identity) ConfirmTOTP(ctx context.Context, by actor.Actor, factorID string, code secret.Value) error {
	if !id.Valid("fac", factorID) {
		return errFactorNotFound
	}
	return i.inSession(ctx, by, ActionFactorEnrol, "factor "+factorID, true, func(tx *db.Tx, _ *audit.Event, c customer.ID, now time.Time) error {
		f, err := i.pendingFactor(ctx, tx, c, factorTOTP, factorID, now)
		if err != nil {
			return err
		}
		key, err := i.openFactor(ctx, tx, f)
		if err != nil {
			return err
		}
		step, ok, err := totp.Match(key, code.Reveal(), now, f.step)
		if err != nil {
			return err
		}
		if !ok {
			return errFactorCode
		}
		f.step = step
		return i.activate(ctx, tx, by, f, key, now)
	})
}

// RemoveFactor takes a second step away, and tells the customer. While codes by SMS are off the last one
// stays: nobody could log in without it.
func (i *Identity) RemoveFactor(ctx context.Context, by actor.Actor, factorID string) error {
	if !id.Valid("fac", factorID) {
		return errFactorNotFound
	}
	return i.inSession(ctx, by, ActionFactorRemove, "factor "+factorID, true, func(tx *db.Tx, _ *audit.Event, c customer.ID, now time.Time) error {
		all, err := i.rows.factorsOf(ctx, tx, c)
		if err != nil {
			return err
		}
		found, others := false, 0
		for _, f := range all {
			if f.id == factorID {
				found = true
			} else if f.status == factorActive {
				others++
			}
		}
		if !found {
			return errFactorNotFound
		}
		rule, err := i.rows.smsRuleOf(ctx, tx, c)
		if err != nil {
			return err
		}
		if rule.off && others == 0 {
			return errSMSOff
		}
		if err := deleteFactor(ctx, tx, factorID); err != nil {
			return err
		}
		return i.tell(ctx, tx, by, c, NoticeFactorRemoved, "", now)
	})
}

// SetSMS puts codes by SMS off or on. They can be off once there is another second step: SMS is a
// restricted authenticator (NIST SP 800-63B-4 section 3.1.3.3), and whoever has a better one may do without.
func (i *Identity) SetSMS(ctx context.Context, by actor.Actor, on bool) error {
	return i.inSession(ctx, by, ActionFactorSMS, "sms", true, func(tx *db.Tx, e *audit.Event, c customer.ID, now time.Time) error {
		rule, err := i.rows.smsRuleOf(ctx, tx, c)
		if err != nil {
			return err
		}
		e.Reason = "on"
		if !on {
			e.Reason = "off"
			active, err := i.activeFactors(ctx, tx, c, "")
			if err != nil {
				return err
			}
			if len(active) == 0 {
				return errSMSNeeded
			}
		}
		if rule.off == !on {
			return nil
		}
		rule.off = !on
		if err := i.rows.putSMSRule(ctx, tx, c, rule); err != nil {
			return err
		}
		return i.tell(ctx, tx, by, c, NoticeSMSChanged, "", now)
	})
}

// activeFactors returns the factors of the kind that count; all kinds when it is "".
func (i *Identity) activeFactors(ctx context.Context, tx *db.Tx, c customer.ID, kind string) (out []factorRow, err error) {
	all, err := i.rows.factorsOf(ctx, tx, c)
	for _, f := range all {
		if f.status == factorActive && (kind == "" || f.kind == kind) {
			out = append(out, f)
		}
	}
	return out, err
}
