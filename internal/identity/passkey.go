package identity

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"strongroom/internal/actor"
	"strongroom/internal/audit"
	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/id"
	"strongroom/internal/problem"
)

var (
	errPasskeysOff    = problem.New(problem.Forbidden, "passkeys-off", "This server takes no passkeys.")
	errPasskeyRefused = problem.New(problem.Unprocessable, "factor-not-proven", "The passkey's answer is not good for this enrolment. Start it again.")
)

// newPasskeys returns the relying party, or nil when the operator has named none.
func newPasskeys(o PasskeyOptions, brand string) (*webauthn.WebAuthn, error) {
	if o.RelyingParty == "" {
		return nil, nil
	}
	w, err := webauthn.New(&webauthn.Config{
		RPID: o.RelyingParty, RPDisplayName: brand, RPOrigins: o.Origins, RPOpaqueOrigins: o.AppOrigins,
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementRequired, RequireResidentKey: new(true),
			UserVerification: protocol.VerificationRequired,
		},
	})
	if err != nil {
		return nil, fmt.Errorf("identity: passkeys: %w", err)
	}
	return w, nil
}

// PasskeyOptions say for whom passkeys are made (Web Authentication Level 3). Without RelyingParty there
// are none.
type PasskeyOptions struct {
	RelyingParty string   // a domain; apps prove that they belong to it
	Origins      []string // https origins of web apps
	AppOrigins   []string // android:apk-key-hash:… of Android apps; those of iOS use https
}

// holder is a customer as webauthn sees one. The names are shown by the telephone and say nothing: its
// owner knows who they are.
type holder struct {
	customer customer.ID
	brand    string
	keys     []webauthn.Credential
}

func (h holder) WebAuthnID() []byte                         { return []byte(h.customer) }
func (h holder) WebAuthnName() string                       { return h.brand }
func (h holder) WebAuthnDisplayName() string                { return h.brand }
func (h holder) WebAuthnCredentials() []webauthn.Credential { return h.keys }

// passkeysOf returns the customer as webauthn sees them, and the rows of their passkeys, in one order.
func (i *Identity) passkeysOf(ctx context.Context, tx *db.Tx, c customer.ID) (h holder, found []factorRow, err error) {
	h = holder{customer: c, brand: i.Brand}
	found, err = i.activeFactors(ctx, tx, c, factorPasskey)
	for _, f := range found {
		var key webauthn.Credential
		state, err := i.openFactor(ctx, tx, f)
		if err == nil {
			err = json.Unmarshal(state, &key)
		}
		if err != nil {
			return h, nil, fmt.Errorf("passkey %s: %w", f.id, err)
		}
		h.keys = append(h.keys, key)
	}
	return h, found, err
}

// PasskeyEnrolment is what a device needs to make a passkey.
type PasskeyEnrolment struct {
	ID      string
	Options json.RawMessage // of navigator.credentials.create, or an app's equivalent
}

// EnrolPasskey begins to make a passkey. It counts once ConfirmPasskey has its answer.
func (i *Identity) EnrolPasskey(ctx context.Context, by actor.Actor) (out PasskeyEnrolment, err error) {
	if i.passkeys == nil {
		return out, errPasskeysOff
	}
	out.ID = id.New("fac")
	err = i.inSession(ctx, by, ActionFactorAdd, "factor "+out.ID, true, func(tx *db.Tx, _ *audit.Event, c customer.ID, now time.Time) error {
		h, _, err := i.passkeysOf(ctx, tx, c)
		if err != nil {
			return err
		}
		options, session, err := i.passkeys.BeginRegistration(h, webauthn.WithExclusions(webauthn.Credentials(h.keys).CredentialDescriptors()))
		if err != nil {
			return err
		}
		if out.Options, err = json.Marshal(options); err != nil {
			return err
		}
		session.Expires = time.Time{} // the row says, by a clock that can be tested
		state, err := json.Marshal(session)
		if err != nil {
			return err
		}
		return i.startFactor(ctx, tx, c, factorPasskey, out.ID, state, now)
	})
	return out, err
}

