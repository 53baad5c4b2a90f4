package identity

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"strings"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// Tokens are what a login or a refresh gives.
type Tokens struct {
	Access, Refresh               secret.Value
	AccessExpires, RefreshExpires time.Duration
	Session, Device               string
	Customer                      customer.ID
}

// What tokens begin with, so that a leaked one is recognised for what it is.
const (
	accessPrefix  = "sat_"
	refreshPrefix = "srt_"
)

// tokenLength is a prefix and 32 bytes in base64url.
const tokenLength = 4 + 43

// newToken returns 256 random bits (ASVS 5.0 7.2.3 asks for 128) and the hash that is stored.
func newToken(prefix string) (secret.Value, []byte) {
	var raw [32]byte
	rand.Read(raw[:])
	token := prefix + base64.RawURLEncoding.EncodeToString(raw[:])
	return secret.FromString(token), tokenHash(token)
}

// tokenHash needs no salt and no slowness: there are too many tokens to guess.
func tokenHash(token string) []byte {
	sum := sha256.Sum256([]byte(token))
	return sum[:]
}

// wellFormed spares the database what cannot be a token.
func wellFormed(token, prefix string) bool {
	return len(token) == tokenLength && strings.HasPrefix(token, prefix)
}

// newSession starts a session on an authorised device.
func (i *Identity) newSession(ctx context.Context, tx *db.Tx, d deviceRow, now time.Time) (Tokens, error) {
	s := sessionRow{
		id: id.New("ses"), device: d.id, jkt: d.jkt, customer: d.customer, deviceStatus: d.status,
		made: clock.Micros(now), used: clock.Micros(now),
		expires: clock.Micros(now.Add(i.SessionLifetime)),
	}
	s.idleExpires = min(clock.Micros(now.Add(i.IdleLifetime)), s.expires)
	if err := i.rows.insertSession(ctx, tx, s); err != nil {
		return Tokens{}, err
	}
	return i.newTokens(ctx, tx, s, now)
}

// newTokens gives a session its next pair of tokens.
func (i *Identity) newTokens(ctx context.Context, tx *db.Tx, s sessionRow, now time.Time) (Tokens, error) {
	access, accessHash := newToken(accessPrefix)
	refresh, refreshHash := newToken(refreshPrefix)
	expires := min(clock.Micros(now.Add(i.AccessLifetime)), s.idleExpires)
	if err := insertTokens(ctx, tx, s.id, accessHash, refreshHash, expires, s.expires); err != nil {
		return Tokens{}, err
	}
	return Tokens{
		Access: access, Refresh: refresh,
		AccessExpires:  clock.FromMicros(expires).Sub(now),
		RefreshExpires: clock.FromMicros(s.idleExpires).Sub(now),
		Session:        s.id, Device: s.device, Customer: s.customer,
	}, nil
}

