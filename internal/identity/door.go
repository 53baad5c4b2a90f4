package identity

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"time"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/db"
	"strongroom/internal/identity/dpop"
	"strongroom/internal/problem"
)

// The challenges of RFC 9449 section 7.1 and RFC 6750 section 3.
const challengeHeader = "WWW-Authenticate"

func withChallenge(p *problem.Problem, code string) *problem.Problem {
	if code == "" {
		return p.WithHeader(challengeHeader, `DPoP algs="ES256"`)
	}
	return p.WithHeader(challengeHeader, `DPoP error="`+code+`", algs="ES256"`)
}

var (
	errNoToken = withChallenge(problem.New(problem.Unauthenticated, "invalid-token",
		"Send the access token as Authorization: DPoP <token>."), "")
	errInvalidToken = withChallenge(problem.New(problem.Unauthenticated, "invalid-token",
		"The access token is not good for this device, or no longer. Log in again."), "invalid_token")
	errTokenExpired = withChallenge(problem.New(problem.Unauthenticated, "token-expired",
		"The access token has expired. Refresh the session."), "invalid_token")
	errInvalidProof = withChallenge(problem.New(problem.Unauthenticated, "invalid-dpop-proof",
		"The DPoP proof is missing or not good for this request."), "invalid_dpop_proof")
	errUseNonce = withChallenge(problem.New(problem.Unauthenticated, "use-dpop-nonce",
		"Make the proof again with the nonce from the DPoP-Nonce header."), "use_dpop_nonce")
	errProofsBusy = problem.New(problem.Unavailable, "too-many-proofs",
		"Too many requests at this moment. Try again shortly.").RetryAfter(2 * time.Second)
)

// Nonce returns the nonce that the next proof must carry (RFC 9449 section 8).
func (i *Identity) Nonce() string { return i.proofs.Nonce() }

// Device proves that the caller holds a key, and nothing else: it returns the actor of ctx with the
// key's thumbprint. Its errors are problems.
func (i *Identity) Device(ctx context.Context, r *http.Request) (actor.Actor, error) {
	by := actor.From(ctx)
	by.Kind, by.ID, by.Device, by.Session, by.Key, by.Scope = actor.Anonymous, "", "", "", "", ""
	proof, err := i.proofs.Examine(r, "")
	if err == nil {
		err = i.proofs.Spend(proof, dpop.Stranger, network(by.Address))
	}
	if err != nil {
		return by, i.refusedProof(ctx, by, ActionDeviceCheck, err)
	}
	by.Key = proof.Thumbprint
	return by, nil
}

// Session proves that the caller acts in a session of a customer, on the device that the session is
// bound to: it returns the actor of ctx with all that is then known. Its errors are problems.
func (i *Identity) Session(ctx context.Context, r *http.Request) (actor.Actor, error) {
	by := actor.From(ctx)
	by.Kind, by.ID, by.Device, by.Session, by.Key, by.Scope = actor.Anonymous, "", "", "", "", ""
	event := audit.Event{Action: ActionSessionCheck}
	token, ok := bearer(r)
	if !ok {
		return by, i.denied(ctx, by, event, "no-token", "", errNoToken)
	}
	proof, err := i.proofs.Examine(r, token)
	if err != nil {
		return by, i.refusedProof(ctx, by, ActionSessionCheck, err)
	}
	by.Key = proof.Thumbprint

	now := i.Clock.Now()
	var s sessionRow
	var found bool
	if wellFormed(token, accessPrefix) {
		if s, found, err = i.sessionOf(ctx, token, now); err != nil {
			return by, err
		}
	}
	if !found {
		return by, i.denied(ctx, by, event, "unknown-token", "", errInvalidToken)
	}
	event.Customer, event.Resource = s.customer, "session "+s.id
	if s.jkt != proof.Thumbprint {
		return by, i.denied(ctx, by, event, "other-device", s.id, errInvalidToken)
	}
	// Only now, so that nobody but the holders of sessions takes of the memory for them.
	if err := i.proofs.Spend(proof, dpop.Session, string(s.customer)); err != nil {
		return by, i.refusedProof(ctx, by, ActionSessionCheck, err)
	}
	switch {
	case s.revoked.Valid:
		return by, i.denied(ctx, by, event, "session-revoked", s.id, s.ended(errInvalidToken))
	case s.deviceStatus != authorised:
		return by, i.denied(ctx, by, event, "device-revoked", s.id, s.ended(errInvalidToken))
	case clock.Micros(now) >= s.tokenExpires:
		return by, i.denied(ctx, by, event, "token-expired", s.id, errTokenExpired)
	case s.over(now) || i.live(&s, now) == "":
		return by, i.denied(ctx, by, event, "session-expired", s.id, errTokenExpired)
	}
	by.Scope = include(i.live(&s, now))
	if by.May(ScopePayment) && r.Method != http.MethodGet && r.Method != http.MethodHead {
		fresh, err := i.spendEverywhere(ctx, proof)
		if err != nil {
			return by, err
		}
		if !fresh {
			return by, i.denied(ctx, by, event, "proof-replayed", s.id, errInvalidProof)
		}
	}
	if clock.Micros(now)-s.used >= i.touchEvery(&s).Microseconds() {
		i.use(&s, now)
		if err := i.DB.UpdateReadCommitted(ctx, func(tx *db.Tx) error { return i.rows.touch(ctx, tx, s) }); err != nil {
			return by, err
		}
	}
	by.Kind, by.ID, by.Device, by.Session = actor.Customer, string(s.customer), s.device, s.id
	return by, nil
}

// spendEverywhere spends a proof for all servers on one database, and reports false when another has
// accepted it. A process remembers its own proofs by itself, and with the embedded database there is no other.
func (i *Identity) spendEverywhere(ctx context.Context, p dpop.Proof) (fresh bool, err error) {
	if i.DB.Engine() != db.PostgreSQL {
		return true, nil
	}
	digest, until := p.Spent()
	err = i.DB.UpdateReadCommitted(ctx, func(tx *db.Tx) (err error) {
		fresh, err = spendProof(ctx, tx, digest, until)
		return err
	})
	return fresh, err
}

// bearer returns the access token. Exactly one Authorization header with the scheme DPoP counts
// (RFC 9449 section 7.1); a bearer token is none.
func bearer(r *http.Request) (string, bool) {
	headers := r.Header["Authorization"]
	if len(headers) != 1 || len(headers[0]) > 256 {
		return "", false
	}
	scheme, token, ok := strings.Cut(headers[0], " ")
	token = strings.TrimLeft(token, " ")
	return token, ok && strings.EqualFold(scheme, "DPoP") && token != ""
}

func (i *Identity) refusedProof(ctx context.Context, by actor.Actor, action string, err error) error {
	var refusal *dpop.Refusal
	switch {
	case errors.Is(err, dpop.ErrNonce):
		return errUseNonce // a step of the protocol, not a refusal
	case errors.Is(err, dpop.ErrBusy):
		return errProofsBusy
	case errors.As(err, &refusal):
		return i.denied(ctx, by, audit.Event{Action: action}, "proof-"+refusal.Reason, "", errInvalidProof)
	}
	return err
}
