package mobile

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"

	"strongroom/client"
)

// Attestation vouches for the key of a new device, where the server asks for it.
type Attestation struct {
	Challenge string // what App.Nonce returned, not more than a quarter of an hour ago
	Android   []byte // the chain of Android Key Attestation, DER, one certificate after the other, leaf first
	Apple     []byte // App Attest's object over SHA-256 of challenge + "." + thumbprint of the key
}

// NewAttestation returns an attestation of nothing yet.
func NewAttestation(challenge string) *Attestation { return &Attestation{Challenge: challenge} }

func (a *Attestation) value() (*client.Attestation, error) {
	if a == nil {
		return nil, nil
	}
	out := &client.Attestation{Challenge: a.Challenge, Apple: a.Apple}
	chain, err := x509.ParseCertificates(a.Android)
	if err != nil {
		return nil, errors.New("strongroom: Android is no chain of certificates")
	}
	for _, c := range chain {
		out.Android = append(out.Android, c.Raw)
	}
	return out, nil
}

// Nonce returns the newest nonce that the server gave, or "" before its first answer: the challenge of an
// attestation.
func (a *App) Nonce() string { return a.client.Nonce() }

// CompleteAttested is Complete with what vouches for the device's key.
func (r *Registration) CompleteAttested(code, privateCode, deviceName string, attestation *Attestation) error {
	vouched, err := attestation.value()
	if err != nil {
		return err
	}
	_, err = r.of.CompleteWith(context.Background(), client.RegistrationAnswer{Code: code, PrivateCode: privateCode, DeviceName: deviceName, Attestation: vouched})
	return err
}

// LoginBy starts a login whose second step is "sms", "totp" or "passkey".
func (a *App) LoginBy(method, phone, privateCode string) (*Login, error) {
	l, err := a.client.LoginBy(context.Background(), client.Method(method), phone, privateCode)
	if err != nil {
		return nil, err
	}
	return &Login{of: l}, nil
}

// Passkey returns what the platform's passkey call takes, as JSON, when the login is by passkey.
func (l *Login) Passkey() string { return string(l.of.Passkey) }

// CompleteWith ends a login by a code or by a passkey's answer in WebAuthn's JSON; the other is "". Scope is
// "read", "write" or "payment", or several with a space between them; "" is "write". The attestation may be
// nil.
func (l *Login) CompleteWith(code, passkey, deviceName, scope string, attestation *Attestation) error {
	vouched, err := attestation.value()
	if err != nil {
		return err
	}
	_, err = l.of.CompleteWith(context.Background(), client.LoginAnswer{Code: code, Passkey: json.RawMessage(passkey), DeviceName: deviceName, Scope: scope, Attestation: vouched})
	return l.pending(err)
}

// pending remembers what a login was told that waits for approval.
func (l *Login) pending(err error) error {
	if p := (*client.Problem)(nil); errors.As(err, &p) && errors.Is(err, client.ErrDevicePending) {
		l.number = p.Text("number")
	}
	return err
}

// Number is what this device shows after the slug "device-pending": the customer types it into a device that
// is authorised.
func (l *Login) Number() string { return l.number }

// text returns a value as JSON.
func text(v any, err error) (string, error) {
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(v)
	return string(b), err
}

// ReportLost shuts a device out at once.
func (a *App) ReportLost(device string) error {
	return a.client.ReportLost(context.Background(), device)
}

// Session returns this session as JSON: {"session","customer","device","scope","expires_at",…}.
func (a *App) Session() (string, error) { return text(a.client.Session(context.Background())) }

// Sessions returns the customer's sessions as JSON: [{"session","device_name","address","scope","last_used_at","current",…}].
func (a *App) Sessions() (string, error) { return text(a.client.Sessions(context.Background())) }

// RevokeSession ends one of them.
func (a *App) RevokeSession(session string) error {
	return a.client.RevokeSession(context.Background(), session)
}

// RevokeOtherSessions ends all but this one, and returns how many.
func (a *App) RevokeOtherSessions() (int, error) {
	return a.client.RevokeOtherSessions(context.Background())
}

// Notices returns what has happened to the account as JSON: [{"notice","kind","device","made_at"}].
func (a *App) Notices() (string, error) { return text(a.client.Notices(context.Background())) }

// Factors returns the customer's second steps as JSON: {"factors":[{"factor","kind","status",…}],"sms":true}.
func (a *App) Factors() (string, error) {
	factors, sms, err := a.client.Factors(context.Background())
	return text(map[string]any{"factors": factors, "sms": sms}, err)
}

// SetSMS puts codes by SMS off, once there is another second step, or on again.
func (a *App) SetSMS(enabled bool) error { return a.client.SetSMS(context.Background(), enabled) }

// RemoveFactor takes a second step away.
func (a *App) RemoveFactor(factor string) error {
	return a.client.RemoveFactor(context.Background(), factor)
}

