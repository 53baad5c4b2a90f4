package identity

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/customer"
	"strongroom/internal/db"
	"strongroom/internal/identity/totp"
	"strongroom/internal/secret"
)

// Method is how the second step of a login is taken. The caller chooses it before anything is known of
// them, and whether the account has such a factor does not show.
type Method string

// The methods.
const (
	BySMS     Method = "sms"     // a code is sent; restricted, in the words of NIST SP 800-63B-4
	ByTOTP    Method = "totp"    // an authenticator app shows a code
	ByPasskey Method = "passkey" // a passkey signs: nothing to be phished
)

// Answer is what completes a login.
type Answer struct {
	Code       secret.Value    // by SMS or of an authenticator app
	Passkey    json.RawMessage // the answer of a passkey, as WebAuthn's JSON has it
	DeviceName string          // of a new device
	Scope      string          // of the session, separated by spaces; "" is to write
	// Attestation vouches for the key of a new device; see Attestation.
	Attestation Attestation
}

// lacks says why the customer cannot take the second step so, or "".
func (i *Identity) lacks(ctx context.Context, tx *db.Tx, c customer.ID, m Method, now time.Time) (string, error) {
	if m == BySMS {
		rule, err := i.rows.smsRuleOf(ctx, tx, c)
		return rule.why(now), err
	}
	found, err := i.activeFactors(ctx, tx, c, string(m))
	if err != nil || len(found) > 0 {
		return "", err
	}
	return "no-" + string(m), nil
}

// secondStep compares the answer with what the challenge asks for. A reason beside a match that failed
// is no guess: something of the customer's own was refused.
func (i *Identity) secondStep(ctx context.Context, tx *db.Tx, row challengeRow, state challenge, jkt string, a Answer, now time.Time) (ok bool, reason string, err error) {
	switch state.Method {
	case ByTOTP:
		return i.totpMatches(ctx, tx, state, a.Code, now)
	case ByPasskey:
		return i.passkeyMatches(ctx, tx, state, a.Passkey, now)
	}
	// Of somebody whose codes were put off or held back since this one was sent, none is good any more.
	rule, err := i.rows.smsRuleOf(ctx, tx, state.Customer)
	if err != nil {
		return false, "", err
	}
	ok, err = i.codeMatches(row, jkt, a.Code)
	if reason = rule.why(now); reason != "" {
		ok = false
	}
	return ok, reason, err
}

// totpMatches compares the code with each of the customer's authenticator apps, or with one that nobody
// has, and marks its time step as used.
func (i *Identity) totpMatches(ctx context.Context, tx *db.Tx, state challenge, code secret.Value, now time.Time) (bool, string, error) {
	if state.Reason != "" {
		_, _, err := totp.Match(noSecret[:], code.Reveal(), now, 0)
		return false, "", err
	}
	found, err := i.activeFactors(ctx, tx, state.Customer, factorTOTP)
	if err != nil {
		return false, "", err
	}
	for _, f := range found {
		key, err := i.openFactor(ctx, tx, f)
		if err != nil {
			return false, "", err
		}
		step, ok, err := totp.Match(key, code.Reveal(), now, f.step)
		if err != nil {
			return false, "", err
		}
		if ok {
			f.step, f.used = step, clock.Micros(now)
			return true, "", i.rows.putFactor(ctx, tx, f)
		}
	}
	return false, "", nil
}

// noSecret is what the codes of those are compared with who have no authenticator app.
var noSecret = func() (s [20]byte) { rand.Read(s[:]); return s }()

// answerFloor is how long the check of a second step takes at least when no code was sent: looking at an
// account's factors takes longer than finding that there are none, by less than this.
const answerFloor = 25 * time.Millisecond
