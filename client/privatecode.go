package client

import (
	"context"
	"net/http"
	"time"
)

// ChangePrivateCode changes the private code. All other sessions of the customer end. A wrong current code is
// ErrWrongPrivateCode and counts like one at a login; ErrWeakPrivateCode does not.
func (c *Client) ChangePrivateCode(ctx context.Context, current, changed string) error {
	_, err := c.call(ctx, request{method: http.MethodPost, path: "/v1/private-code", proof: bySession,
		body: map[string]string{"current_code": current, "new_code": changed}}, nil)
	return err
}

// PrivateCodeReset is one step towards a new private code, which awaits the code sent by SMS.
type PrivateCodeReset struct {
	ID        string // "rst_…"
	ExpiresAt time.Time

	client *Client
}

// ResetPrivateCode begins a step towards a new private code when the customer has forgotten theirs; it needs
// no session. It succeeds whatever the number is; the SMS comes only if this device is an authorised one of
// its customer. There are two such steps: the first begins a hold of a day, of which the customer is told, and
// the second, after it, sets the code.
func (c *Client) ResetPrivateCode(ctx context.Context, phone string) (*PrivateCodeReset, error) {
	var a struct {
		Reset     string `json:"reset"`
		ExpiresIn int64  `json:"expires_in"`
	}
	_, err := c.call(ctx, request{method: http.MethodPost, path: "/v1/private-code/resets", body: map[string]string{"phone": phone}}, &a)
	if err != nil {
		return nil, err
	}
	return &PrivateCodeReset{a.Reset, c.now().Add(time.Duration(a.ExpiresIn) * time.Second), c}, nil
}

// Complete ends the step with the code that came by SMS and the private code that the customer chooses. It
// returns from when on the second step may be done, or the zero time when the code is changed; then all
// sessions are over.
func (r *PrivateCodeReset) Complete(ctx context.Context, code, privateCode string) (usableAt time.Time, err error) {
	p, err := path("private-code", "resets", r.ID, "complete")
	if err != nil {
		return usableAt, err
	}
	var a struct {
		UsableAt time.Time `json:"usable_at"`
	}
	_, err = r.client.call(ctx, request{method: http.MethodPost, path: p, body: map[string]string{"code": code, "private_code": privateCode}}, &a)
	return a.UsableAt, err
}

// CancelPrivateCodeReset ends the hold: the private code stays. So does any login with it.
func (c *Client) CancelPrivateCodeReset(ctx context.Context) error {
	_, err := c.call(ctx, request{method: http.MethodDelete, path: "/v1/private-code/resets", proof: bySession}, nil)
	return err
}
