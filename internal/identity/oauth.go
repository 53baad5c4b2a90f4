package identity

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"regexp"
	"slices"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/policy"
	"strongroom/internal/problem"
	"strongroom/internal/secret"
)

// The end of a login for apps that bring a standard OAuth client: instead of tokens it gives an authorization code
// (RFC 6749 section 4.1), which the token endpoint exchanges. There is no browser and no redirect on the
// way: the app is the customer's own, and the login operations are its authorization request.

// OAuthClient is the client_id of the customers' app. It is public (RFC 6749 section 2.1): what proves an
// installation of it is the key of its device.
const OAuthClient = "app"

// CodeGrantLifetime is how long an authorization code is good (RFC 6749 section 4.1.2 allows 10 minutes).
const CodeGrantLifetime = time.Minute

const codePrefix = "sac_"

// AuthorizationRequest is what an authorization code is bound to.
type AuthorizationRequest struct {
	Client    string // client_id
	Redirect  string // redirect_uri; only compared, since nobody is redirected
	Scope     string // "" means write
	Challenge string // code_challenge by S256 (RFC 7636 section 4.2)
}

var (
	errInvalidClient    = problem.New(problem.Unprocessable, "invalid-client", "The client_id is not known. The customers' app is %q.", OAuthClient)
	errInvalidChallenge = problem.New(problem.Unprocessable, "invalid-code-challenge", "A code_challenge is the SHA-256 of the verifier in base64url, 43 characters (RFC 7636).")
	errInvalidGrant     = problem.New(problem.Unauthenticated, "invalid-grant", "The authorization code is not good, or no longer. Log in again.")

	challengeForm = regexp.MustCompile(`\A[A-Za-z0-9_-]{43}\z`)
	verifierForm  = regexp.MustCompile(`\A[A-Za-z0-9._~-]{43,128}\z`)
)

// AuthorizeLogin is CompleteLogin that gives an authorization code in place of a session.
func (i *Identity) AuthorizeLogin(ctx context.Context, by actor.Actor, login string, code secret.Value, deviceName string, ask AuthorizationRequest) (out secret.Value, err error) {
	if ask.Scope, err = readScope(ask.Scope); err != nil {
		return out, err
	}
	if ask.Client != OAuthClient {
		return out, errInvalidClient
	}
	if !challengeForm.MatchString(ask.Challenge) {
		return out, errInvalidChallenge
	}
	err = i.finishLogin(ctx, by, login, Answer{Code: code, DeviceName: deviceName}, func(tx *db.Tx, d deviceRow, _ *audit.Event, now time.Time) error {
		token, hash := newToken(codePrefix)
		out = token
		return i.rows.insertCode(ctx, tx, codeRow{hash: hash, customer: d.customer, device: d.id, jkt: d.jkt, AuthorizationRequest: ask,
			expires: clock.Micros(now.Add(CodeGrantLifetime))})
	})
	if err != nil {
		return secret.Value{}, err
	}
	return out, nil
}

