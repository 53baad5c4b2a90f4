// Package totp checks the codes of authenticator apps: time-based one-time passwords of six digits over
// HMAC-SHA-1 and steps of 30 seconds (RFC 6238), which is what every such app can do.
package totp

import (
	"crypto/rand"
	"crypto/subtle"
	"encoding/base32"
	"fmt"
	"net/url"
	"time"

	"github.com/pquerna/otp"
	"github.com/pquerna/otp/hotp"
)

// Period is how long a code is shown. ASVS 5.0 6.5.5 allows 30 seconds.
const Period = 30 * time.Second

// Digits is the length of a code.
const Digits = 6

// skew is by how many steps a telephone's clock may be wrong (RFC 6238 section 5.2 recommends one).
const skew = 1

// secretSize is the length of a secret in bytes, that of the hash (RFC 4226 section 4, R6).
const secretSize = 20

var encoding = base32.StdEncoding.WithPadding(base32.NoPadding)

// NewSecret returns 160 random bits.
func NewSecret() []byte {
	secret := make([]byte, secretSize)
	rand.Read(secret)
	return secret
}

// Text is the secret as people type it into an app, in base32.
func Text(secret []byte) string { return encoding.EncodeToString(secret) }

// URI is the secret as an app reads it from a QR code, in the Key URI format. The label names the
// issuer and nothing about the customer.
func URI(secret []byte, issuer string) string {
	v := url.Values{"secret": {Text(secret)}, "issuer": {issuer}, "algorithm": {"SHA1"}, "digits": {"6"}, "period": {"30"}}
	u := url.URL{Scheme: "otpauth", Host: "totp", Path: "/" + issuer, RawQuery: v.Encode()}
	return u.String()
}

// Step returns the time step of now, counted from the Unix epoch.
func Step(now time.Time) int64 { return now.Unix() / int64(Period/time.Second) }

// Match returns the time step that code belongs to, if it belongs to one that is good at now and is
// later than the step last used: a code works once (RFC 6238 section 5.2, ASVS 5.0 6.5.1). Every step is
// compared, in constant time.
func Match(secret []byte, code []byte, now time.Time, last int64) (step int64, ok bool, err error) {
	for s := Step(now) - skew; s <= Step(now)+skew; s++ {
		want, err := at(secret, s, otp.DigitsSix)
		if err != nil {
			return 0, false, err
		}
		if subtle.ConstantTimeCompare([]byte(want), code) == 1 && s > last {
			step, ok = s, true
		}
	}
	return step, ok, nil
}

func at(secret []byte, step int64, digits otp.Digits) (string, error) {
	if step < 0 {
		return "", fmt.Errorf("totp: time step %d lies before 1970", step)
	}
	return hotp.GenerateCodeCustom(Text(secret), uint64(step), hotp.ValidateOpts{Digits: digits, Algorithm: otp.AlgorithmSHA1})
}
