package client

import (
	"context"
	"encoding/json"
	"net/http"
	"time"
)

// Method is the second step of a login.
type Method string

// The methods. SMS is a restricted authenticator (NIST SP 800-63B-4): offer one of the others.
const (
	BySMS     Method = "sms"
	ByTOTP    Method = "totp"    // a code of an authenticator app
	ByPasskey Method = "passkey" // nothing to be phished
)

// Nonce returns the newest nonce that the server gave, or "" before its first answer. It is the challenge
// of an Attestation.
func (c *Client) Nonce() string {
	nonce, _ := c.proofState()
	return nonce
}

// Attestation vouches for the key of a new device. Challenge is what Nonce returned, not more than a
// quarter of an hour ago.
type Attestation struct {
	Challenge string   `json:"challenge"`
	Android   [][]byte `json:"android,omitempty"` // the chain of Android Key Attestation, DER, leaf first
	Apple     []byte   `json:"apple,omitempty"`   // App Attest's object over SHA-256 of challenge + "." + thumbprint of the key
}

// LoginBy starts a login with a second step other than a code by SMS. For ByPasskey the answer's Passkey
// is what the platform's passkey call takes.
func (c *Client) LoginBy(ctx context.Context, method Method, phone, privateCode string) (*Login, error) {
	var a struct {
		started
		Passkey json.RawMessage `json:"passkey"`
	}
	_, err := c.call(ctx, request{
		method: http.MethodPost,
		path:   "/v1/logins",
		body:   map[string]string{"phone": phone, "private_code": privateCode, "method": string(method)},
	}, &a)
	if err != nil {
		return nil, err
	}
	return &Login{ID: a.Login, ExpiresAt: c.now().Add(time.Duration(a.ExpiresIn) * time.Second), Passkey: a.Passkey, client: c}, nil
}

// LoginAnswer completes a login: Code or Passkey, according to its method.
type LoginAnswer struct {
	Code        string          `json:"code,omitempty"`
	Passkey     json.RawMessage `json:"passkey,omitempty"` // as the platform's passkey call returned it, in WebAuthn's JSON
	DeviceName  string          `json:"device_name,omitempty"`
	Scope       string          `json:"scope,omitempty"` // ScopeWrite when empty; several have a space between them
	Attestation *Attestation    `json:"attestation,omitempty"`
}

// TOTP is an authenticator app that is being enrolled.
type TOTP struct {
	Factor string
	Secret Secret // base32, to be typed into the app
	URI    Secret // the same, to be shown as a QR code

	client *Client
}

// EnrolTOTP gives the customer a secret for an authenticator app. It needs a recent login
// (ErrStepUpNeeded), and counts once Confirm has shown that the app has it.
func (c *Client) EnrolTOTP(ctx context.Context) (*TOTP, error) {
	var a struct {
		Factor string `json:"factor"`
		Secret string `json:"secret"`
		URI    string `json:"uri"`
	}
	_, err := c.call(ctx, request{method: http.MethodPost, path: "/v1/factors/totp", proof: bySession}, &a)
	if err != nil {
		return nil, err
	}
	return &TOTP{a.Factor, NewSecret(a.Secret), NewSecret(a.URI), c}, nil
}

// Confirm ends the enrolment with the code that the app shows.
func (t *TOTP) Confirm(ctx context.Context, code string) error {
	p, err := path("factors", "totp", t.Factor, "confirm")
	if err != nil {
		return err
	}
	_, err = t.client.call(ctx, request{method: http.MethodPost, path: p, proof: bySession, body: map[string]string{"code": code}}, nil)
	return err
}

// Passkey is a passkey that is being made.
type Passkey struct {
	Factor  string
	Options json.RawMessage // what the platform's call takes: {"publicKey": …} for navigator.credentials.create

	client *Client
}

// EnrolPasskey begins to make a passkey. It needs a recent login (ErrStepUpNeeded), and counts once Confirm
// has brought the platform's answer.
func (c *Client) EnrolPasskey(ctx context.Context) (*Passkey, error) {
	var a struct {
		Factor  string          `json:"factor"`
		Options json.RawMessage `json:"options"`
	}
	_, err := c.call(ctx, request{method: http.MethodPost, path: "/v1/factors/passkeys", proof: bySession}, &a)
	if err != nil {
		return nil, err
	}
	return &Passkey{a.Factor, a.Options, c}, nil
}

