package identity

import (
	"context"
	"errors"
	"sync"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/keyring/seal"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// StartLogin checks the private code and, when it is right, sends a one-time code. The answer is the
// same, in bytes and in time, whether the number is known, the code right or the account locked: each
// runs through the same transactions with the same writes, one comparison of a hash, and leaves after
// the same time. PSD2 RTS article 4 asks that nobody learns which factor failed.
func (i *Identity) StartLogin(ctx context.Context, by actor.Actor, number string, private secret.Value) (Started, error) {
	return i.StartLoginBy(ctx, by, BySMS, number, private)
}

// StartLoginBy is StartLogin with a second step of the caller's choice. Whether the account has such a
// factor does not show either.
func (i *Identity) StartLoginBy(ctx context.Context, by actor.Actor, method Method, number string, private secret.Value) (Started, error) {
	if by.Key == "" {
		return Started{}, errNotDevice
	}
	e164, err := i.Phone.Parse(number)
	if err != nil {
		return Started{}, errInvalidPhone
	}
	return i.beginLogin(ctx, by, method, e164, private)
}

// beginLogin is StartLoginBy for a number in E.164.
func (i *Identity) beginLogin(ctx context.Context, by actor.Actor, method Method, e164 string, private secret.Value) (_ Started, err error) {
	began := time.Now()
	s := starter{class: stranger, number: e164, key: by.Key, from: network(by.Address), silent: method != BySMS || isUnreal(e164)}
	var ask Started
	if method == ByPasskey {
		if i.passkeys == nil {
			return Started{}, errPasskeysOff
		}
		if ask.Passkey, ask.challenge, err = i.askPasskey(); err != nil {
			return Started{}, err
		}
	}
	if ok, err := i.isKnown(ctx, e164, by.Key); err != nil {
		return Started{}, err
	} else if ok {
		s.class = known
	}
	looked := time.Since(began)
	if err := i.admit(ctx, by, ActionLoginStart, s); err != nil {
		return Started{}, err
	}
	leave, err := i.hasher.enter(ctx, guest{s.class == known, s.source()})
	if err != nil {
		return Started{}, err
	}
	leave = sync.OnceFunc(leave)
	defer leave()
	began = time.Now().Add(-looked) // how long the queue was depends on nothing that is secret
	waiting := ctx
	ctx, cancel := settle(ctx)
	defer cancel()

	try, err := i.chargeLogin(ctx, by, e164)
	if err != nil {
		return Started{}, err
	}
	try.Method, try.Passkey = method, ask.challenge
	started, right, err := i.tryLogin(ctx, by, s, try, private, leave)
	if err != nil {
		i.refundLogin(ctx, by, try)
		return Started{}, err
	}
	if right && try.Known && i.hasher.outdated(try.code) {
		i.renew(rehashing{try.Customer, try.code, private})
	}

	// What is left of a difference, some microseconds of reading, drowns in this.
	pause := time.NewTimer(time.Until(began.Add(i.hasher.typical * 5 / 4)))
	defer pause.Stop()
	select {
	case <-pause.C:
	case <-waiting.Done():
	}
	return Started{ID: started, Expires: CodeLifetime, Passkey: ask.Passkey}, nil
}

// tryLogin compares the private code and writes down what came of it.
func (i *Identity) tryLogin(ctx context.Context, by actor.Actor, s starter, try attempt, private secret.Value, leave func()) (started string, right bool, err error) {
	if right, err = i.matches(ctx, private, try.code); err != nil {
		return "", false, err
	}
	leave()
	if try.Reason == "" && !right {
		try.Reason = "wrong-private-code"
	}
	err = i.write(ctx, func() (err error) {
		started, err = i.recordLogin(ctx, by, s, try)
		return err
	})
	return started, right, err
}

// matches compares a private code with a hash.
func (i *Identity) matches(ctx context.Context, private secret.Value, with hashed) (right bool, err error) {
	right, err = i.hasher.matches(private, with)
	if errors.Is(err, seal.ErrKeyVersion) { // of a pepper that this process has not heard of
		if err = i.Keys.Reload(ctx); err == nil {
			right, err = i.hasher.matches(private, with)
		}
	}
	return right, err
}

// isKnown reports whether the key is one of an authorised device of the number's account. It is for
// limits and queues, which treat known devices apart; whether a login succeeds is decided later, from
// what is then so. It makes the same two queries for everybody.
func (i *Identity) isKnown(ctx context.Context, e164, key string) (ok bool, err error) {
	err = i.DB.View(ctx, func(tx *db.Tx) error {
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		a, _, err := i.rows.accountByPhone(ctx, tx, i.phoneIndexes(e164))
		if err != nil {
			return err
		}
		d, has, err := i.rows.deviceByKey(ctx, tx, a.customer, key)
		ok = has && d.status == authorised
		return err
	})
	return ok, err
}

// attempt is a login between its charge and its record.
type attempt struct {
	challenge
	code    hashed // what the private code is compared with
	key     string // of the device
	charged bool
	tripped bool // the charge blocked the lane
}

// chargeLogin looks the account up and counts the attempt in its lane, before the private code is
// compared: many attempts at the same instant would otherwise all be made before the first is counted.
// The lane of a number without an account is kept like any other.
func (i *Identity) chargeLogin(ctx context.Context, by actor.Actor, e164 string) (try attempt, err error) {
	now := i.Clock.Now()
	err = i.DB.UpdateReadCommitted(ctx, func(tx *db.Tx) error {
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		try = attempt{code: i.hasher.nobody(), key: by.Key}
		try.Phone = e164
		a, exists, err := i.rows.accountByPhone(ctx, tx, i.phoneIndexes(e164))
		if err != nil {
			return err
		}
		device, has, err := i.rows.deviceByKey(ctx, tx, a.customer, by.Key)
		if err != nil {
			return err
		}
		try.Customer = a.customer
		try.Known = has && device.status == authorised
		keys := i.lanesOf(try.challenge, by.Key)
		l, err := lockLane(ctx, tx, keys, now)
		if err != nil {
			return err
		}
		open := l.charge(now)
		try.charged, try.tripped = open, open && l.isBlocked(now)
		if err := putLane(ctx, tx, keys, l, now); err != nil {
			return err
		}
		if !try.Known {
			if err := i.countNetwork(ctx, tx, by, now); err != nil {
				return err
			}
		}
		switch {
		case !exists:
			try.Reason = "unknown-number"
		case !open:
			try.Reason = "locked-out"
		case has && device.status == revoked:
			try.Reason = "revoked-device"
		default:
			try.code = a.code
		}
		return nil
	})
	return try, err
}

// refundLogin takes back the charge of an attempt that came to nothing by a failure of our own, as well
// as it can: a database that does not answer must not lock the customer out. Nobody learns anything
// from such an attempt, so nobody guesses for free.
func (i *Identity) refundLogin(ctx context.Context, by actor.Actor, try attempt) {
	if !try.charged {
		return
	}
	ctx, cancel := settle(ctx)
	defer cancel()
	now := i.Clock.Now()
	err := i.DB.UpdateReadCommitted(ctx, func(tx *db.Tx) error {
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		keys := i.lanesOf(try.challenge, try.key)
		l, err := lockLane(ctx, tx, keys, now)
		if err != nil {
			return err
		}
		l.refund()
		if err := putLane(ctx, tx, keys, l, now); err != nil || try.Known {
			return err
		}
		return i.freeNetwork(ctx, tx, by, now)
	})
	if err != nil {
		i.Log.ErrorContext(ctx, "a login that failed through no fault of the customer's stays counted", "error", err)
	}
}

// recordLogin writes down what came of an attempt: the challenge and the message, which are real when
// everything was right and blanks otherwise.
func (i *Identity) recordLogin(ctx context.Context, by actor.Actor, s starter, try attempt) (started string, err error) {
	now := i.Clock.Now()
	right := try.Reason == ""
	s.class = stranger // it may have changed since the queue
	laneOf := "unknown"
	if try.Known {
		s.class, laneOf = known, by.Key
	}
	event := audit.Event{Action: ActionLoginStart, Customer: try.Customer}
	var reason *problem.Problem
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		reason = nil
		right, c := right, try.challenge
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		keys := i.lanesOf(try.challenge, try.key)
		l, err := getLane(ctx, tx, keys)
		if err != nil {
			return err
		}
		if right {
			l.refund()
		}
		if err := putLane(ctx, tx, keys, l, now); err != nil {
			return err
		}
		switch err := i.Keys.Erased(ctx, tx, c.Customer); {
		case problem.Is(err, "customer-erased"): // since the private code was compared
			right, c.Reason = false, "customer-erased"
		case err != nil:
			return err
		case c.Customer != "":
			e.Personal = numberOf(s.number)
		}
		lack, err := i.lacks(ctx, tx, c.Customer, c.Method, now)
		if err != nil {
			return err
		}
		if right && lack != "" {
			right, c.Reason = false, lack
		}
		if !right {
			if err := i.shutOut(ctx, tx, by, try.challenge, l, now); err != nil {
				return err
			}
		}
		// Only a wrong private code is cause: a right one opened the lane again.
		warning, err := i.mayWarn(ctx, tx, s.number, try.tripped && try.Reason != "" && c.Reason != "customer-erased" && c.Customer != "", now)
		if err != nil {
			return err
		}
		send, err := i.mayMessage(ctx, tx, s, right && c.Method == BySMS || warning, now)
		if err != nil {
			return err
		}
		var slot [][]byte
		mail := letter{}
		if right && (send || c.Method != BySMS) {
			// Each lane has its own, or whoever knows the private code could void every code that the
			// customer's own device is sent.
			slot = i.slotKeys(purposeLogin, string(c.Customer), laneOf)
		} else if right {
			c.Reason = "message-quota"
		}
		var code string
		if started, code, err = i.newChallenge(ctx, tx, purposeLogin, by.Key, slot, c, now); err != nil {
			return err
		}
		if send {
			mail = letter{To: s.number, Text: i.codeText(code), Customer: c.Customer, Known: c.Known, Login: true}
		}
		if send && warning {
			mail.Text, mail.Login = i.attackText(), false
		}
		if err := i.post(ctx, tx, mail, now); err != nil {
			return err
		}
		e.Resource = "login " + started
		if c.Reason != "" {
			reason = because(c.Reason)
			e.Deny(reason)
		}
		return nil
	})
	if reason != nil && problem.Is(err, reason.Slug()) {
		i.metrics.refused.WithLabelValues(event.Action, reason.Slug()).Inc()
		return started, nil
	}
	if err == nil {
		i.metrics.done.WithLabelValues(event.Action).Inc()
	}
	return started, err
}

