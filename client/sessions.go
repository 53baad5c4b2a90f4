package client

import (
	"context"
	"net/http"
	"time"
)

// Scopes of a session, from the least to the most; each includes those before it and ends by itself, so
// "read payment" pays until it has idled for minutes and reads on for weeks. A scope that has ended comes back
// with the next login. LoginAnswer asks for them.
const (
	ScopeRead    = "read"
	ScopeWrite   = "write"
	ScopePayment = "payment"
)

// Session is a session as the server knows it.
type Session struct {
	ID            string    `json:"session"`
	Customer      string    `json:"customer"` // of the Client's own session only
	Device        string    `json:"device"`
	DeviceName    string    `json:"device_name"`
	Scope         string    `json:"scope"`   // what it may do now
	ACR           string    `json:"acr"`     // how its customer was authenticated; of the Client's own only
	Address       string    `json:"address"` // where the login came from, in Sessions, or ""
	LoggedInAt    time.Time `json:"logged_in_at"`
	LastUsedAt    time.Time `json:"last_used_at"`    // to the minute, in Sessions
	IdleExpiresAt time.Time `json:"idle_expires_at"` // when it ends unless it is used
	ExpiresAt     time.Time `json:"expires_at"`      // when it ends in any case
	Current       bool      `json:"current"`         // it is the Client's own
}

// Session returns the Client's session.
func (c *Client) Session(ctx context.Context) (Session, error) {
	s := Session{Current: true}
	_, err := c.call(ctx, request{method: http.MethodGet, path: "/v1/session", proof: bySession, repeatable: true}, &s)
	return s, err
}

// Sessions returns all of the customer's sessions, on all devices.
func (c *Client) Sessions(ctx context.Context) ([]Session, error) {
	var a struct {
		Sessions []Session `json:"sessions"`
	}
	_, err := c.call(ctx, request{method: http.MethodGet, path: "/v1/sessions", proof: bySession, repeatable: true}, &a)
	return a.Sessions, err
}

// RevokeSession ends one of the customer's sessions at once.
func (c *Client) RevokeSession(ctx context.Context, session string) error {
	p, err := path("sessions", session)
	if err != nil {
		return err
	}
	_, err = c.call(ctx, request{method: http.MethodDelete, path: p, proof: bySession}, nil)
	return err
}

// RevokeOtherSessions ends all of the customer's sessions but this one, and returns how many.
func (c *Client) RevokeOtherSessions(ctx context.Context) (int, error) {
	var a struct {
		Revoked int `json:"revoked"`
	}
	_, err := c.call(ctx, request{method: http.MethodPost, path: "/v1/sessions/revoke-others", proof: bySession}, &a)
	return a.Revoked, err
}

// AuthorizationRequest is what a standard OAuth client in the app asks for (RFC 6749 section 4.1.1, RFC 7636).
type AuthorizationRequest struct {
	Code          string `json:"code"` // the login's one-time code
	DeviceName    string `json:"device_name,omitempty"`
	ClientID      string `json:"client_id"`
	CodeChallenge string `json:"code_challenge"` // of the client's verifier, by S256
	RedirectURI   string `json:"redirect_uri,omitempty"`
	Scope         string `json:"scope,omitempty"`
	State         string `json:"state,omitempty"`
}

// Authorization is the answer for such a client (RFC 6749 section 4.1.2, RFC 9207).
type Authorization struct {
	Code      Secret
	Issuer    string
	State     string
	ExpiresAt time.Time
}

// Authorize ends the login with an authorization code for a standard OAuth client, in place of a session of
// this Client. The code is bound to the device's key.
func (l *Login) Authorize(ctx context.Context, r AuthorizationRequest) (Authorization, error) {
	p, err := path("logins", l.ID, "authorize")
	if err != nil {
		return Authorization{}, err
	}
	var a struct {
		Code      string `json:"code"`
		Issuer    string `json:"iss"`
		State     string `json:"state"`
		ExpiresIn int64  `json:"expires_in"`
	}
	body := struct {
		AuthorizationRequest
		ResponseType string `json:"response_type"`
		Method       string `json:"code_challenge_method"`
	}{r, "code", "S256"}
	if _, err = l.client.call(ctx, request{method: http.MethodPost, path: p, body: body}, &a); err != nil {
		return Authorization{}, err
	}
	return Authorization{NewSecret(a.Code), a.Issuer, a.State, l.client.now().Add(time.Duration(a.ExpiresIn) * time.Second)}, nil
}
