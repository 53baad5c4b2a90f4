package identity

import (
	"errors"
	"fmt"
	"time"

	"strongroom/internal/identity/attest"
	"strongroom/internal/identity/dpop"
	"strongroom/internal/problem"
)

// AttestPolicy says what must vouch for the key of a new device.
type AttestPolicy string

// The policies.
const (
	AttestOff      AttestPolicy = "off"       // nothing; what is sent is not looked at
	AttestWhenSent AttestPolicy = "when-sent" // what is sent must be good
	AttestRequired AttestPolicy = "required"  // a new device must send one
)

// AttestOptions are the policy, and whose keys are vouched for.
type AttestOptions struct {
	Policy AttestPolicy // "" means when-sent
	attest.Options
}

// Attestation is what the maker of a telephone says of a device's key. Its challenge is a nonce that this
// server gave in a DPoP-Nonce header, not older than a quarter of an hour; the statement is about the
// device's key, so that sending it twice gains nobody anything.
type Attestation struct {
	Challenge string
	// Android is the chain of Android Key Attestation, DER, leaf first; the attested key is the device's.
	Android [][]byte
	// Apple is App Attest's object. Its key is another, so it is made over the challenge, a full stop, and
	// the RFC 7638 thumbprint of the device's.
	Apple []byte
}

// attestLifetime is how old a challenge may be: a registration waits for a message in between.
const attestLifetime = 15 * time.Minute

var (
	errAttestationRefused  = problem.New(problem.Forbidden, "attestation-refused", "The attestation of this device is not good. Make a new key with a fresh nonce as its challenge, and start again.")
	errAttestationRequired = problem.New(problem.Forbidden, "attestation-required", "A new device must send an attestation of its key.")
)

func newAttestation(o AttestOptions) (*attest.Verifier, error) {
	switch o.Policy {
	case "", AttestOff, AttestWhenSent, AttestRequired:
		return attest.New(o.Options)
	}
	return nil, fmt.Errorf("identity: %q is no policy of attestation", o.Policy)
}

// attested says what vouches for the key jkt: "" when nothing was sent.
func (i *Identity) attested(jkt string, a Attestation) (attest.Level, error) {
	if i.Attest.Policy == AttestOff || len(a.Android) == 0 && len(a.Apple) == 0 {
		return "", nil
	}
	now := i.Clock.Now()
	if made, ok := i.nonces.MadeAt(a.Challenge); !ok || now.Sub(made) > attestLifetime || made.Sub(now) > time.Minute {
		return "", errAttestationRefused.Because(errors.New("the challenge is not ours, or too old"))
	}
	if len(a.Apple) > 0 {
		level, err := i.attest.Apple(a.Apple, []byte(a.Challenge+"."+jkt), now)
		if err != nil {
			return "", errAttestationRefused.Because(err)
		}
		return level, nil
	}
	key, level, err := i.attest.Android(a.Android, []byte(a.Challenge), now)
	if err != nil {
		return "", errAttestationRefused.Because(err)
	}
	if own, err := dpop.Thumbprint(key); err != nil || own != jkt {
		return "", errAttestationRefused.Because(errors.New("the attested key is not the device's"))
	}
	return level, nil
}
