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
	Scope                         string
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

// newSession starts a session with the scopes on an authorised device.
func (i *Identity) newSession(ctx context.Context, tx *db.Tx, by actor.Actor, d deviceRow, scope string, now time.Time) (Tokens, error) {
	s := sessionRow{
		id: id.New("ses"), device: d.id, jkt: d.jkt, customer: d.customer, deviceStatus: d.status,
		made: clock.Micros(now), scope: scope, acr: ACR,
	}
	for one := range strings.SplitSeq(scope, " ") {
		_, whole := i.limits(one)
		s.expires = max(s.expires, clock.Micros(now.Add(whole)))
	}
	s.used = s.made
	i.use(&s, now)
	ring, err := i.Keys.Customer(ctx, tx, d.customer)
	if err != nil {
		return Tokens{}, err
	}
	if by.Address.IsValid() {
		s.origin = ring.Seal(place("session", d.customer, s.id), []byte(by.Address.String()))
	}
	if err := i.rows.insertSession(ctx, tx, s); err != nil {
		return Tokens{}, err
	}
	return i.newTokens(ctx, tx, s, nil, now)
}

// newTokens gives a session its next pair of tokens, for the refresh token whose hash is parent.
func (i *Identity) newTokens(ctx context.Context, tx *db.Tx, s sessionRow, parent []byte, now time.Time) (Tokens, error) {
	access, accessHash := newToken(accessPrefix)
	refresh, refreshHash := newToken(refreshPrefix)
	expires := min(clock.Micros(now.Add(i.AccessLifetime)), s.idleExpires)
	if err := insertTokens(ctx, tx, s.id, accessHash, refreshHash, parent, expires, s.expires); err != nil {
		return Tokens{}, err
	}
	return Tokens{
		Access: access, Refresh: refresh,
		AccessExpires:  clock.FromMicros(expires).Sub(now),
		RefreshExpires: clock.FromMicros(s.idleExpires).Sub(now),
		Session:        s.id, Device: s.device, Customer: s.customer, Scope: s.granted(),
	}, nil
}

// grace is for how long a refresh whose answer was lost may be repeated.
const grace = 30 * time.Second

// Refresh exchanges a refresh token for a new pair. A token that is used a second time was stolen,
// from the customer or by the customer's thief: the session ends for both (RFC 9700 section 4.14).
//
// A refresh whose answer was lost on the way looks the same at first. So within the grace the same key
// gets another pair for the same token, as long as no refresh token that came of it has been used: then the answer
// had arrived. Neither pair is worth anything without the key.
//
// A token that comes with another device's key is refused. It ends nothing while it has not been used,
// and is a reuse like any other once it has.
func (i *Identity) Refresh(ctx context.Context, by actor.Actor, token secret.Value) (Tokens, error) {
	return i.refreshWithin(ctx, by, token, "")
}

// refreshWithin is Refresh that is refused when the session does not have the scopes, or no longer.
func (i *Identity) refreshWithin(ctx context.Context, by actor.Actor, token secret.Value, scope string) (Tokens, error) {
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
	stolen := s.jkt != by.Key
	// Cheap refusals that change nothing are bounded in number; see denials.
	if stolen && (!s.tokenUsed.Valid || s.revoked.Valid) {
		return Tokens{}, i.denied(ctx, by, event, "other-device", s.id, errInvalidRefresh)
	}
	// Token and key belong together, so it is the customer who acts.
	if !stolen {
		by.Kind, by.ID, by.Device, by.Session = actor.Customer, string(s.customer), s.device, s.id
	}
	switch {
	case s.revoked.Valid:
		return Tokens{}, i.denied(ctx, by, event, "session-revoked", s.id, s.ended(errSessionRevoked))
	case s.over(now) || i.live(&s, now) == "":
		return Tokens{}, i.denied(ctx, by, event, "session-expired", s.id, errInvalidRefresh)
	case !stolen && !within(scope, i.live(&s, now)):
		return Tokens{}, i.denied(ctx, by, event, "scope-not-granted", s.id, errInvalidScope)
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
		good, err := useRefresh(ctx, tx, hash, now)
		if err != nil {
			return err
		}
		if !good && !stolen && s.tokenUsed.Valid && clock.Micros(now)-s.tokenUsed.Int64 <= grace.Microseconds() {
			arrived, err := successorUsed(ctx, tx, hash)
			if err != nil {
				return err
			}
			good, e.Reason = !arrived, "answer-lost"
		}
		if !good {
			e.Reason = ""
			if err := i.endSession(ctx, tx, by, s.customer, s.id, "refresh-token-reused", now); err != nil {
				return err
			}
			if stolen {
				return refuse("refresh-token-reused", errInvalidRefresh)
			}
			return refuse("refresh-token-reused", errSessionRevoked)
		}
		i.use(&s, now)
		if err := i.rows.touch(ctx, tx, s); err != nil {
			return err
		}
		out, err = i.newTokens(ctx, tx, s, hash, now)
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
	Scope, ACR                     string
	Address                        string // of the login; "" when it is not known
	LoggedIn, IdleExpires, Expires time.Time
	LastUsed                       time.Time // to the minute
	Current                        bool
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
		out, err = i.describe(ctx, tx, s, true)
		return err
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
