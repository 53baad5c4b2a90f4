package identity

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/identity/passcode"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// What is done with private codes.
const (
	ActionCodeChange        = "identity.private-code.change"
	ActionCodeResetStart    = "identity.private-code.reset-start"
	ActionCodeResetComplete = "identity.private-code.reset-complete" // of a step: it begins the hold, or sets the code
	ActionCodeResetCancel   = "identity.private-code.reset-cancel"
)

// Profiles knows what customers' profiles hold.
type Profiles interface {
	// BirthDate returns the customer's birth date as 2006-01-02, or "" when it is not known.
	BirthDate(ctx context.Context, by actor.Actor, c customer.ID) (string, error)
}

const (
	// resetWindow is how long a new code may be chosen once the hold is over.
	resetWindow  = 7 * 24 * time.Hour
	purposeReset = "rst"
)

// codeChanges bounds how often a session may try to change the private code; each try is hashed.
var codeChanges = Rate{10, time.Hour}

var (
	errWrongCode   = problem.New(problem.Forbidden, "wrong-private-code", "The current private code is not right.")
	errCodeLocked  = problem.New(problem.TooMany, "locked-out", "There were too many wrong codes from this device. Try again later.")
	errSameCode    = problem.New(problem.Unprocessable, "same-private-code", "The new private code is the current one. Choose another.")
	errResetFailed = problem.New(problem.Unauthenticated, "reset-failed", "The private code cannot be reset. Start again.")
)

// weak is the problem of a private code with that weakness, or nil.
func weak(w passcode.Weakness) *problem.Problem {
	if w == "" {
		return nil
	}
	return problem.New(problem.Unprocessable, "weak-private-code", "%s", w.Explain()).With("reason", string(w))
}

// judgeBirth says whether a private code holds the customer's birth date, as far as that is known.
func (i *Identity) judgeBirth(ctx context.Context, by actor.Actor, c customer.ID, private secret.Value) (*problem.Problem, error) {
	if i.Profiles == nil {
		return nil, nil
	}
	born, err := i.Profiles.BirthDate(ctx, by, c)
	if err != nil {
		return nil, err
	}
	return weak(passcode.JudgeBirth(private.Reveal(), born)), nil
}

// ChangeCode puts a new private code in the place of the current one, which is asked for again: a session
// alone is not enough (ASVS 5.0 6.2.3). All other sessions of the customer end, and logins that began with
// the old code; the customer is told by message. Wrong tries are counted as those of a login are.
func (i *Identity) ChangeCode(ctx context.Context, by actor.Actor, current, fresh secret.Value) error {
	c, err := caller(by)
	if err != nil {
		return err
	}
	event := audit.Event{Action: ActionCodeChange, Resource: "private code", Customer: c}
	var number string
	if err := i.DB.View(ctx, func(tx *db.Tx) (err error) {
		_, number, _, err = i.accountOf(ctx, tx, c)
		return err
	}); err != nil {
		return err
	}
	if number == "" {
		return errors.New("the number of an account does not open")
	}
	bad := weak(i.judge(fresh.Reveal(), number, i.MinCodeLength))
	if bad == nil {
		if bad, err = i.judgeBirth(ctx, by, c, fresh); err != nil {
			return err
		}
	}
	if bad != nil {
		return i.denied(ctx, by, event, bad.Slug(), by.Session, bad)
	}
	leave, err := i.hasher.enter(ctx, guest{true, string(c) + by.Key})
	if err != nil {
		return err
	}
	leave = sync.OnceFunc(leave)
	defer leave()
	ctx, cancel := settle(ctx)
	defer cancel()

	// The try is counted before the code is compared.
	now := i.Clock.Now()
	var old account
	var refused *problem.Problem
	err = i.DB.UpdateReadCommitted(ctx, func(tx *db.Tx) (err error) {
		refused = nil
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		quota := i.quotaKeys("code-changes", string(c))
		n, err := lockCounter(ctx, tx, quota, now, codeChanges.Per)
		if err != nil {
			return err
		}
		if !n.add(now, codeChanges, 1) {
			refused = errCodeLocked.RetryAfter(n.wait(now, codeChanges))
		}
		if err := putCounter(ctx, tx, quota, n, codeChanges.Per); err != nil || refused != nil {
			return err
		}
		own := i.laneKeys(number, by.Key)
		l, err := lockLane(ctx, tx, own, now)
		if err != nil {
			return err
		}
		if !l.charge(now) {
			refused = errCodeLocked.RetryAfter(max(time.Second, clock.FromMicros(l.blocked).Sub(now)))
		}
		if err := putLane(ctx, tx, own, l, now); err != nil || refused != nil {
			return err
		}
		_, old, err = i.rows.accountOf(ctx, tx, c)
		return err
	})
	if err != nil {
		return err
	}
	if refused != nil {
		return i.denied(ctx, by, event, refused.Slug(), by.Session, refused)
	}
	right, err := i.matches(ctx, current, old.code)
	if err != nil {
		return err
	}
	var hash hashed
	same := false
	if right {
		if same, err = i.hasher.matches(fresh, old.code); err != nil {
			return err
		}
		if !same {
			if hash, err = i.hasher.make(fresh); err != nil {
				return err
			}
		}
	}
	leave()
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		own := i.laneKeys(number, by.Key)
		l, err := getLane(ctx, tx, own)
		if err != nil {
			return err
		}
		if !right {
			if err := i.shutOut(ctx, tx, by, challenge{Customer: c, Known: true}, l, now); err != nil {
				return err
			}
			e.Deny(errWrongCode)
			return nil
		}
		l.refund()
		if err := putLane(ctx, tx, own, l, now); err != nil {
			return err
		}
		if same {
			e.Deny(errSameCode)
			return nil
		}
		if d, ok, err := i.rows.deviceByID(ctx, tx, c, by.Device); err != nil || !ok || d.status != authorised {
			return errors.Join(err, errSessionRevoked)
		}
		return i.setCode(ctx, tx, by, c, number, hash, by.Session, now)
	})
	if p := problem.Of(err); p != nil {
		i.metrics.refused.WithLabelValues(event.Action, p.Slug()).Inc()
	} else if err == nil {
		i.metrics.done.WithLabelValues(event.Action).Inc()
	}
	return err
}

