package identity

import (
	"context"
	"strings"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/problem"
)

var errSessionNotFound = problem.New(problem.NotFound, "session-not-found", "You have no such session.")

// endSession ends one session: here at once, and on every other server within sessionLease.
func (i *Identity) endSession(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, session, reason string, now time.Time) error {
	ended, err := revokeSession(ctx, tx, session, now)
	if err != nil || !ended {
		return err
	}
	return i.Trail.Record(ctx, tx, by, audit.Event{Action: ActionSessionRevoke, Resource: "session " + session, Customer: c, Outcome: audit.Granted, Reason: reason})
}

// endSessions ends all sessions of a customer but one, which may be "", and voids what could become a
// session. It is for whatever changes how a customer logs in: a new private code, a recovery.
func (i *Identity) endSessions(ctx context.Context, tx *db.Tx, by actor.Actor, c customer.ID, but, reason string, now time.Time) (int, error) {
	if err := deleteCodes(ctx, tx, c); err != nil {
		return 0, err
	}
	all, err := i.rows.sessionsOf(ctx, tx, c, now)
	if err != nil {
		return 0, err
	}
	n := 0
	for _, s := range all {
		if s.id == but {
			continue
		}
		if err := i.endSession(ctx, tx, by, c, s.id, reason, now); err != nil {
			return 0, err
		}
		n++
	}
	return n, nil
}

// describe tells a customer about one of their sessions.
func (i *Identity) describe(ctx context.Context, tx *db.Tx, s sessionRow, current bool) (out SessionInfo, err error) {
	d, _, err := i.rows.deviceByID(ctx, tx, s.customer, s.device)
	if err != nil {
		return out, err
	}
	out = SessionInfo{
		Session: s.id, Device: s.device, Customer: s.customer, Scope: i.live(&s, i.Clock.Now()), ACR: s.acr, Current: current,
		LoggedIn: clock.FromMicros(s.made), LastUsed: clock.FromMicros(s.used),
		IdleExpires: clock.FromMicros(s.idleExpires), Expires: clock.FromMicros(s.expires),
	}
	if out.DeviceName, err = i.deviceName(ctx, tx, d); err != nil {
		return out, err
	}
	sealed, err := sessionOrigin(ctx, tx, s.id)
	if err != nil || len(sealed) == 0 {
		return out, err
	}
	ring, err := i.Keys.Customer(ctx, tx, s.customer)
	if err != nil {
		return out, err
	}
	if ring, err = i.Keys.Holding(ctx, tx, s.customer, ring, sealed); err != nil {
		return out, err
	}
	address, err := ring.Open(place("session", s.customer, s.id), sealed)
	out.Address = string(address)
	return out, err
}

// Sessions lists the customer's sessions that have not ended, oldest first (ASVS 5.0 7.5.2).
func (i *Identity) Sessions(ctx context.Context, by actor.Actor) (out []SessionInfo, err error) {
	c, err := caller(by)
	if err != nil {
		return nil, err
	}
	event := audit.Event{Action: ActionSessionList, Resource: "sessions", Customer: c}
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, _ *audit.Event) error {
		out = []SessionInfo{}
		all, err := i.rows.sessionsOf(ctx, tx, c, i.Clock.Now())
		if err != nil {
			return err
		}
		for _, s := range all {
			info, err := i.describe(ctx, tx, s, s.id == by.Session)
			if err != nil {
				return err
			}
			out = append(out, info)
		}
		return nil
	})
	return out, err
}

// RevokeSession ends one of the customer's sessions. One that has ended already stays so.
func (i *Identity) RevokeSession(ctx context.Context, by actor.Actor, session string) error {
	c, err := caller(by)
	if err != nil {
		return err
	}
	event := audit.Event{Action: ActionSessionRevoke, Resource: "session", Customer: c}
	if !id.Valid("ses", session) {
		return i.Trail.Deny(ctx, by, event, errSessionNotFound)
	}
	event.Resource, event.Reason = "session "+session, "by-customer"
	return i.Trail.Do(ctx, by, event, func(tx *db.Tx, _ *audit.Event) error {
		if _, ok, err := i.rows.sessionByID(ctx, tx, c, session); err != nil {
			return err
		} else if !ok {
			return errSessionNotFound
		}
		_, err := revokeSession(ctx, tx, session, i.Clock.Now())
		return err
	})
}

