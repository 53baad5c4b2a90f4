package sms

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"strongroom/internal/clock"
	"strongroom/internal/secret"
)

// SignatureHeader carries the signature of a webhook request: "t=<Unix seconds>,v1=<hex>", where v1
// is the HMAC-SHA-256, under the shared secret, of the seconds, a full stop and the body. A receiver
// checks it in constant time and refuses an old t.
const SignatureHeader = "Strongroom-Signature"

// maxAnswer bounds what is read of a gateway's answer, in bytes.
const maxAnswer = 64 << 10

// WebhookOptions configure a Webhook.
type WebhookOptions struct {
	// URL is the gateway's https address. It must not hold a user or a fragment.
	URL string
	// Secret signs each request; at least 16 bytes.
	Secret secret.Value
	// Timeout bounds one request; 0 means 5 s.
	Timeout time.Duration
	// Roots are the authorities that may vouch for the gateway; nil means the host's.
	Roots *x509.CertPool
	Clock clock.Clock
}

// Webhook is a Sender that asks a gateway by a signed POST with the JSON body
// {"id", "to", "text", "sent_at"}. Any 2xx answer is acceptance. 408 and 429 mean that this message
// must be tried again later, every other 4xx but 401, 402 and 403 that it will never be taken. Everything
// else, and no answer, is a failure of the gateway. Redirects are not followed, since they would carry
// a code to where nobody configured.
type Webhook struct {
	url    string
	secret secret.Value
	client *http.Client
	clock  clock.Clock
}

// NewWebhook returns a Webhook, or says what is wrong with its options.
func NewWebhook(o WebhookOptions) (*Webhook, error) {
	u, err := endpoint(o.URL)
	if err != nil {
		return nil, err
	}
	if o.Secret.Len() < 16 {
		return nil, errors.New("sms: the webhook's secret must have at least 16 bytes")
	}
	if o.Clock == nil {
		o.Clock = clock.System
	}
	return &Webhook{
		url: u.String(), secret: o.Secret, clock: o.Clock,
		client: HTTPClient(o.Timeout, o.Roots),
	}, nil
}

// Send implements Sender.
func (w *Webhook) Send(ctx context.Context, m Message) error {
	now := w.clock.Now()
	body, err := json.Marshal(map[string]string{
		"id": m.ID, "to": m.To, "text": m.Text, "sent_at": now.UTC().Format(time.RFC3339),
	})
	if err != nil {
		return fmt.Errorf("sms: encoding message %s: %w", m.ID, err)
	}
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, w.url, bytes.NewReader(body))
	if err != nil {
		return fmt.Errorf("sms: %w", err)
	}
	r.Header.Set("Content-Type", "application/json")
	r.Header.Set("Idempotency-Key", m.ID)
	r.Header.Set(SignatureHeader, Sign(w.secret, now, body))
	status, _, err := ask(w.client, r)
	if err != nil {
		return err
	}
	return verdict(status, "")
}

// Sign returns the value of SignatureHeader for a body sent at the given time.
func Sign(key secret.Value, at time.Time, body []byte) string {
	t := strconv.FormatInt(at.Unix(), 10)
	h := hmac.New(sha256.New, key.Reveal())
	h.Write([]byte(t + "."))
	h.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(h.Sum(nil))
}