// Confirm ends the enrolment with what the platform's call returned, in WebAuthn's JSON.
func (p *Passkey) Confirm(ctx context.Context, credential json.RawMessage) error {
	at, err := path("factors", "passkeys", p.Factor, "confirm")
	if err != nil {
		return err
	}
	_, err = p.client.call(ctx, request{method: http.MethodPost, path: at, proof: bySession,
		body: map[string]json.RawMessage{"credential": credential}}, nil)
	return err
}

// SetSMS puts codes by SMS off, once there is another second step, or on again. It needs a recent login.
func (c *Client) SetSMS(ctx context.Context, enabled bool) error {
	_, err := c.call(ctx, request{method: http.MethodPut, path: "/v1/factors/sms", proof: bySession, body: map[string]bool{"enabled": enabled}}, nil)
	return err
}

// Factor is a second step beside SMS.
type Factor struct {
	ID         string    `json:"factor"`
	Kind       Method    `json:"kind"`
	Status     string    `json:"status"` // pending or active
	AddedAt    time.Time `json:"added_at"`
	LastUsedAt time.Time `json:"last_used_at"` // zero when it was never used
}

// Factors returns the customer's second steps, and whether codes are sent by SMS as well.
func (c *Client) Factors(ctx context.Context) (factors []Factor, sms bool, err error) {
	var a struct {
		Factors []Factor `json:"factors"`
		SMS     struct {
			Enabled bool `json:"enabled"`
		} `json:"sms"`
	}
	_, err = c.call(ctx, request{method: http.MethodGet, path: "/v1/factors", proof: bySession, repeatable: true}, &a)
	return a.Factors, a.SMS.Enabled, err
}

// RemoveFactor takes a second step away. It needs a recent login.
func (c *Client) RemoveFactor(ctx context.Context, factor string) error {
	p, err := path("factors", factor)
	if err != nil {
		return err
	}
	_, err = c.call(ctx, request{method: http.MethodDelete, path: p, proof: bySession}, nil)
	return err
}

// ReportLost shuts a device out at once, with its sessions, be it the last or this one.
func (c *Client) ReportLost(ctx context.Context, device string) error {
	p, err := path("devices", device, "lost")
	if err != nil {
		return err
	}
	_, err = c.call(ctx, request{method: http.MethodPost, path: p, proof: bySession}, nil)
	return err
}

// NumberChange is a change of number that awaits the code sent to the new one.
type NumberChange struct {
	ID        string // "num_…"
	ExpiresAt time.Time

	client *Client
}

// ChangeNumber sends a one-time code to the number that shall be the customer's. It needs a recent login.
func (c *Client) ChangeNumber(ctx context.Context, phone string) (*NumberChange, error) {
	var a struct {
		Change    string `json:"change"`
		ExpiresIn int64  `json:"expires_in"`
	}
	_, err := c.call(ctx, request{method: http.MethodPost, path: "/v1/number", proof: bySession, body: map[string]string{"phone": phone}}, &a)
	if err != nil {
		return nil, err
	}
	return &NumberChange{a.Change, c.now().Add(time.Duration(a.ExpiresIn) * time.Second), c}, nil
}

// Complete proves the new number, and returns when it counts: a day later, unless somebody cancels.
func (n *NumberChange) Complete(ctx context.Context, code string) (time.Time, error) {
	var a struct {
		ChangesAt time.Time `json:"changes_at"`
	}
	p, err := path("number", n.ID, "complete")
	if err != nil {
		return a.ChangesAt, err
	}
	_, err = n.client.call(ctx, request{method: http.MethodPost, path: p, proof: bySession, body: map[string]string{"code": code}}, &a)
	return a.ChangesAt, err
}

// CancelNumberChange keeps the old number.
func (c *Client) CancelNumberChange(ctx context.Context) error {
	_, err := c.call(ctx, request{method: http.MethodDelete, path: "/v1/number", proof: bySession}, nil)
	return err
}

// CancelNumberChangeByCode keeps the old number, without a session, by the code that was sent to it.
func (c *Client) CancelNumberChangeByCode(ctx context.Context, code string) error {
	_, err := c.call(ctx, request{method: http.MethodPost, path: "/v1/number/cancel", body: map[string]string{"code": code}}, nil)
	return err
}

// Notice is something that has happened to the account.
type Notice struct {
	ID     string    `json:"notice"`
	Kind   string    `json:"kind"` // for example device-new, number-changed
	Device string    `json:"device"`
	MadeAt time.Time `json:"made_at"`
}

// Notices returns what has happened to the account lately, newest first.
func (c *Client) Notices(ctx context.Context) ([]Notice, error) {
	var a struct {
		Notices []Notice `json:"notices"`
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: "/v1/notices", proof: bySession, repeatable: true}, &a)
	return a.Notices, err
}