// setCode makes a hash the customer's private code, ends all their sessions but the one to keep, and with
// them the logins and resets that are under way, and tells the customer.
func (i *Identity) setCode(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, number string, hash hashed, keep string, now time.Time) error {
	if err := i.Keys.Erased(ctx, tx, c); err != nil {
		return err
	}
	if err := i.rows.setHash(ctx, tx, c, hash); err != nil {
		return err
	}
	if err := noteCodeChange(ctx, tx, c, now); err != nil {
		return err
	}
	if _, err := deleteReset(ctx, tx, c); err != nil {
		return err
	}
	if _, err := i.endSessions(ctx, tx, by, c, keep, "private-code-changed", now); err != nil {
		return err
	}
	return i.message(ctx, tx, by, c, number, i.changedText(), now)
}

// message sends a customer a message about what was done from one of their own devices.
func (i *Identity) message(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, number, text string, now time.Time) error {
	send, err := i.mayMessage(ctx, tx, starter{class: known, number: number, key: by.Key}, true, now)
	if err != nil || !send {
		return err
	}
	return i.post(ctx, tx, letter{To: number, Text: text, Customer: c, Known: true}, now)
}

func (i *Identity) changedText() string {
	return fmt.Sprintf("The private code of your %s account was changed. If it was not you, call us at once.", i.Brand)
}

func (i *Identity) resetText(code string) string {
	return fmt.Sprintf("Your %s code for choosing a new private code is %s. If you did not ask for it, somebody has your phone: never tell it to anyone.", i.Brand, code)
}

func (i *Identity) heldText() string {
	return fmt.Sprintf("Somebody asked for a new private code for your %s account. It can be chosen from %d hours on. If it was not you, log in now: that stops it.", i.Brand, int(i.CodeResetHold.Hours()))
}