// ConfirmPasskey ends the enrolment with the answer of the device, as WebAuthn's JSON has it.
func (i *Identity) ConfirmPasskey(ctx context.Context, by actor.Actor, factorID string, answer []byte) error {
	if i.passkeys == nil {
		return errPasskeysOff
	}
	if !id.Valid("fac", factorID) {
		return errFactorNotFound
	}
	return i.inSession(ctx, by, ActionFactorEnrol, "factor "+factorID, true, func(tx *db.Tx, _ *audit.Event, c customer.ID, now time.Time) error {
		f, err := i.pendingFactor(ctx, tx, c, factorPasskey, factorID, now)
		if err != nil {
			return err
		}
		state, err := i.openFactor(ctx, tx, f)
		if err != nil {
			return err
		}
		var session webauthn.SessionData
		if err := json.Unmarshal(state, &session); err != nil {
			return err
		}
		h, _, err := i.passkeysOf(ctx, tx, c)
		if err != nil {
			return err
		}
		parsed, err := protocol.ParseCredentialCreationResponseBody(bytes.NewReader(answer))
		if err != nil {
			return errPasskeyRefused.Because(err)
		}
		key, err := i.passkeys.CreateCredential(h, session, parsed)
		if err != nil {
			return errPasskeyRefused.Because(err)
		}
		for _, other := range h.keys {
			if bytes.Equal(other.ID, key.ID) {
				return errPasskeyRefused.Because(errors.New("the passkey is enrolled already"))
			}
		}
		if state, err = json.Marshal(key); err != nil {
			return err
		}
		return i.activate(ctx, tx, by, f, state, now)
	})
}

// askPasskey returns the options for a login with a passkey. They name no passkey, so they are the same
// whoever asks: the device finds the one that it holds for the relying party (ASVS 5.0 6.3.8).
func (i *Identity) askPasskey() (options json.RawMessage, challenge string, err error) {
	assertion, session, err := i.passkeys.BeginDiscoverableLogin(webauthn.WithUserVerification(protocol.VerificationRequired))
	if err != nil {
		return nil, "", err
	}
	options, err = json.Marshal(assertion)
	return options, session.Challenge, err
}

// passkeyMatches checks a device's answer to askPasskey, and writes the use of the passkey down. It says
// why a passkey of the customer is refused, which is for the trail.
func (i *Identity) passkeyMatches(ctx context.Context, tx *db.Tx, state challenge, answer []byte, now time.Time) (ok bool, reason string, err error) {
	if i.passkeys == nil {
		return false, "", nil
	}
	h, rows, err := i.passkeysOf(ctx, tx, state.Customer)
	if err != nil {
		return false, "", err
	}
	parsed, err := protocol.ParseCredentialRequestResponseBody(bytes.NewReader(answer))
	if err != nil {
		return false, "", nil // what came is no answer of a passkey
	}
	session := webauthn.SessionData{
		Challenge: state.Passkey, RelyingPartyID: i.Passkeys.RelyingParty, UserVerification: protocol.VerificationRequired,
	}
	find := func(_, handle []byte) (webauthn.User, error) {
		if state.Customer == "" || !bytes.Equal(handle, []byte(state.Customer)) {
			return nil, errors.New("a passkey of somebody else")
		}
		return h, nil
	}
	_, key, err := i.passkeys.ValidatePasskeyLogin(find, session, parsed)
	if err != nil {
		return false, "", nil
	}
	if key.Authenticator.CloneWarning {
		return false, "passkey-cloned", nil // its counter went back: there are two of it
	}
	for n, k := range h.keys {
		if bytes.Equal(k.ID, key.ID) {
			f := rows[n]
			f.used = clock.Micros(now)
			sealed, err := json.Marshal(key)
			if err != nil {
				return false, "", err
			}
			return true, "", i.saveFactor(ctx, tx, f, sealed)
		}
	}
	return false, "", nil
}