// TOTP is an authenticator app that is being enrolled.
type TOTP struct {
	Secret string // base32, to be typed into the app
	URI    string // the same, to be shown as a QR code
	of     *client.TOTP
}

// EnrolTOTP gives the customer a secret for an authenticator app, which counts once it is confirmed.
func (a *App) EnrolTOTP() (*TOTP, error) {
	t, err := a.client.EnrolTOTP(context.Background())
	if err != nil {
		return nil, err
	}
	return &TOTP{t.Secret.Reveal(), t.URI.Reveal(), t}, nil
}

// Confirm ends the enrolment with the code that the app shows.
func (t *TOTP) Confirm(code string) error { return t.of.Confirm(context.Background(), code) }

// Passkey is a passkey that is being made.
type Passkey struct {
	Options string // what the platform's call takes, as JSON
	of      *client.Passkey
}

// EnrolPasskey begins to make a passkey.
func (a *App) EnrolPasskey() (*Passkey, error) {
	p, err := a.client.EnrolPasskey(context.Background())
	if err != nil {
		return nil, err
	}
	return &Passkey{string(p.Options), p}, nil
}

// Confirm ends it with what the platform's call returned, in WebAuthn's JSON.
func (p *Passkey) Confirm(credential string) error {
	return p.of.Confirm(context.Background(), json.RawMessage(credential))
}

// ChangePrivateCode changes the private code; all other sessions end.
func (a *App) ChangePrivateCode(current, changed string) error {
	return a.client.ChangePrivateCode(context.Background(), current, changed)
}

// PrivateCodeReset is a step towards a new private code, which awaits the code sent by SMS.
type PrivateCodeReset struct{ of *client.PrivateCodeReset }

// ResetPrivateCode begins such a step; there are two, with a day between them.
func (a *App) ResetPrivateCode(phone string) (*PrivateCodeReset, error) {
	r, err := a.client.ResetPrivateCode(context.Background(), phone)
	if err != nil {
		return nil, err
	}
	return &PrivateCodeReset{r}, nil
}

// Complete ends the step. It returns from when on the second one may be done, in Unix seconds, or 0 when the
// private code is changed.
func (r *PrivateCodeReset) Complete(code, privateCode string) (int64, error) {
	at, err := r.of.Complete(context.Background(), code, privateCode)
	if err != nil || at.IsZero() {
		return 0, err
	}
	return at.Unix(), nil
}

// CancelPrivateCodeReset keeps the private code.
func (a *App) CancelPrivateCodeReset() error {
	return a.client.CancelPrivateCodeReset(context.Background())
}

// NumberChange is a change of number that awaits the code sent to the new one.
type NumberChange struct{ of *client.NumberChange }

// ChangeNumber sends a one-time code to the number that shall be the customer's.
func (a *App) ChangeNumber(phone string) (*NumberChange, error) {
	n, err := a.client.ChangeNumber(context.Background(), phone)
	if err != nil {
		return nil, err
	}
	return &NumberChange{n}, nil
}

// Complete proves the new number, and returns when it counts, in Unix seconds.
func (n *NumberChange) Complete(code string) (int64, error) {
	at, err := n.of.Complete(context.Background(), code)
	return at.Unix(), err
}

// CancelNumberChange keeps the old number: in this session when the code is "", or without one by the code that
// was sent to the old number.
func (a *App) CancelNumberChange(code string) error {
	if code == "" {
		return a.client.CancelNumberChange(context.Background())
	}
	return a.client.CancelNumberChangeByCode(context.Background(), code)
}

// Payment is a payment that the customer is asked to authorise.
type Payment struct {
	ID       string
	Status   string // asked, authorised, used or void
	Amount   string // decimal: "49.90"
	Currency string
	Payee    string
	Account  string
}

func payment(p client.Payment, err error) (*Payment, error) {
	if err != nil {
		return nil, err
	}
	return &Payment{p.ID, string(p.Status), p.Amount, p.Currency, p.Payee, p.Account}, nil
}

// Payment returns a payment, to be shown. It needs a session with the scope "payment".
func (a *App) Payment(id string) (*Payment, error) {
	return payment(a.client.Payment(context.Background(), id))
}

// SendPaymentCode sends a one-time code that is good for this payment's terms alone.
func (a *App) SendPaymentCode(id string) error {
	_, err := a.client.SendPaymentCode(context.Background(), id)
	return err
}

// AuthorisePayment authorises the payment as it was shown.
func (a *App) AuthorisePayment(shown *Payment, code string) (*Payment, error) {
	if shown == nil {
		return nil, errors.New("strongroom: a payment is needed")
	}
	return payment(a.client.AuthorisePayment(context.Background(), shown.ID, code,
		client.PaymentTerms{Amount: shown.Amount, Currency: shown.Currency, Payee: shown.Payee, Account: shown.Account}))
}