// CompleteLogin exchanges the one-time code for a session that may write. When all three factors are
// right and the device is new, it becomes a pending device of the customer and nothing more.
func (i *Identity) CompleteLogin(ctx context.Context, by actor.Actor, login string, code secret.Value, deviceName string) (Tokens, error) {
	return i.CompleteLoginBy(ctx, by, login, Answer{Code: code, DeviceName: deviceName})
}

// CompleteLoginBy is CompleteLogin with the answer that the method of its start asks for.
func (i *Identity) CompleteLoginBy(ctx context.Context, by actor.Actor, login string, answered Answer) (out Tokens, err error) {
	scope, err := readScope(answered.Scope)
	if err != nil {
		return out, err
	}
	err = i.finishLogin(ctx, by, login, answered, func(tx *db.Tx, d deviceRow, e *audit.Event, now time.Time) (err error) {
		out, err = i.newSession(ctx, tx, by, d, scope, now)
		e.Resource = "session " + out.Session
		return err
	})
	if err != nil {
		return Tokens{}, err
	}
	return out, nil
}

// finishLogin checks the second step, and has give make what a login by the device is to give.
func (i *Identity) finishLogin(ctx context.Context, by actor.Actor, login string, answered Answer,
	give func(tx *db.Tx, d deviceRow, e *audit.Event, now time.Time) error) (err error) {
	if by.Key == "" {
		return errNotDevice
	}
	event := audit.Event{Action: ActionLoginComplete}
	var row challengeRow
	found, err := i.findChallenge(ctx, login, purposeLogin, &row)
	if err != nil {
		return err
	}
	now := i.Clock.Now()
	if reason := row.dead(found, by.Key, now); reason != "" {
		return i.denied(ctx, by, event, reason, "", errLoginFailed)
	}
	event.Resource = "login " + row.id
	state, err := i.openChallenge(row)
	if err != nil {
		return err
	}
	event.Customer = state.Customer
	level, err := i.attested(by.Key, answered.Attestation)
	if err != nil {
		return i.denied(ctx, by, event, errAttestationRefused.Slug(), row.id, problem.Of(err))
	}
	if state.Method != BySMS && state.Method != "" {
		began := time.Now()
		defer func() {
			if err != nil {
				time.Sleep(time.Until(began.Add(answerFloor)))
			}
		}()
	}
	ctx, cancel := settle(ctx)
	defer cancel()

	var answer *problem.Problem // what the caller is told when the event says why
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		answer = nil
		refuse := func(reason string, p *problem.Problem) error {
			answer = p
			e.Deny(because(reason))
			return nil
		}
		row, found, err := challengeByID(ctx, tx, login, purposeLogin)
		if err != nil {
			return err
		}
		if reason := row.dead(found, by.Key, now); reason != "" {
			return refuse(reason, errLoginFailed)
		}
		if err := setTries(ctx, tx, row.id, row.tries-1); err != nil {
			return err
		}
		matches, why, err := i.secondStep(ctx, tx, row, state, by.Key, answered, now)
		if err != nil {
			return err
		}
		if err := i.catchUp(ctx, tx); err != nil {
			return err
		}
		keys := i.lanesOf(state, row.jkt)
		l, err := getLane(ctx, tx, keys)
		if err != nil {
			return err
		}
		changed, err := codeChangedSince(ctx, tx, state.Customer, row.expires-CodeLifetime.Microseconds())
		if err != nil {
			return err
		}
		reason, tripped := state.Reason, false
		switch {
		case reason != "":
		case state.Phone == "": // of a version that named the lane in another way
			reason = "expired-code"
		case l.isBlocked(now):
			reason = "locked-out"
		case why != "":
			reason = why
		case !matches:
			reason = "wrong-one-time-code"
			l.charge(now)
			tripped = l.isBlocked(now)
			if err := i.shutOut(ctx, tx, by, state, l, now); err != nil {
				return err
			}
		case row.superseded:
			reason = "superseded-code" // of the message before the last: no guess, and no failure
		case changed:
			reason = "private-code-changed" // since the login began
		default:
			l.reset()
		}
		if err := putLane(ctx, tx, keys, l, now); err != nil {
			return err
		}
		if reason != "" {
			if err := i.warn(ctx, tx, by, state, tripped, now); err != nil {
				return err
			}
			return refuse(reason, errLoginFailed)
		}

		// All three factors are right. From here on the caller may be told the truth.
		if _, err := useChallenge(ctx, tx, row.id); err != nil {
			return err
		}
		if !state.Known {
			if err := i.freeNetwork(ctx, tx, by, now); err != nil {
				return err
			}
		}
		if err := i.dropExpired(ctx, tx, by, state.Customer, now); err != nil {
			return err
		}
		device, has, err := i.rows.deviceByKey(ctx, tx, state.Customer, by.Key)
		if err != nil {
			return err
		}
		switch {
		case has && device.status == revoked:
			return refuse("revoked-device", errLoginFailed)
		case !has && level == "" && i.Attest.Policy == AttestRequired:
			return refuse(errAttestationRequired.Slug(), errAttestationRequired)
		case !has:
			device, err = i.addDevice(ctx, tx, by, state.Customer, answered.DeviceName, now)
			if errors.Is(err, errTooManyDevices) {
				return refuse(errTooManyDevices.Slug(), errTooManyDevices)
			}
			if err != nil {
				return err
			}
		}
		if err := i.vouched(ctx, tx, device, level); err != nil {
			return err
		}
		if device.status == pending {
			p, err := i.await(ctx, tx, by, device, now)
			if err != nil {
				return err
			}
			return refuse("device-pending", p)
		}
		if err := i.liftCeiling(ctx, tx, state, now); err != nil {
			return err
		}
		if err := i.remembered(ctx, tx, by, state.Customer); err != nil {
			return err
		}
		return give(tx, device, e, now)
	})
	if answer != nil && err != nil {
		if p := problem.Of(err); p != nil && p.Kind() == problem.Unauthenticated {
			i.metrics.refused.WithLabelValues(event.Action, p.Slug()).Inc()
			return answer
		}
	}
	if err != nil {
		return err
	}
	i.metrics.done.WithLabelValues(event.Action).Inc()
	return nil
}