// RevokeOtherSessions ends all of the customer's sessions but the one that acts, and returns how many
// (ASVS 5.0 7.4.5).
func (i *Identity) RevokeOtherSessions(ctx context.Context, by actor.Actor) (n int, err error) {
	c, err := caller(by)
	if err != nil {
		return 0, err
	}
	event := audit.Event{Action: ActionSessionRevoke, Resource: "other sessions", Customer: c, Reason: "by-customer"}
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, _ *audit.Event) (err error) {
		n, err = i.endSessions(ctx, tx, by, c, by.Session, "by-customer", i.Clock.Now())
		return err
	})
	return n, err
}

// stepUp refuses a dangerous deed of a session whose customer was authenticated too long ago, with the
// challenge of RFC 9470: the app has the customer log in again, and repeats the deed in the new session.
func (i *Identity) stepUp(ctx context.Context, tx *db.Tx, by actor.Actor) error {
	s, ok, err := i.rows.sessionByID(ctx, tx, by.Customer(), by.Session)
	switch {
	case err != nil:
		return err
	case !ok || s.revoked.Valid:
		return errSessionRevoked
	case i.Clock.Now().Sub(clock.FromMicros(s.made)) > i.StepUpAge:
		return problem.New(problem.Unauthenticated, "step-up-needed", "This needs a recent login. Log in again, and repeat it in the new session.").
			WithHeader(challengeHeader, `DPoP error="insufficient_user_authentication", error_description="A recent login is needed", acr_values="`+
				ACR+`", max_age="`+string(decimal(int64(i.StepUpAge/time.Second)))+`", algs="ES256"`)
	}
	return nil
}

// Permit refuses the caller of an operation that asks for scopes that the session does not have, with the
// challenge of RFC 6750 section 3.1. An operation that asks for none needs the scope to write.
func (i *Identity) Permit(ctx context.Context, by actor.Actor, scopes []string) error {
	if len(scopes) == 0 {
		scopes = []string{ScopeWrite}
	}
	for _, scope := range scopes {
		if by.May(scope) {
			continue
		}
		p := problem.New(problem.Forbidden, "insufficient-scope", "This needs the scope %s, which the session does not have, or no longer. Log in again and ask for it.", scope).
			With("scope", scope).
			WithHeader(challengeHeader, `DPoP error="insufficient_scope", scope="`+strings.Join(scopes, " ")+`", algs="ES256"`)
		event := audit.Event{Action: ActionSessionCheck, Customer: by.Customer(), Resource: "session " + by.Session}
		return i.denied(ctx, by, event, "insufficient-scope", by.Session, p)
	}
	return nil
}

// sessionsOf returns the sessions of a customer that have not ended.
func (r rows) sessionsOf(ctx context.Context, tx *db.Tx, c customer.ID, now time.Time) (all []sessionRow, err error) {
	found, err := tx.Query(ctx, `
		SELECT `+sessionColumns+` FROM session s JOIN `+sessionDevice+`
		WHERE s.customer_id = $1 AND s.revoked_at IS NULL AND s.expires_at > $2 AND s.idle_expires_at > $2 ORDER BY s.id`,
		string(c), clock.Micros(now))
	if err != nil {
		return nil, err
	}
	defer found.Close()
	for found.Next() {
		var s sessionRow
		if err := found.Scan(s.fields()...); err != nil {
			return nil, err
		}
		if err := r.checkSession(&s); err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, found.Err()
}

func sessionOrigin(ctx context.Context, tx *db.Tx, session string) (sealed []byte, err error) {
	err = tx.QueryRow(ctx, `SELECT origin FROM session WHERE id = $1`, session).Scan(&sealed)
	return sealed, err
}
