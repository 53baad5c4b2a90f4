package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"
)

// Registration is a sign-up that awaits the code sent by SMS.
type Registration struct {
	ID        string // "reg_…"
	ExpiresAt time.Time

	client *Client
}

// Registered is what a registration made.
type Registered struct {
	Customer string `json:"customer"` // "cus_…"
	Device   string `json:"device"`   // "dev_…", authorised from the start
}

// started is the answer to the start of a registration or login. The lifetime is in seconds.
type started struct {
	Registration string `json:"registration"`
	Login        string `json:"login"`
	ExpiresIn    int64  `json:"expires_in"`
}

// Register starts the registration of a mobile number, best written with its country code. The
// answer is the same for numbers that have an account; those get another SMS.
func (c *Client) Register(ctx context.Context, phone string) (*Registration, error) {
	var a started
	_, err := c.call(ctx, request{
		method: http.MethodPost,
		path:   "/v1/registrations",
		body:   map[string]string{"phone": phone},
	}, &a)
	if err != nil {
		return nil, err
	}
	return &Registration{a.Registration, c.now().Add(time.Duration(a.ExpiresIn) * time.Second), c}, nil
}

// Complete makes the account: code came by SMS, and privateCode is the customer's choice, of which
// the server asks at least eight characters that are not among the first to be guessed. The device
// is authorised, and the customer can log in. ErrWeakPrivateCode costs no try of the code;
// ErrRegistrationFailed does.
func (r *Registration) Complete(ctx context.Context, code, privateCode, deviceName string) (Registered, error) {
	return r.CompleteWith(ctx, RegistrationAnswer{Code: code, PrivateCode: privateCode, DeviceName: deviceName})
}

// RegistrationAnswer completes a registration.
type RegistrationAnswer struct {
	Code        string       `json:"code"`
	PrivateCode string       `json:"private_code"`
	DeviceName  string       `json:"device_name,omitempty"`
	Attestation *Attestation `json:"attestation,omitempty"`
}

// CompleteWith is Complete with what vouches for the device's key.
func (r *Registration) CompleteWith(ctx context.Context, answer RegistrationAnswer) (Registered, error) {
	var a Registered
	p, err := path("registrations", r.ID, "complete")
	if err != nil {
		return a, err
	}
	_, err = r.client.call(ctx, request{method: http.MethodPost, path: p, body: answer}, &a)
	return a, err
}

// Login is a login that awaits the code sent by SMS.
type Login struct {
	ID        string // "log_…"
	ExpiresAt time.Time
	// Passkey is what the platform's passkey call takes, when LoginBy was asked for one.
	Passkey json.RawMessage

	client *Client
}

// Login starts a login. It succeeds whatever number and private code are given, so that nobody
// learns who is a customer; the SMS comes only when both are right.
func (c *Client) Login(ctx context.Context, phone, privateCode string) (*Login, error) {
	var a started
	_, err := c.call(ctx, request{
		method: http.MethodPost,
		path:   "/v1/logins",
		body:   map[string]string{"phone": phone, "private_code": privateCode},
	}, &a)
	if err != nil {
		return nil, err
	}
	return &Login{ID: a.Login, ExpiresAt: c.now().Add(time.Duration(a.ExpiresIn) * time.Second), client: c}, nil
}

// Complete ends the login with the code that came by SMS, and begins the Client's session.
// ErrLoginFailed does not say which factor was wrong. ErrDevicePending means that all were right but
// the device is new: it is the problem's Text("device"), and must be approved from another one.
func (l *Login) Complete(ctx context.Context, code, deviceName string) (Tokens, error) {
	return l.CompleteWith(ctx, LoginAnswer{Code: code, DeviceName: deviceName})
}

// CompleteWith is Complete with a passkey's answer, or with what vouches for a new device.
func (l *Login) CompleteWith(ctx context.Context, answer LoginAnswer) (Tokens, error) {
	p, err := path("logins", l.ID, "complete")
	if err != nil {
		return Tokens{}, err
	}
	var a tokenAnswer
	_, err = l.client.call(ctx, request{
		method: http.MethodPost,
		path:   p,
		body:   answer,
	}, &a)
	if err != nil {
		return Tokens{}, err
	}
	t, err := a.tokens(l.client.now())
	if err != nil {
		return Tokens{}, err
	}
	return t, l.client.replace(ctx, nil, t)
}

// Logout ends the session on the server and forgets it here. When the server could not be reached
// the session is kept, so that Logout can be tried again.
func (c *Client) Logout(ctx context.Context) error {
	old, err := c.Tokens(ctx)
	if err != nil {
		return err
	}
	if old.IsZero() {
		return nil
	}
	_, err = c.call(ctx, request{method: http.MethodPost, path: "/v1/logout", proof: bySession}, nil)
	if err != nil && !over(err) {
		return err
	}
	return c.replace(ctx, nil, Tokens{})
}

// Device is one of the customer's devices.
type Device struct {
	ID         string       `json:"device"`
	Name       string       `json:"name"`
	Status     DeviceStatus `json:"status"`
	AddedAt    time.Time    `json:"added_at"`
	LastSeenAt time.Time    `json:"last_seen_at"` // zero when it was never used
	Current    bool         `json:"current"`      // it is this one

	Attestation string `json:"attestation"` // what vouches for its key, or ""
	Risk        string `json:"risk"`        // low, medium or high
}

// DeviceStatus says what a device may do.
type DeviceStatus string

// The states of a device.
const (
	DeviceAuthorised DeviceStatus = "authorised" // it may log in
	DevicePending    DeviceStatus = "pending"    // it awaits approval
	DeviceRevoked    DeviceStatus = "revoked"    // it may never log in again
)

// Devices returns all of the customer's devices.
func (c *Client) Devices(ctx context.Context) ([]Device, error) {
	var a struct {
		Devices []Device `json:"devices"`
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: "/v1/devices", proof: bySession, repeatable: true}, &a)
	return a.Devices, err
}

// ApproveDevice lets a pending device in. Number is what the customer reads on that device, where it came
// as the problem's Text("number"), and types into this one: never show it here. After three wrong ones
// (ErrWrongNumber) the device is refused for good.
func (c *Client) ApproveDevice(ctx context.Context, device, number string) error {
	p, err := path("devices", device, "approve")
	if err != nil {
		return err
	}
	_, err = c.call(ctx, request{method: http.MethodPost, path: p, proof: bySession, body: map[string]string{"number": number}}, nil)
	return err
}

// RevokeDevice shuts a device out and ends its sessions at once.
func (c *Client) RevokeDevice(ctx context.Context, device string) error {
	p, err := path("devices", device)
	if err != nil {
		return err
	}
	_, err = c.call(ctx, request{method: http.MethodDelete, path: p, proof: bySession}, nil)
	return err
}

// String names the device without its name, which is the customer's own text.
func (d Device) String() string { return fmt.Sprintf("%s (%s)", d.ID, d.Status) }

// over reports errors that say that the session has ended already.
func over(err error) bool {
	return errors.Is(err, ErrInvalidToken) || errors.Is(err, ErrSessionRevoked) || errors.Is(err, ErrInvalidRefresh) ||
		errors.Is(err, ErrNotLoggedIn) || errors.Is(err, ErrThisDeviceRevoked)
}