// shutOut revokes a known device whose lane has reached the ceiling. Its holder guesses; the customer's
// other devices, and new ones that those approve, go on.
func (i *Identity) shutOut(ctx context.Context, tx *db.Tx, by actor.Actor, state challenge, l lane, now time.Time) error {
	if !state.Known || l.total < ceiling {
		return nil
	}
	d, has, err := i.rows.deviceByKey(ctx, tx, state.Customer, by.Key)
	if err != nil || !has || d.status == revoked {
		return err
	}
	e := audit.Event{Action: ActionDeviceRevoke, Resource: "device " + d.id, Customer: d.customer, Outcome: audit.Granted, Reason: "too-many-failures"}
	if err := i.Trail.Record(ctx, tx, by, e); err != nil {
		return err
	}
	return i.revoke(ctx, tx, by, d, now)
}

// liftCeiling lets unknown devices try again after a known one got in. Their blocks in time stay.
func (i *Identity) liftCeiling(ctx context.Context, tx *db.Tx, state challenge, now time.Time) error {
	keys := i.laneKeys(state.Phone, "")
	l, err := getLane(ctx, tx, keys)
	if err != nil || l.total == 0 {
		return err
	}
	l.total = 0
	return putLane(ctx, tx, keys, l, now)
}

func devicePending(device, number string) *problem.Problem {
	return problem.New(problem.Forbidden, "device-pending", "This device is new. Type its number into a device that you have authorised, then log in again.").
		With("device", device).With("number", number)
}

// addDevice makes by's key a pending device of the customer.
func (i *Identity) addDevice(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, name string, now time.Time) (deviceRow, error) {
	all, err := i.rows.devicesOf(ctx, tx, c)
	if err != nil {
		return deviceRow{}, err
	}
	n := 0
	for _, d := range all {
		if d.status != revoked {
			n++
		}
	}
	if n >= i.MaxDevices {
		return deviceRow{}, errTooManyDevices
	}
	if err := i.Keys.Erased(ctx, tx, c); err != nil {
		return deviceRow{}, err
	}
	ring, err := i.Keys.Customer(ctx, tx, c)
	if err != nil {
		return deviceRow{}, err
	}
	us := clock.Micros(now)
	d := deviceRow{id: id.New("dev"), customer: c, jkt: by.Key, status: pending, added: us, seen: us}
	d.name = ring.Seal(place("device", c, d.id), []byte(cleanName(name)))
	if err := i.rows.insertDevice(ctx, tx, d); err != nil {
		return deviceRow{}, err
	}
	return d, i.Trail.Record(ctx, tx, by, audit.Event{Action: ActionDeviceAdd, Resource: "device " + d.id, Customer: c, Outcome: audit.Granted})
}