// ExchangeCode gives the session that an authorization code stands for, once, to the device that logged in
// and to nobody who does not know the verifier. A code that is used twice was seen by somebody else: the
// session that it gave ends (RFC 6749 section 4.1.2).
func (i *Identity) ExchangeCode(ctx context.Context, by actor.Actor, code, verifier secret.Value, client, redirect string) (Tokens, error) {
	if by.Key == "" {
		return Tokens{}, errNotDevice
	}
	event := audit.Event{Action: ActionCodeExchange}
	text := string(code.Reveal())
	hash := tokenHash(text)
	var row codeRow
	var found bool
	if wellFormed(text, codePrefix) {
		if err := i.DB.View(ctx, func(tx *db.Tx) (err error) {
			row, found, err = i.rows.codeByHash(ctx, tx, hash)
			return err
		}); err != nil {
			return Tokens{}, err
		}
	}
	if !found {
		return Tokens{}, i.denied(ctx, by, event, "unknown-code", "", errInvalidGrant)
	}
	now := i.Clock.Now()
	event.Customer, event.Resource = row.customer, "device "+row.device
	sum := sha256.Sum256(verifier.Reveal())
	proven := verifierForm.Match(verifier.Reveal()) &&
		subtle.ConstantTimeCompare([]byte(base64.RawURLEncoding.EncodeToString(sum[:])), []byte(row.Challenge)) == 1
	reason := ""
	switch {
	case row.jkt != by.Key:
		reason = "other-device"
	case row.Client != client:
		reason = "other-client"
	case row.Redirect != redirect:
		reason = "other-redirect"
	case !proven:
		reason = "wrong-code-verifier"
	case clock.Micros(now) >= row.expires && row.session == "":
		reason = "code-expired"
	}
	if reason != "" {
		return Tokens{}, i.denied(ctx, by, event, reason, row.device, errInvalidGrant)
	}
	by.Kind, by.ID, by.Device = actor.Customer, string(row.customer), row.device
	ctx, cancel := settle(ctx)
	defer cancel()
	var out Tokens
	refused := false
	err := i.Trail.Do(ctx, by, event, func(tx *db.Tx, e *audit.Event) error {
		out, refused = Tokens{}, false
		refuse := func(reason string) error {
			refused = true
			e.Deny(because(reason))
			return nil
		}
		row, found, err := i.rows.codeByHash(ctx, tx, hash)
		if err != nil {
			return err
		}
		if !found {
			return refuse("unknown-code")
		}
		if row.session != "" {
			if err := i.endSession(ctx, tx, by, row.customer, row.session, "code-reused", now); err != nil {
				return err
			}
			return refuse("code-reused")
		}
		device, has, err := i.rows.deviceByID(ctx, tx, row.customer, row.device)
		if err != nil {
			return err
		}
		if !has || device.status != authorised {
			return refuse("revoked-device")
		}
		if out, err = i.newSession(ctx, tx, by, device, row.Scope, now); err != nil {
			return err
		}
		e.Resource = "session " + out.Session
		return useCode(ctx, tx, hash, out.Session)
	})
	if refused && err != nil {
		if p := problem.Of(err); p != nil && p.Kind() == problem.Unauthenticated {
			i.metrics.refused.WithLabelValues(event.Action, p.Slug()).Inc()
			return Tokens{}, errInvalidGrant
		}
	}
	if err != nil {
		return Tokens{}, err
	}
	i.metrics.done.WithLabelValues(event.Action).Inc()
	return out, nil
}

// RevokeToken ends the session that an access or refresh token belongs to (RFC 7009). To hold the token
// is enough: whoever found one does no harm by ending it. It says nothing of tokens that are not good.
func (i *Identity) RevokeToken(ctx context.Context, by actor.Actor, token secret.Value) error {
	s, _, found, err := i.sessionOfToken(ctx, token)
	if err != nil {
		return err
	}
	event := audit.Event{Action: ActionSessionRevoke}
	if !found || s.revoked.Valid {
		err := i.denied(ctx, by, event, "unknown-token", "", errInvalidRefresh)
		if problem.Is(err, errInvalidRefresh.Slug()) {
			return nil
		}
		return err
	}
	event.Customer, event.Resource, event.Reason = s.customer, "session "+s.id, "token-revoked"
	return i.Trail.Do(ctx, by, event, func(tx *db.Tx, _ *audit.Event) error {
		_, err := revokeSession(ctx, tx, s.id, i.Clock.Now())
		return err
	})
}

// sessionOfToken finds the session of an access or refresh token, whatever state they are in.
func (i *Identity) sessionOfToken(ctx context.Context, token secret.Value) (s sessionRow, refresh, found bool, err error) {
	text := string(token.Reveal())
	refresh = wellFormed(text, refreshPrefix)
	if !refresh && !wellFormed(text, accessPrefix) {
		return s, false, false, nil
	}
	err = i.DB.View(ctx, func(tx *db.Tx) (err error) {
		if refresh {
			s, found, err = i.rows.sessionByRefresh(ctx, tx, tokenHash(text))
		} else {
			s, found, err = i.rows.sessionByAccess(ctx, tx, tokenHash(text))
		}
		return err
	})
	return s, refresh, found, err
}

// Services is the room as the operator's own services may use it, as far as policy permits. It is safe
// for concurrent use.
type Services struct {
	*Identity
	policy *policy.Set
}

// ForServices returns the room's operations for services.
func (i *Identity) ForServices(p *policy.Set) *Services { return &Services{i, p} }