// StartReset begins, or goes on with, choosing a new private code when the old one is forgotten. It sends
// a one-time code when the number has an account of which the caller's device is an authorised one, and
// answers alike otherwise.
func (i *Identity) StartReset(ctx context.Context, by actor.Actor, number string) (Started, error) {
	if by.Key == "" {
		return Started{}, errNotDevice
	}
	e164, err := i.Phone.Parse(number)
	if err != nil {
		return Started{}, errInvalidPhone
	}
	s := starter{class: stranger, number: e164, key: by.Key, from: network(by.Address)}
	if ok, err := i.isKnown(ctx, e164, by.Key); err != nil {
		return Started{}, err
	} else if ok {
		s.class = known
	}
	if err := i.admit(ctx, by, ActionCodeResetStart, s); err != nil {
		return Started{}, err
	}
	now := i.Clock.Now()
	var started string
	var reason *problem.Problem
	err = i.write(ctx, func() error {
		return i.Trail.Do(ctx, by, audit.Event{Action: ActionCodeResetStart}, func(tx *db.Tx, e *audit.Event) error {
			reason = nil
			if err := i.catchUp(ctx, tx); err != nil {
				return err
			}
			a, exists, err := i.rows.accountByPhone(ctx, tx, i.phoneIndexes(e164))
			if err != nil {
				return err
			}
			device, has, err := i.rows.deviceByKey(ctx, tx, a.customer, by.Key)
			if err != nil {
				return err
			}
			c := challenge{Customer: a.customer, Phone: e164}
			c.Known = exists && has && device.status == authorised
			if !c.Known {
				c.Customer, c.Reason = "", "unknown-device"
			}
			rule, err := i.rows.smsRuleOf(ctx, tx, c.Customer)
			if err != nil {
				return err
			}
			if why := rule.why(now); c.Known && why != "" {
				c.Reason = why // a code by SMS is no way around what its owner, or a new SIM, has stopped
			}
			right := c.Reason == ""
			send, err := i.mayMessage(ctx, tx, s, right, now)
			if err != nil {
				return err
			}
			var slot [][]byte
			if send {
				slot = i.slotKeys(purposeReset, string(c.Customer), by.Key)
			} else if right {
				c.Reason = "message-quota"
			}
			var code string
			if started, code, err = i.newChallenge(ctx, tx, purposeReset, by.Key, slot, c, now); err != nil {
				return err
			}
			e.Resource = "reset " + started
			l := letter{}
			if send {
				l = letter{To: e164, Text: i.resetText(code), Customer: c.Customer, Known: true, Login: true}
				e.Customer, e.Personal = c.Customer, numberOf(e164)
			}
			if c.Reason != "" {
				reason = because(c.Reason)
				e.Deny(reason)
			}
			return i.post(ctx, tx, l, now)
		})
	})
	if err != nil && (reason == nil || !problem.Is(err, reason.Slug())) {
		return Started{}, err
	}
	return Started{ID: started, Expires: CodeLifetime}, nil
}

// Reset is what a step of choosing a new private code came to.
type Reset struct {
	Changed bool      // the code is changed
	Ready   time.Time // otherwise, from when on the same may be done again to change it
}