// Refresh exchanges a refresh token for a new pair. A token that is used a second time was stolen,
// from the customer or by the customer's thief: the session ends for both (RFC 9700 section 4.14).
// A token that comes with another device's key is refused and ends nothing, or strangers could.
func (i *Identity) Refresh(ctx context.Context, by actor.Actor, token secret.Value) (Tokens, error) {
	if by.Key == "" {
		return Tokens{}, errNotDevice
	}
	event := audit.Event{Action: ActionSessionRefresh}
	text := string(token.Reveal())
	hash := tokenHash(text)
	var s sessionRow
	var found bool
	if wellFormed(text, refreshPrefix) {
		err := i.DB.View(ctx, func(tx *db.Tx) (err error) {
			s, found, err = i.rows.sessionByRefresh(ctx, tx, hash)
			return err
		})
		if err != nil {
			return Tokens{}, err
		}
	}
	now := i.Clock.Now()
	if !found {
		return Tokens{}, i.denied(ctx, by, event, "unknown-token", "", errInvalidRefresh)
	}
	event.Customer, event.Resource = s.customer, "session "+s.id
	// Cheap refusals that change nothing are bounded in number; see denials.
	if s.jkt != by.Key {
		return Tokens{}, i.denied(ctx, by, event, "other-device", s.id, errInvalidRefresh)
	}
	// Token and key belong together, so it is the customer who acts.
	by.Kind, by.ID, by.Device, by.Session = actor.Customer, string(s.customer), s.device, s.id
	switch {
	case s.revoked.Valid:
		return Tokens{}, i.denied(ctx, by, event, "session-revoked", s.id, s.ended(errSessionRevoked))
	case s.over(now):
		return Tokens{}, i.denied(ctx, by, event, "session-expired", s.id, errInvalidRefresh)
	}
	ctx, cancel := settle(ctx)
	defer cancel()
	var out Tokens
	var answer *problem.Problem
	err := i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		out, answer = Tokens{}, nil
		refuse := func(reason string, p *problem.Problem) error {
			answer = p
			e.Deny(because(reason))
			return nil
		}
		s, found, err := i.rows.sessionByRefresh(ctx, tx, hash)
		switch {
		case err != nil:
			return err
		case !found:
			return refuse("unknown-token", errInvalidRefresh)
		case s.revoked.Valid || s.deviceStatus != authorised:
			return refuse("session-revoked", s.ended(errSessionRevoked))
		}
		fresh, err := useRefresh(ctx, tx, hash, now)
		if err != nil {
			return err
		}
		if !fresh {
			if _, err := revokeSession(ctx, tx, s.id, now); err != nil {
				return err
			}
			ended := audit.Event{Action: ActionSessionRevoke, Resource: "session " + s.id, Customer: s.customer,
				Outcome: audit.Granted, Reason: "refresh-token-reused"}
			if err := i.Trail.Record(ctx, tx, by, ended); err != nil {
				return err
			}
			return refuse("refresh-token-reused", errSessionRevoked)
		}
		s.used = clock.Micros(now)
		s.idleExpires = min(clock.Micros(now.Add(i.IdleLifetime)), s.expires)
		if err := touch(ctx, tx, s); err != nil {
			return err
		}
		out, err = i.newTokens(ctx, tx, s, now)
		return err
	})
	if answer != nil && err != nil {
		if p := problem.Of(err); p != nil && p.Kind() == problem.Unauthenticated {
			i.metrics.refused.WithLabelValues(event.Action, p.Slug()).Inc()
			return Tokens{}, answer
		}
	}
	if err != nil {
		return Tokens{}, err
	}
	i.metrics.done.WithLabelValues(event.Action).Inc()
	return out, nil
}

// SessionInfo tells a customer about the session they use.
type SessionInfo struct {
	Session, Device, DeviceName    string
	Customer                       customer.ID
	LoggedIn, IdleExpires, Expires time.Time
}

// CurrentSession returns the session that acts.
func (i *Identity) CurrentSession(ctx context.Context, by actor.Actor) (out SessionInfo, err error) {
	c, err := caller(by)
	if err != nil {
		return out, err
	}
	event := audit.Event{Action: ActionSessionRead, Resource: "session " + by.Session, Customer: c}
	err = i.Trail.Do(ctx, by, event, func(tx *db.Tx, _ *audit.Event) error {
		s, ok, err := i.rows.sessionByID(ctx, tx, c, by.Session)
		if err != nil {
			return err
		}
		if !ok || s.revoked.Valid {
			return errSessionRevoked
		}
		d, _, err := i.rows.deviceByID(ctx, tx, c, s.device)
		if err != nil {
			return err
		}
		name, err := i.deviceName(ctx, tx, d)
		if err != nil {
			return err
		}
		out = SessionInfo{
			Session: s.id, Device: s.device, DeviceName: name, Customer: c, LoggedIn: clock.FromMicros(s.made),
			IdleExpires: clock.FromMicros(s.idleExpires), Expires: clock.FromMicros(s.expires),
		}
		return nil
	})
	return out, err
}

// Logout ends the session that acts, at once and everywhere.
func (i *Identity) Logout(ctx context.Context, by actor.Actor) error {
	c, err := caller(by)
	if err != nil {
		return err
	}
	event := audit.Event{Action: ActionSessionRevoke, Resource: "session " + by.Session, Customer: c}
	return i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		e.Reason = "logout"
		_, err := revokeSession(ctx, tx, by.Session, i.Clock.Now())
		return err
	})
}