// Introspection is what a service learns of a token (RFC 7662 section 2.2).
type Introspection struct {
	Active          bool
	Scope           string
	Customer        customer.ID
	Session, Device string
	Thumbprint      string // cnf.jkt: the service must ask for a proof by this key (RFC 9449 section 6)
	ACR             string
	LoggedIn        time.Time
	Issued, Expires time.Time
	Refresh         bool
}

// Introspect tells a service whether a token is good at this moment, and for what. All that is said of
// one that is not good is that it is not.
func (s *Services) Introspect(ctx context.Context, by actor.Actor, purpose string, token secret.Value) (out Introspection, err error) {
	event := audit.Event{Action: ActionSessionIntrospect, Resource: "token"}
	if p := policy.Purpose(purpose); p != nil {
		return out, s.Trail.Deny(ctx, by, event, p)
	}
	event.Reason = "purpose:" + purpose
	if p := s.policy.Decide(policy.Question{By: by, Action: policy.SessionIntrospect, Resource: policy.Environment(s.DB.Environment()), Purpose: purpose}); p != nil {
		return out, s.Trail.Deny(ctx, by, event, p)
	}
	row, refresh, found, err := s.sessionOfToken(ctx, token)
	if err != nil {
		return out, err
	}
	now := s.Clock.Now()
	if found {
		event.Customer, event.Resource = row.customer, "session "+row.id
	}
	if live := s.live(&row, now); found && !row.revoked.Valid && row.deviceStatus == authorised && clock.Micros(now) < row.tokenExpires && !row.over(now) && live != "" &&
		(!refresh || !row.tokenUsed.Valid) {
		out = Introspection{Active: true, Scope: include(live), Customer: row.customer, Session: row.id, Device: row.device, Thumbprint: row.jkt,
			ACR: ACR, LoggedIn: clock.FromMicros(row.made), Expires: clock.FromMicros(row.tokenExpires), Refresh: refresh}
	}
	if err := s.Trail.Do(ctx, by, event, func(*db.Tx, *audit.Event) error { return nil }); err != nil {
		return Introspection{}, err
	}
	return out, nil
}

// codeRow is an authorization code as it is stored.
type codeRow struct {
	hash     []byte
	customer customer.ID
	device   string
	jkt      string
	AuthorizationRequest
	expires int64
	session string // what it was exchanged for
}

func codeParts(c *codeRow) [][]byte {
	return [][]byte{[]byte("identity.code"), c.hash, []byte(c.customer), []byte(c.device), []byte(c.jkt), []byte(c.Client),
		[]byte(c.Redirect), []byte(c.Challenge), []byte(c.Scope), decimal(c.expires)}
}

func (r rows) insertCode(ctx context.Context, tx *db.Tx, c codeRow) error {
	_, err := tx.Exec(ctx, `
		INSERT INTO oauth_code (hash, customer_id, device_id, jkt, client, redirect, challenge, scope, expires_at, stamp)
		VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
		c.hash, string(c.customer), c.device, c.jkt, c.Client, c.Redirect, c.Challenge, c.Scope, c.expires, r.stamp(codeParts(&c)))
	return err
}

func (r rows) codeByHash(ctx context.Context, tx *db.Tx, hash []byte) (c codeRow, ok bool, err error) {
	var stamp []byte
	ok, err = none(tx.QueryRow(ctx, `
		SELECT hash, customer_id, device_id, jkt, client, redirect, challenge, scope, expires_at, COALESCE(session_id, ''), stamp
		FROM oauth_code WHERE hash = $1`, hash).
		Scan(&c.hash, &c.customer, &c.device, &c.jkt, &c.Client, &c.Redirect, &c.Challenge, &c.Scope, &c.expires, &c.session, &stamp))
	if ok {
		err = r.check(stamp, codeParts(&c))
	}
	return c, ok, err
}

func useCode(ctx context.Context, tx *db.Tx, hash []byte, session string) error {
	_, err := tx.Exec(ctx, `UPDATE oauth_code SET session_id = $1 WHERE hash = $2`, session, hash)
	return err
}

// deleteCodes voids the authorization codes of a customer.
func deleteCodes(ctx context.Context, tx *db.Tx, c customer.ID) error {
	_, err := tx.Exec(ctx, `DELETE FROM oauth_code WHERE customer_id = $1`, string(c))
	return err
}

// grantTypes are those of the token endpoint.
var grantTypes = []string{"authorization_code", "refresh_token"}

func knownGrant(grant string) bool { return slices.Contains(grantTypes, grant) }