// CompleteReset takes the one-time code of StartReset. The first time it begins a hold, of which the
// customer is told, and which any complete login ends: whoever stole the telephone and reads its messages
// has the device and the one-time code, but cannot keep the owner from noticing. Once the hold is over, it
// makes private the code. All sessions end.
func (i *Identity) CompleteReset(ctx context.Context, by actor.Actor, reset string, code, private secret.Value) (out Reset, err error) {
	if by.Key == "" {
		return out, errNotDevice
	}
	event := audit.Event{Action: ActionCodeResetComplete}
	var row challengeRow
	found, err := i.findChallenge(ctx, reset, purposeReset, &row)
	if err != nil {
		return out, err
	}
	now := i.Clock.Now()
	if reason := row.dead(found, by.Key, now); reason != "" {
		return out, i.denied(ctx, by, event, reason, "", errResetFailed)
	}
	event.Resource = "reset " + row.id
	state, err := i.openChallenge(row)
	if err != nil {
		return out, err
	}
	event.Customer = state.Customer
	if bad := weak(i.judge(private.Reveal(), state.Phone, i.MinCodeLength)); bad != nil {
		return out, i.denied(ctx, by, event, bad.Slug(), row.id, bad)
	}
	// Told only once the one-time code was right, or it would tell the birth date to whoever asks.
	var bad *problem.Problem
	if state.Customer != "" {
		if bad, err = i.judgeBirth(ctx, by, state.Customer, private); err != nil {
			return out, err
		}
	}
	var hold resetRow
	var held bool
	if err := i.DB.View(ctx, func(tx *db.Tx) (err error) {
		hold, held, err = i.rows.reset(ctx, tx, state.Customer)
		return err
	}); err != nil {
		return out, err
	}
	var hash hashed
	if held && hold.ripe(now) {
		leave, err := i.hasher.enter(ctx, guest{true, string(state.Customer) + by.Key})
		if err != nil {
			return out, err // it has cost no try
		}
		hash, err = i.hasher.make(private)
		leave()
		if err != nil {
			return out, err
		}
	}
	ctx, cancel := settle(ctx)
	defer cancel()
	answered := false
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		out, answered = Reset{}, false
		refuse := func(reason string) error {
			answered = true
			e.Deny(because(reason))
			return nil
		}
		row, found, err := challengeByID(ctx, tx, reset, purposeReset)
		if err != nil {
			return err
		}
		if reason := row.dead(found, by.Key, now); reason != "" {
			return refuse(reason)
		}
		if err := setTries(ctx, tx, row.id, row.tries-1); err != nil {
			return err
		}
		matches, err := i.codeMatches(row, by.Key, code)
		if err != nil {
			return err
		}
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		keys := i.laneKeys(state.Phone, by.Key+resetLane)
		l, err := getLane(ctx, tx, keys)
		if err != nil {
			return err
		}
		rule, err := i.rows.smsRuleOf(ctx, tx, state.Customer)
		if err != nil {
			return err
		}
		reason := state.Reason
		switch {
		case reason != "":
		case l.isBlocked(now):
			reason = "locked-out"
		case rule.why(now) != "":
			reason = rule.why(now)
		case !matches:
			reason = "wrong-one-time-code"
			l.charge(now)
		case row.superseded:
			reason = "superseded-code"
		default:
			l.reset()
		}
		if err := putLane(ctx, tx, keys, l, now); err != nil {
			return err
		}
		if reason != "" {
			return refuse(reason)
		}
		if bad != nil {
			e.Deny(bad) // a better one may be tried with the same one-time code
			return nil
		}
		if _, err := useChallenge(ctx, tx, row.id); err != nil {
			return err
		}
		d, has, err := i.rows.deviceByKey(ctx, tx, state.Customer, by.Key)
		if err != nil {
			return err
		}
		if !has || d.status != authorised {
			return refuse("revoked-device")
		}
		hold, held, err := i.rows.reset(ctx, tx, state.Customer)
		if err != nil {
			return err
		}
		switch {
		case held && hold.device == d.id && hold.ripe(now) && hash.hash != nil:
			out.Changed = true
			own := i.laneKeys(state.Phone, by.Key)
			l, err := getLane(ctx, tx, own)
			if err != nil {
				return err
			}
			if err := putLane(ctx, tx, own, lane{older: l.older}, now); err != nil {
				return err
			}
			return i.setCode(ctx, tx, by, state.Customer, state.Phone, hash, "", now)
		case held && hold.device == d.id && clock.Micros(now) < hold.expires:
			out.Ready = clock.FromMicros(hold.ready)
			e.Reason = "held"
			return nil
		}
		hold = resetRow{customer: state.Customer, device: d.id, made: clock.Micros(now), ready: clock.Micros(now.Add(i.CodeResetHold))}
		hold.expires = clock.Micros(now.Add(i.CodeResetHold + resetWindow))
		out.Ready = clock.FromMicros(hold.ready)
		e.Reason = "hold-begins"
		if err := i.rows.putReset(ctx, tx, hold); err != nil {
			return err
		}
		return i.message(ctx, tx, by, state.Customer, state.Phone, i.heldText(), now)
	})
	if answered && err != nil {
		if p := problem.Of(err); p != nil && p.Kind() == problem.Unauthenticated {
			i.metrics.refused.WithLabelValues(event.Action, p.Slug()).Inc()
			return Reset{}, errResetFailed
		}
	}
	if err != nil {
		return Reset{}, err
	}
	i.metrics.done.WithLabelValues(event.Action).Inc()
	return out, nil
}

// CancelReset ends a hold, from any session of the customer.
func (i *Identity) CancelReset(ctx context.Context, by actor.Actor) error {
	c, err := caller(by)
	if err != nil {
		return err
	}
	event := audit.Event{Action: ActionCodeResetCancel, Resource: "private code", Customer: c}
	return i.Trail.Do(ctx, by, event, func(tx *db.Tx, _ *audit.Event) error {
		_, err := deleteReset(ctx, tx, c)
		return err
	})
}

// remembered ends a hold after a complete login: the customer knows the private code, so whoever asked for
// a new one was somebody else, or needs none any more.
func (i *Identity) remembered(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID) error {
	n, err := deleteReset(ctx, tx, c)
	if err != nil || n == 0 {
		return err
	}
	return i.Trail.Record(ctx, tx, by, audit.Event{Action: ActionCodeResetCancel, Resource: "private code", Customer: c, Outcome: audit.Granted, Reason: "logged-in"})
}
